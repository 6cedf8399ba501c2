//! What is kept of a packet before the detector sees it: who may say what is decided by
//! [`omfs_authz::member`].

use std::collections::HashMap;

use bytes::{Buf, BufMut, Bytes};
use foca::{Codec as _, Header, Member as Update, Message, State};
use omfs_authz::member::{self as authz, Claim, Life, Verdict};
use proto::ids::NodeId;

use super::member::{Codec, CodecError, Member};
use omfs_pki::Certified;

/// Why a whole packet is dropped.
#[derive(Debug, thiserror::Error)]
pub(super) enum Dropped {
    #[error("no membership packet: {0}")]
    Malformed(#[from] CodecError),
    #[error("{0}")]
    Refused(authz::Refusal),
    #[error("a message about a node that has not described itself")]
    UnknownThird,
}

/// What the receiver knows.
pub(super) struct Facts<'a> {
    pub myself: &'a Member,
    /// The incarnation that this node has told others.
    pub incarnation: u16,
    /// Members as they described themselves.
    pub known: &'a HashMap<NodeId, Member>,
    pub now_ms: u64,
}

/// A packet after the filter.
#[derive(Debug)]
pub(super) struct Filtered {
    /// For the detector: what the sender may say of itself and of this node.
    pub packet: Bytes,
    /// It says that this node has been declared dead.
    pub declares_us_dead: bool,
    /// Members that are to be asked; true for those that are said to be dead.
    pub ask: Vec<(NodeId, bool)>,
    /// Members that nobody here has met.
    pub greet: Vec<Member>,
}

/// Takes from a packet what its sender may not say.
pub(super) fn filter(
    sender: &Certified,
    packet: &Bytes,
    facts: &Facts<'_>,
) -> Result<Filtered, Dropped> {
    let mut rest = packet.clone();
    let header = Codec.decode_header(&mut rest)?;
    check_header(sender, &header, facts)?;
    let head = packet.slice(..packet.len() - rest.remaining());
    let mut filtered = Filtered {
        packet: head.clone(),
        declares_us_dead: header.message == Message::TurnUndead,
        ask: Vec::new(),
        greet: Vec::new(),
    };
    if rest.is_empty() {
        return Ok(filtered);
    }
    let kept = updates(&header, &mut rest, facts, &mut filtered)?;
    let mut whole = head.to_vec();
    whole.put_u16(u16::try_from(kept.len()).unwrap_or(0));
    for update in &kept {
        Codec.encode_member(update, &mut whole)?;
    }
    filtered.packet = whole.into();
    Ok(filtered)
}

fn life(member: &Member) -> Life {
    Life {
        id: member.id.0,
        epoch: member.epoch,
    }
}

fn check_header(
    sender: &Certified,
    header: &Header<Member>,
    facts: &Facts<'_>,
) -> Result<(), Dropped> {
    let certified = authz::Certified {
        id: sender.node.0,
        name: &sender.name,
    };
    let said = &header.src;
    authz::may_describe_itself(certified, life(said), &said.name, facts.now_ms)
        .map_err(Dropped::Refused)?;
    let third = match &header.message {
        Message::PingReq { target, .. } | Message::IndirectAck { target, .. } => target,
        Message::IndirectPing { origin, .. } | Message::ForwardedAck { origin, .. } => origin,
        _ => return Ok(()),
    };
    // Only what a member said of itself is an address to send to.
    if facts.known.get(&third.id) == Some(third) {
        Ok(())
    } else {
        Err(Dropped::UnknownThird)
    }
}

fn updates(
    header: &Header<Member>,
    rest: &mut Bytes,
    facts: &Facts<'_>,
    filtered: &mut Filtered,
) -> Result<Vec<Update<Member>>, CodecError> {
    if rest.remaining() < 2 {
        return Err(CodecError::Short);
    }
    let mut kept = Vec::new();
    for _ in 0..rest.get_u16() {
        let update = Codec.decode_member(&mut *rest)?;
        let about = update.id();
        let claim = match update.state() {
            State::Alive => Claim::Alive,
            State::Suspect => Claim::Suspect,
            State::Down => Claim::Dead,
        };
        let known = facts.known.get(&about.id).map(|member| member.epoch);
        let (teller, myself) = (life(&header.src), life(facts.myself));
        match authz::judge(teller, myself, life(about), known, claim) {
            Verdict::Ignore => {}
            Verdict::Believe if about.id == header.src.id => kept.push(update),
            Verdict::Believe => {
                filtered.declares_us_dead |= claim == Claim::Dead;
                kept.push(about_us(&update, facts));
            }
            Verdict::Ask => filtered.ask.push((about.id, claim == Claim::Dead)),
            Verdict::Greet => filtered.greet.push(about.clone()),
        }
    }
    Ok(kept)
}

/// The detector compares whole identities: those of this node and of the sender are the ones known.
fn about_us(update: &Update<Member>, facts: &Facts<'_>) -> Update<Member> {
    let incarnation = authz::suspected_incarnation(update.incarnation(), facts.incarnation);
    Update::new(facts.myself.clone(), incarnation, update.state())
}
