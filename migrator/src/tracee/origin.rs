//! Whether a signal that is about to be delivered was sent to a thread or to its process.
//!
//! Neither the stop nor the siginfo tells: tgkill(2) has a code of its own, but timers, file owners
//! and rt_tgsigqueueinfo(2) may mean a thread, too. A signal that is blocked when it is to be delivered
//! goes back to the queue it came from (ptrace_signal() of kernel/signal.c), where it can be seen.

use std::time::Instant;

use super::event::Stop;
use super::freeze::ALL_SIGNALS;
use super::inject::SignalSeen;
use super::{RawSiginfo, Stopped, TraceeError};

/// To whom a signal was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// To the thread that is about to receive it.
    Thread,
    /// To the process: any of its threads may receive it.
    Process,
}

/// `CLD_EXITED` … `CLD_CONTINUED`: of children, who tell the process.
const CHILD_CODES: std::ops::RangeInclusive<i32> = 1..=6;

/// What a siginfo alone tells for sure.
#[must_use]
pub fn known_origin(info: &RawSiginfo, pid: i32) -> Option<Origin> {
    match (info.signal(), info.code()) {
        // Their effect is on the process, and putting them back would have it twice.
        (libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU | libc::SIGCONT, code)
            if code != libc::SI_TKILL =>
        {
            Some(Origin::Process)
        }
        (_, libc::SI_TKILL) => Some(Origin::Thread),
        (libc::SIGCHLD, code) if CHILD_CODES.contains(&code) => Some(Origin::Process),
        // kill(2); the kernel names the thread's own process when it means the thread (SIGPIPE).
        (_, libc::SI_USER) if info.sender() != pid => Some(Origin::Process),
        _ => None,
    }
}

impl Stopped {
    /// Puts the signal that is about to be delivered back into its queue, and looks which that is. One
    /// of the thread is about to be delivered again; one of the process is left to whichever thread is
    /// the first to take it, which may have happened already. (A queue that others have filled
    /// meanwhile loses it, as it does those of others.)
    ///
    /// The thread's registers and blocked signals (`mask`) are as before; what comes between is
    /// appended to `others`.
    ///
    /// # Errors
    /// [`TraceeError::Died`], `Timeout`.
    pub fn find_origin(
        self,
        mask: u64,
        deadline: Instant,
        others: &mut Vec<SignalSeen>,
    ) -> Result<(Self, Origin), TraceeError> {
        let info = self.siginfo()?;
        self.set_sigmask(ALL_SIGNALS)?;
        self.interrupt()?;
        let stopped = self.cont(info.signal())?.wait(deadline)?;
        let is_its_own = stopped.pending_signals(false)?.contains(&info);
        let (stopped, origin) = if is_its_own {
            let stopped = stopped.take_again(&info, deadline, others)?;
            (stopped, Origin::Thread)
        } else {
            (stopped, Origin::Process)
        };
        stopped.set_sigmask(mask)?;
        Ok((stopped, origin))
    }

    /// Has the thread receive a signal that waits in its queue. It executes nothing before that.
    fn take_again(
        self,
        info: &RawSiginfo,
        deadline: Instant,
        others: &mut Vec<SignalSeen>,
    ) -> Result<Self, TraceeError> {
        let signal = info.signal();
        self.set_sigmask(ALL_SIGNALS & !(1 << (signal - 1)))?;
        let mut stopped = self;
        loop {
            stopped = stopped.cont(0)?.wait(deadline)?;
            match stopped.stop() {
                Stop::SignalDelivery(found) if found == signal => return Ok(stopped),
                Stop::SignalDelivery(_) => {
                    let seen = SignalSeen::at_delivery(stopped.tid(), stopped.siginfo()?);
                    others.push(seen);
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(signal: i32, code: i32, sender: i32) -> RawSiginfo {
        let mut info = RawSiginfo::queued(signal, 0);
        info.0[8..12].copy_from_slice(&code.to_ne_bytes());
        info.0[16..20].copy_from_slice(&sender.to_ne_bytes());
        info
    }

    #[test]
    fn only_what_is_sure_is_told_by_the_code() {
        let known = |signal, code, sender| known_origin(&info(signal, code, sender), 7);
        let (usr1, chld) = (libc::SIGUSR1, libc::SIGCHLD);
        assert_eq!(known(usr1, libc::SI_TKILL, 8), Some(Origin::Thread));
        assert_eq!(known(usr1, libc::SI_USER, 8), Some(Origin::Process));
        assert_eq!(known(libc::SIGPIPE, libc::SI_USER, 7), None);
        assert_eq!(known(chld, libc::CLD_EXITED, 8), Some(Origin::Process));
        assert_eq!(known(chld, libc::SI_QUEUE, 8), None);
        for code in [
            libc::SI_QUEUE,
            libc::SI_TIMER,
            libc::SI_SIGIO,
            libc::SI_KERNEL,
        ] {
            assert_eq!(known(usr1, code, 8), None);
            assert_eq!(known(libc::SIGCONT, code, 8), Some(Origin::Process));
        }
    }
}
