//! What shims and supervisors do first: become independent of the daemon that started them.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::Context;
use omfs_config::Config;
use omfs_pki::{Store, TlsIdentity};
use omfs_sys::sched::{Share, set_share};

/// A keeper's start.
#[derive(Debug)]
pub struct Start {
    /// The node's settings.
    pub config: Config,
    /// The node's certificate.
    pub identity: TlsIdentity,
    /// The socket that was handed over as standard input.
    pub listener: OwnedFd,
}

/// Leaves the daemon's session, takes the listener and reads what a keeper needs. `name` is what
/// ps and top show.
///
/// # Errors
/// The configuration or the certificate cannot be read.
pub fn start(config_path: Option<&Path>, name: &str) -> anyhow::Result<Start> {
    name_process(name);
    // Fails only if this process leads a session already.
    let _ = nix::unistd::setsid();
    let listener = std::io::stdin().as_fd().try_clone_to_owned()?;
    let null = std::fs::File::open("/dev/null").context("/dev/null")?;
    nix::unistd::dup2_stdin(&null).context("standard input")?;
    let config = Config::load_or_default(config_path)?;
    crate::log::start(&config);
    if let Err(error) = set_share(Share::KEEPER) {
        tracing::debug!("priority: {error}");
    }
    let identity = Store::new(&config.node.state_dir).load()?;
    Ok(Start {
        config,
        identity,
        listener,
    })
}

/// Without this it would be called "exe", by which it is started.
pub fn name_process(name: &str) {
    let named = std::ffi::CString::new(name).map(|name| nix::sys::prctl::set_name(&name));
    if !matches!(named, Ok(Ok(()))) {
        tracing::debug!("the name {name} was not taken");
    }
}
