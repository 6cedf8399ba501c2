//! The balancer of one node: the daemon feeds it samples and messages and carries out its moves;
//! the simulator does the same with a thousand of them.

use std::collections::HashMap;
use std::time::Duration;

use proto::ids::{NodeId, Pid};
use proto::v1::LoadWindow;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::admit::{Incoming, Refusal, Request, Room};
use crate::decide::{self, Candidate, Model, Move};
use crate::gossip::{self, Window};
use crate::load::{Demand, LoadTracker, Observation, ProcessKey};
use crate::tuning::Tuning;
use crate::vector::NodeLoad;

/// What a node can do.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Capacity {
    /// Usable CPUs, quota respected.
    pub cpus: f64,
    /// Speed of one; 1.0 is the standard CPU.
    pub speed: f64,
    /// Bytes in all.
    pub memory_total: u64,
    /// Bytes free or to be freed at once.
    pub memory_free: u64,
    /// Busy share of the usable CPUs.
    pub utilisation: f64,
}

/// What is seen of a node at one moment.
#[derive(Clone, PartialEq, Debug)]
pub struct NodeSample {
    /// What it can do.
    pub capacity: Capacity,
    /// Its processes, deputies and the daemon's own left out.
    pub observations: Vec<Observation>,
    /// Guests that are there.
    pub guests: Vec<(NodeId, Pid)>,
    /// Marked jobs that are at home here.
    pub local_jobs: u32,
}

/// The admin's switches, with openMosix' meanings.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Policy {
    /// Nothing leaves automatically.
    pub stay: bool,
    /// This node's own processes do not leave automatically; guests may.
    pub local_stay: bool,
    /// No guests come in.
    pub block: bool,
    /// Does not tell others its load.
    pub quiet: bool,
}

/// How a decided move ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It runs at the target.
    Moved,
    /// The target refused or could not be reached.
    Refused,
    /// It was tried and went wrong on the way; the process runs on.
    Failed,
    /// The process cannot be moved.
    Cantmove,
}

/// A move of ours that the target's vector may not show yet.
#[derive(Clone, Copy, Debug)]
struct Bound {
    key: ProcessKey,
    target: NodeId,
    demand: f64,
    memory: u64,
    finished: Option<Duration>,
    forget: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Stuck {
    times: u32,
    until: Duration,
}

/// A finished move is counted at its target at most so long, should no newer vector arrive.
const BOUND_MAX: Duration = Duration::from_secs(5);
/// A move that nobody finished is forgotten after this.
const MOVE_MAX: Duration = Duration::from_secs(600);

/// See the module's documentation.
#[derive(Debug)]
pub struct Balancer {
    me: NodeId,
    tuning: Tuning,
    policy: Policy,
    tracker: LoadTracker,
    window: Window,
    incoming: Incoming,
    rng: StdRng,
    sequence: u64,
    sampled: Option<(Duration, Capacity)>,
    guests: usize,
    local_jobs: u32,
    alive: Vec<NodeId>,
    dead: Vec<NodeId>,
    bound: Vec<Bound>,
    refused: HashMap<NodeId, Duration>,
    stuck: HashMap<ProcessKey, Stuck>,
}

impl Balancer {
    /// A balancer of node `me`. `sequence` must be larger than any this node used before: the
    /// wall clock in milliseconds will do.
    #[must_use]
    pub fn new(me: NodeId, tuning: Tuning, seed: u64, sequence: u64) -> Self {
        Self {
            me,
            window: Window::new(me, &tuning),
            tuning,
            policy: Policy::default(),
            tracker: LoadTracker::default(),
            incoming: Incoming::default(),
            rng: StdRng::seed_from_u64(seed),
            sequence,
            sampled: None,
            guests: 0,
            local_jobs: 0,
            alive: Vec::new(),
            dead: Vec::new(),
            bound: Vec::new(),
            refused: HashMap::new(),
            stuck: HashMap::new(),
        }
    }

    /// The constants in force.
    #[must_use]
    pub fn tuning(&self) -> &Tuning {
        &self.tuning
    }

    /// Takes over measured memory bandwidth of moves, in bytes per second.
    pub fn set_bandwidth(&mut self, bytes_per_s: f64) {
        self.tuning.bandwidth = bytes_per_s.clamp(1e5, 1e11);
    }

    /// The admin's switches in force.
    #[must_use]
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// Sets the admin's switches.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// Sets who else is in the cluster.
    pub fn set_members(&mut self, alive: Vec<NodeId>, dead: Vec<NodeId>) {
        for node in &dead {
            self.window.remove(*node);
        }
        self.alive = alive;
        self.dead = dead;
    }

    /// Takes one sample.
    pub fn observe(&mut self, now: Duration, sample: &NodeSample) {
        let before = self.sampled.map_or(Duration::ZERO, |(at, _)| at);
        let elapsed = match self.sampled {
            Some(_) => now.saturating_sub(before),
            None => self.tuning.step,
        };
        self.tracker
            .step(elapsed, &sample.observations, &self.tuning);
        for (home, pid) in &sample.guests {
            self.incoming.gone(*home, *pid);
        }
        self.incoming.expire(now);
        self.window.forget(now);
        self.sampled = Some((now, sample.capacity));
        self.guests = sample.guests.len();
        self.local_jobs = sample.local_jobs;
        self.sequence += 1;
        self.expire(now);
    }

    fn expire(&mut self, now: Duration) {
        let window = &self.window;
        self.bound.retain(|bound| {
            let shown = |at: Duration| window.of(bound.target).is_some_and(|v| v.measured_at > at);
            bound.forget > now && !bound.finished.is_some_and(shown)
        });
        self.refused.retain(|_, until| *until > now);
        let forget_after = self.tuning.cantmove_for * 16;
        self.stuck
            .retain(|_, stuck| stuck.until + forget_after > now);
    }

    /// This node as others see it; `None` before the first sample.
    #[must_use]
    pub fn vector(&self) -> Option<NodeLoad> {
        let load = self.tracker.exported(self.incoming.count());
        let own = self.tracker.own(&self.tuning, |_| false);
        self.node(load, own)
    }

    /// This node as its own decisions see it: by the slow load, without what is leaving.
    fn local(&self) -> Option<NodeLoad> {
        let leaving = |key| self.is_leaving(key);
        let load = self.tracker.local(&self.tuning, leaving) + self.incoming.count() as f64;
        self.node(load, self.tracker.own(&self.tuning, leaving))
    }

    fn node(&self, load: f64, own: f64) -> Option<NodeLoad> {
        let (measured_at, capacity) = self.sampled?;
        let guests = self.guests + self.incoming.count();
        Some(NodeLoad {
            id: self.me,
            sequence: self.sequence,
            measured_at,
            cpus: capacity.cpus,
            speed: capacity.speed,
            load,
            own: own.min(load),
            memory_total: capacity.memory_total,
            memory_free: capacity.memory_free.saturating_sub(self.incoming.memory()),
            guests: u32::try_from(guests).unwrap_or(u32::MAX),
            blocked: self.policy.block,
            utilisation: capacity.utilisation,
            local_jobs: self.local_jobs,
        })
    }

    /// Smoothed demand of one process.
    #[must_use]
    pub fn demand(&self, key: ProcessKey) -> Demand {
        self.tracker.of(key)
    }

    /// Whether this node needs its CPU or memory for itself: then even guests go that were placed
    /// here by hand.
    #[must_use]
    pub fn is_pressed(&self) -> bool {
        self.local().is_some_and(|me| {
            let reserve = me.memory_total as f64 * self.tuning.memory_reserve;
            me.own >= self.tuning.own_work_min || (me.memory_free as f64) < reserve
        })
    }

    /// What is known of the others, newest first.
    pub fn others(&self) -> impl Iterator<Item = &NodeLoad> {
        self.window.freshest()
    }

    /// The gossip message of this moment.
    #[must_use]
    pub fn message(&self, now: Duration) -> LoadWindow {
        let own = self.vector().filter(|_| !self.policy.quiet);
        self.window.message(now, own.as_ref())
    }

    /// Takes over a gossip message.
    pub fn receive(&mut self, now: Duration, message: &LoadWindow) {
        self.window.merge(now, message);
        for node in &self.dead {
            self.window.remove(*node);
        }
    }

    /// Whom to send to in this step.
    pub fn gossip_peer(&mut self) -> Option<NodeId> {
        gossip::choose_peer(&mut self.rng, &self.alive, &self.dead, &self.tuning)
    }

    /// Whether a process is on its way already.
    #[must_use]
    pub fn is_leaving(&self, key: ProcessKey) -> bool {
        self.bound
            .iter()
            .any(|bound| bound.key == key && bound.finished.is_none())
    }

    /// Decides what is to move now; each move must be answered by [`Self::finished`].
    pub fn decide(&mut self, now: Duration, candidates: &[Candidate]) -> Vec<Move> {
        self.expire(now);
        let under_way = self.bound.iter().filter(|b| b.finished.is_none());
        let under_way: usize = under_way.map(|b| self.tuning.weight(b.memory)).sum();
        let at_once = self.tuning.moves_at_once.saturating_sub(under_way);
        let limit = at_once.min(self.tuning.moves_per_round);
        let Some(me) = self.local().filter(|_| !self.policy.stay && limit > 0) else {
            return Vec::new();
        };
        let allowed: Vec<Candidate> = candidates
            .iter()
            .filter(|candidate| self.allowed(now, candidate))
            .cloned()
            .collect();
        if allowed.is_empty() {
            return Vec::new();
        }
        let others = self.targets();
        let model = Model { me, others };
        let mut moves = decide::decide(model, &allowed, limit, &self.tuning);
        self.cut(&mut moves, &allowed, at_once);
        self.remember(now, &moves, &allowed);
        moves
    }

    /// Leaves out what is too much at once; it is decided anew later.
    fn cut(&self, moves: &mut Vec<Move>, candidates: &[Candidate], room: usize) {
        let mut used = 0;
        let fitting = moves.iter().take_while(|decided| {
            let candidate = candidates.iter().find(|c| c.key == decided.key);
            used += self.tuning.weight(candidate.map_or(0, |c| c.memory));
            used <= room
        });
        let count = fitting.count();
        moves.truncate(count);
    }

    fn allowed(&self, now: Duration, candidate: &Candidate) -> bool {
        let own = candidate.home == self.me;
        let stuck = self.stuck.get(&candidate.key);
        !(own && self.policy.local_stay)
            && stuck.is_none_or(|stuck| stuck.until <= now)
            && !self.is_leaving(candidate.key)
    }

    fn targets(&self) -> Vec<NodeLoad> {
        let known = self.window.freshest();
        let willing = known.filter(|node| !self.refused.contains_key(&node.id));
        let mut targets: Vec<NodeLoad> = willing.cloned().collect();
        for bound in &self.bound {
            if let Some(target) = targets.iter_mut().find(|node| node.id == bound.target) {
                decide::arrive(target, bound.demand, bound.memory);
            }
        }
        targets
    }

    fn remember(&mut self, now: Duration, moves: &[Move], candidates: &[Candidate]) {
        for decided in moves {
            let candidate = candidates.iter().find(|c| c.key == decided.key);
            self.bound.push(Bound {
                key: decided.key,
                target: decided.target,
                demand: candidate.map_or(1.0, |c| c.demand),
                memory: candidate.map_or(0, |c| c.memory),
                finished: None,
                forget: now + MOVE_MAX,
            });
        }
    }

    /// Takes note of how a decided move ended.
    pub fn finished(&mut self, now: Duration, key: ProcessKey, target: NodeId, outcome: Outcome) {
        let moved = outcome == Outcome::Moved;
        self.bound
            .retain(|bound| moved || bound.key != key || bound.finished.is_some());
        for bound in self.bound.iter_mut().filter(|bound| bound.key == key) {
            bound.finished = bound.finished.or(Some(now));
            bound.forget = bound.forget.min(now + BOUND_MAX);
        }
        match outcome {
            Outcome::Moved => {
                self.stuck.remove(&key);
            }
            Outcome::Refused => {
                self.refused.insert(target, now + self.tuning.refused_for);
            }
            Outcome::Failed => {
                self.refused.insert(target, now + self.tuning.refused_for);
                self.stuck_again(now, key, self.tuning.failed_for);
            }
            Outcome::Cantmove => self.stuck_again(now, key, self.tuning.cantmove_for),
        }
    }

    fn stuck_again(&mut self, now: Duration, key: ProcessKey, first: Duration) {
        let times = self.stuck.get(&key).map_or(0, |stuck| stuck.times);
        let wait = first * (1 << times.min(4));
        let stuck = Stuck {
            times: times + 1,
            until: now + wait,
        };
        self.stuck.insert(key, stuck);
    }

    /// Answers a node that wants to send a process here.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn admit(&mut self, now: Duration, request: Request) -> Result<(), Refusal> {
        let room = self.room();
        self.incoming.admit(now, request, room, &self.tuning)
    }

    fn room(&self) -> Room {
        let capacity = self.sampled.map(|(_, capacity)| capacity);
        Room {
            blocked: self.policy.block,
            load: self.tracker.exported(self.incoming.count()),
            cpus: capacity.map_or(1.0, |capacity| capacity.cpus),
            memory_free: capacity.map_or(0, |capacity| capacity.memory_free),
            memory_total: capacity.map_or(0, |capacity| capacity.memory_total),
        }
    }

    /// A promised guest will not come.
    pub fn withdrawn(&mut self, home: NodeId, pid: Pid) {
        self.incoming.gone(home, pid);
    }
}
