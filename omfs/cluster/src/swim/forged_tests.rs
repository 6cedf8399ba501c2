//! What a member makes up of others harms nobody (attacks N4 of the threat model).

use bytes::BufMut;
use foca::{Codec as _, Header, Member as Update, Message, State};
use proto::ids::NodeId;

use super::member::Codec;
use super::tests::{Net, all_see, member, sees, start, until};
use super::*;
use omfs_service::peers::{Liveness, PeerDirectory};

const LIMIT: Duration = Duration::from_secs(60);

/// Gossip by `src` with these updates, as node 3 takes it.
fn gossip(src: Member, updates: &[Update<Member>]) -> Bytes {
    let header = Header {
        src,
        src_incarnation: 0,
        dst: member(3, 1),
        message: Message::Gossip,
    };
    let mut packet = Vec::new();
    Codec.encode_header(&header, &mut packet).unwrap();
    packet.put_u16(u16::try_from(updates.len()).unwrap());
    for update in updates {
        Codec.encode_member(update, &mut packet).unwrap();
    }
    packet.into()
}

/// Three nodes that have met; node 2 is the liar, node 3 the one that is lied to.
async fn three() -> (Arc<Net>, Vec<Arc<Directory>>, Swim) {
    let net = Arc::new(Net::default());
    let directories: Vec<_> = (1..=3).map(|id| start(&net, id, 1)).collect();
    until("meeting", LIMIT, || {
        (1..=3).all(|id| all_see(&directories, id, Liveness::Alive))
    })
    .await;
    let victim = net.swim(3);
    (net, directories, victim)
}

fn names(directory: &Directory) -> Vec<String> {
    directory
        .peers()
        .into_iter()
        .map(|peer| peer.name)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nobody_takes_anothers_name() {
    let (_net, directories, victim) = three().await;
    let liar = Member {
        name: "n1".into(),
        epoch: 2,
        ..member(2, 1)
    };
    let renamed = Member {
        name: "old-n1".into(),
        ..member(1, 1)
    };
    let unknown = Member {
        name: "here2".into(),
        ..member(9, 1)
    };
    let updates = [renamed, unknown].map(Update::alive);
    for src in [member(2, 1), liar] {
        victim.receive(&certified(2), gossip(src, &updates));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(names(&directories[2]), ["n1", "n2", "n3"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nobody_is_killed_by_words() {
    let (_net, directories, victim) = three().await;
    let claims = [1, 2, u64::MAX].map(|epoch| Update::down(member(1, epoch)));
    let suspicion = Update::new(member(1, 1), u16::MAX, State::Suspect);
    let mut deaths = 0;
    let until = std::time::Instant::now() + Duration::from_secs(4);
    while std::time::Instant::now() < until {
        let updates = [claims.to_vec(), vec![suspicion.clone()]].concat();
        victim.receive(&certified(2), gossip(member(2, 1), &updates));
        tokio::time::sleep(Duration::from_millis(50)).await;
        deaths += usize::from(sees(&directories[2], 1, Liveness::Dead));
    }
    assert_eq!(deaths, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_member_with_an_epoch_of_the_future_is_not_heard() {
    let (_net, directories, victim) = three().await;
    let late = member(2, u64::MAX);
    victim.receive(&certified(2), gossip(late, &[]));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(sees(&directories[2], 2, Liveness::Alive));
    // Its true epoch still counts: it can leave and come back under a higher one.
    let leaving = Update::down(member(2, 1));
    victim.receive(&certified(2), gossip(member(2, 1), &[leaving]));
    until("return", LIMIT, || {
        sees(&directories[2], 2, Liveness::Alive)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_death_that_is_told_is_confirmed_by_silence() {
    let (net, directories, victim) = three().await;
    net.cut(1);
    let claim = Update::down(member(1, 1));
    until("death", LIMIT, || {
        victim.receive(
            &certified(2),
            gossip(member(2, 1), std::slice::from_ref(&claim)),
        );
        sees(&directories[2], 1, Liveness::Dead)
    })
    .await;
}

fn certified(id: u32) -> Certified {
    Certified {
        node: NodeId(id),
        name: format!("n{id}"),
    }
}
