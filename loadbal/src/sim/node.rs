//! One simulated node.

use std::time::Duration;

use proto::ids::{NodeId, Pid};
use rand::Rng;
use rand::rngs::StdRng;

use super::Noise;
use crate::balancer::{Balancer, Capacity, NodeSample};
use crate::decide::{Candidate, Move};
use crate::load::{Observation, ProcessKey};
use crate::tuning::Tuning;

/// What a simulated node can do.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct NodeSpec {
    /// Usable CPUs.
    pub cpus: f64,
    /// Speed of one.
    pub speed: f64,
    /// Memory in bytes.
    pub memory: u64,
}

impl Default for NodeSpec {
    fn default() -> Self {
        Self {
            cpus: 1.0,
            speed: 1.0,
            memory: 1 << 30,
        }
    }
}

/// A job that computes and then ends.
#[derive(Clone, PartialEq, Debug)]
pub struct Job {
    /// At home.
    pub pid: Pid,
    /// Where it was started.
    pub home: NodeId,
    /// Bytes it holds.
    pub memory: u64,
    /// It may move.
    pub balanced: bool,
    left: Duration,
    started: Duration,
    here_since: Duration,
    moves: u32,
}

impl Job {
    /// A balanced job started at `now` with so much work on a standard CPU.
    #[must_use]
    pub fn new(pid: Pid, home: NodeId, now: Duration, work: Duration, memory: u64) -> Self {
        Self {
            pid,
            home,
            memory,
            balanced: true,
            left: work,
            started: now,
            here_since: now,
            moves: 0,
        }
    }

    pub(super) fn arrived(mut self, now: Duration) -> Self {
        self.here_since = now;
        self.moves += 1;
        self
    }

    fn key(&self) -> ProcessKey {
        ProcessKey {
            pid: self.pid.0,
            start_ticks: u64::try_from(self.here_since.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// One simulated node.
#[derive(Debug)]
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// The code under test.
    pub balancer: Balancer,
    /// What runs here.
    pub jobs: Vec<Job>,
    spec: NodeSpec,
    next_command: i32,
}

impl Node {
    pub(super) fn new(id: NodeId, spec: NodeSpec, tuning: &Tuning, seed: u64) -> Self {
        let seed = seed ^ u64::from(id.0) << 32;
        Self {
            id,
            balancer: Balancer::new(id, tuning.clone(), seed, 1),
            jobs: Vec::new(),
            spec,
            next_command: 1_000_000,
        }
    }

    pub(super) fn meet(&mut self, everybody: &[NodeId]) {
        let others = everybody.iter().copied().filter(|id| *id != self.id);
        self.balancer.set_members(others.collect(), Vec::new());
    }

    pub(super) fn has_jobs(&self) -> bool {
        self.job_count() > 0
    }

    pub(super) fn job_count(&self) -> usize {
        self.jobs.iter().filter(|job| job.balanced).count()
    }

    /// Lets the jobs share the CPUs for one step; answers those that ended.
    pub(super) fn work(&mut self, _now: Duration, step: Duration) -> Vec<Pid> {
        let share = (self.spec.cpus / self.jobs.len().max(1) as f64).min(1.0) * self.spec.speed;
        let done = step.mul_f64(share);
        let mut ended = Vec::new();
        self.jobs.retain_mut(|job| {
            job.left = job.left.saturating_sub(done);
            let runs = !job.left.is_zero();
            if !runs && job.balanced {
                ended.push(job.pid);
            }
            runs
        });
        ended
    }

    /// Somebody types a command now and then.
    pub(super) fn disturb(&mut self, now: Duration, noise: Noise, rng: &mut StdRng) {
        if !rng.random_bool(noise.commands) {
            return;
        }
        let work = Duration::from_millis(rng.random_range(250..1000));
        self.next_command += 1;
        let mut command = Job::new(Pid(self.next_command), self.id, now, work, 1 << 20);
        command.balanced = false;
        self.jobs.push(command);
    }

    pub(super) fn sample(&mut self, now: Duration, noise: Noise, rng: &mut StdRng) {
        let mut observations = Vec::with_capacity(self.jobs.len());
        for job in &self.jobs {
            observations.push(Observation {
                key: job.key(),
                runnable: u32::from(!rng.random_bool(noise.unseen)),
                age: now.saturating_sub(job.here_since),
                guest: job.home != self.id,
            });
        }
        let guests = self.jobs.iter().filter(|job| job.home != self.id);
        let sample = NodeSample {
            capacity: self.capacity(),
            observations,
            guests: guests.map(|job| (job.home, job.pid)).collect(),
            local_jobs: 0,
        };
        self.balancer.observe(now, &sample);
    }

    fn capacity(&self) -> Capacity {
        let used: u64 = self.jobs.iter().map(|job| job.memory).sum();
        Capacity {
            cpus: self.spec.cpus,
            speed: self.spec.speed,
            memory_total: self.spec.memory,
            memory_free: self.spec.memory.saturating_sub(used),
            utilisation: (self.jobs.len() as f64 / self.spec.cpus).min(1.0),
        }
    }

    pub(super) fn decide(&mut self, now: Duration) -> Vec<Move> {
        let balanced = self.jobs.iter().filter(|job| job.balanced);
        let candidates: Vec<Candidate> = balanced
            .map(|job| Candidate {
                key: job.key(),
                pid: job.pid,
                home: job.home,
                demand: self.balancer.demand(job.key()).mean,
                memory: job.memory,
                age: now.saturating_sub(job.started),
                resident: now.saturating_sub(job.here_since),
                automatic_moves: job.moves,
            })
            .collect();
        self.balancer.decide(now, &candidates)
    }

    pub(super) fn take(&mut self, key: ProcessKey) -> Option<Job> {
        let at = self.jobs.iter().position(|job| job.key() == key)?;
        Some(self.jobs.swap_remove(at))
    }
}
