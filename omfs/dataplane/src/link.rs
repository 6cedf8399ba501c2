//! Making TLS links: TCP, handshake, certificate, Hello.

use std::io::{self, Read};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::ids::NodeId;
use proto::link::Link;
use proto::v1::Hello;

use super::handshake::{self, Secured, timed_out};
use super::hello;
use super::reader::TlsSource;
use super::record;
use super::socket;
use super::writer::TlsSink;
use omfs_pki::{PkiError, TlsIdentity};

/// How long a refused peer is read from, so that our last words are not lost to a reset.
const DRAIN_DEADLINE: Duration = Duration::from_millis(200);

/// A job's link ends when the peer's kernel acknowledges nothing for this long: its guest is not to
/// outlive its home, nor the deputy its guest, for more than seconds.
const JOB_UNACKNOWLEDGED: Duration = Duration::from_secs(6);

/// An established connection with its concrete halves.
#[derive(Debug)]
pub(super) struct TlsLink {
    pub sink: Arc<TlsSink>,
    pub source: TlsSource,
    pub peer: NodeId,
    pub hello: Hello,
}

impl From<TlsLink> for Link {
    fn from(link: TlsLink) -> Self {
        Self {
            sink: link.sink,
            source: Box::new(link.source),
        }
    }
}

/// A connection that another node made to us.
#[derive(Debug)]
pub struct Accepted {
    /// Both halves.
    pub link: Link,
    /// Who it is, by its certificate.
    pub peer: NodeId,
    /// What it said.
    pub hello: Hello,
}

/// Connects to the data port of node `expected`; the whole takes at most `deadline`.
///
/// # Errors
/// TCP's own errors; `TimedOut`; `PermissionDenied` holding a [`PkiError`] when one side's
/// certificate does not fit (another node, another cluster, expired); `Unsupported` when no common
/// version is spoken; `ConnectionRefused` holding the peer's reason when it refused our Hello.
pub fn connect(
    address: SocketAddr,
    identity: &TlsIdentity,
    expected: NodeId,
    ours: &Hello,
    deadline: Duration,
) -> io::Result<(Link, Hello)> {
    let link = connect_tls(address, identity, expected, ours, deadline)?;
    let hello = link.hello.clone();
    Ok((link.into(), hello))
}

pub(super) fn connect_tls(
    address: SocketAddr,
    identity: &TlsIdentity,
    expected: NodeId,
    ours: &Hello,
    deadline: Duration,
) -> io::Result<TlsLink> {
    let until = Instant::now() + deadline;
    let stream = TcpStream::connect_timeout(&address, deadline)?;
    stream.set_nodelay(true)?;
    let name = identity.server_name(expected)?;
    let secured = handshake::connect(&stream, identity.client_config(), name, until)?;
    let peer = identity.peer_node(Some(&secured.peer_chain))?;
    if peer != expected {
        return Err(PkiError::WrongNode {
            expected,
            found: peer,
        }
        .into());
    }
    let (sink, mut source) = halves(stream, secured)?;
    hello::send(&*sink, ours)?;
    let hello = hello::receive(&mut source, peer, until)?;
    hello::agree(ours, &hello)?;
    set_deadline(&sink, &ours.purpose)?;
    Ok(TlsLink {
        sink,
        source,
        peer,
        hello,
    })
}

/// Accepts a connection on a data port; the whole takes at most `deadline`.
///
/// # Errors
/// As [`connect`]; a peer that is refused is told why as far as it understands.
pub fn accept(
    stream: TcpStream,
    identity: &TlsIdentity,
    ours: &Hello,
    deadline: Duration,
) -> io::Result<Accepted> {
    let link = accept_tls(stream, identity, ours, deadline)?;
    let (peer, hello) = (link.peer, link.hello.clone());
    Ok(Accepted {
        link: link.into(),
        peer,
        hello,
    })
}

pub(super) fn accept_tls(
    stream: TcpStream,
    identity: &TlsIdentity,
    ours: &Hello,
    deadline: Duration,
) -> io::Result<TlsLink> {
    let until = Instant::now() + deadline;
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    let secured = handshake::accept(&stream, identity.server_config(), until)
        .inspect_err(|error| say_goodbye(&stream, error))?;
    let peer = identity.peer_node(Some(&secured.peer_chain))?;
    let (sink, mut source) = halves(stream, secured)?;
    let hello = hello::receive(&mut source, peer, until)?;
    // Ours goes out first: the peer finds the same disagreement and can name it.
    hello::send(&*sink, ours)?;
    hello::agree(ours, &hello)?;
    set_deadline(&sink, &hello.purpose)?;
    Ok(TlsLink {
        sink,
        source,
        peer,
        hello,
    })
}

fn set_deadline(sink: &TlsSink, purpose: &str) -> io::Result<()> {
    if purpose == hello::PURPOSE_JOB {
        sink.set_unacknowledged(JOB_UNACKNOWLEDGED)?;
    }
    Ok(())
}

/// Makes both halves, with the socket's options for frames.
fn halves(stream: TcpStream, secured: Secured) -> io::Result<(Arc<TlsSink>, TlsSource)> {
    let Secured {
        secrets,
        suite,
        rekey,
        left_over,
        ..
    } = secured;
    socket::prepare(&stream)?;
    let (sealer, opener) = record::split(suite, secrets, rekey)?;
    let stream = Arc::new(stream);
    let sink = Arc::new(TlsSink::new(Arc::clone(&stream), sealer));
    Ok((sink, TlsSource::new(stream, opener, &left_over)))
}

/// Closing a socket with unread bytes resets the connection, and the peer loses the alert that
/// says why: read what it has sent, for a moment.
fn say_goodbye(mut stream: &TcpStream, error: &io::Error) {
    if error.kind() != io::ErrorKind::PermissionDenied {
        return;
    }
    let until = Instant::now() + DRAIN_DEADLINE;
    let _ = stream.shutdown(Shutdown::Write);
    let mut buffer = [0; 4096];
    while let Some(left) = until
        .checked_duration_since(Instant::now())
        .filter(|d| !d.is_zero())
    {
        let ready = stream.set_read_timeout(Some(left));
        match ready
            .and_then(|()| stream.read(&mut buffer))
            .map_err(timed_out)
        {
            Ok(count) if count > 0 => {}
            _ => return,
        }
    }
}
