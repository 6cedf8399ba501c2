//! The running guest: its threads under ptrace, its trapped calls, and what its end means.
//!
//! Being traced costs a running guest nothing per system call; the supervisor sees signals, stops
//! and ends. What it does with them is here; what goes over the link is the caller's.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use proto::ids::RequestId;
use proto::v1::job_message::What;
use proto::v1::{Continued, Exited, Signal, Stopped as StoppedMessage, ThreadGone};

use super::calls::CallInProgress;
use super::fds::FdTable;
use super::returns::Returns;
use super::signals::{Forwarded, waits_already};
use super::waits::Wait;
use crate::keeper::Peer;
use crate::numbers::HomeNumbers;
use crate::sys::ptrace::RawSiginfo;
use crate::sys::seccomp::Listener;
use crate::tracee::inject::restart_wait;
use crate::tracee::{Event, Running, Stop, Stopped, Stub, TraceeError};

/// One thread.
#[derive(Debug)]
pub(super) struct Thread {
    /// Its ID as it knows it, which is its ID at home.
    pub(super) id: i32,
    pub(super) at: Whereabouts,
    /// The trapped call it waits in.
    pub(super) call: Option<RequestId>,
    /// When it stops next, what a call has just told it is to be corrected.
    pub(super) result_due: bool,
    /// How long the last call that was trapped waits, if it waits for at most so long.
    pub(super) wait: Option<Wait>,
}

/// Where a thread is, as far as its tracer knows.
#[derive(Debug)]
pub(super) enum Whereabouts {
    Running(Running),
    /// In a group-stop.
    Listening(Running),
    /// At the end of a call that home is asked about.
    Asking(Stopped),
    /// Held for a freeze.
    Held(Stopped),
    /// Its tracee is in the hands of a function.
    Elsewhere,
}

/// What the caller has to know.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It goes on.
    Alive,
    /// The process ended with this wait status.
    Ended(i32),
}

/// The running guest.
#[derive(Debug)]
pub(super) struct Guest {
    /// Its PID at home, and to itself.
    pub(super) pid: i32,
    /// Its PID here.
    pub(super) host_pid: i32,
    pub(super) threads: BTreeMap<i32, Thread>,
    pub(super) listener: Listener,
    pub(super) fds: FdTable,
    pub(super) calls: HashMap<RequestId, CallInProgress>,
    pub(super) forwarded: Forwarded,
    /// How many signals of the deputy have been passed on.
    pub(super) signals_taken: u64,
    pub(super) stub: Option<Stub>,
    /// Threads are held when they stop, and no trapped call is taken.
    pub(super) freezing: bool,
    pub(super) stopped: bool,
    /// A call that can only be made at home, and its thread.
    pub(super) wants_home: Option<String>,
    pub(super) returns: Returns,
    pub(super) home_calls: u64,
    pub(super) numbers: Arc<HomeNumbers>,
    /// Its root directory.
    pub(super) root: OwnedFd,
}

impl Guest {
    /// IDs of the threads as they know them, the leader's first.
    pub(super) fn thread_ids(&self) -> Vec<i32> {
        let mut ids: Vec<i32> = self.threads.values().map(|thread| thread.id).collect();
        ids.sort_by_key(|id| *id != self.pid);
        ids
    }

    /// Handles what waitpid(2) reported of one thread.
    pub(super) fn on_event(
        &mut self,
        tid: i32,
        event: Event,
        peer: &Peer,
    ) -> Result<Outcome, TraceeError> {
        if event.is_end() {
            return Ok(self.on_end(tid, event, peer));
        }
        let Some(thread) = self.threads.get_mut(&tid) else {
            return Ok(Outcome::Alive);
        };
        let before = std::mem::replace(&mut thread.at, Whereabouts::Elsewhere);
        let was_listening = matches!(before, Whereabouts::Listening(_));
        let (Whereabouts::Running(running) | Whereabouts::Listening(running)) = before else {
            thread.at = before;
            return Ok(Outcome::Alive);
        };
        let stopped = running.on_event(event)?;
        match self.on_stop(stopped, was_listening, peer) {
            Err(error) if error.is_death() => Ok(Outcome::Alive), // the end is reported, too
            Err(error) => Err(error),
            Ok(()) => Ok(Outcome::Alive),
        }
    }

    fn on_end(&mut self, tid: i32, event: Event, peer: &Peer) -> Outcome {
        let thread = self.threads.remove(&tid);
        if tid != self.host_pid {
            if let Some(thread) = thread {
                let gone = ThreadGone { thread: thread.id };
                let _ = peer.tell(What::ThreadGone(gone), &[]); // a broken link shows elsewhere
            }
            return Outcome::Alive;
        }
        let status = match event {
            Event::Exited(code) => (code & 0xff) << 8,
            Event::Killed { signal, core } => signal | i32::from(core) << 7,
            Event::Stopped(_) | Event::Continued => return Outcome::Alive,
        };
        let _ = peer.tell(What::Exited(Exited { status }), &[]);
        Outcome::Ended(status)
    }

    fn on_stop(
        &mut self,
        stopped: Stopped,
        was_listening: bool,
        peer: &Peer,
    ) -> Result<(), TraceeError> {
        let tid = stopped.tid();
        let thread = self.threads.get_mut(&tid);
        if thread.is_some_and(|thread| std::mem::take(&mut thread.result_due)) {
            self.numbers
                .correct_result(&stopped.regs()?, &stopped.memory())?;
        }
        let at = match stopped.stop() {
            Stop::SignalDelivery(signal) => {
                if let Some(original) = self.forwarded.take(&stopped.siginfo()?) {
                    stopped.set_siginfo(&original)?;
                }
                Whereabouts::Running(self.go_on(stopped, signal)?)
            }
            Stop::GroupStop(signal) => {
                self.note_stop(Some(signal), peer);
                if self.freezing {
                    Whereabouts::Held(stopped)
                } else {
                    Whereabouts::Listening(stopped.listen()?)
                }
            }
            Stop::Interrupted => {
                if was_listening {
                    self.note_stop(None, peer);
                }
                if self.freezing {
                    Whereabouts::Held(stopped)
                } else {
                    Whereabouts::Running(stopped.cont(0)?)
                }
            }
            Stop::Seccomp => {
                // This stop has made the kernel forget an interrupt, and the call may wait.
                if self.freezing {
                    stopped.interrupt()?;
                }
                Whereabouts::Running(stopped.cont_to_syscall(0)?)
            }
            Stop::Syscall => self.on_result(stopped, peer)?,
            Stop::Exiting | Stop::Other(_) => Whereabouts::Running(self.go_on(stopped, 0)?),
        };
        if let Some(thread) = self.threads.get_mut(&tid) {
            thread.at = at;
        }
        Ok(())
    }

    /// Lets a thread run on, to be held in its next stop if all are to be held.
    pub(super) fn go_on(&self, stopped: Stopped, signal: i32) -> Result<Running, TraceeError> {
        if self.freezing {
            stopped.interrupt()?;
        }
        stopped.cont(signal)
    }

    /// Tells home when the process as a whole stops or goes on.
    fn note_stop(&mut self, signal: Option<i32>, peer: &Peer) {
        if self.stopped == signal.is_some() {
            return;
        }
        self.stopped = signal.is_some();
        let what = match signal {
            Some(signal) => What::Stopped(StoppedMessage { signal }),
            None => What::Continued(Continued {}),
        };
        let _ = peer.tell(what, &[]);
    }

    /// Passes a signal of the deputy on.
    pub(super) fn signal(&mut self, signal: &Signal, peer: &Peer) {
        self.signals_taken += 1;
        let Ok(info) = RawSiginfo::try_from(&signal.info[..]) else {
            return; // not a siginfo_t: nothing that a kernel sent
        };
        let thread = self
            .threads
            .iter()
            .find(|(_, thread)| thread.id == signal.thread);
        let tid = thread.map(|(tid, _)| *tid);
        if waits_already(self.host_pid, tid, info.signal()) {
            return self.withdraw_disturbed(peer);
        }
        let token = self.forwarded.token_for(info);
        if let Err(error) = crate::sys::signals::queue(self.host_pid, tid, &token) {
            tracing::warn!(pid = self.pid, signal = info.signal(), %error, "signal lost");
        }
        self.withdraw_disturbed(peer);
    }

    /// Withdraws the home calls of threads that have a signal to take: while they wait for an
    /// answer only fatal signals reach them.
    pub(super) fn withdraw_disturbed(&mut self, peer: &Peer) {
        let waiting = self
            .threads
            .iter()
            .filter(|(_, thread)| thread.call.is_some());
        let disturbed: Vec<RequestId> = waiting
            .filter(|(tid, _)| has_deliverable_signal(self.host_pid, **tid))
            .filter_map(|(_, thread)| thread.call)
            .collect();
        for request in disturbed {
            self.withdraw(request, peer);
        }
    }

    /// Asks home for an early answer, once.
    pub(super) fn withdraw(&mut self, request: RequestId, peer: &Peer) {
        let Some(call) = self.calls.get_mut(&request) else {
            return;
        };
        if !std::mem::replace(&mut call.withdrawn, true) {
            let _ = peer.cancel(request);
        }
    }

    /// Begins to hold all threads.
    pub(super) fn freeze(&mut self, peer: &Peer) -> Result<(), TraceeError> {
        self.freezing = true;
        for thread in self.threads.values() {
            let (Whereabouts::Running(running) | Whereabouts::Listening(running)) = &thread.at
            else {
                continue;
            };
            match running.interrupt() {
                Err(error) if !error.is_death() => return Err(error),
                _ => {}
            }
        }
        let requests: Vec<RequestId> = self.calls.keys().copied().collect();
        for request in requests {
            self.withdraw(request, peer);
        }
        Ok(())
    }

    /// Gives a freeze up: the threads that are held go on.
    pub(super) fn unfreeze(&mut self) -> Result<(), TraceeError> {
        self.freezing = false;
        if self.wants_home.take().is_some() {
            self.returns.failed();
        }
        for thread in self.threads.values_mut() {
            let at = std::mem::replace(&mut thread.at, Whereabouts::Elsewhere);
            let goes_on = match at {
                Whereabouts::Held(stopped) => match stopped.stop() {
                    Stop::GroupStop(_) => stopped.listen().map(Whereabouts::Listening),
                    _ => run_on(stopped).map(Whereabouts::Running),
                },
                other => Ok(other),
            };
            match goes_on {
                Ok(at) => thread.at = at,
                Err(error) if error.is_death() => {} // its end is reported, too
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether all threads are held.
    pub(super) fn is_frozen(&self) -> bool {
        let held = |thread: &Thread| matches!(thread.at, Whereabouts::Held(_));
        self.freezing && self.threads.values().all(held)
    }

    /// Makes a thread's interrupted call restart by its own kernel's rules.
    pub(super) fn interrupt(&self, tid: i32) {
        if let Some(Thread {
            at: Whereabouts::Running(running),
            ..
        }) = self.threads.get(&tid)
        {
            let _ = running.interrupt(); // a thread that died needs no restart
        }
    }
}

/// Lets a thread go on that was held in vain.
fn run_on(stopped: Stopped) -> Result<Running, TraceeError> {
    stopped.set_regs(&restart_wait(&stopped.regs()?))?;
    stopped.cont(0)
}

/// Whether a thread has a signal pending that it does not block.
fn has_deliverable_signal(pid: i32, tid: i32) -> bool {
    let Ok(status) = crate::tracee::procfs::Status::of_thread(pid, tid) else {
        return false;
    };
    (status.mask("SigPnd") | status.mask("ShdPnd")) & !status.mask("SigBlk") != 0
}
