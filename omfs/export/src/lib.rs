//! The owner's side of the filesystem: performs operations with the caller's identity.
//!
//! [`Export`] is a directory tree of this node; every peer, and this node's own FUSE session, has
//! an [`ExportSession`] on it, which holds what that peer has looked up, opened and locked. Inodes
//! are resolved to descriptors with the daemon's rights; then the thread takes the caller's
//! identity and makes the very system call, so that permissions and errors are the kernel's own.

#![forbid(unsafe_code)]

mod answer;
mod attributes;
mod caller;
mod deputy;
mod directories;
pub mod exports;
mod files;
mod gate;
mod guest_ids;
mod io;
pub mod jobs;
mod leases;
mod limits;
mod locks;
mod lookup;
mod mounts;
mod names;
mod native_locks;
mod nodes;
mod opens;
mod places;
mod procfs;
mod session;
#[cfg(test)]
mod tests;
pub mod users;
mod writers;
mod xattrs;

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use omfs_authz::export::Rules;

use self::exports::Exports;
use self::jobs::{Hosts, JobHosts, NoJobs};
use self::leases::Leases;
use self::limits::Limits;
use self::locks::Released;
use self::mounts::{Mount, Mounts};
use self::places::Place;
pub use self::session::ExportSession;
use self::users::{SystemUsers, Users};
use self::writers::Writers;
pub use omfs_service::{Errno, FileService, FsAnswer, SessionPeer};
use omfs_sys::file::{self, Freshness, Stat};

/// What is exported, and how.
#[derive(Clone, Debug)]
pub struct ExportConfig {
    /// The directory that peers see as `/mfs/<this node>`.
    pub root: PathBuf,
    /// What of it other nodes see, and how.
    pub exports: Arc<Exports>,
    /// Who is in which group.
    pub users: Arc<dyn Users>,
    /// `st_dev` of mounts that must not be entered; omfs mounts are recognised by themselves.
    pub refused_devices: HashSet<u64>,
    /// Where this node's jobs are; only there they have files and root's rights here.
    pub jobs: Arc<dyn JobHosts>,
}

impl ExportConfig {
    /// Exports `root` to all nodes with the default rules; no job of this node is away.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            exports: Arc::new(Exports::everything(Rules::default())),
            users: Arc::new(SystemUsers::default()),
            refused_devices: HashSet::new(),
            jobs: Arc::new(NoJobs),
        }
    }
}

/// How long an unused descriptor may keep a natively deleted file's space, at most twice.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// A directory tree of this node that peers may use.
#[derive(Debug)]
pub struct Export {
    root: Arc<OwnedFd>,
    root_stat: Stat,
    root_mount: Arc<Mount>,
    root_place: Arc<Place>,
    exports: Arc<Exports>,
    users: Arc<dyn Users>,
    jobs: Hosts,
    mounts: Mounts,
    limits: Arc<Limits>,
    released: Arc<Released>,
    leases: Arc<Leases>,
    writers: Arc<Writers>,
    sessions: Mutex<Vec<Weak<ExportSession>>>,
}

impl Export {
    /// Opens the tree.
    ///
    /// # Errors
    /// Those of open(2) on the root directory.
    pub fn new(config: ExportConfig) -> std::io::Result<Arc<Self>> {
        Self::with_limits(config, Limits::from_process())
    }

    fn with_limits(config: ExportConfig, limits: Limits) -> std::io::Result<Arc<Self>> {
        let path = answer::c_string(config.root.as_os_str().as_encoded_bytes())
            .map_err(|Errno(errno)| std::io::Error::from_raw_os_error(errno))?;
        let root = file::open_at(None, &path, libc::O_PATH | libc::O_DIRECTORY, 0)?;
        let absolute = std::path::absolute(&config.root)?;
        let root_place = omfs_authz::export::components(absolute.as_os_str().as_encoded_bytes());
        let root_place = Place::at(&root_place.map_err(std::io::Error::other)?);
        let root_stat = file::stat(root.as_fd(), Freshness::Known)?;
        let mounts = Mounts::new(config.refused_devices);
        let root_mount = mounts
            .of(root.as_fd(), &root_stat)
            .map_err(|Errno(errno)| std::io::Error::from_raw_os_error(errno))?;
        let export = Arc::new(Self {
            root: Arc::new(root),
            root_stat,
            root_mount,
            root_place,
            exports: config.exports,
            users: config.users,
            jobs: Hosts::new(config.jobs),
            mounts,
            limits: Arc::new(limits),
            released: Arc::default(),
            leases: Arc::default(),
            writers: Arc::default(),
            sessions: Mutex::default(),
        });
        start_sweeping(Arc::downgrade(&export))?;
        Ok(export)
    }

    /// Starts serving a peer. Dropping the session closes and unlocks all that the peer left.
    #[must_use]
    pub fn session(self: &Arc<Self>, peer: SessionPeer) -> Arc<ExportSession> {
        self.session_of(peer, "")
    }

    /// As [`Self::session`], for a peer of this name, which entries of the table may name.
    #[must_use]
    pub fn session_of(self: &Arc<Self>, peer: SessionPeer, name: &str) -> Arc<ExportSession> {
        let session = ExportSession::new(Arc::clone(self), peer, name.to_owned());
        self.sessions().push(Arc::downgrade(&session));
        session
    }

    fn sessions(&self) -> std::sync::MutexGuard<'_, Vec<Weak<ExportSession>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sweep(&self) {
        let live: Vec<_> = {
            let mut sessions = self.sessions();
            sessions.retain(|session| session.strong_count() > 0);
            sessions.iter().filter_map(Weak::upgrade).collect()
        };
        for session in live {
            session.nodes.sweep();
        }
    }
}

/// Closes idle descriptors until the export is gone.
fn start_sweeping(export: Weak<Export>) -> std::io::Result<()> {
    let sweep = move || {
        loop {
            std::thread::sleep(SWEEP_INTERVAL);
            let Some(export) = export.upgrade() else {
                return;
            };
            export.sweep();
        }
    };
    std::thread::Builder::new()
        .name("export-sweep".into())
        .spawn(sweep)?;
    Ok(())
}
