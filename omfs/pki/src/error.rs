//! What can go wrong with certificates, in words that say what to do.

use std::io;
use std::path::PathBuf;

use proto::ids::NodeId;
use rustls::{AlertDescription, CertificateError};

use super::token::TokenError;

/// Why a certificate operation failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum PkiError {
    #[error(
        "this machine belongs to no cluster yet ({0} does not exist): run `omfs cluster init` or `omfs cluster join`"
    )]
    NotJoined(PathBuf),
    #[error("this machine already belongs to cluster {cluster} (see {path})")]
    AlreadyMember { cluster: String, path: PathBuf },
    #[error("this node does not hold the cluster's CA key ({0}): run this on the node that does")]
    NotAuthority(PathBuf),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is damaged: {reason}")]
    Damaged { path: PathBuf, reason: String },
    #[error("{0:?} is no cluster name: 1 to 40 of a-z, 0-9 and -, not at the ends")]
    BadClusterName(String),
    #[error(
        "{0:?} is no node name: 1 to 63 of letters, digits, '_', '-' and single '.' inside, not only digits, \
         and not here, home, magic, lastexec, selected, mfs, omfs or localhost"
    )]
    BadNodeName(String),
    #[error("node ids run from 1 to 65535, not {0}")]
    BadNodeId(u32),
    #[error("the certificate has expired")]
    Expired,
    #[error("the certificate is not valid yet: compare the machines' clocks")]
    NotYetValid,
    #[error("the certificate was not issued by this cluster")]
    Foreign,
    #[error("the certificate names no node of cluster {0}")]
    NoNode(String),
    #[error("the peer is another node than expected")]
    WrongName,
    #[error("the peer is node {found}, not node {expected}")]
    WrongNode { expected: NodeId, found: NodeId },
    #[error("node {0} has been removed from the cluster")]
    Removed(NodeId),
    #[error("the peer showed no certificate")]
    NoCertificate,
    #[error("the peer refused our certificate: {0}")]
    Refused(String),
    #[error("the certificate request cannot be used: {0}")]
    BadRequest(String),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("TLS: {0}")]
    Tls(String),
}

impl From<rustls::Error> for PkiError {
    fn from(error: rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(reason) => certificate(&reason),
            rustls::Error::NoCertificatesPresented => Self::NoCertificate,
            rustls::Error::AlertReceived(alert) => refused(alert),
            other => Self::Tls(other.to_string()),
        }
    }
}

fn certificate(reason: &CertificateError) -> PkiError {
    use CertificateError as E;
    match reason {
        E::Expired | E::ExpiredContext { .. } => PkiError::Expired,
        E::NotValidYet | E::NotValidYetContext { .. } => PkiError::NotYetValid,
        E::UnknownIssuer | E::BadSignature => PkiError::Foreign,
        E::NotValidForName | E::NotValidForNameContext { .. } => PkiError::WrongName,
        other => PkiError::Tls(format!("bad certificate: {other}")),
    }
}

fn refused(alert: AlertDescription) -> PkiError {
    use AlertDescription as A;
    let why = match alert {
        A::CertificateExpired => "it has expired",
        A::UnknownCA | A::DecryptError => "it belongs to another cluster",
        A::CertificateRequired => "none was shown",
        A::BadCertificate | A::CertificateUnknown | A::UnsupportedCertificate => "it is unusable",
        other => return PkiError::Tls(format!("the peer sent alert {other:?}")),
    };
    PkiError::Refused(why.to_owned())
}

impl From<PkiError> for io::Error {
    fn from(error: PkiError) -> Self {
        let kind = match &error {
            PkiError::Io { source, .. } => source.kind(),
            PkiError::NotJoined(_) => io::ErrorKind::NotFound,
            PkiError::Damaged { .. } => io::ErrorKind::InvalidData,
            PkiError::BadClusterName(_) | PkiError::BadNodeName(_) | PkiError::BadNodeId(_) => {
                io::ErrorKind::InvalidInput
            }
            _ => io::ErrorKind::PermissionDenied,
        };
        io::Error::new(kind, error)
    }
}
