//! Writing behind a sequential writer, under a write lease: what is held back for one open file.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use proto::v1::{Caller, Leased};

use super::holding::Holding;
use super::opens::OpenFile;
use super::unsent::{is_as_it_was, send};
use super::{Outcome, errno};
use crate::caller::Who;
use crate::spool::{HELD_BYTES_MAX, Spool};
use omfs_service::Errno;
use omfs_service::lease::LeaseHolder;

/// Writes, each where the one before it ended, that make a writer a sequential one.
const SEQUENTIAL_RUN: u32 = 2;
/// What one request carries at most: what an owner writes at once.
const PIECE_BYTES_MAX: usize = 1 << 20;
/// So much is sent at once.
pub(super) const PIECE_BYTES_FULL: usize = 256 << 10;
/// After a lease was refused or recalled, another one is asked for so much later; then twice that.
const ASK_AGAIN_MIN: Duration = Duration::from_millis(100);
const ASK_AGAIN_MAX: Duration = Duration::from_secs(30);

/// A lease from before it is asked for until it is given up.
#[derive(Debug)]
pub struct Grant {
    stopped: AtomicBool,
    writer: Weak<WriteBehind>,
}

impl LeaseHolder for Grant {
    fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    fn give_up(&self) {
        if let Some(writer) = self.writer.upgrade() {
            // What went wrong is told to whoever uses the file next.
            let _ = writer.give_up();
        }
    }
}

#[derive(Debug)]
struct Lease {
    number: u64,
    grant: Arc<Grant>,
}

#[derive(Debug)]
struct State {
    /// Where a sequential writer goes on.
    next: u64,
    run: u32,
    asking: bool,
    ask_at: Instant,
    ask_again: Duration,
    lease: Option<Lease>,
    /// What the owner does not have yet. Made with the first lease.
    spool: Option<Spool>,
    /// A thread is sending.
    is_sending: bool,
    /// Whether this file counts in `holding`.
    is_counted: bool,
    /// The connection ended. What is held waits for the next one ([`Core::current`]).
    ///
    /// [`Core::current`]: super::Core::current
    is_stranded: bool,
    /// What is held comes from another connection: the file may have been changed since.
    is_doubtful: bool,
}

/// What is written behind on one open file.
#[derive(Debug)]
pub struct WriteBehind {
    state: Mutex<State>,
    sent: Condvar,
    /// The owner's open file.
    open: Weak<OpenFile>,
    /// Open files of this node with something that the owner may not have yet.
    holding: Arc<Holding>,
}

/// What became of a write.
pub enum Taken {
    /// It is held back.
    Held,
    /// The owner is to be asked; nothing is held back any more.
    Plain,
    /// The owner is to be asked for a lease, too.
    Ask,
}

impl WriteBehind {
    /// `spool`: what was held back on another connection.
    pub fn new(open: Weak<OpenFile>, holding: &Arc<Holding>, spool: Option<Spool>) -> Arc<Self> {
        let mut state = State {
            next: 0,
            run: 0,
            asking: false,
            ask_at: Instant::now(),
            ask_again: ASK_AGAIN_MIN,
            lease: None,
            is_doubtful: spool.as_ref().is_some_and(|spool| !spool.is_empty()),
            spool,
            is_sending: false,
            is_counted: false,
            is_stranded: false,
        };
        holding.recount(&mut state.is_counted, state.is_doubtful);
        Arc::new(Self {
            state: Mutex::new(state),
            sent: Condvar::new(),
            open,
            holding: Arc::clone(holding),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds a write back, if that is allowed. `true` besides: the caller is to see to it that what
    /// is held is sent soon.
    pub fn take(&self, who: Who, offset: u64, data: &[u8], append: bool) -> Outcome<(Taken, bool)> {
        let mut state = self.lock();
        let sequential = state.is_sequential(offset, data.len(), append);
        loop {
            if let Some(problem) = state.problem() {
                return Err(problem);
            }
            if append || !self.holding.is_allowed() || !state.may_hold(who, offset, data.len()) {
                drop(state);
                self.settle()?;
                return Ok((self.way(sequential), false));
            }
            if state.held() + data.len() > HELD_BYTES_MAX {
                state = self.send_next(state);
                continue;
            }
            let before = state.held();
            let pushed = state
                .spool
                .as_mut()
                .is_some_and(|spool| spool.push(offset, data).is_ok());
            self.recount(&mut state);
            if !pushed {
                drop(state);
                self.settle()?;
                return Ok((Taken::Plain, false));
            }
            let filled = before < PIECE_BYTES_FULL && state.held() >= PIECE_BYTES_FULL;
            return Ok((Taken::Held, before == 0 || filled));
        }
    }

    fn way(&self, sequential: bool) -> Taken {
        let mut state = self.lock();
        let ask =
            sequential && state.lease.is_none() && !state.asking && Instant::now() >= state.ask_at;
        state.asking |= ask;
        if ask { Taken::Ask } else { Taken::Plain }
    }

    /// Sends the next piece, or waits for the thread that is sending one.
    fn send_next<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        if state.is_sending {
            return self
                .sent
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let is_doubtful = state.is_doubtful;
        let Some(spool) = &mut state.spool else {
            return state;
        };
        let head = spool.head().clone();
        let outcome = spool.take(PIECE_BYTES_MAX).map_err(Errno::from);
        state.is_sending = true;
        drop(state);
        let outcome = outcome.and_then(|(at, piece)| {
            let open = self.open.upgrade().ok_or(errno(libc::EBADF))?;
            if is_doubtful && !is_as_it_was(&open, &head, &piece)? {
                return Err(errno(libc::EIO));
            }
            send(&open, &head.caller.unwrap_or_default(), at, &piece)
        });
        let mut state = self.lock();
        state.is_sending = false;
        state.note_sent(outcome);
        let is_stranded = state.is_stranded;
        self.recount(&mut state);
        self.sent.notify_all();
        if is_stranded {
            self.holding.rescue();
        }
        state
    }

    fn recount(&self, state: &mut State) {
        let counts = state.is_sending || state.held() > 0;
        self.holding.recount(&mut state.is_counted, counts);
    }

    /// Sends everything and waits until the owner has it.
    ///
    /// # Errors
    /// Why bytes were lost, ever. `EHOSTDOWN`: they were not sent yet, since the connection ended.
    pub fn settle(&self) -> Outcome<()> {
        let mut state = self.lock();
        while state.is_sending || (state.held() > 0 && !state.is_stranded) {
            state = self.send_next(state);
        }
        state.problem().map_or(Ok(()), Err)
    }

    /// Sends what is held now. What comes meanwhile has a time of its own.
    pub fn send_held(&self) {
        let mut state = self.lock();
        let end = state.spool.as_ref().map_or(0, |spool| spool.head().end);
        let is_due = |state: &State| {
            let spool = state.spool.as_ref().filter(|_| !state.is_stranded);
            spool.is_some_and(|spool| !spool.is_empty() && spool.head().from < end)
        };
        while is_due(&state) {
            state = self.send_next(state);
        }
    }

    /// Bytes that are held back.
    pub fn held(&self) -> usize {
        self.lock().held()
    }

    /// Whether something waits for another connection, or comes from one.
    pub fn is_stranded(&self) -> bool {
        let state = self.lock();
        (state.is_stranded || state.is_doubtful) && state.held() > 0
    }

    /// Sends everything, and holds nothing back for a while; the number of the lease, if any.
    pub fn give_up(&self) -> Option<u64> {
        let number = self.do_without()?;
        self.lock().defer_asking();
        Some(number)
    }

    /// Sends everything, and holds nothing back until it has another lease; the number of this one.
    pub fn do_without(&self) -> Option<u64> {
        if let Some(lease) = &self.lock().lease {
            lease.grant.stop();
        }
        let _ = self.settle();
        let lease = self.lock().lease.take()?;
        Some(lease.number)
    }

    /// Ends this in favour of another connection's, which gets what is held.
    pub fn hand_over(&self) -> Option<Spool> {
        let mut state = self.lock();
        state.is_stranded = true;
        while state.is_sending {
            state = self.send_next(state);
        }
        let spool = state.spool.take();
        self.recount(&mut state);
        spool
    }

    /// Ends this with its file.
    pub fn end(&self) {
        if let Some(spool) = self.hand_over() {
            spool.remove();
        }
    }

    /// Prepares to hold something back, or says that it cannot be done.
    pub fn prepare(&self, make: impl FnOnce() -> std::io::Result<Spool>) -> bool {
        let mut state = self.lock();
        if state.spool.is_none() {
            state.spool = make().ok();
        }
        state.asking = state.spool.is_some();
        if !state.asking {
            state.defer_asking();
        }
        state.asking
    }

    /// A lease before it is asked for.
    pub fn grant(self: &Arc<Self>) -> Arc<Grant> {
        Arc::new(Grant {
            stopped: AtomicBool::new(false),
            writer: Arc::downgrade(self),
        })
    }

    /// It was granted under a number, or not.
    pub fn granted(&self, grant: Option<(u64, Arc<Grant>)>, caller: Caller) {
        let mut state = self.lock();
        state.asking = false;
        let whole = grant.filter(|(_, grant)| !grant.stopped.load(Ordering::Acquire));
        let noted = state
            .spool
            .as_mut()
            .is_some_and(|spool| spool.note(|head| head.caller = Some(caller)).is_ok());
        match whole.filter(|_| noted) {
            Some((number, grant)) => state.lease = Some(Lease { number, grant }),
            None => state.defer_asking(),
        }
    }

    /// What the owner's file is like after a write that was not held back; `None`: something else
    /// was done to it.
    pub fn note_stamp(&self, stamp: Option<&Leased>) {
        let mut state = self.lock();
        if let Some(spool) = &mut state.spool {
            let _ = spool.note(|head| {
                head.mtime = stamp.and_then(|stamp| stamp.mtime);
                head.size = stamp.map_or(0, |stamp| stamp.size);
            });
        }
    }

    #[cfg(test)]
    pub fn is_leased(&self) -> bool {
        self.lock().lease.is_some()
    }
}

impl State {
    fn held(&self) -> usize {
        self.spool.as_ref().map_or(0, Spool::len)
    }

    /// Why bytes were lost, or cannot be sent for now.
    fn problem(&self) -> Option<Errno> {
        let lost = self.spool.as_ref().map_or(0, |spool| spool.head().lost);
        match lost {
            0 if self.is_stranded => Some(errno(libc::EHOSTDOWN)),
            0 => None,
            lost => Some(errno(lost)),
        }
    }

    /// Without word of what the file was like nobody could tell later whether it was changed.
    fn may_hold(&self, who: Who, offset: u64, length: usize) -> bool {
        let lease = self.lease.as_ref();
        let leased = lease.is_some_and(|lease| !lease.grant.stopped.load(Ordering::Acquire));
        let Some(spool) = self.spool.as_ref().filter(|_| leased) else {
            return false;
        };
        let head = spool.head();
        let follows = spool.is_empty() || offset == head.end;
        let user = head.caller.as_ref().map(|caller| (caller.uid, caller.gid));
        let fits = length <= PIECE_BYTES_FULL;
        follows && user == Some((who.uid, who.gid)) && fits && head.mtime.is_some()
    }

    fn note_sent(&mut self, outcome: Outcome<Option<Leased>>) {
        let Some(spool) = &mut self.spool else {
            return;
        };
        let noted = match outcome {
            Ok(stamp) => {
                self.is_doubtful = false;
                spool.sent(|head| {
                    head.mtime = stamp.as_ref().and_then(|stamp| stamp.mtime);
                    head.size = stamp.as_ref().map_or(0, |stamp| stamp.size);
                })
            }
            Err(Errno(libc::EHOSTDOWN)) => {
                self.is_stranded = true;
                return;
            }
            Err(problem) => spool.lose(problem.0),
        };
        // A page that exists can be written; should it fail nevertheless, bytes may be lost.
        if noted.is_err() {
            spool.lose_unnoted(libc::EIO);
        }
    }

    fn defer_asking(&mut self) {
        self.ask_at = Instant::now() + self.ask_again;
        self.ask_again = (2 * self.ask_again).min(ASK_AGAIN_MAX);
    }

    fn is_sequential(&mut self, offset: u64, length: usize, append: bool) -> bool {
        let follows = offset == self.next && !append;
        self.run = if follows {
            self.run.saturating_add(1)
        } else {
            0
        };
        self.next = offset + length as u64;
        self.run >= SEQUENTIAL_RUN
    }
}
