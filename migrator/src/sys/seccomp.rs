//! seccomp user notification (seccomp_unotify(2)): the listener's ioctls.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// Operation number of seccomp(2) that installs a filter.
pub const SET_MODE_FILTER: u64 = 1;
/// Flags for installing the guest's filter: in all threads, with a listener, and once a call was
/// received only fatal signals interrupt it, so that what was begun at home is never abandoned.
pub const FILTER_FLAGS: u64 = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER
    | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
    | libc::SECCOMP_FILTER_FLAG_TSYNC
    | libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH;

/// `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP`
const SYNC_WAKE_UP: libc::c_int = 1;

/// `struct seccomp_notif`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct RawNotification {
    id: u64,
    pid: u32,
    flags: u32,
    number: i32,
    arch: u32,
    instruction_pointer: u64,
    args: [u64; 6],
}
const _: () = assert!(size_of::<RawNotification>() == 80);

/// `struct seccomp_notif_resp`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct RawResponse {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}
const _: () = assert!(size_of::<RawResponse>() == 24);

nix::ioctl_readwrite!(notif_recv, b'!', 0, RawNotification);
nix::ioctl_readwrite!(notif_send, b'!', 1, RawResponse);
nix::ioctl_write_ptr!(notif_id_valid, b'!', 2, u64);
// Declared with the size of a u64, but the flags are passed as the argument itself.
nix::ioctl_write_int_bad!(
    notif_set_flags,
    nix::request_code_write!(b'!', 4, size_of::<u64>())
);

/// Names one trapped call until it is answered.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct NotificationId(u64);

/// One trapped call of one thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Notification {
    /// To answer with.
    pub id: NotificationId,
    /// The thread, in the supervisor's PID namespace.
    pub thread: i32,
    /// Number of the call.
    pub number: u32,
    /// `AUDIT_ARCH_*`
    pub arch: u32,
    /// The arguments.
    pub args: [u64; 6],
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// How a trapped call ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The kernel carries it out.
    Continue,
    /// It returns this value.
    Value(i64),
    /// It returns this (positive) error, which may be one of the kernel's own restart codes.
    Error(i32),
}

/// The listener of one guest's filter.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl Listener {
    /// Takes a listener that was fetched from the guest.
    ///
    /// # Errors
    /// The descriptor is no listener, or the kernel is older than 6.6.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: the ioctl takes an integer and touches no memory of ours.
        unsafe { notif_set_flags(fd.as_raw_fd(), SYNC_WAKE_UP) }?;
        Ok(Self(fd))
    }

    fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Whether a call can be received without waiting.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let count = poll(&mut fds, PollTimeout::ZERO);
        let events = fds.first().and_then(PollFd::revents);
        count == Ok(1) && events.is_some_and(|events| events.contains(PollFlags::POLLIN))
    }

    /// Receives one trapped call; blocks unless poll(2) said that there is one.
    ///
    /// Returns `None` if the thread went away or was interrupted before it could be received.
    ///
    /// # Errors
    /// Other than that, none is known.
    pub fn receive(&self) -> io::Result<Option<Notification>> {
        let mut raw = RawNotification::default();
        // SAFETY: `raw` is a zeroed seccomp_notif of the kernel's size, alive during the call.
        match unsafe { notif_recv(self.fd(), &raw mut raw) } {
            Ok(_) => Ok(Some(Notification {
                id: NotificationId(raw.id),
                thread: raw.pid.cast_signed(),
                number: raw.number.cast_unsigned(),
                arch: raw.arch,
                args: raw.args,
            })),
            Err(Errno::ENOENT | Errno::EINTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Answers a trapped call; false if its thread is gone.
    ///
    /// # Errors
    /// `EINPROGRESS` and the like: the call was answered before.
    pub fn answer(&self, id: NotificationId, answer: Answer) -> io::Result<bool> {
        let (value, error, flags) = match answer {
            Answer::Continue => (0, 0, 1), // SECCOMP_USER_NOTIF_FLAG_CONTINUE
            Answer::Value(value) => (value, 0, 0),
            Answer::Error(errno) => (0, -errno, 0),
        };
        let mut raw = RawResponse {
            id: id.0,
            value,
            error,
            flags,
        };
        // SAFETY: `raw` is a seccomp_notif_resp, alive during the call.
        match unsafe { notif_send(self.fd(), &raw mut raw) } {
            Ok(_) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the thread still waits for this answer, so that its memory is what it was.
    #[must_use]
    pub fn is_valid(&self, id: NotificationId) -> bool {
        // SAFETY: the ioctl reads one u64 that lives during the call.
        unsafe { notif_id_valid(self.fd(), &raw const id.0) }.is_ok()
    }
}
