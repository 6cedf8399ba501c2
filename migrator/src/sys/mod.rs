//! System calls and kernel structures that no crate wraps. The only module with unsafe code.
//!
//! One topic per file; every function is one system call and answers `io::Result`, so that the
//! callers above see errno and nothing of libc.

#![allow(unsafe_code)]

pub mod clone3;
pub mod fds;
pub mod file_ids;
pub mod kcmp;
pub mod mount;
pub mod process_vm;
pub mod ptrace;
pub mod regs;
pub mod seccomp;
pub mod signals;
pub mod wait;
pub mod xattr;
pub mod xsave;

pub use omfs_sys::{pagemap_scan, pidfd, sched};

use std::io;

/// Turns a raw system call answer of libc's `syscall()` into a result.
fn answer(value: libc::c_long) -> io::Result<i64> {
    if value == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(value)
    }
}
