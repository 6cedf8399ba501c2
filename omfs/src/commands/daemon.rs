//! `omfs daemon`.

use std::os::fd::RawFd;

use crate::cli::Global;
use crate::error::{CommandError, CommandResult, Exit};
use omfs_node::daemon::{self, DaemonError};

/// Run this node's daemon
///
/// Runs this node's daemon in the foreground until SIGTERM or Ctrl-C.
///
/// It serves this node's files to the cluster and the cluster's files to /mfs, keeps track of the
/// other nodes, and moves jobs. Jobs that are away and guests survive a restart of the daemon.
/// When everything is served, RUN_DIR/ready exists.
#[derive(clap::Args, Debug)]
pub struct DaemonArgs {
    /// Write a newline to this file descriptor and close it when everything is served
    #[arg(long, value_name = "FD")]
    pub ready_fd: Option<RawFd>,
}

/// Runs the daemon.
///
/// # Errors
/// It could not start.
pub fn run(global: &Global, args: &DaemonArgs) -> CommandResult {
    let config = global.config()?;
    daemon::run(config, global.config_path.as_deref(), args.ready_fd)?;
    Ok(())
}

impl From<DaemonError> for CommandError {
    fn from(error: DaemonError) -> Self {
        let (exit, hint) = match &error {
            DaemonError::NotRoot => (Exit::NotPermitted, Some("become root, e.g. with sudo")),
            DaemonError::NoIdentity(_) => (
                Exit::Failure,
                Some(
                    "make a cluster with `omfs cluster init NAME`, or join one with `omfs cluster join`",
                ),
            ),
            DaemonError::AlreadyRuns(_) => (Exit::Failure, Some("`omfs status` shows it")),
            DaemonError::Failed(_) => (Exit::Failure, None),
        };
        Self {
            hint: hint.map(str::to_owned),
            ..Self::new(exit, error)
        }
    }
}
