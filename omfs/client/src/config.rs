//! What a filesystem session needs from the rest of the node.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use proto::ids::{NodeId, Pid};

use omfs_service::peers::PeerDirectory;
use omfs_service::{Errno, FileService, LocalFiles};

/// A connection to a node's export. Node handles and open handles live exactly as long as it.
#[derive(Clone, Debug)]
pub struct RemoteSession {
    /// Differs between any two connections to the same node.
    pub epoch: u64,
    /// The export. Never reconnects: a new connection is a new `RemoteSession`.
    pub service: Arc<dyn FileService>,
}

/// Gives the connection to each node.
pub trait RemoteServices: Send + Sync + Debug {
    /// The current connection to `node`; makes one when there is none. Cheap when there is one.
    ///
    /// # Errors
    /// `EHOSTDOWN` when the node cannot be reached, within 2 s.
    fn session(&self, node: NodeId) -> Result<RemoteSession, Errno>;
}

/// Knows which local processes are guests.
pub trait GuestHomes: Send + Sync + Debug {
    /// Which guest a process (a thread id will do) is, or acts for; `None` for this node's own.
    fn guest(&self, caller_pid: i32) -> Option<Guest>;

    /// The guests of a home that are here, by their PIDs at home.
    fn guests_of(&self, _home: NodeId) -> Vec<Pid> {
        Vec::new()
    }
}

/// A guest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Guest {
    /// Its home node.
    pub home: NodeId,
    /// The job, by its PID at home.
    pub pid: Pid,
}

/// Provides the contents of `/mfs/.omfs/<name>`.
pub trait StatusFiles: Send + Sync + Debug {
    /// The names there are, in listing order.
    fn names(&self) -> Vec<String>;
    /// A file's current content; `None` when there is no such file. Must not block.
    fn content(&self, name: &str) -> Option<Vec<u8>>;
}

/// No process is a guest.
#[derive(Debug, Default, Clone, Copy)]
pub struct NoGuests;

impl GuestHomes for NoGuests {
    fn guest(&self, _caller_pid: i32) -> Option<Guest> {
        None
    }
}

/// No status files.
#[derive(Debug, Default, Clone, Copy)]
pub struct NoStatus;

impl StatusFiles for NoStatus {
    fn names(&self) -> Vec<String> {
        Vec::new()
    }

    fn content(&self, _name: &str) -> Option<Vec<u8>> {
        None
    }
}

/// Configuration of one filesystem session.
#[derive(Clone, Debug)]
pub struct FsConfig {
    /// Who is in the cluster.
    pub peers: Arc<dyn PeerDirectory>,
    /// This node's export.
    pub local: Arc<dyn LocalFiles>,
    /// Everybody else's.
    pub remote: Arc<dyn RemoteServices>,
    /// Which processes are guests.
    pub guests: Arc<dyn GuestHomes>,
    /// Contents of `/mfs/.omfs`.
    pub status: Arc<dyn StatusFiles>,
    /// Threads that take requests from the kernel, 3 to 16.
    pub threads: usize,
    /// How long callers wait for the owner of a file that does not answer, which may be restarting.
    pub owner_wait: Duration,
    /// Whether local files may use FUSE passthrough where the kernel has it.
    pub passthrough: bool,
}
