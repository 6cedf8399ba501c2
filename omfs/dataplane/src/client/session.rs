//! One connection to a node's export.
//!
//! The thread that asks writes its request itself and then waits. Of the waiting threads one, the
//! leader, reads the socket: it returns with its own reply and hands replies of others to them.
//! So a lone request costs no switch between threads.

mod leases;

use std::collections::HashMap;
use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, recv};
use prost::Message;
use proto::frame::{Frame, FrameKind};
use proto::ids::{NodeId, RequestId};
use proto::link::{FrameSink, Outgoing};
use proto::v1::fs_event::What;
use proto::v1::fs_request::Op;
use proto::v1::{FsEvent, FsReply, FsRequest};

use super::super::link::TlsLink;
use super::super::reader::{Idle, TlsSource};
use super::super::writer::TlsSink;
use omfs_service::lease::{LeaseBook, LeaseClient, boot_ms};
use omfs_service::{Errno, FileService, FsAnswer};

/// How often a waiting thread looks at its `cancel` flag and at the peer's liveness.
const TICK: Duration = Duration::from_millis(25);
/// Silence after which the peer is asked whether it lives.
const PING_AFTER: Duration = Duration::from_millis(500);
/// Silence after which it is taken for dead.
const DEAD_AFTER: Duration = Duration::from_millis(1500);
/// How long one request may take; waiting for a lock has no limit.
const REQUEST_DEADLINE: Duration = Duration::from_secs(60);
/// Requests under way at once; more callers wait. The server reads on with at least as many.
pub const OUTSTANDING_MAX: usize = 128;
/// Waits for locks under way at once; more are refused with `ENOLCK`.
pub const LOCK_WAITS_MAX: usize = 512;

/// One connection's worth of file operations. Never reconnects; node handles and open handles live
/// as long as it.
#[derive(Debug)]
pub struct FsSession {
    node: NodeId,
    epoch: u64,
    sink: Arc<TlsSink>,
    socket: Arc<TcpStream>,
    next_id: AtomicU64,
    state: Mutex<State>,
    /// Signalled when a request ends while others wait for their turn to be sent.
    turn: Condvar,
    leases: Arc<LeaseBook>,
    keeper: Once,
    me: Weak<Self>,
}

#[derive(Debug)]
struct State {
    /// `None` while a leader reads.
    source: Option<TlsSource>,
    waiting: HashMap<u64, Waiting>,
    requests: usize,
    lock_waits: usize,
    death: Option<Death>,
}

#[derive(Debug)]
struct Waiting {
    wake: Arc<Condvar>,
    answer: Option<Frame>,
    /// Sent and asleep: can be made leader.
    asleep: bool,
}

/// How a connection ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Death {
    /// The peer closed it, or broke the protocol: a new one may work at once.
    Closed,
    /// The peer fell silent.
    Silent,
}

/// One request on its way, as its own thread sees it.
struct Pending<'a> {
    id: u64,
    wake: Arc<Condvar>,
    cancel: &'a AtomicBool,
    cancel_sent: bool,
    deadline: Option<Instant>,
}

const DOWN: Errno = Errno(libc::EHOSTDOWN);

impl FsSession {
    pub(super) fn new(link: TlsLink, epoch: u64) -> io::Result<Arc<Self>> {
        let socket = link.source.socket();
        link.source.set_tick(Some(TICK))?;
        link.sink.set_send_deadline(DEAD_AFTER);
        let state = State {
            source: Some(link.source),
            waiting: HashMap::new(),
            requests: 0,
            lock_waits: 0,
            death: None,
        };
        Ok(Arc::new_cyclic(|me| Self {
            node: link.peer,
            epoch,
            sink: link.sink,
            socket,
            next_id: AtomicU64::new(1),
            state: Mutex::new(state),
            turn: Condvar::new(),
            leases: Arc::default(),
            keeper: Once::new(),
            me: Weak::clone(me),
        }))
    }

    /// Differs between any two connections of this process.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The node at the other end.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the connection ended, if it did. An unused connection is looked at: a peer that was
    /// restarted meanwhile is noticed before a request is lost on it.
    pub(super) fn death(&self) -> Option<Death> {
        let state = self.lock();
        if state.death.is_some() || !state.waiting.is_empty() {
            return state.death;
        }
        drop(state);
        let mut byte = [0];
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        match recv(self.socket.as_raw_fd(), &mut byte, flags) {
            Err(nix::errno::Errno::EAGAIN) | Ok(1..) => None,
            _ => {
                self.fail(Death::Closed);
                Some(Death::Closed)
            }
        }
    }

    /// Ends the connection.
    pub fn close(&self) {
        self.fail(Death::Closed);
    }

    /// Ends the connection; everything under way fails with `EHOSTDOWN`.
    pub(super) fn fail(&self, death: Death) {
        // First of all: nothing may be served under a lease any more.
        self.leases.end();
        let mut state = self.lock();
        state.death.get_or_insert(death);
        for waiting in state.waiting.values() {
            waiting.wake.notify_all();
        }
        drop(state);
        self.turn.notify_all();
        self.sink.close();
    }

    fn begin(&self, blocking: bool, cancel: &AtomicBool) -> Result<(u64, Arc<Condvar>), Errno> {
        let mut state = self.lock();
        let until = Instant::now() + REQUEST_DEADLINE;
        while !blocking && state.requests >= OUTSTANDING_MAX && state.death.is_none() {
            if cancel.load(Ordering::Relaxed) {
                return Err(Errno(libc::EINTR));
            }
            if Instant::now() >= until {
                return Err(Errno(libc::ETIMEDOUT));
            }
            let waited = self.turn.wait_timeout(state, TICK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if state.death.is_some() {
            return Err(DOWN);
        }
        if blocking && state.lock_waits >= LOCK_WAITS_MAX {
            return Err(Errno(libc::ENOLCK));
        }
        *state.counter(blocking) += 1;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let wake = Arc::new(Condvar::new());
        let waiting = Waiting {
            wake: Arc::clone(&wake),
            answer: None,
            asleep: false,
        };
        state.waiting.insert(id, waiting);
        Ok((id, wake))
    }

    fn end(&self, id: u64, blocking: bool) {
        let mut state = self.lock();
        state.waiting.remove(&id);
        *state.counter(blocking) -= 1;
        drop(state);
        if !blocking {
            self.turn.notify_one();
        }
    }

    fn exchange(
        &self,
        pending: &mut Pending<'_>,
        request: &FsRequest,
        payload: &[u8],
    ) -> Result<Frame, Errno> {
        let out = Outgoing {
            kind: FrameKind::Request,
            id: RequestId(pending.id),
            status: 0,
            header: &request.encode_to_vec(),
            payload: &[payload],
        };
        if let Err(error) = self.sink.send(out) {
            if error.kind() == io::ErrorKind::InvalidData {
                return Err(Errno(libc::EINVAL)); // longer than a frame may be; nothing was sent
            }
            self.fail(death_by(&error));
            return Err(DOWN);
        }
        self.await_reply(pending)
    }

    fn await_reply(&self, pending: &mut Pending<'_>) -> Result<Frame, Errno> {
        let mut state = self.lock();
        loop {
            if let Some(frame) = state.take_answer(pending.id) {
                return Ok(frame);
            }
            if state.death.is_some() {
                return Err(DOWN);
            }
            if let Some(source) = state.source.take() {
                drop(state);
                if let Some(frame) = self.lead(source, pending)? {
                    return Ok(frame);
                }
                state = self.lock();
            } else {
                state.set_asleep(pending.id, true);
                let waited = pending.wake.wait_timeout(state, TICK);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                state.set_asleep(pending.id, false);
            }
            if pending.wants_cancel() {
                drop(state);
                self.cancel(pending);
                state = self.lock();
            }
            if pending.is_late() {
                return state.take_answer(pending.id).ok_or(Errno(libc::ETIMEDOUT));
            }
        }
    }

    fn cancel(&self, pending: &mut Pending<'_>) {
        let out = Outgoing {
            kind: FrameKind::Cancel,
            id: RequestId(pending.id),
            status: 0,
            header: &[],
            payload: &[],
        };
        // When another thread is sending just now, the next tick tries again.
        pending.cancel_sent = self.sink.send_if_free(out).unwrap_or(true);
    }

    /// Reads until the own reply comes (or this thread should not wait any longer), handing out
    /// what is for others.
    fn lead(
        &self,
        mut source: TlsSource,
        pending: &mut Pending<'_>,
    ) -> Result<Option<Frame>, Errno> {
        let result = self.read_until_own(&mut source, pending);
        match result {
            Ok(frame) => {
                self.hand_over(source);
                Ok(frame)
            }
            Err(error) => {
                tracing::debug!(node = %self.node, %error, "data connection lost");
                self.fail(death_by(&error));
                Err(DOWN)
            }
        }
    }

    fn read_until_own(
        &self,
        source: &mut TlsSource,
        pending: &mut Pending<'_>,
    ) -> io::Result<Option<Frame>> {
        let began = Instant::now();
        loop {
            let mut pinged = false;
            let mut on_idle = |silence: Duration| {
                // An unused connection is silent; what counts is silence while we wait.
                self.check_silence(silence.min(began.elapsed()), &mut pinged)?;
                if pending.wants_cancel() {
                    self.cancel(pending);
                }
                Ok(if pending.is_late() {
                    Idle::Leave
                } else {
                    Idle::Wait
                })
            };
            let Some(frame) = source.recv_until(&mut on_idle)? else {
                return Ok(None);
            };
            match frame.kind {
                FrameKind::Reply if frame.id.0 == pending.id => return Ok(Some(frame)),
                FrameKind::Reply => self.lock().deliver(frame),
                FrameKind::Event => self.take_event(&frame),
                FrameKind::Pong => {}
                _ => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "unexpected frame",
                    ));
                }
            }
        }
    }

    fn check_silence(&self, silence: Duration, pinged: &mut bool) -> io::Result<()> {
        if silence >= DEAD_AFTER {
            return Err(io::ErrorKind::TimedOut.into());
        }
        if silence >= PING_AFTER && !*pinged {
            let (kind, id) = (FrameKind::Ping, RequestId(0));
            let out = Outgoing {
                kind,
                id,
                status: 0,
                header: &[],
                payload: &[],
            };
            *pinged = self.sink.send_if_free(out)?;
        }
        Ok(())
    }

    fn take_event(&self, event: &Frame) {
        let decoded = FsEvent::decode(event.header.clone());
        // What else an event may say is not understood here.
        if let Ok(FsEvent {
            what: Some(What::Recall(lease)),
        }) = decoded
        {
            self.leases.recalled(lease);
        }
    }

    /// Gives the reading up to another waiting thread, if there is one. If there is none, nothing
    /// is left unread that has come: it may be a recall, which poll(2) would not tell of.
    fn hand_over(&self, mut source: TlsSource) {
        loop {
            let mut state = self.lock();
            let next = state.waiting.values().find(|waiting| waiting.asleep);
            if next.is_some() || !source.has_more() {
                if let Some(waiting) = next {
                    waiting.wake.notify_one();
                }
                state.source = Some(source);
                return;
            }
            drop(state);
            if let Err(error) = self.read_what_came(&mut source) {
                return self.fail(death_by(&error));
            }
        }
    }
}

impl Drop for FsSession {
    fn drop(&mut self) {
        self.leases.end();
        self.sink.close();
    }
}

impl State {
    fn counter(&mut self, blocking: bool) -> &mut usize {
        if blocking {
            &mut self.lock_waits
        } else {
            &mut self.requests
        }
    }

    fn take_answer(&mut self, id: u64) -> Option<Frame> {
        self.waiting.get_mut(&id)?.answer.take()
    }

    fn set_asleep(&mut self, id: u64, asleep: bool) {
        if let Some(waiting) = self.waiting.get_mut(&id) {
            waiting.asleep = asleep;
        }
    }

    /// A reply that nobody waits for any longer is dropped.
    fn deliver(&mut self, frame: Frame) {
        if let Some(waiting) = self.waiting.get_mut(&frame.id.0) {
            waiting.answer = Some(frame);
            waiting.asleep = false;
            waiting.wake.notify_one();
        }
    }
}

impl Pending<'_> {
    fn wants_cancel(&self) -> bool {
        !self.cancel_sent && (self.cancel.load(Ordering::Relaxed) || self.is_late())
    }

    fn is_late(&self) -> bool {
        self.deadline
            .is_some_and(|deadline| Instant::now() >= deadline)
    }
}

fn death_by(error: &io::Error) -> Death {
    if error.kind() == io::ErrorKind::TimedOut {
        Death::Silent
    } else {
        Death::Closed
    }
}

/// Whether an operation may wait for others without limit.
pub(in super::super) fn may_block(request: &FsRequest) -> bool {
    matches!(&request.op, Some(Op::SetLock(lock)) if lock.wait)
}

fn answer(frame: Frame) -> Result<FsAnswer, Errno> {
    match frame.status {
        0 => {
            let reply = FsReply::decode(frame.header).map_err(|_| Errno(libc::EPROTO))?;
            Ok(FsAnswer {
                reply,
                payload: frame.payload,
            })
        }
        errno @ 1..=4095 => Err(Errno(errno)),
        _ => Err(Errno(libc::EPROTO)),
    }
}

impl FileService for FsSession {
    fn call(
        &self,
        request: &FsRequest,
        payload: &[u8],
        cancel: &AtomicBool,
    ) -> Result<FsAnswer, Errno> {
        let blocking = may_block(request);
        let (id, wake) = self.begin(blocking, cancel)?;
        let deadline = (!blocking).then(|| Instant::now() + REQUEST_DEADLINE);
        let mut pending = Pending {
            id,
            wake,
            cancel,
            cancel_sent: false,
            deadline,
        };
        let sent_ms = boot_ms();
        let result = self.exchange(&mut pending, request, payload);
        self.end(id, blocking);
        let frame = result?;
        self.leases.renew(sent_ms);
        answer(frame)
    }

    fn lease_client(&self) -> Option<&dyn LeaseClient> {
        Some(self)
    }
}
