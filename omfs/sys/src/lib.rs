//! System calls that no crate wraps, and what the kernel says of processes.

pub mod fdpass;
pub mod file;
pub mod fuse;
pub mod handle;
pub mod identity;
pub mod lease;
pub mod lock;
pub mod pagemap_scan;
pub mod pidfd;
pub mod probe;
pub mod process;
pub mod procfs;
pub mod sched;
pub mod unix_socket;
pub mod xattr;

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// Turns a raw answer of libc's `syscall()` into a result.
fn answer(value: libc::c_long) -> io::Result<libc::c_long> {
    if value == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(value)
    }
}

/// Turns a raw answer of a system call that makes a descriptor into that descriptor.
fn new_fd(value: libc::c_long) -> io::Result<OwnedFd> {
    let number = i32::try_from(answer(value)?).map_err(io::Error::other)?;
    // SAFETY: the caller passes what the kernel has just answered, so nobody else knows the number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
