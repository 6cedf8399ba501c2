//! Nodes that were removed from the cluster: learned, stored, and told on to all others.

use std::sync::Arc;
use std::time::Duration;

use omfs_cluster::control::ControlClients;
use omfs_cluster::directory::Directory;
use omfs_pki::{PkiError, Revocation, TlsIdentity};
use omfs_service::peers::{Liveness, PeerDirectory};
use proto::ids::NodeId;
use proto::v1;
use tokio::task::JoinSet;

use super::members::Members;

/// One other node is asked this often, for what was told while one of the two was away.
const ASK_EVERY: Duration = Duration::from_secs(10);
/// A starting daemon asks so many nodes, and waits so long for their answers.
const ASKED_AT_START: usize = 8;
const START_DEADLINE: Duration = Duration::from_millis(1000);

/// The list of removed nodes and those who are told of it.
#[derive(Clone, Debug)]
pub struct Removals {
    identity: TlsIdentity,
    directory: Arc<Directory>,
    clients: Arc<ControlClients>,
    members: Members,
}

impl Removals {
    /// For this node; forgets at once who was removed before.
    pub fn new(
        identity: TlsIdentity,
        directory: Arc<Directory>,
        clients: Arc<ControlClients>,
        members: Members,
    ) -> Self {
        let removals = Self {
            identity,
            directory,
            clients,
            members,
        };
        let known = removals.identity.revocations().list();
        known.iter().for_each(|one| removals.forget(one.node));
        removals
    }

    fn forget(&self, node: NodeId) {
        self.directory.ban(node);
        self.clients.forget(node);
        self.members.forget(node);
    }

    /// Stores what is new and signed, and forgets those nodes. True if there was anything new.
    /// Writes to disk.
    ///
    /// # Errors
    /// The list could not be stored.
    pub fn learn(&self, told: &[Revocation]) -> Result<bool, PkiError> {
        let added = self.identity.revocations().add(told)?;
        for node in &added {
            tracing::warn!("node {node} has been removed from the cluster");
            self.forget(*node);
        }
        Ok(!added.is_empty())
    }

    /// All removed nodes, as the wire describes them.
    pub fn wire_list(&self) -> v1::RevocationList {
        let list = self.identity.revocations().list().into_iter();
        let revocations = list.map(|one| v1::Revocation {
            node_id: one.node.0,
            at_unix_s: one.at_s,
            signature: one.signature,
        });
        v1::RevocationList {
            revocations: revocations.collect(),
        }
    }

    /// [`learn`](Self::learn) from a message, off the threads that serve calls.
    pub async fn learn_wire(&self, told: v1::RevocationList) -> bool {
        let revocations = told.revocations.into_iter().map(|one| Revocation {
            node: NodeId(one.node_id),
            at_s: one.at_unix_s,
            signature: one.signature,
        });
        let (told, removals) = (revocations.collect::<Vec<_>>(), self.clone());
        let learned = tokio::task::spawn_blocking(move || removals.learn(&told)).await;
        match learned {
            Ok(Ok(new)) => new,
            Ok(Err(error)) => {
                tracing::warn!("cannot store the removed nodes: {error}");
                false
            }
            Err(_) => false,
        }
    }

    async fn exchange(self, node: NodeId) {
        match self.clients.revocations(node, self.wire_list()).await {
            Ok(theirs) => {
                if self.learn_wire(theirs).await {
                    tokio::spawn(self.spread());
                }
            }
            Err(error) => tracing::debug!("removed nodes, with node {node}: {error}"),
        }
    }

    fn others(&self, wanted: impl Fn(Liveness) -> bool) -> Vec<NodeId> {
        let peers = self.directory.peers().into_iter();
        let others =
            peers.filter(|peer| peer.liveness != Liveness::Myself && wanted(peer.liveness));
        others.map(|peer| peer.id).collect()
    }

    /// Tells all nodes that answer.
    pub fn spread(self) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            let mut told = JoinSet::new();
            for node in self.others(|liveness| liveness != Liveness::Dead) {
                told.spawn(self.clone().exchange(node));
            }
            while told.join_next().await.is_some() {}
        })
    }

    /// Asks others before this node listens to anybody: it may have been away.
    pub async fn ask_before_start(&self) {
        let mut asked = JoinSet::new();
        for node in self.others(|_| true).into_iter().take(ASKED_AT_START) {
            asked.spawn(self.clone().exchange(node));
        }
        let all = async { while asked.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(START_DEADLINE, all).await;
    }

    /// Asks one other after the other, for as long as the daemon runs.
    pub async fn follow(self) {
        for turn in 0_usize.. {
            tokio::time::sleep(ASK_EVERY).await;
            let others = self.others(|liveness| liveness == Liveness::Alive);
            if let Some(node) = others.get(turn % others.len().max(1)) {
                self.clone().exchange(*node).await;
            }
        }
    }
}
