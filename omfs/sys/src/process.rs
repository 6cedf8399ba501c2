//! Other processes' descriptors.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::pidfd;

/// The open file description behind a descriptor of another process (pidfd_getfd(2)).
///
/// # Errors
/// `ESRCH`, `EBADF`, `EPERM` without the right to trace the process.
pub fn same_description(pid: i32, number: u32) -> io::Result<OwnedFd> {
    let number = i32::try_from(number).map_err(io::Error::other)?;
    pidfd::get_fd(pidfd::open(pid)?.as_fd(), number)
}
