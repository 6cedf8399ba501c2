//! `omfs fuse-keeper`: hidden, started by the daemon; see `omfs_client::keeper`.

use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;

use crate::error::CommandResult;

/// `omfs fuse-keeper`
#[derive(clap::Args, Debug)]
pub struct FuseKeeperArgs {}

/// Keeps mounts; its standard input is the socket it listens on.
///
/// # Errors
/// Standard input is no listening socket.
pub fn run(_args: &FuseKeeperArgs) -> CommandResult {
    // Fails only if this process leads a session already.
    let _ = nix::unistd::setsid();
    let listener = UnixListener::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    omfs_node::jobs::name_process("omfs-keeper");
    Ok(omfs_client::keeper::run(&listener)?)
}
