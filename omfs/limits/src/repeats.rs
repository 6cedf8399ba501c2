//! One log line per minute for what repeats.

use std::hash::Hash;
use std::time::{Duration, Instant};

use crate::bounded::BoundedMap;

/// A line about the same thing is written at most once in this time.
pub const LINE_INTERVAL: Duration = Duration::from_secs(60);

/// Different things that are remembered.
const KEYS_MAX: usize = 64;

#[derive(Debug)]
struct Repeated {
    last_line: Instant,
    unwritten: u64,
}

/// Counts what happens, and tells when to write a line about it. A key names a kind of event, not
/// who causes it: nobody must be able to write a line of his own for each address.
#[derive(Debug)]
pub struct Repeats<K> {
    seen: BoundedMap<K, Repeated>,
}

impl<K: Clone + Eq + Hash> Default for Repeats<K> {
    fn default() -> Self {
        Self {
            seen: BoundedMap::new(KEYS_MAX),
        }
    }
}

impl<K: Clone + Eq + Hash> Repeats<K> {
    /// Something happened. `Some` when a line is due: how often it has happened since the last line,
    /// this time included.
    pub fn note(&mut self, key: &K, now: Instant) -> Option<u64> {
        let mut is_first = false;
        let repeated = self.seen.get_or_insert_with(key, || {
            is_first = true;
            Repeated {
                last_line: now,
                unwritten: 0,
            }
        });
        repeated.unwritten += 1;
        if !is_first && now.saturating_duration_since(repeated.last_line) < LINE_INTERVAL {
            return None;
        }
        repeated.last_line = now;
        Some(std::mem::take(&mut repeated.unwritten))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_is_told_at_once_and_the_rest_once_a_minute() {
        let now = Instant::now();
        let mut repeats = Repeats::default();
        assert_eq!(repeats.note(&"full", now), Some(1));
        for _ in 0..1000 {
            assert_eq!(repeats.note(&"full", now + LINE_INTERVAL / 2), None);
        }
        assert_eq!(repeats.note(&"silent", now), Some(1));
        assert_eq!(repeats.note(&"full", now + LINE_INTERVAL), Some(1001));
        assert_eq!(repeats.note(&"full", now + LINE_INTERVAL), None);
    }

    proptest! {
        #[test]
        fn lines_are_few_and_lose_no_count(pauses_ms in prop::collection::vec(0_u64..20_000, 1..300)) {
            let start = Instant::now();
            let (mut now, mut lines, mut told) = (start, 0, 0);
            let mut repeats = Repeats::default();
            for (at, pause) in pauses_ms.iter().enumerate() {
                now += Duration::from_millis(*pause);
                if let Some(count) = repeats.note(&(), now) {
                    lines += 1;
                    told += count;
                    prop_assert_eq!(told, at as u64 + 1);
                }
            }
            prop_assert!(lines <= 1 + (now - start).as_secs() / LINE_INTERVAL.as_secs());
        }
    }
}
