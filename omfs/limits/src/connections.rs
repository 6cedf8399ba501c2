//! Which connection is admitted, which one has to make room, which one is overdue.
//!
//! A connection is *silent* until it has sent something that only a client of the protocol sends; it
//! is *busy* while a request is under way. A newcomer that finds its key's share taken displaces a
//! connection of the same key; one that finds all room taken displaces any. The oldest silent one
//! goes first, then the one that was idle for longest. Busy connections are never displaced.
//!
//! There are three rooms, which do not share their places: a common one, a reserved one for keys that
//! are probably members' (or that are root's), and one for peers that have shown who they are.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Limits of a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Connections of one key in one room.
    pub per_key: usize,
    /// Connections in the common room.
    pub common: usize,
    /// Connections in the reserved room.
    pub reserved: usize,
    /// Connections of peers that have shown who they are.
    pub known: usize,
    /// How long a connection may be silent.
    pub silent_max: Duration,
    /// How long one may be idle, silent no more; a known peer may for ever.
    pub idle_max: Duration,
    /// One that was idle for less than this makes no room for others.
    pub idle_min: Duration,
}

/// Where a connection finds its place.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Room {
    /// For everybody.
    Common,
    /// For keys that are probably members', or that are root's.
    Reserved,
    /// For peers that have shown who they are.
    Known,
}

/// A connection in its table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnectionId(u64);

/// A connection was admitted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Admitted {
    /// Its number from now on.
    pub id: ConnectionId,
    /// The one that makes room for it: it is in the table no more, and has to be closed.
    pub displaced: Option<ConnectionId>,
}

/// A connection was not admitted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Refusal {
    /// The key has its share, and all of it is in use.
    KeyFull,
    /// The room is full, and all of it is in use.
    RoomFull,
}

#[derive(Debug)]
struct Connection<K> {
    key: K,
    room: Room,
    is_silent: bool,
    requests: usize,
    /// When it was admitted, or last had a request.
    idle_since: Instant,
}

/// The connections of one port or socket.
#[derive(Debug)]
pub struct Connections<K> {
    policy: Policy,
    connections: HashMap<ConnectionId, Connection<K>>,
    counts: HashMap<(Room, K), usize>,
    rooms: [usize; 3],
    next: u64,
}

impl<K: Clone + Eq + Hash> Connections<K> {
    /// None yet.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            connections: HashMap::new(),
            counts: HashMap::new(),
            rooms: [0; 3],
            next: 0,
        }
    }

    /// Admits a new, silent connection of `key`.
    ///
    /// # Errors
    /// The limit that was reached; nothing has changed.
    pub fn admit(&mut self, key: K, room: Room, now: Instant) -> Result<Admitted, Refusal> {
        let displaced = self.make_room(&key, room, now)?;
        let id = ConnectionId(self.next);
        self.next += 1;
        let connection = Connection {
            key,
            room,
            is_silent: true,
            requests: 0,
            idle_since: now,
        };
        self.insert(id, connection);
        Ok(Admitted { id, displaced })
    }

    /// A connection has shown that it is `key`'s, which is counted in [`Room::Known`]. Returns the
    /// one that makes room for it; does nothing to a connection that is there already, or gone.
    ///
    /// # Errors
    /// The limit that was reached; it stays where it was.
    pub fn identify(
        &mut self,
        id: ConnectionId,
        key: K,
        now: Instant,
    ) -> Result<Option<ConnectionId>, Refusal> {
        let known = Room::Known;
        match self.connections.get(&id) {
            Some(one) if one.room != known || one.key != key => {}
            _ => return Ok(None),
        }
        let displaced = self.make_room(&key, known, now)?;
        if let Some(before) = self.remove_one(id) {
            let connection = Connection {
                key,
                room: known,
                is_silent: false,
                idle_since: now,
                ..before
            };
            self.insert(id, connection);
        }
        Ok(displaced)
    }

    /// Takes a connection out of the table, if one has to make room.
    fn make_room(
        &mut self,
        key: &K,
        room: Room,
        now: Instant,
    ) -> Result<Option<ConnectionId>, Refusal> {
        let places = match room {
            Room::Common => self.policy.common,
            Room::Reserved => self.policy.reserved,
            Room::Known => self.policy.known,
        };
        let displaced = if self.count(room, key) >= self.policy.per_key {
            let of_key = self.victim(now, |one| one.room == room && one.key == *key);
            Some(of_key.ok_or(Refusal::KeyFull)?)
        } else if self.rooms[room as usize] >= places {
            let of_room = self.victim(now, |one| one.room == room);
            Some(of_room.ok_or(Refusal::RoomFull)?)
        } else {
            None
        };
        if let Some(displaced) = displaced {
            self.remove(displaced);
        }
        Ok(displaced)
    }

    fn insert(&mut self, id: ConnectionId, connection: Connection<K>) {
        let key = (connection.room, connection.key.clone());
        *self.counts.entry(key).or_default() += 1;
        self.rooms[connection.room as usize] += 1;
        self.connections.insert(id, connection);
    }

    /// A connection has shown that it speaks the protocol.
    pub fn spoke(&mut self, id: ConnectionId, now: Instant) {
        if let Some(one) = self.connections.get_mut(&id) {
            one.is_silent = false;
            one.idle_since = now;
        }
    }

    /// A request began.
    pub fn begin(&mut self, id: ConnectionId, now: Instant) {
        self.spoke(id, now);
        if let Some(one) = self.connections.get_mut(&id) {
            one.requests += 1;
        }
    }

    /// A request ended.
    pub fn end(&mut self, id: ConnectionId, now: Instant) {
        if let Some(one) = self.connections.get_mut(&id) {
            one.requests = one.requests.saturating_sub(1);
            one.idle_since = now;
        }
    }

    /// A connection has ended, or became something that is counted elsewhere.
    pub fn remove(&mut self, id: ConnectionId) {
        self.remove_one(id);
    }

    fn remove_one(&mut self, id: ConnectionId) -> Option<Connection<K>> {
        let gone = self.connections.remove(&id)?;
        self.rooms[gone.room as usize] -= 1;
        let key = (gone.room, gone.key.clone());
        if let Some(count) = self.counts.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&key);
            }
        }
        Some(gone)
    }

    /// Takes out the connections that were silent or idle for too long: they have to be closed.
    pub fn take_overdue(&mut self, now: Instant) -> Vec<ConnectionId> {
        let overdue = self.connections.iter().filter(|(_, one)| {
            let most = match one.is_silent {
                true => self.policy.silent_max,
                false => self.policy.idle_max,
            };
            one.room != Room::Known && one.requests == 0 && idle_for(one, now) >= most
        });
        let overdue: Vec<ConnectionId> = overdue.map(|(id, _)| *id).collect();
        overdue.iter().for_each(|id| self.remove(*id));
        overdue
    }

    /// Number of connections.
    #[must_use]
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    fn count(&self, room: Room, key: &K) -> usize {
        let count = self.counts.get(&(room, key.clone()));
        count.copied().unwrap_or(0)
    }

    /// The oldest silent connection, else the one that is idle for longest.
    fn victim(&self, now: Instant, may: impl Fn(&Connection<K>) -> bool) -> Option<ConnectionId> {
        let idle_min = self.policy.idle_min;
        let idle = self.connections.iter().filter(|(_, one)| {
            let is_idle = one.is_silent || idle_for(one, now) >= idle_min;
            may(one) && one.requests == 0 && is_idle
        });
        let first = idle.min_by_key(|(id, one)| (!one.is_silent, one.idle_since, **id));
        first.map(|(id, _)| *id)
    }
}

fn idle_for<K>(one: &Connection<K>, now: Instant) -> Duration {
    now.saturating_duration_since(one.idle_since)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const POLICY: Policy = Policy {
        per_key: 3,
        common: 6,
        reserved: 4,
        known: 4,
        silent_max: Duration::from_secs(5),
        idle_max: Duration::from_secs(60),
        idle_min: Duration::from_secs(1),
    };

    fn admit(table: &mut Connections<u8>, key: u8, now: Instant) -> Result<Admitted, Refusal> {
        table.admit(key, Room::Common, now)
    }

    #[test]
    fn the_oldest_silent_connection_of_the_same_key_goes_first() {
        let now = Instant::now();
        let mut table = Connections::new(POLICY);
        let ids: Vec<_> = (0..3)
            .map(|_| admit(&mut table, 1, now).unwrap().id)
            .collect();
        let other = admit(&mut table, 2, now).unwrap();
        table.spoke(ids[0], now);
        assert_eq!(admit(&mut table, 1, now).unwrap().displaced, Some(ids[1]));
        assert_eq!(admit(&mut table, 1, now).unwrap().displaced, Some(ids[2]));
        assert_eq!((other.displaced, table.len()), (None, 4));
    }

    #[test]
    fn what_speaks_makes_room_only_when_it_is_idle_and_never_when_busy() {
        let now = Instant::now();
        let mut table = Connections::new(POLICY);
        let ids: Vec<_> = (0..3)
            .map(|_| admit(&mut table, 1, now).unwrap().id)
            .collect();
        ids.iter().for_each(|id| table.begin(*id, now));
        table.end(ids[1], now);
        assert_eq!(admit(&mut table, 1, now), Err(Refusal::KeyFull));
        let later = now + POLICY.idle_min;
        assert_eq!(admit(&mut table, 1, later).unwrap().displaced, Some(ids[1]));
        let much_later = now + POLICY.idle_max * 2;
        let overdue = table.take_overdue(much_later);
        assert_eq!(
            (overdue.len(), table.len()),
            (1, 2),
            "busy ones are never overdue"
        );
    }

    #[test]
    fn the_silent_are_overdue_before_the_idle() {
        let now = Instant::now();
        let mut table = Connections::new(POLICY);
        let silent = admit(&mut table, 1, now).unwrap().id;
        let idle = admit(&mut table, 2, now).unwrap().id;
        table.spoke(idle, now);
        assert_eq!(table.take_overdue(now + POLICY.silent_max), [silent]);
        assert_eq!(table.take_overdue(now + POLICY.idle_max), [idle]);
        assert!(table.is_empty() && table.counts.is_empty());
    }

    #[test]
    fn strangers_take_nothing_of_the_reserved_room() {
        let now = Instant::now();
        let mut table = Connections::new(POLICY);
        for key in 0..100 {
            let admitted = admit(&mut table, key, now).unwrap();
            table.begin(admitted.id, now);
            if table.len() == POLICY.common {
                break;
            }
        }
        assert_eq!(admit(&mut table, 200, now), Err(Refusal::RoomFull));
        for key in 0..4 {
            assert!(table.admit(key, Room::Reserved, now).is_ok());
        }
    }

    #[test]
    fn who_is_known_gives_its_place_back_and_is_never_overdue() {
        let now = Instant::now();
        let mut table = Connections::new(POLICY);
        let ids: Vec<_> = (0..3)
            .map(|_| admit(&mut table, 1, now).unwrap().id)
            .collect();
        for id in &ids {
            assert_eq!(table.identify(*id, 50, now), Ok(None));
            assert_eq!(
                table.identify(*id, 50, now),
                Ok(None),
                "it is there already"
            );
        }
        let next = admit(&mut table, 1, now).unwrap();
        assert_eq!(next.displaced, None);
        assert_eq!(table.identify(next.id, 50, now), Err(Refusal::KeyFull));
        let later = now + POLICY.idle_min;
        assert_eq!(table.identify(next.id, 50, later), Ok(Some(ids[0])));
        assert!(table.take_overdue(now + POLICY.idle_max * 2).is_empty());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Admit(u8, bool),
        Identify(usize, u8),
        Begin(usize),
        End(usize),
        Remove(usize),
        Overdue,
    }

    fn steps() -> impl Strategy<Value = Vec<(Step, u64)>> {
        let step = prop_oneof![
            4 => (0_u8..6, any::<bool>()).prop_map(|(key, known)| Step::Admit(key, known)),
            2 => (0_usize..8, 0_u8..3).prop_map(|(at, key)| Step::Identify(at, key)),
            2 => (0_usize..8).prop_map(Step::Begin),
            2 => (0_usize..8).prop_map(Step::End),
            1 => (0_usize..8).prop_map(Step::Remove),
            1 => Just(Step::Overdue),
        ];
        prop::collection::vec((step, 0_u64..3000), 1..200)
    }

    proptest! {
        #[test]
        fn limits_hold_and_counts_are_right_whatever_happens(steps in steps()) {
            let mut now = Instant::now();
            let mut table = Connections::new(POLICY);
            let mut busy: HashMap<ConnectionId, usize> = HashMap::new();
            for (step, pause_ms) in steps {
                now += Duration::from_millis(pause_ms);
                let mut ids: Vec<_> = table.connections.keys().copied().collect();
                ids.sort_unstable();
                match step {
                    Step::Admit(key, known) => {
                        let room = if known { Room::Reserved } else { Room::Common };
                        if let Ok(admitted) = table.admit(key, room, now) {
                            let displaced = admitted.displaced.and_then(|id| busy.remove(&id));
                            prop_assert_eq!(displaced.unwrap_or(0), 0);
                        }
                    }
                    Step::Identify(at, key) => if let Some(id) = ids.get(at)
                        && let Ok(Some(displaced)) = table.identify(*id, key, now)
                    {
                        prop_assert_eq!(busy.remove(&displaced).unwrap_or(0), 0);
                    },
                    Step::Begin(at) => if let Some(id) = ids.get(at) {
                        table.begin(*id, now);
                        *busy.entry(*id).or_default() += 1;
                    },
                    Step::End(at) => if let Some(id) = ids.get(at) {
                        table.end(*id, now);
                        let count = busy.entry(*id).or_default();
                        *count = count.saturating_sub(1);
                    },
                    Step::Remove(at) => if let Some(id) = ids.get(at) {
                        table.remove(*id);
                        busy.remove(id);
                    },
                    Step::Overdue => for id in table.take_overdue(now) {
                        prop_assert_eq!(busy.remove(&id).unwrap_or(0), 0);
                    },
                }
                let in_room = |room| {
                    table.connections.values().filter(|one| one.room == room).count()
                };
                let rooms = [Room::Common, Room::Reserved, Room::Known].map(in_room);
                prop_assert_eq!(table.rooms, rooms);
                let places = [POLICY.common, POLICY.reserved, POLICY.known];
                prop_assert!(rooms.iter().zip(places).all(|(taken, most)| *taken <= most));
                prop_assert!(table.counts.values().all(|count| (1..=POLICY.per_key).contains(count)));
                prop_assert_eq!(table.counts.values().sum::<usize>(), table.len());
            }
        }

        #[test]
        fn who_is_silent_never_keeps_anybody_out(keys in prop::collection::vec(any::<u8>(), 1..100)) {
            let now = Instant::now();
            let mut table = Connections::new(POLICY);
            for key in keys {
                prop_assert!(admit(&mut table, key, now).is_ok());
            }
        }
    }
}
