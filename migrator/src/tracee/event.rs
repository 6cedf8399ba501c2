//! Wait statuses decoded, and waiting with a deadline.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use crate::sys::wait;

use super::TraceeError;

/// `PTRACE_EVENT_STOP`: group-stops and answers to PTRACE_INTERRUPT of seized tracees.
const EVENT_STOP: i32 = libc::PTRACE_EVENT_STOP;

/// Why a tracee is stopped (ptrace(2), "Stopped states").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A signal is about to be delivered; it is suppressed unless passed on when resuming.
    SignalDelivery(i32),
    /// The whole process is stopped by this signal; answer with `listen`.
    GroupStop(i32),
    /// The answer to PTRACE_INTERRUPT, or the end of a group-stop.
    Interrupted,
    /// System call entry or exit (after `cont_to_syscall`, with TRACESYSGOOD).
    Syscall,
    /// A system call that a seccomp filter hands to the tracer (with TRACESECCOMP).
    Seccomp,
    /// About to exit (TRACEEXIT); nothing can be undone any more.
    Exiting,
    /// Another PTRACE_EVENT_* stop, by its number.
    Other(i32),
}

/// What waitpid reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is stopped.
    Stopped(Stop),
    /// It called exit with this status.
    Exited(i32),
    /// It was killed by this signal; was a core dumped?
    Killed {
        /// Signal number.
        signal: i32,
        /// WCOREDUMP.
        core: bool,
    },
    /// It was continued by SIGCONT (children that are no tracees).
    Continued,
}

impl Event {
    /// Decodes a wait status.
    #[must_use]
    pub fn decode(status: i32) -> Self {
        if libc::WIFEXITED(status) {
            Self::Exited(libc::WEXITSTATUS(status))
        } else if libc::WIFSIGNALED(status) {
            Self::Killed {
                signal: libc::WTERMSIG(status),
                core: libc::WCOREDUMP(status),
            }
        } else if libc::WIFSTOPPED(status) {
            Self::Stopped(Stop::decode(libc::WSTOPSIG(status), status >> 16))
        } else {
            Self::Continued
        }
    }

    /// Has it ended?
    #[must_use]
    pub fn is_end(self) -> bool {
        matches!(self, Self::Exited(_) | Self::Killed { .. })
    }
}

impl Stop {
    fn decode(signal: i32, event: i32) -> Self {
        match event {
            0 if signal == libc::SIGTRAP | 0x80 => Self::Syscall,
            0 => Self::SignalDelivery(signal),
            EVENT_STOP if signal == libc::SIGTRAP => Self::Interrupted,
            EVENT_STOP => Self::GroupStop(signal),
            libc::PTRACE_EVENT_EXIT => Self::Exiting,
            libc::PTRACE_EVENT_SECCOMP => Self::Seccomp,
            other => Self::Other(other),
        }
    }
}

/// Takes one state change of any tracee or child without blocking.
///
/// # Errors
/// ECHILD when there is none left.
pub fn poll_any() -> io::Result<Option<(i32, Event)>> {
    Ok(wait::try_wait(-1)?.map(|(tid, status)| (tid, Event::decode(status))))
}

/// Takes one state change of thread `tid` without blocking.
///
/// # Errors
/// [`TraceeError::Died`] when it is no (longer a) tracee of ours.
pub fn poll_one(tid: i32) -> Result<Option<Event>, TraceeError> {
    match wait::try_wait(tid) {
        Ok(found) => Ok(found.map(|(_, status)| Event::decode(status))),
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => Err(TraceeError::Died { tid }),
        Err(error) => Err(TraceeError::request("waitpid", tid, error)),
    }
}

/// Waits for a state change of `tid`.
///
/// waitpid has no deadline. Keepers block SIGCHLD, which announces the change; elsewhere, and in
/// case another thread takes that signal, we look often at first, then ever more rarely.
///
/// Time in which this process could not run itself does not count: who stands still (a frozen cgroup,
/// a suspended machine) usually does so together with its tracees.
///
/// # Errors
/// [`TraceeError::Timeout`], [`TraceeError::Died`].
pub fn wait_one(tid: i32, deadline: Instant) -> Result<Event, TraceeError> {
    let mut taken = Taken(false);
    let mut pause_us = 0;
    let mut left = OwnTime::until(deadline);
    for round in 0_u32.. {
        if let Some(event) = poll_one(tid)? {
            return Ok(event);
        }
        if left.is_over() {
            break;
        }
        if wait::take_child_signal(SIGNAL_PAUSE) {
            taken.0 = true;
            continue;
        }
        if round < YIELDS {
            thread::yield_now();
            continue;
        }
        pause_us = (pause_us + 10).min(500);
        thread::sleep(Duration::from_micros(pause_us));
    }
    Err(TraceeError::Timeout { tid })
}

/// A time that is used up only while this process runs.
struct OwnTime {
    left: Duration,
    looked: Instant,
}

impl OwnTime {
    fn until(deadline: Instant) -> Self {
        let looked = Instant::now();
        let left = deadline.saturating_duration_since(looked);
        Self { left, looked }
    }

    fn is_over(&mut self) -> bool {
        let now = Instant::now();
        let passed = now.duration_since(self.looked).min(STEP_MAX);
        self.looked = now;
        self.left = self.left.saturating_sub(passed);
        self.left.is_zero()
    }
}

/// No two looks at a tracee are further apart than this on a machine that is only busy.
const STEP_MAX: Duration = Duration::from_millis(100);
/// How long the signal is waited for before the tracee is looked at all the same.
const SIGNAL_PAUSE: Duration = Duration::from_millis(5);
/// How often others are let run before there are pauses: nearly all that is waited for here comes
/// within microseconds.
const YIELDS: u32 = 64;

/// SIGCHLD is pending again when this is dropped, if it was taken: it may have told of others.
struct Taken(bool);

impl Drop for Taken {
    fn drop(&mut self) {
        if self.0 {
            // The thread is there, so nothing can go wrong.
            let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGCHLD);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_decoded() {
        assert_eq!(Event::decode(0x0300), Event::Exited(3));
        assert_eq!(
            Event::decode(9),
            Event::Killed {
                signal: 9,
                core: false
            }
        );
        assert_eq!(
            Event::decode(0x8b),
            Event::Killed {
                signal: 11,
                core: true
            }
        );
        let stop = |signal: i32, event: i32| Event::decode((event << 16) | (signal << 8) | 0x7f);
        assert_eq!(stop(10, 0), Event::Stopped(Stop::SignalDelivery(10)));
        assert_eq!(stop(5, 0), Event::Stopped(Stop::SignalDelivery(5)));
        assert_eq!(stop(0x85, 0), Event::Stopped(Stop::Syscall));
        assert_eq!(stop(5, 128), Event::Stopped(Stop::Interrupted));
        assert_eq!(stop(20, 128), Event::Stopped(Stop::GroupStop(20)));
        assert_eq!(stop(5, 6), Event::Stopped(Stop::Exiting));
        assert_eq!(Event::decode(0xffff), Event::Continued);
    }

    #[test]
    fn time_in_which_we_could_not_run_does_not_count() {
        let mut left = OwnTime::until(Instant::now() + STEP_MAX * 3);
        left.looked -= Duration::from_secs(3600);
        assert!(!left.is_over());
        left.looked -= Duration::from_secs(3600);
        assert!(!left.is_over());
        left.looked -= STEP_MAX;
        assert!(left.is_over());
    }

    #[test]
    fn a_stranger_is_no_tracee() {
        assert!(poll_one(1).is_err_and(|error| error.is_death()));
    }
}
