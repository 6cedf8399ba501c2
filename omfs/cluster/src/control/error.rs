//! What can go wrong between nodes, and who asks.

use std::fmt;

use omfs_authz::process;

/// Why a control-plane call, or an admin's wish, was not carried out.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ControlError {
    /// The node is dead, unknown to the network, or did not answer in time.
    #[error("{0}")]
    Unreachable(String),
    /// It refuses, with a reason for people; nothing has changed.
    #[error("{0}")]
    Refused(String),
    /// The caller may not do that.
    #[error("{0}")]
    NotPermitted(String),
    /// No such node, process, ….
    #[error("{0}")]
    NotFound(String),
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// It was tried and went wrong.
    #[error("{0}")]
    Failed(String),
}

/// Who asks through the admin socket, as the kernel says (`SO_PEERCRED`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its process, if it is visible from here.
    pub pid: Option<i32>,
}

impl Caller {
    /// As those see it who decide what it may do.
    #[must_use]
    pub fn identity(self) -> process::Caller {
        process::Caller {
            uid: self.uid,
            gid: self.gid,
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user {}", self.uid)
    }
}

impl From<ControlError> for tonic::Status {
    fn from(error: ControlError) -> Self {
        use tonic::Code;
        let code = match &error {
            ControlError::Unreachable(_) => Code::Unavailable,
            ControlError::Refused(_) => Code::FailedPrecondition,
            ControlError::NotPermitted(_) => Code::PermissionDenied,
            ControlError::NotFound(_) => Code::NotFound,
            ControlError::Invalid(_) => Code::InvalidArgument,
            ControlError::Failed(_) => Code::Internal,
        };
        Self::new(code, error.to_string())
    }
}

/// What a status says, and why: tonic keeps the reason of a broken connection as its source.
fn told(status: &tonic::Status) -> String {
    let first = std::error::Error::source(status);
    let reasons = std::iter::successors(first, |error| error.source());
    reasons.fold(status.message().to_owned(), |text, reason| {
        let reason = reason.to_string();
        if text.contains(&reason) {
            return text;
        }
        format!("{text}: {reason}")
    })
}

impl From<tonic::Status> for ControlError {
    fn from(status: tonic::Status) -> Self {
        use tonic::Code;
        let text = told(&status);
        match status.code() {
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Self::Unreachable(text),
            Code::FailedPrecondition | Code::ResourceExhausted | Code::AlreadyExists => {
                Self::Refused(text)
            }
            Code::PermissionDenied | Code::Unauthenticated => Self::NotPermitted(text),
            Code::NotFound => Self::NotFound(text),
            Code::InvalidArgument | Code::OutOfRange => Self::Invalid(text),
            // tonic reports a connection that could not be made or broke as Unknown.
            Code::Unknown if text.contains("transport error") => Self::Unreachable(text),
            _ => Self::Failed(text),
        }
    }
}
