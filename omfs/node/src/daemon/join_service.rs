//! Lets machines join: the only service that answers callers without a certificate.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::PoisonError;
use std::time::Instant;

use omfs_cluster::directory::Directory;
use omfs_pki::{Authority, PkiError, TokenError};
use omfs_service::peers::{Peer, PeerDirectory};
use proto::ids::NodeId;
use proto::v1;
use proto::v1::join_server::Join;
use tokio::sync::Mutex;
use tonic::{Request, Response, Status};

use super::gates::peer_address;
use super::server::Services;
use super::wrong_tokens::WrongTokens;

/// Implements `omfs.v1.Join`.
#[derive(Debug)]
pub struct JoinService {
    services: Services,
    /// One join at a time, since they change files; only who has a right token waits here.
    one_at_a_time: Mutex<()>,
    wrong_tokens: std::sync::Mutex<WrongTokens>,
}

impl JoinService {
    /// For this node.
    pub fn new(services: Services) -> Self {
        Self {
            services,
            one_at_a_time: Mutex::new(()),
            wrong_tokens: std::sync::Mutex::default(),
        }
    }

    /// Whether the token is a right one. Who shows wrong ones waits by himself.
    async fn check_token(&self, source: IpAddr, secret: Vec<u8>) -> Result<(), Status> {
        let wrong = || {
            self.wrong_tokens
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        if let Err(wait) = wrong().may_try(source, Instant::now()) {
            return Err(Status::resource_exhausted(format!(
                "too many wrong tokens from {source}: try again in {} s",
                wait.as_secs() + 1
            )));
        }
        let services = self.services.clone();
        let checked = blocking(move || {
            let tokens = authority(&services)?.tokens();
            tokens.check(&secret).map_err(refused)
        });
        let checked = checked.await;
        if let Err(status) = &checked
            && status.code() == tonic::Code::Unauthenticated
        {
            wrong().note(source, Instant::now());
            tracing::warn!("a machine at {source} could not join: {}", status.message());
        }
        checked
    }

    fn admit(services: &Services, request: &v1::JoinRequest) -> Result<v1::JoinReply, Status> {
        let authority = authority(services)?;
        let tokens = authority.tokens();
        tokens.check(&request.token_secret).map_err(refused)?;
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
        tokens.spend(&request.token_secret).map_err(refused)?;
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

fn authority(services: &Services) -> Result<&Authority, Status> {
    services.authority.as_deref().ok_or_else(|| {
        Status::failed_precondition(
            "this node does not hold the cluster's CA key: join at the node that made the cluster",
        )
    })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Status::internal(error.to_string())))
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
        let source = peer_address(request.extensions()).map(|address| address.ip().to_canonical());
        let source = source.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        let request = request.into_inner();
        self.check_token(source, request.token_secret.clone())
            .await?;
        let _turn = self.one_at_a_time.lock().await;
        let services = self.services.clone();
        let admitted = blocking(move || Self::admit(&services, &request)).await;
        admitted.map(Response::new)
    }
}
