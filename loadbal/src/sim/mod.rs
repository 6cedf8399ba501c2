//! Many balancers on a simulated clock: the daemon's code, with processes that only count down.
//!
//! Everything follows from the seed, so a run can be repeated exactly.

mod node;
mod report;

use std::time::Duration;

use proto::ids::{NodeId, Pid};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::admit::Request;
use crate::balancer::Outcome;
use crate::decide::{Move, move_time};
use crate::tuning::Tuning;
pub use node::{Job, Node, NodeSpec};
pub use report::Report;

/// How a simulated cluster misbehaves.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Noise {
    /// Chance that a running job is seen waiting in a sample.
    pub unseen: f64,
    /// Chance per step and node that a command of half a second to two seconds starts.
    pub commands: f64,
}

#[derive(Clone, Debug)]
struct Flight {
    job: Job,
    decided: Move,
    from: NodeId,
    arrives: Duration,
}

/// A simulated cluster; node ids are 1 to N.
#[derive(Debug)]
pub struct Simulation {
    nodes: Vec<Node>,
    flights: Vec<Flight>,
    tuning: Tuning,
    noise: Noise,
    rng: StdRng,
    now: Duration,
    next_pid: i32,
    moves: Vec<Duration>,
    finished: Vec<(Pid, Duration)>,
}

impl Simulation {
    /// A cluster of such nodes, idle.
    #[must_use]
    pub fn new(specs: &[NodeSpec], tuning: &Tuning, noise: Noise, seed: u64) -> Self {
        let ids = (1..).map(NodeId);
        let mut nodes: Vec<Node> = ids
            .zip(specs)
            .map(|(id, spec)| Node::new(id, *spec, tuning, seed))
            .collect();
        let everybody: Vec<NodeId> = nodes.iter().map(|node| node.id).collect();
        for node in &mut nodes {
            node.meet(&everybody);
        }
        Self {
            nodes,
            flights: Vec::new(),
            tuning: tuning.clone(),
            noise,
            rng: StdRng::seed_from_u64(seed),
            now: Duration::from_secs(1000),
            next_pid: 100,
            moves: Vec::new(),
            finished: Vec::new(),
        }
    }

    /// Starts jobs on a node: so many, each with so much work on a standard CPU.
    pub fn start(&mut self, node: u32, count: usize, work: Duration, memory: u64) {
        for _ in 0..count {
            let job = Job::new(Pid(self.next_pid), NodeId(node), self.now, work, memory);
            self.next_pid += 1;
            if let Some(node) = self.node_mut(NodeId(node)) {
                node.jobs.push(job);
            }
        }
    }

    fn node_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        self.nodes.get_mut((id.0 as usize).wrapping_sub(1))
    }

    /// Runs for so long.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    /// Runs until no job is left, at most so long.
    pub fn run_out(&mut self, limit: Duration) {
        let end = self.now + limit;
        let busy = |s: &Self| !s.flights.is_empty() || s.nodes.iter().any(Node::has_jobs);
        while self.now < end && busy(self) {
            self.step();
        }
    }

    /// One step: jobs run, are sampled, vectors are exchanged, moves decided.
    pub fn step(&mut self) {
        self.now += self.tuning.step;
        self.land();
        for node in &mut self.nodes {
            let done = node.work(self.now, self.tuning.step);
            self.finished
                .extend(done.into_iter().map(|pid| (pid, self.now)));
            node.disturb(self.now, self.noise, &mut self.rng);
            node.sample(self.now, self.noise, &mut self.rng);
        }
        self.gossip();
        for index in 0..self.nodes.len() {
            let moves = self.nodes.get_mut(index).map(|node| node.decide(self.now));
            for decided in moves.unwrap_or_default() {
                self.depart(index, decided);
            }
        }
    }

    fn gossip(&mut self) {
        for index in 0..self.nodes.len() {
            let Some(node) = self.nodes.get_mut(index) else {
                continue;
            };
            let Some(peer) = node.balancer.gossip_peer() else {
                continue;
            };
            let message = node.balancer.message(self.now);
            let now = self.now;
            let Some(other) = self.node_mut(peer) else {
                continue;
            };
            other.balancer.receive(now, &message);
            let answer = other.balancer.message(now);
            if let Some(node) = self.nodes.get_mut(index) {
                node.balancer.receive(now, &answer);
            }
        }
    }

    fn depart(&mut self, index: usize, decided: Move) {
        let now = self.now;
        let Some(job) = self.nodes.get_mut(index).and_then(|n| n.take(decided.key)) else {
            return;
        };
        let request = Request {
            home: job.home,
            pid: job.pid,
            memory: job.memory,
            believed: Some(decided.believed),
        };
        let going_home = decided.target == job.home;
        let target = self.node_mut(decided.target);
        let admitted = target.is_some_and(|t| going_home || t.balancer.admit(now, request).is_ok());
        let Some(node) = self.nodes.get_mut(index) else {
            return;
        };
        if !admitted {
            let (key, target) = (decided.key, decided.target);
            node.jobs.push(job);
            node.balancer.finished(now, key, target, Outcome::Refused);
            return;
        }
        let jitter = 0.8 + 0.4 * self.rng.random::<f64>();
        let arrives = now + move_time(job.memory, &self.tuning).mul_f64(jitter);
        self.moves.push(now);
        self.flights.push(Flight {
            from: node.id,
            job,
            decided,
            arrives,
        });
    }

    fn land(&mut self) {
        let now = self.now;
        let (landed, flying): (Vec<Flight>, Vec<Flight>) = std::mem::take(&mut self.flights)
            .into_iter()
            .partition(|flight| flight.arrives <= now);
        self.flights = flying;
        for flight in landed {
            let (key, target) = (flight.decided.key, flight.decided.target);
            if let Some(node) = self.node_mut(flight.from) {
                node.balancer.finished(now, key, target, Outcome::Moved);
            }
            if let Some(node) = self.node_mut(target) {
                node.jobs.push(flight.job.arrived(now));
            }
        }
    }

    /// What happened so far.
    #[must_use]
    pub fn report(&self) -> Report {
        Report {
            now: self.now,
            jobs_per_node: self.nodes.iter().map(Node::job_count).collect(),
            in_flight: self.flights.len(),
            moves: self.moves.clone(),
            finished: self.finished.clone(),
        }
    }

    /// Jobs on one node that are not at home there.
    #[must_use]
    pub fn guests(&self, node: u32) -> usize {
        let node = self.nodes.get((node as usize).wrapping_sub(1));
        node.map_or(0, |node| {
            node.jobs.iter().filter(|job| job.home != node.id).count()
        })
    }
}
