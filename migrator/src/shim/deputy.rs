//! The deputy: the original process, parked at home.
//!
//! Every thread waits in a `pause` injected through the stub, with no signal blocked, so that
//! each signal that arrives is seen, described and sent on instead of being delivered. A home call
//! of a guest's thread is executed by the deputy's thread of the same ID, so that session,
//! terminal, credentials and descriptors are right by construction, and calls of several threads
//! do not wait for each other.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use proto::ids::RequestId;
use proto::v1::{HomeCall, HomeReply};

use crate::homecall::HomeCallError;
use crate::homecall::place::{self, Placed, SCRATCH_BYTES};
use crate::syscalls::{Class, trapped_class};
use crate::tracee::inject::{CallState, checked};
use crate::tracee::{
    CALL_DEADLINE, CallStop, Event, Origin, RawSiginfo, Running, SignalSeen, Stop, Stopped, Stub,
    TraceeError, known_origin,
};

/// How long a thread may take to stop when it is told to. One that waits in the kernel stops at once,
/// unless it may not run: its cgroup is frozen, or its machine overloaded. Then the job stands still.
pub(super) const STOP_LIMIT: Duration = CALL_DEADLINE;
/// Most signals remembered that were put back into the queue of the process.
const PUT_BACK_MAX: usize = 256;
/// Blocked signals while a thread makes a call for us.
const ALL_SIGNALS: u64 = u64::MAX;
/// What a call returns that was interrupted before it began.
const ERESTARTSYS: i64 = 512;

/// What the deputy's keeper has to pass on.
#[derive(Debug)]
pub enum News {
    /// A signal arrived and was taken.
    Signal(SignalSeen),
    /// A home call is done.
    Reply(RequestId, HomeReply, Vec<u8>),
    /// One thread ended.
    ThreadEnded(i32),
    /// The process ended.
    Ended(Event),
}

/// The parked process.
#[derive(Debug)]
pub struct Deputy {
    pub(super) pid: i32,
    stub: Stub,
    pub(super) threads: BTreeMap<i32, Thread>,
    /// A signal we sent ourselves, which is to take effect.
    pub(super) own_signal: Option<i32>,
    /// The guest has stopped by this signal, and the deputy is about to do the same.
    pub(super) stop_due: Option<i32>,
    /// What announces that stop is still to be seen.
    pub(super) carrier_comes: bool,
    /// The deputy has stopped as its guest has, and was not continued.
    pub(super) stands: bool,
    /// Signals known to be sent to the process that wait in its queue to be reported once more.
    put_back: VecDeque<RawSiginfo>,
}

#[derive(Debug)]
pub(super) struct Thread {
    /// `None` only while an operation of ours holds the tracee.
    running: Option<Running>,
    pub(super) doing: Doing,
    scratch: Option<u64>,
}

#[derive(Debug)]
pub(super) enum Doing {
    /// In `pause`.
    Parked,
    /// In a home call.
    Calling(RequestId, Box<Placed>),
    /// In a group-stop.
    Stopped,
    /// On its way out; nothing is expected of it any more.
    Ending,
}

impl Deputy {
    /// Parks the stopped threads of a process that has left. Whatever waits in their queues is
    /// news: what the image has taken along must not be there any more.
    ///
    /// # Errors
    /// [`TraceeError`].
    pub fn park(pid: i32, threads: Vec<Stopped>, stub: Stub) -> Result<Self, TraceeError> {
        let mut deputy = Self {
            pid,
            stub,
            threads: BTreeMap::new(),
            own_signal: None,
            stop_due: None,
            carrier_comes: false,
            stands: false,
            put_back: VecDeque::new(),
        };
        for stopped in threads {
            let tid = stopped.tid();
            let thread = Thread {
                running: None,
                doing: Doing::Parked,
                scratch: None,
            };
            deputy.threads.insert(tid, thread);
            // The end of one that is killed just now is reported, too.
            let unblocked = stopped.set_sigmask(0);
            ignore_death(unblocked.and_then(|()| deputy.pause(stopped)))?;
        }
        Ok(deputy)
    }

    /// Its process ID.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its stub.
    #[must_use]
    pub fn stub(&self) -> Stub {
        self.stub
    }

    pub(super) fn pause(&mut self, stopped: Stopped) -> Result<(), TraceeError> {
        self.go(stopped, Doing::Parked, libc::SYS_pause, [0; 6])
    }

    pub(super) fn go(
        &mut self,
        stopped: Stopped,
        doing: Doing,
        number: i64,
        args: [u64; 6],
    ) -> Result<(), TraceeError> {
        let tid = stopped.tid();
        let running = stopped.start_call(&self.stub, number, args)?;
        self.keep(tid, running, doing);
        Ok(())
    }

    fn keep(&mut self, tid: i32, running: Running, doing: Doing) {
        if let Some(thread) = self.threads.get_mut(&tid) {
            thread.running = Some(running);
            thread.doing = doing;
        }
    }

    /// Handles what waitpid(2) reported of one thread.
    ///
    /// # Errors
    /// [`TraceeError`], deaths excepted: those are news.
    pub fn on_event(
        &mut self,
        tid: i32,
        event: Event,
        news: &mut Vec<News>,
    ) -> Result<(), TraceeError> {
        if event.is_end() {
            self.threads.remove(&tid);
            news.push(if tid == self.pid {
                News::Ended(event)
            } else {
                News::ThreadEnded(tid)
            });
            return Ok(());
        }
        let Some(thread) = self.threads.get_mut(&tid) else {
            return Ok(()); // a thread that is being released
        };
        let running = thread.running.take().unwrap_or(Running::assume(tid));
        let stopped = running.on_event(event)?;
        ignore_death(self.on_stop(stopped, news))
    }

    fn on_stop(&mut self, stopped: Stopped, news: &mut Vec<News>) -> Result<(), TraceeError> {
        let tid = stopped.tid();
        match stopped.finish_call(&self.stub)? {
            CallStop::Done(result) => self.call_done(stopped, result, news),
            CallStop::Signal { seen, call } => {
                if let Some(effect) = self.effect_of_own(&seen.info) {
                    let doing = self.take_doing(tid);
                    let running = stopped.cont(effect)?;
                    self.keep(tid, running, doing);
                    return Ok(());
                }
                let stopped = self.take_signal(stopped, seen, news)?;
                self.call_disturbed(stopped, call, news)
            }
            CallStop::Stopped { stop, call } => match stop {
                Stop::GroupStop(_) => {
                    self.answer_early(&stopped, news)?;
                    let running = stopped.listen()?;
                    self.keep(tid, running, Doing::Stopped);
                    Ok(())
                }
                _ => {
                    if self.is_stopped(tid) {
                        self.stands = false;
                    }
                    if stopped.stub_trap_is_pending()? {
                        return self.await_trap(stopped);
                    }
                    self.call_disturbed(stopped, call, news)
                }
            },
        }
    }

    /// The call of a thread is done, and the signal of its trap is the next thing it reports.
    fn await_trap(&mut self, stopped: Stopped) -> Result<(), TraceeError> {
        let tid = stopped.tid();
        let doing = match self.take_doing(tid) {
            Doing::Stopped => Doing::Parked,
            other => other,
        };
        let running = stopped.cont(0)?;
        self.keep(tid, running, doing);
        Ok(())
    }

    /// A signal is about to be delivered to a thread: it becomes news, or will be reported once more.
    fn take_signal(
        &mut self,
        stopped: Stopped,
        mut seen: SignalSeen,
        news: &mut Vec<News>,
    ) -> Result<Stopped, TraceeError> {
        // With one thread it makes no difference.
        if Stub::is_own_trap(&seen.info) || self.threads.len() < 2 {
            self.note_signal(seen, news);
            return Ok(stopped);
        }
        let known = self.put_back.iter().position(|info| *info == seen.info);
        let (stopped, origin) = match known_origin(&seen.info, self.pid) {
            Some(origin) => (stopped, origin),
            None if known.is_some() => {
                known.map(|at| self.put_back.remove(at));
                (stopped, Origin::Process)
            }
            None => {
                let deadline = Instant::now() + STOP_LIMIT;
                let mut others = Vec::new();
                let (stopped, origin) = stopped.find_origin(0, deadline, &mut others)?;
                for seen in others {
                    self.note_signal(seen, news);
                }
                if origin == Origin::Process {
                    self.put_back.push_front(seen.info);
                    self.put_back.truncate(PUT_BACK_MAX);
                    return Ok(stopped);
                }
                (stopped, origin)
            }
        };
        seen.to_thread = origin == Origin::Thread;
        self.note_signal(seen, news);
        Ok(stopped)
    }

    fn note_signal(&mut self, seen: SignalSeen, news: &mut Vec<News>) {
        // The trap of a call that had already been seen to be done is nobody's business.
        if !Stub::is_own_trap(&seen.info) {
            news.push(News::Signal(seen));
        }
    }

    fn is_ending(&self, tid: i32) -> bool {
        let thread = self.threads.get(&tid);
        thread.is_some_and(|thread| matches!(thread.doing, Doing::Ending))
    }

    fn is_stopped(&self, tid: i32) -> bool {
        let thread = self.threads.get(&tid);
        thread.is_some_and(|thread| matches!(thread.doing, Doing::Stopped))
    }

    fn take_doing(&mut self, tid: i32) -> Doing {
        let thread = self.threads.get_mut(&tid);
        thread.map_or(Doing::Ending, |thread| {
            std::mem::replace(&mut thread.doing, Doing::Parked)
        })
    }

    /// A signal, an interrupt or the end of a group-stop came while a call was under way.
    fn call_disturbed(
        &mut self,
        stopped: Stopped,
        call: CallState,
        news: &mut Vec<News>,
    ) -> Result<(), TraceeError> {
        match call {
            CallState::Done(result) => self.call_done(stopped, result, news),
            CallState::Interrupted | CallState::NotStarted | CallState::Elsewhere => {
                let code = match call {
                    CallState::Interrupted => stopped.regs()?.rax.cast_signed(),
                    _ => -ERESTARTSYS,
                };
                let tid = stopped.tid();
                if self.is_ending(tid) {
                    let running = stopped.cont(0)?;
                    self.keep(tid, running, Doing::Ending);
                    return Ok(());
                }
                self.reply_interrupted(tid, code, news);
                self.pause(stopped)
            }
        }
    }

    fn call_done(
        &mut self,
        stopped: Stopped,
        result: i64,
        news: &mut Vec<News>,
    ) -> Result<(), TraceeError> {
        self.reply(&stopped, result, news);
        self.pause(stopped)
    }

    fn reply(&mut self, stopped: &Stopped, result: i64, news: &mut Vec<News>) {
        let tid = stopped.tid();
        if let Doing::Calling(request, placed) = self.take_doing(tid) {
            let base = self.scratch_of(tid).unwrap_or(0);
            let (reply, payload) = placed
                .collect(result, base, &stopped.memory())
                .unwrap_or_else(|_| (failure(libc::EFAULT), Vec::new()));
            news.push(News::Reply(request, reply, payload));
        }
    }

    fn scratch_of(&self, tid: i32) -> Option<u64> {
        self.threads.get(&tid).and_then(|thread| thread.scratch)
    }

    /// Begins a home call; its reply comes as news, at once if it cannot be made.
    ///
    /// # Errors
    /// [`TraceeError`], deaths excepted.
    pub fn call(
        &mut self,
        request: RequestId,
        call: &HomeCall,
        payload: &[u8],
        news: &mut Vec<News>,
    ) -> Result<(), TraceeError> {
        // A guest that goes on may call before the deputy has been seen to go on.
        let parked = |thread: &Thread| matches!(thread.doing, Doing::Parked | Doing::Stopped);
        let free = self.threads.get(&call.thread).is_some_and(parked);
        if !free || !may_be_called(call.number) {
            news.push(News::Reply(request, failure(libc::ENOSYS), Vec::new()));
            return Ok(());
        }
        let begun = self.begin(request, call, payload, news);
        ignore_death(begun)
    }

    fn begin(
        &mut self,
        request: RequestId,
        call: &HomeCall,
        payload: &[u8],
        news: &mut Vec<News>,
    ) -> Result<(), TraceeError> {
        let tid = call.thread;
        let mut stopped = self.stop_thread(tid, news)?;
        let base = self.scratch(&mut stopped, news)?;
        let placed = place::place(call, payload, base);
        let written = placed.and_then(|placed| {
            let done = stopped.memory().write(base, &placed.scratch);
            done.map(|()| placed).map_err(|_| HomeCallError::Fault)
        });
        match written {
            Ok(placed) => {
                let (number, args) = (i64::from(placed.number), placed.args);
                let doing = Doing::Calling(request, Box::new(placed));
                self.go(stopped, doing, number, args)
            }
            Err(_) => {
                news.push(News::Reply(request, failure(libc::EINVAL), Vec::new()));
                self.pause(stopped)
            }
        }
    }

    /// The thread's scratch area, mapped at its first call.
    pub(super) fn scratch(
        &mut self,
        stopped: &mut Stopped,
        news: &mut Vec<News>,
    ) -> Result<u64, TraceeError> {
        let tid = stopped.tid();
        if let Some(start) = self.scratch_of(tid) {
            return Ok(start);
        }
        let protection = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE) as u64;
        let args = [0, SCRATCH_BYTES, protection, flags, u64::MAX, 0];
        let start = self.inject(stopped, ("mmap", libc::SYS_mmap), args, news)?;
        if let Some(thread) = self.threads.get_mut(&tid) {
            thread.scratch = Some(start);
        }
        Ok(start)
    }

    pub(super) fn inject(
        &mut self,
        stopped: &mut Stopped,
        call: (&'static str, i64),
        args: [u64; 6],
        news: &mut Vec<News>,
    ) -> Result<u64, TraceeError> {
        // Signals wait, so that it can be told to whom they were sent; SIGSTOP cannot.
        let mut signals = Vec::new();
        stopped.set_sigmask(ALL_SIGNALS)?;
        let raw = stopped.inject(&self.stub, call.1, args, &mut signals);
        for seen in signals {
            self.note_signal(seen, news);
        }
        let raw = raw?;
        stopped.set_sigmask(0)?;
        checked(call.0, raw)
    }

    /// Takes a parked thread out of its pause. Signals that come first are news.
    pub(super) fn stop_thread(
        &mut self,
        tid: i32,
        news: &mut Vec<News>,
    ) -> Result<Stopped, TraceeError> {
        let thread = self.threads.get_mut(&tid);
        let thread = thread.ok_or(TraceeError::Died { tid })?;
        let mut running = thread.running.take().unwrap_or(Running::assume(tid));
        running.interrupt()?;
        let deadline = Instant::now() + STOP_LIMIT;
        loop {
            let stopped = running.wait(deadline)?;
            match stopped.stop() {
                // On its way out it runs until it ends.
                _ if self.is_ending(tid) => running = stopped.cont(0)?,
                Stop::SignalDelivery(_) => {
                    let info = stopped.siginfo()?;
                    let stopped = match self.effect_of_own(&info) {
                        None => {
                            self.take_signal(stopped, SignalSeen::at_delivery(tid, info), news)?
                        }
                        Some(_) => stopped,
                    };
                    stopped.interrupt()?; // any stop makes the kernel forget the last one
                    running = stopped.cont(0)?;
                }
                // Neither must be left to the process that comes home.
                _ if self.carrier_comes && tid == self.pid => running = stopped.cont(0)?,
                _ if stopped.stub_trap_is_pending()? => running = stopped.cont(0)?,
                _ => {
                    self.answer_early(&stopped, news)?;
                    return Ok(stopped);
                }
            }
        }
    }

    /// Answers a call under way of a thread that is needed for something else.
    fn answer_early(&mut self, stopped: &Stopped, news: &mut Vec<News>) -> Result<(), TraceeError> {
        let tid = stopped.tid();
        let calling = |thread: &Thread| matches!(thread.doing, Doing::Calling(..));
        if !self.threads.get(&tid).is_some_and(calling) {
            return Ok(());
        }
        let regs = stopped.regs()?;
        match self.stub.call_state(&regs) {
            CallState::Done(result) => self.reply(stopped, result, news),
            CallState::Interrupted => self.reply_interrupted(tid, regs.rax.cast_signed(), news),
            _ => self.reply_interrupted(tid, -ERESTARTSYS, news),
        }
        Ok(())
    }

    fn reply_interrupted(&mut self, tid: i32, code: i64, news: &mut Vec<News>) {
        if let Doing::Calling(request, _) = self.take_doing(tid) {
            let reply = HomeReply {
                result: code,
                interrupted: true,
                lengths: Vec::new(),
            };
            news.push(News::Reply(request, reply, Vec::new()));
        }
    }

    /// Asks a call for an early end; its reply comes as news.
    ///
    /// # Errors
    /// [`TraceeError`], deaths excepted.
    pub fn cancel(&mut self, request: RequestId) -> Result<(), TraceeError> {
        for thread in self.threads.values() {
            match (&thread.doing, &thread.running) {
                (Doing::Calling(id, _), Some(running)) if *id == request => {
                    return ignore_death(running.interrupt());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Stops all threads, for a return. No call may be under way.
    ///
    /// # Errors
    /// [`TraceeError`].
    pub fn unpark(mut self, news: &mut Vec<News>) -> Result<Vec<Stopped>, TraceeError> {
        let mut tids: Vec<i32> = self.threads.keys().copied().collect();
        tids.sort_by_key(|tid| *tid != self.pid);
        let mut all = Vec::new();
        for tid in tids {
            match self.stop_thread(tid, news) {
                Ok(stopped) => all.push(stopped),
                Err(error) if error.is_death() && self.is_ending(tid) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }
}

/// Only what the table gives to home is done for a host.
fn may_be_called(number: u32) -> bool {
    matches!(trapped_class(number), Class::Home | Class::Both)
}

fn failure(errno: i32) -> HomeReply {
    HomeReply {
        result: -i64::from(errno),
        ..HomeReply::default()
    }
}

/// A thread that ended meanwhile is reported by waitpid(2) in its own time.
pub(super) fn ignore_death(done: Result<(), TraceeError>) -> Result<(), TraceeError> {
    match done {
        Err(error) if error.is_death() => Ok(()),
        other => other,
    }
}
