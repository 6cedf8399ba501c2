//! A map that keys from outside cannot make grow.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// Holds at most a fixed number of entries; a new one displaces the one not used for longest.
#[derive(Debug)]
pub struct BoundedMap<K, V> {
    entries_max: usize,
    entries: HashMap<K, (V, u64)>,
    /// Keys by when they were last used.
    order: BTreeMap<u64, K>,
    uses: u64,
}

impl<K: Clone + Eq + Hash, V> BoundedMap<K, V> {
    /// An empty map of at most `entries_max` entries (at least one).
    #[must_use]
    pub fn new(entries_max: usize) -> Self {
        Self {
            entries_max: entries_max.max(1),
            entries: HashMap::new(),
            order: BTreeMap::new(),
            uses: 0,
        }
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entry of a key, made by `make` if there is none; counts as its use.
    pub fn get_or_insert_with(&mut self, key: &K, make: impl FnOnce() -> V) -> &mut V {
        self.uses += 1;
        let now = self.uses;
        match self.entries.get(key) {
            Some((_, last)) => drop(self.order.remove(last)),
            None => self.make_room(),
        }
        self.order.insert(now, key.clone());
        let entry = self.entries.entry(key.clone());
        let entry = entry.or_insert_with(|| (make(), now));
        entry.1 = now;
        &mut entry.0
    }

    /// The entry of a key; no use of it.
    #[must_use]
    pub fn peek(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(value, _)| value)
    }

    /// Takes an entry out.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let (value, last) = self.entries.remove(key)?;
        self.order.remove(&last);
        Some(value)
    }

    fn make_room(&mut self) {
        if self.entries.len() >= self.entries_max
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.entries.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_not_used_for_longest_goes() {
        let mut map = BoundedMap::new(2);
        *map.get_or_insert_with(&1, || 0) += 1;
        map.get_or_insert_with(&2, || 0);
        *map.get_or_insert_with(&1, || 0) += 1;
        map.get_or_insert_with(&3, || 0);
        assert_eq!((map.peek(&1), map.peek(&2), map.len()), (Some(&2), None, 2));
        assert_eq!(map.remove(&1), Some(2));
        assert_eq!(map.remove(&1), None);
        assert!(!map.is_empty());
    }

    proptest! {
        #[test]
        fn it_never_grows_and_keeps_the_latest(keys in prop::collection::vec(0_u8..20, 1..200)) {
            let mut map = BoundedMap::new(5);
            for (at, key) in keys.iter().enumerate() {
                map.get_or_insert_with(key, || ());
                prop_assert!(map.len() <= 5);
                prop_assert_eq!(map.entries.len(), map.order.len());
                let mut latest: Vec<u8> = Vec::new();
                for key in keys[..=at].iter().rev() {
                    if !latest.contains(key) && latest.len() < 5 {
                        latest.push(*key);
                    }
                }
                prop_assert!(latest.iter().all(|key| map.peek(key).is_some()));
            }
        }
    }
}
