//! Process descriptors: pidfd_open(2), pidfd_getfd(2), pidfd_send_signal(2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::answer;

/// A descriptor of a process, readable when it ends.
///
/// # Errors
/// ESRCH, EINVAL (a thread that leads no group).
pub fn open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; no crate we use wraps it.
    let fd = answer(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: a new descriptor that only we know.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A duplicate of another process' descriptor: the same open file description.
///
/// # Errors
/// EBADF, EPERM, ESRCH.
pub fn get_fd(pidfd: BorrowedFd<'_>, number: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; no crate we use wraps it.
    let fd = answer(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) })?;
    // SAFETY: a new descriptor that only we know.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sends a signal to exactly this process.
///
/// # Errors
/// ESRCH, EPERM, EINVAL.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let number = libc::SYS_pidfd_send_signal;
    // SAFETY: a null siginfo is allowed and means "as by kill(2)"; no crate we use wraps it.
    let done =
        unsafe { libc::syscall(number, pidfd.as_raw_fd(), signal, std::ptr::null::<u8>(), 0) };
    answer(done).map(drop)
}
