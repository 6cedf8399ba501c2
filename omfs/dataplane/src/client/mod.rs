//! File operations on other nodes, over one connection per node.
//!
//! * [`session`] — one connection: pipelined requests, liveness, cancellation.
//! * [`node`] — one node: makes its connection when asked, and again after a failure.
//! * [`Remotes`] — all nodes.

mod node;
mod session;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use proto::ids::NodeId;

use omfs_pki::TlsIdentity;
use omfs_service::Errno;
use omfs_service::peers::PeerDirectory;

pub use node::NodeClient;
pub(super) use session::may_block;
pub use session::{FsSession, LOCK_WAITS_MAX, OUTSTANDING_MAX};

/// Connections to every node's export, made on demand.
#[derive(Debug)]
pub struct Remotes {
    shared: Arc<Shared>,
    nodes: Mutex<HashMap<NodeId, Arc<NodeClient>>>,
}

/// What all connections of this process have in common.
#[derive(Debug)]
struct Shared {
    identity: TlsIdentity,
    peers: Arc<dyn PeerDirectory>,
    boot_epoch: u64,
}

impl Remotes {
    /// `boot_epoch` differs with every start of this daemon.
    #[must_use]
    pub fn new(identity: TlsIdentity, peers: Arc<dyn PeerDirectory>, boot_epoch: u64) -> Arc<Self> {
        let shared = Arc::new(Shared {
            identity,
            peers,
            boot_epoch,
        });
        Arc::new(Self {
            shared,
            nodes: Mutex::default(),
        })
    }

    /// The client of one node, connected or not.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Arc<NodeClient> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || NodeClient::new(id, Arc::clone(&self.shared));
        Arc::clone(nodes.entry(id).or_insert_with(make))
    }

    /// The current connection to `id`; makes one when there is none. Takes microseconds when there
    /// is one, at most the connecting deadline (1 s) otherwise.
    ///
    /// # Errors
    /// `EHOSTDOWN` when the node is unknown or cannot be reached.
    pub fn session(&self, id: NodeId) -> Result<Arc<FsSession>, Errno> {
        self.node(id).session()
    }
}
