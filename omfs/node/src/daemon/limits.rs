//! What the daemon asks of the kernel for itself.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use omfs_sys::sched::{Share, set_share};

/// Goes before ordinary processes, since everybody waits for the daemon's answers while the node's
/// own jobs use all CPUs. Without the right to, it goes on as it is.
pub fn raise_priority() {
    if let Err(error) = set_share(Share::DAEMON) {
        tracing::debug!("priority: {error}");
    }
}

/// Every open file of every client is a descriptor here.
pub fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!("open files: {error}");
    }
}
