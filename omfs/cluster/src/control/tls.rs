//! TLS connections to other nodes' control ports, made here and not by tonic: the certificate that
//! the other node shows is kept, and ours is the newest at each connection.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use proto::ids::NodeId;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use omfs_pki::{Certified, PkiError, TlsIdentity};

/// A connection that cannot be made within this time is tried again at the next call.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// The handshake waits for the other node's CPU, too.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// Names in the certificates that other nodes have shown to this one.
#[derive(Clone, Debug, Default)]
pub(super) struct Shown(Arc<Mutex<HashMap<NodeId, String>>>);

impl Shown {
    /// The node as its certificate had it at the last connection.
    pub(super) fn certified(&self, node: NodeId) -> Option<Certified> {
        let shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let name = shown.get(&node)?.clone();
        Some(Certified { node, name })
    }

    fn note(&self, peer: Certified) {
        let mut shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        shown.insert(peer.node, peer.name);
    }
}

/// A channel to `node` that connects when it is used.
pub(super) fn channel(
    endpoint: &Endpoint,
    identity: &TlsIdentity,
    (node, address): (NodeId, SocketAddr),
    shown: &Shown,
) -> Channel {
    let (identity, shown) = (identity.clone(), shown.clone());
    endpoint.connect_with_connector_lazy(service_fn(move |_| {
        let (identity, shown) = (identity.clone(), shown.clone());
        async move {
            let (stream, peer) = connect(&identity, node, address).await?;
            shown.note(peer);
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    }))
}

async fn connect(
    identity: &TlsIdentity,
    node: NodeId,
    address: SocketAddr,
) -> io::Result<(TlsStream<TcpStream>, Certified)> {
    let stream = within(CONNECT_TIMEOUT, TcpStream::connect(address)).await?;
    stream.set_nodelay(true)?;
    let mut config = ClientConfig::clone(&identity.client_config());
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    let handshake = connector.connect(identity.server_name(node)?, stream);
    let stream = within(HANDSHAKE_TIMEOUT, handshake).await?;
    let peer = identity.peer(stream.get_ref().1.peer_certificates())?;
    if peer.node == node {
        return Ok((stream, peer));
    }
    let (expected, found) = (node, peer.node);
    Err(PkiError::WrongNode { expected, found }.into())
}

async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let done = tokio::time::timeout(limit, work).await;
    done.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
