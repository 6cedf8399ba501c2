//! One served connection.
//!
//! Its threads take turns at reading ([`super::turns`]): the one that read a request executes it
//! itself, so that a request never waits for another thread to pick it up.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use omfs_limits::permits::{Caps, Permits};
use prost::Message;
use proto::frame::{Frame, FrameKind};
use proto::ids::{NodeId, RequestId};
use proto::link::{FrameSink, FrameSource, Outgoing};
use proto::v1::fs_event::What;
use proto::v1::{FsEvent, FsRequest};

use super::super::client::{LOCK_WAITS_MAX, may_block};
use super::super::link::TlsLink;
use super::super::reader::TlsSource;
use super::super::writer::TlsSink;
use super::turns::{Passed, Turns};
use omfs_service::lease::LeasePeer;
use omfs_service::{Errno, FileService, FsAnswer};

/// Threads for one node's requests and for all together, waits for locks included. Beyond, requests
/// are not read.
pub(super) const WORKERS: Caps = Caps {
    per_key: 1024,
    total: 4096,
};
/// A spare thread ends after so long without work.
const SPARE_FOR: Duration = Duration::from_secs(10);
/// A request that waited and took longer than this makes the following ones be read by another
/// thread at once,
const SLOW_AFTER: Duration = Duration::from_micros(200);
/// for so long.
const EAGER_FOR_MS: u64 = 1000;
/// A connection is busy when it has sent something within this time.
const BUSY_FOR_MS: u64 = 1000;

/// A connection whose peer is known.
pub(super) struct Connection {
    peer: NodeId,
    token: Vec<u8>,
    sink: Arc<TlsSink>,
    service: Arc<dyn FileService>,
    workers: Permits<NodeId>,
    began: Instant,
    /// When something was last sent, in ms since `began`.
    last_sent_ms: AtomicU64,
    /// Until when reading is passed on rather than parked, in ms since `began`.
    eager_until_ms: AtomicU64,
    turns: Turns,
    requests: Mutex<Requests>,
}

#[derive(Default)]
struct Requests {
    /// Under way, with what tells them that they were withdrawn.
    cancels: HashMap<u64, Arc<AtomicBool>>,
    lock_waits: usize,
}

/// A request that was read and registered.
struct Accepted {
    id: RequestId,
    request: FsRequest,
    payload: bytes::Bytes,
    cancel: Arc<AtomicBool>,
    blocking: bool,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

impl Connection {
    pub(super) fn new(
        link: TlsLink,
        service: Arc<dyn FileService>,
        workers: Permits<NodeId>,
    ) -> Self {
        Self {
            peer: link.peer,
            token: link.hello.token,
            sink: link.sink,
            service,
            workers,
            began: Instant::now(),
            last_sent_ms: AtomicU64::new(0),
            eager_until_ms: AtomicU64::new(0),
            turns: Turns::new(link.source),
            requests: Mutex::default(),
        }
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn peer(&self) -> NodeId {
        self.peer
    }

    pub(super) fn is_replaced_by(&self, other: &Self) -> bool {
        self.peer == other.peer && self.token == other.token
    }

    /// Ends the connection; requests under way are withdrawn.
    pub(super) fn close(&self) {
        self.turns.close();
        self.sink.close();
        for cancel in self.requests().cancels.values() {
            cancel.store(true, Ordering::Relaxed);
        }
    }

    /// Looks after the connection: another thread reads when the one that should is away, and a
    /// peer that waits for us and has heard nothing for `after` is told that we live. True while
    /// the connection is busy.
    pub(super) fn look_after(self: &Arc<Self>, after: Duration) -> bool {
        if self.turns.rescue() {
            // Without a thread the source stays parked, and its owner comes back to it.
            let _ = self.start_reader();
        }
        let silence_ms = self
            .now_ms()
            .saturating_sub(self.last_sent_ms.load(Ordering::Relaxed));
        let waited_for = !self.requests().cancels.is_empty();
        if waited_for && u128::from(silence_ms) >= after.as_millis() {
            self.beat();
        }
        waited_for || silence_ms < BUSY_FOR_MS
    }

    fn beat(&self) {
        let (kind, id) = (FrameKind::Pong, RequestId(0));
        let pong = Outgoing {
            kind,
            id,
            status: 0,
            header: &[],
            payload: &[],
        };
        // An error ends the connection, which its reader notices.
        let _ = self.sink.send_if_free(pong);
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Works on the connection until it ends. Called by its first thread.
    pub(super) fn run(self: &Arc<Self>) {
        self.work(None);
    }

    /// Waits until every thread has finished; the connection is closed.
    pub(super) fn wait_for_requests(&self) {
        self.turns.wait_for_threads();
    }

    /// A thread's life. Spare threads end after a while; the first one (`None`) stays.
    fn work(self: &Arc<Self>, spare_for: Option<Duration>) {
        while let Some(source) = self.turns.next(spare_for) {
            if let Err(error) = self.read(source) {
                tracing::debug!(peer = %self.peer, %error, "data connection ended");
                self.close();
            }
        }
        self.turns.leave();
    }

    /// Reads until this thread has executed a request and given the reading up.
    fn read(self: &Arc<Self>, mut source: TlsSource) -> io::Result<()> {
        loop {
            let frame = source.recv()?;
            let Some(accepted) = self.accept(frame)? else {
                continue;
            };
            if accepted.blocking {
                self.wait_aside(accepted);
                continue;
            }
            let eager = self.now_ms() < self.eager_until_ms.load(Ordering::Relaxed);
            if !eager && !source.has_more() {
                self.turns.park(source);
                return self.execute_timed(accepted);
            }
            match self.pass_on(source) {
                // Nobody could take over: the next frame waits until this request is done.
                Some(kept) => source = kept,
                None => return self.execute_timed(accepted),
            }
            self.execute(accepted)?;
        }
    }

    fn execute_timed(&self, accepted: Accepted) -> io::Result<()> {
        let (began, waits) = (Instant::now(), waits_of_thread());
        let result = self.execute(accepted);
        // One that had to share its CPU has not waited: a thread more would have to share it, too.
        if began.elapsed() >= SLOW_AFTER && waits_of_thread() != waits {
            self.eager_until_ms
                .store(self.now_ms() + EAGER_FOR_MS, Ordering::Relaxed);
        }
        result
    }

    /// Handles a frame; gives back the request it was, if it was one to be executed.
    fn accept(&self, frame: Frame) -> io::Result<Option<Accepted>> {
        match frame.kind {
            FrameKind::Request => self.register(frame),
            FrameKind::Cancel => {
                if let Some(cancel) = self.requests().cancels.get(&frame.id.0) {
                    cancel.store(true, Ordering::Relaxed);
                }
                Ok(None)
            }
            FrameKind::Ping => {
                let (kind, id) = (FrameKind::Pong, frame.id);
                let pong = Outgoing {
                    kind,
                    id,
                    status: 0,
                    header: &[],
                    payload: &[],
                };
                self.sink.send(pong)?;
                Ok(None)
            }
            FrameKind::Event => {
                if let Some(lease) = returned(&frame) {
                    self.service.lease_returned(lease);
                }
                Ok(None)
            }
            FrameKind::Pong => Ok(None),
            FrameKind::Hello | FrameKind::Reply => Err(protocol("unexpected frame")),
        }
    }

    fn register(&self, frame: Frame) -> io::Result<Option<Accepted>> {
        let Ok(request) = FsRequest::decode(frame.header) else {
            self.reply(frame.id, Err(Errno(libc::EBADMSG)))?;
            return Ok(None);
        };
        let blocking = may_block(&request);
        let cancel = Arc::new(AtomicBool::new(false));
        let mut requests = self.requests();
        if blocking && requests.lock_waits >= LOCK_WAITS_MAX {
            drop(requests);
            self.reply(frame.id, Err(Errno(libc::ENOLCK)))?;
            return Ok(None);
        }
        match requests.cancels.entry(frame.id.0) {
            Entry::Occupied(_) => return Err(protocol("request id used twice")),
            Entry::Vacant(entry) => entry.insert(Arc::clone(&cancel)),
        };
        requests.lock_waits += usize::from(blocking);
        let (id, payload) = (frame.id, frame.payload);
        Ok(Some(Accepted {
            id,
            request,
            payload,
            cancel,
            blocking,
        }))
    }

    /// Executes a request that may wait for long on a thread of its own, which is no reader.
    fn wait_aside(self: &Arc<Self>, accepted: Accepted) {
        let id = accepted.id;
        let connection = Arc::clone(self);
        self.turns.aside(true);
        let wait = move || {
            // An error ends the connection, which its reader notices.
            let _ = connection.execute(accepted);
            connection.turns.aside(false);
        };
        if self.start_thread("omfs-data-wait", wait).is_err() {
            self.turns.aside(false);
            self.finish(id, true);
            let _ = self.reply(id, Err(Errno(libc::ENOLCK)));
        }
    }

    /// Lets another thread read on; gives the source back when there is none and there must be no
    /// more.
    fn pass_on(self: &Arc<Self>, source: TlsSource) -> Option<TlsSource> {
        match self.turns.pass_on(source) {
            Passed::On => None,
            Passed::ToNewThread => self.start_reader(),
            Passed::Back(source) => Some(source),
        }
    }

    /// Starts a thread that takes turns, already counted; the source when that is not possible.
    fn start_reader(self: &Arc<Self>) -> Option<TlsSource> {
        let connection = Arc::clone(self);
        let started = self.start_thread("omfs-data", move || connection.work(Some(SPARE_FOR)));
        if started.is_err() {
            self.turns.no_new_thread()
        } else {
            None
        }
    }

    fn start_thread(&self, name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let counted = self.workers.take(self.peer);
        let counted = counted.map_err(|_| io::Error::from(io::ErrorKind::QuotaExceeded))?;
        let counted = move || {
            let _counted = counted;
            body();
        };
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(counted)
            .map(drop)
    }

    fn execute(&self, accepted: Accepted) -> io::Result<()> {
        let Accepted {
            id,
            request,
            payload,
            cancel,
            blocking,
        } = accepted;
        let call = || self.service.call(&request, &payload, &cancel);
        // A defect in one operation must not leave its caller, or the connection, hanging.
        let result = catch_unwind(AssertUnwindSafe(call)).unwrap_or(Err(Errno(libc::EIO)));
        self.finish(id, blocking);
        self.reply(id, result)
    }

    fn finish(&self, id: RequestId, blocking: bool) {
        let mut requests = self.requests();
        requests.cancels.remove(&id.0);
        requests.lock_waits -= usize::from(blocking);
    }

    fn reply(&self, id: RequestId, result: Result<FsAnswer, Errno>) -> io::Result<()> {
        let (status, answer) = match result {
            Ok(answer) => (0, answer),
            Err(errno) => (errno.0, FsAnswer::default()),
        };
        let header = answer.reply.encode_to_vec();
        let kind = FrameKind::Reply;
        let payload: &[&[u8]] = &[&answer.payload];
        let sent = self.sink.send(Outgoing {
            kind,
            id,
            status,
            header: &header,
            payload,
        });
        if sent
            .as_ref()
            .is_err_and(|error| error.kind() == io::ErrorKind::InvalidData)
        {
            // Longer than a frame may be; nothing was sent.
            let (status, header, payload) = (libc::EMSGSIZE, &[][..], &[][..]);
            self.sink.send(Outgoing {
                kind,
                id,
                status,
                header,
                payload,
            })?;
        } else {
            sent?;
        }
        self.last_sent_ms.store(self.now_ms(), Ordering::Relaxed);
        Ok(())
    }
}

impl LeasePeer for Connection {
    fn recall(&self, lease: u64) -> io::Result<()> {
        let what = Some(What::Recall(lease));
        let header = FsEvent { what }.encode_to_vec();
        self.sink.send(Outgoing {
            kind: FrameKind::Event,
            id: RequestId(0),
            status: 0,
            header: &header,
            payload: &[],
        })
    }

    fn fence(&self) {
        tracing::info!(peer = %self.peer, "fenced: it did not give a lease back");
        self.close();
    }
}

/// How often the calling thread has given its CPU up to wait for something.
fn waits_of_thread() -> i64 {
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| usage.voluntary_context_switches())
}

/// The lease that an event gives back; what else events may say is not understood here.
fn returned(event: &Frame) -> Option<u64> {
    match FsEvent::decode(event.header.clone()).ok()?.what? {
        What::Returned(lease) => Some(lease),
        What::Recall(_) => None,
    }
}

fn protocol(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}
