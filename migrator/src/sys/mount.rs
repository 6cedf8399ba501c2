//! mount_setattr(2), which rustix does not wrap.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::mount::MountAttrFlags;

use super::answer;

/// `struct mount_attr` (linux/mount.h), version 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Adds attributes to the mount that a descriptor is the root of; it keeps those that it has.
///
/// # Errors
/// Those of mount_setattr(2).
pub fn add_attributes(mount: BorrowedFd<'_>, attributes: MountAttrFlags) -> io::Result<()> {
    let attr = MountAttr {
        set: attributes.bits().into(),
        ..MountAttr::default()
    };
    // SAFETY: the path is an empty C string, the structure has the size that is given, and both
    // outlive the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    answer(done).map(drop)
}
