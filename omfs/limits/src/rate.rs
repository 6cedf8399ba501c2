//! How often somebody may ask.

use std::hash::Hash;
use std::time::{Duration, Instant};

use crate::bounded::BoundedMap;

/// A rate with a burst.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    /// So many at once,
    pub burst: u32,
    /// and one more after each such time.
    pub interval: Duration,
}

/// A bucket of tokens: each request takes one, time brings them back.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    rate: Rate,
    /// When the bucket would be full again.
    full_at: Instant,
}

impl TokenBucket {
    /// A full bucket.
    #[must_use]
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, full_at: now }
    }

    /// Takes a token.
    ///
    /// # Errors
    /// How long the caller has to wait for one.
    pub fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let full_at = self.full_at.max(now) + self.rate.interval;
        let burst = self.rate.interval * self.rate.burst.max(1);
        match full_at.saturating_duration_since(now).checked_sub(burst) {
            Some(wait) if !wait.is_zero() => Err(wait),
            _ => {
                self.full_at = full_at;
                Ok(())
            }
        }
    }
}

/// A bucket per key, for a bounded number of keys.
#[derive(Debug)]
pub struct KeyedRate<K> {
    rate: Rate,
    buckets: BoundedMap<K, TokenBucket>,
}

impl<K: Clone + Eq + Hash> KeyedRate<K> {
    /// Remembers at most `keys_max` keys; a forgotten one starts with a full bucket.
    #[must_use]
    pub fn new(rate: Rate, keys_max: usize) -> Self {
        Self {
            rate,
            buckets: BoundedMap::new(keys_max),
        }
    }

    /// Takes a token of a key's bucket.
    ///
    /// # Errors
    /// How long the caller has to wait for one.
    pub fn take(&mut self, key: &K, now: Instant) -> Result<(), Duration> {
        let rate = self.rate;
        let bucket = self
            .buckets
            .get_or_insert_with(key, || TokenBucket::new(rate, now));
        bucket.take(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RATE: Rate = Rate {
        burst: 3,
        interval: Duration::from_millis(100),
    };

    #[test]
    fn a_burst_passes_and_the_rest_waits() {
        let now = Instant::now();
        let mut bucket = TokenBucket::new(RATE, now);
        assert!((0..3).all(|_| bucket.take(now).is_ok()));
        assert_eq!(bucket.take(now), Err(RATE.interval));
        assert_eq!(bucket.take(now + RATE.interval), Ok(()));
        assert!(bucket.take(now + RATE.interval).is_err());
    }

    #[test]
    fn one_keys_flood_costs_no_other_key_anything() {
        let now = Instant::now();
        let mut rates = KeyedRate::new(RATE, 8);
        while rates.take(&1, now).is_ok() {}
        assert!(rates.take(&2, now).is_ok());
    }

    proptest! {
        #[test]
        fn never_more_than_burst_and_rate_allow(pauses in prop::collection::vec(0_u64..300, 1..200)) {
            let start = Instant::now();
            let mut now = start;
            let mut bucket = TokenBucket::new(RATE, now);
            let mut taken = 0_u128;
            for pause in pauses {
                now += Duration::from_millis(pause);
                match bucket.take(now) {
                    Ok(()) => taken += 1,
                    // After that time there is a token, and not before.
                    Err(wait) => {
                        prop_assert!(bucket.clone().take(now + wait).is_ok());
                        prop_assert!(bucket.clone().take(now + wait / 2).is_err());
                    }
                }
                let elapsed = (now - start).as_millis();
                prop_assert!(taken <= u128::from(RATE.burst) + elapsed / RATE.interval.as_millis());
            }
        }
    }
}
