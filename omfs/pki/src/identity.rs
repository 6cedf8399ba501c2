//! A node's certificate and key, as the TLS configurations that use them.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proto::ids::NodeId;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use super::error::PkiError;
use super::name::{ClusterName, check_node_name};
use super::revocation::Revocations;

/// PEM texts for the control plane's own TLS configuration.
#[derive(Clone)]
pub struct PemBundle {
    /// The cluster's CA: the only root to trust.
    pub ca: String,
    /// This node's certificate, followed by the CA's: a joining machine finds the CA there.
    pub certificate_chain: String,
    /// This node's private key.
    pub key: String,
}

impl fmt::Debug for PemBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PemBundle")
    }
}

/// The node that a certificate was given to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Certified {
    /// Its id.
    pub node: NodeId,
    /// Its name.
    pub name: String,
}

/// Who this node is, ready for TLS. Cloning is cheap.
#[derive(Clone)]
pub struct TlsIdentity(Arc<Inner>);

struct Inner {
    cluster: ClusterName,
    node: NodeId,
    node_name: String,
    pem: PemBundle,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    revocations: Revocations,
}

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TlsIdentity({} of {})", self.0.node, self.0.cluster)
    }
}

/// rustls by *ring* with AES-128-GCM first: with AES instructions it is the fastest suite, and
/// 128 bits are enough.
pub(super) fn provider() -> Arc<CryptoProvider> {
    use ring::cipher_suite as suite;
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            suite::TLS13_AES_128_GCM_SHA256,
            suite::TLS13_AES_256_GCM_SHA384,
            suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..ring::default_provider()
    })
}

fn tls(error: impl fmt::Display) -> PkiError {
    PkiError::Tls(error.to_string())
}

pub(super) fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(tls)
}

pub(super) fn roots(ca: CertificateDer<'_>) -> Result<Arc<RootCertStore>, PkiError> {
    let mut roots = RootCertStore::empty();
    roots.add(ca)?;
    Ok(Arc::new(roots))
}

pub(super) fn server_verifier(
    roots: Arc<RootCertStore>,
) -> Result<Arc<WebPkiServerVerifier>, PkiError> {
    WebPkiServerVerifier::builder_with_provider(roots, provider())
        .build()
        .map_err(tls)
}

/// The node and the cluster that a certificate was given to; `Foreign` certificates must have
/// been refused before.
///
/// # Errors
/// [`PkiError::NoNode`] when it names no node of `cluster`.
pub fn node_of_certificate(
    cluster: &ClusterName,
    certificate: &CertificateDer<'_>,
) -> Result<NodeId, PkiError> {
    let nobody = || PkiError::NoNode(cluster.to_string());
    let parsed = webpki::EndEntityCert::try_from(certificate).map_err(|_| nobody())?;
    let mut nodes = parsed.valid_uri_names().map(|uri| cluster.node_of_uri(uri));
    match (nodes.next(), nodes.next()) {
        (Some(Some(node)), None) => Ok(node),
        _ => Err(nobody()),
    }
}

/// The id and the name in a certificate, which must have been verified before. The name is the
/// common name, which the CA has chosen.
///
/// # Errors
/// [`PkiError::NoNode`] when it names no node of `cluster`; [`PkiError::BadNodeName`] for a name
/// that no node may have.
pub fn certified(
    cluster: &ClusterName,
    certificate: &CertificateDer<'_>,
) -> Result<Certified, PkiError> {
    let node = node_of_certificate(cluster, certificate)?;
    let nobody = || PkiError::NoNode(cluster.to_string());
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|_| nobody())?;
    let mut names = parsed.subject().iter_common_name();
    let (Some(name), None) = (names.next(), names.next()) else {
        return Err(nobody());
    };
    let name = name.as_str().map_err(|_| nobody())?.to_owned();
    check_node_name(&name)?;
    Ok(Certified { node, name })
}

impl TlsIdentity {
    /// Builds the identity from PEM texts, checking that they fit together and are valid now.
    ///
    /// # Errors
    /// `Expired`, `NotYetValid`, `Foreign` (another CA), `NoNode` or `WrongNode` (not `node`'s
    /// certificate), `Tls` (unreadable, or the key is not the certificate's).
    pub fn new(
        cluster: ClusterName,
        node: NodeId,
        ca_pem: &str,
        node_pem: &str,
        key_pem: &str,
    ) -> Result<Self, PkiError> {
        let ca = certificates(ca_pem)?
            .into_iter()
            .next()
            .ok_or(PkiError::NoCertificate)?;
        let own = certificates(node_pem)?
            .into_iter()
            .next()
            .ok_or(PkiError::NoCertificate)?;
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(tls)?;
        let roots = roots(ca.clone())?;
        check_own(&cluster, node, &own, Arc::clone(&roots))?;
        let node_name = certified(&cluster, &own)?.name;
        let revocations = Revocations::empty(cluster.clone(), ca.clone());
        let chain = vec![own, ca];
        let client = client_config(Arc::clone(&roots), chain.clone(), key.clone_key())?;
        let server = server_config(roots, chain, key)?;
        let pem = PemBundle {
            ca: ca_pem.to_owned(),
            certificate_chain: format!("{}\n{ca_pem}", node_pem.trim_end()),
            key: key_pem.to_owned(),
        };
        Ok(Self(Arc::new(Inner {
            cluster,
            node,
            node_name,
            pem,
            client,
            server,
            revocations,
        })))
    }

    /// The same identity with the removed nodes that are stored in `path`.
    pub(super) fn with_revocations(self, path: &Path) -> Result<Self, PkiError> {
        let inner = &self.0;
        Ok(Self(Arc::new(Inner {
            cluster: inner.cluster.clone(),
            node: inner.node,
            node_name: inner.node_name.clone(),
            pem: inner.pem.clone(),
            client: Arc::clone(&inner.client),
            server: Arc::clone(&inner.server),
            revocations: inner.revocations.stored(path)?,
        })))
    }

    /// The nodes that were removed from the cluster.
    #[must_use]
    pub fn revocations(&self) -> &Revocations {
        &self.0.revocations
    }

    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> &ClusterName {
        &self.0.cluster
    }

    /// This node's id.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.0.node
    }

    /// This node's name, as its certificate has it.
    #[must_use]
    pub fn node_name(&self) -> &str {
        &self.0.node_name
    }

    /// PEM texts, for tonic.
    #[must_use]
    pub fn pem(&self) -> &PemBundle {
        &self.0.pem
    }

    /// For connecting as this node, data plane: TLS 1.3, client certificate shown.
    #[must_use]
    pub fn client_config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.0.client)
    }

    /// For accepting as this node, data plane: TLS 1.3, client certificate required.
    #[must_use]
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0.server)
    }

    /// The DNS name to ask node `id` for (tonic's `domain_name`).
    #[must_use]
    pub fn domain_of(&self, id: NodeId) -> String {
        self.0.cluster.node_domain(id)
    }

    /// The name rustls checks when connecting to node `id`.
    ///
    /// # Errors
    /// See [`ClusterName::server_name`].
    pub fn server_name(&self, id: NodeId) -> Result<ServerName<'static>, PkiError> {
        self.0.cluster.server_name(id)
    }

    /// Which node a peer is, by the chain that TLS has verified against the cluster's CA.
    ///
    /// # Errors
    /// As for [`peer`](Self::peer).
    pub fn peer_node(&self, chain: Option<&[CertificateDer<'_>]>) -> Result<NodeId, PkiError> {
        self.peer(chain).map(|peer| peer.node)
    }

    /// [`peer_node`](Self::peer_node) with the peer's name.
    ///
    /// # Errors
    /// [`PkiError::NoCertificate`], [`PkiError::NoNode`], [`PkiError::BadNodeName`],
    /// [`PkiError::Removed`].
    pub fn peer(&self, chain: Option<&[CertificateDer<'_>]>) -> Result<Certified, PkiError> {
        let certificate = chain
            .and_then(<[_]>::first)
            .ok_or(PkiError::NoCertificate)?;
        let peer = certified(&self.0.cluster, certificate)?;
        if self.0.revocations.contains(peer.node) {
            return Err(PkiError::Removed(peer.node));
        }
        Ok(peer)
    }
}

fn check_own(
    cluster: &ClusterName,
    node: NodeId,
    own: &CertificateDer<'_>,
    roots: Arc<RootCertStore>,
) -> Result<(), PkiError> {
    let name = cluster.server_name(node)?;
    let verified =
        server_verifier(roots)?.verify_server_cert(own, &[], &name, &[], UnixTime::now());
    match verified.map_err(PkiError::from) {
        Ok(_) => {}
        Err(PkiError::WrongName) => {
            let found = node_of_certificate(cluster, own)?;
            return Err(PkiError::WrongNode {
                expected: node,
                found,
            });
        }
        Err(error) => return Err(error),
    }
    let found = node_of_certificate(cluster, own)?;
    if found == node {
        Ok(())
    } else {
        Err(PkiError::WrongNode {
            expected: node,
            found,
        })
    }
}

fn client_config(
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ClientConfig>, PkiError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    // The data plane encrypts records itself, so that both directions run without a common lock.
    config.enable_secret_extraction = true;
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

fn server_config(
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, PkiError> {
    let clients = WebPkiClientVerifier::builder_with_provider(roots, provider())
        .build()
        .map_err(tls)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls)?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)?;
    config.enable_secret_extraction = true;
    // Connections are long-lived: resumption would only be another way in.
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// How long a TLS handshake may take, on either side.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
