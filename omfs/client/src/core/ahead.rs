//! Reading ahead of a sequential reader, under a read lease.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::v1::fs_reply::Result as Answer;
use proto::v1::fs_request::Op;
use proto::v1::{Caller, FsRequest, Read};

use super::opens::OpenFile;
use super::{Core, NEVER, Outcome, errno};
use crate::caller::Who;
use crate::window::{Fetch, Look, PIECE_BYTES_MIN, Window};
use omfs_service::FsAnswer;
use omfs_service::lease::{LeaseClient, LeaseHolder};

/// Reads one after the other that make a reader a sequential one.
const SEQUENTIAL_RUN: u32 = 2;
/// All that is kept for all readers of this node.
const KEPT_BYTES_MAX: usize = 128 << 20;
/// After a lease was refused or recalled, another one is asked for so much later; then twice that.
const ASK_AGAIN_MIN: Duration = Duration::from_millis(100);
const ASK_AGAIN_MAX: Duration = Duration::from_secs(30);
/// How often a reader that waits for a piece looks whether it is worth waiting.
const TICK: Duration = Duration::from_millis(100);
/// How long it waits at most.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// A lease from before it is asked for until it is given up.
#[derive(Debug)]
pub struct Grant {
    stopped: AtomicBool,
    reader: Weak<ReadAhead>,
}

impl Grant {
    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }
}

impl LeaseHolder for Grant {
    fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    fn give_up(&self) {
        if let Some(reader) = self.reader.upgrade() {
            reader.drop_kept();
        }
    }
}

#[derive(Debug)]
struct Kept {
    lease: u64,
    grant: Arc<Grant>,
    size: u64,
    window: Window,
}

#[derive(Debug)]
struct State {
    /// Where a sequential reader goes on.
    next: u64,
    run: u32,
    kept: Option<Kept>,
    asking: bool,
    ask_at: Instant,
    ask_again: Duration,
    /// What this reader's window counts for in `kept_bytes`.
    counted_bytes: usize,
}

/// What is read ahead on one open file.
#[derive(Debug)]
pub struct ReadAhead {
    state: Mutex<State>,
    arrived: Condvar,
    /// Of all readers.
    kept_bytes: Arc<AtomicUsize>,
}

/// What to do about a read.
enum Way {
    Served(Bytes),
    /// Ask the owner.
    Plain,
    /// Ask the owner, and for a lease.
    Ask,
    Wait,
}

/// Who reads, and where.
struct Reader<'a> {
    open: &'a Arc<OpenFile>,
    ahead: &'a Arc<ReadAhead>,
    leases: &'a dyn LeaseClient,
    who: Who,
}

impl ReadAhead {
    pub fn new(kept_bytes: &Arc<AtomicUsize>) -> Arc<Self> {
        let state = State {
            next: 0,
            run: 0,
            kept: None,
            asking: false,
            ask_at: Instant::now(),
            ask_again: ASK_AGAIN_MIN,
            counted_bytes: 0,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            arrived: Condvar::new(),
            kept_bytes: Arc::clone(kept_bytes),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts what the window has become.
    fn settle(&self, state: &mut State) {
        let bytes = state.kept.as_ref().map_or(0, |kept| kept.window.bytes());
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let kept_bytes = &self.kept_bytes;
        if bytes > state.counted_bytes {
            kept_bytes.fetch_add(bytes - state.counted_bytes, Ordering::Relaxed);
        } else {
            kept_bytes.fetch_sub(state.counted_bytes - bytes, Ordering::Relaxed);
        }
        state.counted_bytes = bytes;
    }

    fn drop_kept(&self) {
        let mut state = self.lock();
        if state.kept.take().is_some() {
            state.defer_asking();
        }
        self.settle(&mut state);
        drop(state);
        self.arrived.notify_all();
    }

    /// Nothing is kept from now on; the number of the lease that is to be given back, if any.
    pub fn give_up(&self) -> Option<u64> {
        let mut state = self.lock();
        let kept = state.kept.take()?;
        kept.grant.stop();
        state.defer_asking();
        self.settle(&mut state);
        drop(state);
        self.arrived.notify_all();
        Some(kept.lease)
    }

    /// Whether something is kept: for tests.
    #[cfg(test)]
    pub fn is_leased(&self) -> bool {
        self.lock().kept.is_some()
    }

    fn may_keep_more(&self) -> bool {
        self.kept_bytes.load(Ordering::Relaxed) < KEPT_BYTES_MAX
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        let counted = self.lock().counted_bytes;
        self.kept_bytes.fetch_sub(counted, Ordering::Relaxed);
    }
}

impl State {
    fn defer_asking(&mut self) {
        self.ask_at = Instant::now() + self.ask_again;
        self.ask_again = (2 * self.ask_again).min(ASK_AGAIN_MAX);
    }

    /// Notes where a read is; whether the reader is a sequential one.
    fn is_sequential(&mut self, offset: u64, size: u32) -> bool {
        self.run = if offset == self.next {
            self.run.saturating_add(1)
        } else {
            0
        };
        self.next = offset + u64::from(size);
        self.run >= SEQUENTIAL_RUN
    }
}

impl Reader<'_> {
    /// What to do about a read; what is to be fetched meanwhile is added to `fetches`.
    fn way(
        &self,
        state: &mut State,
        (offset, size): (u64, u32),
        sequential: bool,
        fetches: &mut Vec<(Fetch, Arc<Grant>)>,
    ) -> Way {
        let Some(kept) = &mut state.kept else {
            let ask = sequential && !state.asking && Instant::now() >= state.ask_at;
            state.asking |= ask;
            return if ask { Way::Ask } else { Way::Plain };
        };
        // The answer to a plain read makes the leases trusted again.
        if kept.grant.is_stopped() || !self.leases.is_trusted() {
            return Way::Plain;
        }
        let length = u64::from(size);
        if sequential && !kept.window.reaches(offset) {
            kept.window = Window::new(kept.size, offset, Bytes::new());
        }
        while sequential && self.ahead.may_keep_more() {
            let Some(fetch) = kept.window.plan(offset, length) else {
                break;
            };
            fetches.push((fetch, Arc::clone(&kept.grant)));
        }
        match kept.window.look(offset, length) {
            Look::Ready(data) => Way::Served(data),
            Look::Miss => Way::Plain,
            Look::Wait => Way::Wait,
        }
    }
}

impl Core {
    /// Reads through what was read ahead; `None` when the owner must be asked as usual.
    pub(super) fn read_ahead(
        &self,
        who: Who,
        open: &Arc<OpenFile>,
        offset: u64,
        size: u32,
    ) -> Option<Outcome<Bytes>> {
        let reader = Reader {
            open,
            ahead: open.ahead.as_ref()?,
            leases: open.route.service.lease_client()?,
            who,
        };
        let until = Instant::now() + WAIT_MAX;
        let mut state = reader.ahead.lock();
        let sequential = state.is_sequential(offset, size);
        loop {
            let mut fetches = Vec::new();
            let way = reader.way(&mut state, (offset, size), sequential, &mut fetches);
            reader.ahead.settle(&mut state);
            if !fetches.is_empty() {
                drop(state);
                for (fetch, grant) in fetches {
                    self.start_fetch(&reader, grant, fetch);
                }
                state = reader.ahead.lock();
                if matches!(way, Way::Wait) {
                    continue;
                }
            }
            match way {
                Way::Served(data) => return Some(Ok(data)),
                Way::Ask => {
                    drop(state);
                    return Some(self.ask_for_lease(&reader, offset, size));
                }
                Way::Wait if Instant::now() < until => {
                    let waited = reader.ahead.arrived.wait_timeout(state, TICK);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                Way::Wait | Way::Plain => return None,
            }
        }
    }

    fn start_fetch(&self, reader: &Reader<'_>, grant: Arc<Grant>, fetch: Fetch) {
        let caller = self.caller_without_groups(reader.who, reader.open.route.node);
        let (open, ahead) = (Arc::clone(reader.open), Arc::clone(reader.ahead));
        let job = move || {
            let read = Read {
                fh: open.fh,
                offset: fetch.at,
                size: u32::try_from(fetch.length).unwrap_or(0),
                ..Read::default()
            };
            let data = ask_read(&caller, &open, read).map(|answer| answer.payload);
            let mut state = ahead.lock();
            if let Some(kept) = &mut state.kept
                && Arc::ptr_eq(&kept.grant, &grant)
            {
                kept.window.arrived(fetch, data.ok());
            }
            ahead.settle(&mut state);
            drop(state);
            ahead.arrived.notify_all();
        };
        self.pool.run(job);
    }

    /// Reads, and asks for a lease by the way. Only one thread at a time does, for one open file.
    fn ask_for_lease(&self, reader: &Reader<'_>, offset: u64, size: u32) -> Outcome<Bytes> {
        let grant = Arc::new(Grant {
            stopped: AtomicBool::new(false),
            reader: Arc::downgrade(reader.ahead),
        });
        let weak: Weak<dyn LeaseHolder> = Arc::downgrade(&grant) as _;
        let lease = reader.leases.register(weak).unwrap_or(0);
        let extra = u32::try_from(PIECE_BYTES_MIN).unwrap_or(0);
        let read = Read {
            fh: reader.open.fh,
            offset,
            size,
            lease,
            ahead: if lease == 0 { 0 } else { extra },
        };
        let caller = self.caller_without_groups(reader.who, reader.open.route.node);
        let answer = ask_read(&caller, reader.open, read);
        let kept = answer.as_ref().ok().and_then(|answer| {
            let Some(Answer::Leased(leased)) = &answer.reply.result else {
                return None;
            };
            let window = Window::new(leased.size, offset, answer.payload.clone());
            leased.granted.then_some(Kept {
                lease,
                grant,
                size: leased.size,
                window,
            })
        });
        note_answer(reader.ahead, reader.leases, lease, kept);
        let payload = answer?.payload;
        if payload.len() > (size + extra) as usize {
            return Err(errno(libc::EPROTO));
        }
        Ok(payload.slice(..payload.len().min(size as usize)))
    }

    /// Gives back the leases of this node on a file that it is about to open, which would make the
    /// owner recall them.
    pub(super) fn give_up_leases(&self, id: u64, for_writing: bool) {
        for (_, open) in self.opens.of_file(id) {
            let Some(leases) = open.route.service.lease_client() else {
                continue;
            };
            let reading = open.ahead.as_ref().filter(|_| for_writing);
            let reading = reading.and_then(|ahead| ahead.give_up());
            let writing = open.behind.as_ref().and_then(|behind| behind.give_up());
            for lease in reading.into_iter().chain(writing) {
                leases.give_back(lease);
            }
        }
    }
}

fn ask_read(caller: &Caller, open: &OpenFile, read: Read) -> Outcome<FsAnswer> {
    let request = FsRequest {
        caller: Some(caller.clone()),
        op: Some(Op::Read(read)),
    };
    open.route.service.call(&request, &[], &NEVER)
}

fn note_answer(ahead: &ReadAhead, leases: &dyn LeaseClient, lease: u64, kept: Option<Kept>) {
    let mut state = ahead.lock();
    state.asking = false;
    match kept {
        Some(kept) if !kept.grant.is_stopped() => state.kept = Some(kept),
        // Recalled before it was granted: the keeper gives it back.
        Some(_) => state.defer_asking(),
        None => {
            leases.unregister(lease);
            state.defer_asking();
        }
    }
    ahead.settle(&mut state);
}
