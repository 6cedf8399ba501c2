//! The gRPC servers: the control plane on TCP and the admin API on its unix socket.

use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use omfs_cluster::directory::Directory;
use omfs_cluster::history::History;
use omfs_cluster::swim::{Member, Swim};
use omfs_config::Config;
use omfs_pki::{Authority, TlsIdentity};
use proto::v1::admin_server::AdminServer;
use proto::v1::cluster_server::ClusterServer;
use proto::v1::join_server::JoinServer;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

use super::admin_service::AdminService;
use super::cluster_service::ClusterService;
use super::join_service::JoinService;
use super::members::Members;
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
    /// The failure detector.
    pub swim: Swim,
    /// Jobs and guests.
    pub jobs: Arc<Jobs>,
    /// What earlier daemons saw.
    pub history: Arc<History>,
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
    let admin = admin_socket(&services.config)?;
    Ok(vec![
        serve_control(&services, control, until(stopped.clone()))?,
        serve_admin(services, admin, until(stopped)),
    ])
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
    let router = Server::builder()
        .tls_config(tls)
        .context("the node's certificate cannot be used")?
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(CALLS_PER_CONNECTION_MAX)
        .add_service(cluster)
        .add_service(join);
    let incoming = TcpListenerStream::new(listener);
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
        .max_concurrent_streams(CALLS_PER_CONNECTION_MAX)
        .add_service(admin);
    let incoming = UnixListenerStream::new(listener);
    tokio::spawn(async move {
        if let Err(error) = router.serve_with_incoming_shutdown(incoming, stop).await {
            tracing::error!("the admin socket ended: {error}");
        }
    })
}

/// Everybody may connect: the kernel tells who it is.
fn admin_socket(config: &Config) -> anyhow::Result<UnixListener> {
    let path = config.admin_socket();
    let shown = || path.display().to_string();
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(shown);
        }
        _ => {}
    }
    let listener = UnixListener::bind(&path).with_context(shown)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).with_context(shown)?;
    Ok(listener)
}
