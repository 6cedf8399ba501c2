//! Who is in the cluster, as the filesystem and the data plane need to know it.

use std::fmt::Debug;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use proto::ids::NodeId;

/// What the failure detector believes of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Liveness {
    /// This node itself.
    Myself,
    /// Answers.
    Alive,
    /// Missed answers; still to be tried.
    Suspect,
    /// Declared dead: nothing is placed there, and no connection is waited for.
    Dead,
}

/// One node of the cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Its number.
    pub id: NodeId,
    /// Its name: a single path component of at most 63 bytes.
    pub name: String,
    /// Where its control plane (gRPC) listens.
    pub control: SocketAddr,
    /// Where its data plane listens.
    pub data: SocketAddr,
    /// What is believed of it.
    pub liveness: Liveness,
}

/// The current membership. Answers come from memory and never block.
pub trait PeerDirectory: Send + Sync + Debug {
    /// This node.
    fn myself(&self) -> NodeId;
    /// Every node ever joined, this one included, by id.
    fn peers(&self) -> Vec<Peer>;
    /// How long a node has been declared dead: `None` for one that is not, or is not known. The longest
    /// time where nobody noted when it was declared.
    fn dead_for(&self, id: NodeId) -> Option<Duration> {
        let peer = self.by_id(id)?;
        (peer.liveness == Liveness::Dead).then_some(Duration::MAX)
    }
    /// A node by its id.
    fn by_id(&self, id: NodeId) -> Option<Peer> {
        self.peers().into_iter().find(|peer| peer.id == id)
    }
    /// A node by its name, or by its id in decimal.
    fn by_name_or_id(&self, text: &str) -> Option<Peer> {
        let id = text.parse::<NodeId>().ok();
        self.peers()
            .into_iter()
            .find(|peer| peer.name == text || Some(peer.id) == id)
    }
    /// Whether it is an address of some other node.
    fn is_member_address(&self, address: IpAddr) -> bool {
        let myself = self.myself();
        let mut others = self.peers().into_iter().filter(|peer| peer.id != myself);
        others.any(|peer| [peer.control.ip(), peer.data.ip()].contains(&address))
    }
}
