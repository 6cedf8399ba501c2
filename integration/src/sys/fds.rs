//! Descriptors that came from elsewhere.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Takes ownership of a descriptor that `recvmsg` just gave.
#[must_use]
pub fn own_received(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel made it for this process a moment ago, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
