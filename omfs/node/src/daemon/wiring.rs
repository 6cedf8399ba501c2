//! A running node: every part of it, started in order and stopped in reverse.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use omfs_cluster::control::ControlClients;
use omfs_cluster::directory::Directory;
use omfs_cluster::history::History;
use omfs_cluster::join::advertised;
use omfs_cluster::roster::Roster;
use omfs_cluster::swim::grpc::GrpcTransport;
use omfs_cluster::swim::{Member, Swim, Transport};
use omfs_config::Config;
use omfs_pki::{Store, TlsIdentity};
use omfs_service::peers::{Liveness, Peer, PeerDirectory};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::export_store::ExportStore;
use super::files::{DataPort, Files, FilesContext};
use super::members::Members;
use super::predecessor;
use super::recorder;
use super::removal::Removals;
use super::server::{self, Services};
use super::work_runtime::WorkRuntime;
use crate::jobs::{Jobs, JobsContext};

/// How long connections may finish what they do when the daemon ends.
const STOP_DEADLINE: Duration = Duration::from_millis(1500);

/// A running node.
pub struct Node {
    #[cfg_attr(not(test), allow(dead_code))]
    directory: Arc<Directory>,
    swim: Swim,
    jobs: Arc<Jobs>,
    files: Files,
    recorder: JoinHandle<()>,
    follower: JoinHandle<()>,
    stop: watch::Sender<bool>,
    servers: Vec<JoinHandle<()>>,
    /// Ends last.
    #[cfg_attr(not(test), allow(dead_code))]
    work: WorkRuntime,
}

impl Node {
    /// Starts everything; when this returns, everything listens.
    ///
    /// # Errors
    /// A port or a file cannot be had.
    pub async fn start(
        config: Arc<Config>,
        config_path: Option<PathBuf>,
        identity: TlsIdentity,
    ) -> anyhow::Result<Self> {
        let work = WorkRuntime::start()?;
        let on_work = work.handle()?;
        let control = listen(&config)?;
        let roster = Roster::open(&config.node.state_dir)?;
        let data = DataPort::open(&config)?;
        let ports = (control.local_addr()?.port(), data.address()?.port());
        let myself = describe(&config, &identity, &roster, ports);
        let directory = Arc::new(Directory::new(peer(&myself), known(&roster)));
        // Two, since what makes a connection also runs it.
        let clients = || {
            let directory = Arc::clone(&directory) as Arc<dyn PeerDirectory>;
            Arc::new(ControlClients::new(directory, identity.clone()))
        };
        let transport = Arc::new(GrpcTransport::new(clients()));
        let swim = Swim::start(
            myself.clone(),
            Arc::clone(&directory),
            Arc::clone(&transport) as Arc<dyn Transport>,
        );
        transport.answer_to(swim.clone());
        let members = Members::new(roster, Arc::clone(&directory), &myself);
        let removals = Removals::new(
            identity.clone(),
            Arc::clone(&directory),
            clients(),
            members.clone(),
        );
        removals.ask_before_start().await;
        let starting = Jobs::start(JobsContext {
            config: Arc::clone(&config),
            config_path,
            here: myself.name.clone(),
            directory: Arc::clone(&directory) as Arc<dyn PeerDirectory>,
            clients: clients(),
            identity: identity.clone(),
        });
        let jobs = on_work.spawn(starting).await??;
        let exports = ExportStore::open(&config.node.state_dir, &config.export);
        let files = start_files(
            FilesContext {
                exports: exports.exports(),
                config: Arc::clone(&config),
                identity: identity.clone(),
                boot_epoch: myself.epoch,
                directory: Arc::clone(&directory),
                jobs: Arc::clone(&jobs),
            },
            data,
        );
        let files = files.await?;
        let history = Arc::new(History::open(&config.node.state_dir));
        let recorder = recorder::run(
            Arc::clone(&history),
            Arc::clone(&directory),
            Arc::clone(&jobs),
        );
        let recorder = tokio::spawn(recorder);
        let (stop, stopped) = watch::channel(false);
        let services = Services {
            authority: Store::new(&config.node.state_dir)
                .authority()
                .ok()
                .map(Arc::new),
            config,
            identity,
            myself,
            directory: Arc::clone(&directory),
            members,
            removals: removals.clone(),
            swim: swim.clone(),
            jobs: Arc::clone(&jobs),
            history,
            work: on_work,
            exports,
        };
        let servers = server::start(services, control, stopped).await?;
        let follower = tokio::spawn(removals.follow());
        Ok(Self {
            directory,
            swim,
            jobs,
            files,
            recorder,
            follower,
            stop,
            servers,
            work,
        })
    }

    /// The membership as this node sees it.
    #[cfg(test)]
    pub fn directory(&self) -> Arc<Directory> {
        Arc::clone(&self.directory)
    }

    /// Where requests are carried out.
    #[cfg(test)]
    pub fn work(&self) -> tokio::runtime::Handle {
        self.work.handle().unwrap()
    }

    /// Tells the others, and ends.
    pub async fn stop(self) {
        self.recorder.abort();
        self.follower.abort();
        self.jobs.shutdown().await;
        let _ = tokio::task::spawn_blocking(self.files.settler()).await;
        self.swim.leave().await;
        let _ = self.stop.send(true);
        let files = self.files;
        let _ = tokio::task::spawn_blocking(move || files.stop()).await;
        let all = async {
            for server in self.servers {
                let _ = server.await;
            }
        };
        let _ = tokio::time::timeout(STOP_DEADLINE, all).await;
    }
}

/// Mounting waits for the kernel, which must not hold up the control plane.
async fn start_files(context: FilesContext, port: DataPort) -> anyhow::Result<Files> {
    tokio::task::spawn_blocking(move || Files::start(&context, port)).await?
}

fn listen(config: &Config) -> anyhow::Result<TcpListener> {
    let address = config.control_listen();
    let listening = || {
        let listener = predecessor::listen(address)?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    listening().with_context(|| format!("cannot listen on {address} (network.control_port)"))
}

/// This node as the others shall see it: its epoch is new with every start.
fn describe(
    config: &Config,
    identity: &TlsIdentity,
    roster: &Roster,
    (control_port, data_port): (u16, u16),
) -> Member {
    let toward = roster
        .nodes()
        .iter()
        .find(|node| node.id != identity.node());
    let toward = toward.map(|node| node.control);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Member {
        id: identity.node(),
        epoch: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        name: identity.node_name().to_owned(),
        control: advertised(config, toward, control_port),
        data: advertised(config, toward, data_port),
    }
}

fn peer(member: &Member) -> Peer {
    Directory::peer(member.id, &member.name, member.control, member.data)
}

fn known(roster: &Roster) -> Vec<Peer> {
    let peers = roster.nodes().iter().map(|node| Peer {
        liveness: Liveness::Suspect,
        ..Directory::peer(node.id, &node.name, node.control, node.data)
    });
    peers.collect()
}
