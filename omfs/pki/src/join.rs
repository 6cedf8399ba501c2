//! The joining machine's side: trust by the token's fingerprint, then a certificate of its own.
//!
//! 1. [`fetch_ca`] connects without a certificate, and accepts the peer only when its chain ends in
//!    the CA certificate whose fingerprint the token carries.
//! 2. The `Join` call goes over ordinary TLS with that CA as the only root, to
//!    [`Token::authority_domain`], carrying the secret and [`PendingJoin::csr_der`].
//! 3. [`PendingJoin::finish`] writes what came back into the store.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::ids::NodeId;
use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::authority::generation;
use super::error::PkiError;
use super::identity::{TlsIdentity, provider, roots, server_verifier};
use super::name::check_node_name;
use super::store::{Membership, Store};
use super::token::{Token, TokenError, fingerprint};

impl Token {
    /// The DNS name that the CA node's certificate carries.
    #[must_use]
    pub fn authority_domain(&self) -> String {
        self.cluster.node_domain(self.authority)
    }
}

/// Accepts a server whose chain holds the CA with the pinned fingerprint and is signed by it.
#[derive(Debug)]
struct PinnedCa {
    ca_fingerprint: [u8; 32],
}

impl PinnedCa {
    fn find<'a>(&self, chain: &[CertificateDer<'a>]) -> Option<CertificateDer<'a>> {
        chain
            .iter()
            .find(|der| fingerprint(der) == self.ca_fingerprint)
            .cloned()
    }
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let ca = self
            .find(intermediates)
            .ok_or(CertificateError::UnknownIssuer)?;
        let general = |error: PkiError| rustls::Error::General(error.to_string());
        let verifier = server_verifier(roots(ca).map_err(general)?).map_err(general)?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// A client without a certificate that accepts only a node of the token's cluster. `alpn` is
/// `b"h2"` when gRPC is to follow on the same connection.
///
/// # Errors
/// None in practice.
pub fn client_config(token: &Token, alpn: &[u8]) -> Result<Arc<ClientConfig>, PkiError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| PkiError::Tls(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedCa {
            ca_fingerprint: token.ca_fingerprint,
        }))
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(Arc::new(config))
}

/// Fetches the cluster's CA certificate, in PEM, from the control port of the CA node, and checks
/// it against the token. Blocks for at most `deadline`.
///
/// # Errors
/// An expired token, an unreachable address, or a peer that is not the token's CA node.
pub fn fetch_ca(
    address: SocketAddr,
    token: &Token,
    deadline: Duration,
) -> Result<String, PkiError> {
    if token.is_expired() {
        return Err(TokenError::Expired.into());
    }
    let name = token.cluster.server_name(token.authority)?;
    let mut connection = ClientConnection::new(client_config(token, b"h2")?, name)?;
    handshake(address, &mut connection, Instant::now() + deadline)
        .map_err(|error| explain(address, error))?;
    let chain = connection.peer_certificates().unwrap_or_default();
    let pinned = PinnedCa {
        ca_fingerprint: token.ca_fingerprint,
    };
    let ca = pinned.find(chain).ok_or(PkiError::Foreign)?;
    Ok(to_pem("CERTIFICATE", &ca))
}

fn handshake(
    address: SocketAddr,
    connection: &mut ClientConnection,
    deadline: Instant,
) -> io::Result<()> {
    let left = || match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::Error::from(io::ErrorKind::TimedOut)),
        left => Ok(left),
    };
    let mut stream = TcpStream::connect_timeout(&address, left()?)?;
    while connection.is_handshaking() {
        stream.set_read_timeout(Some(left()?))?;
        stream.set_write_timeout(Some(left()?))?;
        if connection.wants_write() {
            connection.write_tls(&mut stream)?;
            continue;
        }
        if connection.read_tls(&mut stream)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        connection.process_new_packets().map_err(io::Error::other)?;
    }
    // Says goodbye, so that the other side does not log a broken connection.
    connection.send_close_notify();
    let _ = connection.write_tls(&mut stream);
    Ok(())
}

fn explain(address: SocketAddr, error: io::Error) -> PkiError {
    match error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>())
    {
        Some(tls) => PkiError::from(tls.clone()),
        None => PkiError::Io {
            path: address.to_string().into(),
            source: error,
        },
    }
}

/// DER in PEM's clothes.
#[must_use]
fn to_pem(label: &str, der: &[u8]) -> String {
    const TABLE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
            let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
            for at in 0..4 {
                let symbol = TABLE[(bits >> (18 - 6 * at)) as usize & 63];
                text.push(if at <= group.len() {
                    symbol as char
                } else {
                    '='
                });
            }
        }
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

/// A machine that has made its key and waits for a certificate. Nothing is on disk before
/// [`finish`](Self::finish).
pub struct PendingJoin {
    key: KeyPair,
    node_name: String,
    csr_der: Vec<u8>,
}

impl std::fmt::Debug for PendingJoin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PendingJoin")
            .field("node_name", &self.node_name)
            .finish_non_exhaustive()
    }
}

impl PendingJoin {
    /// Makes a key and a certificate request for it.
    ///
    /// # Errors
    /// A bad name, or [`PkiError::AlreadyMember`].
    pub fn new(store: &Store, node_name: &str) -> Result<Self, PkiError> {
        check_node_name(node_name)?;
        store.check_empty()?;
        let key = KeyPair::generate().map_err(|error| generation(&error))?;
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, node_name);
        let csr = params
            .serialize_request(&key)
            .map_err(|error| generation(&error))?;
        Ok(Self {
            csr_der: csr.der().to_vec(),
            node_name: node_name.to_owned(),
            key,
        })
    }

    /// The certificate request to send with the token's secret.
    #[must_use]
    pub fn csr_der(&self) -> &[u8] {
        &self.csr_der
    }

    /// Checks what the CA node answered against the token and our key, and stores it.
    ///
    /// # Errors
    /// [`PkiError::Foreign`] when the CA is not the token's; otherwise as [`TlsIdentity::new`] and
    /// for files that could not be written.
    pub fn finish(
        self,
        store: &Store,
        token: &Token,
        node: NodeId,
        ca_pem: &str,
        node_pem: &str,
    ) -> Result<TlsIdentity, PkiError> {
        let ca = super::identity::certificates(ca_pem)?;
        if ca.first().map(|der| fingerprint(der)) != Some(token.ca_fingerprint) {
            return Err(PkiError::Foreign);
        }
        store.check_empty()?;
        store.save(&Membership {
            cluster: &token.cluster,
            node,
            node_name: &self.node_name,
            ca_pem,
            node_pem,
            node_key_pem: &self.key.serialize_pem(),
        })
    }
}
