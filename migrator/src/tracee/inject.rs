//! System calls executed by a tracee on our behalf.
//!
//! Two ways. [`Stopped::inject`] goes from system call stop to system call stop: it needs nothing
//! but some `syscall` instruction (the vdso has one), touches no signal state, and is for
//! everything that returns soon. [`Stopped::start_call`] lets the thread run into the `int3`
//! behind the stub's `syscall`: one stop per call, for home calls that may block; it needs SIGTRAP
//! neither blocked nor ignored, else the kernel resets the handler.

use std::time::{Duration, Instant};

use crate::sys::ptrace::RawSiginfo;
use crate::sys::regs::Regs;

use super::event::{self, Event, Stop};
use super::procfs::{self, Maps};
use super::{CALL_DEADLINE, Running, Stopped, TraceeError};

/// Size of a page on x86-64.
pub const PAGE_BYTES: u64 = 4096;

/// A private page of `syscall; int3` in the tracee, and scratch memory behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stub {
    /// Address of the `syscall` instruction; the page begins here.
    pub code: u64,
    /// Readable and writable memory for arguments and results.
    pub scratch: u64,
    /// Its size.
    pub scratch_bytes: u64,
}

/// A signal that came while a tracee was working for us; it was taken from the tracee's queue, so
/// whoever gets this must hand it on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignalSeen {
    /// The thread it was about to be delivered to.
    pub tid: i32,
    /// Everything about it.
    pub info: RawSiginfo,
    /// It was sent to this thread, not to its process.
    pub to_thread: bool,
}

impl SignalSeen {
    /// A signal as it was seen at its delivery. By then only `SI_TKILL` tells a thread-directed one
    /// at once; [`Stopped::find_origin`] tells others.
    #[must_use]
    pub fn at_delivery(tid: i32, info: RawSiginfo) -> Self {
        let to_thread = info.code() == libc::SI_TKILL;
        Self {
            tid,
            info,
            to_thread,
        }
    }
}

/// How far an asynchronous call has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallState {
    /// The system call instruction has not been executed.
    NotStarted,
    /// Interrupted without effect; it starts anew if the thread is continued.
    Interrupted,
    /// Finished with this raw result (-errno for errors).
    Done(i64),
    /// The thread is somewhere else altogether.
    Elsewhere,
}

/// Why a thread that executes an asynchronous call has stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallStop {
    /// The call is done, the thread waits behind the stub.
    Done(i64),
    /// A signal is about to be delivered; `call` tells what became of the call.
    Signal {
        /// The signal.
        seen: SignalSeen,
        /// The call.
        call: CallState,
    },
    /// A group-stop, an interrupt or another ptrace stop.
    Stopped {
        /// Which.
        stop: Stop,
        /// The call.
        call: CallState,
    },
}

const CODE: u64 = 0xcccc_cccc_cccc_050f;
/// Length of the instruction that makes a system call.
pub(crate) const SYSCALL_BYTES: u64 = 2;
/// `si_code` of a trap made by the processor.
const SI_KERNEL: i32 = 0x80;
/// -ERESTARTSYS … -ERESTART_RESTARTBLOCK: seen by tracers only.
const RESTART_CODES: std::ops::RangeInclusive<i64> = -516..=-512;

/// How long a thread may take to stop that does not finish its call.
const BREAK_LIMIT: Duration = Duration::from_secs(1);
const EINTR: i64 = -4;
const ERESTARTNOHAND: i64 = -514;

/// Calls that fail with EINTR on any interruption (signal(7), "Interruption of system calls and
/// library functions by stop signals").
pub(crate) fn gives_up_when_stopped(number: i64) -> bool {
    [
        libc::SYS_epoll_wait,
        libc::SYS_epoll_pwait,
        libc::SYS_epoll_pwait2,
        libc::SYS_rt_sigtimedwait,
        libc::SYS_semop,
        libc::SYS_semtimedop,
        libc::SYS_io_getevents,
    ]
    .contains(&number)
}

/// Registers with which a thread goes on that was interrupted by us: a call that has failed for that
/// alone is made again, unless a handler runs.
pub(crate) fn restart_wait(regs: &Regs) -> Regs {
    let gives_up = regs.syscall_number().is_some_and(gives_up_when_stopped);
    let rax = match regs.rax as i64 {
        EINTR if gives_up => ERESTARTNOHAND as u64,
        _ => regs.rax,
    };
    Regs { rax, ..*regs }
}

/// Is this raw result the kernel's private "to be restarted"?
#[must_use]
pub fn is_restart_code(rax: u64) -> bool {
    let result = rax as i64;
    RESTART_CODES.contains(&result) && result != -515
}

impl Stub {
    /// Maps a stub with `scratch_bytes` (rounded up to pages) of scratch memory, at an address of
    /// the kernel's choice, by calls through the vdso.
    ///
    /// # Errors
    /// `Unexpected` for a process without vdso, `Call` when it cannot map, and [`TraceeError`].
    pub fn install(
        thread: &mut Stopped,
        scratch_bytes: u64,
        signals: &mut Vec<SignalSeen>,
    ) -> Result<Self, TraceeError> {
        let gate = find_syscall_instruction(thread)?;
        Self::install_at(thread, gate, None, scratch_bytes, signals)
    }

    /// The same through a known `syscall` instruction, at `address` if given (which must be free).
    ///
    /// # Errors
    /// As [`Self::install`].
    pub fn install_at(
        thread: &mut Stopped,
        gate: u64,
        address: Option<u64>,
        scratch_bytes: u64,
        signals: &mut Vec<SignalSeen>,
    ) -> Result<Self, TraceeError> {
        let scratch_bytes = scratch_bytes.next_multiple_of(PAGE_BYTES);
        let fixed = if address.is_some() {
            libc::MAP_FIXED_NOREPLACE
        } else {
            0
        };
        // Shared, so that the kernel never merges it with a neighbour of the program's.
        let flags = (libc::MAP_SHARED | libc::MAP_ANONYMOUS | fixed) as u64;
        let protection = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let args = [
            address.unwrap_or(0),
            PAGE_BYTES + scratch_bytes,
            protection,
            flags,
            u64::MAX,
            0,
        ];
        let code = thread.inject_at(gate, libc::SYS_mmap, args, signals)?;
        let code = checked("mmap", code)?;
        thread.memory().write(code, &Self::code_bytes(CODE))?;
        let executable = (libc::PROT_READ | libc::PROT_EXEC) as u64;
        let args = [code, PAGE_BYTES, executable, 0, 0, 0];
        let done = thread.inject_at(gate, libc::SYS_mprotect, args, signals)?;
        checked("mprotect", done)?;
        Ok(Self {
            code,
            scratch: code + PAGE_BYTES,
            scratch_bytes,
        })
    }

    /// Unmaps the stub, through a `syscall` instruction elsewhere.
    ///
    /// # Errors
    /// `Call`, and [`TraceeError`].
    pub fn remove(
        &self,
        thread: &mut Stopped,
        gate: u64,
        signals: &mut Vec<SignalSeen>,
    ) -> Result<(), TraceeError> {
        let args = [self.code, PAGE_BYTES + self.scratch_bytes, 0, 0, 0, 0];
        let done = thread.inject_at(gate, libc::SYS_munmap, args, signals)?;
        checked("munmap", done).map(drop)
    }

    /// Is this address in the stub or its scratch memory?
    #[must_use]
    pub fn contains(&self, address: u64) -> bool {
        (self.code..self.scratch + self.scratch_bytes).contains(&address)
    }

    /// Whether a thread has run into the trap behind the stub's call.
    #[must_use]
    pub fn is_behind_trap(&self, regs: &Regs) -> bool {
        regs.rip == self.code + SYSCALL_BYTES + 1
    }

    /// Whether a signal of a process that runs nothing but a stub is the stub's own trap. Another
    /// stop may come between that trap and its signal, in which the call is seen to be done; see
    /// [`Stopped::stub_trap_is_pending`].
    #[must_use]
    pub fn is_own_trap(info: &RawSiginfo) -> bool {
        info.signal() == libc::SIGTRAP && info.code() == SI_KERNEL
    }

    /// What became of an asynchronous call, by the thread's registers at any stop.
    #[must_use]
    pub fn call_state(&self, regs: &Regs) -> CallState {
        let behind = self.code + SYSCALL_BYTES;
        if regs.rip == self.code {
            CallState::NotStarted
        } else if regs.rip == behind && regs.syscall_number().is_some() && is_restart_code(regs.rax)
        {
            CallState::Interrupted
        } else if regs.rip == behind || regs.rip == behind + 1 {
            CallState::Done(regs.rax as i64)
        } else {
            CallState::Elsewhere
        }
    }
}

/// A raw result as `Ok(value)` or the errno in it.
///
/// # Errors
/// `Call` with the errno.
pub fn checked(call: &'static str, raw: i64) -> Result<u64, TraceeError> {
    if (-4095..0).contains(&raw) {
        let error = std::io::Error::from_raw_os_error(-raw as i32);
        return Err(TraceeError::Call { call, error });
    }
    Ok(raw as u64)
}

/// A `syscall` instruction in the tracee's vdso.
///
/// # Errors
/// `Unexpected` when there is none.
pub fn find_syscall_instruction(thread: &Stopped) -> Result<u64, TraceeError> {
    let tid = thread.tid();
    let maps = Maps::read(tid).map_err(|error| procfs::failed(tid, error))?;
    let Some(vdso) = maps.named("[vdso]") else {
        return Err(TraceeError::Unexpected {
            tid,
            what: "process without vdso".into(),
        });
    };
    let mut image = vec![0; (vdso.end - vdso.start).min(1 << 20) as usize];
    thread.memory().read(vdso.start, &mut image)?;
    match image.windows(2).position(|pair| pair == [0x0f, 0x05]) {
        Some(offset) => Ok(vdso.start + offset as u64),
        None => Err(TraceeError::Unexpected {
            tid,
            what: "vdso without system call".into(),
        }),
    }
}

impl Stopped {
    /// Executes one system call that does not block for long, and answers its raw result.
    ///
    /// The registers are not restored: save them before the first call, set them after the last.
    /// Signals that want delivery meanwhile are suppressed and appended to `signals`.
    ///
    /// # Errors
    /// [`TraceeError::Timeout`] after [`CALL_DEADLINE`], [`TraceeError::Died`].
    pub fn inject(
        &mut self,
        stub: &Stub,
        number: i64,
        args: [u64; 6],
        signals: &mut Vec<SignalSeen>,
    ) -> Result<i64, TraceeError> {
        self.inject_at(stub.code, number, args, signals)
    }

    /// The same through any `syscall` instruction of the tracee. Needs TRACESYSGOOD.
    ///
    /// # Errors
    /// As [`Self::inject`].
    pub fn inject_at(
        &mut self,
        gate: u64,
        number: i64,
        args: [u64; 6],
        signals: &mut Vec<SignalSeen>,
    ) -> Result<i64, TraceeError> {
        self.set_regs(&self.regs()?.for_call(gate, number, args))?;
        let deadline = Instant::now() + CALL_DEADLINE;
        let mut entered = false;
        loop {
            match self.step_to_syscall(deadline, signals)? {
                Stop::Syscall if !entered => entered = true,
                Stop::Syscall => {
                    let regs = self.regs()?;
                    if regs.rip != gate + SYSCALL_BYTES {
                        let what = format!("stop at {:#x} in an injected call", regs.rip);
                        return Err(TraceeError::Unexpected {
                            tid: self.tid(),
                            what,
                        });
                    }
                    if !is_restart_code(regs.rax) {
                        return Ok(regs.rax as i64);
                    }
                    // Interrupted by a signal that will be taken now; the kernel then starts anew.
                    entered = false;
                }
                Stop::Exiting => return Err(TraceeError::Died { tid: self.tid() }),
                _ => {}
            }
        }
    }

    /// Like [`Self::inject`], with errors of the call itself as `Err` too.
    ///
    /// # Errors
    /// `Call`, and as [`Self::inject`].
    pub fn inject_checked(
        &mut self,
        stub: &Stub,
        call: (&'static str, i64),
        args: [u64; 6],
        signals: &mut Vec<SignalSeen>,
    ) -> Result<u64, TraceeError> {
        let raw = self.inject(stub, call.1, args, signals)?;
        checked(call.0, raw)
    }

    fn step_to_syscall(
        &mut self,
        deadline: Instant,
        signals: &mut Vec<SignalSeen>,
    ) -> Result<Stop, TraceeError> {
        let tid = self.tid();
        self.ask("PTRACE_SYSCALL", |tid| {
            crate::sys::ptrace::cont_to_syscall(tid, 0)
        })?;
        let event = match event::wait_one(tid, deadline) {
            Err(TraceeError::Timeout { .. }) => return self.break_off(),
            other => other?,
        };
        let Event::Stopped(stop) = event else {
            return Err(TraceeError::Died { tid });
        };
        self.note_stop(stop);
        if let Stop::SignalDelivery(_) = stop {
            signals.push(SignalSeen::at_delivery(tid, self.siginfo()?));
        }
        Ok(stop)
    }

    /// Gets a thread back that does not finish an injected call, and reports the time-out.
    pub(super) fn break_off(&mut self) -> Result<Stop, TraceeError> {
        let tid = self.tid();
        self.ask("PTRACE_INTERRUPT", crate::sys::ptrace::interrupt)?;
        let event = event::wait_one(tid, Instant::now() + BREAK_LIMIT)?;
        if let Event::Stopped(stop) = event {
            self.note_stop(stop);
        }
        Err(TraceeError::Timeout { tid })
    }

    /// Whether the trap of a stub has happened but its signal has not been reported yet: an interrupt
    /// or a group-stop that arrives between the two is reported first (get_signal() of
    /// kernel/signal.c). A thread that runs nothing but a stub must not be given anything else to do
    /// before the signal has been taken: the program would die of it as soon as it runs by itself.
    ///
    /// # Errors
    /// [`TraceeError::Died`].
    pub fn stub_trap_is_pending(&self) -> Result<bool, TraceeError> {
        let pending = self.pending_signals(false)?;
        Ok(pending.iter().any(Stub::is_own_trap))
    }

    /// Starts a system call that may block; its end comes as a stop, to be read by
    /// [`Self::finish_call`].
    ///
    /// # Errors
    /// [`TraceeError::Died`].
    pub fn start_call(
        self,
        stub: &Stub,
        number: i64,
        args: [u64; 6],
    ) -> Result<Running, TraceeError> {
        self.set_regs(&self.regs()?.for_call(stub.code, number, args))?;
        self.cont(0)
    }

    /// Tells why a thread with a call under way has stopped.
    ///
    /// After a [`CallStop::Signal`] or [`CallStop::Stopped`] the call goes on (anew, if it was
    /// interrupted) when the thread is continued, or is given up by starting another one.
    ///
    /// # Errors
    /// [`TraceeError::Died`].
    pub fn finish_call(&self, stub: &Stub) -> Result<CallStop, TraceeError> {
        let regs = self.regs()?;
        let call = stub.call_state(&regs);
        let Stop::SignalDelivery(_) = self.stop() else {
            return Ok(CallStop::Stopped {
                stop: self.stop(),
                call,
            });
        };
        let info = self.siginfo()?;
        if Stub::is_own_trap(&info) && stub.is_behind_trap(&regs) {
            return Ok(CallStop::Done(regs.rax as i64));
        }
        Ok(CallStop::Signal {
            seen: SignalSeen::at_delivery(self.tid(), info),
            call,
        })
    }
}
