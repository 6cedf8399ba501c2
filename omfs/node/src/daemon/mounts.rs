//! The mounts of `/mfs` that this daemon serves, and those it takes over from the last one.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use omfs_client::keeper::{Keeper, Kept};
use omfs_client::{self as fs, FsConfig, RemoteServices, Session};
use omfs_dataplane::Remotes;
use omfs_export::Export;
use omfs_service::SessionPeer;
use omfs_service::peers::PeerDirectory;

use super::files::{FilesContext, Guests, OtherNodes};
use super::status_files::Status;

/// Threads that take requests from the kernel, per mount: enough to overlap waits for other
/// nodes, few enough for a small machine.
const FUSE_THREADS: usize = 8;
/// How long a daemon that is told to end waits for owners of files that were written.
const SETTLE_MAX: Duration = Duration::from_secs(5);

/// Serves mounts; every mount has a session of the export of its own, so that unmounting
/// releases what it had open.
#[derive(Debug)]
pub struct Mounter {
    context: FilesContext,
    export: Arc<Export>,
    remotes: Arc<OtherNodes>,
    served: Mutex<Served>,
}

#[derive(Debug, Default)]
struct Served {
    sessions: Vec<Arc<Session>>,
    keeper: Option<Keeper>,
}

impl Mounter {
    pub fn new(context: &FilesContext, export: Arc<Export>) -> Self {
        let peers = Arc::clone(&context.directory) as Arc<dyn PeerDirectory>;
        let remotes = Remotes::new(context.identity.clone(), peers, context.boot_epoch);
        Self {
            context: context.clone(),
            export,
            remotes: Arc::new(OtherNodes(remotes)),
            served: Mutex::default(),
        }
    }

    fn served(&self) -> MutexGuard<'_, Served> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what an earlier daemon served; answers where that is mounted, as far as it was
    /// mounted by the daemon itself.
    pub fn take_over(&self) -> Vec<PathBuf> {
        let Ok((keeper, kept)) = Keeper::connect(&self.socket()) else {
            self.forget_journals();
            return Vec::new();
        };
        self.served().keeper = Some(keeper);
        let taken = kept.into_iter().filter_map(|kept| self.resume(kept));
        taken.flatten().collect()
    }

    fn resume(&self, kept: Kept) -> Option<Option<PathBuf>> {
        let Kept { name, fuse } = kept;
        let (id, point) = name.split_once('\t')?;
        let point = (!point.is_empty()).then(|| PathBuf::from(point));
        match fs::resume(fuse, self.config(), &self.journal(id)) {
            Ok(session) => {
                tracing::info!("took over a mount {}", text(point.as_deref()));
                self.served().sessions.push(Arc::new(session));
                Some(point)
            }
            Err(error) => {
                tracing::warn!("cannot take over a mount: {error}");
                if let Some(keeper) = &self.served().keeper {
                    let _ = keeper.drop(&name);
                }
                None
            }
        }
    }

    /// Serves a mount. `point`: where, if this daemon has mounted it by itself.
    pub fn serve(&self, fuse: OwnedFd, point: Option<&Path>) -> io::Result<()> {
        let id = format!("{:016x}", rand::random::<u64>());
        let journal = self.journal(&id);
        let kept = fuse.try_clone()?;
        let directory = journal.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(directory)?;
        let session = fs::serve_first(fuse, self.config(), &journal)?;
        let name = format!("{id}\t{}", text(point));
        let mut served = self.served();
        let (ended, sessions) = std::mem::take(&mut served.sessions)
            .into_iter()
            .partition(|session| session.is_finished());
        drop::<Vec<Arc<Session>>>(ended);
        served.sessions = sessions;
        served.sessions.push(Arc::new(session));
        if let Err(error) = self.keep(&mut served, &name, &kept) {
            tracing::warn!("the end of this daemon will end its mounts: {error}");
        }
        Ok(())
    }

    fn keep(&self, served: &mut Served, name: &str, fuse: &OwnedFd) -> io::Result<()> {
        let known = served.keeper.as_ref();
        if known.is_none_or(|keeper| keeper.keep(name, fuse).is_err()) {
            let keeper = start_keeper(&self.socket())?;
            keeper.keep(name, fuse)?;
            served.keeper = Some(keeper);
        }
        Ok(())
    }

    /// Sends what was written and not sent yet, as far as its owners answer soon. The rest is the
    /// next daemon's.
    pub fn settle(&self) {
        let sessions = self.served().sessions.clone();
        let (done, finished) = mpsc::channel();
        let settle = move || {
            sessions.iter().for_each(|session| session.settle());
            let _ = done.send(());
        };
        if std::thread::Builder::new().spawn(settle).is_ok() {
            let _ = finished.recv_timeout(SETTLE_MAX);
        }
    }

    fn config(&self) -> FsConfig {
        let context = &self.context;
        let peer = SessionPeer {
            node: context.identity.node(),
            is_local: true,
        };
        FsConfig {
            peers: Arc::clone(&context.directory) as Arc<dyn PeerDirectory>,
            local: self.export.session(peer),
            remote: Arc::clone(&self.remotes) as Arc<dyn RemoteServices>,
            guests: Arc::new(Guests(Arc::clone(&context.jobs))),
            status: Arc::new(Status::new(context)),
            threads: FUSE_THREADS,
            owner_wait: context.config.mount.owner_wait_ms.duration(),
            passthrough: true,
        }
    }

    fn socket(&self) -> PathBuf {
        self.context.config.node.run_dir.join("fuse-keeper.sock")
    }

    fn journals(&self) -> PathBuf {
        self.context.config.node.run_dir.join("mounts")
    }

    fn journal(&self, id: &str) -> PathBuf {
        self.journals().join(id)
    }

    /// Journals of mounts that are gone.
    fn forget_journals(&self) {
        let _ = std::fs::remove_dir_all(self.journals());
    }
}

fn text(point: Option<&Path>) -> String {
    point.map_or(String::new(), |point| point.display().to_string())
}

fn start_keeper(socket: &Path) -> io::Result<Keeper> {
    let listener = crate::jobs::bind_private(socket)?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("omfs")
        .arg("fuse-keeper")
        .stdout(Stdio::null());
    let mut child = command.stdin(OwnedFd::from(listener)).spawn()?;
    let reaper = std::thread::Builder::new().name("keeper-reaper".into());
    reaper.stack_size(128 << 10).spawn(move || child.wait())?;
    Ok(Keeper::connect(socket)?.0)
}
