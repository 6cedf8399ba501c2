//! What nodes ask each other. Everything but the failure detector's own packets is carried out by the
//! work's threads.

use std::sync::Arc;

use omfs_cluster::control::ControlError;
use omfs_pki::Certified;
use proto::ids::NodeId;
use proto::v1;
use proto::v1::cluster_server::Cluster;
use tonic::{Request, Response, Status};

use super::gates::peer_chain;
use super::server::Services;
use super::work_runtime::on;

/// Implements `omfs.v1.Cluster`.
#[derive(Debug)]
pub struct ClusterService {
    services: Services,
}

impl ClusterService {
    /// For this node.
    pub fn new(services: Services) -> Self {
        Self { services }
    }

    /// The node that the caller's certificate names; nobody else gets anything.
    fn peer<T>(&self, request: &Request<T>) -> Result<NodeId, Status> {
        self.certified(request).map(|peer| peer.node)
    }

    fn certified<T>(&self, request: &Request<T>) -> Result<Certified, Status> {
        let chain = peer_chain(request.extensions());
        let chain = chain.as_ref().map(|chain| chain.as_slice());
        let peer = self.services.identity.peer(chain);
        peer.map_err(|error| Status::unauthenticated(error.to_string()))
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn swim(
        &self,
        request: Request<v1::SwimPacket>,
    ) -> Result<Response<v1::SwimReply>, Status> {
        let from = self.certified(&request)?;
        let packet = request.into_inner().data.into();
        let answers = self.services.swim.receive_and_answer(&from, packet).await;
        let packets = answers.iter().map(|packet| packet.to_vec()).collect();
        Ok(Response::new(v1::SwimReply { packets }))
    }

    async fn revocations(
        &self,
        request: Request<v1::RevocationList>,
    ) -> Result<Response<v1::RevocationList>, Status> {
        self.peer(&request)?;
        let removals = &self.services.removals;
        if removals.learn_wire(request.into_inner()).await {
            tokio::spawn(removals.clone().spread());
        }
        Ok(Response::new(removals.wire_list()))
    }

    async fn gossip(
        &self,
        request: Request<v1::LoadWindow>,
    ) -> Result<Response<v1::LoadWindow>, Status> {
        let from = self.peer(&request)?;
        let (jobs, window) = (Arc::clone(&self.services.jobs), request.into_inner());
        let answer = on(
            &self.services.work,
            async move { jobs.gossip(from, window) },
        );
        Ok(Response::new(answer.await?))
    }

    async fn prepare_guest(
        &self,
        request: Request<v1::PrepareGuestRequest>,
    ) -> Result<Response<v1::PrepareGuestReply>, Status> {
        let from = self.peer(&request)?;
        let request = request.into_inner();
        if request.home_id != from.0 {
            let error = ControlError::NotPermitted(format!(
                "node {from} asks for a guest of node {}",
                request.home_id
            ));
            return Err(error.into());
        }
        let jobs = Arc::clone(&self.services.jobs);
        let prepared = async move { jobs.prepare_guest(from, request).await };
        Ok(Response::new(on(&self.services.work, prepared).await??))
    }

    async fn processes(
        &self,
        request: Request<v1::ProcessesRequest>,
    ) -> Result<Response<v1::ProcessesReply>, Status> {
        let from = self.peer(&request)?;
        let request = request.into_inner();
        let jobs = Arc::clone(&self.services.jobs);
        let listed = async move { jobs.processes_for(from, &request).await };
        let processes = on(&self.services.work, listed).await?;
        Ok(Response::new(v1::ProcessesReply { processes }))
    }

    async fn request_move(
        &self,
        request: Request<v1::RequestMoveRequest>,
    ) -> Result<Response<v1::RequestMoveReply>, Status> {
        let from = self.peer(&request)?;
        let (jobs, request) = (Arc::clone(&self.services.jobs), request.into_inner());
        let moved = async move { jobs.request_move(from, request).await };
        on(&self.services.work, moved).await??;
        Ok(Response::new(v1::RequestMoveReply {}))
    }

    async fn lock_guest(
        &self,
        request: Request<v1::LockGuestRequest>,
    ) -> Result<Response<v1::Empty>, Status> {
        let from = self.peer(&request)?;
        let (jobs, request) = (Arc::clone(&self.services.jobs), request.into_inner());
        let told = async move { jobs.lock_guest(from, request) };
        on(&self.services.work, told).await?;
        Ok(Response::new(v1::Empty {}))
    }
}
