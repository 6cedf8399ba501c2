//! The membership in memory: who is in the cluster and whether it answers.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::{PoisonError, RwLock};

use proto::ids::NodeId;
use tokio::sync::watch;

use omfs_service::peers::{Liveness, Peer, PeerDirectory};

/// Implements [`PeerDirectory`]; changed by the failure detector and by joins.
#[derive(Debug)]
pub struct Directory {
    myself: NodeId,
    /// With the names that their certificates have.
    peers: RwLock<BTreeMap<NodeId, Peer>>,
    changes: watch::Sender<u64>,
}

impl Directory {
    /// A directory of this node, which is always [`Liveness::Myself`], and `others`.
    #[must_use]
    pub fn new(myself: Peer, others: impl IntoIterator<Item = Peer>) -> Self {
        let id = myself.id;
        let mut peers: BTreeMap<_, _> = others.into_iter().map(|peer| (peer.id, peer)).collect();
        peers.insert(
            id,
            Peer {
                liveness: Liveness::Myself,
                ..myself
            },
        );
        Self {
            myself: id,
            peers: RwLock::new(peers),
            changes: watch::Sender::new(0),
        }
    }

    /// Adds a node or replaces what is known of it; this node itself is never changed.
    pub fn put(&self, peer: Peer) {
        if peer.id == self.myself {
            return;
        }
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        let before = peers.insert(peer.id, peer.clone());
        drop(peers);
        if before.as_ref() != Some(&peer) {
            self.changes.send_modify(|count| *count += 1);
        }
    }

    /// Changes what is believed of a node, if it is known.
    pub fn set_liveness(&self, id: NodeId, liveness: Liveness) {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        let peer = peers.get(&id).cloned();
        drop(peers);
        if let Some(peer) = peer {
            self.put(Peer { liveness, ..peer });
        }
    }

    /// Forgets a node that never took part.
    pub fn remove(&self, id: NodeId) {
        if id != self.myself {
            let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
            peers.remove(&id);
            drop(peers);
            self.changes.send_modify(|count| *count += 1);
        }
    }

    /// Wakes on every change.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// A peer as this module makes it from parts.
    #[must_use]
    pub fn peer(id: NodeId, name: &str, control: SocketAddr, data: SocketAddr) -> Peer {
        Peer {
            id,
            name: name.to_owned(),
            control,
            data,
            liveness: Liveness::Dead,
        }
    }
}

impl PeerDirectory for Directory {
    fn myself(&self) -> NodeId {
        self.myself
    }

    fn peers(&self) -> Vec<Peer> {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        let mut taken = HashSet::new();
        let named = peers.values().map(|peer| {
            let is_first = taken.insert(peer.name.to_ascii_lowercase());
            unique(peer, is_first)
        });
        named.collect()
    }

    fn by_id(&self, id: NodeId) -> Option<Peer> {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        let peer = peers.get(&id)?;
        let mut before = peers.range(..id);
        let is_first = !before.any(|(_, other)| other.name.eq_ignore_ascii_case(&peer.name));
        Some(unique(peer, is_first))
    }
}

/// A name is shown once: of nodes whose certificates have the same, the others go by their ids.
fn unique(peer: &Peer, is_first: bool) -> Peer {
    let mut peer = peer.clone();
    if !is_first {
        peer.name = peer.id.to_string();
    }
    peer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(id: u32) -> Peer {
        let address = SocketAddr::from(([127, 0, 0, 1], 7780));
        Directory::peer(NodeId(id), &format!("n{id}"), address, address)
    }

    #[test]
    fn this_node_is_always_itself_and_changes_wake_subscribers() {
        let directory = Directory::new(peer(1), [peer(2)]);
        let mut changes = directory.subscribe();
        directory.put(peer(1));
        directory.set_liveness(NodeId(1), Liveness::Dead);
        assert_eq!(
            directory.by_id(NodeId(1)).unwrap().liveness,
            Liveness::Myself
        );
        assert!(!changes.has_changed().unwrap());
        directory.set_liveness(NodeId(2), Liveness::Alive);
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        directory.set_liveness(NodeId(2), Liveness::Alive);
        assert!(!changes.has_changed().unwrap());
        assert_eq!(directory.by_name_or_id("2").unwrap().name, "n2");
        assert_eq!(directory.by_name_or_id("n1").unwrap().id, NodeId(1));
        assert_eq!(directory.by_name_or_id("n3"), None);
    }

    #[test]
    fn no_name_is_shown_twice() {
        let named = |id, name: &str| Peer {
            name: name.to_owned(),
            ..peer(id)
        };
        let directory = Directory::new(peer(3), [named(1, "n1"), named(2, "N1"), named(4, "n3")]);
        let names = directory.peers().into_iter().map(|peer| peer.name);
        assert_eq!(names.collect::<Vec<_>>(), ["n1", "2", "n3", "4"]);
        assert_eq!(directory.by_name_or_id("n1").unwrap().id, NodeId(1));
        assert_eq!(directory.by_id(NodeId(4)).unwrap().name, "4");
        // The name comes back when the one that has it is gone.
        directory.set_liveness(NodeId(2), Liveness::Alive);
        directory.remove(NodeId(1));
        assert_eq!(directory.by_id(NodeId(2)).unwrap().name, "N1");
    }
}
