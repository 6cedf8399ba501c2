//! Control groups of a lab's nodes: CPU and memory limits, in either version of the interface,
//! whichever has the controller (`cgroups(7)`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, unshare};

use super::cpuset;
use super::options::LabOptions;

/// Directory of all labs in every hierarchy.
const LABS_DIR: &str = "omfs-lab";
/// Where a node's processes are in version 2, which allows none beside subdirectories.
const LEAF: &str = "system";
/// Controllers of version 1 that nodes have of their own.
const V1_CONTROLLERS: [&str; 6] = ["cpu", "cpuacct", "cpuset", "memory", "freezer", "pids"];
/// Controllers of version 2 that nodes pass on.
const V2_CONTROLLERS: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];
/// The kernel's own. With a short one the share of a busy node is used up within a tick (4 ms at 250
/// Hz), and whoever wakes up waits for many periods, whatever its priority: of twelve busy processes
/// 40 ms at 20 ms, 3 ms at 100 ms, seen as a mean over wake-ups a moment apart.
const CPU_PERIOD_US: u64 = 100_000;
/// How long it may take until all processes are frozen that can be.
const FREEZE_SETTLES: Duration = Duration::from_secs(2);

/// A mounted hierarchy that is of use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// Its controllers; of version 2 only those that are enabled at the root.
    pub controllers: Vec<String>,
    /// Whether it is of version 2.
    pub unified: bool,
}

/// Finds the hierarchies of this machine.
///
/// # Errors
/// /proc is not readable.
pub fn hierarchies() -> Result<Vec<Hierarchy>> {
    let mounts = omfs_sys::procfs::text("/proc/mounts").context("/proc/mounts")?;
    Ok(parse_mounts(&mounts, |mount| {
        fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default()
    }))
}

fn parse_mounts(mounts: &str, controllers_of: impl Fn(&Path) -> String) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, mount, kind, options, ..] = fields[..] else {
            continue;
        };
        let mount = PathBuf::from(mount);
        let unified = kind == "cgroup2";
        let (text, wanted) = match kind {
            "cgroup2" => (controllers_of(&mount), &V2_CONTROLLERS[..]),
            "cgroup" => (options.replace(',', " "), &V1_CONTROLLERS[..]),
            _ => continue,
        };
        let controllers: Vec<String> = text
            .split_whitespace()
            .filter(|name| wanted.contains(name))
            .map(String::from)
            .collect();
        let again = found.iter().any(|other| other.controllers == controllers);
        if !controllers.is_empty() && !again {
            found.push(Hierarchy {
                mount,
                controllers,
                unified,
            });
        }
    }
    found
}

impl Hierarchy {
    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|one| one == controller)
    }
}

/// The groups of one lab.
#[derive(Clone, Debug)]
pub struct LabCgroups {
    id: String,
    hierarchies: Vec<Hierarchy>,
}

impl LabCgroups {
    /// Those of lab `id`, existing or not.
    ///
    /// # Errors
    /// /proc is not readable.
    pub fn new(id: &str) -> Result<Self> {
        Ok(Self {
            id: id.into(),
            hierarchies: hierarchies()?,
        })
    }

    fn lab_dir(&self, hierarchy: &Hierarchy) -> PathBuf {
        hierarchy.mount.join(LABS_DIR).join(&self.id)
    }

    /// Makes a node's groups with its limits, anew if they are there.
    ///
    /// # Errors
    /// The kernel's, with the file's name.
    pub fn create_node(&self, node: &str, index: usize, options: &LabOptions) -> Result<()> {
        for hierarchy in &self.hierarchies {
            let lab_dir = self.lab_dir(hierarchy);
            let dir = lab_dir.join(node);
            remove_tree(&dir)?;
            make_dir(&lab_dir)?;
            if hierarchy.unified {
                pass_controllers_on(hierarchy, &lab_dir)?;
            }
            make_dir(&dir)?;
            cpuset::set(hierarchy, &dir, index, options.cpu_percent)?;
            set_limits(hierarchy, &dir, options)?;
        }
        Ok(())
    }

    /// Moves the calling process into the node's groups and makes them the roots of a new cgroup
    /// namespace.
    ///
    /// # Errors
    /// The kernel's.
    pub fn become_root(&self, node: &str) -> Result<()> {
        for hierarchy in &self.hierarchies {
            let dir = self.lab_dir(hierarchy).join(node);
            write(&dir.join("cgroup.procs"), "0")?;
        }
        unshare(CloneFlags::CLONE_NEWCGROUP).context("a cgroup namespace")?;
        for hierarchy in self.hierarchies.iter().filter(|one| one.unified) {
            let dir = self.lab_dir(hierarchy).join(node);
            make_dir(&dir.join(LEAF))?;
            write(&dir.join(LEAF).join("cgroup.procs"), "0")?;
            enable_controllers(hierarchy, &dir)?;
        }
        Ok(())
    }

    /// The hierarchies, for mounting them in a node.
    #[must_use]
    pub fn hierarchies(&self) -> &[Hierarchy] {
        &self.hierarchies
    }

    /// Files to which a process writes 0 to belong to the node.
    #[must_use]
    pub fn procs_files(&self, node: &str) -> Vec<PathBuf> {
        let file = |hierarchy: &Hierarchy| {
            let dir = self.lab_dir(hierarchy).join(node);
            let dir = if hierarchy.unified {
                dir.join(LEAF)
            } else {
                dir
            };
            dir.join("cgroup.procs")
        };
        self.hierarchies.iter().map(file).collect()
    }

    /// Stops all processes of a node where they are, or lets them go on. What version 1 has frozen
    /// cannot even be killed.
    ///
    /// # Errors
    /// No hierarchy can freeze, or the kernel's error.
    pub fn set_frozen(&self, node: &str, frozen: bool) -> Result<()> {
        let hierarchy = self.freezer();
        let hierarchy = hierarchy.context("no control group of this machine can be frozen")?;
        let dir = self.lab_dir(hierarchy).join(node);
        let (file, on, off) = if hierarchy.unified {
            ("cgroup.freeze", "1", "0")
        } else {
            ("freezer.state", "FROZEN", "THAWED")
        };
        write(&dir.join(file), if frozen { on } else { off })?;
        // Who waits for somebody frozen is not frozen itself, and does nothing all the same.
        super::wait::until(FREEZE_SETTLES, || {
            is_frozen(hierarchy, &dir).filter(|now| *now == frozen)
        });
        Ok(())
    }

    /// Lets all processes of the lab go on, so that they can end.
    pub fn thaw_all(&self) {
        let lab_dir = self.freezer().map(|one| self.lab_dir(one));
        let entries = lab_dir.and_then(|dir| fs::read_dir(dir).ok());
        let entries = entries.into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.path().is_dir()) {
            let _ = self.set_frozen(&entry.file_name().to_string_lossy(), false);
        }
    }

    fn freezer(&self) -> Option<&Hierarchy> {
        let freezes = |one: &&Hierarchy| one.unified || one.has("freezer");
        self.hierarchies.iter().find(freezes)
    }

    /// Removes everything of the lab; its processes must have ended.
    ///
    /// # Errors
    /// A group is still in use.
    pub fn remove(&self) -> io::Result<()> {
        let mut result = Ok(());
        for hierarchy in &self.hierarchies {
            let dir = self.lab_dir(hierarchy);
            result = result.and(remove_tree(&dir));
            // Fails while other labs are there, as it should.
            let _ = fs::remove_dir(hierarchy.mount.join(LABS_DIR));
        }
        result
    }

    /// Directories of the lab that exist, for the leak check.
    #[must_use]
    pub fn existing(&self) -> Vec<PathBuf> {
        let dirs = self.hierarchies.iter().map(|one| self.lab_dir(one));
        dirs.filter(|dir| dir.exists()).collect()
    }
}

fn is_frozen(hierarchy: &Hierarchy, dir: &Path) -> Option<bool> {
    if hierarchy.unified {
        let events = fs::read_to_string(dir.join("cgroup.events")).ok()?;
        return Some(events.lines().any(|line| line == "frozen 1"));
    }
    let state = fs::read_to_string(dir.join("freezer.state")).ok()?;
    Some(state.trim() == "FROZEN")
}

fn make_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))
}

pub(super) fn write(file: &Path, value: &str) -> Result<()> {
    fs::write(file, value).with_context(|| format!("cannot write {value} to {}", file.display()))
}

/// Lets subgroups have limits. The kernel refuses where processes are beside them, which is so at
/// the root of a container.
fn enable_controllers(hierarchy: &Hierarchy, dir: &Path) -> Result<()> {
    let wanted: Vec<String> = hierarchy
        .controllers
        .iter()
        .map(|name| format!("+{name}"))
        .collect();
    let file = dir.join("cgroup.subtree_control");
    write(&file, &wanted.join(" ")).map_err(|error| explain_busy(error, dir))
}

fn explain_busy(error: anyhow::Error, dir: &Path) -> anyhow::Error {
    let cause = error.downcast_ref::<io::Error>();
    if cause.and_then(io::Error::raw_os_error) != Some(libc::EBUSY) {
        return error;
    }
    error.context(format!(
        "processes are in {0} itself: mkdir {0}/init, and write each number in {0}/cgroup.procs to \
         {0}/init/cgroup.procs",
        dir.display()
    ))
}

/// Enables the controllers for what is below the root, on the way down to `dir`, and in `dir`.
fn pass_controllers_on(hierarchy: &Hierarchy, dir: &Path) -> Result<()> {
    let mut path = hierarchy.mount.clone();
    enable_controllers(hierarchy, &path)?;
    for part in dir.strip_prefix(&hierarchy.mount)?.components() {
        path.push(part);
        enable_controllers(hierarchy, &path)?;
    }
    Ok(())
}

fn set_limits(hierarchy: &Hierarchy, dir: &Path, options: &LabOptions) -> Result<()> {
    let has = |name: &str| hierarchy.has(name);
    if let Some(percent) = options.cpu_percent.filter(|_| has("cpu")) {
        let quota_us = (CPU_PERIOD_US * u64::from(percent) / 100).max(1000);
        if hierarchy.unified {
            write(&dir.join("cpu.max"), &format!("{quota_us} {CPU_PERIOD_US}"))?;
        } else {
            write(&dir.join("cpu.cfs_period_us"), &CPU_PERIOD_US.to_string())?;
            write(&dir.join("cpu.cfs_quota_us"), &quota_us.to_string())?;
        }
    }
    if let Some(mib) = options.mem_mib.filter(|_| has("memory")) {
        let file = if hierarchy.unified {
            "memory.max"
        } else {
            "memory.limit_in_bytes"
        };
        write(&dir.join(file), &(u64::from(mib) << 20).to_string())?;
    }
    Ok(())
}

/// Removes a directory of groups from the bottom up. A group whose last process just ended may be
/// busy for a moment.
fn remove_tree(dir: &Path) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    super::wait::until(Duration::from_secs(5), || match fs::remove_dir(dir) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => None,
        result => Some(result),
    })
    .unwrap_or_else(|| Err(io::Error::from_raw_os_error(libc::EBUSY)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "tmpfs /sys/fs/cgroup tmpfs rw 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0
cgroup /again/memory cgroup rw,memory 0 0
cgroup /sys/fs/cgroup/systemd cgroup rw,name=systemd 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0
";

    #[test]
    fn a_hybrid_machine_has_its_controllers_in_version_1() {
        let found = parse_mounts(HYBRID, |_| "hugetlb\n".into());
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].controllers, ["cpu", "cpuacct"]);
        assert!(found.iter().all(|one| !one.unified));
    }

    /// Plain files stand for the kernel's.
    fn fake(root: &Path, unified: bool) -> LabCgroups {
        let controllers: &[&str] = if unified {
            fs::write(root.join("cpuset.cpus.effective"), "4-7\n").unwrap();
            &V2_CONTROLLERS
        } else {
            &["cpu", "memory"]
        };
        LabCgroups {
            id: "x".into(),
            hierarchies: vec![Hierarchy {
                mount: root.to_owned(),
                controllers: controllers.iter().map(|name| (*name).to_owned()).collect(),
                unified,
            }],
        }
    }

    fn limited() -> LabOptions {
        LabOptions {
            cpu_percent: Some(12),
            mem_mib: Some(64),
            ..LabOptions::new(1)
        }
    }

    #[test]
    fn version_2_passes_controllers_down_and_limits_the_node() {
        let root = tempfile::tempdir().unwrap();
        let groups = fake(root.path(), true);
        groups.create_node("n1", 0, &limited()).unwrap();
        let read = |path: &str| fs::read_to_string(root.path().join(path)).unwrap();
        for above in ["", "omfs-lab", "omfs-lab/x"] {
            let file = Path::new(above).join("cgroup.subtree_control");
            let enabled = read(&file.to_string_lossy());
            assert_eq!(enabled, "+cpu +cpuset +memory +pids", "{above}");
        }
        assert_eq!(read("omfs-lab/x/n1/cpu.max"), "12000 100000");
        assert_eq!(read("omfs-lab/x/n1/cpuset.cpus"), "4");
        assert_eq!(read("omfs-lab/x/n1/memory.max"), (64 << 20).to_string());
        // The node's own processes are in a leaf, so that it can have groups for its guests.
        let procs = root.path().join("omfs-lab/x/n1/system/cgroup.procs");
        assert_eq!(groups.procs_files("n1"), [procs]);
        assert_eq!(groups.existing(), [root.path().join("omfs-lab/x")]);
    }

    #[test]
    fn version_1_limits_the_node() {
        let root = tempfile::tempdir().unwrap();
        let groups = fake(root.path(), false);
        groups.create_node("n1", 0, &limited()).unwrap();
        let read = |file: &str| fs::read_to_string(root.path().join("omfs-lab/x/n1").join(file));
        assert_eq!(read("cpu.cfs_quota_us").unwrap(), "12000");
        assert_eq!(read("cpu.cfs_period_us").unwrap(), "100000");
        assert_eq!(
            read("memory.limit_in_bytes").unwrap(),
            (64 << 20).to_string()
        );
        assert!(read("cgroup.subtree_control").is_err());
        let procs = root.path().join("omfs-lab/x/n1/cgroup.procs");
        assert_eq!(groups.procs_files("n1"), [procs]);
    }

    #[test]
    fn a_group_with_processes_in_it_is_explained() {
        let failed = |errno| {
            let cause = io::Error::from_raw_os_error(errno);
            let error = anyhow::Error::from(cause).context("cannot write");
            format!("{:#}", explain_busy(error, Path::new("/sys/fs/cgroup")))
        };
        assert!(failed(libc::EBUSY).starts_with("processes are in /sys/fs/cgroup itself"));
        assert!(failed(libc::EACCES).starts_with("cannot write"));
    }

    #[test]
    fn a_modern_machine_has_them_in_version_2() {
        let mounts = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
        let found = parse_mounts(mounts, |_| "cpuset cpu io memory pids\n".into());
        assert_eq!(found.len(), 1);
        assert!(found[0].unified);
        assert_eq!(found[0].controllers, ["cpuset", "cpu", "memory", "pids"]);
    }
}
