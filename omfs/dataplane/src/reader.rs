//! The receiving half of a link: raw bytes from the socket, records opened in place, frames out.

use std::fmt;
use std::io::{self, Read};
use std::net::TcpStream;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::frame::{self, Frame, PREFIX_BYTES};
use proto::link::FrameSource;

use super::record::{Opened, Opener, RECORD_CIPHER_MAX, RECORD_HEADER_BYTES, ciphertext_bytes};

/// Raw bytes held at once: several whole records, so that bulk data takes few system calls.
const BUFFER_BYTES: usize = 256 << 10;
const _: () = assert!(BUFFER_BYTES > RECORD_HEADER_BYTES + RECORD_CIPHER_MAX);

/// What to do when nothing came within the socket's read timeout.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Idle {
    /// Keep reading.
    Wait,
    /// Return without a frame as soon as no frame is half read.
    Leave,
}

/// How long reading waits before it calls back, and what it calls.
pub(super) type OnIdle<'a> = &'a mut dyn FnMut(Duration) -> io::Result<Idle>;

/// The receiving half of a TLS link.
pub struct TlsSource {
    socket: Arc<TcpStream>,
    opener: Opener,
    /// Allocated and zeroed once; `raw` is what was received and not yet opened.
    buffer: Box<[u8]>,
    raw: Range<usize>,
    /// Opened application data, somewhere before `raw`.
    plain: Range<usize>,
    last_received: Instant,
    /// When reading ends however the peer trickles: set until it has said Hello.
    until: Option<Instant>,
}

impl fmt::Debug for TlsSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsSource")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

impl TlsSource {
    pub(super) fn new(socket: Arc<TcpStream>, opener: Opener, left_over: &[u8]) -> Self {
        let mut buffer = vec![0; BUFFER_BYTES.max(left_over.len())].into_boxed_slice();
        buffer[..left_over.len()].copy_from_slice(left_over);
        let (raw, plain) = (0..left_over.len(), 0..0);
        Self {
            socket,
            opener,
            buffer,
            raw,
            plain,
            last_received: Instant::now(),
            until: None,
        }
    }

    /// Receives the next frame. Whenever the socket's read timeout passes without a byte, calls
    /// `on_idle` with the time since the last byte; `None` when that said `Leave`.
    ///
    /// # Errors
    /// As [`FrameSource::recv`], and what `on_idle` returns.
    pub(super) fn recv_until(&mut self, on_idle: OnIdle<'_>) -> io::Result<Option<Frame>> {
        while self.plain.is_empty() {
            if self.next_record(on_idle)? == Idle::Leave {
                return Ok(None);
            }
        }
        self.frame(on_idle).map(Some)
    }

    /// The socket it reads.
    pub(super) fn socket(&self) -> Arc<TcpStream> {
        Arc::clone(&self.socket)
    }

    /// Sets how often [`recv_until`](Self::recv_until) calls back; `None` for never.
    ///
    /// # Errors
    /// setsockopt(2).
    pub(super) fn set_tick(&self, tick: Option<Duration>) -> io::Result<()> {
        self.socket.set_read_timeout(tick)
    }

    /// Whether bytes of further frames are here already.
    pub(super) fn has_more(&self) -> bool {
        !self.plain.is_empty() || !self.raw.is_empty()
    }

    /// Sets when reading fails with `TimedOut` whatever comes; `None` for never.
    pub(super) fn set_until(&mut self, until: Option<Instant>) {
        self.until = until;
    }

    fn frame(&mut self, on_idle: OnIdle<'_>) -> io::Result<Frame> {
        let mut raw = [0; PREFIX_BYTES];
        self.copy_to(&mut raw, on_idle)?;
        let prefix = frame::decode_prefix(&raw)?;
        let header = self.bytes(prefix.header_bytes, on_idle)?;
        frame::verify(&raw, &prefix, &header)?;
        let payload = self.bytes(prefix.payload_bytes, on_idle)?;
        Ok(Frame {
            kind: prefix.kind,
            id: prefix.id,
            status: prefix.status,
            header,
            payload,
        })
    }

    fn copy_to(&mut self, mut out: &mut [u8], on_idle: OnIdle<'_>) -> io::Result<()> {
        while !out.is_empty() {
            let piece = self.fill(on_idle)?;
            let count = piece.len().min(out.len());
            let (now, later) = out.split_at_mut(count);
            now.copy_from_slice(&piece[..count]);
            self.plain.start += count;
            out = later;
        }
        Ok(())
    }

    fn bytes(&mut self, count: u32, on_idle: OnIdle<'_>) -> io::Result<Bytes> {
        if count == 0 {
            return Ok(Bytes::new());
        }
        let count = count as usize;
        let mut bytes = Vec::with_capacity(count);
        while bytes.len() < count {
            let piece = self.fill(on_idle)?;
            let take = piece.len().min(count - bytes.len());
            bytes.extend_from_slice(&piece[..take]);
            self.plain.start += take;
        }
        Ok(bytes.into())
    }

    /// Opened bytes, at least one; more is read when there are none.
    fn fill(&mut self, on_idle: OnIdle<'_>) -> io::Result<&[u8]> {
        while self.plain.is_empty() {
            // In the middle of a frame there is no leaving.
            self.next_record(on_idle)?;
        }
        Ok(&self.buffer[self.plain.clone()])
    }

    /// Opens the next record, reading as much as needed.
    fn next_record(&mut self, on_idle: OnIdle<'_>) -> io::Result<Idle> {
        let length = loop {
            let raw = &self.buffer[self.raw.clone()];
            let needed = match raw.first_chunk::<RECORD_HEADER_BYTES>() {
                Some(header) => ciphertext_bytes(*header)?,
                None => 0,
            };
            if needed > 0 && raw.len() >= RECORD_HEADER_BYTES + needed {
                break needed;
            }
            if self.read_more(on_idle)? == Idle::Leave {
                return Ok(Idle::Leave);
            }
        };
        let start = self.raw.start + RECORD_HEADER_BYTES;
        self.raw.start = start + length;
        match self.opener.open(&mut self.buffer[start..start + length])? {
            Opened::Data(count) => self.plain = start..start + count,
            Opened::Nothing => {}
            Opened::Closed => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
        Ok(Idle::Wait)
    }

    fn read_more(&mut self, on_idle: OnIdle<'_>) -> io::Result<Idle> {
        self.make_room();
        loop {
            if self.until.is_some_and(|until| Instant::now() >= until) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let mut socket = &*self.socket;
            match socket.read(&mut self.buffer[self.raw.end..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    self.raw.end += count;
                    self.last_received = Instant::now();
                    return Ok(Idle::Wait);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if on_idle(self.last_received.elapsed())? == Idle::Leave {
                        return Ok(Idle::Leave);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Moves the unopened rest to the front when a whole record might not fit behind it. Called
    /// only when no opened bytes are left.
    fn make_room(&mut self) {
        if self.raw.is_empty() {
            self.raw = 0..0;
        } else if self.raw.start + RECORD_HEADER_BYTES + RECORD_CIPHER_MAX > self.buffer.len() {
            self.buffer.copy_within(self.raw.clone(), 0);
            self.raw = 0..self.raw.len();
        }
    }
}

impl FrameSource for TlsSource {
    fn recv(&mut self) -> io::Result<Frame> {
        loop {
            if let Some(frame) = self.recv_until(&mut |_| Ok(Idle::Wait))? {
                return Ok(frame);
            }
        }
    }
}
