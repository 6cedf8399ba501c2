//! The filesystem parts of a node: its export on the data port, the others' exports, and the
//! mounts of `/mfs` here.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use omfs_client::mount_listener::{self, MountListener};
use omfs_client::{Guest, GuestHomes, RemoteServices, RemoteSession, mount, options};
use omfs_cluster::directory::Directory;
use omfs_config::Config;
use omfs_dataplane::{Remotes, Server};
use omfs_export::exports::Exports;
use omfs_export::jobs::JobHosts;
use omfs_export::{Export, ExportConfig};
use omfs_pki::TlsIdentity;
use omfs_service::peers::PeerDirectory;
use omfs_service::{Errno, FileService, SessionPeer};
use proto::ids::{NodeId, Pid};
use proto::v1::Hello;

use super::mounts::Mounter;
use super::{patience, predecessor};
use crate::jobs::Jobs;

/// How long a mount that is in use is tried to be taken down when the daemon ends.
const UNMOUNT_PATIENCE: Duration = Duration::from_millis(500);

/// The data port, listening; it is known early because the other nodes are told its number.
pub struct DataPort {
    listener: TcpListener,
}

impl DataPort {
    /// Opens the port.
    ///
    /// # Errors
    /// It cannot be had.
    pub fn open(config: &Config) -> anyhow::Result<Self> {
        let address = config.data_listen();
        let listener = predecessor::listen(address)
            .with_context(|| format!("cannot listen on {address} (network.data_port)"))?;
        Ok(Self { listener })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The kernel's.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// What the mounts need of the rest of the node.
#[derive(Clone, Debug)]
pub struct FilesContext {
    /// The node's settings.
    pub config: Arc<Config>,
    /// Its certificate.
    pub identity: TlsIdentity,
    /// Differs with every start of the daemon.
    pub boot_epoch: u64,
    /// The membership.
    pub directory: Arc<Directory>,
    /// Jobs and guests.
    pub jobs: Arc<Jobs>,
    /// What other nodes see of this one.
    pub exports: Arc<Exports>,
}

/// The running filesystem parts.
#[derive(Debug)]
pub struct Files {
    data: Server,
    _listener: MountListener,
    mounter: Arc<Mounter>,
    jobs: Arc<Jobs>,
    own_mounts: Vec<PathBuf>,
}

impl Files {
    /// Serves the export and takes mounts. Blocks for as long as the kernel needs to mount.
    ///
    /// # Errors
    /// A socket or one of the configured mounts cannot be had.
    pub fn start(context: &FilesContext, port: DataPort) -> anyhow::Result<Self> {
        let export = open_export(context)?;
        for pid in context.jobs.away() {
            export.forget_leases_of(pid);
        }
        let factory = {
            let export = Arc::clone(&export);
            let directory = Arc::clone(&context.directory);
            move |node: NodeId, _hello: &Hello| {
                let peer = SessionPeer {
                    node,
                    is_local: false,
                };
                let name = directory.by_id(node).map(|peer| peer.name);
                let session = export.session_of(peer, &name.unwrap_or_default());
                Ok(session as Arc<dyn FileService>)
            }
        };
        let identity = context.identity.clone();
        let members = Arc::clone(&context.directory);
        let data = Server::start_for(
            port.listener,
            identity,
            context.boot_epoch,
            Box::new(factory),
            Box::new(move |address| members.is_member_address(address)),
        )
        .context("cannot start the data plane")?;
        let mounter = Arc::new(Mounter::new(context, export));
        let own_mounts = mounter.take_over();
        let socket = context.config.mount_socket();
        let listener = {
            let mounter = Arc::clone(&mounter);
            mount_listener::listen(&socket, Box::new(move |fuse| mounter.serve(fuse, None)))
                .with_context(|| socket.display().to_string())?
        };
        let mut files = Self {
            data,
            _listener: listener,
            mounter,
            jobs: Arc::clone(&context.jobs),
            own_mounts,
        };
        for point in &context.config.mount.points {
            if !files.own_mounts.iter().any(|own| own.as_path() == &**point) {
                files.mount(point)?;
            }
        }
        Ok(files)
    }

    fn mount(&mut self, point: &Path) -> anyhow::Result<()> {
        let mounted = || -> io::Result<()> {
            clear_dead_mount(point);
            let options = options::parse("").map_err(io::Error::other)?;
            let fuse = mount::mount_fuse("omfs", point, options)?;
            self.mounter.serve(fuse, Some(point))
        };
        mounted().with_context(|| format!("cannot mount on {} (mount.points)", point.display()))?;
        self.own_mounts.push(point.to_owned());
        Ok(())
    }

    /// What sends everything that was written and not sent yet, and waits a while for it.
    pub fn settler(&self) -> impl FnOnce() + Send + 'static {
        let mounter = Arc::clone(&self.mounter);
        move || mounter.settle()
    }

    /// Takes down what this daemon mounted by itself and nobody uses, and ends all connections.
    /// What is in use stays for the next daemon: guests live on it, and this may be an upgrade.
    pub fn stop(self) {
        let (guests, _) = self.jobs.counts();
        if guests == 0 {
            self.unmount();
        }
        self.data.shutdown();
    }

    fn unmount(&self) {
        for point in &self.own_mounts {
            if let Err(error) = unmount_patiently(point) {
                tracing::info!("{} stays: {error}", point.display());
            }
        }
    }
}

/// Who just looks at the directory makes the mount busy for that moment.
fn unmount_patiently(point: &Path) -> io::Result<()> {
    let is_busy = |error: &io::Error| error.raw_os_error() == Some(libc::EBUSY);
    patience::attempt(UNMOUNT_PATIENCE, is_busy, || mount::unmount(point))
}

fn open_export(context: &FilesContext) -> anyhow::Result<Arc<Export>> {
    let export = &context.config.export;
    let root = export.root.to_path_buf();
    let config = ExportConfig {
        exports: Arc::clone(&context.exports),
        jobs: Arc::new(Hosts(Arc::clone(&context.jobs))),
        ..ExportConfig::new(root)
    };
    Export::new(config)
        .with_context(|| format!("cannot export {} (export.root)", export.root.display()))
}

/// A daemon that died leaves a mount that only says ENOTCONN.
fn clear_dead_mount(point: &Path) {
    let dead = std::fs::symlink_metadata(point)
        .is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN));
    if dead {
        let _ = mount::unmount_lazily(point);
    }
}

/// The data plane's connections, as the filesystem wants them.
#[derive(Debug)]
pub struct OtherNodes(pub Arc<Remotes>);

impl RemoteServices for OtherNodes {
    fn session(&self, node: NodeId) -> Result<RemoteSession, Errno> {
        let session = self.0.session(node)?;
        Ok(RemoteSession {
            epoch: session.epoch(),
            service: session,
        })
    }
}

#[derive(Debug)]
pub struct Guests(pub Arc<Jobs>);

impl GuestHomes for Guests {
    fn guest(&self, caller_pid: i32) -> Option<Guest> {
        let (home, pid) = self.0.guest_table().guest(caller_pid)?;
        let pid = Pid(pid);
        Some(Guest { home, pid })
    }

    fn guests_of(&self, home: NodeId) -> Vec<Pid> {
        let pids = self.0.guest_table().guests_of(home);
        pids.into_iter().map(Pid).collect()
    }
}

#[derive(Debug)]
struct Hosts(Arc<Jobs>);

impl JobHosts for Hosts {
    fn is_host(&self, pid: i32, node: NodeId) -> bool {
        self.0.is_host(pid, node)
    }
}
