//! Memory ushering: before a node runs out of memory, a process leaves it, whatever the CPUs say
//! (Barak & Braverman, Memory Ushering in a Scalable Computing Cluster, 1998).

use proto::ids::NodeId;

use super::{Candidate, Model, Reason, fits};
use crate::tuning::Tuning;

/// The smallest process that cures the shortage, else the largest one; and the node where it
/// leaves most memory free.
pub(super) fn choose(
    model: &Model,
    candidates: &[&Candidate],
    tuning: &Tuning,
) -> Option<(Candidate, NodeId, Reason)> {
    let reserve = model.me.memory_total as f64 * tuning.memory_reserve;
    let short = reserve - model.me.memory_free as f64;
    if short <= 0.0 || model.me.memory_total == 0 {
        return None;
    }
    let curing = candidates.iter().filter(|c| c.memory as f64 >= short);
    let chosen = curing
        .min_by_key(|c| c.memory)
        .or_else(|| candidates.iter().max_by_key(|c| c.memory))?;
    let target = model
        .others
        .iter()
        .filter(|node| !node.blocked || node.id == chosen.home)
        .filter(|node| fits(node, chosen.memory, tuning))
        .max_by_key(|node| node.memory_free)?;
    Some(((*chosen).clone(), target.id, Reason::Memory))
}
