//! What a lab left behind: nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use super::cgroup::LabCgroups;
use super::options::{LAB_VARIABLE, state_dir};
use super::{data, wait};

/// How long the kernel may take to finish what it does behind the end of namespaces.
const SETTLE: Duration = Duration::from_secs(30);
const FUSE_CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// What a living lab has that could outlive it.
#[derive(Clone, Debug)]
pub struct Footprint {
    id: String,
    fuse_connections: BTreeSet<PathBuf>,
}

impl Footprint {
    /// Looks at lab `id` while it lives.
    #[must_use]
    pub fn of(id: &str) -> Self {
        let pids = processes(id);
        let fuse_connections = pids
            .iter()
            .flat_map(|pid| fuse_connections_of(*pid))
            .collect();
        Self {
            id: id.into(),
            fuse_connections,
        }
    }

    /// Names what is still there of the lab when it has had some time since its end.
    ///
    /// # Errors
    /// /proc is not readable.
    pub fn leaks(&self) -> Result<Vec<String>> {
        let mut left = Vec::new();
        wait::until(SETTLE, || {
            left = match self.left() {
                Ok(left) => left,
                Err(error) => return Some(Err(error)),
            };
            left.is_empty().then_some(Ok(()))
        })
        .transpose()?;
        Ok(left)
    }

    /// What is there now.
    ///
    /// # Errors
    /// /proc is not readable.
    pub fn left(&self) -> Result<Vec<String>> {
        let mut left: Vec<String> = processes(&self.id)
            .iter()
            .map(|pid| format!("process {pid}"))
            .collect();
        let dirs = [state_dir(&self.id), data::dir_of(&self.id)];
        let dirs = dirs.into_iter().filter(|dir| dir.exists());
        left.extend(dirs.map(|dir| format!("directory {}", dir.display())));
        let groups = LabCgroups::new(&self.id)?.existing();
        left.extend(
            groups
                .iter()
                .map(|dir| format!("control group {}", dir.display())),
        );
        let mounts = omfs_sys::procfs::text("/proc/self/mountinfo")?;
        let ours = |line: &&str| line.contains(&format!("/omfs-lab/{}", self.id));
        left.extend(
            mounts
                .lines()
                .filter(ours)
                .map(|line| format!("mount {line}")),
        );
        let connections = self.fuse_connections.iter().filter(|dir| dir.exists());
        left.extend(connections.map(|dir| format!("FUSE connection {}", dir.display())));
        Ok(left)
    }
}

/// Processes that carry the lab's mark in their environment, this one excepted.
#[must_use]
pub fn processes(id: &str) -> Vec<u32> {
    let mark = format!("{LAB_VARIABLE}={id}");
    let marked = |pid: &u32| {
        let environ = fs::read(Path::new("/proc").join(pid.to_string()).join("environ"));
        environ.is_ok_and(|text| {
            text.split(|byte| *byte == 0)
                .any(|one| one == mark.as_bytes())
        })
    };
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| *pid != std::process::id())
        .filter(marked)
        .collect()
}

/// FUSE connections that a process sees and this one does not: those of its mount namespace.
fn fuse_connections_of(pid: u32) -> BTreeSet<PathBuf> {
    let here = fuse_minors(Path::new("/proc/self/mountinfo"));
    let there = fuse_minors(&PathBuf::from(format!("/proc/{pid}/mountinfo")));
    there
        .difference(&here)
        .map(|minor| Path::new(FUSE_CONNECTIONS).join(minor))
        .collect()
}

/// Minor device numbers of the FUSE file systems in a mount table (`proc_pid_mountinfo(5)`).
fn fuse_minors(mountinfo: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(mountinfo).unwrap_or_default();
    text.lines()
        .filter_map(fuse_minor)
        .map(String::from)
        .collect()
}

fn fuse_minor(line: &str) -> Option<&str> {
    let (mount, file_system) = line.split_once(" - ")?;
    let kind = file_system.split(' ').next()?;
    let device = mount.split(' ').nth(2)?;
    let is_fuse = kind == "fuse" || kind.starts_with("fuse.");
    device.split(':').nth(1).filter(|_| is_fuse)
}
