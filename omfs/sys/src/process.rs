//! Other processes' descriptors.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The open file description behind a descriptor of another process (pidfd_getfd(2)).
///
/// # Errors
/// `ESRCH`, `EBADF`, `EPERM` without the right to trace the process.
pub fn same_description(pid: i32, number: u32) -> io::Result<OwnedFd> {
    // SAFETY: integers only. No crate in use wraps these two.
    let process = new_fd(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: integers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
    new_fd(fd)
}

fn new_fd(result: i64) -> io::Result<OwnedFd> {
    match i32::try_from(result) {
        // SAFETY: the kernel just gave us this descriptor, nobody else owns it.
        Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
