//! Every constant of the balancer, with its unit and where it comes from.

use std::time::Duration;

/// The balancer's constants; [`Tuning::default`] is what runs unless the configuration says
/// otherwise.
#[derive(Clone, PartialEq, Debug)]
pub struct Tuning {
    /// Between two samples of the sensors, and between two gossip messages (MOSIX: 500 ms).
    pub step: Duration,
    /// Between two decisions (MOSIX: once per second; twice here, as a dozen jobs leave in rounds).
    pub decide_every: Duration,
    /// Part of a process' mean demand that is kept per second (MOSIX: 5/8).
    pub mean_keep: f64,
    /// Part of a process' upper demand that is kept per second while it falls (MOSIX: 7/8).
    pub upper_keep: f64,
    /// A move must leave this many times the process' own load between both nodes (MOSIX: 130 %).
    pub stability_margin: f64,
    /// A move must make the process faster by this part at least, however crowded both nodes are.
    pub gain_min: f64,
    /// How much heavier a node's own work counts than guests, so that owners get their node back.
    pub own_work_weight: f64,
    /// Own load from which on a node counts as used by its owner, in tasks.
    pub own_work_min: f64,
    /// Processes younger than this never move: most of them are about to end.
    pub age_min: Duration,
    /// Processes that want less of a CPU than this are not worth moving, in tasks.
    pub demand_min: f64,
    /// Stay after a first automatic move; doubled with each further one.
    pub residence_min: Duration,
    /// Longest required stay.
    pub residence_max: Duration,
    /// What a move costs however small the process is.
    pub move_fixed: Duration,
    /// Memory sent per second, in bytes, until measured otherwise.
    pub bandwidth: f64,
    /// The time won must be this many times the time spent on moving.
    pub gain_factor: f64,
    /// Moves decided in one round.
    pub moves_per_round: usize,
    /// Moves of small processes under way at once from one node: most of such a move is waiting.
    pub moves_at_once: usize,
    /// A process with more memory than this, in bytes, counts as [`Self::large_weight`] moves, since
    /// large ones share the node's link.
    pub large_bytes: u64,
    /// How many small moves a large one counts as.
    pub large_weight: usize,
    /// A node with less than this part of its memory free is about to run out (MOSIX: about 1/16).
    pub memory_reserve: f64,
    /// Guests that may be on their way to one node at once, per CPU or part of one.
    pub incoming_per_cpu: usize,
    /// By how much a node's load may exceed what the sender believed, in tasks.
    pub believed_slack: f64,
    /// How long a promised place is kept for a guest that does not come.
    pub incoming_expiry: Duration,
    /// Vectors in one gossip message (MOSIX ships 16; 32 keeps 64 nodes younger than 5 steps).
    pub window: usize,
    /// Vectors remembered.
    pub window_stored: usize,
    /// Vectors older than this are forgotten.
    pub age_max: Duration,
    /// One gossip message in this many goes to a node believed dead.
    pub dead_one_in: u32,
    /// A target that refused is left alone for so long.
    pub refused_for: Duration,
    /// A process whose move went wrong on the way is left alone for so long; doubled each time, to 16
    /// times.
    pub failed_for: Duration,
    /// A process that could not be moved is left alone for so long; doubled each time, to 16 times.
    pub cantmove_for: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            step: Duration::from_millis(500),
            decide_every: Duration::from_millis(500),
            mean_keep: 5.0 / 8.0,
            upper_keep: 7.0 / 8.0,
            stability_margin: 1.3,
            gain_min: 0.1,
            own_work_weight: 1.5,
            own_work_min: 0.7,
            age_min: Duration::from_secs(2),
            demand_min: 0.3,
            residence_min: Duration::from_secs(3),
            residence_max: Duration::from_secs(60),
            move_fixed: Duration::from_millis(300),
            bandwidth: 1e8,
            gain_factor: 1.5,
            moves_per_round: 16,
            moves_at_once: 16,
            large_bytes: 32 << 20,
            large_weight: 4,
            memory_reserve: 1.0 / 16.0,
            incoming_per_cpu: 2,
            believed_slack: 0.5,
            incoming_expiry: Duration::from_secs(10),
            window: 32,
            window_stored: 128,
            age_max: Duration::from_secs(10),
            dead_one_in: 16,
            refused_for: Duration::from_secs(2),
            failed_for: Duration::from_secs(2),
            cantmove_for: Duration::from_secs(30),
        }
    }
}

impl Tuning {
    /// What a move of so much memory counts as, in small ones.
    #[must_use]
    pub fn weight(&self, memory: u64) -> usize {
        if memory > self.large_bytes {
            self.large_weight
        } else {
            1
        }
    }

    /// The stay required of a process that was moved automatically so many times.
    #[must_use]
    pub fn residence(&self, automatic_moves: u32) -> Duration {
        let doubled = self
            .residence_min
            .saturating_mul(1 << automatic_moves.saturating_sub(1).min(10));
        match automatic_moves {
            0 => Duration::ZERO,
            _ => doubled.min(self.residence_max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_large_moves_are_as_many_as_sixteen_small_ones() {
        let tuning = Tuning::default();
        let large = tuning.weight(tuning.large_bytes + 1);
        assert_eq!((tuning.weight(tuning.large_bytes), large), (1, 4));
        assert_eq!(4 * large, tuning.moves_at_once);
    }

    #[test]
    fn the_required_stay_doubles_up_to_its_limit() {
        let tuning = Tuning::default();
        let stays = [0, 1, 2, 3, 40].map(|moves| tuning.residence(moves).as_secs());
        assert_eq!(stays, [0, 3, 6, 12, 60]);
    }
}
