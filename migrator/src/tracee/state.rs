//! The two states of a tracee.

use std::time::Instant;

use crate::sys::ptrace::{self, RawSiginfo, RseqConfiguration};
use crate::sys::regs::Regs;

use super::event::{self, Event, Stop};
use super::{Memory, TraceeError, procfs};

/// A seized thread that runs (or has stopped without us having heard of it yet).
#[derive(Debug)]
#[must_use]
pub struct Running {
    tid: i32,
}

/// A seized thread that is stopped.
#[derive(Debug)]
#[must_use]
pub struct Stopped {
    tid: i32,
    stop: Stop,
}

/// Whether a thread has ended, or is gone altogether.
fn has_ended(tid: i32) -> bool {
    procfs::Stat::read(tid).map_or(true, |stat| matches!(stat.text(3), "Z" | "X"))
}

impl Running {
    /// Attaches to a thread with [`super::options`], without stopping it.
    ///
    /// # Errors
    /// [`TraceeError::Died`]; `Request` with EPERM when somebody else traces it.
    pub fn seize(tid: i32, options: u32) -> Result<Self, TraceeError> {
        ptrace::seize(tid, options).map_err(|error| {
            // Of one that has ended and was not waited for yet the kernel says EPERM.
            let error = if has_ended(tid) {
                std::io::Error::from_raw_os_error(libc::ESRCH)
            } else {
                error
            };
            TraceeError::request("PTRACE_SEIZE", tid, error)
        })?;
        Ok(Self { tid })
    }

    /// A thread that is a tracee already (an automatically attached child, or one whose
    /// state is kept elsewhere).
    pub fn assume(tid: i32) -> Self {
        Self { tid }
    }

    /// Its id as the tracer sees it.
    #[must_use]
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// Asks it to stop; the stop comes as [`Stop::Interrupted`] (or another stop comes first).
    ///
    /// # Errors
    /// [`TraceeError::Died`].
    pub fn interrupt(&self) -> Result<(), TraceeError> {
        ptrace::interrupt(self.tid)
            .map_err(|error| TraceeError::request("PTRACE_INTERRUPT", self.tid, error))
    }

    /// The event of this thread that the caller got from waitpid itself.
    ///
    /// # Errors
    /// [`TraceeError::Died`] for an end, `Unexpected` for no stop.
    pub fn on_event(self, event: Event) -> Result<Stopped, TraceeError> {
        match event {
            Event::Stopped(stop) => Ok(Stopped {
                tid: self.tid,
                stop,
            }),
            Event::Exited(_) | Event::Killed { .. } => Err(TraceeError::Died { tid: self.tid }),
            Event::Continued => Err(TraceeError::Unexpected {
                tid: self.tid,
                what: "continue".into(),
            }),
        }
    }

    /// Waits for its next stop.
    ///
    /// # Errors
    /// [`TraceeError::Died`], [`TraceeError::Timeout`].
    pub fn wait(self, deadline: Instant) -> Result<Stopped, TraceeError> {
        let event = event::wait_one(self.tid, deadline)?;
        self.on_event(event)
    }
}

impl Stopped {
    /// Its id as the tracer sees it.
    #[must_use]
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// Why it is stopped.
    #[must_use]
    pub fn stop(&self) -> Stop {
        self.stop
    }

    /// Its memory, through this thread.
    #[must_use]
    pub fn memory(&self) -> Memory {
        Memory::of(self.tid)
    }

    /// Lets it run, delivering `signal` unless that is 0.
    ///
    /// # Errors
    /// [`TraceeError::Died`].
    pub fn cont(self, signal: i32) -> Result<Running, TraceeError> {
        self.ask("PTRACE_CONT", |tid| ptrace::cont(tid, signal))?;
        Ok(Running { tid: self.tid })
    }

    /// Lets it run until the next system call entry or exit.
    ///
    /// # Errors
    /// [`TraceeError::Died`].
    pub fn cont_to_syscall(self, signal: i32) -> Result<Running, TraceeError> {
        self.ask("PTRACE_SYSCALL", |tid| ptrace::cont_to_syscall(tid, signal))?;
        Ok(Running { tid: self.tid })
    }

    /// Leaves it in its group-stop, to be woken by SIGCONT (which is reported as an event).
    ///
    /// # Errors
    /// [`TraceeError::Died`]; `Request` with EIO when it is in no group-stop.
    pub fn listen(self) -> Result<Running, TraceeError> {
        self.ask("PTRACE_LISTEN", ptrace::listen)?;
        Ok(Running { tid: self.tid })
    }

    /// Lets it go, delivering `signal` unless that is 0. A group-stop takes effect again.
    ///
    /// # Errors
    /// [`TraceeError::Died`].
    pub fn detach(self, signal: i32) -> Result<(), TraceeError> {
        self.ask("PTRACE_DETACH", |tid| ptrace::detach(tid, signal))
    }

    /// Replaces the ptrace options.
    ///
    /// # Errors
    /// [`TraceeError::Died`]; `Request` with EPERM for SUSPEND_SECCOMP without privilege.
    pub fn set_options(&self, options: u32) -> Result<(), TraceeError> {
        self.ask("PTRACE_SETOPTIONS", |tid| ptrace::set_options(tid, options))
    }

    /// The number that came with a ptrace event.
    ///
    /// # Errors
    /// [`TraceeError::Died`].
    pub fn event_message(&self) -> Result<u64, TraceeError> {
        self.ask("PTRACE_GETEVENTMSG", ptrace::event_message)
    }

    /// General purpose registers.
    ///
    /// # Errors
    /// [`TraceeError::Died`].
    pub fn regs(&self) -> Result<Regs, TraceeError> {
        self.ask("PTRACE_GETREGS", ptrace::get_regs)
    }

    /// Sets the general purpose registers.
    ///
    /// # Errors
    /// [`TraceeError::Died`]; `Request` with EIO for values that no 64-bit thread can have.
    pub fn set_regs(&self, regs: &Regs) -> Result<(), TraceeError> {
        self.ask("PTRACE_SETREGS", |tid| ptrace::set_regs(tid, regs))
    }

    /// The XSAVE area (x87, SSE, AVX, …).
    ///
    /// # Errors
    /// [`TraceeError::Died`].
    pub fn xstate(&self) -> Result<Vec<u8>, TraceeError> {
        self.ask("PTRACE_GETREGSET", ptrace::get_xstate)
    }

    /// Sets the XSAVE area, which must be as long as this machine's.
    ///
    /// # Errors
    /// [`TraceeError::Died`]; `Request` with EFAULT or EINVAL for a foreign layout.
    pub fn set_xstate(&self, area: &[u8]) -> Result<(), TraceeError> {
        self.ask("PTRACE_SETREGSET", |tid| ptrace::set_xstate(tid, area))
    }

    /// Blocked signals, bit n-1 for signal n.
    ///
    /// # Errors
    /// [`TraceeError::Died`].
    pub fn sigmask(&self) -> Result<u64, TraceeError> {
        self.ask("PTRACE_GETSIGMASK", ptrace::get_sigmask)
    }

    /// Sets the blocked signals.
    ///
    /// # Errors
    /// [`TraceeError::Died`].
    pub fn set_sigmask(&self, mask: u64) -> Result<(), TraceeError> {
        self.ask("PTRACE_SETSIGMASK", |tid| ptrace::set_sigmask(tid, mask))
    }

    /// The signal about to be delivered.
    ///
    /// # Errors
    /// [`TraceeError::Died`]; `Request` with EINVAL in a group-stop.
    pub fn siginfo(&self) -> Result<RawSiginfo, TraceeError> {
        self.ask("PTRACE_GETSIGINFO", ptrace::get_siginfo)
    }

    /// Changes the signal about to be delivered.
    ///
    /// # Errors
    /// As [`Self::siginfo`].
    pub fn set_siginfo(&self, info: &RawSiginfo) -> Result<(), TraceeError> {
        self.ask("PTRACE_SETSIGINFO", |tid| ptrace::set_siginfo(tid, info))
    }

    /// All pending signals: the process' shared ones, or this thread's own.
    ///
    /// # Errors
    /// [`TraceeError::Died`].
    pub fn pending_signals(&self, shared: bool) -> Result<Vec<RawSiginfo>, TraceeError> {
        /// RLIMIT_SIGPENDING is usually far below this.
        const LIMIT: usize = 100_000;
        let mut all: Vec<RawSiginfo> = Vec::new();
        while all.len() < LIMIT {
            let offset = all.len() as u64;
            let batch = self.ask("PTRACE_PEEKSIGINFO", |tid| {
                ptrace::peek_siginfo(tid, shared, offset)
            })?;
            if batch.is_empty() {
                break;
            }
            all.extend(batch);
        }
        Ok(all)
    }

    /// The registered restartable sequence area; pointer 0 for none.
    ///
    /// # Errors
    /// [`TraceeError::Died`].
    pub fn rseq(&self) -> Result<RseqConfiguration, TraceeError> {
        self.ask("PTRACE_GET_RSEQ_CONFIGURATION", ptrace::rseq_configuration)
    }

    /// Writes eight bytes whatever the page's protection is.
    ///
    /// # Errors
    /// [`TraceeError::Died`]; `Request` with EIO for an unmapped address.
    pub fn poke(&self, address: u64, word: u64) -> Result<(), TraceeError> {
        self.ask("PTRACE_POKEDATA", |tid| ptrace::poke(tid, address, word))
    }

    /// Takes over the stop that followed an injected call.
    pub(super) fn note_stop(&mut self, stop: Stop) {
        self.stop = stop;
    }

    pub(super) fn ask<T>(
        &self,
        request: &'static str,
        call: impl FnOnce(i32) -> std::io::Result<T>,
    ) -> Result<T, TraceeError> {
        call(self.tid).map_err(|error| TraceeError::request(request, self.tid, error))
    }
}
