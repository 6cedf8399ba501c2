//! The receiver's side: guests are counted from the moment they are promised a place, and a node
//! refuses when it is blocked, short of memory, or flooded.

use std::time::Duration;

use proto::ids::{NodeId, Pid};

use crate::tuning::Tuning;

/// Why no guest is taken.
#[derive(Clone, Copy, PartialEq, Debug, thiserror::Error)]
pub enum Refusal {
    /// `omfs block`.
    #[error("it takes no guests (omfs unblock there lets them in)")]
    Blocked,
    /// Not enough memory.
    #[error("it has {free_mib} MiB of memory to give, the process needs {needed_mib} MiB")]
    Memory {
        /// What can be given.
        free_mib: u64,
        /// What was asked for.
        needed_mib: u64,
    },
    /// Too many on their way.
    #[error("{0} guests are on their way to it already")]
    Flooded(usize),
    /// The sender's picture is out of date.
    #[error("its load is {now_milli}/1000 by now")]
    Busier {
        /// The load it has.
        now_milli: u32,
    },
}

/// What a sender asks for.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Request {
    /// Home of the process.
    pub home: NodeId,
    /// Its PID there.
    pub pid: Pid,
    /// Its memory in bytes.
    pub memory: u64,
    /// The load the sender believes this node to have; `None` when a person asks.
    pub believed: Option<f64>,
}

/// What this node has when asked.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Room {
    /// `omfs block` is on.
    pub blocked: bool,
    /// Exported load, guests on their way included.
    pub load: f64,
    /// Usable CPUs.
    pub cpus: f64,
    /// Bytes free, without what was promised already.
    pub memory_free: u64,
    /// Bytes in all.
    pub memory_total: u64,
}

#[derive(Clone, Copy, Debug)]
struct Promise {
    request: Request,
    until: Duration,
}

/// Guests on their way to this node.
#[derive(Clone, Debug, Default)]
pub struct Incoming {
    promised: Vec<Promise>,
}

impl Incoming {
    /// Promises a place or refuses.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn admit(
        &mut self,
        now: Duration,
        request: Request,
        room: Room,
        tuning: &Tuning,
    ) -> Result<(), Refusal> {
        self.expire(now);
        self.gone(request.home, request.pid);
        if room.blocked {
            return Err(Refusal::Blocked);
        }
        self.check_memory(request, room, tuning)?;
        if let Some(believed) = request.believed {
            self.check_flood(believed, room, tuning)?;
        }
        let until = now + tuning.incoming_expiry;
        self.promised.push(Promise { request, until });
        Ok(())
    }

    fn check_memory(&self, request: Request, room: Room, tuning: &Tuning) -> Result<(), Refusal> {
        let automatic = request.believed.is_some();
        let part = if automatic {
            tuning.memory_reserve
        } else {
            0.0
        };
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let reserve = (room.memory_total as f64 * part) as u64;
        let free = room.memory_free.saturating_sub(self.memory() + reserve);
        if request.memory > free {
            return Err(Refusal::Memory {
                free_mib: free >> 20,
                needed_mib: request.memory.div_ceil(1 << 20),
            });
        }
        Ok(())
    }

    fn check_flood(&self, believed: f64, room: Room, tuning: &Tuning) -> Result<(), Refusal> {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let cpus = room.cpus.ceil().clamp(1.0, 4096.0) as usize;
        if self.promised.len() >= cpus.saturating_mul(tuning.incoming_per_cpu) {
            return Err(Refusal::Flooded(self.promised.len()));
        }
        if room.load > believed + tuning.believed_slack {
            return Err(Refusal::Busier {
                now_milli: crate::vector::milli(room.load),
            });
        }
        Ok(())
    }

    /// The guest is there (and sampled from now on), or will not come.
    pub fn gone(&mut self, home: NodeId, pid: Pid) {
        self.promised
            .retain(|p| (p.request.home, p.request.pid) != (home, pid));
    }

    /// Forgets promises that were not taken up.
    pub fn expire(&mut self, now: Duration) {
        self.promised.retain(|promise| promise.until > now);
    }

    /// Guests on their way.
    #[must_use]
    pub fn count(&self) -> usize {
        self.promised.len()
    }

    /// Bytes promised.
    #[must_use]
    pub fn memory(&self) -> u64 {
        let sizes = self.promised.iter().map(|promise| promise.request.memory);
        sizes.fold(0, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(50);
    const ROOM: Room = Room {
        blocked: false,
        load: 0.0,
        cpus: 1.0,
        memory_free: 100 << 20,
        memory_total: 160 << 20,
    };

    fn request(pid: i32) -> Request {
        Request {
            home: NodeId(1),
            pid: Pid(pid),
            memory: 10 << 20,
            believed: Some(0.0),
        }
    }

    fn admit(incoming: &mut Incoming, request: Request, room: Room) -> Result<(), Refusal> {
        incoming.admit(NOW, request, room, &Tuning::default())
    }

    #[test]
    fn a_flood_is_refused_until_guests_arrived_or_their_time_is_over() {
        let mut incoming = Incoming::default();
        admit(&mut incoming, request(1), ROOM).unwrap();
        admit(&mut incoming, request(2), ROOM).unwrap();
        assert_eq!(
            admit(&mut incoming, request(3), ROOM),
            Err(Refusal::Flooded(2))
        );
        incoming.gone(NodeId(1), Pid(2));
        admit(&mut incoming, request(3), ROOM).unwrap();
        incoming.expire(NOW + Duration::from_secs(10));
        assert_eq!(incoming.count(), 0);
    }

    #[test]
    fn asking_again_for_the_same_process_counts_once() {
        let mut incoming = Incoming::default();
        admit(&mut incoming, request(1), ROOM).unwrap();
        admit(&mut incoming, request(1), ROOM).unwrap();
        assert_eq!((incoming.count(), incoming.memory()), (1, 10 << 20));
    }

    #[test]
    fn old_news_are_answered_by_the_load_of_today_but_people_get_their_way() {
        let mut incoming = Incoming::default();
        let busy = Room { load: 0.6, ..ROOM };
        assert_eq!(
            admit(&mut incoming, request(1), busy),
            Err(Refusal::Busier { now_milli: 600 })
        );
        let person = Request {
            believed: None,
            ..request(1)
        };
        admit(&mut incoming, person, busy).unwrap();
    }

    #[test]
    fn memory_that_was_promised_is_not_promised_twice() {
        let mut incoming = Incoming::default();
        let large = Request {
            memory: 60 << 20,
            ..request(1)
        };
        admit(&mut incoming, large, ROOM).unwrap();
        let second = Request {
            pid: Pid(2),
            ..large
        };
        assert_eq!(
            admit(&mut incoming, second, ROOM),
            Err(Refusal::Memory {
                free_mib: 30,
                needed_mib: 60
            })
        );
    }

    #[test]
    fn a_blocked_node_refuses_people_too() {
        let blocked = Room {
            blocked: true,
            ..ROOM
        };
        let person = Request {
            believed: None,
            ..request(1)
        };
        assert_eq!(
            admit(&mut Incoming::default(), person, blocked),
            Err(Refusal::Blocked)
        );
    }
}
