//! The sending half of a link: frames in, sealed records out, many threads at once.

use std::fmt;
use std::io::{self, IoSlice, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use proto::frame;
use proto::link::{FrameSink, Outgoing};
use rustls::crypto::cipher::OutboundChunks;

use super::record::{RECORD_PLAIN_MAX, Sealer};
use super::socket::{SEND_TICK, set_unacknowledged};

/// Records sealed before they are written together: enough to use the wire well, little enough to
/// stay in the CPU's cache.
const RECORDS_PER_WRITE: usize = 16;
/// A send that makes no progress for this long ends the connection, unless told otherwise.
const SEND_DEADLINE: Duration = Duration::from_secs(5);

/// The sending half of a TLS link.
pub struct TlsSink {
    socket: Arc<TcpStream>,
    send_deadline_ms: AtomicU64,
    writer: Mutex<Writer>,
}

struct Writer {
    sealer: Sealer,
    records: Vec<Vec<u8>>,
    broken: bool,
}

impl fmt::Debug for TlsSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsSink")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

impl TlsSink {
    pub(super) fn new(socket: Arc<TcpStream>, sealer: Sealer) -> Self {
        let writer = Writer {
            sealer,
            records: Vec::with_capacity(RECORDS_PER_WRITE),
            broken: false,
        };
        let sink = Self {
            socket,
            send_deadline_ms: AtomicU64::new(0),
            writer: Mutex::new(writer),
        };
        sink.set_send_deadline(SEND_DEADLINE);
        sink
    }

    /// Sets how long a send may make no progress.
    pub(super) fn set_send_deadline(&self, deadline: Duration) {
        let deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
        self.send_deadline_ms.store(deadline_ms, Ordering::Relaxed);
    }

    /// Sets how long the peer's kernel may acknowledge nothing, or take nothing.
    pub(super) fn set_unacknowledged(&self, limit: Duration) -> io::Result<()> {
        self.set_send_deadline(limit);
        set_unacknowledged(&self.socket, limit)
    }

    fn send_locked(&self, writer: &mut Writer, out: Outgoing<'_>) -> io::Result<()> {
        if writer.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        // A frame that is too long harms nobody: nothing was sent yet.
        let payload_bytes = out.payload_bytes();
        let head = frame::encode(out.kind, out.id, out.status, out.header, payload_bytes)?;
        let result = self.write_frame(writer, &head, out.payload);
        if result.is_err() {
            // Part of a frame may be out: nothing can follow it.
            writer.broken = true;
            self.close();
        }
        result
    }

    fn write_frame(&self, writer: &mut Writer, head: &[u8], payload: &[&[u8]]) -> io::Result<()> {
        let mut pieces = Vec::with_capacity(1 + payload.len());
        pieces.push(head);
        pieces.extend_from_slice(payload);
        let mut rest = OutboundChunks::new(&pieces);
        while !rest.is_empty() {
            let (now, later) = rest.split_at(RECORD_PLAIN_MAX);
            writer.sealer.seal(now, &mut writer.records)?;
            rest = later;
            if writer.records.len() >= RECORDS_PER_WRITE || rest.is_empty() {
                self.write_records(&writer.records)?;
                writer.records.clear();
            }
        }
        Ok(())
    }

    /// Sends a small frame without ever blocking: not when another thread is sending just now (the
    /// peer hears from us anyway) nor when the socket is full; false then.
    ///
    /// # Errors
    /// As [`FrameSink::send`].
    pub(super) fn send_if_free(&self, out: Outgoing<'_>) -> io::Result<bool> {
        let mut writer = match self.writer.try_lock() {
            Ok(writer) => writer,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(false),
        };
        if !is_writable(&self.socket)? {
            return Ok(false);
        }
        self.send_locked(&mut writer, out).map(|()| true)
    }

    fn write_records(&self, records: &[Vec<u8>]) -> io::Result<()> {
        let deadline = Duration::from_millis(self.send_deadline_ms.load(Ordering::Relaxed));
        let mut slices: Vec<_> = records.iter().map(|record| IoSlice::new(record)).collect();
        let (mut left, mut waited) = (&mut slices[..], Duration::ZERO);
        while !left.is_empty() {
            let mut socket = &*self.socket;
            match socket.write_vectored(left) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    IoSlice::advance_slices(&mut left, count);
                    waited = Duration::ZERO;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The socket's own timeout is only a tick: it also ends a send that was partly
                // done, and starts anew for the rest. Ticks are counted, however late they are: a
                // busy machine says nothing about the peer.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    waited += SEND_TICK;
                    if waited >= deadline {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn set_key_limit(&self, records: u64) {
        self.lock().sealer.set_limit(records);
    }
}

impl FrameSink for TlsSink {
    fn send(&self, frame: Outgoing<'_>) -> io::Result<()> {
        self.send_locked(&mut self.lock(), frame)
    }

    fn close(&self) {
        // Without the lock: this is also how a blocked sender is woken.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// Whether the socket takes a few hundred bytes at once: Linux calls a TCP socket writable only
/// while a third of its buffer is free (tcp(7), sk_stream_is_writeable).
fn is_writable(socket: &TcpStream) -> io::Result<bool> {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    Ok(poll(&mut fds, PollTimeout::ZERO)? > 0)
}
