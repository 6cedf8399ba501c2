//! One node's connection: made when asked for, failing fast while the node is down, coming back by
//! itself.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use proto::ids::NodeId;

use super::super::hello::{PURPOSE_FS, hello};
use super::super::link::connect_tls;
use super::Shared;
use super::session::{Death, FsSession};
use omfs_service::Errno;
use omfs_service::peers::Liveness;

/// TCP, TLS and Hello together.
const CONNECT_DEADLINE: Duration = Duration::from_secs(1);
/// While a node is down and asked for, it is tried this often.
const RETRY_AFTER: Duration = Duration::from_millis(300);
/// Sessions of this process, numbered over all nodes.
static NEXT_EPOCH: AtomicU64 = AtomicU64::new(1);

const DOWN: Errno = Errno(libc::EHOSTDOWN);

/// Keeps at most one connection to one node.
#[derive(Debug)]
pub struct NodeClient {
    id: NodeId,
    shared: Arc<Shared>,
    phase: Mutex<Phase>,
    changed: Condvar,
}

#[derive(Debug)]
enum Phase {
    /// Never tried, or ended in order: the next caller connects.
    Idle,
    /// A caller is connecting; others wait for the outcome.
    Connecting,
    /// Works, as far as known.
    Up(Arc<FsSession>),
    /// Callers fail at once; when the time has come one of them starts a probe.
    Down { retry_at: Instant },
    /// Callers fail at once while a thread tries.
    Probing,
}

impl NodeClient {
    pub(super) fn new(id: NodeId, shared: Arc<Shared>) -> Arc<Self> {
        let (phase, changed) = (Mutex::new(Phase::Idle), Condvar::new());
        Arc::new(Self {
            id,
            shared,
            phase,
            changed,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, phase: Phase) {
        *self.lock() = phase;
        self.changed.notify_all();
    }

    /// The current connection, or a new one; see [`Remotes::session`](super::Remotes::session).
    ///
    /// # Errors
    /// `EHOSTDOWN`.
    pub fn session(self: &Arc<Self>) -> Result<Arc<FsSession>, Errno> {
        let mut phase = self.lock();
        loop {
            match &*phase {
                Phase::Up(session) => match session.death() {
                    None => return Ok(Arc::clone(session)),
                    Some(Death::Closed) => *phase = Phase::Idle,
                    Some(Death::Silent) => {
                        *phase = Phase::Down {
                            retry_at: Instant::now(),
                        }
                    }
                },
                Phase::Idle if self.is_declared_dead() => {
                    *phase = Phase::Down {
                        retry_at: Instant::now(),
                    };
                }
                Phase::Idle => {
                    *phase = Phase::Connecting;
                    drop(phase);
                    return self.connect();
                }
                Phase::Connecting => {
                    let waited = self.changed.wait_timeout(phase, 2 * CONNECT_DEADLINE);
                    let (woken, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
                    phase = woken;
                    if timeout.timed_out() || matches!(*phase, Phase::Down { .. }) {
                        return Err(DOWN);
                    }
                }
                Phase::Down { retry_at } => {
                    if Instant::now() >= *retry_at {
                        *phase = self.start_probe();
                    }
                    return Err(DOWN);
                }
                Phase::Probing => return Err(DOWN),
            }
        }
    }

    fn is_declared_dead(&self) -> bool {
        let peer = self.shared.peers.by_id(self.id);
        peer.is_some_and(|peer| peer.liveness == Liveness::Dead)
    }

    fn start_probe(self: &Arc<Self>) -> Phase {
        let client = Arc::clone(self);
        let probe = move || {
            let _ = client.connect();
        };
        let started = thread::Builder::new()
            .name(format!("omfs-probe-{}", self.id))
            .spawn(probe);
        match started {
            Ok(_) => Phase::Probing,
            Err(_) => Phase::Down {
                retry_at: Instant::now() + RETRY_AFTER,
            },
        }
    }

    /// Connects and tells everybody. The phase is `Connecting` or `Probing`: nobody else does.
    fn connect(&self) -> Result<Arc<FsSession>, Errno> {
        match self.try_connect() {
            Ok(session) => {
                tracing::debug!(node = %self.id, "data connection made");
                self.set(Phase::Up(Arc::clone(&session)));
                Ok(session)
            }
            Err(error) => {
                tracing::debug!(node = %self.id, %error, "no data connection");
                self.set(Phase::Down {
                    retry_at: Instant::now() + RETRY_AFTER,
                });
                Err(DOWN)
            }
        }
    }

    fn try_connect(&self) -> std::io::Result<Arc<FsSession>> {
        let Shared {
            identity,
            peers,
            boot_epoch,
        } = &*self.shared;
        let unknown = || std::io::Error::other("the node is not known");
        let address = peers.by_id(self.id).ok_or_else(unknown)?.data;
        let ours = hello(identity.node(), PURPOSE_FS, &[], *boot_epoch);
        let link = connect_tls(address, identity, self.id, &ours, CONNECT_DEADLINE)?;
        FsSession::new(link, NEXT_EPOCH.fetch_add(1, Ordering::Relaxed))
    }
}
