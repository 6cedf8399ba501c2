//! All threads of a process stopped at once.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use crate::sys::regs::Regs;

use super::event::{self, Event};
use super::inject::{self, SignalSeen, Stub};
use super::{Running, Stop, Stopped, TraceeError, options, procfs};

/// How often something is looked at until nothing new appears.
pub(super) const ROUNDS_MAX: usize = 100;
/// Scratch memory of the stub that a frozen process gets.
const SCRATCH_BYTES: u64 = 32 * 1024;
/// How long one thread is waited for before the others are looked at: one that executes a program
/// waits for their ends to be taken note of.
const COLLECT_SLICE: Duration = Duration::from_millis(20);
/// How long a thread that has ended may take to be gone.
const REAP_LIMIT: Duration = Duration::from_secs(2);
/// Every signal.
pub(crate) const ALL_SIGNALS: u64 = u64::MAX;

/// One stopped thread of a frozen process.
#[derive(Debug)]
pub struct FrozenThread {
    /// The stopped tracee.
    pub stopped: Stopped,
    /// Registers as they were when it stopped, restart codes included.
    pub regs: Regs,
    /// The signals it blocks (all are blocked while it works for us).
    pub sigmask: u64,
    /// It was stopped by this signal already (or stopped so meanwhile).
    pub group_stop: Option<i32>,
}

/// A process whose threads are all stopped by us. Dropping it without [`Frozen::thaw`] leaves the
/// release to the kernel when the tracer thread ends: the process then runs on, but interrupted
/// calls may be lost if a call was injected; so thaw.
#[derive(Debug)]
pub struct Frozen {
    pid: i32,
    /// The leader first.
    pub threads: Vec<FrozenThread>,
    /// Signals taken from the queues while freezing or injecting; they are put back by thaw.
    pub signals: Vec<SignalSeen>,
    stub: Option<Stub>,
    /// It is to stop when it goes on: SIGSTOP cannot be blocked, so it cannot wait in a queue.
    pub(super) stops: bool,
    /// Whether the process ignores SIGTRAP, if that is known.
    pub(super) trap_ignored: Option<bool>,
}

impl Frozen {
    /// Seizes and stops all threads of `pid`.
    ///
    /// # Errors
    /// [`TraceeError::Died`] when the process ends meanwhile, `Timeout` when a thread hangs in an
    /// uninterruptible call, `Request` with EPERM when it is traced already. The process runs on
    /// unharmed in each of these cases.
    pub fn freeze(pid: i32, timeout: Duration) -> Result<Self, TraceeError> {
        let deadline = Instant::now() + timeout;
        let mut frozen = Self {
            pid,
            threads: Vec::new(),
            signals: Vec::new(),
            stub: None,
            stops: false,
            trap_ignored: None,
        };
        match frozen.stop_all(deadline) {
            Ok(()) => Ok(frozen),
            Err(error) => {
                // The reason is what the caller wants; a failed release has nobody to tell.
                let _ = frozen.thaw();
                Err(error)
            }
        }
    }

    /// Takes over threads that are stopped already (a guest under its supervisor). Their state is
    /// read now.
    ///
    /// # Errors
    /// [`TraceeError::Died`].
    pub fn adopt(pid: i32, stopped: Vec<Stopped>, stub: Option<Stub>) -> Result<Self, TraceeError> {
        let threads = stopped
            .into_iter()
            .map(FrozenThread::new)
            .collect::<Result<_, _>>()?;
        Ok(Self {
            pid,
            threads,
            signals: Vec::new(),
            stub,
            stops: false,
            trap_ignored: None,
        })
    }

    /// To be told when signal actions are about to be changed by injected calls.
    pub fn actions_change(&mut self) {
        self.trap_ignored = None;
    }

    /// It is to stop as soon as it goes on, as it was stopped elsewhere.
    pub fn stop_when_it_goes_on(&mut self) {
        self.stops = true;
    }

    fn stop_all(&mut self, deadline: Instant) -> Result<(), TraceeError> {
        let pid = self.pid;
        for _ in 0..ROUNDS_MAX {
            let listed = procfs::threads(pid).map_err(|error| procfs::failed(pid, error))?;
            let known = |tid: &i32| self.threads.iter().any(|t| t.stopped.tid() == *tid);
            let new: Vec<i32> = listed.into_iter().filter(|tid| !known(tid)).collect();
            if new.is_empty() && self.stand_still(deadline)? {
                return Ok(());
            }
            let mut running = VecDeque::new();
            let failure = new
                .iter()
                .find_map(|tid| self.catch(*tid, &mut running).err());
            self.collect_all(running, deadline)?;
            if let Some(error) = failure {
                return Err(error);
            }
        }
        Err(TraceeError::Timeout { tid: pid })
    }

    /// Whether all threads are still where they were stopped. One that ended the others by execve(2)
    /// meanwhile is the leader now, and stopped anew.
    fn stand_still(&mut self, deadline: Instant) -> Result<bool, TraceeError> {
        let mut changed = VecDeque::new();
        let mut still = true;
        self.threads.retain(|thread| {
            let tid = thread.stopped.tid();
            let news = event::poll_one(tid);
            if let Ok(Some(Event::Stopped(stop))) = news {
                changed.push_back((tid, stop));
            }
            let stays = matches!(news, Ok(None));
            still &= stays;
            stays
        });
        for (tid, stop) in changed {
            let stopped = Running::assume(tid).on_event(Event::Stopped(stop))?;
            self.collect(stopped, deadline)?;
        }
        Ok(still)
    }

    fn collect_all(
        &mut self,
        mut running: VecDeque<Running>,
        deadline: Instant,
    ) -> Result<(), TraceeError> {
        while let Some(thread) = running.pop_front() {
            let tid = thread.tid();
            let slice = deadline.min(Instant::now() + COLLECT_SLICE);
            match thread.wait(slice) {
                Ok(stopped) => self.collect(stopped, deadline)?,
                Err(error) if error.is_death() && self.goes_on_without(tid) => {}
                Err(TraceeError::Timeout { .. }) if Instant::now() < deadline => {
                    running.push_back(Running::assume(tid));
                    self.stand_still(deadline)?;
                }
                Err(error) => {
                    running.push_back(Running::assume(tid));
                    running.into_iter().for_each(release);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Whether the process lives on without a thread that has ended.
    fn goes_on_without(&self, tid: i32) -> bool {
        tid != self.pid || procfs::threads(self.pid).is_ok_and(|listed| !listed.is_empty())
    }

    /// Seizes and interrupts one thread. One that has just ended is no failure, unless it leads
    /// the process.
    fn catch(&self, tid: i32, running: &mut VecDeque<Running>) -> Result<(), TraceeError> {
        match Running::seize(tid, options::TRACESYSGOOD) {
            Ok(thread) => {
                let asked = thread.interrupt();
                running.push_back(thread);
                asked
            }
            Err(error) if self.may_miss(tid, &error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn may_miss(&self, tid: i32, error: &TraceeError) -> bool {
        let ending = || {
            let state = procfs::Stat::of_thread(self.pid, tid).map(|stat| stat.text(3).to_owned());
            state.map_or(true, |state| matches!(state.as_str(), "Z" | "X"))
        };
        tid != self.pid && (error.is_death() || ending())
    }

    /// Brings a thread from its first stop to that of its interrupt. A signal that comes first is
    /// delivered: once it is taken from its queue nothing tells any more which queue that was. A stop
    /// signal is kept aside: it would stop threads that are to work for us.
    fn collect(&mut self, mut stopped: Stopped, deadline: Instant) -> Result<(), TraceeError> {
        let tid = stopped.tid();
        loop {
            let mut deliver = 0;
            match stopped.stop() {
                Stop::SignalDelivery(signal) if stops_by_default(signal) => {
                    let info = stopped.siginfo()?;
                    self.signals.push(SignalSeen::at_delivery(tid, info));
                }
                Stop::SignalDelivery(signal) => deliver = signal,
                Stop::Interrupted | Stop::GroupStop(_) => return self.add(stopped),
                _ => {}
            }
            let next = stopped.interrupt().and_then(|()| stopped.cont(deliver));
            match next.and_then(|running| running.wait(deadline)) {
                Ok(next) => stopped = next,
                Err(error) if error.is_death() && self.goes_on_without(tid) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    fn add(&mut self, stopped: Stopped) -> Result<(), TraceeError> {
        let tid = stopped.tid();
        let thread = match FrozenThread::new(stopped) {
            Err(error) if error.is_death() && self.goes_on_without(tid) => return Ok(()),
            other => other?,
        };
        let leads = tid == self.pid;
        let place = if leads { 0 } else { self.threads.len() };
        self.threads.insert(place, thread);
        Ok(())
    }

    /// The process.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Is this address in our own stub?
    #[must_use]
    pub fn owns(&self, address: u64) -> bool {
        self.stub.is_some_and(|stub| stub.contains(address))
    }

    /// The thread that leads the process.
    ///
    /// # Errors
    /// [`TraceeError::Died`] when it is gone.
    pub fn leader(&mut self) -> Result<&mut FrozenThread, TraceeError> {
        self.threads
            .first_mut()
            .ok_or(TraceeError::Died { tid: self.pid })
    }

    /// The stub, mapped on first use.
    ///
    /// # Errors
    /// [`TraceeError`].
    pub fn stub(&mut self) -> Result<Stub, TraceeError> {
        if let Some(stub) = self.stub {
            return Ok(stub);
        }
        let mut signals = Vec::new();
        let leader = self.leader()?;
        leader.stopped.set_sigmask(ALL_SIGNALS)?;
        let stub = Stub::install(&mut leader.stopped, SCRATCH_BYTES, &mut signals)?;
        self.signals.append(&mut signals);
        self.stub = Some(stub);
        Ok(stub)
    }

    /// Maps the stub at a chosen free address.
    ///
    /// # Errors
    /// [`TraceeError`].
    pub fn stub_at(&mut self, address: u64, scratch_bytes: u64) -> Result<Stub, TraceeError> {
        let mut signals = Vec::new();
        let leader = self.leader()?;
        leader.stopped.set_sigmask(ALL_SIGNALS)?;
        let gate = inject::find_syscall_instruction(&leader.stopped)?;
        let thread = &mut leader.stopped;
        let stub = Stub::install_at(thread, gate, Some(address), scratch_bytes, &mut signals)?;
        self.signals.append(&mut signals);
        self.stub = Some(stub);
        Ok(stub)
    }

    /// Executes a system call in thread `index` (0 is the leader), with all signals blocked.
    ///
    /// # Errors
    /// `Call` when it fails, and [`TraceeError`].
    pub fn call(
        &mut self,
        index: usize,
        call: (&'static str, i64),
        args: [u64; 6],
    ) -> Result<u64, TraceeError> {
        let stub = self.stub()?;
        let pid = self.pid;
        let thread = self
            .threads
            .get_mut(index)
            .ok_or(TraceeError::Died { tid: pid })?;
        thread.stopped.set_sigmask(ALL_SIGNALS)?;
        thread
            .stopped
            .inject_checked(&stub, call, args, &mut self.signals)
    }

    /// Lets the process run on as if nothing had happened: the stub goes, signals are put back,
    /// interrupted system calls are restarted by the kernel's own rules.
    ///
    /// From when the first thread runs it may do anything, such as ending all others: that they are
    /// gone is no failure.
    ///
    /// # Errors
    /// The first failure; the remaining threads are released all the same. `Died` when the process
    /// ended before it ran.
    pub fn thaw(mut self) -> Result<(), TraceeError> {
        let own = self.stub;
        let mut first = self.undo().err();
        let mut ready = Vec::new();
        for thread in std::mem::take(&mut self.threads) {
            match thread.settle(own, &mut self.stops) {
                Ok(stopped) => ready.push(stopped),
                Err(error) => drop(first.get_or_insert(error)),
            }
        }
        self.stop_if_due();
        for stopped in ready {
            let tid = stopped.tid();
            match stopped.detach(0) {
                Err(error) if error.is_death() => reap(tid, self.pid),
                Err(error) => drop(first.get_or_insert(error)),
                Ok(()) => {}
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// Lets the process run on under our eyes: signals are put back, registers and masks set, the
    /// stub stays; the threads in order, traced with `options`. The end of a thread that the first
    /// ones have ended is reported by waitpid(2), as any other.
    ///
    /// # Errors
    /// [`TraceeError`]; the process may run in part then.
    pub fn run(mut self, options: u32) -> Result<Vec<Running>, TraceeError> {
        // The kernel ends a group-stop for whom it lets go on, unless that is by detaching.
        self.stops |= self.threads.iter().any(|t| t.group_stop.is_some());
        self.requeue_signals()?;
        let mut prepared = Vec::new();
        for thread in std::mem::take(&mut self.threads) {
            let stopped = thread.settle(self.stub, &mut self.stops)?;
            stopped.set_options(options)?;
            prepared.push(stopped);
        }
        self.stop_if_due();
        let go_on = |stopped: Stopped| {
            let tid = stopped.tid();
            match stopped.cont(0) {
                Err(error) if error.is_death() => Ok(Running::assume(tid)),
                other => other,
            }
        };
        prepared.into_iter().map(go_on).collect()
    }

    /// Has a stop that was due take effect, unless SIGCONT has come since.
    fn stop_if_due(&self) {
        let pending = procfs::Status::read(self.pid).map_or(0, |status| status.mask("ShdPnd"));
        if !self.stops || pending & (1 << (libc::SIGCONT - 1)) != 0 {
            return;
        }
        let pid = nix::unistd::Pid::from_raw(self.pid);
        // A process that is gone needs no stop.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP);
    }

    fn undo(&mut self) -> Result<(), TraceeError> {
        self.requeue_signals()?;
        if let Some(stub) = self.stub.take() {
            let mut signals = Vec::new();
            let leader = self.leader()?;
            let gate = inject::find_syscall_instruction(&leader.stopped)?;
            stub.remove(&mut leader.stopped, gate, &mut signals)?;
            // All others are blocked.
            let stop = |seen: &SignalSeen| seen.info.signal() == libc::SIGSTOP;
            self.stops |= signals.iter().any(stop);
        }
        Ok(())
    }
}

fn stops_by_default(signal: i32) -> bool {
    matches!(
        signal,
        libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU
    )
}

impl FrozenThread {
    pub(crate) fn new(stopped: Stopped) -> Result<Self, TraceeError> {
        let (regs, sigmask) = (stopped.regs()?, stopped.sigmask()?);
        let group_stop = match stopped.stop() {
            Stop::GroupStop(signal) => Some(signal),
            _ => None,
        };
        Ok(Self {
            stopped,
            regs,
            sigmask,
            group_stop,
        })
    }

    /// Sets registers and signal mask, in a stop from where the thread can go on; `stops` becomes
    /// true if a SIGSTOP came meanwhile. No thread is left in `stub`: its trap would be the program's.
    fn settle(self, stub: Option<Stub>, stops: &mut bool) -> Result<Stopped, TraceeError> {
        let tid = self.stopped.tid();
        if stub.is_some_and(|stub| stub.contains(self.regs.rip)) {
            let what = "thread in a stub that is to run the program".to_owned();
            return Err(TraceeError::Unexpected { tid, what });
        }
        let stopped = into_signal_stop(self.stopped, stops)?;
        stopped.set_regs(&inject::restart_wait(&self.regs))?;
        stopped.set_sigmask(self.sigmask)?;
        Ok(stopped)
    }
}

/// Lets a thread go that was asked to stop, as soon as it has. One that hangs in the kernel is let go
/// when its tracer ends.
fn release(thread: Running) {
    if let Ok(stopped) = thread.wait(Instant::now() + COLLECT_SLICE) {
        let deliver = match stopped.stop() {
            Stop::SignalDelivery(signal) => signal,
            _ => 0,
        };
        // Nobody wants to know of a thread that has ended.
        let _ = stopped.detach(deliver);
    }
}

/// Takes note of the end of a thread, so that the others need not wait for that. Nobody waits for a
/// leader whose place another thread has taken by execve(2).
fn reap(tid: i32, leader: i32) {
    let deadline = Instant::now() + REAP_LIMIT;
    while tid != leader
        && let Ok(news) = event::wait_one(tid, deadline)
    {
        if news.is_end() {
            return;
        }
    }
}

/// Brings a thread to a stop inside the kernel's signal handling, where it applies the restart
/// rules for the interrupted system call when it goes on: at a system call stop, where an injected
/// call leaves it, a raw -ERESTARTSYS would go through to the program. All signals are blocked then,
/// so that none is lost on the way.
pub(super) fn into_signal_stop(stopped: Stopped, stops: &mut bool) -> Result<Stopped, TraceeError> {
    if matches!(stopped.stop(), Stop::Interrupted | Stop::GroupStop(_)) {
        return Ok(stopped);
    }
    let deadline = Instant::now() + super::CALL_DEADLINE;
    stopped.set_sigmask(ALL_SIGNALS)?;
    stopped.interrupt()?;
    let running = stopped.cont(0)?;
    let mut stopped = running.wait(deadline)?;
    while !matches!(stopped.stop(), Stop::Interrupted | Stop::GroupStop(_)) {
        let tid = stopped.tid();
        if Instant::now() >= deadline {
            return Err(TraceeError::Timeout { tid });
        }
        *stops |= stopped.stop() == Stop::SignalDelivery(libc::SIGSTOP);
        stopped.interrupt()?;
        stopped = stopped.cont(0)?.wait(deadline)?;
    }
    Ok(stopped)
}

impl Stopped {
    /// Has it stop again at once when it goes on. Any other stop makes the kernel forget an earlier
    /// request (ptrace_stop() of kernel/signal.c), so it has to be repeated in each.
    ///
    /// # Errors
    /// [`TraceeError::Died`].
    pub fn interrupt(&self) -> Result<(), TraceeError> {
        self.ask("PTRACE_INTERRUPT", crate::sys::ptrace::interrupt)
    }
}

/// Is this error about a tracee that somebody else traces?
#[must_use]
pub fn is_traced_already(error: &TraceeError) -> bool {
    let TraceeError::Request {
        request: "PTRACE_SEIZE",
        error,
        ..
    } = error
    else {
        return false;
    };
    error.kind() == io::ErrorKind::PermissionDenied
}
