//! waitpid(2) for tracees.

use std::io;

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
