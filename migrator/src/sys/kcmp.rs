//! kcmp(2): do two processes share a kernel object?

use std::io;

use super::answer;

const KCMP_FILE: i32 = 0;
const KCMP_VM: i32 = 1;
const KCMP_FILES: i32 = 2;

fn kcmp(kind: i32, pid1: i32, pid2: i32, first: u64, second: u64) -> io::Result<bool> {
    // SAFETY: numbers only; no crate we use wraps it.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, pid1, pid2, kind, first, second) };
    answer(order).map(|order| order == 0)
}

/// Do these two descriptors refer to the same open file description?
///
/// # Errors
/// EBADF, ESRCH, EPERM, ENOSYS.
pub fn same_file(pid1: i32, fd1: i32, pid2: i32, fd2: i32) -> io::Result<bool> {
    kcmp(KCMP_FILE, pid1, pid2, fd1 as u64, fd2 as u64)
}

/// Do these two processes share their address space?
///
/// # Errors
/// ESRCH, EPERM, ENOSYS.
pub fn same_memory(pid1: i32, pid2: i32) -> io::Result<bool> {
    kcmp(KCMP_VM, pid1, pid2, 0, 0)
}

/// Do these two threads share their descriptor table?
///
/// # Errors
/// ESRCH, EPERM, ENOSYS.
pub fn same_fd_table(pid1: i32, pid2: i32) -> io::Result<bool> {
    kcmp(KCMP_FILES, pid1, pid2, 0, 0)
}
