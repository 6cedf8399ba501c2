//! What the failure detector knows of a node, and how it looks on the wire.

use std::net::{IpAddr, SocketAddr};

use bytes::{Buf, BufMut, Bytes};
use foca::{Codec as _, Header, Identity, Member as FocaMember, Message, State};
use proto::ids::NodeId;

/// Longest node name.
const NAME_BYTES_MAX: usize = 63;

/// One life of one node's daemon.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// The node.
    pub id: NodeId,
    /// Grows with every start of the daemon, and when it was declared dead by mistake.
    pub epoch: u64,
    /// Its name.
    pub name: String,
    /// Its control plane.
    pub control: SocketAddr,
    /// Its data plane.
    pub data: SocketAddr,
}

impl Identity for Member {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        Some(Self {
            epoch: self.epoch.saturating_add(1),
            ..self.clone()
        })
    }

    fn addr(&self) -> NodeId {
        self.id
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.epoch > adversary.epoch
    }
}

/// What is no packet of the failure detector.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum CodecError {
    #[error("the packet ends too early")]
    Short,
    #[error("the packet has a bad {0}")]
    Bad(&'static str),
    #[error("no room in the packet")]
    Full,
}

/// A compact fixed encoding; numbers big-endian (docs/protocol-control.md).
#[derive(Clone, Copy, Debug)]
pub struct Codec;

fn need(buffer: &impl Buf, bytes: usize) -> Result<(), CodecError> {
    if buffer.remaining() < bytes {
        return Err(CodecError::Short);
    }
    Ok(())
}

fn put_address(address: SocketAddr, out: &mut Vec<u8>) {
    match address.ip() {
        IpAddr::V4(ip) => {
            out.put_u8(4);
            out.put_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.put_u8(6);
            out.put_slice(&ip.octets());
        }
    }
    out.put_u16(address.port());
}

fn get_address(buffer: &mut impl Buf) -> Result<SocketAddr, CodecError> {
    need(buffer, 1)?;
    let ip: IpAddr = match buffer.get_u8() {
        4 => {
            need(buffer, 4)?;
            buffer.get_u32().to_be_bytes().into()
        }
        6 => {
            need(buffer, 16)?;
            buffer.get_u128().to_be_bytes().into()
        }
        _ => return Err(CodecError::Bad("address family")),
    };
    need(buffer, 2)?;
    Ok(SocketAddr::new(ip, buffer.get_u16()))
}

fn put_member(member: &Member, out: &mut Vec<u8>) -> Result<(), CodecError> {
    let length = u8::try_from(member.name.len()).map_err(|_| CodecError::Bad("name"))?;
    out.put_u32(member.id.0);
    out.put_u64(member.epoch);
    out.put_u8(length);
    out.put_slice(member.name.as_bytes());
    put_address(member.control, out);
    put_address(member.data, out);
    Ok(())
}

fn get_member(buffer: &mut impl Buf) -> Result<Member, CodecError> {
    need(buffer, 13)?;
    let id = buffer.get_u32();
    if !(1..=NodeId::MAX).contains(&id) {
        return Err(CodecError::Bad("node id"));
    }
    let epoch = buffer.get_u64();
    let length = usize::from(buffer.get_u8());
    if length == 0 || length > NAME_BYTES_MAX {
        return Err(CodecError::Bad("name"));
    }
    need(buffer, length)?;
    let name = String::from_utf8(buffer.copy_to_bytes(length).to_vec())
        .map_err(|_| CodecError::Bad("name"))?;
    omfs_pki::name::check_node_name(&name).map_err(|_| CodecError::Bad("name"))?;
    Ok(Member {
        id: NodeId(id),
        epoch,
        name,
        control: get_address(buffer)?,
        data: get_address(buffer)?,
    })
}

/// A message's tag, its probe number and the third node it speaks of.
type MessageParts<'a> = (u8, Option<u8>, Option<&'a Member>);

fn message_parts(message: &Message<Member>) -> MessageParts<'_> {
    match message {
        Message::Ping(number) => (1, Some(*number), None),
        Message::Ack(number) => (2, Some(*number), None),
        Message::PingReq {
            target,
            probe_number,
        } => (3, Some(*probe_number), Some(target)),
        Message::IndirectPing {
            origin,
            probe_number,
        } => (4, Some(*probe_number), Some(origin)),
        Message::IndirectAck {
            target,
            probe_number,
        } => (5, Some(*probe_number), Some(target)),
        Message::ForwardedAck {
            origin,
            probe_number,
        } => (6, Some(*probe_number), Some(origin)),
        Message::Announce => (7, None, None),
        Message::Feed => (8, None, None),
        Message::Gossip => (9, None, None),
        Message::Broadcast => (10, None, None),
        Message::TurnUndead => (11, None, None),
    }
}

fn get_message(buffer: &mut impl Buf) -> Result<Message<Member>, CodecError> {
    need(buffer, 1)?;
    let tag = buffer.get_u8();
    if (7..=11).contains(&tag) {
        return Ok(match tag {
            7 => Message::Announce,
            8 => Message::Feed,
            9 => Message::Gossip,
            10 => Message::Broadcast,
            _ => Message::TurnUndead,
        });
    }
    need(buffer, 1)?;
    let probe_number = buffer.get_u8();
    Ok(match tag {
        1 => Message::Ping(probe_number),
        2 => Message::Ack(probe_number),
        3 => Message::PingReq {
            target: get_member(buffer)?,
            probe_number,
        },
        4 => Message::IndirectPing {
            origin: get_member(buffer)?,
            probe_number,
        },
        5 => Message::IndirectAck {
            target: get_member(buffer)?,
            probe_number,
        },
        6 => Message::ForwardedAck {
            origin: get_member(buffer)?,
            probe_number,
        },
        _ => return Err(CodecError::Bad("message")),
    })
}

/// Writes all or nothing, as foca demands.
fn put_whole(bytes: &[u8], mut out: impl BufMut) -> Result<(), CodecError> {
    if out.remaining_mut() < bytes.len() {
        return Err(CodecError::Full);
    }
    out.put_slice(bytes);
    Ok(())
}

impl foca::Codec<Member> for Codec {
    type Error = CodecError;

    fn encode_header(
        &mut self,
        header: &Header<Member>,
        out: impl BufMut,
    ) -> Result<(), CodecError> {
        let mut bytes = Vec::with_capacity(256);
        put_member(&header.src, &mut bytes)?;
        bytes.put_u16(header.src_incarnation);
        put_member(&header.dst, &mut bytes)?;
        let (tag, number, third) = message_parts(&header.message);
        bytes.put_u8(tag);
        if let Some(number) = number {
            bytes.put_u8(number);
        }
        if let Some(third) = third {
            put_member(third, &mut bytes)?;
        }
        put_whole(&bytes, out)
    }

    fn decode_header(&mut self, mut buffer: impl Buf) -> Result<Header<Member>, CodecError> {
        let src = get_member(&mut buffer)?;
        need(&buffer, 2)?;
        let src_incarnation = buffer.get_u16();
        Ok(Header {
            src,
            src_incarnation,
            dst: get_member(&mut buffer)?,
            message: get_message(&mut buffer)?,
        })
    }

    fn encode_member(
        &mut self,
        member: &FocaMember<Member>,
        out: impl BufMut,
    ) -> Result<(), CodecError> {
        let mut bytes = Vec::with_capacity(96);
        put_member(member.id(), &mut bytes)?;
        bytes.put_u16(member.incarnation());
        bytes.put_u8(match member.state() {
            State::Alive => 0,
            State::Suspect => 1,
            State::Down => 2,
        });
        put_whole(&bytes, out)
    }

    fn decode_member(&mut self, mut buffer: impl Buf) -> Result<FocaMember<Member>, CodecError> {
        let id = get_member(&mut buffer)?;
        need(&buffer, 3)?;
        let incarnation = buffer.get_u16();
        let state = match buffer.get_u8() {
            0 => State::Alive,
            1 => State::Suspect,
            2 => State::Down,
            _ => return Err(CodecError::Bad("state")),
        };
        Ok(FocaMember::new(id, incarnation, state))
    }
}

/// A packet that the detector itself would not send now. It claims the lowest incarnation, which
/// tells nobody anything new.
fn packet(
    from: &Member,
    to: &Member,
    message: Message<Member>,
    updates: &[FocaMember<Member>],
) -> Result<Bytes, CodecError> {
    let header = Header {
        src: from.clone(),
        src_incarnation: 0,
        dst: to.clone(),
        message,
    };
    let mut bytes = Vec::with_capacity(512);
    Codec.encode_header(&header, &mut bytes)?;
    bytes.put_u16(u16::try_from(updates.len()).map_err(|_| CodecError::Full)?);
    for update in updates {
        Codec.encode_member(update, &mut bytes)?;
    }
    Ok(bytes.into())
}

/// Asks a member for an answer, and tells it what is believed of it.
pub(super) fn ping(
    from: &Member,
    to: &Member,
    suspicion: &[FocaMember<Member>],
) -> Result<Bytes, CodecError> {
    packet(from, to, Message::Ping(0), suspicion)
}

/// Says that `from` leaves.
pub(super) fn farewell(from: &Member, to: &Member) -> Result<Bytes, CodecError> {
    let down = FocaMember::down(from.clone());
    packet(from, to, Message::Gossip, &[down])
}

/// The node that a packet says it is from; the caller compares it with the certificate.
///
/// # Errors
/// It is no packet.
pub fn sender_of(mut packet: &[u8]) -> Result<NodeId, CodecError> {
    get_member(&mut packet).map(|member| member.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn member() -> impl Strategy<Value = Member> {
        let address = any::<(bool, u128, u32, u16)>().prop_map(|(v6, long, short, port)| {
            let ip = if v6 {
                IpAddr::from(long.to_be_bytes())
            } else {
                short.to_be_bytes().into()
            };
            SocketAddr::new(ip, port)
        });
        (
            1..=NodeId::MAX,
            any::<u64>(),
            "n[a-z0-9-]{0,62}",
            address.clone(),
            address,
        )
            .prop_map(|(id, epoch, name, control, data)| Member {
                id: NodeId(id),
                epoch,
                name,
                control,
                data,
            })
    }

    fn message(tag: u8, number: u8, third: Member) -> Message<Member> {
        match tag {
            1 => Message::Ping(number),
            2 => Message::Ack(number),
            3 => Message::PingReq {
                target: third,
                probe_number: number,
            },
            4 => Message::IndirectPing {
                origin: third,
                probe_number: number,
            },
            5 => Message::IndirectAck {
                target: third,
                probe_number: number,
            },
            6 => Message::ForwardedAck {
                origin: third,
                probe_number: number,
            },
            7 => Message::Announce,
            8 => Message::Feed,
            9 => Message::Gossip,
            10 => Message::Broadcast,
            _ => Message::TurnUndead,
        }
    }

    proptest! {
        #[test]
        fn headers_and_members_come_back(
            src in member(), dst in member(), third in member(),
            tag in 1..=11u8, number: u8, src_incarnation: u16, state in 0..3u8,
        ) {
            let header = Header { src, src_incarnation, dst, message: message(tag, number, third.clone()) };
            let mut bytes = Vec::new();
            Codec.encode_header(&header, &mut bytes).unwrap();
            prop_assert_eq!(sender_of(&bytes).unwrap(), header.src.id);
            let mut rest = bytes.as_slice();
            prop_assert_eq!(Codec.decode_header(&mut rest).unwrap(), header);
            prop_assert!(rest.is_empty());
            let state = [State::Alive, State::Suspect, State::Down][usize::from(state)];
            let update = FocaMember::new(third, src_incarnation, state);
            let mut bytes = Vec::new();
            Codec.encode_member(&update, &mut bytes).unwrap();
            for cut in 0..bytes.len() {
                prop_assert!(Codec.decode_member(&bytes[..cut]).is_err());
            }
            prop_assert_eq!(Codec.decode_member(bytes.as_slice()).unwrap(), update);
        }

        #[test]
        fn garbage_is_an_error_and_never_a_panic(bytes: Vec<u8>) {
            let _ = Codec.decode_header(bytes.as_slice());
            let _ = Codec.decode_member(bytes.as_slice());
        }
    }
}
