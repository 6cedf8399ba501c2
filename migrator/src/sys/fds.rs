//! Descriptors of this process.

use std::io;

use super::answer;

/// Closes every descriptor of this process (close_range(2)).
///
/// Only for a process that will use none of them again, such as one about to become a guest:
/// Rust's owned descriptors would otherwise close what they no longer own.
///
/// # Errors
/// Kernels older than 5.9.
pub fn close_all() -> io::Result<()> {
    // SAFETY: integers only; the caller promises that no owned descriptor is used again.
    answer(unsafe { libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0) }).map(drop)
}
