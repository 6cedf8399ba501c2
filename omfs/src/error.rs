//! How a command fails: what happened, what to do, and the exit status.

use std::fmt;
use std::io;

use omfs_cluster::control::ControlError;

use crate::output;

/// Exit statuses, as documented in `omfs help` and the manual page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// It was tried and went wrong.
    Failure = 1,
    /// The command line or the configuration file makes no sense.
    Usage = 2,
    /// The daemon, or another node, does not answer (EX_UNAVAILABLE).
    Unavailable = 69,
    /// The process cannot be moved now and runs on where it was (EX_TEMPFAIL).
    CannotMove = 75,
    /// The caller may not do that (EX_NOPERM).
    NotPermitted = 77,
}

/// Why a command ended without success.
#[derive(Debug)]
pub struct CommandError {
    /// The status to exit with.
    pub exit: Exit,
    /// What happened.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// What commands return.
pub type CommandResult = Result<(), CommandError>;

impl CommandError {
    /// An error with the given status.
    pub fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self {
            exit,
            message: message.to_string(),
            hint: None,
        }
    }

    /// It was tried and went wrong.
    pub fn failure(message: impl fmt::Display) -> Self {
        Self::new(Exit::Failure, message)
    }

    /// The command line makes no sense.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Adds what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

impl From<io::Error> for CommandError {
    fn from(error: io::Error) -> Self {
        let exit = match error.kind() {
            io::ErrorKind::PermissionDenied => Exit::NotPermitted,
            _ => Exit::Failure,
        };
        Self::new(exit, error)
    }
}

impl From<anyhow::Error> for CommandError {
    fn from(error: anyhow::Error) -> Self {
        Self::failure(format_args!("{error:#}"))
    }
}

impl From<omfs_config::ConfigError> for CommandError {
    fn from(error: omfs_config::ConfigError) -> Self {
        Self::usage(error).hint("every key is described in docs/omfs.toml")
    }
}

impl From<ControlError> for CommandError {
    fn from(error: ControlError) -> Self {
        let exit = match &error {
            ControlError::Unreachable(_) => Exit::Unavailable,
            ControlError::NotPermitted(_) => Exit::NotPermitted,
            ControlError::Invalid(_) => Exit::Usage,
            ControlError::Refused(_) | ControlError::NotFound(_) | ControlError::Failed(_) => {
                Exit::Failure
            }
        };
        let hint = match &error {
            ControlError::Unreachable(_) => Some("`omfs nodes` shows which nodes answer"),
            ControlError::NotPermitted(_) => Some("become root or its user, e.g. with sudo"),
            ControlError::NotFound(_) => {
                Some("`omfs nodes` lists the nodes, `omfs ps -a` the processes of this one")
            }
            ControlError::Refused(_) | ControlError::Invalid(_) | ControlError::Failed(_) => None,
        };
        Self {
            hint: hint.map(str::to_owned),
            ..Self::new(exit, output::printable(&error.to_string()))
        }
    }
}
