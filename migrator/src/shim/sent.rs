//! Signals on their way to a host that may be sending the guest back just now.

use std::collections::VecDeque;

use crate::tracee::SignalSeen;

/// Most signals remembered; the host tells every second which it has.
const REMEMBERED_MAX: usize = 4096;

/// The signals sent to one host, in order, until it is known that the guest has them.
#[derive(Debug, Default)]
pub(super) struct SentSignals {
    /// How many are not remembered any more.
    forgotten: u64,
    remembered: VecDeque<SignalSeen>,
}

impl SentSignals {
    /// One more was sent.
    pub(super) fn push(&mut self, seen: SignalSeen) {
        self.remembered.push_back(seen);
        if self.remembered.len() > REMEMBERED_MAX {
            self.forget_one();
        }
    }

    /// So many have reached the guest since it came to this host; a host that does not count
    /// takes all.
    pub(super) fn taken(&mut self, count: Option<u64>) {
        let count = count.unwrap_or(u64::MAX);
        while self.forgotten < count && !self.remembered.is_empty() {
            self.forget_one();
        }
    }

    fn forget_one(&mut self) {
        self.remembered.pop_front();
        self.forgotten += 1;
    }

    /// Those that are not known to have reached the guest.
    pub(super) fn rest(&self) -> Vec<SignalSeen> {
        self.remembered.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracee::RawSiginfo;

    fn seen(tid: i32) -> SignalSeen {
        SignalSeen::at_delivery(tid, RawSiginfo([0; 128]))
    }

    fn rest(sent: &SentSignals) -> Vec<i32> {
        sent.rest().iter().map(|seen| seen.tid).collect()
    }

    #[test]
    fn what_the_host_has_taken_is_forgotten() {
        let mut sent = SentSignals::default();
        (1..=5).for_each(|tid| sent.push(seen(tid)));
        sent.taken(Some(2));
        assert_eq!(rest(&sent), [3, 4, 5]);
        sent.taken(Some(2));
        sent.push(seen(6));
        sent.taken(Some(4));
        assert_eq!(rest(&sent), [5, 6]);
        sent.taken(None);
        assert_eq!(rest(&sent), [0; 0]);
    }

    #[test]
    fn memory_is_bounded() {
        let mut sent = SentSignals::default();
        (0..5000).for_each(|tid| sent.push(seen(tid)));
        assert_eq!(rest(&sent).len(), REMEMBERED_MAX);
        sent.taken(Some(4999));
        assert_eq!(rest(&sent), [4999]);
    }
}
