//! waitpid(2) for tracees.

use std::io;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::time::TimeSpec;

/// Asks for a state change of `tid` (-1: of any child or tracee) without blocking; answers the
/// thread and its raw status.
///
/// # Errors
/// ECHILD when there is nothing to wait for, EINTR never (it does not block).
pub fn try_wait(tid: i32) -> io::Result<Option<(i32, i32)>> {
    wait(tid, libc::WNOHANG)
}

/// The same, blocking; only for callers that know a change must come.
///
/// # Errors
/// ECHILD, EINTR.
pub fn wait_blocking(tid: i32) -> io::Result<Option<(i32, i32)>> {
    wait(tid, 0)
}

/// Waits until SIGCHLD, which announces stops of tracees, too, is pending for the calling thread,
/// and takes it (sigtimedwait(2)). False after `limit`; at once, if the thread does not block it.
#[must_use]
pub fn take_child_signal(limit: Duration) -> bool {
    let mut child = SigSet::empty();
    child.add(Signal::SIGCHLD);
    let blocked = SigSet::thread_get_mask().is_ok_and(|mask| mask.contains(Signal::SIGCHLD));
    let limit = TimeSpec::from_duration(limit);
    // SAFETY: set and time live through the call, and no siginfo is asked for; nix does not wrap it.
    blocked
        && unsafe { libc::sigtimedwait(child.as_ref(), std::ptr::null_mut(), limit.as_ref()) }
            == libc::SIGCHLD
}

fn wait(tid: i32, flags: i32) -> io::Result<Option<(i32, i32)>> {
    let mut status = 0;
    // SAFETY: `status` lives through the call. nix' waitpid panics on wait statuses it does not
    // know and does not offer the raw one.
    let found = unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL | flags) };
    match found {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        tid => Ok(Some((tid, status))),
    }
}
