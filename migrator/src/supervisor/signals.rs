//! Signals on their way from the deputy to the guest.
//!
//! The kernel does not let one process claim another's origin for a signal, so each is queued with
//! a token in place of its description; when the guest is about to receive it, the supervisor, as
//! its tracer, puts the description in.

use std::collections::BTreeMap;

use crate::sys::ptrace::RawSiginfo;
use crate::tracee::procfs::Status;

/// Most descriptions kept; the oldest go first. (RLIMIT_SIGPENDING is of this order.)
const KEPT_MAX: usize = 4096;
/// The first signal that queues up; libc keeps some of those to itself.
const KERNELS_SIGRTMIN: i32 = 32;
/// Marks our tokens among values that programs queue themselves.
const MARK: u64 = 0x6f6d_6673 << 32;

/// Descriptions of signals that were queued and not yet received.
#[derive(Debug, Default)]
pub struct Forwarded {
    waiting: BTreeMap<u32, RawSiginfo>,
    next: u32,
}

impl Forwarded {
    /// Remembers a signal's description; answers what to queue in its place.
    pub fn token_for(&mut self, info: RawSiginfo) -> RawSiginfo {
        let token = self.next;
        self.next = self.next.wrapping_add(1);
        self.waiting.insert(token, info);
        while self.waiting.len() > KEPT_MAX {
            self.waiting.pop_first();
        }
        RawSiginfo::queued(info.signal(), MARK | u64::from(token))
    }

    /// The description behind a token, once; `None` for a signal that is not ours.
    pub fn take(&mut self, info: &RawSiginfo) -> Option<RawSiginfo> {
        self.waiting.remove(&token_of(info)?)
    }

    /// What a pending signal of the guest really is, for an image.
    #[must_use]
    pub fn translate(&self, info: &RawSiginfo) -> RawSiginfo {
        let known = token_of(info).and_then(|token| self.waiting.get(&token));
        known.copied().unwrap_or(*info)
    }
}

/// Whether a signal that is sent to a process or to one of its threads is one with its like that
/// waits there: of standard signals the kernel keeps the first. (Stop signals and SIGCONT have their
/// effect on others even then.)
pub(super) fn waits_already(pid: i32, tid: Option<i32>, signal: i32) -> bool {
    let always = [
        libc::SIGCONT,
        libc::SIGSTOP,
        libc::SIGTSTP,
        libc::SIGTTIN,
        libc::SIGTTOU,
    ];
    if !(1..KERNELS_SIGRTMIN).contains(&signal) || always.contains(&signal) {
        return false;
    }
    let status = Status::of_thread(pid, tid.unwrap_or(pid)).unwrap_or_default();
    let queue = if tid.is_some() { "SigPnd" } else { "ShdPnd" };
    status.mask(queue) & (1 << (signal - 1)) != 0
}

/// The token in a signal queued for us: the kernel sets the sender of a signal from outside
/// the guest's PID namespace to 0, which nobody inside can claim.
fn token_of(info: &RawSiginfo) -> Option<u32> {
    let word = |at: usize| info.0.get(at..at + 4);
    let value = info
        .0
        .get(24..32)?
        .try_into()
        .ok()
        .map(u64::from_ne_bytes)?;
    let ours =
        info.code() == libc::SI_QUEUE && word(16) == Some(&[0; 4]) && value & !0xffff_ffff == MARK;
    ours.then(|| u32::try_from(value & 0xffff_ffff).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signal(number: i32, sender: u8) -> RawSiginfo {
        let mut info = RawSiginfo::queued(number, 0);
        info.0[16] = sender;
        info
    }

    #[test]
    fn a_description_comes_back_once() {
        let mut forwarded = Forwarded::default();
        let original = signal(libc::SIGUSR1, 77);
        let token = forwarded.token_for(original);
        assert_eq!(
            (token.signal(), token.code()),
            (libc::SIGUSR1, libc::SI_QUEUE)
        );
        assert_eq!(forwarded.translate(&token), original);
        assert_eq!(forwarded.take(&token), Some(original));
        assert_eq!(forwarded.take(&token), None);
        assert_eq!(forwarded.translate(&token), token);
    }

    #[test]
    fn signals_of_others_are_left_alone() {
        let mut forwarded = Forwarded::default();
        let token = forwarded.token_for(signal(libc::SIGUSR1, 1));
        let mut foreign = token;
        foreign.0[16] = 5; // somebody inside the guest sent it
        assert_eq!(forwarded.take(&foreign), None);
        assert_eq!(forwarded.take(&signal(libc::SIGUSR1, 0)), None);
    }

    #[test]
    fn each_signal_keeps_its_own_description() {
        let mut forwarded = Forwarded::default();
        for number in [libc::SIGTERM, libc::SIGRTMIN()] {
            let all: Vec<_> = (0..3)
                .map(|sender| forwarded.token_for(signal(number, sender)))
                .collect();
            for (sender, token) in (0..3).zip(&all) {
                assert_eq!(forwarded.take(token), Some(signal(number, sender)));
            }
        }
    }

    #[test]
    fn a_signal_that_waits_here_already_is_one_with_it() {
        let me = std::process::id().cast_signed();
        let tid = nix::unistd::gettid().as_raw();
        let mut blocked = nix::sys::signal::SigSet::empty();
        blocked.add(nix::sys::signal::SIGUSR1);
        blocked.add(nix::sys::signal::SIGCONT);
        blocked.thread_block().unwrap();
        for number in [libc::SIGUSR1, libc::SIGCONT, libc::SIGRTMIN()] {
            assert!(!waits_already(me, Some(tid), number));
        }
        for number in [libc::SIGUSR1, libc::SIGCONT] {
            crate::sys::signals::tgkill(me, tid, number).unwrap();
        }
        assert!(waits_already(me, Some(tid), libc::SIGUSR1));
        assert!(!waits_already(me, None, libc::SIGUSR1));
        assert!(!waits_already(me, Some(tid), libc::SIGCONT));
    }
}
