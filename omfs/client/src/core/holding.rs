//! Which writes are held back, and when they are sent.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use proto::v1::Write;
use proto::v1::fs_request::Op;

use super::behind::{PIECE_BYTES_FULL, Taken, WriteBehind};
use super::opens::OpenFile;
use super::unsent::{stamp_of, written};
use super::{Core, Outcome, errno};
use crate::caller::Who;
use crate::pool::Pool;
use crate::spool::Spool;
use omfs_service::lease::LeaseHolder;

/// How long a byte is held back at most, when the owner answers.
const HOLD: Duration = Duration::from_millis(200);
/// How long and how often it is tried to reach an owner again that does not have all. Whoever uses
/// the file later tries again.
const RESCUE_MAX: Duration = Duration::from_secs(60);
const RESCUE_INTERVAL: Duration = Duration::from_millis(100);

/// What all that is held back has in common.
#[derive(Debug, Default)]
pub struct Holding {
    /// Open files of this node with something that the owner may not have yet.
    files: AtomicUsize,
    /// Everything is sent at once from now on.
    is_over: AtomicBool,
    core: OnceLock<Weak<Core>>,
    is_rescuing: AtomicBool,
    timer: Timer,
}

/// What is to be sent when its time has come, the earliest first: all wait for the same time.
#[derive(Clone, Debug, Default)]
struct Timer(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    queue: VecDeque<(Instant, Arc<WriteBehind>)>,
    has_thread: bool,
}

impl Timer {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send_later(&self, behind: Arc<WriteBehind>, pool: &Pool) {
        let mut waiting = self.lock();
        waiting.queue.push_back((Instant::now() + HOLD, behind));
        if std::mem::replace(&mut waiting.has_thread, true) {
            return;
        }
        drop(waiting);
        let (timer, pool) = (self.clone(), pool.clone());
        let thread = std::thread::Builder::new().name("omfs-hold".into());
        if thread.spawn(move || timer.run(&pool)).is_err() {
            // Everything is sent at once, and the next one tries again.
            let mut waiting = self.lock();
            waiting.has_thread = false;
            let queue = std::mem::take(&mut waiting.queue);
            drop(waiting);
            queue.iter().for_each(|(_, behind)| behind.send_held());
        }
    }

    /// Ends when nothing waits.
    fn run(&self, pool: &Pool) {
        loop {
            let mut waiting = self.lock();
            let Some((due, _)) = waiting.queue.front() else {
                waiting.has_thread = false;
                return;
            };
            let left = due.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                drop(waiting);
                std::thread::sleep(left);
                continue;
            }
            if let Some((_, behind)) = waiting.queue.pop_front() {
                drop(waiting);
                pool.run(move || behind.send_held());
            }
        }
    }
}

impl Holding {
    pub fn recount(&self, is_counted: &mut bool, counts: bool) {
        if counts && !*is_counted {
            self.files.fetch_add(1, Ordering::AcqRel);
        } else if !counts && *is_counted {
            self.files.fetch_sub(1, Ordering::AcqRel);
        }
        *is_counted = counts;
    }

    pub fn is_allowed(&self) -> bool {
        !self.is_over.load(Ordering::Acquire)
    }

    fn is_empty(&self) -> bool {
        self.files.load(Ordering::Acquire) == 0
    }

    /// Sees to it that what waits for another connection is sent soon, also if nobody uses the file.
    pub fn rescue(&self) {
        let Some(core) = self.core.get().cloned() else {
            return;
        };
        if self.is_rescuing.swap(true, Ordering::AcqRel) {
            return;
        }
        let rescue = move || {
            let until = Instant::now() + RESCUE_MAX;
            while let Some(core) = core.upgrade() {
                if core.rescue() || Instant::now() > until {
                    core.holding.is_rescuing.store(false, Ordering::Release);
                    return;
                }
                drop(core);
                std::thread::sleep(RESCUE_INTERVAL);
            }
        };
        let thread = std::thread::Builder::new().name("omfs-rescue".into());
        if thread.spawn(rescue).is_err() {
            self.is_rescuing.store(false, Ordering::Release);
        }
    }
}

impl Core {
    /// Makes what is left behind by a connection's end be sent by itself.
    pub fn send_by_itself(self: &Arc<Self>) {
        let _ = self.holding.core.set(Arc::downgrade(self));
        if !self.holding.is_empty() {
            self.holding.rescue();
        }
    }

    /// Holds nothing back any more, and sends all that is held.
    pub fn settle_all(&self) {
        self.holding.is_over.store(true, Ordering::Release);
        for (fh, open) in self.opens.writers() {
            let _ = self.settled(fh, open);
        }
    }

    /// Tries to send what waits for a connection; whether there is nothing left.
    fn rescue(&self) -> bool {
        let is_left = |open: &OpenFile| {
            let behind = open.behind.as_ref();
            behind.is_some_and(|behind| behind.is_stranded())
        };
        for (fh, open) in self.opens.writers() {
            if is_left(&open) {
                let _ = self.current(fh, open);
            }
        }
        !self.opens.writers().iter().any(|(_, open)| is_left(open))
    }

    /// Sees to it that the owner has all that was written through an open file; the file as it is
    /// open afterwards.
    ///
    /// # Errors
    /// Why bytes were lost, or cannot be sent.
    pub(super) fn settled(&self, fh: u64, open: Arc<OpenFile>) -> Outcome<Arc<OpenFile>> {
        let Some(behind) = &open.behind else {
            return Ok(open);
        };
        match behind.settle() {
            Err(omfs_service::Errno(libc::EHOSTDOWN)) => {
                let again = self.current(fh, Arc::clone(&open))?;
                if let Some(behind) = &again.behind {
                    behind.settle()?;
                }
                Ok(again)
            }
            outcome => outcome.map(|()| open),
        }
    }

    /// Writes, or holds back; `None` when the owner must be asked as usual.
    pub(super) fn write_behind(
        &self,
        who: Who,
        (fh, open): (u64, &Arc<OpenFile>),
        (offset, data): (u64, &[u8]),
        append: bool,
    ) -> Option<Outcome<u32>> {
        let behind = open.behind.as_ref()?;
        match behind.take(who, offset, data, append) {
            Err(problem) => Some(Err(problem)),
            Ok((Taken::Plain, _)) => None,
            Ok((Taken::Ask, _)) => {
                let make = || Spool::create(self.journal.spool(fh));
                let asks = behind.prepare(make);
                asks.then(|| self.ask_to_hold(who, open, behind, (offset, data)))
            }
            Ok((Taken::Held, soon)) => {
                if soon {
                    self.send_soon(behind);
                }
                Some(u32::try_from(data.len()).map_err(|_| errno(libc::EINVAL)))
            }
        }
    }

    /// Whether the owner may not have all that was written to a file through this node.
    pub(super) fn is_writing_behind(&self, id: u64) -> bool {
        !self.holding.is_empty()
            && self
                .opens
                .of_file(id)
                .iter()
                .any(|(_, open)| open.behind.is_some())
    }

    /// Sees to it that the owner has all that was written to a file through this node.
    pub(super) fn settle_writes(&self, id: u64) {
        if self.holding.is_empty() {
            return;
        }
        for (fh, open) in self.opens.of_file(id) {
            // What was lost is told to those who use that open file.
            let _ = self.settled(fh, open);
        }
    }

    /// Before something is done to a file that is not a write through its open file.
    pub(super) fn settle_for_change(&self, id: u64) {
        self.settle_writes(id);
        for (_, open) in self.opens.of_file(id) {
            if let Some(behind) = &open.behind {
                behind.note_stamp(None);
            }
        }
    }

    /// Sends what is held back once it has waited long enough, or at once when it is a full piece.
    fn send_soon(&self, behind: &Arc<WriteBehind>) {
        let behind = Arc::clone(behind);
        if behind.held() < PIECE_BYTES_FULL {
            return self.holding.timer.send_later(behind, &self.behind_pool);
        }
        self.behind_pool.run(move || behind.send_held());
    }

    /// Writes at the owner, and asks for a lease by the way. Only one thread at a time does, for
    /// one open file.
    fn ask_to_hold(
        &self,
        who: Who,
        open: &Arc<OpenFile>,
        behind: &Arc<WriteBehind>,
        (offset, data): (u64, &[u8]),
    ) -> Outcome<u32> {
        let leases = open.route.service.lease_client();
        let grant = behind.grant();
        let holder: Arc<dyn LeaseHolder> = grant.clone();
        let weak = Arc::downgrade(&holder);
        let number = leases.and_then(|leases| leases.register(weak)).unwrap_or(0);
        let caller = self.caller_without_groups(who, open.route.node);
        let write = Write {
            fh: open.fh,
            offset,
            kill_suidgid: who.uid != 0,
            lease: number,
            stamped: true,
            ..Write::default()
        };
        let answer = self.ask_with(&open.route, caller.clone(), Op::Write(write), data);
        let stamp = answer.as_ref().ok().and_then(stamp_of);
        behind.note_stamp(stamp.as_ref());
        let granted = number != 0 && stamp.is_some_and(|stamp| stamp.granted);
        behind.granted(granted.then_some((number, grant)), caller);
        if let (false, Some(leases)) = (granted, leases) {
            leases.unregister(number);
        }
        count_within(written(&answer?)?, data.len())
    }
}

/// The count of a write, as the kernel wants it.
pub(super) fn count_within(count: u64, length: usize) -> Outcome<u32> {
    match u32::try_from(count) {
        Ok(count) if count as usize <= length => Ok(count),
        _ => Err(errno(libc::EPROTO)),
    }
}
