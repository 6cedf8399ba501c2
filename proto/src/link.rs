//! A data-plane connection as its users see it: frames in, frames out.
//!
//! The transport (TLS over TCP in production, a plain stream in tests) stays behind these traits,
//! so that the migrator and the filesystem know nothing of sockets and TLS.

use std::fmt::Debug;
use std::io::{self, BufReader, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use prost::Message;

use crate::frame::{self, Frame, FrameKind};
use crate::ids::RequestId;

/// One frame to be sent; the header is encoded protobuf.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// What the frame is for.
    pub kind: FrameKind,
    /// Which request it belongs to; 0 for none.
    pub id: RequestId,
    /// 0 or an errno.
    pub status: i32,
    /// Encoded protobuf.
    pub header: &'a [u8],
    /// Bulk data, sent in order as one payload.
    pub payload: &'a [&'a [u8]],
}

impl Outgoing<'_> {
    /// Total bytes of the payload's pieces.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        self.payload.iter().map(|piece| piece.len()).sum()
    }
}

/// The sending half. Any thread may send at any time; frames never interleave.
pub trait FrameSink: Send + Sync + Debug {
    /// Sends one frame, blocking until the transport took it or its deadline passed.
    ///
    /// # Errors
    /// The transport's error; the connection cannot be used any more after one.
    fn send(&self, frame: Outgoing<'_>) -> io::Result<()>;

    /// Ends the connection in both directions; a blocked receiver wakes with an error.
    fn close(&self);
}

/// The receiving half, owned by one thread.
pub trait FrameSource: Send + Debug {
    /// Receives the next frame, blocking.
    ///
    /// # Errors
    /// `UnexpectedEof` when the peer is gone; `InvalidData` when it does not speak frames.
    fn recv(&mut self) -> io::Result<Frame>;
}

/// Both halves of one connection.
#[derive(Debug)]
pub struct Link {
    /// The sending half.
    pub sink: Arc<dyn FrameSink>,
    /// The receiving half.
    pub source: Box<dyn FrameSource>,
}

/// Sends a protobuf message as a frame's header.
///
/// # Errors
/// See [`FrameSink::send`].
pub fn send_message(
    sink: &dyn FrameSink,
    kind: FrameKind,
    id: RequestId,
    message: &impl Message,
    payload: &[&[u8]],
) -> io::Result<()> {
    sink.send(Outgoing {
        kind,
        id,
        status: 0,
        header: &message.encode_to_vec(),
        payload,
    })
}

/// Frames over any pair of byte streams, without TLS: for socket pairs between a node's own
/// processes and for tests.
#[derive(Debug)]
pub struct StreamSink<W> {
    writer: Mutex<W>,
    close: fn(&W),
}

impl<W: Write + Send + Debug> FrameSink for StreamSink<W> {
    fn send(&self, out: Outgoing<'_>) -> io::Result<()> {
        let prefix = frame::encode(
            out.kind,
            out.id,
            out.status,
            out.header,
            out.payload_bytes(),
        )?;
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.write_all(&prefix)?;
        for piece in out.payload {
            writer.write_all(piece)?;
        }
        writer.flush()
    }

    fn close(&self) {
        (self.close)(&self.writer.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// The receiving half of [`StreamSink`].
#[derive(Debug)]
pub struct StreamSource<R>(BufReader<R>);

impl<R: Read + Send + Debug> FrameSource for StreamSource<R> {
    fn recv(&mut self) -> io::Result<Frame> {
        frame::read_frame(&mut self.0)
    }
}

/// A link over a connected unix stream socket.
///
/// # Errors
/// The descriptor could not be duplicated.
pub fn unix_link(stream: std::os::unix::net::UnixStream) -> io::Result<Link> {
    let reader = stream.try_clone()?;
    let close = |stream: &std::os::unix::net::UnixStream| {
        let _ = stream.shutdown(std::net::Shutdown::Both);
    };
    Ok(Link {
        sink: Arc::new(StreamSink {
            writer: Mutex::new(stream),
            close,
        }),
        source: Box::new(StreamSource(BufReader::with_capacity(1 << 18, reader))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_cross_a_socket_pair_and_closing_wakes_the_receiver() {
        let (left, right) = std::os::unix::net::UnixStream::pair().unwrap();
        let (left, mut right) = (unix_link(left).unwrap(), unix_link(right).unwrap());
        let out = Outgoing {
            kind: FrameKind::Event,
            id: RequestId(3),
            status: 0,
            header: b"h",
            payload: &[b"ab", b"c"],
        };
        left.sink.send(out).unwrap();
        let frame = right.source.recv().unwrap();
        assert_eq!(
            (&frame.header[..], &frame.payload[..]),
            (&b"h"[..], &b"abc"[..])
        );
        left.sink.close();
        assert_eq!(
            right.source.recv().unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }
}
