//! Why a process does not move.

use std::io;

/// Why a move did not happen.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// The link to a peer broke.
    #[error("the connection was lost: {0}")]
    Link(#[from] io::Error),
    /// The peer does not answer.
    #[error("no answer in time while waiting for {0}")]
    Timeout(&'static str),
    /// The peer said no.
    #[error("{error}")]
    Refused {
        /// Why.
        error: String,
        /// It is a property of the process or the node.
        cantmove: bool,
    },
    /// The peer says something that makes no sense now.
    #[error("unexpected message while waiting for {0}")]
    Unexpected(&'static str),
    /// The process cannot be captured or rebuilt here.
    #[error("{error}")]
    Process {
        /// Why.
        error: String,
        /// It is a property of the process.
        cantmove: bool,
    },
}

impl MoveError {
    /// Whether it is a property of the process or node rather than an accident.
    #[must_use]
    pub fn is_cantmove(&self) -> bool {
        match self {
            Self::Refused { cantmove, .. } | Self::Process { cantmove, .. } => *cantmove,
            Self::Link(_) | Self::Timeout(_) | Self::Unexpected(_) => false,
        }
    }

    /// An error of the process that is no property of it.
    #[must_use]
    pub fn process(error: &impl ToString) -> Self {
        Self::Process {
            error: error.to_string(),
            cantmove: false,
        }
    }
}
