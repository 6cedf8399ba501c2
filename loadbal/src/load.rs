//! From samples to a load that does not jump.
//!
//! MOSIX smooths one number per node; here every process has its own, because then a process that
//! left or ended takes its whole share with it at once. Per process: the *mean* demand moves to
//! the sample by 3/8 each second and starts at nothing, so that a short burst weighs nothing; the
//! *upper* demand rises at once and falls by 1/8 each second, so that a pause does not attract
//! guests. A node's *local* load, by which it sends processes away, is the sum of the means; its
//! *exported* load, by which others choose it, is the sum of the uppers and of guests on their way.

use std::collections::HashMap;
use std::time::Duration;

use crate::tuning::Tuning;

pub use proto::ids::ProcessId as ProcessKey;

/// One process in one sample.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Observation {
    /// Which process.
    pub key: ProcessKey,
    /// Its threads that ran or waited for a CPU.
    pub runnable: u32,
    /// Time since it was started.
    pub age: Duration,
    /// It is a guest.
    pub guest: bool,
}

/// The smoothed demand of one process, in tasks.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Demand {
    /// Rises and falls slowly.
    pub mean: f64,
    /// Rises at once, falls slowly.
    pub upper: f64,
    guest: bool,
    age: Duration,
}

impl Demand {
    /// A guest was counted as a task while it was on its way, and is likely to wait for its first
    /// pages when it is seen first: until shown otherwise it goes on counting as one.
    fn first(seen: &Observation) -> Self {
        Self {
            upper: if seen.guest { 1.0 } else { 0.0 },
            ..Self::default()
        }
    }
}

/// Smoothed demands of all processes of one node.
#[derive(Clone, Debug, Default)]
pub struct LoadTracker {
    demands: HashMap<ProcessKey, Demand>,
}

/// A process younger than this does not raise the exported load: it is probably a command that
/// ends at once.
const UPPER_AGE_MIN: Duration = Duration::from_secs(1);
/// A gap between samples longer than this counts as this: the machine slept.
const GAP_MAX: Duration = Duration::from_secs(10);

impl LoadTracker {
    /// Takes one sample, `elapsed` after the previous one. Processes that are not in it are gone.
    pub fn step(&mut self, elapsed: Duration, sample: &[Observation], tuning: &Tuning) {
        let seconds = elapsed.min(GAP_MAX).as_secs_f64();
        let mean_keep = tuning.mean_keep.powf(seconds);
        let upper_keep = tuning.upper_keep.powf(seconds);
        let mut next = HashMap::with_capacity(sample.len());
        for seen in sample {
            let before = self.demands.get(&seen.key).copied();
            let before = before.unwrap_or_else(|| Demand::first(seen));
            let now = f64::from(seen.runnable);
            let fallen = before.upper * upper_keep + now * (1.0 - upper_keep);
            let rises = seen.guest || seen.age >= UPPER_AGE_MIN;
            let demand = Demand {
                mean: before.mean * mean_keep + now * (1.0 - mean_keep),
                upper: if rises { fallen.max(now) } else { fallen },
                guest: seen.guest,
                age: seen.age,
            };
            next.insert(seen.key, demand);
        }
        self.demands = next;
    }

    /// Demand of one process; nothing for one that was not sampled.
    #[must_use]
    pub fn of(&self, key: ProcessKey) -> Demand {
        self.demands.get(&key).copied().unwrap_or_default()
    }

    /// The load by which this node sends processes away: means of all processes that are old
    /// enough to last (guests are) and not `leaving`.
    #[must_use]
    pub fn local(&self, tuning: &Tuning, leaving: impl Fn(ProcessKey) -> bool) -> f64 {
        let lasts = |demand: &Demand| demand.guest || demand.age >= tuning.age_min;
        self.total(
            |key, demand| lasts(demand) && !leaving(key),
            |demand| demand.mean,
        )
    }

    /// What the owner's lasting work takes: like [`Self::local`] without guests, and with twice
    /// the age, because a guest that gives way costs two moves if it was for nothing.
    #[must_use]
    pub fn own(&self, tuning: &Tuning, leaving: impl Fn(ProcessKey) -> bool) -> f64 {
        let lasts = |demand: &Demand| !demand.guest && demand.age >= tuning.age_min * 2;
        self.total(
            |key, demand| lasts(demand) && !leaving(key),
            |demand| demand.mean,
        )
    }

    /// The load by which others choose this node, `incoming` guests on their way included.
    #[must_use]
    pub fn exported(&self, incoming: usize) -> f64 {
        let here = self.total(|_, _| true, |demand| demand.upper);
        here + incoming as f64
    }

    fn total(
        &self,
        keep: impl Fn(ProcessKey, &Demand) -> bool,
        value: impl Fn(&Demand) -> f64,
    ) -> f64 {
        let kept = self
            .demands
            .iter()
            .filter(|(key, demand)| keep(**key, demand));
        kept.map(|(_, demand)| value(demand)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn seen(pid: i32, runnable: u32, age_s: u64) -> Observation {
        Observation {
            key: ProcessKey {
                pid,
                start_ticks: 1,
            },
            runnable,
            age: Duration::from_secs(age_s),
            guest: false,
        }
    }

    fn close(left: f64, right: f64) -> bool {
        (left - right).abs() < 1e-9
    }

    #[test]
    fn the_local_load_rises_by_three_eighths_a_second_whatever_the_step() {
        let tuning = Tuning::default();
        let (mut whole, mut halves) = (LoadTracker::default(), LoadTracker::default());
        whole.step(SECOND, &[seen(1, 1, 5)], &tuning);
        halves.step(SECOND / 2, &[seen(1, 1, 5)], &tuning);
        halves.step(SECOND / 2, &[seen(1, 1, 5)], &tuning);
        assert!(close(whole.local(&tuning, |_| false), 3.0 / 8.0));
        assert!(close(halves.local(&tuning, |_| false), 3.0 / 8.0));
    }

    #[test]
    fn the_exported_load_rises_at_once_and_falls_by_an_eighth() {
        let tuning = Tuning::default();
        let mut tracker = LoadTracker::default();
        tracker.step(SECOND, &[seen(1, 2, 5)], &tuning);
        assert!(close(tracker.exported(3), 5.0));
        tracker.step(SECOND, &[seen(1, 0, 6)], &tuning);
        assert!(close(tracker.exported(0), 2.0 * 7.0 / 8.0));
    }

    #[test]
    fn a_process_that_left_takes_its_share_with_it_at_once() {
        let tuning = Tuning::default();
        let mut tracker = LoadTracker::default();
        tracker.step(SECOND, &[seen(1, 1, 5), seen(2, 1, 5)], &tuning);
        tracker.step(SECOND, &[seen(2, 1, 6)], &tuning);
        assert!(close(tracker.exported(0), 1.0));
        let before_leaving = tracker.local(&tuning, |_| false);
        assert!(before_leaving > 0.5);
        assert!(close(tracker.local(&tuning, |key| key.pid == 2), 0.0));
    }

    #[test]
    fn commands_that_end_at_once_are_not_exported() {
        let tuning = Tuning::default();
        let mut tracker = LoadTracker::default();
        tracker.step(SECOND / 2, &[seen(1, 4, 0)], &tuning);
        assert!(tracker.exported(0) < 0.3);
    }

    #[test]
    fn work_counts_as_local_after_two_seconds_and_as_the_owners_after_four() {
        let tuning = Tuning::default();
        let mut tracker = LoadTracker::default();
        for (age_s, local, own) in [(1, false, false), (2, true, false), (4, true, true)] {
            tracker.step(SECOND, &[seen(1, 1, age_s)], &tuning);
            assert_eq!(tracker.local(&tuning, |_| false) > 0.0, local, "{age_s} s");
            assert_eq!(tracker.own(&tuning, |_| false) > 0.0, own, "{age_s} s");
        }
    }

    #[test]
    fn a_guest_that_waits_for_its_first_pages_is_counted() {
        let tuning = Tuning::default();
        let mut tracker = LoadTracker::default();
        let guest = Observation {
            guest: true,
            ..seen(1, 0, 0)
        };
        tracker.step(SECOND, &[guest], &tuning);
        assert!(tracker.exported(0) > 0.8);
    }

    #[test]
    fn guests_are_not_own_work() {
        let tuning = Tuning::default();
        let mut tracker = LoadTracker::default();
        let guest = Observation {
            guest: true,
            ..seen(1, 1, 0)
        };
        tracker.step(SECOND, &[guest], &tuning);
        assert!(close(tracker.own(&tuning, |_| false), 0.0));
        assert!(close(tracker.exported(0), 1.0));
    }
}
