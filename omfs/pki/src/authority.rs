//! The cluster's certificate authority: makes itself, signs node certificates, checks tokens.

use std::path::Path;
use std::time::{Duration, SystemTime};

use proto::ids::NodeId;
use rand::TryRngCore;
use rand::rngs::OsRng;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
    SigningKey,
};
use rustls_pki_types::CertificateSigningRequestDer;
use time::OffsetDateTime;

use super::error::PkiError;
use super::name::{ClusterName, check_node_id, check_node_name};
use super::revocation::Revocation;
use super::token::{Token, TokenBook};

/// Lifetime of CA and node certificates. They end together because nothing renews them yet.
const VALID_FOR: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How far a joining machine's clock may be behind.
const CLOCK_SLACK: Duration = Duration::from_secs(24 * 3600);
/// A certificate request is a few hundred bytes.
const CSR_BYTES_MAX: usize = 16 << 10;

/// The first and last moment of a certificate.
#[derive(Clone, Copy, Debug)]
pub struct Validity {
    /// The first moment.
    pub not_before: SystemTime,
    /// The last moment.
    pub not_after: SystemTime,
}

impl Validity {
    pub(super) fn standard() -> Self {
        let now = SystemTime::now();
        Self {
            not_before: now - CLOCK_SLACK,
            not_after: now + VALID_FOR,
        }
    }

    fn apply(self, params: &mut CertificateParams) {
        params.not_before = OffsetDateTime::from(self.not_before);
        params.not_after = OffsetDateTime::from(self.not_after);
    }
}

pub(super) fn generation(error: &rcgen::Error) -> PkiError {
    PkiError::Tls(format!("making a certificate failed: {error}"))
}

/// Makes a new CA; returns certificate and key in PEM.
pub(super) fn generate_ca(
    cluster: &ClusterName,
    validity: Validity,
) -> Result<(String, String), PkiError> {
    // Two clusters of the same name still have different issuers.
    let serial = OsRng
        .try_next_u32()
        .map_err(|error| PkiError::Tls(error.to_string()))?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(
        DnType::CommonName,
        format!("omfs {cluster} CA {serial:08x}"),
    );
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity.apply(&mut params);
    let key = KeyPair::generate().map_err(|error| generation(&error))?;
    let certificate = params
        .self_signed(&key)
        .map_err(|error| generation(&error))?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// The CA with its key, on the node that has it.
pub struct Authority {
    cluster: ClusterName,
    node: NodeId,
    ca_fingerprint: [u8; 32],
    issuer: Issuer<'static, KeyPair>,
    tokens: TokenBook,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

impl Authority {
    pub(super) fn from_pem(
        (cluster, node): (ClusterName, NodeId),
        ca_pem: &str,
        ca_der: &[u8],
        key_pem: &str,
        tokens_path: &Path,
    ) -> Result<Self, PkiError> {
        let key = KeyPair::from_pem(key_pem).map_err(|error| generation(&error))?;
        let issuer = Issuer::from_ca_cert_pem(ca_pem, key).map_err(|error| generation(&error))?;
        Ok(Self {
            cluster,
            node,
            ca_fingerprint: super::token::fingerprint(ca_der),
            issuer,
            tokens: TokenBook::new(tokens_path),
        })
    }

    /// Makes a join token that works for `lifetime` and for `uses` machines.
    ///
    /// # Errors
    /// The token file could not be replaced, or too many tokens are outstanding.
    pub fn issue_token(&self, lifetime: Duration, uses: u32) -> Result<Token, PkiError> {
        let (secret, expires_s) = self.tokens.issue(lifetime, uses)?;
        Ok(Token {
            cluster: self.cluster.clone(),
            authority: self.node,
            ca_fingerprint: self.ca_fingerprint,
            secret,
            expires_s,
        })
    }

    /// The outstanding tokens.
    #[must_use]
    pub fn tokens(&self) -> &TokenBook {
        &self.tokens
    }

    /// Says that a node has been removed.
    ///
    /// # Errors
    /// A bad id; the key cannot sign.
    pub fn revoke(&self, node: NodeId) -> Result<Revocation, PkiError> {
        check_node_id(node)?;
        let at_s = super::token::now_s();
        let message = super::revocation::message(&self.cluster, node, at_s);
        let signature = self.issuer.key().sign(&message);
        Ok(Revocation {
            node,
            at_s,
            signature: signature.map_err(|error| generation(&error))?,
        })
    }

    /// Signs the certificate of node `id`. Of the request only the public key is used: names and
    /// rights are what we say. The caller has checked the token and chosen the id.
    ///
    /// Returns the certificate in PEM.
    ///
    /// # Errors
    /// A bad name or id; a request that is no request or not signed by its own key.
    pub fn sign(&self, csr_der: &[u8], id: NodeId, name: &str) -> Result<String, PkiError> {
        if csr_der.len() > CSR_BYTES_MAX {
            return Err(PkiError::BadRequest("too long".into()));
        }
        let request =
            CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr_der))
                .map_err(|error| PkiError::BadRequest(error.to_string()))?;
        self.sign_key(&request.public_key, id, name, Validity::standard())
    }

    /// Signs a certificate for a key, valid in that span.
    ///
    /// # Errors
    /// A bad name or id.
    pub fn sign_key(
        &self,
        key: &impl PublicKeyData,
        id: NodeId,
        name: &str,
        validity: Validity,
    ) -> Result<String, PkiError> {
        check_node_id(id)?;
        check_node_name(name)?;
        self.sign_unchecked(key, id, name, validity)
    }

    /// Signs whatever name is given, as no authority of this program would: for tests.
    ///
    /// # Errors
    /// A name that fits no certificate.
    #[doc(hidden)]
    pub fn sign_unchecked(
        &self,
        key: &impl PublicKeyData,
        id: NodeId,
        name: &str,
        validity: Validity,
    ) -> Result<String, PkiError> {
        let params = node_params(&self.cluster, id, name, validity)?;
        let signed = params
            .signed_by(key, &self.issuer)
            .map_err(|error| generation(&error))?;
        Ok(signed.pem())
    }
}

fn node_params(
    cluster: &ClusterName,
    id: NodeId,
    name: &str,
    validity: Validity,
) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::new(vec![cluster.node_domain(id)])
        .map_err(|error| generation(&error))?;
    let uri = cluster
        .node_uri(id)
        .try_into()
        .map_err(|error| generation(&error))?;
    params.subject_alt_names.push(SanType::URI(uri));
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    validity.apply(&mut params);
    Ok(params)
}
