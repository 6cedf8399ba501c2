//! `omfs daemon`.

use std::os::fd::RawFd;

use crate::cli::Global;
use crate::daemon;
use crate::error::CommandResult;

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
    daemon::run(global, args.ready_fd)
}
