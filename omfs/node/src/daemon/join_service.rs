//! Lets machines join: the only service that answers callers without a certificate.

use std::net::SocketAddr;
use std::time::Duration;

use omfs_cluster::directory::Directory;
use omfs_pki::{PkiError, TokenError};
use omfs_service::peers::{Peer, PeerDirectory};
use proto::ids::NodeId;
use proto::v1;
use proto::v1::join_server::Join;
use tokio::sync::Mutex;
use tonic::{Request, Response, Status};

use super::server::Services;

/// Guessing tokens gets one try per this time.
const WRONG_TOKEN_PAUSE: Duration = Duration::from_millis(300);

/// Implements `omfs.v1.Join`.
#[derive(Debug)]
pub struct JoinService {
    services: Services,
    /// One join at a time: they change files, and this also slows down guessing.
    one_at_a_time: Mutex<()>,
}

impl JoinService {
    /// For this node.
    pub fn new(services: Services) -> Self {
        Self {
            services,
            one_at_a_time: Mutex::new(()),
        }
    }

    fn admit(services: &Services, request: &v1::JoinRequest) -> Result<v1::JoinReply, Status> {
        let Some(authority) = &services.authority else {
            return Err(Status::failed_precondition(
                "this node does not hold the cluster's CA key: join at the node that made the cluster",
            ));
        };
        authority
            .check_token(&request.token_secret)
            .map_err(refused)?;
        omfs_pki::name::check_node_name(&request.name).map_err(refused)?;
        if request.wanted_id != 0 {
            omfs_pki::name::check_node_id(NodeId(request.wanted_id)).map_err(refused)?;
        }
        let peer = Directory::peer(
            NodeId(0),
            &request.name,
            address(&request.address)?,
            address(&request.data_address)?,
        );
        check_request(services, request, &peer)?;
        let id = services.members.admit(request, &peer).map_err(|error| {
            use omfs_cluster::roster::RosterError as E;
            match error {
                E::NameTaken(_) | E::IdTaken(_) => Status::already_exists(error.to_string()),
                E::Full => Status::resource_exhausted(error.to_string()),
                E::File(_) => Status::internal(error.to_string()),
            }
        })?;
        let certificate = authority
            .sign(&request.csr_der, id, &request.name)
            .map_err(refused)?;
        tracing::info!(
            "node {id} ({}) joins from {}",
            request.name,
            request.address
        );
        Ok(v1::JoinReply {
            node_id: id.0,
            cluster: services.identity.cluster().to_string(),
            ca_pem: services.identity.pem().ca.clone().into_bytes(),
            certificate_pem: certificate.into_bytes(),
            nodes: services.members.wire_nodes(),
        })
    }
}

/// What would waste an id if it were found later.
fn check_request(
    services: &Services,
    request: &v1::JoinRequest,
    peer: &Peer,
) -> Result<(), Status> {
    if request.csr_der.is_empty() {
        return Err(Status::invalid_argument(
            "the certificate request is missing",
        ));
    }
    if services.directory.peers().iter().any(|known| {
        known.control == peer.control && known.name != peer.name && peer.control.port() != 0
    }) {
        return Err(Status::already_exists(format!(
            "another node has the address {} already: set network.advertise",
            peer.control
        )));
    }
    Ok(())
}

fn address(text: &str) -> Result<SocketAddr, Status> {
    text.parse()
        .map_err(|_| Status::invalid_argument(format!("{text:?} is no ip:port")))
}

fn refused(error: PkiError) -> Status {
    match error {
        PkiError::Token(TokenError::TooMany) => Status::resource_exhausted(error.to_string()),
        PkiError::Token(_) => Status::unauthenticated(error.to_string()),
        PkiError::BadNodeName(_) | PkiError::BadNodeId(_) | PkiError::BadRequest(_) => {
            Status::invalid_argument(error.to_string())
        }
        _ => Status::internal(error.to_string()),
    }
}

#[tonic::async_trait]
impl Join for JoinService {
    async fn join(
        &self,
        request: Request<v1::JoinRequest>,
    ) -> Result<Response<v1::JoinReply>, Status> {
        let _turn = self.one_at_a_time.lock().await;
        let services = self.services.clone();
        let request = request.into_inner();
        let admitted = tokio::task::spawn_blocking(move || Self::admit(&services, &request)).await;
        let answer = admitted.unwrap_or_else(|error| Err(Status::internal(error.to_string())));
        if let Err(status) = &answer
            && status.code() == tonic::Code::Unauthenticated
        {
            tracing::warn!("a machine could not join: {}", status.message());
            tokio::time::sleep(WRONG_TOKEN_PAUSE).await;
        }
        answer.map(Response::new)
    }
}
