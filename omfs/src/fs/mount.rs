//! mount(2) of a FUSE filesystem, done by ourselves so that its type shows as `fuse.omfs`.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::options::MountOptions;

/// The filesystem type in `/proc/mounts`.
pub const FS_TYPE: &str = "fuse.omfs";
const DEVICE: &str = "/dev/fuse";

fn flags(options: MountOptions) -> MsFlags {
    let mut flags = MsFlags::empty();
    flags.set(MsFlags::MS_RDONLY, options.read_only);
    flags.set(MsFlags::MS_NOSUID, !options.suid);
    flags.set(MsFlags::MS_NODEV, !options.dev);
    flags.set(MsFlags::MS_NOEXEC, options.no_exec);
    flags.set(MsFlags::MS_NOATIME, options.no_atime);
    flags
}

/// Opens `/dev/fuse` and mounts it. Until the descriptor is served ([`super::serve`]), every
/// access to the mount waits; when all copies of it are closed, it fails with `ENOTCONN`.
///
/// # Errors
/// Those of open(2) of `/dev/fuse` and of mount(2).
pub fn mount_fuse(source: &str, target: &Path, options: MountOptions) -> io::Result<OwnedFd> {
    let device = OpenOptions::new().read(true).write(true).open(DEVICE)?;
    // No default_permissions: the owner of a file decides, with all groups of the caller.
    let data = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
        device.as_raw_fd()
    );
    let flags = flags(options);
    mount(
        Some(source),
        target,
        Some(FS_TYPE),
        flags,
        Some(data.as_str()),
    )?;
    Ok(device.into())
}

/// Takes a mount away, unless it is in use.
///
/// # Errors
/// Those of umount2(2): `EBUSY` when it is in use.
pub fn unmount(target: &Path) -> io::Result<()> {
    umount2(target, MntFlags::UMOUNT_NOFOLLOW)?;
    Ok(())
}

/// Takes a mount away, even while it is in use or does not answer.
///
/// # Errors
/// Those of umount2(2).
pub fn unmount_lazily(target: &Path) -> io::Result<()> {
    umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?;
    Ok(())
}
