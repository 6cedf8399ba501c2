//! The processes of this PID namespace, cheaply: one small file each, threads only where CPU time
//! was used, and idle ones only every few samples.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{Roots, host, parse};
use crate::load::{Observation, ProcessKey};

/// A process that did nothing since the last look is looked at again after so many samples.
const IDLE_EVERY: u32 = 4;
/// Threads looked at one by one; beyond, the CPU time used has to do.
const THREADS_MAX: u32 = 64;
/// Processes remembered.
const PROCESSES_MAX: usize = 65_536;
/// Environments are looked through up to here (the kernel's own limit is 1/4 of the stack limit).
const ENVIRON_BYTES_MAX: u64 = 2 << 20;
/// The variable that marks jobs.
const MARK: &[u8] = b"OMFS_JOB=";

/// One process at one moment.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ProcessSample {
    /// Which process.
    pub key: ProcessKey,
    /// Its parent.
    pub parent: i32,
    /// State letter of proc(5).
    pub state: char,
    /// Its threads.
    pub threads: u32,
    /// Those of them that run or wait for a CPU.
    pub runnable: u32,
    /// Since it was started.
    pub age: Duration,
    /// CPUs used since the previous sample.
    pub cpus: f64,
    /// CPU time used in its life.
    pub cpu_time: Duration,
    /// Resident memory in bytes.
    pub resident: u64,
}

impl ProcessSample {
    /// As the load tracker takes it.
    #[must_use]
    pub fn observation(&self, guest: bool) -> Observation {
        Observation {
            key: self.key,
            runnable: self.runnable,
            age: self.age,
            guest,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    sample: ProcessSample,
    cpu_ticks: u64,
    skip: u32,
}

/// Samples all processes again and again.
#[derive(Debug)]
pub struct Processes {
    roots: Roots,
    tick_ns: u64,
    page_bytes: u64,
    seen: HashMap<i32, Seen>,
    last: Option<Instant>,
    /// Whose threads are not looked at one by one.
    closed: Option<i32>,
}

impl Processes {
    /// Nothing sampled yet.
    #[must_use]
    pub fn new(roots: Roots) -> Self {
        Self {
            roots,
            tick_ns: host::tick_ns().max(1),
            page_bytes: host::page_bytes(),
            seen: HashMap::new(),
            last: None,
            closed: None,
        }
    }

    /// Does not look at the threads of this process one by one: for one that is no load to speak
    /// of, has many threads and is always awake, as the daemon that samples.
    #[must_use]
    pub fn without_threads_of(mut self, pid: i32) -> Self {
        self.closed = Some(pid);
        self
    }

    /// All user processes. The sampling thread itself and kernel threads are left out.
    pub fn sample(&mut self) -> Vec<ProcessSample> {
        let now = Instant::now();
        let elapsed = self.last.map(|last| now.duration_since(last));
        self.last = Some(now);
        let uptime = self.uptime();
        let mut seen = HashMap::with_capacity(self.seen.len());
        for pid in pids(&self.roots.proc).take(PROCESSES_MAX) {
            if let Some(one) = self.look(pid, elapsed, uptime) {
                seen.insert(pid, one);
            }
        }
        self.seen = seen;
        self.seen.values().map(|one| one.sample).collect()
    }

    /// Time since boot in the units of start times, so in this time namespace.
    fn uptime(&self) -> Duration {
        let text = parse::line(&self.roots.proc.join("uptime")).unwrap_or_default();
        let seconds = text.split(' ').next().and_then(|field| field.parse().ok());
        let seconds = seconds.filter(|s: &f64| s.is_finite() && (0.0..1e11).contains(s));
        Duration::from_secs_f64(seconds.unwrap_or(0.0))
    }

    fn look(&self, pid: i32, elapsed: Option<Duration>, uptime: Duration) -> Option<Seen> {
        let before = self.seen.get(&pid);
        if let Some(old) = before.filter(|old| old.skip > 0) {
            let mut idle = *old;
            idle.skip -= 1;
            idle.sample.age += elapsed.unwrap_or_default();
            return Some(idle);
        }
        let directory = self.roots.proc.join(pid.to_string());
        let stat = parse::stat(&parse::line(&directory.join("stat"))?)?;
        if stat.kernel_thread || matches!(stat.state, 'Z' | 'X') {
            return None;
        }
        let before = before.filter(|old| old.sample.key.start_ticks == stat.start_ticks);
        let used = before.map_or(0, |old| stat.cpu_ticks.saturating_sub(old.cpu_ticks));
        let runnable = self.runnable(&directory, pid, &stat, used, before.is_none(), elapsed);
        let idle = before.is_some() && used == 0 && runnable == 0;
        let sample = self.describe(pid, &stat, runnable, used, elapsed, uptime);
        Some(Seen {
            sample,
            cpu_ticks: stat.cpu_ticks,
            skip: if idle { IDLE_EVERY - 1 } else { 0 },
        })
    }

    fn describe(
        &self,
        pid: i32,
        stat: &parse::Stat,
        runnable: u32,
        used_ticks: u64,
        elapsed: Option<Duration>,
        uptime: Duration,
    ) -> ProcessSample {
        let ticks = |count: u64| Duration::from_nanos(count.saturating_mul(self.tick_ns));
        let elapsed = elapsed.map_or(f64::INFINITY, |time| time.as_secs_f64().max(1e-3));
        ProcessSample {
            key: ProcessKey {
                pid,
                start_ticks: stat.start_ticks,
            },
            parent: stat.parent,
            state: stat.state,
            threads: stat.threads,
            runnable,
            age: uptime.saturating_sub(ticks(stat.start_ticks)),
            cpus: ticks(used_ticks).as_secs_f64() / elapsed,
            cpu_time: ticks(stat.cpu_ticks),
            resident: stat.resident_pages.saturating_mul(self.page_bytes),
        }
    }

    fn runnable(
        &self,
        directory: &Path,
        pid: i32,
        stat: &parse::Stat,
        used_ticks: u64,
        new: bool,
        elapsed: Option<Duration>,
    ) -> u32 {
        let leader = u32::from(stat.state == 'R');
        let idle = used_ticks == 0 && leader == 0 && !new;
        if stat.threads <= 1 || idle || self.closed == Some(pid) {
            return leader;
        }
        if stat.threads > THREADS_MAX {
            let used = used_ticks as f64 * self.tick_ns as f64 / 1e9;
            let cpus = used / elapsed.map_or(f64::INFINITY, |time| time.as_secs_f64().max(1e-3));
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            return (cpus.ceil().clamp(0.0, 65_536.0) as u32).max(leader);
        }
        let tasks = directory.join("task");
        let others = pids(&tasks)
            .take(THREADS_MAX as usize)
            .filter(|tid| *tid != pid);
        let running = others.filter(|tid| {
            let line = parse::line(&tasks.join(tid.to_string()).join("stat"));
            line.and_then(|line| parse::stat(&line))
                .is_some_and(|stat| stat.state == 'R')
        });
        leader + u32::try_from(running.count()).unwrap_or(THREADS_MAX)
    }

    /// Memory of a process that would have to be sent: resident and not backed by a file, in
    /// bytes (proc(5) statm).
    #[must_use]
    pub fn private_memory(&self, pid: i32) -> Option<u64> {
        let path = self.roots.proc.join(pid.to_string()).join("statm");
        let text = parse::line(&path)?;
        let mut fields = text.split_ascii_whitespace().skip(1);
        let resident: u64 = fields.next()?.parse().ok()?;
        let shared: u64 = fields.next()?.parse().ok()?;
        Some(
            resident
                .saturating_sub(shared)
                .saturating_mul(self.page_bytes),
        )
    }

    /// The value of `OMFS_JOB` in a process' environment.
    #[must_use]
    pub fn mark(&self, pid: i32) -> Option<String> {
        let path = self.roots.proc.join(pid.to_string()).join("environ");
        let environ = parse::bytes(&path, ENVIRON_BYTES_MAX)?;
        let variables = environ.split(|byte| *byte == 0);
        let value = variables
            .filter_map(|variable| variable.strip_prefix(MARK))
            .next()?;
        Some(String::from_utf8_lossy(value.get(..16).unwrap_or(value)).into_owned())
    }
}

fn pids(directory: &Path) -> impl Iterator<Item = i32> + use<> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}
