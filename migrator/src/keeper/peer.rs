//! The other end of a link, and whether it lives.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use prost::Message;
use proto::frame::{Frame, FrameKind};
use proto::ids::RequestId;
use proto::link::{FrameSink, FrameSource, Link, Outgoing};
use proto::v1::{JobMessage, job_message::What};

use super::inbox::{InboxSender, Input};
pub use super::peer_id::PeerId;

/// How often the peer is asked whether it lives.
const PING_EVERY: Duration = Duration::from_secs(5);
/// Silence after which a peer is taken for dead though the connection stands, unless configured
/// otherwise: its process hangs, or stands still with its node (a frozen cgroup or virtual machine)
/// and will go on. The connection of a process that is gone is closed at once, that of a dead node or
/// a cut network by the kernel within seconds; the kernel answers however busy the node is.
pub const SILENCE_MAX: Duration = Duration::from_secs(600);
/// At least this much is borne during a move, when the peer may be busy with a lot of memory.
const SILENCE_MAX_MOVING: Duration = Duration::from_secs(30);
/// What one frame of bulk data carries.
pub const CHUNK_BYTES: usize = 1 << 20;

/// A connected peer.
#[derive(Debug)]
pub struct Peer {
    id: PeerId,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    sink: Arc<dyn FrameSink>,
    silence: Silence,
    silence_max: Duration,
    moving: AtomicBool,
    ended: AtomicBool,
    when_lost: WhenLost,
    next_request: AtomicU64,
}

/// Whether a process was on its way when something happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moving(pub bool);

type Act = Box<dyn FnOnce(Moving) + Send>;

/// What is done once when the link has ended, whatever the keeper's loop is waiting for.
#[derive(Default)]
struct WhenLost(Mutex<Option<Act>>);

impl WhenLost {
    fn lock(&self) -> MutexGuard<'_, Option<Act>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for WhenLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WhenLost").finish_non_exhaustive()
    }
}

/// How long the peer has been silent while we listened: on a busy machine we may be late ourselves,
/// and what the peer sent meanwhile waits to be read.
#[derive(Debug, Default)]
struct Silence {
    listened_ms: AtomicU64,
    /// What came is being handed over, and nothing is read until that is done.
    handing_over: AtomicBool,
}

impl Silence {
    fn heard(&self) {
        self.listened_ms.store(0, Ordering::Relaxed);
    }

    /// Something that came is handed over to a loop that may be busy.
    fn hand_over<T>(&self, put: impl FnOnce() -> T) -> T {
        self.handing_over.store(true, Ordering::Relaxed);
        let done = put();
        self.heard();
        self.handing_over.store(false, Ordering::Relaxed);
        done
    }

    /// A pause of [`PING_EVERY`] is over that has really taken so long.
    fn paused(&self, took: Duration) {
        if !self.handing_over.load(Ordering::Relaxed) {
            let counts = took.min(PING_EVERY).as_millis();
            let counts = u64::try_from(counts).unwrap_or(0);
            self.listened_ms.fetch_add(counts, Ordering::Relaxed);
        }
    }

    fn listened(&self) -> Duration {
        Duration::from_millis(self.listened_ms.load(Ordering::Relaxed))
    }
}

impl Shared {
    fn silence_max(&self) -> Duration {
        if self.moving.load(Ordering::Relaxed) {
            self.silence_max.max(SILENCE_MAX_MOVING)
        } else {
            self.silence_max
        }
    }

    fn lost(&self) {
        self.ended.store(true, Ordering::SeqCst);
        let act = self.when_lost.lock().take();
        if let Some(act) = act {
            act(Moving(self.moving.load(Ordering::Relaxed)));
        }
    }

    fn send(&self, kind: FrameKind, id: RequestId, header: &[u8], data: &[u8]) -> io::Result<()> {
        let payload: &[&[u8]] = if data.is_empty() { &[] } else { &[data] };
        self.sink.send(Outgoing {
            kind,
            id,
            status: 0,
            header,
            payload,
        })
    }
}

impl Peer {
    /// Starts listening to a link: what it brings goes to `inbox`. The peer may be silent for
    /// `silence_max`.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn start(
        id: PeerId,
        link: Link,
        inbox: &InboxSender,
        silence_max: Duration,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            sink: link.sink,
            silence: Silence::default(),
            silence_max,
            moving: AtomicBool::new(true),
            ended: AtomicBool::new(false),
            when_lost: WhenLost::default(),
            next_request: AtomicU64::new(1),
        });
        let (source, reading, to) = (link.source, Arc::clone(&shared), inbox.clone());
        spawn("link", move || read(id, source, &reading, &to))?;
        let (pinging, to) = (Arc::clone(&shared), inbox.clone());
        spawn("liveness", move || ping(id, &pinging, &to))?;
        Ok(Self { id, shared })
    }

    /// Which of the keeper's peers this is.
    #[must_use]
    pub fn id(&self) -> PeerId {
        self.id
    }

    /// Has `act` done as soon as the link ends, by the thread that learns of it; now, if it has
    /// ended. The keeper's loop hears of it later: it may be waiting for files that only the peer's
    /// node has. Nothing is done when the keeper ends the link itself. `act` is told whether the
    /// process was being moved: then the peer may well have ended the link because it has it.
    pub fn when_lost(&self, act: impl FnOnce(Moving) + Send + 'static) {
        *self.shared.when_lost.lock() = Some(Box::new(act));
        if self.has_ended() {
            self.shared.lost();
        }
    }

    /// Whether the link has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.shared.ended.load(Ordering::SeqCst)
    }

    /// During moves the peer may be silent for longer.
    pub fn set_moving(&self, moving: bool) {
        self.shared.moving.store(moving, Ordering::Relaxed);
    }

    /// Sends a message that has no answer.
    ///
    /// # Errors
    /// The link is broken.
    pub fn tell(&self, what: What, data: &[u8]) -> io::Result<()> {
        let header = JobMessage { what: Some(what) }.encode_to_vec();
        self.shared
            .send(FrameKind::Event, RequestId(0), &header, data)
    }

    /// Passes a frame of another peer on as it is.
    ///
    /// # Errors
    /// The link is broken.
    pub fn relay(&self, frame: &Frame) -> io::Result<()> {
        self.shared
            .send(frame.kind, frame.id, &frame.header, &frame.payload)
    }

    /// Sends a message that will be answered.
    ///
    /// # Errors
    /// The link is broken.
    pub fn request(&self, what: What, data: &[u8]) -> io::Result<RequestId> {
        let id = RequestId(self.shared.next_request.fetch_add(1, Ordering::Relaxed));
        let header = JobMessage { what: Some(what) }.encode_to_vec();
        self.shared.send(FrameKind::Request, id, &header, data)?;
        Ok(id)
    }

    /// Answers a request.
    ///
    /// # Errors
    /// The link is broken.
    pub fn reply(&self, id: RequestId, what: What, data: &[u8]) -> io::Result<()> {
        let header = JobMessage { what: Some(what) }.encode_to_vec();
        self.shared.send(FrameKind::Reply, id, &header, data)
    }

    /// Asks for an early answer to a request; the answer still comes.
    ///
    /// # Errors
    /// The link is broken.
    pub fn cancel(&self, id: RequestId) -> io::Result<()> {
        self.shared.send(FrameKind::Cancel, id, &[], &[])
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.shared.when_lost.lock().take();
        self.shared.ended.store(true, Ordering::Relaxed);
        self.shared.sink.close();
    }
}

/// Decodes a frame's message.
///
/// # Errors
/// `InvalidData` if it is none.
pub fn message(frame: &Frame) -> io::Result<What> {
    let message = JobMessage::decode(&frame.header[..])
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    message
        .what
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an unknown job message"))
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new()
        .name(name.to_owned())
        .stack_size(256 << 10)
        .spawn(run)
        .map(drop)
}

fn read(id: PeerId, mut source: Box<dyn FrameSource>, shared: &Shared, inbox: &InboxSender) {
    let why = loop {
        let frame = match source.recv() {
            Ok(frame) => frame,
            Err(error) => break error.to_string(),
        };
        shared.silence.heard();
        let taken = match frame.kind {
            FrameKind::Ping => shared.send(FrameKind::Pong, frame.id, &[], &[]).is_ok(),
            FrameKind::Pong | FrameKind::Hello => true,
            _ => shared
                .silence
                .hand_over(|| inbox.put(Input::Frame(id, frame))),
        };
        if !taken {
            break "the link does not take answers".to_owned();
        }
    };
    shared.lost();
    let _ = inbox.put(Input::Lost(id, why));
}

fn ping(id: PeerId, shared: &Shared, inbox: &InboxSender) {
    while !shared.ended.load(Ordering::Relaxed) {
        let silence = shared.silence.listened();
        if silence > shared.silence_max() {
            let why = format!("no sign of life for {} s", silence.as_secs());
            shared.lost();
            let _ = inbox.put(Input::Lost(id, why));
            shared.sink.close();
            return;
        }
        if shared
            .send(FrameKind::Ping, RequestId(0), &[], &[])
            .is_err()
        {
            return; // the reader tells
        }
        let paused = Instant::now();
        thread::sleep(PING_EVERY);
        shared.silence.paused(paused.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use proto::link::unix_link;
    use proto::v1::{Exited, Go};

    use super::super::Inbox;
    use super::*;

    #[test]
    fn only_the_time_in_which_we_could_have_heard_counts_as_silence() {
        let silence = Silence::default();
        silence.paused(PING_EVERY * 60); // this machine was busy, or suspended
        assert_eq!(silence.listened(), PING_EVERY);
        for _ in 0..20 {
            silence.paused(PING_EVERY);
        }
        assert_eq!(silence.listened(), PING_EVERY * 21);
        silence.heard();
        assert_eq!(silence.listened(), Duration::ZERO);
        silence.hand_over(|| silence.paused(PING_EVERY));
        assert_eq!(silence.listened(), Duration::ZERO);
    }

    #[test]
    fn messages_cross_and_a_closed_link_is_noticed() {
        let (near, far) = UnixStream::pair().unwrap();
        let (left, right) = (Inbox::new().unwrap(), Inbox::new().unwrap());
        let near = Peer::start(
            PeerId(1),
            unix_link(near).unwrap(),
            &left.sender(),
            SILENCE_MAX,
        )
        .unwrap();
        let far = Peer::start(
            PeerId(2),
            unix_link(far).unwrap(),
            &right.sender(),
            SILENCE_MAX,
        )
        .unwrap();
        near.tell(What::Go(Go {}), b"data").unwrap();
        let id = near
            .request(What::Exited(Exited { status: 9 }), &[])
            .unwrap();
        let soon = Instant::now() + Duration::from_secs(10);
        let Some(Input::Frame(PeerId(2), frame)) = right.next(soon).unwrap() else {
            panic!("no frame");
        };
        assert!(matches!(message(&frame), Ok(What::Go(_))));
        assert_eq!(&frame.payload[..], b"data");
        let Some(Input::Frame(_, frame)) = right.next(soon).unwrap() else {
            panic!("no request");
        };
        assert_eq!((frame.kind, frame.id), (FrameKind::Request, id));
        far.reply(id, What::Go(Go {}), &[]).unwrap();
        let Some(Input::Frame(_, frame)) = left.next(soon).unwrap() else {
            panic!("no reply");
        };
        assert_eq!((frame.kind, frame.id), (FrameKind::Reply, id));
        let (told, hear) = std::sync::mpsc::channel();
        near.when_lost(move |moving| {
            let _ = told.send(moving);
        });
        near.set_moving(false);
        assert!(!near.has_ended());
        drop(far);
        let moving = hear.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!(moving, Moving(false));
        assert!(near.has_ended());
        assert!(matches!(
            left.next(soon).unwrap(),
            Some(Input::Lost(PeerId(1), _))
        ));
    }
}
