//! The node's daemon: puts the parts together.

mod admin_service;
mod cluster_service;
mod error;
mod export_store;
mod files;
mod gates;
mod join_service;
mod limits;
mod members;
mod mounts;
mod patience;
mod port_guard;
mod predecessor;
mod recorder;
mod removal;
mod request_limits;
mod server;
mod status_files;
#[cfg(test)]
mod tests;
mod wiring;
mod work_runtime;
mod wrong_tokens;

use std::os::fd::RawFd;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use nix::fcntl::{Flock, FlockArg};
use omfs_config::Config;
use omfs_pki::Store;
use tokio::signal::unix::{SignalKind, signal};

pub use error::DaemonError;
use wiring::Node;

/// Threads of the control plane, if there are CPUs for them: on a single one they would only hand
/// their work to each other. Bulk data has threads of its own.
const WORKER_THREADS_MAX: usize = 2;

/// Runs the daemon until it is told to end.
///
/// # Errors
/// It could not start: wrong configuration, no cluster, a port in use, another daemon.
pub fn run(
    config: Config,
    config_path: Option<&Path>,
    ready_fd: Option<RawFd>,
) -> Result<(), DaemonError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(DaemonError::NotRoot);
    }
    crate::log::start(&config);
    let identity = Store::new(&config.node.state_dir)
        .load()
        .map_err(DaemonError::NoIdentity)?;
    // A directory below /mfs would be waited for by the very one who serves it.
    let config_path = config_path.map(std::path::absolute);
    let config_path = config_path.transpose().context("current directory")?;
    std::env::set_current_dir("/").context("/")?;
    limits::raise_priority();
    limits::raise_open_files();
    make_run_dir(&config.node.run_dir)?;
    let _lock = lock(&config.node.run_dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(worker_threads())
        .enable_all()
        .build()
        .context("the runtime")?;
    let config = Arc::new(config);
    let name = format!(
        "node {} ({}) of cluster {}",
        identity.node_name(),
        identity.node(),
        identity.cluster()
    );
    let result = runtime.block_on(async {
        let node = Node::start(Arc::clone(&config), config_path, identity).await?;
        tell_ready(&config, ready_fd)?;
        tracing::info!("omfs {}: {name} is ready", env!("CARGO_PKG_VERSION"));
        wait_for_end().await?;
        tracing::info!("ending");
        let _ = std::fs::remove_file(config.ready_file());
        node.stop().await;
        anyhow::Ok(())
    });
    // Threads that hang in a dead disk must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    Ok(result?)
}

fn worker_threads() -> usize {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    cpus.clamp(1, WORKER_THREADS_MAX)
}

fn make_run_dir(dir: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(dir)
        .with_context(|| format!("cannot make {}", dir.display()))
}

/// Two daemons of one node would take each other's sockets away.
fn lock(dir: &Path) -> Result<Flock<std::fs::File>, DaemonError> {
    let path = dir.join("daemon.lock");
    let attempt = || {
        let file = std::fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno.into())
    };
    let is_held = |error: &std::io::Error| error.kind() == std::io::ErrorKind::WouldBlock;
    patience::attempt(predecessor::ENDS_MAX, is_held, attempt).map_err(|error| {
        if is_held(&error) {
            return DaemonError::AlreadyRuns(path.clone());
        }
        anyhow::Error::new(error)
            .context(path.display().to_string())
            .into()
    })
}

fn tell_ready(config: &Config, ready_fd: Option<RawFd>) -> anyhow::Result<()> {
    use std::io::Write;
    let path = config.ready_file();
    std::fs::write(&path, b"").with_context(|| path.display().to_string())?;
    if let Some(fd) = ready_fd {
        // By its name in /proc, since a number from outside may be anything.
        let mut pipe = std::fs::OpenOptions::new()
            .write(true)
            .open(format!("/proc/self/fd/{fd}"))
            .with_context(|| format!("--ready-fd {fd}"))?;
        pipe.write_all(b"\n").context("--ready-fd")?;
    }
    Ok(())
}

async fn wait_for_end() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
