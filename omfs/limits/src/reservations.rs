//! Room for what was promised and has not arrived yet.

use std::collections::HashMap;
use std::hash::Hash;

/// How many may be present or promised.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room {
    /// All together.
    pub total: usize,
    /// Of one owner.
    pub per_owner: usize,
    /// Of one owner, promised and not present.
    pub arriving_per_owner: usize,
}

/// Why nothing was promised.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// It is present or promised already.
    There,
    /// All room is taken: so many are present or promised.
    Full(usize),
    /// The owner has its share: so many of it are present or promised.
    OwnerFull(usize),
    /// So many of the owner are promised and have not arrived.
    TooManyArriving(usize),
}

/// What was promised. A promise lasts until it is taken back: what arrives counts once.
#[derive(Debug)]
pub struct Reservations<K, O> {
    promised: HashMap<K, O>,
}

impl<K, O> Default for Reservations<K, O> {
    fn default() -> Self {
        Self {
            promised: HashMap::new(),
        }
    }
}

impl<K: Clone + Eq + Hash, O: Copy + Eq> Reservations<K, O> {
    /// Promises room for `key` of `owner`, beside what is `present`.
    ///
    /// # Errors
    /// The limit that was reached; nothing has changed.
    pub fn reserve(
        &mut self,
        key: K,
        owner: O,
        present: &HashMap<K, O>,
        room: &Room,
    ) -> Result<(), Refusal> {
        if present.contains_key(&key) || self.promised.contains_key(&key) {
            return Err(Refusal::There);
        }
        let arriving = self.promised.iter();
        let arriving = arriving.filter(|(key, _)| !present.contains_key(key));
        let (mut all, mut arriving_of_owner) = (present.len(), 0);
        for (_, of) in arriving {
            all += 1;
            arriving_of_owner += usize::from(*of == owner);
        }
        let of_owner = arriving_of_owner + present.values().filter(|of| **of == owner).count();
        if all >= room.total {
            return Err(Refusal::Full(all));
        }
        if of_owner >= room.per_owner {
            return Err(Refusal::OwnerFull(of_owner));
        }
        if arriving_of_owner >= room.arriving_per_owner {
            return Err(Refusal::TooManyArriving(arriving_of_owner));
        }
        self.promised.insert(key, owner);
        Ok(())
    }

    /// It has left, or will not come.
    pub fn release(&mut self, key: &K) {
        self.promised.remove(key);
    }

    /// Whether room is promised for `key`.
    #[must_use]
    pub fn has(&self, key: &K) -> bool {
        self.promised.contains_key(key)
    }

    /// How many are promised.
    #[must_use]
    pub fn len(&self) -> usize {
        self.promised.len()
    }

    /// Whether nothing is promised.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.promised.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROOM: Room = Room {
        total: 6,
        per_owner: 4,
        arriving_per_owner: 2,
    };

    #[test]
    fn what_is_promised_counts_before_it_arrives_and_once_afterwards() {
        let mut reservations = Reservations::default();
        let mut present = HashMap::new();
        assert_eq!(reservations.reserve(1, 'a', &present, &ROOM), Ok(()));
        assert_eq!(
            reservations.reserve(1, 'a', &present, &ROOM),
            Err(Refusal::There)
        );
        assert_eq!(reservations.reserve(2, 'a', &present, &ROOM), Ok(()));
        let refused = Err(Refusal::TooManyArriving(2));
        assert_eq!(reservations.reserve(3, 'a', &present, &ROOM), refused);
        present.extend([(1, 'a'), (2, 'a')]);
        assert_eq!(reservations.reserve(3, 'a', &present, &ROOM), Ok(()));
        assert_eq!(reservations.reserve(4, 'a', &present, &ROOM), Ok(()));
        assert_eq!(
            reservations.reserve(5, 'a', &present, &ROOM),
            Err(Refusal::OwnerFull(4))
        );
        assert_eq!(reservations.reserve(6, 'b', &present, &ROOM), Ok(()));
        assert_eq!(reservations.reserve(7, 'b', &present, &ROOM), Ok(()));
        assert_eq!(
            reservations.reserve(8, 'c', &present, &ROOM),
            Err(Refusal::Full(6))
        );
        reservations.release(&7);
        assert_eq!(reservations.reserve(8, 'c', &present, &ROOM), Ok(()));
    }

    proptest! {
        #[test]
        fn never_more_than_there_is_room_for(
            steps in prop::collection::vec((0_u8..12, 0_u8..3, 0_u8..3), 1..300)
        ) {
            let mut reservations = Reservations::default();
            let mut present: HashMap<u8, u8> = HashMap::new();
            for (key, owner, step) in steps {
                match step {
                    0 => drop(reservations.reserve(key, owner, &present, &ROOM)),
                    1 => {
                        if let Some(of) = reservations.promised.get(&key) {
                            present.insert(key, *of);
                        }
                    }
                    _ => {
                        present.remove(&key);
                        reservations.release(&key);
                    }
                }
                let mut all = present.clone();
                all.extend(reservations.promised.iter());
                prop_assert!(all.len() <= ROOM.total);
                for owner in 0..3 {
                    prop_assert!(all.values().filter(|of| **of == owner).count() <= ROOM.per_owner);
                }
            }
        }
    }
}
