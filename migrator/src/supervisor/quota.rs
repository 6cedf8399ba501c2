//! What a guest may use of its host: a cgroup of its own below that of all guests, with limits.
//!
//! Files are not limited here: there is no place of the host that a guest can write to. What it has
//! open costs kernel memory, which is limited with its own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::SupervisorConfig;

/// Most of everything for one guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quota {
    /// Memory, that of the kernel for it included. Beyond it the kernel ends the guest.
    pub memory_bytes: u64,
    /// Threads.
    pub threads: u64,
}

/// Files that set a limit, by name in either version of the interface (cgroups(7)).
const MEMORY: [&str; 2] = ["memory.max", "memory.limit_in_bytes"];
const THREADS: &str = "pids.max";
/// Controllers that a guest's group has of its own (version 2).
const CONTROLLERS: [&str; 3] = ["+cpu", "+memory", "+pids"];
/// The kernel lets go of a group some moments after its last process.
const REMOVAL_TRIES: u32 = 50;
const REMOVAL_PAUSE: Duration = Duration::from_millis(20);

/// A guest's own directory in each hierarchy; removed when this is dropped, which the guest's
/// processes must not outlive.
#[derive(Debug)]
pub(super) struct OwnGroup {
    dirs: Vec<PathBuf>,
}

impl OwnGroup {
    /// Makes a group for the guest in each of the groups of all guests. What fails is logged: a guest
    /// that is weighed or limited less than others is better than none.
    pub(super) fn make(config: &SupervisorConfig) -> Self {
        let name = format!("{}-{}", config.home, config.home_pid);
        let made = config.cgroups.iter().filter_map(|parent| {
            let dir = parent.join(&name);
            make(parent, &dir, config.quota)
                .inspect_err(|error| tracing::warn!("no limits in {}: {error}", dir.display()))
                .ok()?;
            Some(dir)
        });
        Self {
            dirs: made.collect(),
        }
    }

    /// Puts the guest's first process in, or where there is none of its own, with all guests.
    pub(super) fn join(&self, config: &SupervisorConfig, host_pid: i32) {
        for parent in &config.cgroups {
            let own = self.dirs.iter().find(|dir| dir.starts_with(parent));
            let dir = own.unwrap_or(parent);
            if let Err(error) = fs::write(dir.join("cgroup.procs"), host_pid.to_string()) {
                tracing::warn!("the guest cannot join {}: {error}", dir.display());
            }
        }
    }
}

impl Drop for OwnGroup {
    fn drop(&mut self) {
        for dir in &self.dirs {
            for _ in 0..REMOVAL_TRIES {
                match fs::remove_dir(dir) {
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                        std::thread::sleep(REMOVAL_PAUSE);
                    }
                    _ => break,
                }
            }
        }
    }
}

fn make(parent: &Path, dir: &Path, quota: Option<Quota>) -> io::Result<()> {
    let control = parent.join("cgroup.subtree_control");
    if control.exists() {
        for controller in CONTROLLERS {
            // One that the node does not have is no harm to the others.
            let _ = fs::write(&control, controller);
        }
    }
    match fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let limited = quota.map_or(Ok(()), |quota| set_limits(dir, quota));
    if limited.is_err() {
        let _ = fs::remove_dir(dir);
    }
    limited
}

fn set_limits(dir: &Path, quota: Quota) -> io::Result<()> {
    for name in MEMORY {
        limit(&dir.join(name), quota.memory_bytes)?;
    }
    limit(&dir.join(THREADS), quota.threads)
}

fn limit(file: &Path, value: u64) -> io::Result<()> {
    if !file.exists() {
        return Ok(());
    }
    fs::write(file, value.to_string())
}
