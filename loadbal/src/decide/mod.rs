//! Which process is better off where.
//!
//! For every candidate and every node three conditions must hold (docs/balancing.md):
//! 1. *margin*: even if the process weighed 130 % of what it does, it would run faster there;
//! 2. *gain*: it gets noticeably faster, and the time it wins, if it lives as long again as it has
//!    lived, is worth the move;
//! 3. *opportunity cost*: what it takes away from the target's CPU and memory costs the cluster
//!    less than what it takes away here ([`cost`]).
//!
//! Of all pairs the one with the largest saving is taken, the model is changed as if it had
//! happened, and so on: never are two processes sent somewhere without counting the first.
//! A node about to run out of memory sends a process away whatever the CPUs say ([`usher`]).

pub mod cost;
mod usher;

use std::time::Duration;

use proto::ids::{NodeId, Pid};

use crate::load::ProcessKey;
use crate::tuning::Tuning;
use crate::vector::NodeLoad;
use cost::Scale;

/// A process that may move.
#[derive(Clone, PartialEq, Debug)]
pub struct Candidate {
    /// The process as the sensors of this node see it.
    pub key: ProcessKey,
    /// Its PID at home.
    pub pid: Pid,
    /// Its home node.
    pub home: NodeId,
    /// Mean demand, in tasks.
    pub demand: f64,
    /// What would have to be sent, in bytes.
    pub memory: u64,
    /// Since it was started.
    pub age: Duration,
    /// Since its last move; its age if it never moved.
    pub resident: Duration,
    /// How often it was moved automatically.
    pub automatic_moves: u32,
}

/// Why a process is moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// It runs faster there.
    Cpu,
    /// This node is about to run out of memory.
    Memory,
}

impl Reason {
    /// For logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "it runs faster there",
            Self::Memory => "memory runs out here",
        }
    }
}

/// A decision: this process goes to that node.
#[derive(Clone, PartialEq, Debug)]
pub struct Move {
    /// The process as the sensors of this node see it.
    pub key: ProcessKey,
    /// Its PID at home.
    pub pid: Pid,
    /// Its home node.
    pub home: NodeId,
    /// Where it goes; its home node means home.
    pub target: NodeId,
    /// The target's load that this decision believes in, without this move.
    pub believed: f64,
    /// Why.
    pub reason: Reason,
}

/// The state decisions are made on, changed by each of them.
#[derive(Clone, Debug)]
pub struct Model {
    /// This node: `load` is the local load, without what is leaving already.
    pub me: NodeLoad,
    /// Others, moves under way to them included.
    pub others: Vec<NodeLoad>,
}

/// Decides up to `limit` moves of `candidates` away from this node, best first.
#[must_use]
pub fn decide(
    mut model: Model,
    candidates: &[Candidate],
    limit: usize,
    tuning: &Tuning,
) -> Vec<Move> {
    let mut left: Vec<&Candidate> = candidates
        .iter()
        .filter(|candidate| may_move(candidate, tuning))
        .collect();
    let mut moves = Vec::new();
    while moves.len() < limit {
        let found = usher::choose(&model, &left, tuning).or_else(|| best(&model, &left, tuning));
        let Some((candidate, target, reason)) = found else {
            break;
        };
        let believed = apply(&mut model, &candidate, target);
        left.retain(|other| other.key != candidate.key);
        moves.push(Move {
            key: candidate.key,
            pid: candidate.pid,
            home: candidate.home,
            target,
            believed,
            reason,
        });
    }
    moves
}

fn may_move(candidate: &Candidate, tuning: &Tuning) -> bool {
    candidate.age >= tuning.age_min
        && candidate.demand >= tuning.demand_min
        && candidate.resident >= tuning.residence(candidate.automatic_moves)
}

fn best(
    model: &Model,
    candidates: &[&Candidate],
    tuning: &Tuning,
) -> Option<(Candidate, NodeId, Reason)> {
    let scale = Scale::of(model);
    let mut best: Option<(f64, &Candidate, NodeId)> = None;
    for candidate in candidates {
        for target in &model.others {
            let Some(saving) = saving(model, candidate, target, scale, tuning) else {
                continue;
            };
            if best.is_none_or(|(most, ..)| saving > most) {
                best = Some((saving, candidate, target.id));
            }
        }
    }
    best.map(|(_, candidate, target)| (candidate.clone(), target, Reason::Cpu))
}

/// What the cluster saves by this move; `None` if it is not to be done.
fn saving(
    model: &Model,
    candidate: &Candidate,
    target: &NodeLoad,
    scale: Scale,
    tuning: &Tuning,
) -> Option<f64> {
    let at_home_there = target.id == candidate.home;
    if (target.blocked && !at_home_there) || !fits(target, candidate.memory, tuning) {
        return None;
    }
    let demand = candidate.demand;
    let felt = load_here(&model.me, candidate, tuning);
    let here = model.me.slowdown(felt);
    let there = load_there(target, candidate, tuning);
    if target.slowdown(there + demand * tuning.stability_margin) >= here {
        return None;
    }
    let won = 1.0 - target.slowdown(there + demand) / here;
    let spent = move_time(candidate.memory, tuning).mul_f64(tuning.gain_factor);
    if won < tuning.gain_min || candidate.age.mul_f64(won.clamp(0.0, 1.0)) < spent {
        return None;
    }
    let saved = scale.leaving(&model.me, felt, demand, candidate.memory);
    let taken = scale.entering(target, there, demand, candidate.memory);
    (saved > taken).then_some(saved - taken)
}

/// This node's load as one of its processes feels it: a guest feels own work more.
fn load_here(me: &NodeLoad, candidate: &Candidate, tuning: &Tuning) -> f64 {
    let is_guest = candidate.home != me.id;
    me.load
        + if is_guest {
            owners_share(me, tuning)
        } else {
            0.0
        }
}

/// The target's load as the candidate would feel it.
fn load_there(target: &NodeLoad, candidate: &Candidate, tuning: &Tuning) -> f64 {
    let as_guest = candidate.home != target.id;
    target.load
        + if as_guest {
            owners_share(target, tuning)
        } else {
            0.0
        }
}

fn owners_share(node: &NodeLoad, tuning: &Tuning) -> f64 {
    if node.own < tuning.own_work_min {
        return 0.0;
    }
    node.own * (tuning.own_work_weight - 1.0)
}

/// Whether `memory` more bytes leave the target its reserve.
fn fits(target: &NodeLoad, memory: u64, tuning: &Tuning) -> bool {
    let reserve = target.memory_total as f64 * tuning.memory_reserve;
    target.memory_free as f64 - memory as f64 >= reserve
}

/// How long moving so much memory takes.
#[must_use]
pub fn move_time(memory: u64, tuning: &Tuning) -> Duration {
    let sending = memory as f64 / tuning.bandwidth.max(1.0);
    tuning.move_fixed + Duration::from_secs_f64(sending.min(1e6))
}

/// Changes the model as if the move had happened; answers the target's load before it.
fn apply(model: &mut Model, candidate: &Candidate, target: NodeId) -> f64 {
    model.me.load = (model.me.load - candidate.demand).max(0.0);
    if candidate.home == model.me.id {
        model.me.own = (model.me.own - candidate.demand).max(0.0);
    }
    model.me.memory_free = model.me.memory_free.saturating_add(candidate.memory);
    let Some(node) = model.others.iter_mut().find(|node| node.id == target) else {
        return 0.0;
    };
    let before = node.load;
    arrive(node, candidate.demand, candidate.memory);
    before
}

/// Counts a process on its way to a node as being there.
pub fn arrive(node: &mut NodeLoad, demand: f64, memory: u64) {
    node.load += demand.max(1.0);
    node.guests = node.guests.saturating_add(1);
    node.memory_free = node.memory_free.saturating_sub(memory);
}

#[cfg(test)]
mod tests;
