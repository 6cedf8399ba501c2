//! The gRPC servers: the control plane on TCP and the admin API on its unix socket.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use omfs_cluster::directory::Directory;
use omfs_cluster::history::History;
use omfs_cluster::swim::{Member, Swim};
use omfs_config::Config;
use omfs_limits::connections::Room;
use omfs_limits::source::Source;
use omfs_pki::{Authority, TlsIdentity};
use omfs_service::peers::PeerDirectory;
use proto::v1::admin_server::AdminServer;
use proto::v1::cluster_server::ClusterServer;
use proto::v1::join_server::JoinServer;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

use super::admin_service::AdminService;
use super::cluster_service::ClusterService;
use super::export_store::ExportStore;
use super::gates::{ADMIN_CONNECTIONS, AdminGate, CONTROL_CONNECTIONS, ControlGate, ControlKey};
use super::join_service::JoinService;
use super::members::Members;
use super::port_guard::{Guarded, PortGuard};
use super::removal::Removals;
use super::request_limits::GateLayer;
use crate::jobs::Jobs;

/// Largest control message: a load window of a large cluster is far below.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// A caller that does not finish its handshake in this time is nobody we know.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often idle connections are tested, so that those of dead machines do not pile up.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Calls that one connection may have under way.
const CALLS_PER_CONNECTION_MAX: u32 = 256;
/// Connections that were accepted and wait for a server.
const ACCEPTED_QUEUE: usize = 16;
/// After a failed accept(2), for example for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the services share.
#[derive(Clone, Debug)]
pub struct Services {
    /// The node's settings.
    pub config: Arc<Config>,
    /// Its certificate.
    pub identity: TlsIdentity,
    /// The cluster's CA, if its key is here.
    pub authority: Option<Arc<Authority>>,
    /// This node.
    pub myself: Member,
    /// The membership.
    pub directory: Arc<Directory>,
    /// The file of nodes.
    pub members: Members,
    /// Nodes that were removed.
    pub removals: Removals,
    /// The failure detector.
    pub swim: Swim,
    /// Jobs and guests.
    pub jobs: Arc<Jobs>,
    /// What earlier daemons saw.
    pub history: Arc<History>,
    /// Where requests are carried out: no task on the membership's own threads may block.
    pub work: Handle,
    /// What other nodes see of this one.
    pub exports: Arc<ExportStore>,
}

/// Starts both servers; they end after `stopped` turns true.
///
/// # Errors
/// The admin socket cannot be made, or the certificate not be used.
pub async fn start(
    services: Services,
    control: TcpListener,
    stopped: watch::Receiver<bool>,
) -> anyhow::Result<Vec<JoinHandle<()>>> {
    let control = serve_control(&services, control, until(stopped.clone()))?;
    // The admin socket and all that it asks for belong to the other runtime.
    let work = services.work.clone();
    let _entered = work.enter();
    let admin = admin_socket(&services.config)?;
    Ok(vec![control, serve_admin(services, admin, until(stopped))])
}

async fn until(mut stopped: watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stop| *stop).await;
}

fn serve_control(
    services: &Services,
    listener: TcpListener,
    stop: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<JoinHandle<()>> {
    let pem = services.identity.pem();
    // A machine that wants to join has no certificate: it gets a connection, but only the Join
    // service answers it; every other service asks for the certificate (`cluster_service::peer`).
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(&pem.certificate_chain, &pem.key))
        .client_ca_root(Certificate::from_pem(&pem.ca))
        .client_auth_optional(true)
        .timeout(HANDSHAKE_TIMEOUT);
    let cluster = ClusterServer::new(ClusterService::new(services.clone()))
        .max_decoding_message_size(MESSAGE_BYTES_MAX);
    let join =
        JoinServer::new(JoinService::new(services.clone())).max_decoding_message_size(64 << 10);
    let gate = ControlGate::new(services.identity.clone());
    let router = Server::builder()
        .layer(GateLayer::new(gate))
        .tls_config(tls)
        .context("the node's certificate cannot be used")?
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(CALLS_PER_CONNECTION_MAX)
        .add_service(cluster)
        .add_service(join);
    let incoming = accept_control(listener, Arc::clone(&services.directory));
    Ok(tokio::spawn(async move {
        if let Err(error) = router.serve_with_incoming_shutdown(incoming, stop).await {
            tracing::error!("the control plane ended: {error}");
        }
    }))
}

fn serve_admin(
    services: Services,
    listener: UnixListener,
    stop: impl Future<Output = ()> + Send + 'static,
) -> JoinHandle<()> {
    let admin = AdminServer::new(AdminService::new(services));
    let router = Server::builder()
        .layer(GateLayer::new(AdminGate::default()))
        .max_concurrent_streams(CALLS_PER_CONNECTION_MAX)
        .add_service(admin);
    let incoming = accept_admin(listener);
    tokio::spawn(async move {
        if let Err(error) = router.serve_with_incoming_shutdown(incoming, stop).await {
            tracing::error!("the admin socket ended: {error}");
        }
    })
}

type Incoming<IO, K> = ReceiverStream<io::Result<Guarded<IO, K>>>;

/// Connections to the control port. Members' addresses have reserved room.
fn accept_control(
    listener: TcpListener,
    directory: Arc<Directory>,
) -> Incoming<tokio::net::TcpStream, ControlKey> {
    let guard = PortGuard::new("control port", CONTROL_CONNECTIONS);
    tokio::spawn(guard.clone().sweep());
    let (accepted, incoming) = mpsc::channel(ACCEPTED_QUEUE);
    tokio::spawn(async move {
        loop {
            let next = tokio::select! {
                next = listener.accept() => next,
                () = accepted.closed() => return,
            };
            let Some((stream, from)) = or_pause(next, "control port").await else {
                continue;
            };
            let room = match directory.is_member_address(from.ip()) {
                true => Room::Reserved,
                false => Room::Common,
            };
            // tonic sets it only on connections that it accepts itself.
            let _ = stream.set_nodelay(true);
            let key = ControlKey::Stranger(Source::from(from.ip()));
            if let Some(guarded) = guard.admit(stream, key, room) {
                let _ = accepted.send(Ok(guarded)).await;
            }
        }
    });
    ReceiverStream::new(incoming)
}

/// Connections to the admin socket, counted by user.
fn accept_admin(listener: UnixListener) -> Incoming<tokio::net::UnixStream, u32> {
    let guard = PortGuard::new("admin socket", ADMIN_CONNECTIONS);
    tokio::spawn(guard.clone().sweep());
    let (accepted, incoming) = mpsc::channel(ACCEPTED_QUEUE);
    tokio::spawn(async move {
        loop {
            let next = tokio::select! {
                next = listener.accept() => next,
                () = accepted.closed() => return,
            };
            let Some((stream, _)) = or_pause(next, "admin socket").await else {
                continue;
            };
            let Ok(credentials) = stream.peer_cred() else {
                continue;
            };
            let room = match credentials.uid() {
                0 => Room::Reserved,
                _ => Room::Common,
            };
            if let Some(guarded) = guard.admit(stream, credentials.uid(), room) {
                let _ = accepted.send(Ok(guarded)).await;
            }
        }
    });
    ReceiverStream::new(incoming)
}

async fn or_pause<T>(accepted: io::Result<T>, name: &str) -> Option<T> {
    match accepted {
        Ok(accepted) => Some(accepted),
        Err(error) => {
            tracing::debug!("accepting on the {name}: {error}");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

/// Everybody may connect: the kernel tells who it is.
fn admin_socket(config: &Config) -> anyhow::Result<UnixListener> {
    let path = config.admin_socket();
    let shown = || path.display().to_string();
    let listener = omfs_sys::unix_socket::listen(&path, 0o666).with_context(shown)?;
    listener.set_nonblocking(true).with_context(shown)?;
    UnixListener::from_std(listener).with_context(shown)
}
