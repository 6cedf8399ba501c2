//! mount(2) of a FUSE filesystem, done by ourselves so that its type shows as `fuse.omfs`.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

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

/// Where the cluster file system is mounted, as this process sees it.
#[must_use]
pub fn mounted() -> Vec<PathBuf> {
    let mounts = omfs_sys::procfs::text("/proc/self/mounts").unwrap_or_default();
    parse_mounted(&mounts)
}

/// From the text of proc_pid_mounts(5).
fn parse_mounted(mounts: &str) -> Vec<PathBuf> {
    let fields = mounts.lines().map(|line| line.split(' '));
    let ours = fields.filter_map(|mut fields| {
        let (point, kind) = (fields.nth(1)?, fields.next()?);
        (kind == FS_TYPE).then(|| unescape(point).into())
    });
    ours.collect()
}

/// The kernel writes blanks and backslashes as octal numbers.
fn unescape(point: &str) -> String {
    let escapes = [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ];
    let replace = |text: String, (code, plain): (&str, &str)| text.replace(code, plain);
    escapes.into_iter().fold(point.to_owned(), replace)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_mounts_are_found_by_their_real_names() {
        let mounts = "proc /proc proc rw 0 0\nomfs /mfs fuse.omfs rw 0 0\n\
                      x /a\\040b\\134c fuse.omfs rw 0 0\nx /y fuse.sshfs rw 0 0\n";
        assert_eq!(
            parse_mounted(mounts),
            ["/mfs", "/a b\\c"].map(PathBuf::from)
        );
    }
}
