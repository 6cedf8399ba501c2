use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

use proto::ids::NodeId;

use super::*;
use omfs_service::peers::{Liveness, PeerDirectory};
use omfs_testing::lateness::Lateness;

/// A network in memory with links that can be cut.
#[derive(Debug, Default)]
pub(super) struct Net {
    nodes: Mutex<HashMap<NodeId, Swim>>,
    cut: Mutex<HashSet<NodeId>>,
}

impl Net {
    pub(super) fn swim(&self, id: u32) -> Swim {
        self.nodes.lock().unwrap()[&NodeId(id)].clone()
    }

    pub(super) fn cut(&self, id: u32) {
        self.cut.lock().unwrap().insert(NodeId(id));
    }
}

#[derive(Debug)]
struct Port {
    myself: NodeId,
    net: Arc<Net>,
}

impl Transport for Port {
    fn send(&self, to: &Member, packet: Bytes) {
        let cut = self.net.cut.lock().unwrap();
        if !cut.contains(&self.myself)
            && !cut.contains(&to.id)
            && let Some(node) = self.net.nodes.lock().unwrap().get(&to.id)
        {
            node.receive(&certified(self.myself), packet);
        }
    }
}

fn certified(node: NodeId) -> Certified {
    let name = format!("n{node}");
    Certified { node, name }
}

pub(super) fn member(id: u32, epoch: u64) -> Member {
    let address = SocketAddr::from(([127, 0, 0, 1], 7780));
    Member {
        id: NodeId(id),
        epoch,
        name: format!("n{id}"),
        control: address,
        data: address,
    }
}

/// Starts node `id`, which knows only node 1.
pub(super) fn start(net: &Arc<Net>, id: u32, epoch: u64) -> Arc<Directory> {
    let peer = |id| {
        let member = member(id, 0);
        Directory::peer(member.id, &member.name, member.control, member.data)
    };
    let directory = Arc::new(Directory::new(peer(id), [peer(1)]));
    let port = Arc::new(Port {
        myself: NodeId(id),
        net: Arc::clone(net),
    });
    let swim = Swim::start(member(id, epoch), Arc::clone(&directory), port);
    net.nodes.lock().unwrap().insert(NodeId(id), swim);
    directory
}

pub(super) async fn until(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> bool,
) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < limit,
            "{what} did not happen within {limit:?}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    start.elapsed()
}

pub(super) fn sees(directory: &Directory, id: u32, liveness: Liveness) -> bool {
    directory
        .by_id(NodeId(id))
        .is_some_and(|peer| peer.liveness == liveness)
}

pub(super) fn all_see(directories: &[Arc<Directory>], id: u32, liveness: Liveness) -> bool {
    let others = directories
        .iter()
        .filter(|directory| directory.myself() != NodeId(id));
    others
        .into_iter()
        .all(|directory| sees(directory, id, liveness))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nodes_find_each_other_and_death_and_recovery_are_noticed() {
    let net = Arc::new(Net::default());
    let mut directories: Vec<_> = (1..=5).map(|id| start(&net, id, 1)).collect();
    let limit = Duration::from_secs(60);
    until("meeting", limit, || {
        (1..=5).all(|id| all_see(&directories, id, Liveness::Alive))
    })
    .await;

    net.cut.lock().unwrap().insert(NodeId(3));
    let others: Vec<_> = directories
        .iter()
        .filter(|d| d.myself() != NodeId(3))
        .cloned()
        .collect();
    let late = Lateness::watch();
    let noticed = until("death", limit, || all_see(&others, 3, Liveness::Dead)).await;
    assert!(
        noticed < Duration::from_millis(3000) + late.total(),
        "death took {noticed:?}"
    );
    until("loneliness", limit, || {
        (1..=5).all(|id| id == 3 || sees(&directories[2], id, Liveness::Dead))
    })
    .await;

    net.cut.lock().unwrap().clear();
    until("healing", limit, || {
        (1..=5).all(|id| all_see(&directories, id, Liveness::Alive))
    })
    .await;

    // A restart under a new epoch, with nothing but node 1 remembered.
    directories[3] = start(&net, 4, 2);
    until("restart", limit, || {
        (1..=5).all(|id| all_see(&directories, id, Liveness::Alive))
    })
    .await;
}

#[tokio::test]
async fn a_packet_in_anothers_name_is_dropped() {
    #[derive(Debug)]
    struct Record(OnceLock<Bytes>);
    impl Transport for Record {
        fn send(&self, _to: &Member, packet: Bytes) {
            let _ = self.0.set(packet);
        }
    }
    let net = Arc::new(Net::default());
    let first = start(&net, 1, 1);
    let record = Arc::new(Record(OnceLock::new()));
    let peer = |id| {
        let member = member(id, 0);
        Directory::peer(member.id, &member.name, member.control, member.data)
    };
    let second = Arc::new(Directory::new(peer(2), [peer(1)]));
    let _swim = Swim::start(member(2, 1), second, Arc::clone(&record) as _);
    until("greeting", Duration::from_secs(60), || {
        record.0.get().is_some()
    })
    .await;
    let packet = record.0.get().unwrap().clone();
    let node = net.nodes.lock().unwrap().get(&NodeId(1)).unwrap().clone();
    node.receive(&certified(NodeId(3)), packet.clone());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(first.by_id(NodeId(2)), None);
    node.receive(&certified(NodeId(2)), packet);
    until("arrival", Duration::from_secs(60), || {
        sees(&first, 2, Liveness::Alive)
    })
    .await;
}

/// A node that was alone believes that everybody else died; when it comes back, nobody may be
/// declared dead on its word.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_a_lonely_node_believed_harms_nobody() {
    let net = Arc::new(Net::default());
    let directories: Vec<_> = (1..=4).map(|id| start(&net, id, 1)).collect();
    let limit = Duration::from_secs(60);
    until("meeting", limit, || {
        (1..=4).all(|id| all_see(&directories, id, Liveness::Alive))
    })
    .await;
    net.cut.lock().unwrap().insert(NodeId(4));
    let lonely = &directories[3];
    until("loneliness", limit, || {
        (1..=3).all(|id| sees(lonely, id, Liveness::Dead))
    })
    .await;
    net.cut.lock().unwrap().clear();
    let mut harmed: Vec<u32> = Vec::new();
    until("healing", limit, || {
        for directory in &directories[..3] {
            let dead = (1..=3).find(|id| sees(directory, *id, Liveness::Dead));
            harmed.extend(dead);
        }
        (1..=4).all(|id| all_see(&directories, id, Liveness::Alive))
    })
    .await;
    assert!(harmed.is_empty(), "{harmed:?}");
}
