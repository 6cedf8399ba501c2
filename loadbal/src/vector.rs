//! A node's load as it is told to others.

use std::time::Duration;

use proto::ids::NodeId;
use proto::v1::LoadVector;

/// The CPU that has speed 1.0, as the wire counts it.
const STANDARD_SPEED: f64 = 10_000.0;
/// Largest number of CPUs, speed or load believed of anybody.
const BELIEVABLE: f64 = 1e6;

/// One node as the decision sees it.
#[derive(Clone, PartialEq, Debug)]
pub struct NodeLoad {
    /// Which node.
    pub id: NodeId,
    /// Grows with every measurement at the source, across its restarts too.
    pub sequence: u64,
    /// When it was measured, by this node's clock.
    pub measured_at: Duration,
    /// Usable CPUs, quota respected.
    pub cpus: f64,
    /// Speed of one of them; 1.0 is the standard CPU.
    pub speed: f64,
    /// Runnable tasks, smoothed; guests on their way included.
    pub load: f64,
    /// The part of it that is not guests.
    pub own: f64,
    /// Memory in bytes.
    pub memory_total: u64,
    /// Memory in bytes that is free or can be freed at once.
    pub memory_free: u64,
    /// Guests there, those on their way included.
    pub guests: u32,
    /// Takes no guests.
    pub blocked: bool,
    /// Busy share of the usable CPUs.
    pub utilisation: f64,
    /// Jobs marked for balancing that are at home there.
    pub local_jobs: u32,
}

/// Why a vector from outside is not believed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a load vector with an impossible node id, CPU count or speed")]
pub struct BadVector;

impl NodeLoad {
    /// Reads a vector that arrived at `now`.
    ///
    /// # Errors
    /// Values no node can have.
    pub fn from_wire(wire: &LoadVector, now: Duration) -> Result<Self, BadVector> {
        let cpus = f64::from(wire.cpus_milli) / 1000.0;
        let speed = f64::from(wire.speed) / STANDARD_SPEED;
        let id_ok = (1..=NodeId::MAX).contains(&wire.node_id);
        if !id_ok || wire.cpus_milli == 0 || wire.speed == 0 || cpus * speed > BELIEVABLE {
            return Err(BadVector);
        }
        let load = (f64::from(wire.load_milli) / 1000.0).min(BELIEVABLE);
        Ok(Self {
            id: NodeId(wire.node_id),
            sequence: wire.sequence,
            measured_at: now.saturating_sub(Duration::from_millis(wire.age_ms.into())),
            cpus,
            speed,
            load,
            own: (f64::from(wire.own_load_milli) / 1000.0).min(load),
            memory_total: wire.mem_total_bytes,
            memory_free: wire.mem_free_bytes.min(wire.mem_total_bytes),
            guests: wire.guests,
            blocked: wire.blocked,
            utilisation: (f64::from(wire.utilisation_milli) / 1000.0).min(1.0),
            local_jobs: wire.local_jobs,
        })
    }

    /// The vector as it is sent at `now`.
    #[must_use]
    pub fn to_wire(&self, now: Duration) -> LoadVector {
        LoadVector {
            node_id: self.id.0,
            sequence: self.sequence,
            age_ms: millis(self.age(now)),
            cpus_milli: milli(self.cpus).max(1),
            speed: rounded(self.speed * STANDARD_SPEED).max(1),
            load_milli: milli(self.load),
            mem_total_bytes: self.memory_total,
            mem_free_bytes: self.memory_free,
            guests: self.guests,
            blocked: self.blocked,
            utilisation_milli: milli(self.utilisation),
            local_jobs: self.local_jobs,
            own_load_milli: milli(self.own),
        }
    }

    /// Time since it was measured.
    #[must_use]
    pub fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.measured_at)
    }

    /// How long one unit of work of a single task takes here if `load` tasks run: 1.0 on a
    /// standard CPU of its own.
    #[must_use]
    pub fn slowdown(&self, load: f64) -> f64 {
        let crowd = (load / self.cpus).max(1.0);
        crowd.max(1.0 / self.cpus) / self.speed
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// Thousandths, as the wire counts.
#[must_use]
pub fn milli(value: f64) -> u32 {
    rounded(value * 1000.0)
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn rounded(value: f64) -> u32 {
    value.round().clamp(0.0, f64::from(u32::MAX)) as u32
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn idle(id: u32) -> NodeLoad {
        NodeLoad {
            id: NodeId(id),
            sequence: 1,
            measured_at: Duration::from_secs(100),
            cpus: 1.0,
            speed: 1.0,
            load: 0.0,
            own: 0.0,
            memory_total: 1 << 30,
            memory_free: 1 << 29,
            guests: 0,
            blocked: false,
            utilisation: 0.0,
            local_jobs: 0,
        }
    }

    #[test]
    fn a_vector_survives_the_wire_and_keeps_its_age() {
        let now = Duration::from_secs(103);
        let node = NodeLoad {
            load: 2.5,
            own: 1.25,
            cpus: 0.12,
            guests: 1,
            ..idle(7)
        };
        let there = Duration::from_secs(9);
        let read = NodeLoad::from_wire(&node.to_wire(now), there).unwrap();
        assert_eq!(read.age(there), Duration::from_secs(3));
        let expected = NodeLoad {
            measured_at: read.measured_at,
            ..node
        };
        assert_eq!(read, expected);
    }

    #[test]
    fn a_part_of_a_cpu_slows_a_single_task_down_and_spare_cpus_do_not_speed_it_up() {
        let mut node = idle(1);
        assert!((node.slowdown(3.0) - 3.0).abs() < 1e-9);
        node.cpus = 4.0;
        assert!((node.slowdown(3.0) - 1.0).abs() < 1e-9);
        node.cpus = 0.125;
        assert!((node.slowdown(1.0) - 8.0).abs() < 1e-9);
        assert!((node.slowdown(0.1) - 8.0).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn no_vector_from_outside_gives_numbers_that_are_none(
            node_id: u32, cpus_milli: u32, speed: u32, load_milli: u32, age_ms: u32, free: u64,
        ) {
            let wire = LoadVector {
                node_id, cpus_milli, speed, load_milli, age_ms,
                mem_free_bytes: free,
                ..LoadVector::default()
            };
            if let Ok(node) = NodeLoad::from_wire(&wire, Duration::from_secs(1)) {
                prop_assert!(node.slowdown(node.load).is_finite());
                prop_assert!(node.memory_free <= node.memory_total);
                prop_assert!((1..=NodeId::MAX).contains(&node.id.0));
            }
        }
    }
}
