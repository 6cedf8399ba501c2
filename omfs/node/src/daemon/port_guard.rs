//! The connections of a port or socket: who is admitted, who has to go, and when.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use omfs_limits::connections::{ConnectionId, Connections, Policy, Refusal, Room};
use omfs_limits::repeats::Repeats;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tonic::transport::server::Connected;

/// How often it is looked which connections are overdue.
const SWEEP_INTERVAL: Duration = Duration::from_millis(500);

struct State<K> {
    table: Connections<K>,
    /// Dropped, it closes its connection.
    open: HashMap<ConnectionId, oneshot::Sender<()>>,
    repeats: Repeats<Event>,
}

/// What is told of at most once a minute.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Event {
    Refused(Refusal),
    Displaced,
    Overdue,
}

/// The connections of one port or socket; clones are the same.
pub struct PortGuard<K> {
    name: &'static str,
    state: Arc<Mutex<State<K>>>,
}

impl<K> Clone for PortGuard<K> {
    fn clone(&self) -> Self {
        Self {
            name: self.name,
            state: Arc::clone(&self.state),
        }
    }
}

impl<K> fmt::Debug for PortGuard<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PortGuard")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl<K> PortGuard<K> {
    fn state(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Clone + Eq + Hash + fmt::Display + Send + 'static> PortGuard<K> {
    /// For a port called `name` in the log.
    pub fn new(name: &'static str, policy: Policy) -> Self {
        let state = State {
            table: Connections::new(policy),
            open: HashMap::new(),
            repeats: Repeats::default(),
        };
        Self {
            name,
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Admits a connection, which may cost another one its place.
    pub fn admit<IO>(&self, io: IO, key: K, room: Room) -> Option<Guarded<IO, K>> {
        let now = Instant::now();
        let mut state = self.state();
        match state.table.admit(key.clone(), room, now) {
            Ok(admitted) => {
                if let Some(displaced) = admitted.displaced {
                    state.open.remove(&displaced);
                    self.tell(&mut state, Event::Displaced, &key);
                }
                let (open, closed) = oneshot::channel();
                state.open.insert(admitted.id, open);
                drop(state);
                let (guard, id) = (self.clone(), admitted.id);
                Some(Guarded {
                    io,
                    closed,
                    place: Arc::new(Place { guard, id }),
                })
            }
            Err(refusal) => {
                self.tell(&mut state, Event::Refused(refusal), &key);
                None
            }
        }
    }

    /// Closes what is overdue, for as long as it is polled.
    pub async fn sweep(self) {
        let mut tick = tokio::time::interval(SWEEP_INTERVAL);
        loop {
            tick.tick().await;
            let mut state = self.state();
            let overdue = state.table.take_overdue(Instant::now());
            for id in &overdue {
                state.open.remove(id);
            }
            if !overdue.is_empty()
                && let Some(count) = state.repeats.note(&Event::Overdue, Instant::now())
            {
                tracing::info!(count, "{}: closed what was silent or idle", self.name);
            }
        }
    }

    fn tell(&self, state: &mut State<K>, event: Event, key: &K) {
        let Some(count) = state.repeats.note(&event, Instant::now()) else {
            return;
        };
        let what = match event {
            Event::Refused(Refusal::KeyFull) => "refused, too many connections",
            Event::Refused(Refusal::RoomFull) => "refused, no room",
            Event::Displaced => "closed an idle connection for a new one",
            Event::Overdue => "closed",
        };
        tracing::warn!(from = %key, count, "{}: {what}", self.name);
    }
}

/// A connection's place.
pub struct Place<K> {
    guard: PortGuard<K>,
    id: ConnectionId,
}

impl<K> fmt::Debug for Place<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Place({:?})", self.id)
    }
}

impl<K: Clone + Eq + Hash> Place<K> {
    /// The connection has shown that it is `key`'s, and is counted as such from now on.
    ///
    /// # Errors
    /// The limit that was reached.
    pub fn identify(&self, key: K) -> Result<(), Refusal> {
        let mut state = self.guard.state();
        if let Some(displaced) = state.table.identify(self.id, key, Instant::now())? {
            state.open.remove(&displaced);
        }
        Ok(())
    }
}

/// A request under way, until it is dropped: its connection is not idle meanwhile.
pub struct UnderWay<K: Clone + Eq + Hash>(Arc<Place<K>>);

impl<K: Clone + Eq + Hash> UnderWay<K> {
    /// A request began.
    pub fn new(place: Arc<Place<K>>) -> Self {
        place.guard.state().table.begin(place.id, Instant::now());
        Self(place)
    }
}

impl<K: Clone + Eq + Hash> Drop for UnderWay<K> {
    fn drop(&mut self) {
        let place = &self.0;
        place.guard.state().table.end(place.id, Instant::now());
    }
}

/// A connection that is counted, and fails when it has to go.
pub struct Guarded<IO, K: Clone + Eq + Hash> {
    io: IO,
    closed: oneshot::Receiver<()>,
    place: Arc<Place<K>>,
}

impl<IO, K: Clone + Eq + Hash> Drop for Guarded<IO, K> {
    fn drop(&mut self) {
        let mut state = self.place.guard.state();
        state.table.remove(self.place.id);
        state.open.remove(&self.place.id);
    }
}

/// What a request tells of its connection.
#[derive(Debug)]
pub struct GuardInfo<I, K> {
    /// What the inner connection tells.
    pub inner: I,
    /// Its place.
    pub place: Arc<Place<K>>,
}

impl<I: Clone, K> Clone for GuardInfo<I, K> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            place: Arc::clone(&self.place),
        }
    }
}

impl<IO: Connected, K> Connected for Guarded<IO, K>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
{
    type ConnectInfo = GuardInfo<IO::ConnectInfo, K>;

    fn connect_info(&self) -> Self::ConnectInfo {
        GuardInfo {
            inner: self.io.connect_info(),
            place: Arc::clone(&self.place),
        }
    }
}

impl<IO: Unpin, K: Clone + Eq + Hash> Guarded<IO, K> {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match Pin::new(&mut self.closed).poll(cx) {
            Poll::Ready(_) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl<IO: AsyncRead + Unpin, K: Clone + Eq + Hash> AsyncRead for Guarded<IO, K> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<IO: AsyncWrite + Unpin, K: Clone + Eq + Hash> AsyncWrite for Guarded<IO, K> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    const POLICY: Policy = Policy {
        per_key: 1,
        common: 2,
        reserved: 1,
        known: 1,
        silent_max: Duration::from_millis(600),
        idle_max: Duration::from_millis(600),
        idle_min: Duration::ZERO,
    };

    #[tokio::test]
    async fn a_displaced_connection_ends_although_nothing_comes() {
        let guard = PortGuard::new("test", POLICY);
        let (first, mut client) = duplex(64);
        let mut first = guard.admit(first, 7, Room::Common).unwrap();
        client.write_all(b"x").await.unwrap();
        assert_eq!(first.read_u8().await.unwrap(), b'x');
        let reading = tokio::spawn(async move { first.read_u8().await });
        tokio::task::yield_now().await;
        let second = guard.admit(duplex(64).0, 7, Room::Common).unwrap();
        let error = reading.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        drop(second);
        assert!(guard.state().table.is_empty() && guard.state().open.is_empty());
    }

    #[tokio::test]
    async fn only_idle_connections_are_swept() {
        let guard = PortGuard::new("test", POLICY);
        let sweeping = tokio::spawn(guard.clone().sweep());
        let busy = guard.admit(duplex(64).0, 1, Room::Common).unwrap();
        let request = UnderWay::new(Arc::clone(&busy.place));
        let (silent, _client) = duplex(64);
        let mut silent = guard.admit(silent, 2, Room::Common).unwrap();
        assert!(silent.read_u8().await.is_err());
        assert_eq!(guard.state().table.len(), 1, "the busy one stays");
        drop(request);
        while guard.state().table.len() == 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        sweeping.abort();
    }
}
