//! The mounts below the export's root: which may be entered, and how their inodes are named.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use omfs_authz::export::holds_user_data;

use super::Errno;
use omfs_sys::file::{self, Freshness, Stat};
use omfs_sys::handle::FileHandle;

/// One mount with inodes that somebody has looked up.
#[derive(Debug)]
pub(super) struct Mount {
    /// As in `/proc/self/mountinfo`; not reused while this lives, because `anchor` or the nodes'
    /// own descriptors hold the mount.
    pub id: u64,
    /// `Some` where inodes can be reopened by handle: what `open_by_handle_at(2)` wants.
    pub anchor: Option<OwnedFd>,
    /// Attributes come from a server or a daemon, so that they have to be asked for.
    pub is_remote: bool,
    /// Has links that mean whoever reads them.
    pub is_procfs: bool,
    /// Reads must not be repeated to fill a buffer: a file is made up while it is read.
    pub is_synthetic: bool,
    /// It is no view into this kernel, so other nodes may have it.
    pub holds_user_data: bool,
}

/// All mounts in use by one export.
#[derive(Debug)]
pub(super) struct Mounts {
    refused_devices: HashSet<u64>,
    known: Mutex<HashMap<u64, Weak<Mount>>>,
}

impl Mounts {
    /// `refused_devices`: device numbers (`st_dev`) that must not be entered.
    pub fn new(refused_devices: HashSet<u64>) -> Self {
        Self {
            refused_devices,
            known: Mutex::default(),
        }
    }

    /// The mount that `fd` is on. Must be called with this process' own identity.
    ///
    /// # Errors
    /// `ELOOP` when it is an omfs mount: `/mfs` inside `/mfs` is never followed.
    pub fn of(&self, fd: BorrowedFd<'_>, stat: &Stat) -> Result<Arc<Mount>, Errno> {
        if self.refused_devices.contains(&stat.dev) {
            return Err(Errno(libc::ELOOP));
        }
        if let Some(mount) = self.known().get(&stat.mount).and_then(Weak::upgrade) {
            return Ok(mount);
        }
        // Without the lock: a file server that hangs must not keep others from their mounts.
        let mount = Arc::new(inspect(fd, stat)?);
        let mut known = self.known();
        known.retain(|_, mount| mount.strong_count() > 0);
        if let Some(earlier) = known.get(&stat.mount).and_then(Weak::upgrade) {
            return Ok(earlier);
        }
        known.insert(stat.mount, Arc::downgrade(&mount));
        Ok(mount)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<u64, Weak<Mount>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn inspect(fd: BorrowedFd<'_>, stat: &Stat) -> Result<Mount, Errno> {
    let table = omfs_sys::procfs::bytes("/proc/thread-self/mountinfo")?;
    let table = String::from_utf8_lossy(&table);
    let (kind, source) = find_mount(&table, stat.mount).unwrap_or_default();
    if is_omfs(kind, source) {
        return Err(Errno(libc::ELOOP));
    }
    let is_remote = [
        "fuse", "nfs", "cifs", "smb", "9p", "ceph", "afs", "virtiofs",
    ]
    .iter()
    .any(|prefix| kind.starts_with(prefix));
    let is_synthetic = [
        "proc",
        "sysfs",
        "cgroup",
        "tracefs",
        "debugfs",
        "securityfs",
    ]
    .iter()
    .any(|prefix| kind.starts_with(prefix));
    let may_anchor = !is_remote && !is_synthetic && !kind.is_empty();
    let anchor = if may_anchor {
        find_anchor(fd, stat)
    } else {
        None
    };
    Ok(Mount {
        id: stat.mount,
        anchor,
        is_remote,
        is_procfs: kind == "proc",
        is_synthetic,
        holds_user_data: holds_user_data(kind, is_on_device(kind)),
    })
}

/// Whether file systems of a kind are on devices, as `/proc/filesystems` says.
fn is_on_device(kind: &str) -> bool {
    let known = omfs_sys::procfs::text("/proc/filesystems").unwrap_or_default();
    known
        .lines()
        .any(|line| line.strip_prefix('\t') == Some(kind))
}

/// File system type and source of a mount, from the text of proc_pid_mountinfo(5).
fn find_mount(table: &str, id: u64) -> Option<(&str, &str)> {
    let line = table
        .lines()
        .find(|line| line.split(' ').next().and_then(|first| first.parse().ok()) == Some(id))?;
    let (_, tail) = line.split_once(" - ")?;
    let mut fields = tail.split(' ');
    Some((fields.next()?, fields.next().unwrap_or_default()))
}

fn is_omfs(kind: &str, source: &str) -> bool {
    kind == "fuse.omfs" || (kind == "fuse" && source == "omfs")
}

/// A descriptor to open handles with, if that was seen to work on this mount.
fn find_anchor(fd: BorrowedFd<'_>, stat: &Stat) -> Option<OwnedFd> {
    // Opening anything else than these two has side effects.
    if !matches!(stat.mode & libc::S_IFMT, libc::S_IFDIR | libc::S_IFREG) {
        return None;
    }
    let handle = FileHandle::of(fd).ok()?;
    let anchor = file::reopen(fd, libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY).ok()?;
    let reopened = handle.open_path(anchor.as_fd()).ok()?;
    let same = file::stat(reopened.as_fd(), Freshness::Known).ok()?;
    ((same.dev, same.ino, same.mount) == (stat.dev, stat.ino, stat.mount)).then_some(anchor)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "22 1 0:21 / /proc rw,relatime shared:5 - proc proc rw\n\
        31 1 0:44 / /mfs rw,nosuid - fuse.omfs omfs rw,user_id=0\n\
        32 1 0:45 / /a\\040b rw - ext4 /dev/vda rw\n";

    #[test]
    fn mountinfo_gives_type_and_source() {
        assert_eq!(find_mount(TABLE, 22), Some(("proc", "proc")));
        assert_eq!(find_mount(TABLE, 31), Some(("fuse.omfs", "omfs")));
        assert_eq!(find_mount(TABLE, 32), Some(("ext4", "/dev/vda")));
        assert_eq!(find_mount(TABLE, 3), None);
        assert_eq!(find_mount("31 garbage", 31), None);
    }

    #[test]
    fn only_omfs_is_refused() {
        assert!(is_omfs("fuse.omfs", "omfs"));
        assert!(is_omfs("fuse", "omfs"));
        assert!(!is_omfs("fuse.sshfs", "omfs"));
        assert!(!is_omfs("ext4", "omfs"));
    }
}
