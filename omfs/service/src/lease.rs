//! Leases as both ends of a connection see them: docs/leases.md.
//!
//! The owner of a file grants a lease and takes it back ([`LeasePeer`]). What a client keeps under
//! it ([`LeaseHolder`]) it may use until the lease is recalled, and only while the connection is
//! trusted: the owner was heard of so recently that it cannot have given the lease to others.

use std::collections::{HashMap, VecDeque};
use std::fmt::Debug;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// How long after a request was sent its answer lets the client trust its leases.
pub const TRUST: Duration = Duration::from_millis(1500);
/// How long after a recall, or after a session's end, the client trusts a lease no longer whatever
/// it knows.
pub const TRUST_IS_OVER_AFTER: Duration = Duration::from_secs(2);
const _: () = assert!(TRUST.as_millis() < TRUST_IS_OVER_AFTER.as_millis());
/// How long after a recall a client must have sent what it wrote; then its connection is ended.
pub const FENCE_AFTER: Duration = Duration::from_secs(5);

/// The connection to a client, as the owner sees it.
pub trait LeasePeer: Send + Sync + Debug {
    /// Asks for a lease back. Blocks for as long as sending may.
    ///
    /// # Errors
    /// The connection's; it cannot be used any more then.
    fn recall(&self, lease: u64) -> io::Result<()>;

    /// Ends the connection, whatever is under way on it.
    fn fence(&self);
}

/// What a client keeps under one lease.
pub trait LeaseHolder: Send + Sync + Debug {
    /// From now on nothing may be served from what is kept. Must not block.
    fn stop(&self);

    /// Drops what is kept, and sends what the owner has not got yet. May block.
    fn give_up(&self);
}

/// Leases as a client's connection offers them.
pub trait LeaseClient: Send + Sync + Debug {
    /// Makes a number for a lease that is about to be asked for; `None` when there are too many,
    /// or the connection has ended.
    fn register(&self, holder: Weak<dyn LeaseHolder>) -> Option<u64>;

    /// Forgets a number that was not granted, or whose file is closed.
    fn unregister(&self, lease: u64);

    /// Gives a granted lease back; nothing is kept under it any more.
    fn give_back(&self, lease: u64);

    /// Whether leases that have not been recalled can be relied on at this moment.
    fn is_trusted(&self) -> bool;
}

/// Milliseconds since boot, suspension included: a laptop that sleeps must not trust on.
#[must_use]
pub fn boot_ms() -> u64 {
    // Without that clock nothing is ever trusted, for everything was sent at 0.
    let Ok(time) = clock_gettime(ClockId::CLOCK_BOOTTIME) else {
        return 0;
    };
    let (s, ns) = (time.tv_sec().unsigned_abs(), time.tv_nsec().unsigned_abs());
    s * 1000 + ns / 1_000_000
}

/// Leases that one connection may have.
const LEASES_MAX: usize = 1024;

/// What the keeper of a connection's leases is to do next.
#[derive(Debug)]
pub enum Duty {
    /// Nothing ever again: the connection has ended.
    End,
    /// Give this lease up, and then back.
    GiveUp(u64, Option<Arc<dyn LeaseHolder>>),
    /// Listen for recalls, since nobody else may be reading.
    Listen,
}

/// A client's leases on one connection.
#[derive(Debug, Default)]
pub struct LeaseBook {
    state: Mutex<BookState>,
    changed: Condvar,
    trusted_until_ms: AtomicU64,
    ended: AtomicBool,
}

#[derive(Debug, Default)]
struct BookState {
    last: u64,
    holders: HashMap<u64, Weak<dyn LeaseHolder>>,
    recalled: VecDeque<u64>,
}

impl LeaseBook {
    fn lock(&self) -> MutexGuard<'_, BookState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`LeaseClient::register`].
    pub fn register(&self, holder: Weak<dyn LeaseHolder>) -> Option<u64> {
        let mut state = self.lock();
        if self.ended.load(Ordering::Acquire) || state.holders.len() >= LEASES_MAX {
            return None;
        }
        state.last += 1;
        let lease = state.last;
        state.holders.insert(lease, holder);
        drop(state);
        self.changed.notify_all();
        Some(lease)
    }

    /// See [`LeaseClient::unregister`].
    pub fn unregister(&self, lease: u64) {
        self.lock().holders.remove(&lease);
    }

    /// See [`LeaseClient::is_trusted`].
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        !self.ended.load(Ordering::Acquire)
            && boot_ms() < self.trusted_until_ms.load(Ordering::Acquire)
    }

    /// A request that was sent at `sent_ms` ([`boot_ms`]) has been answered: at that time the owner
    /// had recalled nothing that is not known here by now.
    pub fn renew(&self, sent_ms: u64) {
        if sent_ms == 0 {
            return;
        }
        let until_ms = sent_ms + u64::try_from(TRUST.as_millis()).unwrap_or(0);
        self.trusted_until_ms.fetch_max(until_ms, Ordering::AcqRel);
    }

    /// The owner wants a lease back. Does not block.
    pub fn recalled(&self, lease: u64) {
        let mut state = self.lock();
        if let Some(holder) = state.holders.get(&lease).and_then(Weak::upgrade) {
            holder.stop();
        }
        // An honest owner recalls each lease once; others are heard no longer than this.
        if state.recalled.len() < LEASES_MAX {
            state.recalled.push_back(lease);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// The connection has ended, and with it every lease.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
        let state = self.lock();
        for holder in state.holders.values().filter_map(Weak::upgrade) {
            holder.stop();
        }
        drop(state);
        self.changed.notify_all();
    }

    /// What to do next; waits while there is no lease.
    #[must_use]
    pub fn next_duty(&self) -> Duty {
        let mut state = self.lock();
        loop {
            if self.ended.load(Ordering::Acquire) {
                return Duty::End;
            }
            if let Some(lease) = state.recalled.pop_front() {
                let holder = state.holders.remove(&lease);
                return Duty::GiveUp(lease, holder.as_ref().and_then(Weak::upgrade));
            }
            if !state.holders.is_empty() {
                return Duty::Listen;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for a recall that another thread has read, at most `timeout`.
    pub fn nap(&self, timeout: Duration) {
        let state = self.lock();
        if state.recalled.is_empty() && !self.ended.load(Ordering::Acquire) {
            let _ = self.changed.wait_timeout(state, timeout);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default)]
    struct Holder(AtomicBool);

    impl LeaseHolder for Holder {
        fn stop(&self) {
            self.0.store(true, Ordering::SeqCst);
        }

        fn give_up(&self) {}
    }

    #[test]
    fn trust_comes_from_answers_and_goes_with_the_connection() {
        let book = LeaseBook::default();
        assert!(!book.is_trusted());
        book.renew(boot_ms().saturating_sub(2000).max(1));
        assert!(!book.is_trusted(), "an answer that was long on its way");
        book.renew(boot_ms() + 60_000);
        assert!(book.is_trusted());
        book.end();
        assert!(!book.is_trusted());
    }

    #[test]
    fn a_recalled_lease_stops_at_once_and_is_given_up_in_its_turn() {
        let book = LeaseBook::default();
        let holder: Arc<Holder> = Arc::default();
        let weak = Arc::downgrade(&holder);
        let lease = book.register(weak).unwrap();
        assert!(matches!(book.next_duty(), Duty::Listen));
        book.recalled(lease);
        assert!(holder.0.load(Ordering::SeqCst));
        assert!(matches!(book.next_duty(), Duty::GiveUp(number, Some(_)) if number == lease));
    }

    #[test]
    fn all_leases_stop_when_the_connection_ends() {
        let book = LeaseBook::default();
        let holder: Arc<Holder> = Arc::default();
        let weak = Arc::downgrade(&holder);
        book.register(weak).unwrap();
        book.end();
        assert!(holder.0.load(Ordering::SeqCst));
        assert!(matches!(book.next_duty(), Duty::End));
        let weak = Arc::downgrade(&holder);
        assert_eq!(book.register(weak), None);
    }

    #[test]
    fn there_are_only_so_many_leases() {
        let book = LeaseBook::default();
        let holder: Arc<Holder> = Arc::default();
        let register = || book.register(Arc::downgrade(&holder) as Weak<dyn LeaseHolder>);
        for _ in 0..LEASES_MAX {
            register().unwrap();
        }
        assert_eq!(register(), None);
    }
}
