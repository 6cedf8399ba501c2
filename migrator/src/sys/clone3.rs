//! clone3(2) with chosen process ids.

use std::io;
use std::mem::size_of;
use std::os::fd::{FromRawFd, OwnedFd};

use super::answer;

/// `struct clone_args` (linux/sched.h), version 2, to be written into a tracee for an injected call.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct CloneArgs {
    pub flags: u64,
    pub pidfd: u64,
    pub child_tid: u64,
    pub parent_tid: u64,
    pub exit_signal: u64,
    pub stack: u64,
    pub stack_size: u64,
    pub tls: u64,
    pub set_tid: u64,
    pub set_tid_size: u64,
    pub cgroup: u64,
}

/// Bytes of [`CloneArgs`].
pub const CLONE_ARGS_BYTES: usize = 88;
const _: () = assert!(size_of::<CloneArgs>() == CLONE_ARGS_BYTES);

impl CloneArgs {
    /// The structure as bytes, in the kernel's layout.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; CLONE_ARGS_BYTES] {
        let words = [
            self.flags,
            self.pidfd,
            self.child_tid,
            self.parent_tid,
            self.exit_signal,
            self.stack,
            self.stack_size,
            self.tls,
            self.set_tid,
            self.set_tid_size,
            self.cgroup,
        ];
        let mut bytes = [0; CLONE_ARGS_BYTES];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

/// Which side of a fork this is.
#[derive(Debug)]
pub enum Forked {
    /// In the new process.
    Child,
    /// In the old one: the child's id in this PID namespace, and a descriptor of it.
    Parent {
        /// The child's id as seen from here.
        pid: i32,
        /// Refers to the child even after its id is reused.
        pidfd: OwnedFd,
    },
}

/// Forks with `namespaces` (CLONE_NEW* flags) and, innermost first, the wanted ids.
///
/// Only for a process with one thread: in the child of any other, locks held by threads that do
/// not exist there stay held forever.
///
/// # Errors
/// EBUSY when this process has further threads; EEXIST when an id is taken, EPERM, EINVAL, EAGAIN.
pub fn fork(namespaces: u64, wanted_pids: &[i32]) -> io::Result<Forked> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    let mut pidfd: i32 = -1;
    let args = CloneArgs {
        flags: namespaces | libc::CLONE_PIDFD as u64,
        pidfd: &raw mut pidfd as u64,
        exit_signal: libc::SIGCHLD as u64,
        set_tid: if wanted_pids.is_empty() {
            0
        } else {
            wanted_pids.as_ptr() as u64
        },
        set_tid_size: wanted_pids.len() as u64,
        ..CloneArgs::default()
    };
    // SAFETY: `args` has the size given; its pointers outlive the call; no new stack is asked for,
    // so the child goes on with a copy of this one; no other thread exists whose locks it could miss.
    let pid =
        answer(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, CLONE_ARGS_BYTES) })?;
    if pid == 0 {
        return Ok(Forked::Child);
    }
    // SAFETY: the kernel just made this descriptor for us and nobody else knows it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Forked::Parent {
        pid: pid as i32,
        pidfd,
    })
}
