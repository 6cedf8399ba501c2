//! Serves file operations to other nodes.
//!
//! * [`Server`] — accepts, handshakes, and keeps the list of connections.
//! * [`connection`] — one connection: its requests under way.
//! * [`turns`] — which of its threads reads.

mod connection;
mod turns;

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use proto::ids::NodeId;
use proto::v1::Hello;

use super::hello::{PURPOSE_FS, hello};
use super::link::{TlsLink, accept_tls};
use connection::Connection;
use omfs_pki::TlsIdentity;
use omfs_pki::identity::HANDSHAKE_DEADLINE;
use omfs_service::FileService;

/// Connections whose peer has not shown a certificate yet; more are closed at once.
pub const UNAUTHENTICATED_MAX: usize = 64;
/// Authenticated connections; more are closed at once.
pub const CONNECTIONS_MAX: usize = 1024;
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
    unauthenticated: AtomicUsize,
    workers: Arc<AtomicUsize>,
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
        let address = listener.local_addr()?;
        listener.set_nonblocking(false)?;
        let ours = hello(identity.node(), PURPOSE_FS, &[], boot_epoch);
        let shared = Arc::new(Shared {
            listener,
            identity,
            ours,
            factory,
            stopping: AtomicBool::new(false),
            unauthenticated: AtomicUsize::new(0),
            workers: Arc::default(),
            next_connection: AtomicUsize::new(0),
            connections: Mutex::default(),
            changed: Condvar::new(),
        });
        spawn("omfs-data-accept", &shared, accept_loop)?;
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

fn spawn(name: &str, shared: &Arc<Shared>, run: fn(&Arc<Shared>)) -> io::Result<()> {
    let shared = Arc::clone(shared);
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || run(&shared))
        .map(drop)
}

/// Counts something as long as it lives.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize, max: usize) -> Option<Self> {
        let counted = Self(count);
        (count.fetch_add(1, Ordering::AcqRel) < max).then_some(counted)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn accept_loop(shared: &Arc<Shared>) {
    while !shared.stopping.load(Ordering::Acquire) {
        match shared.listener.accept() {
            Ok((stream, from)) => shared.welcome(stream, from),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                if !shared.stopping.load(Ordering::Acquire) {
                    tracing::warn!(%error, "accepting on the data port");
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

    /// Gives a new connection a thread, unless too many strangers are at the door already.
    fn welcome(self: &Arc<Self>, stream: TcpStream, from: SocketAddr) {
        if self.unauthenticated.load(Ordering::Acquire) >= UNAUTHENTICATED_MAX {
            tracing::warn!(%from, "too many unauthenticated connections: closed");
            return;
        }
        let shared = Arc::clone(self);
        let serve = move || {
            let link = {
                let counted = Counted::new(&shared.unauthenticated, UNAUTHENTICATED_MAX);
                if counted.is_none() {
                    return;
                }
                accept_tls(stream, &shared.identity, &shared.ours, HANDSHAKE_DEADLINE)
            };
            match link.and_then(|link| shared.admit(link)) {
                Ok((key, connection)) => shared.serve(key, &connection),
                Err(error) => tracing::info!(%from, %error, "data connection refused"),
            }
        };
        if let Err(error) = thread::Builder::new().name("omfs-data".into()).spawn(serve) {
            tracing::warn!(%error, "no thread for a data connection");
        }
    }

    fn admit(&self, link: TlsLink) -> io::Result<(usize, Arc<Connection>)> {
        if link.hello.purpose != PURPOSE_FS {
            let reason = format!("purpose {:?} is not served here", link.hello.purpose);
            return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
        }
        let service = (self.factory)(link.peer, &link.hello)?;
        let workers = Arc::clone(&self.workers);
        let connection = Arc::new(Connection::new(link, Arc::clone(&service), workers));
        let weak = Arc::downgrade(&connection);
        service.serve_leases(weak);
        let key = self.next_connection.fetch_add(1, Ordering::Relaxed);
        let mut connections = self.lock();
        if self.stopping.load(Ordering::Acquire) || connections.len() >= CONNECTIONS_MAX {
            return Err(io::Error::other("stopping, or too many connections"));
        }
        // A peer connects anew only when it has given the old connection up, which may be half
        // open and hold locks: it ends now, not when TCP notices.
        let replaced = connections
            .values()
            .filter(|old| old.is_replaced_by(&connection));
        replaced.for_each(|old| old.close());
        connections.insert(key, Arc::clone(&connection));
        Ok((key, connection))
    }

    /// Runs on the connection's first thread, until it has ended with all its requests.
    fn serve(&self, key: usize, connection: &Arc<Connection>) {
        connection.run();
        connection.close();
        connection.wait_for_requests();
        self.lock().remove(&key);
        self.changed.notify_all();
    }
}
