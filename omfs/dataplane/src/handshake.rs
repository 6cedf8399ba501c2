//! The TLS 1.3 handshake on a blocking socket, up to the traffic keys.
//!
//! rustls performs the handshake; afterwards its connection is split into what seals and what opens
//! records ([`super::record`]), so that the two directions share no lock.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::kernel::KernelConnection;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, UnbufferedConnectionCommon, UnbufferedStatus,
};
use rustls::{ClientConfig, ConnectionTrafficSecrets, ExtractedSecrets, ServerConfig};
use rustls::{SupportedCipherSuite, Tls13CipherSuite};
use rustls_pki_types::{CertificateDer, ServerName};

use super::record::{RECORD_HEADER_BYTES, Rekey};
use omfs_pki::PkiError;

/// More than a handshake with this cluster's certificates ever needs.
const HANDSHAKE_BYTES_MAX: usize = 64 << 10;

/// A finished handshake.
pub(super) struct Secured {
    pub secrets: ExtractedSecrets,
    pub suite: &'static Tls13CipherSuite,
    pub rekey: Box<dyn Rekey>,
    pub peer_chain: Vec<CertificateDer<'static>>,
    /// Bytes that came after the handshake's last record.
    pub left_over: Vec<u8>,
}

impl<Data: Send + 'static> Rekey for KernelConnection<Data> {
    fn next_sending(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error> {
        self.update_tx_secret()
    }

    fn next_receiving(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error> {
        self.update_rx_secret()
    }
}

/// Handshakes as the connecting side.
///
/// # Errors
/// `TimedOut` when `deadline` passes; the socket's errors; `PermissionDenied` holding a
/// [`PkiError`] when the certificates do not fit.
pub(super) fn connect(
    stream: &TcpStream,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    deadline: Instant,
) -> io::Result<Secured> {
    let mut tls = UnbufferedClientConnection::new(config, name).map_err(refused)?;
    let left_over = drive(&mut tls, Wire::new(stream, deadline))?;
    let peer_chain = owned(tls.peer_certificates());
    let (secrets, kernel) = tls.dangerous_into_kernel_connection().map_err(refused)?;
    let suite = tls13(kernel.negotiated_cipher_suite())?;
    Ok(Secured {
        secrets,
        suite,
        rekey: Box::new(kernel),
        peer_chain,
        left_over,
    })
}

/// Handshakes as the accepting side.
///
/// # Errors
/// As [`connect`].
pub(super) fn accept(
    stream: &TcpStream,
    config: Arc<ServerConfig>,
    deadline: Instant,
) -> io::Result<Secured> {
    let mut tls = UnbufferedServerConnection::new(config).map_err(refused)?;
    let left_over = drive(&mut tls, Wire::new(stream, deadline))?;
    let peer_chain = owned(tls.peer_certificates());
    let (secrets, kernel) = tls.dangerous_into_kernel_connection().map_err(refused)?;
    let suite = tls13(kernel.negotiated_cipher_suite())?;
    Ok(Secured {
        secrets,
        suite,
        rekey: Box::new(kernel),
        peer_chain,
        left_over,
    })
}

/// What rustls' two kinds of unbuffered connection have in common, but not by a trait of its own.
trait Handshaking: Deref<Target = UnbufferedConnectionCommon<Self::Data>> {
    type Data;
    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Handshaking for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, ClientConnectionData> {
        self.process_tls_records(incoming)
    }
}

impl Handshaking for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, ServerConnectionData> {
        self.process_tls_records(incoming)
    }
}

/// Performs the handshake; returns what came after its last record.
fn drive(tls: &mut impl Handshaking, mut wire: Wire<'_>) -> io::Result<Vec<u8>> {
    let mut incoming = Incoming::default();
    loop {
        let UnbufferedStatus { discard, state } = tls.process(incoming.visible());
        let next = match state {
            Ok(state) => wire.step(state)?,
            Err(error) => {
                say_why(tls, &mut wire);
                return Err(refused(error));
            }
        };
        incoming.discard(discard);
        match next {
            Next::Again => {}
            // A server may send before it has seen the client's certificate: not done by then.
            Next::Traffic if !tls.is_handshaking() => return Ok(incoming.bytes),
            Next::Record | Next::Traffic => wire.reveal_record(&mut incoming)?,
        }
    }
}

/// Sends the alert that a failure left behind. rustls must not look at the bad input again, so it
/// is asked only while it has something to send, which it gives out before it looks.
fn say_why(tls: &mut impl Handshaking, wire: &mut Wire<'_>) {
    while tls.wants_write() {
        let Ok(ConnectionState::EncodeTlsData(mut data)) = tls.process(&mut []).state else {
            break;
        };
        if encode(&mut wire.outgoing, |space| data.encode(space)).is_err() {
            return;
        }
    }
    // The failure itself matters more than whether the peer learns of it.
    let _ = wire.flush();
}

fn refused(error: rustls::Error) -> io::Error {
    PkiError::from(error).into()
}

fn owned(chain: Option<&[CertificateDer<'static>]>) -> Vec<CertificateDer<'static>> {
    chain.unwrap_or_default().to_vec()
}

fn tls13(suite: SupportedCipherSuite) -> io::Result<&'static Tls13CipherSuite> {
    // The configurations allow nothing else.
    suite
        .tls13()
        .ok_or_else(|| io::Error::other("the peer does not speak TLS 1.3"))
}

/// What to do after a state of the handshake was handled.
enum Next {
    Again,
    /// Another record is needed.
    Record,
    Traffic,
}

/// What came from the peer. rustls is shown one record after the other, never what follows the
/// handshake: that is for [`super::record`] to open.
#[derive(Default)]
struct Incoming {
    bytes: Vec<u8>,
    shown: usize,
}

impl Incoming {
    fn visible(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.shown]
    }

    fn discard(&mut self, count: usize) {
        self.bytes.drain(..count);
        self.shown -= count;
    }

    /// Shows the next record if it is all there. What is no record is shown as it is: rustls says
    /// best what is wrong with it.
    fn reveal(&mut self) -> bool {
        const CONTENT_TYPES: std::ops::RangeInclusive<u8> = 20..=23;
        let rest = &self.bytes[self.shown..];
        let Some(&[typ, major, _, high, low]) = rest.first_chunk::<RECORD_HEADER_BYTES>() else {
            return false;
        };
        let whole = RECORD_HEADER_BYTES + usize::from(u16::from_be_bytes([high, low]));
        if CONTENT_TYPES.contains(&typ) && major == 3 && whole > rest.len() {
            return false;
        }
        self.shown += whole.min(rest.len());
        true
    }
}

/// The socket's side of a handshake.
struct Wire<'a> {
    stream: &'a TcpStream,
    deadline: Instant,
    outgoing: Vec<u8>,
}

impl<'a> Wire<'a> {
    fn new(stream: &'a TcpStream, deadline: Instant) -> Self {
        Self {
            stream,
            deadline,
            outgoing: Vec::new(),
        }
    }

    fn step<Data>(&mut self, state: ConnectionState<'_, '_, Data>) -> io::Result<Next> {
        match state {
            ConnectionState::EncodeTlsData(mut data) => {
                encode(&mut self.outgoing, |space| data.encode(space))?;
                Ok(Next::Again)
            }
            ConnectionState::TransmitTlsData(data) => {
                self.flush()?;
                data.done();
                Ok(Next::Again)
            }
            ConnectionState::BlockedHandshake => Ok(Next::Record),
            ConnectionState::WriteTraffic(_) => Ok(Next::Traffic),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn remaining(&self) -> io::Result<Duration> {
        match self.deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            remaining => Ok(remaining),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.set_write_timeout(Some(self.remaining()?))?;
        let mut stream = self.stream;
        stream.write_all(&self.outgoing).map_err(timed_out)?;
        self.outgoing.clear();
        Ok(())
    }

    fn reveal_record(&mut self, incoming: &mut Incoming) -> io::Result<()> {
        while !incoming.reveal() {
            self.fill(&mut incoming.bytes)?;
        }
        Ok(())
    }

    fn fill(&mut self, incoming: &mut Vec<u8>) -> io::Result<()> {
        self.stream.set_read_timeout(Some(self.remaining()?))?;
        let mut buffer = [0; 8 << 10];
        let mut stream = self.stream;
        let count = stream.read(&mut buffer).map_err(timed_out)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        incoming.extend_from_slice(&buffer[..count]);
        if incoming.len() > HANDSHAKE_BYTES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the handshake is too long",
            ));
        }
        Ok(())
    }
}

/// A socket timeout shows as `WouldBlock`; users of this module know only `TimedOut`.
pub(super) fn timed_out(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock {
        io::ErrorKind::TimedOut.into()
    } else {
        error
    }
}

fn encode(
    out: &mut Vec<u8>,
    mut into: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
) -> io::Result<()> {
    let used = out.len();
    let mut space = 4 << 10;
    loop {
        out.resize(used + space, 0);
        match into(&mut out[used..]) {
            Ok(count) => {
                out.truncate(used + count);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(short)) => space = short.required_size,
            Err(error) => return Err(io::Error::other(error)),
        }
    }
}
