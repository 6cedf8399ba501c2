//! A stopped thread taken on by single instructions.

use std::ops::Range;
use std::time::Instant;

use super::event::{self, Event, Stop};
use super::freeze::{ALL_SIGNALS, into_signal_stop};
use super::{CALL_DEADLINE, Stopped, TraceeError};

/// Far more than a function of the vdso has; a loop there ends when the clock ticks.
const STEPS_MAX: u32 = 100_000;
const SIGTRAP_BIT: u64 = 1 << (libc::SIGTRAP - 1);

impl Stopped {
    /// Takes a thread that is stopped amid `code` to where that has returned, and leaves any other
    /// as it is. Signals wait meanwhile.
    ///
    /// # Errors
    /// [`TraceeError::Died`]; `Timeout` when it does not get there.
    pub fn step_out_of(mut self, code: &Range<u64>) -> Result<Self, TraceeError> {
        let inside = |stopped: &Self| Ok(code.contains(&stopped.regs()?.rip));
        if matches!(self.stop(), Stop::GroupStop(_)) || !inside(&self)? {
            return Ok(self);
        }
        let mask = self.sigmask()?;
        self.set_sigmask(ALL_SIGNALS & !SIGTRAP_BIT)?;
        let deadline = Instant::now() + CALL_DEADLINE;
        let (mut steps, mut stops) = (0, false);
        while inside(&self)? && steps < STEPS_MAX {
            // The one signal that cannot be made to wait.
            stops |= self.stop() == Stop::SignalDelivery(libc::SIGSTOP);
            self.ask("PTRACE_SINGLESTEP", crate::sys::ptrace::single_step)?;
            match event::wait_one(self.tid(), deadline)? {
                Event::Stopped(stop) => self.note_stop(stop),
                _ => return Err(TraceeError::Died { tid: self.tid() }),
            }
            steps += 1;
        }
        self.set_sigmask(mask)?;
        if inside(&self)? {
            return Err(TraceeError::Timeout { tid: self.tid() });
        }
        stops |= self.stop() == Stop::SignalDelivery(libc::SIGSTOP);
        let stopped = into_signal_stop(self, &mut stops)?;
        if stops {
            stopped.ask("kill", |tid| {
                let tid = nix::unistd::Pid::from_raw(tid);
                Ok(nix::sys::signal::kill(
                    tid,
                    nix::sys::signal::Signal::SIGSTOP,
                )?)
            })?;
        }
        Ok(stopped)
    }
}
