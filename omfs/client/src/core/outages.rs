//! How long callers wait for a node that does not answer.
//!
//! A daemon that is restarted is back within seconds, and nobody should notice. A node that is down for
//! longer answers at once that it is. Guests wait longer for their home: they live on its files.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use proto::ids::NodeId;
use proto::v1::fs_request::Op;

use super::{Core, Outcome, errno};
use crate::caller::{self, Who};
use omfs_service::Errno;

/// How long a guest waits for its home's daemon: if the home itself is dead its supervisor ends it long
/// before.
const HOME_WAIT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Not an error of the kernel's: the owner ended while it had a request that must not be carried out
/// twice. To users it is `EHOSTDOWN`.
pub const UNSURE: i32 = 10_112;

#[derive(Clone, Copy, Debug)]
struct Outage {
    /// Until then callers wait.
    until: Instant,
    /// When somebody found the node down last.
    last: Instant,
}

/// Nodes that were found down and have not answered since.
#[derive(Debug, Default)]
pub struct Outages {
    nodes: Mutex<HashMap<NodeId, Outage>>,
    is_any: AtomicBool,
}

impl Outages {
    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Outage>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node was found down; until when its callers wait. `dead_for`: how long the membership has known.
    fn began(&self, node: NodeId, wait: Duration, dead_for: Option<Duration>) -> Instant {
        let now = Instant::now();
        let left = wait.saturating_sub(dead_for.unwrap_or_default());
        let mut nodes = self.lock();
        let outage = nodes.entry(node).or_insert(Outage {
            until: now + left,
            last: now,
        });
        // Nobody has asked for long: it may have been back in between, unless the membership says no.
        if dead_for.is_none() && now.duration_since(outage.last) > wait {
            outage.until = now + wait;
        }
        outage.last = now;
        self.is_any.store(true, Ordering::Release);
        outage.until
    }

    fn over(&self, node: NodeId) {
        let mut nodes = self.lock();
        nodes.remove(&node);
        self.is_any.store(!nodes.is_empty(), Ordering::Release);
    }
}

impl Core {
    /// Until when a caller waits for the owner of a file; `None` when the outcome is the answer.
    pub fn patience<T>(&self, who: Who, id: u64, outcome: &Outcome<T>) -> Option<Instant> {
        if !matches!(outcome, Err(Errno(libc::EHOSTDOWN | UNSURE))) {
            if self.outages.is_any.load(Ordering::Acquire)
                && let Some(owner) = self.owner(id)
            {
                self.outages.over(owner);
            }
            return None;
        }
        let owner = self.owner(id).filter(|owner| *owner != self.myself())?;
        let guest = self.config.guests.guest(who.pid);
        if guest.is_some_and(|guest| guest.home == owner) {
            return Some(Instant::now() + HOME_WAIT);
        }
        let dead_for = self.config.peers.dead_for(owner);
        let until = self.outages.began(owner, self.config.owner_wait, dead_for);
        let may_repeat = !matches!(outcome, Err(Errno(UNSURE)));
        (may_repeat && Instant::now() < until).then_some(until)
    }

    /// Tries again until the owner of a file answers.
    pub fn wait_for_owner<T>(
        &self,
        who: Who,
        id: u64,
        until: Instant,
        mut act: impl FnMut() -> Outcome<T>,
    ) -> Outcome<T> {
        loop {
            if caller::is_interrupted(who.pid) {
                return Err(errno(libc::EINTR));
            }
            std::thread::sleep(POLL_INTERVAL);
            let outcome = act();
            if self.patience(who, id, &outcome).is_none() || Instant::now() >= until {
                return outcome;
            }
        }
    }
}

/// Whether a request that may have been carried out can be sent once more.
pub(super) fn is_repeatable(op: &Op) -> bool {
    match op {
        Op::Write(write) => !write.append,
        Op::MkNod(_)
        | Op::MkDir(_)
        | Op::Unlink(_)
        | Op::RmDir(_)
        | Op::Symlink(_)
        | Op::Rename(_)
        | Op::Link(_)
        | Op::Create(_)
        | Op::RemoveXattr(_) => false,
        Op::SetXattr(set) => set.flags == 0,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(2);
    const WAIT: Duration = Duration::from_secs(5);

    #[test]
    fn all_callers_wait_until_the_same_time() {
        let outages = Outages::default();
        let first = outages.began(NODE, WAIT, None);
        assert!(first > Instant::now() + WAIT / 2);
        assert_eq!(outages.began(NODE, WAIT, None), first);
        let dead = Some(Duration::from_secs(1));
        assert_eq!(outages.began(NODE, WAIT, dead), first);
        outages.over(NODE);
        assert!(outages.lock().is_empty());
    }

    #[test]
    fn nobody_waits_for_a_node_that_is_known_dead_for_longer() {
        let outages = Outages::default();
        assert!(outages.began(NODE, WAIT, Some(WAIT)) <= Instant::now());
        let until = outages.began(NodeId(3), WAIT, Some(WAIT / 2));
        assert!(until > Instant::now() && until < Instant::now() + WAIT);
    }

    #[test]
    fn an_outage_that_nobody_saw_end_is_over_after_a_while() {
        let outages = Outages::default();
        let wait = Duration::from_millis(1);
        let first = outages.began(NODE, wait, None);
        std::thread::sleep(Duration::from_millis(5));
        assert!(outages.began(NODE, wait, None) > first);
    }
}
