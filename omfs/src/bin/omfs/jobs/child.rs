//! What shims and supervisors do first: become independent of the daemon that started them.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::Context;
use migrator::sys::sched::{Share, set_share};
use omfs::config::Config;
use omfs::pki::{Store, TlsIdentity};

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
/// ps(1) shows.
///
/// # Errors
/// The configuration or the certificate cannot be read.
pub fn start(config_path: Option<&Path>, name: &CStr) -> anyhow::Result<Start> {
    // `/proc/self/exe`, by which it was started, is no name to find it by.
    let _ = nix::sys::prctl::set_name(name);
    // Fails only if this process leads a session already.
    let _ = nix::unistd::setsid();
    let listener = std::io::stdin().as_fd().try_clone_to_owned()?;
    let null = std::fs::File::open("/dev/null").context("/dev/null")?;
    nix::unistd::dup2_stdin(&null).context("standard input")?;
    let config = Config::load_or_default(config_path)?;
    start_log(&config);
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

fn start_log(config: &Config) {
    let filter = std::env::var("OMFS_LOG").unwrap_or_else(|_| config.log.filter.to_string());
    let filter = tracing_subscriber::EnvFilter::try_new(&filter)
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .try_init();
}
