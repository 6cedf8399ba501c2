//! How much of something each key, and all keys together, hold.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many may be held at the same time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caps {
    /// By one key.
    pub per_key: usize,
    /// By all keys together.
    pub total: usize,
}

/// Which limit was reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Full {
    /// That of the key itself.
    Key,
    /// That of all keys together.
    Total,
}

#[derive(Debug)]
struct Held<K> {
    by_key: HashMap<K, usize>,
    total: usize,
}

/// Counts what is held; clones count together.
#[derive(Debug)]
pub struct Permits<K: Eq + Hash> {
    caps: Caps,
    held: Arc<Mutex<Held<K>>>,
}

impl<K: Eq + Hash> Clone for Permits<K> {
    fn clone(&self) -> Self {
        Self {
            caps: self.caps,
            held: Arc::clone(&self.held),
        }
    }
}

/// Permission for one of something, until it is dropped.
#[derive(Debug)]
pub struct Permit<K: Eq + Hash> {
    key: K,
    held: Arc<Mutex<Held<K>>>,
}

fn lock<K>(held: &Mutex<Held<K>>) -> MutexGuard<'_, Held<K>> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Clone + Eq + Hash> Permits<K> {
    /// Nothing is held yet.
    #[must_use]
    pub fn new(caps: Caps) -> Self {
        let held = Held {
            by_key: HashMap::new(),
            total: 0,
        };
        Self {
            caps,
            held: Arc::new(Mutex::new(held)),
        }
    }

    /// Takes one for a key.
    ///
    /// # Errors
    /// The limit that was reached; nothing has changed.
    pub fn take(&self, key: K) -> Result<Permit<K>, Full> {
        self.take_within(key, self.caps)
    }

    /// Takes one as if the limits were others, which reserves room for some callers.
    ///
    /// # Errors
    /// The limit that was reached; nothing has changed.
    pub fn take_within(&self, key: K, caps: Caps) -> Result<Permit<K>, Full> {
        let mut held = lock(&self.held);
        let of_key = held.by_key.get(&key).copied().unwrap_or(0);
        if of_key >= caps.per_key {
            return Err(Full::Key);
        }
        if held.total >= caps.total {
            return Err(Full::Total);
        }
        held.by_key.insert(key.clone(), of_key + 1);
        held.total += 1;
        drop(held);
        Ok(Permit {
            key,
            held: Arc::clone(&self.held),
        })
    }

    /// How many a key holds.
    #[must_use]
    pub fn held_by(&self, key: &K) -> usize {
        lock(&self.held).by_key.get(key).copied().unwrap_or(0)
    }

    /// How many all keys hold.
    #[must_use]
    pub fn held(&self) -> usize {
        lock(&self.held).total
    }
}

impl<K: Eq + Hash> Drop for Permit<K> {
    fn drop(&mut self) {
        let mut held = lock(&self.held);
        held.total = held.total.saturating_sub(1);
        if let Some(count) = held.by_key.get_mut(&self.key) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                held.by_key.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CAPS: Caps = Caps {
        per_key: 3,
        total: 8,
    };

    #[test]
    fn a_key_cannot_take_what_is_left_for_others() {
        let permits = Permits::new(CAPS);
        let taken: Vec<_> = (0..3).map(|_| permits.take(1).unwrap()).collect();
        assert_eq!(permits.take(1).err(), Some(Full::Key));
        let other = permits.take(2).unwrap();
        assert_eq!((permits.held_by(&1), permits.held()), (3, 4));
        drop(taken);
        assert!(permits.take(1).is_ok());
        drop(other);
        assert!(
            lock(&permits.held).by_key.is_empty(),
            "nothing is remembered of who is gone"
        );
    }

    #[test]
    fn reserved_room_is_there_when_all_else_is_taken() {
        let permits = Permits::new(CAPS);
        let _all: Vec<_> = (0..8).filter_map(|key| permits.take(key).ok()).collect();
        assert_eq!(permits.take(99).err(), Some(Full::Total));
        let reserved = Caps { total: 10, ..CAPS };
        assert!(permits.take_within(99, reserved).is_ok());
    }

    proptest! {
        #[test]
        fn counts_are_those_of_a_model(steps in prop::collection::vec((0_u8..5, any::<bool>()), 1..300)) {
            let permits = Permits::new(CAPS);
            let mut held: Vec<(u8, Permit<u8>)> = Vec::new();
            for (key, take) in steps {
                let of_key = held.iter().filter(|(of, _)| *of == key).count();
                if take {
                    let wanted = if of_key >= CAPS.per_key {
                        Some(Full::Key)
                    } else {
                        (held.len() >= CAPS.total).then_some(Full::Total)
                    };
                    let got = permits.take(key);
                    prop_assert_eq!(got.as_ref().err().copied(), wanted);
                    held.extend(got.ok().map(|permit| (key, permit)));
                } else if let Some(at) = held.iter().position(|(of, _)| *of == key) {
                    drop(held.swap_remove(at));
                }
                prop_assert_eq!(permits.held(), held.len());
                let of_key = held.iter().filter(|(of, _)| *of == key).count();
                prop_assert_eq!(permits.held_by(&key), of_key);
            }
        }
    }
}
