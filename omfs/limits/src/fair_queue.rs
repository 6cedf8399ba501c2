//! Work that waits for a thread: each key in turn, so that one key's backlog delays no other's.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// How much work there may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shares {
    /// Of one key, under way.
    pub running_per_key: usize,
    /// Of one key, waiting.
    pub waiting_per_key: usize,
    /// Of all keys, waiting.
    pub waiting: usize,
}

#[derive(Debug)]
struct OfKey<J> {
    waiting: VecDeque<J>,
    running: usize,
    /// It is in `turns`.
    has_turn: bool,
}

/// Jobs by key.
#[derive(Debug)]
pub struct FairQueue<K, J> {
    shares: Shares,
    keys: HashMap<K, OfKey<J>>,
    /// Keys that have a job waiting and may run one more.
    turns: VecDeque<K>,
    waiting: usize,
}

impl<K: Clone + Eq + Hash, J> FairQueue<K, J> {
    /// Nothing waits.
    #[must_use]
    pub fn new(shares: Shares) -> Self {
        Self {
            shares,
            keys: HashMap::new(),
            turns: VecDeque::new(),
            waiting: 0,
        }
    }

    /// Adds a job.
    ///
    /// # Errors
    /// The job, when there is no room for it.
    pub fn push(&mut self, key: K, job: J) -> Result<(), J> {
        let waiting = self.keys.get(&key).map_or(0, |of_key| of_key.waiting.len());
        if self.waiting >= self.shares.waiting || waiting >= self.shares.waiting_per_key {
            return Err(job);
        }
        let of_key = self.keys.entry(key.clone()).or_insert_with(|| OfKey {
            waiting: VecDeque::new(),
            running: 0,
            has_turn: false,
        });
        of_key.waiting.push_back(job);
        self.waiting += 1;
        self.give_turn(&key);
        Ok(())
    }

    /// The next job; it is under way until [`done`](Self::done).
    pub fn pop(&mut self) -> Option<(K, J)> {
        let key = self.turns.pop_front()?;
        let of_key = self.keys.get_mut(&key)?;
        of_key.has_turn = false;
        let job = of_key.waiting.pop_front()?;
        of_key.running += 1;
        self.waiting -= 1;
        self.give_turn(&key);
        Some((key, job))
    }

    /// A job has ended.
    pub fn done(&mut self, key: &K) {
        let Some(of_key) = self.keys.get_mut(key) else {
            return;
        };
        of_key.running = of_key.running.saturating_sub(1);
        if of_key.running == 0 && of_key.waiting.is_empty() {
            self.keys.remove(key);
        } else {
            self.give_turn(key);
        }
    }

    /// How many jobs could be taken at once.
    #[must_use]
    pub fn ready(&self) -> usize {
        let of_key = |key| {
            self.keys.get(key).map_or(0, |of_key: &OfKey<J>| {
                let more = self.shares.running_per_key.saturating_sub(of_key.running);
                of_key.waiting.len().min(more)
            })
        };
        self.turns.iter().map(of_key).sum()
    }

    /// How many jobs wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    fn give_turn(&mut self, key: &K) {
        let most = self.shares.running_per_key;
        if let Some(of_key) = self.keys.get_mut(key)
            && !of_key.has_turn
            && !of_key.waiting.is_empty()
            && of_key.running < most
        {
            of_key.has_turn = true;
            self.turns.push_back(key.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SHARES: Shares = Shares {
        running_per_key: 2,
        waiting_per_key: 5,
        waiting: 12,
    };

    #[test]
    fn one_keys_backlog_delays_no_other_key() {
        let mut queue = FairQueue::new(SHARES);
        for job in 0..5 {
            queue.push('a', job).unwrap();
        }
        assert_eq!(queue.push('a', 5), Err(5));
        queue.push('b', 10).unwrap();
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(
            order,
            [('a', 0), ('b', 10), ('a', 1)],
            "two of a key at the same time"
        );
        queue.done(&'a');
        assert_eq!(queue.pop(), Some(('a', 2)));
        assert_eq!((queue.pop(), queue.len()), (None, 2));
    }

    proptest! {
        #[test]
        fn shares_hold_order_is_kept_and_nothing_is_lost(
            steps in prop::collection::vec((0_u8..4, 0_u8..4), 1..300)
        ) {
            let mut queue = FairQueue::new(SHARES);
            let mut waiting: HashMap<u8, VecDeque<usize>> = HashMap::new();
            let mut running: Vec<u8> = Vec::new();
            for (job, (key, step)) in steps.into_iter().enumerate() {
                match step {
                    0 | 1 => {
                        let of_key = waiting.entry(key).or_default();
                        let before = of_key.len();
                        if queue.push(key, job).is_ok() {
                            prop_assert!(before < SHARES.waiting_per_key);
                            waiting.entry(key).or_default().push_back(job);
                        }
                    }
                    2 => {
                        let may = |of: &u8| {
                            running.iter().filter(|one| *one == of).count() < SHARES.running_per_key
                        };
                        let any = waiting.iter().any(|(key, jobs)| !jobs.is_empty() && may(key));
                        match queue.pop() {
                            Some((key, job)) => {
                                prop_assert!(may(&key));
                                let first = waiting.get_mut(&key).and_then(VecDeque::pop_front);
                                prop_assert_eq!(first, Some(job));
                                running.push(key);
                            }
                            None => prop_assert!(!any, "a job waits for nothing"),
                        }
                    }
                    _ => if let Some(at) = running.iter().position(|one| *one == key) {
                        running.swap_remove(at);
                        queue.done(&key);
                    }
                }
                let all: usize = waiting.values().map(VecDeque::len).sum();
                prop_assert_eq!(queue.len(), all);
                prop_assert!(all <= SHARES.waiting);
                let idle = all == 0 && running.is_empty();
                prop_assert!(!idle || queue.keys.is_empty(), "nothing is remembered of the idle");
            }
        }
    }
}
