//! A member that lies: sends packets of the failure detector under its node's own certificate.
//!
//! Tests run it on one node of a lab to see what the others believe.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use bytes::{BufMut, Bytes};
use foca::{Codec as _, Header, Member as Update, Message, State};
use omfs_cluster::control::ControlClients;
use omfs_cluster::directory::Directory;
use omfs_cluster::swim::Member;
use omfs_cluster::swim::member::Codec;
use omfs_pki::{Store, TlsIdentity};
use proto::ids::NodeId;

/// The hidden command of `lab`.
pub const SUBCOMMAND: &str = "forge-gossip";
/// The state directory of a lab's node.
const STATE_DIR: &str = "/var/lib/omfs";
/// How long the lies go on, and how often they are told.
const LIE_FOR: Duration = Duration::from_secs(5);
const LIE_EVERY: Duration = Duration::from_millis(200);

/// Tells the node `victim` that this node is called as `other`, and that `other` is dead for ever.
///
/// # Errors
/// This node belongs to no cluster, or the victim does not answer.
pub fn run(victim: (u32, SocketAddr), other: (u32, &str)) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let identity = Store::new(Path::new(STATE_DIR)).load()?;
    runtime.block_on(lie(&identity, victim, other))
}

async fn lie(
    identity: &TlsIdentity,
    (victim, address): (u32, SocketAddr),
    (other, other_name): (u32, &str),
) -> Result<()> {
    let victim = NodeId(victim);
    let myself = member(identity.node(), now_ms(), identity.node_name(), address);
    let peer = |id, name: &str| Directory::peer(id, name, address, address);
    let directory = Directory::new(peer(myself.id, &myself.name), [peer(victim, "victim")]);
    let clients = ControlClients::new(Arc::new(directory), identity.clone());
    let victim = meet(&clients, &myself, member(victim, 0, "victim", address)).await?;
    let impostor = Member {
        name: other_name.to_owned(),
        epoch: myself.epoch + 1,
        ..myself.clone()
    };
    let life = |epoch, name: &str| member(NodeId(other), epoch, name, address);
    let renamed = Update::alive(life(now_ms(), "renamed"));
    let dead = [0, now_ms(), u64::MAX].map(|epoch| Update::down(life(epoch, other_name)));
    let suspect = Update::new(life(u64::MAX, other_name), u16::MAX, State::Suspect);
    let unheard = Update::alive(member(NodeId(4711), 1, "unheard-of", address));
    let updates = [dead.to_vec(), vec![renamed, suspect, unheard]].concat();
    let end = Instant::now() + LIE_FOR;
    while Instant::now() < end {
        for source in [&myself, &impostor] {
            let packet = packet(source, &victim, Message::Gossip, Some(&updates))?;
            // Whether it was taken is what the test looks at.
            let _ = clients.swim(victim.id, packet).await;
        }
        tokio::time::sleep(LIE_EVERY).await;
    }
    Ok(())
}

/// Greets the victim; its answer tells its own identity, which packets to it must name.
async fn meet(clients: &ControlClients, myself: &Member, victim: Member) -> Result<Member> {
    let greeting = packet(myself, &victim, Message::Announce, None)?;
    let answers = clients.swim(victim.id, greeting).await?;
    let answer = answers.packets.first().context("the victim is silent")?;
    Ok(Codec.decode_header(answer.as_ref())?.src)
}

fn packet(
    src: &Member,
    dst: &Member,
    message: Message<Member>,
    updates: Option<&[Update<Member>]>,
) -> Result<Bytes> {
    let header = Header {
        src: src.clone(),
        src_incarnation: 0,
        dst: dst.clone(),
        message,
    };
    let mut bytes = Vec::new();
    Codec.encode_header(&header, &mut bytes)?;
    if let Some(updates) = updates {
        bytes.put_u16(u16::try_from(updates.len())?);
        for update in updates {
            Codec.encode_member(update, &mut bytes)?;
        }
    }
    Ok(bytes.into())
}

fn member(id: NodeId, epoch: u64, name: &str, address: SocketAddr) -> Member {
    Member {
        id,
        epoch,
        name: name.to_owned(),
        control: address,
        data: address,
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}
