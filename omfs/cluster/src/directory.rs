//! The membership in memory: who is in the cluster and whether it answers.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use proto::ids::NodeId;
use tokio::sync::watch;

use omfs_service::peers::{Liveness, Peer, PeerDirectory};

/// The nodes, and by what else they are looked up: nothing is searched, and nothing copied but the
/// answer.
#[derive(Debug, Default)]
struct Peers {
    /// With the names that their certificates have.
    by_id: BTreeMap<NodeId, Peer>,
    /// Names without regard to case.
    by_name: BTreeSet<(String, NodeId)>,
    by_address: BTreeSet<(IpAddr, NodeId)>,
}

fn addresses(peer: &Peer) -> [(IpAddr, NodeId); 2] {
    [peer.control, peer.data].map(|address| (address.ip().to_canonical(), peer.id))
}

impl Peers {
    fn insert(&mut self, peer: Peer) -> Option<Peer> {
        let before = self.remove(peer.id);
        self.by_name
            .insert((peer.name.to_ascii_lowercase(), peer.id));
        self.by_address.extend(addresses(&peer));
        self.by_id.insert(peer.id, peer);
        before
    }

    fn remove(&mut self, id: NodeId) -> Option<Peer> {
        let peer = self.by_id.remove(&id)?;
        self.by_name.remove(&(peer.name.to_ascii_lowercase(), id));
        for address in addresses(&peer) {
            self.by_address.remove(&address);
        }
        Some(peer)
    }

    /// The first node that has a name, without regard to case.
    fn named(&self, name: &str) -> Option<&Peer> {
        let name = name.to_ascii_lowercase();
        let mut from = self.by_name.range((name.clone(), NodeId(0))..);
        let (_, id) = from.next().filter(|(found, _)| *found == name)?;
        self.by_id.get(id)
    }

    /// A node as it is shown.
    fn shown(&self, id: NodeId) -> Option<Peer> {
        let peer = self.by_id.get(&id)?;
        let first = self.named(&peer.name).map(|first| first.id);
        Some(unique(peer, first == Some(id)))
    }

    fn have_address(&self, address: IpAddr, except: NodeId) -> bool {
        let range = (address, NodeId(0))..=(address, NodeId(u32::MAX));
        self.by_address.range(range).any(|(_, id)| *id != except)
    }
}

/// Implements [`PeerDirectory`]; changed by the failure detector and by joins.
#[derive(Debug)]
pub struct Directory {
    myself: NodeId,
    peers: RwLock<Peers>,
    /// When those that were alive were declared dead.
    died: RwLock<BTreeMap<NodeId, Instant>>,
    /// Nodes that were removed from the cluster: they do not come back.
    removed: RwLock<HashSet<NodeId>>,
    changes: watch::Sender<u64>,
}

impl Directory {
    /// A directory of this node, which is always [`Liveness::Myself`], and `others`.
    #[must_use]
    pub fn new(myself: Peer, others: impl IntoIterator<Item = Peer>) -> Self {
        let id = myself.id;
        let mut peers = Peers::default();
        for peer in others {
            peers.insert(peer);
        }
        peers.insert(Peer {
            liveness: Liveness::Myself,
            ..myself
        });
        Self {
            myself: id,
            peers: RwLock::new(peers),
            died: RwLock::default(),
            removed: RwLock::default(),
            changes: watch::Sender::new(0),
        }
    }

    /// Adds a node or replaces what is known of it; this node itself is never changed.
    pub fn put(&self, peer: Peer) {
        let removed = self.removed.read().unwrap_or_else(PoisonError::into_inner);
        if peer.id == self.myself || removed.contains(&peer.id) {
            return;
        }
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        let before = peers.insert(peer.clone());
        drop(peers);
        self.note_death(before.as_ref(), &peer);
        if before.as_ref() != Some(&peer) {
            self.changes.send_modify(|count| *count += 1);
        }
    }

    fn note_death(&self, before: Option<&Peer>, peer: &Peer) {
        let was_dead = before.is_none_or(|before| before.liveness == Liveness::Dead);
        let is_dead = peer.liveness == Liveness::Dead;
        if was_dead == is_dead {
            return;
        }
        let mut died = self.died.write().unwrap_or_else(PoisonError::into_inner);
        if is_dead {
            died.insert(peer.id, Instant::now());
        } else {
            died.remove(&peer.id);
        }
    }

    /// Changes what is believed of a node, if it is known.
    pub fn set_liveness(&self, id: NodeId, liveness: Liveness) {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        let peer = peers.by_id.get(&id).cloned();
        drop(peers);
        if let Some(peer) = peer {
            self.put(Peer { liveness, ..peer });
        }
    }

    /// Forgets a node that never took part.
    pub fn remove(&self, id: NodeId) {
        if id != self.myself {
            let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
            peers.remove(id);
            drop(peers);
            self.changes.send_modify(|count| *count += 1);
        }
    }

    /// Forgets a node that was removed from the cluster, for good.
    pub fn ban(&self, id: NodeId) {
        let mut removed = self.removed.write().unwrap_or_else(PoisonError::into_inner);
        removed.insert(id);
        drop(removed);
        self.remove(id);
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
        let named = peers.by_id.values().map(|peer| {
            let is_first = taken.insert(peer.name.to_ascii_lowercase());
            unique(peer, is_first)
        });
        named.collect()
    }

    fn by_id(&self, id: NodeId) -> Option<Peer> {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.shown(id)
    }

    fn by_name_or_id(&self, text: &str) -> Option<Peer> {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        let named = peers.named(text).filter(|peer| peer.name == text);
        let by_id = || peers.shown(text.parse::<NodeId>().ok()?);
        named.cloned().or_else(by_id)
    }

    fn dead_for(&self, id: NodeId) -> Option<Duration> {
        if self.by_id(id)?.liveness != Liveness::Dead {
            return None;
        }
        let died = self.died.read().unwrap_or_else(PoisonError::into_inner);
        let since = died.get(&id).map(Instant::elapsed);
        Some(since.unwrap_or(Duration::MAX))
    }

    fn is_member_address(&self, address: IpAddr) -> bool {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.have_address(address.to_canonical(), self.myself)
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

    #[test]
    fn nodes_are_found_by_name_and_address_as_these_change() {
        let at = |host: u8| SocketAddr::from(([192, 0, 2, host], 7780));
        let named = |id, name, host| Directory::peer(NodeId(id), name, at(host), at(host));
        let directory = Directory::new(named(1, "n1", 1), [named(2, "n2", 2), named(3, "n3", 2)]);
        let has = |host| directory.is_member_address(at(host).ip());
        let name_of = |text| directory.by_name_or_id(text).map(|peer| peer.id.0);
        assert_eq!([1, 2, 3].map(has), [false, true, false]);
        directory.put(named(2, "new", 3));
        assert_eq!([1, 2, 3].map(has), [false, true, true]);
        let found = ["n2", "new", "2", "n", "NEW"].map(name_of);
        assert_eq!(found, [None, Some(2), Some(2), None, None]);
        directory.remove(NodeId(3));
        assert_eq!([1, 2, 3].map(has), [false, false, true]);
        directory.put(named(4, "new", 4));
        assert_eq!(name_of("new"), Some(2), "the lower id of two");
    }

    #[test]
    fn a_removed_node_does_not_come_back() {
        let directory = Directory::new(peer(1), [peer(2), peer(3)]);
        directory.ban(NodeId(2));
        directory.put(peer(2));
        directory.set_liveness(NodeId(2), Liveness::Alive);
        let ids = directory.peers().into_iter().map(|peer| peer.id.0);
        assert_eq!(ids.collect::<Vec<_>>(), [1, 3]);
    }
}
