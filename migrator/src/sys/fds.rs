//! Descriptors of this process.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::answer;

/// Closes every descriptor of this process but `kept`, which becomes number 0 (close_range(2)).
///
/// Only for a process that will use none of the others again, such as one about to become a guest:
/// Rust's owned descriptors would otherwise close what they no longer own.
///
/// # Errors
/// Kernels older than 5.9.
pub fn keep_only(kept: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: integers only; the caller promises that no owned descriptor is used again.
    answer(unsafe { libc::syscall(libc::SYS_dup2, kept.as_raw_fd(), 0) })?;
    // SAFETY: as above.
    answer(unsafe { libc::syscall(libc::SYS_close_range, 1, u32::MAX, 0) }).map(drop)
}
