//! Serves file operations to other nodes.
//!
//! * [`Server`] — accepts, handshakes, and keeps the list of connections.
//! * [`connection`] — one connection: its requests under way.
//! * [`turns`] — which of its threads reads.

mod connection;
mod turns;

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use proto::ids::NodeId;
use proto::v1::Hello;

use super::hello::{PURPOSE_FS, hello};
use super::link::{TlsLink, accept_tls};
use super::preauth::{Candidate, IsMember, Places, Preauth};
use connection::{Connection, WORKERS};
use omfs_limits::permits::{Caps, Permit, Permits};
use omfs_limits::repeats::Repeats;
use omfs_pki::TlsIdentity;
use omfs_pki::identity::HANDSHAKE_DEADLINE;
use omfs_service::FileService;

/// Connections whose peers have not shown a certificate yet.
pub const UNAUTHENTICATED: Places = Places {
    per_source: 16,
    strangers: 64,
    members: 256,
    silent_max: HANDSHAKE_DEADLINE,
};
/// Authenticated connections; more are closed at once. A node needs one per mount.
pub const CONNECTIONS: Caps = Caps {
    per_key: 64,
    total: 1024,
};
/// A peer that waits for a reply hears something at least this often.
const HEARTBEAT: Duration = Duration::from_millis(300);
/// How often busy connections are looked after.
const BUSY_TICK: Duration = Duration::from_millis(20);
/// After a failed accept(2), for example for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long shutting down waits for requests under way.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(2);

/// Makes the service for one connection; dropped when the connection has ended.
pub type ServiceFactory = dyn Fn(NodeId, &Hello) -> io::Result<Arc<dyn FileService>> + Send + Sync;

/// The data port of a node.
pub struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

struct Shared {
    listener: TcpListener,
    identity: TlsIdentity,
    ours: Hello,
    factory: Box<ServiceFactory>,
    stopping: AtomicBool,
    peers: Permits<NodeId>,
    repeats: Mutex<Repeats<io::ErrorKind>>,
    workers: Permits<NodeId>,
    next_connection: AtomicUsize,
    connections: Mutex<HashMap<usize, Arc<Connection>>>,
    changed: Condvar,
}

impl Server {
    /// Serves on `listener` until [`shutdown`](Self::shutdown) or drop. `boot_epoch` differs with
    /// every start of this daemon.
    ///
    /// # Errors
    /// No thread could be started; the listener has no address.
    pub fn start(
        listener: TcpListener,
        identity: TlsIdentity,
        boot_epoch: u64,
        factory: Box<ServiceFactory>,
    ) -> io::Result<Self> {
        Self::start_for(listener, identity, boot_epoch, factory, Box::new(|_| false))
    }

    /// As [`start`](Self::start), with room reserved for members' addresses.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_for(
        listener: TcpListener,
        identity: TlsIdentity,
        boot_epoch: u64,
        factory: Box<ServiceFactory>,
        is_member: Box<IsMember>,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let ours = hello(identity.node(), PURPOSE_FS, &[], boot_epoch);
        let shared = Arc::new(Shared {
            listener,
            identity,
            ours,
            factory,
            stopping: AtomicBool::new(false),
            peers: Permits::new(CONNECTIONS),
            repeats: Mutex::default(),
            workers: Permits::new(WORKERS),
            next_connection: AtomicUsize::new(0),
            connections: Mutex::default(),
            changed: Condvar::new(),
        });
        let preauth = Preauth::new(&UNAUTHENTICATED, is_member);
        spawn("omfs-data-accept", &shared, |shared| {
            accept_loop(shared, preauth)
        })?;
        spawn("omfs-data-beat", &shared, heartbeat_loop)?;
        Ok(Self { shared, address })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections that have said Hello and not ended.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.lock().len()
    }

    /// Stops accepting, ends all connections, and waits a bounded time for what is under way.
    pub fn shutdown(&self) {
        let shared = &self.shared;
        if shared.stopping.swap(true, Ordering::AcqRel) {
            return;
        }
        // Wakes accept(2) with EINVAL on Linux.
        let how = nix::sys::socket::Shutdown::Both;
        let _ = nix::sys::socket::shutdown(shared.listener.as_raw_fd(), how);
        let until = Instant::now() + SHUTDOWN_DEADLINE;
        let mut connections = shared.lock();
        connections
            .values()
            .for_each(|connection| connection.close());
        shared.changed.notify_all();
        while !connections.is_empty() {
            let Some(left) = until.checked_duration_since(Instant::now()) else {
                return;
            };
            let waited = shared.changed.wait_timeout(connections, left);
            connections = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown();
    }
}

fn spawn(
    name: &str,
    shared: &Arc<Shared>,
    run: impl FnOnce(&Arc<Shared>) + Send + 'static,
) -> io::Result<()> {
    let shared = Arc::clone(shared);
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || run(&shared))
        .map(drop)
}

/// A connection that is served.
struct Admitted {
    key: usize,
    connection: Arc<Connection>,
    _counted: Permit<NodeId>,
}

fn accept_loop(shared: &Arc<Shared>, mut preauth: Preauth) {
    while !shared.stopping.load(Ordering::Acquire) {
        match preauth.wait(&shared.listener, None, None) {
            Ok(candidates) => candidates.into_iter().for_each(|one| shared.welcome(one)),
            Err(error) => {
                if !shared.stopping.load(Ordering::Acquire) {
                    shared.tell(&error, |count| {
                        tracing::warn!(%error, count, "accepting on the data port");
                    });
                    thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    }
}

fn heartbeat_loop(shared: &Arc<Shared>) {
    let mut connections = shared.lock();
    let mut tick = HEARTBEAT;
    while !shared.stopping.load(Ordering::Acquire) {
        let waited = shared.changed.wait_timeout(connections, tick);
        connections = waited.unwrap_or_else(PoisonError::into_inner).0;
        let mut busy = false;
        for connection in connections.values() {
            if shared.identity.revocations().contains(connection.peer()) {
                connection.close();
            }
            busy |= connection.look_after(HEARTBEAT);
        }
        tick = if busy { BUSY_TICK } else { HEARTBEAT };
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<usize, Arc<Connection>>> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a line about an error of this kind, unless there was one within the last minute.
    fn tell(&self, error: &io::Error, line: impl FnOnce(u64)) {
        let mut repeats = self.repeats.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = repeats.note(&error.kind(), Instant::now()) {
            line(count);
        }
    }

    /// Gives a connection whose client has begun a handshake a thread.
    fn welcome(self: &Arc<Self>, candidate: Candidate) {
        let shared = Arc::clone(self);
        let from = candidate.from;
        let serve = move || {
            let (stream, counted) = candidate.split();
            let link = accept_tls(stream, &shared.identity, &shared.ours, HANDSHAKE_DEADLINE);
            drop(counted);
            match link.and_then(|link| shared.admit(link)) {
                Ok(admitted) => shared.serve(&admitted),
                Err(error) => shared.tell(&error, |count| {
                    tracing::info!(%from, %error, count, "data connection refused");
                }),
            }
        };
        if let Err(error) = thread::Builder::new().name("omfs-data".into()).spawn(serve) {
            self.tell(&error, |count| {
                tracing::warn!(%error, count, "no thread for a data connection");
            });
        }
    }

    fn admit(&self, link: TlsLink) -> io::Result<Admitted> {
        if link.hello.purpose != PURPOSE_FS {
            let reason = format!("purpose {:?} is not served here", link.hello.purpose);
            return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
        }
        let counted = self.peers.take(link.peer).map_err(|_| {
            let reason = format!("node {} has too many connections", link.peer);
            io::Error::new(io::ErrorKind::QuotaExceeded, reason)
        })?;
        let service = (self.factory)(link.peer, &link.hello)?;
        let workers = self.workers.clone();
        let connection = Arc::new(Connection::new(link, Arc::clone(&service), workers));
        let weak = Arc::downgrade(&connection);
        service.serve_leases(weak);
        let key = self.next_connection.fetch_add(1, Ordering::Relaxed);
        let mut connections = self.lock();
        if self.stopping.load(Ordering::Acquire) {
            return Err(io::Error::other("stopping"));
        }
        // A peer connects anew only when it has given the old connection up, which may be half
        // open and hold locks: it ends now, not when TCP notices.
        let replaced = connections
            .values()
            .filter(|old| old.is_replaced_by(&connection));
        replaced.for_each(|old| old.close());
        connections.insert(key, Arc::clone(&connection));
        Ok(Admitted {
            key,
            connection,
            _counted: counted,
        })
    }

    /// Runs on the connection's first thread, until it has ended with all its requests.
    fn serve(
        &self,
        Admitted {
            key, connection, ..
        }: &Admitted,
    ) {
        connection.run();
        connection.close();
        connection.wait_for_requests();
        self.lock().remove(key);
        self.changed.notify_all();
    }
}
