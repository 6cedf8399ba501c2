//! What the whole machine has and does.

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::{Pid, SysconfVar, sysconf};

use super::{Roots, parse};

/// CPUs this process may run on: cpusets and CPUs that are offline are taken into account by the
/// kernel.
pub(super) fn allowed_cpus() -> f64 {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else {
        return 1.0;
    };
    let count = (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false));
    count.count().max(1) as f64
}

/// CPU time used by everybody since boot, in nanoseconds (all but idle and iowait of proc(5) stat).
pub(super) fn cpu_ns(roots: &Roots) -> Option<u64> {
    let text = parse::text(&roots.proc.join("stat"))?;
    let line = text.lines().find(|line| line.starts_with("cpu "))?;
    let ticks: Vec<u64> = line
        .split_ascii_whitespace()
        .skip(1)
        .take(8)
        .map_while(|field| field.parse().ok())
        .collect();
    let busy = ticks
        .iter()
        .enumerate()
        .filter(|(at, _)| !matches!(at, 3 | 4));
    let busy = busy.fold(0u64, |sum, (_, ticks)| sum.saturating_add(*ticks));
    Some(busy.saturating_mul(tick_ns()))
}

/// Total memory and what can be had at once, in bytes.
pub(super) fn memory(roots: &Roots) -> Option<(u64, u64)> {
    let text = parse::text(&roots.proc.join("meminfo"))?;
    let bytes = |key| Some(parse::keyed(&text, key)?.saturating_mul(1024));
    Some((bytes("MemTotal")?, bytes("MemAvailable")?))
}

/// Nanoseconds of one clock tick of /proc.
pub(super) fn tick_ns() -> u64 {
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten();
    let per_second = per_second.and_then(|ticks| u64::try_from(ticks).ok());
    1_000_000_000 / per_second.unwrap_or(100).max(1)
}

/// Bytes of one page.
pub(super) fn page_bytes() -> u64 {
    let bytes = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    bytes
        .and_then(|bytes| u64::try_from(bytes).ok())
        .unwrap_or(4096)
}
