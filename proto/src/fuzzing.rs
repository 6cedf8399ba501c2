//! What the fuzzer (`fuzz/`) and the property tests call alike: takes any bytes, panics on a defect.

use prost::Message;

use crate::frame::{self, Frame, FrameKind};
use crate::v1::{
    FsEvent, FsReply, FsRequest, Hello, JobMessage, JoinReply, JoinRequest, LoadWindow,
    MigrateRequest, NodesReply, PrepareGuestReply, PrepareGuestRequest, ProcessImage,
    ProcessesReply, RequestMoveRequest, StatusReply, SwimPacket,
};

/// Reads bytes as a stream of frames and their headers as messages. What was read must be written
/// as the same bytes again, up to the two reserved bytes, which receivers ignore.
///
/// # Panics
/// On a defect.
pub fn frames(bytes: &[u8]) {
    let mut rest = bytes;
    loop {
        let at = rest;
        let Ok(frame) = frame::read_frame(&mut rest) else {
            return;
        };
        let read = &at[..at.len() - rest.len()];
        assert_same_bytes(&frame, read);
        message(&frame);
    }
}

fn assert_same_bytes(frame: &Frame, read: &[u8]) {
    let Frame {
        kind,
        id,
        status,
        header,
        payload,
    } = frame;
    let mut written = frame::encode(*kind, *id, *status, header, payload.len())
        .unwrap_or_else(|error| panic!("read but cannot be written: {error}"));
    written.extend_from_slice(payload);
    assert_eq!(written.len(), read.len());
    let differs = |at: &usize| written[*at] != read[*at];
    let different: Vec<usize> = (0..read.len()).filter(differs).collect();
    // The checksum covers the reserved bytes.
    assert!(
        different.iter().all(|at| matches!(at, 6 | 7 | 28..32)),
        "{different:?}"
    );
    if read[6..8] == [0, 0] {
        assert!(different.is_empty(), "{different:?}");
    }
}

fn message(frame: &Frame) {
    let header = &frame.header;
    match frame.kind {
        FrameKind::Hello => again::<Hello>(header),
        FrameKind::Request => again::<FsRequest>(header),
        FrameKind::Reply => again::<FsReply>(header),
        _ => {}
    }
    again::<JobMessage>(header);
}

/// Reads bytes as every message that comes from another machine or another user.
///
/// # Panics
/// On a defect.
pub fn messages(bytes: &[u8]) {
    let readers: [fn(&[u8]); 18] = [
        again::<Hello>,
        again::<FsRequest>,
        again::<FsReply>,
        again::<FsEvent>,
        again::<JobMessage>,
        again::<ProcessImage>,
        again::<SwimPacket>,
        again::<LoadWindow>,
        again::<JoinRequest>,
        again::<JoinReply>,
        again::<PrepareGuestRequest>,
        again::<PrepareGuestReply>,
        again::<RequestMoveRequest>,
        again::<ProcessesReply>,
        again::<MigrateRequest>,
        again::<NodesReply>,
        again::<StatusReply>,
        again::<crate::v1::TokenReply>,
    ];
    for read in readers {
        read(bytes);
    }
}

/// A message that could be read survives being written and read.
fn again<M: Message + Default + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(message) = M::decode(bytes) {
        // Not-a-number is unequal to itself: what is written is compared.
        let written = message.encode_to_vec();
        let copy = M::decode(written.as_slice()).map(|copy| copy.encode_to_vec());
        assert_eq!(copy, Ok(written), "{message:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::RequestId;
    use proptest::prelude::*;

    /// Protobuf's encoding of fields: number, wire type, number or bytes.
    fn encoded(fields: &[(u32, u8, u64, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (field, wire_type, number, content) in fields {
            prost::encoding::encode_varint(
                u64::from(field << 3) | u64::from(*wire_type),
                &mut bytes,
            );
            match wire_type {
                0 => prost::encoding::encode_varint(*number, &mut bytes),
                1 => bytes.extend_from_slice(&number.to_le_bytes()),
                2 => {
                    prost::encoding::encode_varint(content.len() as u64, &mut bytes);
                    bytes.extend_from_slice(content);
                }
                5 => bytes.extend_from_slice(&number.to_le_bytes()[..4]),
                _ => {}
            }
        }
        bytes
    }

    proptest! {
        #[test]
        fn any_bytes(bytes: Vec<u8>) {
            frames(&bytes);
        }

        #[test]
        fn any_bytes_as_messages(bytes: Vec<u8>) {
            messages(&bytes);
        }

        /// Fields of any number and kind: what is between garbage and a message.
        #[test]
        fn any_fields_as_messages(
            fields in prop::collection::vec((1u32..24, 0u8..6, any::<u64>(), any::<Vec<u8>>()), 0..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let bytes = encoded(&fields);
            messages(&bytes);
            messages(&bytes[..cut.index(bytes.len() + 1)]);
            // The same as a message inside of another one.
            messages(&encoded(&[(1, 2, 0, bytes.clone())]));
            messages(&encoded(&[(17, 2, 0, bytes)]));
        }

        #[test]
        fn frames_of_any_header(
            kinds in prop::collection::vec((1u8..8, any::<u64>(), any::<Vec<u8>>(), any::<Vec<u8>>()), 1..4),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..2),
        ) {
            let mut wire = Vec::new();
            for (kind, id, header, payload) in kinds {
                let kind = FrameKind::from_wire(kind).unwrap();
                let head = frame::encode(kind, RequestId(id), 0, &header, payload.len()).unwrap();
                wire.extend_from_slice(&head);
                wire.extend_from_slice(&payload);
            }
            for (at, byte) in changes {
                let at = at.index(wire.len());
                wire[at] = byte;
            }
            frames(&wire);
        }

        #[test]
        fn the_reserved_bytes_are_ignored(low: u8, high: u8) {
            let mut wire = frame::encode(FrameKind::Ping, RequestId(1), 0, b"", 0).unwrap();
            wire[6..8].copy_from_slice(&[low, high]);
            let crc = crc32fast::hash(&wire[..28]);
            wire[28..32].copy_from_slice(&crc.to_le_bytes());
            prop_assert!(frame::read_frame(&mut wire.as_slice()).is_ok());
            frames(&wire);
        }
    }
}
