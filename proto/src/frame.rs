//! Framing of the data plane: a fixed 32-byte prefix, a protobuf header, then bulk payload.
//!
//! ```text
//! offset size field
//!      0    4 magic "omfs"
//!      4    1 version (1)
//!      5    1 kind (FrameKind)
//!      6    2 reserved, zero
//!      8    8 request id (0: no reply belongs to it)
//!     16    4 status: 0, or an errno (replies only)
//!     20    4 header length in bytes, at most MAX_HEADER_BYTES
//!     24    4 payload length in bytes, at most MAX_PAYLOAD_BYTES
//!     28    4 CRC-32 (IEEE) of bytes 0..28 followed by the header
//! ```
//! All numbers are little-endian. The payload has no checksum of its own: the connection's TLS
//! record layer authenticates it. Lengths are checked before anything is allocated.

use std::io::{self, Read};

use bytes::Bytes;

use crate::ids::RequestId;

/// Bytes of the fixed prefix.
pub const PREFIX_BYTES: usize = 32;
/// The first four bytes of every frame.
pub const MAGIC: [u8; 4] = *b"omfs";
/// The framing version spoken here; versions of what frames carry are negotiated in Hello.
pub const VERSION: u8 = 1;
/// Largest protobuf header.
pub const MAX_HEADER_BYTES: u32 = 1 << 20;
/// Largest bulk payload.
pub const MAX_PAYLOAD_BYTES: u32 = 4 << 20;

/// What a frame is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum FrameKind {
    /// First frame in each direction: versions, purpose, token.
    Hello = 1,
    /// Asks; exactly one `Reply` with the same request id follows.
    Request = 2,
    /// Answers a `Request`.
    Reply = 3,
    /// Withdraws a `Request` that is still being worked on; its `Reply` still comes.
    Cancel = 4,
    /// Tells; nothing comes back.
    Event = 5,
    /// Asks the peer's reader whether it lives.
    Ping = 6,
    /// Answers a `Ping`.
    Pong = 7,
}

impl FrameKind {
    pub(crate) fn from_wire(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Hello,
            2 => Self::Request,
            3 => Self::Reply,
            4 => Self::Cancel,
            5 => Self::Event,
            6 => Self::Ping,
            7 => Self::Pong,
            _ => return None,
        })
    }
}

/// Why bytes are no frame.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum FrameError {
    #[error("not an omfs data connection (bad magic)")]
    Magic,
    #[error("frame version {0} is not spoken here")]
    Version(u8),
    #[error("unknown frame kind {0}")]
    Kind(u8),
    #[error("header of {0} bytes exceeds the limit")]
    HeaderTooLong(u32),
    #[error("payload of {0} bytes exceeds the limit")]
    PayloadTooLong(u32),
    #[error("frame checksum does not match")]
    Checksum,
}

impl From<FrameError> for io::Error {
    fn from(error: FrameError) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

/// One received frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// What the frame is for.
    pub kind: FrameKind,
    /// Which request it belongs to.
    pub id: RequestId,
    /// 0 or an errno.
    pub status: i32,
    /// Encoded protobuf.
    pub header: Bytes,
    /// Bulk data.
    pub payload: Bytes,
}

/// The decoded fixed prefix of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prefix {
    /// What the frame is for.
    pub kind: FrameKind,
    /// Which request it belongs to.
    pub id: RequestId,
    /// 0 or an errno.
    pub status: i32,
    /// Bytes of protobuf that follow.
    pub header_bytes: u32,
    /// Bytes of bulk data that follow the header.
    pub payload_bytes: u32,
    crc: u32,
}

fn checksum(prefix: &[u8], header: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&prefix[..28]);
    crc.update(header);
    crc.finalize()
}

/// Encodes prefix and header of a frame into one buffer; the payload follows it on the wire.
///
/// # Errors
/// Header or payload longer than its limit.
pub fn encode(
    kind: FrameKind,
    id: RequestId,
    status: i32,
    header: &[u8],
    payload_bytes: usize,
) -> Result<Vec<u8>, FrameError> {
    let header_len = u32::try_from(header.len()).unwrap_or(u32::MAX);
    let payload_len = u32::try_from(payload_bytes).unwrap_or(u32::MAX);
    check_lengths(header_len, payload_len)?;
    let mut out = Vec::with_capacity(PREFIX_BYTES + header.len());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[VERSION, kind as u8, 0, 0]);
    out.extend_from_slice(&id.0.to_le_bytes());
    out.extend_from_slice(&status.to_le_bytes());
    out.extend_from_slice(&header_len.to_le_bytes());
    out.extend_from_slice(&payload_len.to_le_bytes());
    let crc = checksum(&out, header);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(header);
    Ok(out)
}

fn check_lengths(header: u32, payload: u32) -> Result<(), FrameError> {
    if header > MAX_HEADER_BYTES {
        return Err(FrameError::HeaderTooLong(header));
    }
    if payload > MAX_PAYLOAD_BYTES {
        return Err(FrameError::PayloadTooLong(payload));
    }
    Ok(())
}

fn u32_at(bytes: &[u8; PREFIX_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Decodes and bounds-checks the fixed prefix.
///
/// # Errors
/// Anything but the checksum, which needs the header: see [`verify`].
pub fn decode_prefix(bytes: &[u8; PREFIX_BYTES]) -> Result<Prefix, FrameError> {
    if bytes[..4] != MAGIC {
        return Err(FrameError::Magic);
    }
    if bytes[4] != VERSION {
        return Err(FrameError::Version(bytes[4]));
    }
    let kind = FrameKind::from_wire(bytes[5]).ok_or(FrameError::Kind(bytes[5]))?;
    let id = u64::from(u32_at(bytes, 8)) | u64::from(u32_at(bytes, 12)) << 32;
    let prefix = Prefix {
        kind,
        id: RequestId(id),
        status: u32_at(bytes, 16).cast_signed(),
        header_bytes: u32_at(bytes, 20),
        payload_bytes: u32_at(bytes, 24),
        crc: u32_at(bytes, 28),
    };
    check_lengths(prefix.header_bytes, prefix.payload_bytes)?;
    Ok(prefix)
}

/// Checks the checksum over prefix and header.
///
/// # Errors
/// [`FrameError::Checksum`].
pub fn verify(raw: &[u8; PREFIX_BYTES], prefix: &Prefix, header: &[u8]) -> Result<(), FrameError> {
    if checksum(raw, header) == prefix.crc {
        Ok(())
    } else {
        Err(FrameError::Checksum)
    }
}

/// Reads one whole frame, blocking.
///
/// # Errors
/// The reader's own errors; `UnexpectedEof` at the end of the stream; `InvalidData` holding a
/// [`FrameError`] when the bytes are no frame, after which the stream cannot be used.
pub fn read_frame(reader: &mut impl Read) -> io::Result<Frame> {
    let mut raw = [0; PREFIX_BYTES];
    reader.read_exact(&mut raw)?;
    let prefix = decode_prefix(&raw)?;
    let header = read_bytes(reader, prefix.header_bytes)?;
    verify(&raw, &prefix, &header)?;
    let payload = read_bytes(reader, prefix.payload_bytes)?;
    Ok(Frame {
        kind: prefix.kind,
        id: prefix.id,
        status: prefix.status,
        header,
        payload,
    })
}

fn read_bytes(reader: &mut impl Read, count: u32) -> io::Result<Bytes> {
    let count = count as usize;
    let mut bytes = Vec::with_capacity(count);
    if reader.by_ref().take(count as u64).read_to_end(&mut bytes)? != count {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_prefix_is_as_documented() {
        let bytes = encode(FrameKind::Reply, RequestId(7), 2, b"hd", 3).unwrap();
        assert_eq!(bytes[..8], *b"omfs\x01\x03\0\0");
        assert_eq!(
            bytes[8..28],
            [7, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]
        );
        assert_eq!(bytes[32..], *b"hd");
        assert_eq!(bytes.len(), PREFIX_BYTES + 2);
    }

    #[test]
    fn lengths_over_the_limit_are_refused_before_anything_is_read() {
        let too_long = vec![0; MAX_HEADER_BYTES as usize + 1];
        assert!(matches!(
            encode(FrameKind::Event, RequestId(0), 0, &too_long, 0),
            Err(FrameError::HeaderTooLong(_))
        ));
        let mut bytes = encode(FrameKind::Event, RequestId(0), 0, &[], 0).unwrap();
        bytes[24..28].copy_from_slice(&u32::MAX.to_le_bytes());
        let prefix: &[u8; PREFIX_BYTES] = bytes[..32].try_into().unwrap();
        assert_eq!(
            decode_prefix(prefix),
            Err(FrameError::PayloadTooLong(u32::MAX))
        );
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_read_back(id: u64, status: i32, header: Vec<u8>, payload: Vec<u8>) {
            let mut wire =
                encode(FrameKind::Request, RequestId(id), status, &header, payload.len()).unwrap();
            wire.extend_from_slice(&payload);
            let frame = read_frame(&mut wire.as_slice()).unwrap();
            prop_assert_eq!(frame.id, RequestId(id));
            prop_assert_eq!(frame.status, status);
            prop_assert_eq!(&frame.header[..], &header[..]);
            prop_assert_eq!(&frame.payload[..], &payload[..]);
        }

        #[test]
        fn garbage_is_an_error_and_never_a_panic(bytes: Vec<u8>) {
            let _ = read_frame(&mut bytes.as_slice());
        }

        #[test]
        fn one_flipped_bit_of_prefix_or_header_is_noticed(at in 0usize..40, bit in 0u8..8) {
            let mut wire = encode(FrameKind::Event, RequestId(9), 0, b"01234567", 0).unwrap();
            wire[at] ^= 1 << bit;
            let read = read_frame(&mut wire.as_slice());
            prop_assert!(read.is_err() || (6..8).contains(&at) && read.is_ok());
        }
    }
}
