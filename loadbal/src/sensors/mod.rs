//! What this node can do and what it is doing.
//!
//! A node in a container (its cgroup, or one above it that can be seen, has a CPU quota or a
//! memory limit) reports that cgroup; any other node reports the host. Both cgroup versions are
//! read. Everything under /proc and /sys is treated as text from outside: bounded, and skipped
//! when it does not parse.

pub mod cgroup;
mod host;
mod parse;
pub mod processes;
mod speed;

use std::io;
use std::path::PathBuf;
use std::time::Instant;

use cgroup::Cgroup;
pub use processes::{ProcessSample, Processes};
pub use speed::measure as measure_speed;

use crate::balancer::Capacity;

/// Where the kernel's files are; other places in tests.
#[derive(Clone, Debug)]
pub struct Roots {
    /// Normally `/proc`.
    pub proc: PathBuf,
    /// Prepended to the mount points in mountinfo; normally empty.
    pub mounts: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self {
            proc: "/proc".into(),
            mounts: PathBuf::new(),
        }
    }
}

/// One reading of the node's own state.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Reading {
    /// As the balancer takes it.
    pub capacity: Capacity,
    /// Share of the time since the last reading that the quota held the node back.
    pub throttled: f64,
}

/// Reads the node's capacity and use.
#[derive(Debug)]
pub struct Sensors {
    roots: Roots,
    cgroup: Cgroup,
    speed: f64,
    busy: Option<Busy>,
}

#[derive(Clone, Copy, Debug)]
struct Busy {
    at: Instant,
    cpu_ns: u64,
    throttled_ns: u64,
}

impl Sensors {
    /// Finds out what kind of node this is and measures its speed (about 10 ms of CPU).
    ///
    /// # Errors
    /// There is no /proc.
    pub fn new(roots: Roots) -> io::Result<Self> {
        let cgroup = Cgroup::of_self(&roots)?;
        Ok(Self {
            roots,
            cgroup,
            speed: speed::measure(),
            busy: None,
        })
    }

    /// Takes a reading; costs four small files.
    pub fn read(&mut self) -> Reading {
        let cpus = self.cpus();
        let (utilisation, throttled) = self.utilisation(cpus);
        let (memory_total, memory_free) = self.memory();
        let capacity = Capacity {
            cpus,
            speed: self.speed,
            memory_total,
            memory_free,
            utilisation,
        };
        Reading {
            capacity,
            throttled,
        }
    }

    /// Usable CPUs: those online that this process may use, or the quota if it is less.
    #[must_use]
    pub fn cpus(&self) -> f64 {
        let allowed = host::allowed_cpus();
        self.cgroup
            .quota()
            .map_or(allowed, |quota| quota.min(allowed))
            .max(0.001)
    }

    fn utilisation(&mut self, cpus: f64) -> (f64, f64) {
        let cpu_ns = self.cgroup.cpu_ns().or_else(|| host::cpu_ns(&self.roots));
        let now = Busy {
            at: Instant::now(),
            cpu_ns: cpu_ns.unwrap_or(0),
            throttled_ns: self.cgroup.throttled_ns(),
        };
        let Some(before) = self.busy.replace(now) else {
            return (0.0, 0.0);
        };
        let elapsed = now.at.duration_since(before.at).as_nanos().max(1) as f64;
        let used = now.cpu_ns.saturating_sub(before.cpu_ns) as f64;
        let held = now.throttled_ns.saturating_sub(before.throttled_ns) as f64;
        (
            (used / elapsed / cpus).clamp(0.0, 1.0),
            (held / elapsed).clamp(0.0, 1.0),
        )
    }

    fn memory(&self) -> (u64, u64) {
        let (host_total, host_free) = host::memory(&self.roots).unwrap_or((0, 0));
        match self.cgroup.memory() {
            Some((limit, used)) if limit < host_total || host_total == 0 => {
                (limit, limit.saturating_sub(used).min(host_free))
            }
            _ => (host_total, host_free),
        }
    }
}

#[cfg(test)]
mod tests;
