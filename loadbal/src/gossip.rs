//! What is known of other nodes, and what is told to them.
//!
//! Every step a node sends the freshest vectors it knows, its own first, to one random node, and
//! gets as many back: message size and cost do not depend on the number of nodes (MOSIX' "mindead"
//! mode: mostly living nodes, now and then a dead one, so that a healed partition is found).

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::Duration;

use proto::ids::NodeId;
use proto::v1::{LoadVector, LoadWindow};
use rand::Rng;
use rand::seq::IndexedRandom;

use crate::tuning::Tuning;
use crate::vector::NodeLoad;

/// Vectors of one message that are looked at; more are ignored.
const MERGE_MAX: usize = 256;

/// The vectors this node remembers of others.
#[derive(Clone, Debug)]
pub struct Window {
    me: NodeId,
    known: HashMap<NodeId, NodeLoad>,
    stored_max: usize,
    age_max: Duration,
    sent_max: usize,
}

impl Window {
    /// An empty window of node `me`.
    #[must_use]
    pub fn new(me: NodeId, tuning: &Tuning) -> Self {
        Self {
            me,
            known: HashMap::new(),
            stored_max: tuning.window_stored.max(1),
            age_max: tuning.age_max,
            sent_max: tuning.window.max(1),
        }
    }

    /// Takes over what a message knows better: newer measurements of others that are not too old.
    pub fn merge(&mut self, now: Duration, message: &LoadWindow) {
        for wire in message.vectors.iter().take(MERGE_MAX) {
            let Ok(vector) = NodeLoad::from_wire(wire, now) else {
                continue;
            };
            let fresh = vector.id != self.me && vector.age(now) <= self.age_max;
            let newer = |old: &NodeLoad| old.sequence < vector.sequence;
            if fresh && self.known.get(&vector.id).is_none_or(newer) {
                self.known.insert(vector.id, vector);
            }
        }
        self.forget(now);
    }

    /// Forgets vectors that are too old, and the oldest ones when there are too many.
    pub fn forget(&mut self, now: Duration) {
        self.known
            .retain(|_, vector| vector.age(now) <= self.age_max);
        if self.known.len() > self.stored_max {
            let oldest_kept = self
                .newest(self.stored_max)
                .last()
                .map(|vector| rank(vector));
            self.known
                .retain(|_, vector| oldest_kept.is_none_or(|kept| rank(vector) <= kept));
        }
    }

    /// Forgets one node, as it died.
    pub fn remove(&mut self, node: NodeId) {
        self.known.remove(&node);
    }

    /// The message to send: `own` (absent while this node is quiet) and the freshest others.
    #[must_use]
    pub fn message(&self, now: Duration, own: Option<&NodeLoad>) -> LoadWindow {
        let others = self.newest(self.sent_max).into_iter();
        let vectors: Vec<LoadVector> = own
            .into_iter()
            .chain(others.filter(|vector| vector.age(now) <= self.age_max))
            .take(self.sent_max)
            .map(|vector| vector.to_wire(now))
            .collect();
        LoadWindow { vectors }
    }

    /// All vectors that are known, newest measurement first.
    pub fn freshest(&self) -> impl Iterator<Item = &NodeLoad> {
        self.newest(usize::MAX).into_iter()
    }

    fn newest(&self, count: usize) -> Vec<&NodeLoad> {
        let mut vectors: Vec<&NodeLoad> = self.known.values().collect();
        if count < vectors.len() {
            vectors.select_nth_unstable_by_key(count, |vector| rank(vector));
            vectors.truncate(count);
        }
        vectors.sort_unstable_by_key(|vector| rank(vector));
        vectors
    }

    /// What is known of one node.
    #[must_use]
    pub fn of(&self, node: NodeId) -> Option<&NodeLoad> {
        self.known.get(&node)
    }
}

/// Newest first; the id makes the order the same in every run.
fn rank(vector: &NodeLoad) -> (Reverse<Duration>, NodeId) {
    (Reverse(vector.measured_at), vector.id)
}

/// Whom to send to in this step; nobody when there is no other node.
pub fn choose_peer(
    rng: &mut impl Rng,
    alive: &[NodeId],
    dead: &[NodeId],
    tuning: &Tuning,
) -> Option<NodeId> {
    let try_dead = !dead.is_empty() && rng.random_ratio(1, tuning.dead_one_in.max(1));
    let from = if try_dead { dead } else { alive };
    from.choose(rng).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::tests::idle;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn window() -> Window {
        Window::new(NodeId(1), &Tuning::default())
    }

    fn told(vectors: &[NodeLoad], now: Duration) -> LoadWindow {
        LoadWindow {
            vectors: vectors.iter().map(|vector| vector.to_wire(now)).collect(),
        }
    }

    #[test]
    fn newer_measurements_win_whatever_the_order_of_arrival() {
        let (old, new) = (
            idle(2),
            NodeLoad {
                sequence: 2,
                load: 4.0,
                ..idle(2)
            },
        );
        for order in [[&old, &new], [&new, &old]] {
            let mut window = window();
            for vector in order {
                window.merge(at(101), &told(std::slice::from_ref(vector), at(101)));
            }
            assert_eq!(window.of(NodeId(2)).unwrap().sequence, 2);
        }
    }

    #[test]
    fn nobody_tells_me_my_own_load_and_old_news_are_forgotten() {
        let mut window = window();
        window.merge(at(101), &told(&[idle(1), idle(2)], at(101)));
        assert!(window.of(NodeId(1)).is_none());
        assert!(window.of(NodeId(2)).is_some());
        window.forget(at(111));
        assert!(window.of(NodeId(2)).is_none());
        window.merge(at(120), &told(&[idle(2)], at(120)));
        assert!(window.of(NodeId(2)).is_none());
    }

    #[test]
    fn a_quiet_node_passes_on_others_but_not_itself() {
        let mut window = window();
        window.merge(at(101), &told(&[idle(2)], at(101)));
        let ids = |own: Option<&NodeLoad>| -> Vec<u32> {
            let message = window.message(at(101), own);
            message
                .vectors
                .iter()
                .map(|vector| vector.node_id)
                .collect()
        };
        assert_eq!(ids(Some(&idle(1))), [1, 2]);
        assert_eq!(ids(None), [2]);
    }

    #[test]
    fn now_and_then_a_dead_node_is_tried() {
        let mut rng = StdRng::seed_from_u64(1);
        let tuning = Tuning::default();
        let mut tried = 0;
        for _ in 0..1600 {
            let chosen = choose_peer(&mut rng, &[NodeId(2)], &[NodeId(3)], &tuning);
            tried += u32::from(chosen == Some(NodeId(3)));
        }
        assert!((50..200).contains(&tried), "{tried}");
        assert_eq!(choose_peer(&mut rng, &[], &[], &tuning), None);
    }

    proptest! {
        #[test]
        fn sizes_stay_bounded_whatever_arrives(
            ids in prop::collection::vec((1u32..2000, 0u64..50, 0u64..20), 0..600),
        ) {
            let mut window = window();
            let vectors: Vec<NodeLoad> = ids
                .iter()
                .map(|&(id, sequence, age)| NodeLoad {
                    sequence,
                    measured_at: at(100 - age),
                    ..idle(id)
                })
                .collect();
            window.merge(at(100), &told(&vectors, at(100)));
            prop_assert!(window.freshest().count() <= Tuning::default().window_stored);
            let message = window.message(at(100), Some(&idle(1)));
            prop_assert!(message.vectors.len() <= Tuning::default().window);
            prop_assert_eq!(message.vectors[0].node_id, 1);
        }
    }
}
