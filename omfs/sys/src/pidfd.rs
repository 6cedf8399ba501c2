//! Process descriptors: pidfd_open(2), pidfd_getfd(2), pidfd_send_signal(2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::{answer, new_fd};

/// A descriptor of a process, readable when it ends.
///
/// # Errors
/// ESRCH, EINVAL (a thread that leads no group).
pub fn open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; no crate we use wraps it.
    new_fd(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// A duplicate of another process' descriptor: the same open file description.
///
/// # Errors
/// EBADF, EPERM, ESRCH.
pub fn get_fd(pidfd: BorrowedFd<'_>, number: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; no crate we use wraps it.
    new_fd(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) })
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_process_has_a_descriptor_until_it_is_reaped() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let pidfd = open(pid).unwrap();
        send_signal(pidfd.as_fd(), libc::SIGKILL).unwrap();
        child.wait().unwrap();
        let error = send_signal(pidfd.as_fd(), libc::SIGKILL).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
        assert!(get_fd(open(std::process::id() as i32).unwrap().as_fd(), -1).is_err());
    }
}
