//! Why a daemon does not start, or ends.

use std::path::PathBuf;

use omfs_pki::PkiError;

/// Why a daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// It needs root's rights.
    #[error("only root may run the daemon")]
    NotRoot,
    /// The machine belongs to no cluster, or its certificate cannot be read.
    #[error(transparent)]
    NoIdentity(PkiError),
    /// Another daemon of this node runs.
    #[error("another omfs daemon runs here ({})", .0.display())]
    AlreadyRuns(PathBuf),
    /// Anything else.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}
