//! The node's cgroup, version 1 or 2.

use std::io;
use std::path::{Component, Path, PathBuf};

use super::{Roots, parse};

/// Deepest nesting that is looked at.
const DEPTH_MAX: usize = 64;
/// Memory limits above this are none (v1 says a number near 2^63 for "no limit").
const NO_LIMIT: u64 = 1 << 60;

/// Directories of the controllers that matter, from the node's own cgroup up to the topmost one
/// that can be seen.
#[derive(Clone, Debug, Default)]
pub struct Cgroup {
    cpu: Option<Dirs>,
    cpuacct: Option<Dirs>,
    memory: Option<Dirs>,
    pids: Option<Dirs>,
}

/// The directory in which the guests' cgroup is made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GuestParent {
    /// It exists.
    pub dir: PathBuf,
    /// Whether its hierarchy is of version 2.
    pub unified: bool,
}

#[derive(Clone, Debug)]
struct Dirs {
    unified: bool,
    upwards: Vec<PathBuf>,
}

impl Cgroup {
    /// The cgroup of this process.
    ///
    /// # Errors
    /// /proc/self/mountinfo cannot be read.
    pub fn of_self(roots: &Roots) -> io::Result<Self> {
        let mounts = parse::text(&roots.proc.join("self/mountinfo"));
        let mounts = mounts.ok_or_else(|| io::Error::other("/proc is not mounted"))?;
        let cgroups = parse::text(&roots.proc.join("self/cgroup")).unwrap_or_default();
        let find = |controller| find(&roots.mounts, &mounts, &cgroups, controller);
        Ok(Self {
            cpu: find("cpu"),
            cpuacct: find("cpuacct").or_else(|| find("cpu").filter(|dirs| dirs.unified)),
            memory: find("memory"),
            pids: find("pids"),
        })
    }

    /// CPUs that the tightest quota on the way up allows; `None` without one.
    #[must_use]
    pub fn quota(&self) -> Option<f64> {
        let dirs = self.cpu.as_ref()?;
        let quotas = dirs.upwards.iter().filter_map(|dir| dirs.quota(dir));
        quotas.reduce(f64::min)
    }

    /// CPU time used in the topmost cgroup with a quota, in nanoseconds; `None` without one.
    #[must_use]
    pub fn cpu_ns(&self) -> Option<u64> {
        let below_top = self.cpu.as_ref()?.upwards.len() - self.limited_at()?;
        let dirs = self.cpuacct.as_ref()?;
        let dir = dirs.upwards.iter().rev().nth(below_top - 1)?;
        if !dirs.unified {
            return parse::number(&dir.join("cpuacct.usage"));
        }
        let stat = parse::text(&dir.join("cpu.stat"))?;
        Some(parse::keyed(&stat, "usage_usec")?.saturating_mul(1000))
    }

    /// For how long the quota held the cgroup back so far, in nanoseconds (summed over CPUs).
    #[must_use]
    pub fn throttled_ns(&self) -> u64 {
        let read = || {
            let dirs = self.cpu.as_ref()?;
            let stat = parse::text(&dirs.upwards.get(self.limited_at()?)?.join("cpu.stat"))?;
            let microseconds = parse::keyed(&stat, "throttled_usec").map(|us| us * 1000);
            microseconds.or_else(|| parse::keyed(&stat, "throttled_time"))
        };
        read().unwrap_or(0)
    }

    fn limited_at(&self) -> Option<usize> {
        let dirs = self.cpu.as_ref()?;
        dirs.upwards
            .iter()
            .rposition(|dir| dirs.quota(dir).is_some())
    }

    /// The tightest memory limit on the way up and what is used of it and cannot be dropped, in
    /// bytes; `None` without a limit.
    #[must_use]
    pub fn memory(&self) -> Option<(u64, u64)> {
        let dirs = self.memory.as_ref()?;
        let limited = dirs.upwards.iter().filter_map(|dir| dirs.memory(dir));
        limited.min_by_key(|(limit, _)| *limit)
    }

    /// Where the guests' cgroup belongs in the CPU, memory and PID hierarchies: below everything that
    /// limits this node, so that guests are limited with it, and as high as that allows, so that
    /// they are weighed against everything else on the node.
    #[must_use]
    pub fn guest_parents(&self) -> Vec<GuestParent> {
        let parents = [&self.cpu, &self.memory, &self.pids];
        let parents = parents.into_iter().flatten().filter_map(Dirs::guest_parent);
        let mut parents: Vec<GuestParent> = parents.collect();
        parents.dedup();
        parents
    }
}

impl Dirs {
    fn guest_parent(&self) -> Option<GuestParent> {
        let limited = |dir: &&PathBuf| self.quota(dir).is_some() || self.memory(dir).is_some();
        let limits = self.upwards.iter().find(limited);
        Some(GuestParent {
            dir: limits.or(self.upwards.last())?.clone(),
            unified: self.unified,
        })
    }

    fn quota(&self, dir: &Path) -> Option<f64> {
        let (quota, period) = if self.unified {
            let text = parse::text(&dir.join("cpu.max"))?;
            let (quota, period) = text.trim().split_once(' ')?;
            (quota.parse::<u64>().ok()?, period.parse::<u64>().ok()?)
        } else {
            let quota = parse::number(&dir.join("cpu.cfs_quota_us"))?;
            (quota, parse::number(&dir.join("cpu.cfs_period_us"))?)
        };
        (quota > 0 && period > 0).then(|| quota as f64 / period as f64)
    }

    fn memory(&self, dir: &Path) -> Option<(u64, u64)> {
        let (limit, used, droppable) = if self.unified {
            ("memory.max", "memory.current", "inactive_file")
        } else {
            (
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
        };
        let limit = parse::number(&dir.join(limit)).filter(|limit| *limit < NO_LIMIT)?;
        let used = parse::number(&dir.join(used))?;
        let stat = parse::text(&dir.join("memory.stat")).unwrap_or_default();
        let droppable = parse::keyed(&stat, droppable).unwrap_or(0);
        Some((limit, used.saturating_sub(droppable)))
    }
}

fn find(prefix: &Path, mounts: &str, cgroups: &str, controller: &str) -> Option<Dirs> {
    let v1 = cgroups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let controllers = fields.next()?;
        let path = fields.next()?;
        controllers
            .split(',')
            .any(|c| c == controller)
            .then_some(path)
    });
    if let Some(path) = v1 {
        let (root, point) = mount(mounts, "cgroup", Some(controller))?;
        return dirs(prefix, &root, &point, path, false);
    }
    let path = cgroups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let (root, point) = mount(mounts, "cgroup2", None)?;
    dirs(prefix, &root, &point, path, true)
}

/// Root and mount point of a hierarchy (proc(5) mountinfo, fields 4 and 5).
fn mount(mounts: &str, kind: &str, controller: Option<&str>) -> Option<(PathBuf, PathBuf)> {
    mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let same_kind = right.next() == Some(kind);
        let mut options = right.nth(1)?.split(',');
        let has = controller.is_none_or(|controller| options.any(|o| o == controller));
        let mut left = left.split(' ').skip(3);
        (same_kind && has).then(|| Some((unescape(left.next()?), unescape(left.next()?))))?
    })
}

fn unescape(field: &str) -> PathBuf {
    field.replace("\\040", " ").into()
}

/// The node's directory below the mount point and those above it. A cgroup outside of what is
/// mounted here (`/..` in it) is represented by the mount point itself.
fn dirs(prefix: &Path, root: &Path, point: &Path, path: &str, unified: bool) -> Option<Dirs> {
    let inside = Path::new(path).strip_prefix(root).ok();
    let inside = inside.filter(|p| p.components().all(|c| matches!(c, Component::Normal(_))));
    let top = prefix.join(point.strip_prefix("/").ok()?);
    let top = if prefix.as_os_str().is_empty() {
        point.to_owned()
    } else {
        top
    };
    let own = top.join(inside.unwrap_or(Path::new("")));
    let upwards: Vec<PathBuf> = own
        .ancestors()
        .take_while(|dir| dir.starts_with(&top))
        .take(DEPTH_MAX)
        .map(|dir| dir.components().collect())
        .collect();
    Some(Dirs { unified, upwards })
}
