//! Keeps the file of nodes in step with the membership in memory.

use std::sync::{Arc, Mutex, PoisonError};

use omfs_cluster::directory::Directory;
use omfs_cluster::roster::{Entry, Roster, RosterError};
use omfs_cluster::swim::Member;
use omfs_service::peers::{Liveness, Peer, PeerDirectory};
use proto::ids::NodeId;
use proto::v1;

/// The roster, shared by the join service and the task that writes down who is met.
#[derive(Clone, Debug)]
pub struct Members {
    roster: Arc<Mutex<Roster>>,
    directory: Arc<Directory>,
}

impl Members {
    /// Starts writing down every node that the directory learns of.
    pub fn new(roster: Roster, directory: Arc<Directory>, myself: &Member) -> Self {
        let members = Self {
            roster: Arc::new(Mutex::new(roster)),
            directory,
        };
        let own = Entry {
            id: myself.id,
            name: myself.name.clone(),
            control: myself.control,
            data: myself.data,
            seen: true,
        };
        members.note(own);
        tokio::spawn(members.clone().follow());
        members
    }

    async fn follow(self) {
        let mut changes = self.directory.subscribe();
        loop {
            let members = self.clone();
            let written = tokio::task::spawn_blocking(move || members.write_down()).await;
            if written.is_err() || changes.changed().await.is_err() {
                return;
            }
        }
    }

    fn write_down(&self) {
        for peer in self.directory.peers() {
            if matches!(peer.liveness, Liveness::Alive | Liveness::Suspect) {
                self.note_if_met(&peer);
            }
        }
    }

    /// A node of the file alone is `Suspect` until it is heard: that must not count as met.
    fn note_if_met(&self, peer: &Peer) {
        let known = self.with(|roster| {
            let same = |node: &&Entry| {
                node.id == peer.id && node.control == peer.control && node.name == peer.name
            };
            roster.nodes().iter().find(same).map(|node| node.seen)
        });
        if known == Some(true) || (known == Some(false) && peer.liveness != Liveness::Alive) {
            return;
        }
        self.note(Entry {
            id: peer.id,
            name: peer.name.clone(),
            control: peer.control,
            data: peer.data,
            seen: true,
        });
    }

    fn note(&self, entry: Entry) {
        if let Err(error) = self.with(|roster| roster.note(entry)) {
            tracing::warn!("cannot write down the nodes: {error}");
        }
    }

    /// Frees the name and the address of a removed node. Writes to disk.
    pub fn forget(&self, node: NodeId) {
        if let Err(error) = self.with(|roster| roster.forget(node)) {
            tracing::warn!("cannot write down the nodes: {error}");
        }
    }

    fn with<T>(&self, work: impl FnOnce(&mut Roster) -> T) -> T {
        work(&mut self.roster.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Gives a joining node its id. Writes to disk.
    ///
    /// # Errors
    /// The name is taken, or the file cannot be written.
    pub fn admit(&self, entry: &v1::JoinRequest, peer: &Peer) -> Result<NodeId, RosterError> {
        let before: Vec<_> = self.with(|roster| roster.nodes().to_vec());
        let wanted = (entry.wanted_id != 0).then_some(NodeId(entry.wanted_id));
        let id = self.with(|roster| roster.admit(wanted, &entry.name, peer.control, peer.data))?;
        for old in before.iter().filter(|old| old.name == entry.name) {
            self.directory.remove(old.id);
        }
        self.directory.put(Peer { id, ..peer.clone() });
        Ok(id)
    }

    /// All nodes, as the wire describes them.
    pub fn wire_nodes(&self) -> Vec<v1::Node> {
        self.directory.peers().iter().map(wire_node).collect()
    }
}

/// A node as the wire describes it.
pub fn wire_node(peer: &Peer) -> v1::Node {
    v1::Node {
        id: peer.id.0,
        name: peer.name.clone(),
        address: peer.control.to_string(),
        data_address: peer.data.to_string(),
        incarnation: 0,
    }
}
