//! Where the nodes' disks are: a directory on a file system that can be an overlay's upper layer,
//! or else memory.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{EXT4_SUPER_MAGIC, FsType, TMPFS_MAGIC, XFS_SUPER_MAGIC, statfs};

/// Directory of all labs' disks; `OMFS_LAB_DATA` names another.
const DATA_ROOT: &str = "/var/tmp/omfs-lab";
const BTRFS_MAGIC: FsType = FsType(0x9123_683e);

fn root() -> PathBuf {
    std::env::var_os("OMFS_LAB_DATA").map_or_else(|| PathBuf::from(DATA_ROOT), PathBuf::from)
}

/// The directory of lab `id`'s disks on the host; it does not exist when they are in memory.
#[must_use]
pub fn dir_of(id: &str) -> PathBuf {
    root().join(id)
}

/// Removes the directory of all labs' disks when this was the last lab.
pub fn forget_root() {
    let _ = fs::remove_dir(root());
}

/// Puts the disks' directory at `target`, which exists, in this mount namespace.
///
/// # Errors
/// Neither a directory nor memory could be had.
pub fn mount_at(id: &str, target: &Path) -> Result<()> {
    let none = None::<&str>;
    let dir = dir_of(id);
    if suits(&root()) {
        // The second time when another lab's end removed the common directory in between.
        fs::create_dir_all(&dir)
            .or_else(|_| fs::create_dir_all(&dir))
            .with_context(|| dir.display().to_string())?;
        mount(Some(&dir), target, none, MsFlags::MS_BIND, none).context("bind the data")?;
    } else {
        let options = Some("mode=700,size=80%");
        mount(
            Some("omfs-lab"),
            target,
            Some("tmpfs"),
            MsFlags::empty(),
            options,
        )
        .context("memory for the nodes' disks")?;
    }
    Ok(())
}

/// Whether overlays can have their upper layer there.
fn suits(root: &Path) -> bool {
    let known = [EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, TMPFS_MAGIC, BTRFS_MAGIC];
    fs::create_dir_all(root).is_ok()
        && statfs(root).is_ok_and(|stat| known.contains(&stat.filesystem_type()))
}
