//! A ptraced thread as a typestate, and system calls injected into it.
//!
//! * [`Running`] and [`Stopped`] — the two states of a tracee; every transition consumes one and
//!   gives the other, and every operation can answer [`TraceeError::Died`], which is no accident
//!   but an ordinary answer: threads end whenever they like.
//! * [`event`] — what waitpid reports, decoded.
//! * [`inject`] — system calls executed by the tracee on our behalf; `batch` — many in one go.
//! * [`memory`] — its memory; `origin` — whether a signal is for one thread.
//! * [`freeze`] — all threads of a process at once.
//! * [`procfs`] — the text files of /proc/PID.
//!
//! All requests for a tracee must come from the thread that seized it (ptrace(2)).

mod batch;
pub mod event;
pub mod freeze;
pub mod inject;
pub mod memory;
mod origin;
pub mod procfs;
mod queues;
mod state;
mod step;
#[cfg(test)]
mod tests;

use std::io;
use std::time::Duration;

pub use batch::Call;
pub use event::{Event, Stop};
pub use freeze::Frozen;
pub use inject::{CallState, CallStop, SignalSeen, Stub};
pub use memory::Memory;
pub use origin::{Origin, known_origin};
pub use state::{Running, Stopped};

pub use crate::sys::ptrace::{RawSiginfo, RseqConfiguration, options};
pub use crate::sys::regs::Regs;

/// How long a tracee may take to stop or to finish an injected call that cannot block. Only one that
/// may not run (its cgroup is frozen) takes more than moments, and a thread that is given up amid an
/// injected call cannot run its program any more.
pub const CALL_DEADLINE: Duration = Duration::from_secs(600);

/// Why an operation on a tracee did not happen.
#[derive(Debug, thiserror::Error)]
pub enum TraceeError {
    /// The thread or its process has ended (or was killed) meanwhile.
    #[error("thread {tid} has ended")]
    Died {
        /// The thread.
        tid: i32,
    },
    /// It did not stop in time: it may hang in an uninterruptible system call.
    #[error("thread {tid} did not stop in time")]
    Timeout {
        /// The thread.
        tid: i32,
    },
    /// It stopped in a way that makes no sense here.
    #[error("thread {tid}: unexpected {what}")]
    Unexpected {
        /// The thread.
        tid: i32,
        /// What was seen.
        what: String,
    },
    /// An injected system call failed.
    #[error("injected {call} failed: {error}")]
    Call {
        /// Its name.
        call: &'static str,
        /// Its errno.
        error: io::Error,
    },
    /// A request failed for another reason.
    #[error("{request} of thread {tid}: {error}")]
    Request {
        /// ptrace request or file.
        request: &'static str,
        /// The thread.
        tid: i32,
        /// The reason.
        error: io::Error,
    },
}

impl TraceeError {
    /// Wraps the answer of a request; ESRCH means that the tracee is gone.
    pub(crate) fn request(request: &'static str, tid: i32, error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ESRCH) => Self::Died { tid },
            _ => Self::Request {
                request,
                tid,
                error,
            },
        }
    }

    /// Has the tracee ended?
    #[must_use]
    pub fn is_death(&self) -> bool {
        matches!(self, Self::Died { .. })
    }
}
