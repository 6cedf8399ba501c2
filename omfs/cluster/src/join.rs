//! Making a cluster, and becoming a node of one.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use proto::ids::NodeId;
use proto::v1::join_client::JoinClient;
use proto::v1::{JoinReply, JoinRequest, Node};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use super::roster::{Entry, Roster, RosterError};
use omfs_config::Config;
use omfs_pki::{ClusterName, PendingJoin, PkiError, Store, TlsIdentity, Token};

/// Every step of a join has this long.
const STEP_DEADLINE: Duration = Duration::from_secs(10);

/// Why a machine could not become a node.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum JoinError {
    #[error("{0}")]
    Unreachable(String),
    #[error("the token was not accepted: {0}")]
    Token(String),
    #[error(
        "{address} is another node than the one that made the cluster (node {authority}): join there"
    )]
    WrongNode {
        address: SocketAddr,
        authority: NodeId,
    },
    #[error("the cluster refused this machine: {0}")]
    Refused(String),
    #[error(transparent)]
    Roster(#[from] RosterError),
    #[error(transparent)]
    Pki(PkiError),
}

impl From<PkiError> for JoinError {
    fn from(error: PkiError) -> Self {
        match error {
            PkiError::Token(token) => Self::Token(token.to_string()),
            other => Self::Pki(other),
        }
    }
}

/// What a joining machine says of itself.
#[derive(Clone, Debug)]
pub struct NewNode {
    /// Its name.
    pub name: String,
    /// Its control plane.
    pub control: SocketAddr,
    /// Its data plane.
    pub data: SocketAddr,
    /// The id it asks for; without one it gets the next.
    pub id: Option<NodeId>,
}

/// Makes a cluster with this machine as node 1.
///
/// # Errors
/// It is in a cluster already; the state directory cannot be written to.
pub fn init(config: &Config, cluster: &ClusterName, name: &str) -> Result<TlsIdentity, JoinError> {
    let store = Store::new(&config.node.state_dir);
    make_state_dir(config)?;
    let identity = store.init_cluster(cluster, NodeId(1), name)?;
    let mut roster = Roster::open(&config.node.state_dir)?;
    roster.note(Entry {
        id: NodeId(1),
        name: name.to_owned(),
        control: advertised(config, None, config.network.control_port.0),
        data: advertised(config, None, config.network.data_port.0),
        seen: true,
    })?;
    Ok(identity)
}

/// Makes this machine a node of the token's cluster; `address` is the control plane of the node
/// that holds the CA key.
///
/// # Errors
/// [`JoinError`]; nothing has been stored then.
pub async fn join(
    config: &Config,
    address: SocketAddr,
    token: &Token,
    new: &NewNode,
) -> Result<TlsIdentity, JoinError> {
    let store = Store::new(&config.node.state_dir);
    let pending = PendingJoin::new(&store, &new.name)?;
    let ca_pem = fetch_ca(address, token.clone()).await?;
    let mut client = connect(address, token, &ca_pem).await?;
    let request = JoinRequest {
        token_secret: token.secret.to_vec(),
        name: new.name.clone(),
        csr_der: pending.csr_der().to_vec(),
        address: new.control.to_string(),
        data_address: new.data.to_string(),
        wanted_id: new.id.map_or(0, |id| id.0),
    };
    let reply = client.join(request).await.map_err(refused)?.into_inner();
    make_state_dir(config)?;
    remember_nodes(config, &reply)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let identity = pending.finish(
        &store,
        token,
        NodeId(reply.node_id),
        &text(&reply.ca_pem),
        &text(&reply.certificate_pem),
    )?;
    Ok(identity)
}

fn make_state_dir(config: &Config) -> Result<(), JoinError> {
    Ok(omfs_pki::files::make_private_dir(&config.node.state_dir)?)
}

async fn fetch_ca(address: SocketAddr, token: Token) -> Result<String, JoinError> {
    let authority = token.authority;
    let fetch = move || omfs_pki::join::fetch_ca(address, &token, STEP_DEADLINE);
    let fetched = tokio::task::spawn_blocking(fetch).await;
    let fetched = fetched.map_err(|error| JoinError::Unreachable(error.to_string()))?;
    fetched.map_err(|error| match error {
        PkiError::Io { source, .. } => {
            JoinError::Unreachable(format!("{address} cannot be reached: {source}"))
        }
        PkiError::WrongName => JoinError::WrongNode { address, authority },
        PkiError::Foreign => JoinError::Token(format!(
            "{address} belongs to another cluster than the token"
        )),
        other => other.into(),
    })
}

async fn connect(
    address: SocketAddr,
    token: &Token,
    ca_pem: &str,
) -> Result<JoinClient<Channel>, JoinError> {
    let unreachable = |error: tonic::transport::Error| {
        JoinError::Unreachable(format!("{address} cannot be reached: {error}"))
    };
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(ca_pem))
        .domain_name(token.authority_domain());
    let endpoint = Endpoint::from_shared(format!("https://{address}"))
        .and_then(|endpoint| endpoint.tls_config(tls))
        .map_err(unreachable)?
        .connect_timeout(STEP_DEADLINE)
        .timeout(STEP_DEADLINE);
    let channel = endpoint.connect().await.map_err(unreachable)?;
    Ok(JoinClient::new(channel))
}

fn refused(status: tonic::Status) -> JoinError {
    use tonic::Code;
    let text = status.message().to_owned();
    match status.code() {
        Code::Unauthenticated => JoinError::Token(text),
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
            JoinError::Unreachable(text)
        }
        _ => JoinError::Refused(text),
    }
}

fn remember_nodes(config: &Config, reply: &JoinReply) -> Result<(), JoinError> {
    let mut roster = Roster::open(&config.node.state_dir)?;
    for node in &reply.nodes {
        // A node that this version cannot address will be heard of again by gossip.
        if let Some(entry) = entry_of(node) {
            roster.note(entry)?;
        }
    }
    Ok(())
}

/// A roster entry of a node as the wire describes it, if its addresses are readable.
#[must_use]
pub fn entry_of(node: &Node) -> Option<Entry> {
    omfs_pki::name::check_node_name(&node.name).ok()?;
    omfs_pki::name::check_node_id(NodeId(node.id)).ok()?;
    Some(Entry {
        id: NodeId(node.id),
        name: node.name.clone(),
        control: node.address.parse().ok()?,
        data: node.data_address.parse().ok()?,
        seen: true,
    })
}

/// The address under which others reach this node: as configured, or the one it listens on, or
/// the one from which it reaches `toward`, or that of its first interface.
#[must_use]
pub fn advertised(config: &Config, toward: Option<SocketAddr>, port: u16) -> SocketAddr {
    let network = &config.network;
    let ip = network
        .advertise
        .or_else(|| Some(network.listen).filter(|ip| !ip.is_unspecified()))
        .or_else(|| toward.and_then(source_address))
        .or_else(first_interface_address)
        .unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    SocketAddr::new(ip, port)
}

/// Connecting a datagram socket sends nothing, but makes the kernel choose a source address.
fn source_address(toward: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = match toward {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(toward).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified())
}

fn first_interface_address() -> Option<IpAddr> {
    use nix::net::if_::InterfaceFlags;
    let interfaces = nix::ifaddrs::getifaddrs().ok()?;
    let up = interfaces.filter(|interface| {
        interface.flags.contains(InterfaceFlags::IFF_UP)
            && !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK)
    });
    let mut addresses = up.filter_map(|interface| {
        let address = interface.address?;
        address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()))
    });
    addresses.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advertised_address_is_the_configured_one_first() {
        let mut config = Config::default();
        let toward = SocketAddr::from(([127, 0, 0, 1], 7780));
        let found = advertised(&config, Some(toward), 9);
        assert_eq!(found, SocketAddr::from(([127, 0, 0, 1], 9)));
        config.network.listen = "192.0.2.2".parse().unwrap();
        assert_eq!(
            advertised(&config, Some(toward), 9).ip(),
            config.network.listen
        );
        config.network.advertise = Some("192.0.2.1".parse().unwrap());
        assert_eq!(advertised(&config, None, 9).to_string(), "192.0.2.1:9");
    }
}
