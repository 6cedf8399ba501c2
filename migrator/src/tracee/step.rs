//! A stopped thread taken on by single instructions.

use std::ops::Range;
use std::time::Instant;

use super::event::{self, Event, Stop};
use super::freeze::{ALL_SIGNALS, into_signal_stop};
use super::inject::SignalSeen;
use super::{CALL_DEADLINE, RawSiginfo, Stopped, TraceeError};

/// Far more than a function of the vdso has; a loop there ends when the clock ticks.
const STEPS_MAX: u32 = 100_000;
const SIGTRAP_BIT: u64 = 1 << (libc::SIGTRAP - 1);

impl Stopped {
    /// Takes a thread that is stopped amid `code` to where that has returned, and leaves any other
    /// as it is. Signals wait meanwhile; those that cannot are appended to `signals`.
    ///
    /// # Errors
    /// [`TraceeError::Died`]; `Timeout` when it does not get there.
    pub fn step_out_of(
        mut self,
        code: &Range<u64>,
        signals: &mut Vec<SignalSeen>,
    ) -> Result<Self, TraceeError> {
        let inside = |stopped: &Self| Ok(code.contains(&stopped.regs()?.rip));
        if matches!(self.stop(), Stop::GroupStop(_)) || !inside(&self)? {
            return Ok(self);
        }
        let mask = self.sigmask()?;
        self.set_sigmask(ALL_SIGNALS & !SIGTRAP_BIT)?;
        let deadline = Instant::now() + CALL_DEADLINE;
        let mut steps = 0;
        while inside(&self)? && steps < STEPS_MAX {
            self.ask("PTRACE_SINGLESTEP", crate::sys::ptrace::single_step)?;
            self.next_stop(deadline, signals)?;
            steps += 1;
        }
        if inside(&self)? {
            self.set_sigmask(mask)?;
            return Err(TraceeError::Timeout { tid: self.tid() });
        }
        // An interrupt is reported before the trap of a step (get_signal() of kernel/signal.c), which
        // must not be left to the program.
        while self.pending_signals(false)?.iter().any(is_step) {
            self.ask("PTRACE_CONT", |tid| crate::sys::ptrace::cont(tid, 0))?;
            self.next_stop(deadline, signals)?;
        }
        let mut stops = false;
        let stopped = into_signal_stop(self, &mut stops)?;
        stopped.set_sigmask(mask)?;
        if stops {
            signals.push(SignalSeen::at_delivery(stopped.tid(), RawSiginfo::stop()));
        }
        Ok(stopped)
    }

    fn next_stop(
        &mut self,
        deadline: Instant,
        signals: &mut Vec<SignalSeen>,
    ) -> Result<(), TraceeError> {
        let tid = self.tid();
        let Event::Stopped(stop) = event::wait_one(tid, deadline)? else {
            return Err(TraceeError::Died { tid });
        };
        self.note_stop(stop);
        if let Stop::SignalDelivery(_) = stop {
            let info = self.siginfo()?;
            if !is_step(&info) {
                signals.push(SignalSeen::at_delivery(tid, info));
            }
        }
        Ok(())
    }
}

/// The trap of a single step, of an instruction or of a whole system call (asm/siginfo.h).
fn is_step(info: &RawSiginfo) -> bool {
    const TRAP_BRKPT: i32 = 1;
    const TRAP_TRACE: i32 = 2;
    info.signal() == libc::SIGTRAP && [TRAP_BRKPT, TRAP_TRACE].contains(&info.code())
}
