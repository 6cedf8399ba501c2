//! One lazily connected channel per node.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use proto::ids::NodeId;
use proto::v1;
use proto::v1::cluster_client::ClusterClient;
use tonic::transport::{Channel, Endpoint};

use super::error::ControlError;
use super::tls::{self, Shown};
use omfs_pki::{Certified, TlsIdentity};
use omfs_service::peers::PeerDirectory;

/// A long call's connection is tested this often. Idle connections are not: with many nodes that
/// would cost more than all calls together, and a call that gets no answer ends its connection.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// A daemon on a busy machine was seen to wait 4.7 s for a CPU: nothing that a long call has time
/// for should fail by that.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(7);

const GOSSIP_TIMEOUT: Duration = Duration::from_secs(1);
const SWIM_TIMEOUT: Duration = Duration::from_millis(800);
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// Preparing a guest starts a process over there, on a machine that may be busy.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(10);

/// Calls any node of the cluster.
#[derive(Debug)]
pub struct ControlClients {
    directory: Arc<dyn PeerDirectory>,
    identity: TlsIdentity,
    channels: Mutex<HashMap<NodeId, (SocketAddr, Channel)>>,
    shown: Shown,
}

/// What a packet of the failure detector made its receiver say.
#[derive(Debug)]
pub struct SwimAnswers {
    /// The receiver, by its certificate.
    pub from: Certified,
    /// Its packets for this node.
    pub packets: Vec<Bytes>,
}

impl ControlClients {
    /// Makes no connection yet. To be used within a tokio runtime.
    #[must_use]
    pub fn new(directory: Arc<dyn PeerDirectory>, identity: TlsIdentity) -> Self {
        Self {
            directory,
            identity,
            channels: Mutex::default(),
            shown: Shown::default(),
        }
    }

    /// Exchanges load windows.
    ///
    /// # Errors
    /// See [`ControlError`]; the same for all calls.
    pub async fn gossip(
        &self,
        node: NodeId,
        window: v1::LoadWindow,
    ) -> Result<v1::LoadWindow, ControlError> {
        let mut client = self.client(node)?;
        self.finish(node, GOSSIP_TIMEOUT, client.gossip(window))
            .await
    }

    /// Exchanges the lists of removed nodes.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn revocations(
        &self,
        node: NodeId,
        ours: v1::RevocationList,
    ) -> Result<v1::RevocationList, ControlError> {
        let mut client = self.client(node)?;
        self.finish(node, CALL_TIMEOUT, client.revocations(ours))
            .await
    }

    /// Asks a node to take a guest.
    ///
    /// # Errors
    /// `Refused` with the node's reason.
    pub async fn prepare_guest(
        &self,
        node: NodeId,
        request: v1::PrepareGuestRequest,
    ) -> Result<v1::PrepareGuestReply, ControlError> {
        let mut client = self.client(node)?;
        self.finish(node, PREPARE_TIMEOUT, client.prepare_guest(request))
            .await
    }

    /// Guests and home jobs as that node sees them.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn processes(
        &self,
        node: NodeId,
        request: v1::ProcessesRequest,
    ) -> Result<v1::ProcessesReply, ControlError> {
        let mut client = self.client(node)?;
        self.finish(node, CALL_TIMEOUT, client.processes(request))
            .await
    }

    /// Asks a job's home to move it.
    ///
    /// # Errors
    /// `Refused` with home's reason.
    pub async fn request_move(
        &self,
        node: NodeId,
        request: v1::RequestMoveRequest,
    ) -> Result<(), ControlError> {
        let mut client = self.client(node)?;
        let reply = self.finish(node, PREPARE_TIMEOUT, client.request_move(request));
        reply.await.map(|_| ())
    }

    /// Tells a host whether a guest of ours is to stay there.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn lock_guest(
        &self,
        node: NodeId,
        request: v1::LockGuestRequest,
    ) -> Result<(), ControlError> {
        let mut client = self.client(node)?;
        let reply = self.finish(node, CALL_TIMEOUT, client.lock_guest(request));
        reply.await.map(|_| ())
    }

    /// Delivers a packet of the failure detector; answers what that made the other one say to us.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn swim(&self, node: NodeId, packet: Bytes) -> Result<SwimAnswers, ControlError> {
        let client = self.client(node)?;
        self.swim_by(node, client, packet).await
    }

    /// [`swim`](Self::swim) to a node that is said to be at `address`, on a connection of its own.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn greet(
        &self,
        node: NodeId,
        address: SocketAddr,
        packet: Bytes,
    ) -> Result<SwimAnswers, ControlError> {
        let client = ClusterClient::new(self.new_channel(node, address)?);
        self.swim_by(node, client, packet).await
    }

    async fn swim_by(
        &self,
        node: NodeId,
        mut client: ClusterClient<Channel>,
        packet: Bytes,
    ) -> Result<SwimAnswers, ControlError> {
        let packet = v1::SwimPacket {
            data: packet.to_vec(),
        };
        let reply = self.finish(node, SWIM_TIMEOUT, client.swim(packet)).await?;
        let nameless = || ControlError::Failed(format!("node {node} has shown no certificate"));
        Ok(SwimAnswers {
            from: self.shown.certified(node).ok_or_else(nameless)?,
            packets: reply.packets.into_iter().map(Bytes::from).collect(),
        })
    }

    /// Makes the next call to that node connect anew. After a partition the old connection would
    /// wait for TCP's retransmission, for seconds or minutes.
    pub fn forget(&self, node: NodeId) {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.remove(&node);
    }

    async fn finish<T>(
        &self,
        node: NodeId,
        limit: Duration,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, ControlError> {
        if let Ok(answer) = tokio::time::timeout(limit, call).await {
            return Ok(answer?.into_inner());
        }
        self.forget(node);
        let limit_ms = limit.as_millis();
        Err(ControlError::Unreachable(format!(
            "node {node} did not answer within {limit_ms} ms"
        )))
    }

    fn client(&self, node: NodeId) -> Result<ClusterClient<Channel>, ControlError> {
        let peer = self
            .directory
            .by_id(node)
            .ok_or_else(|| ControlError::NotFound(format!("there is no node {node}")))?;
        self.channel(node, peer.control).map(ClusterClient::new)
    }

    fn channel(&self, node: NodeId, address: SocketAddr) -> Result<Channel, ControlError> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, channel)) = channels.get(&node)
            && *known == address
        {
            return Ok(channel.clone());
        }
        let channel = self.new_channel(node, address)?;
        channels.insert(node, (address, channel.clone()));
        Ok(channel)
    }

    fn new_channel(&self, node: NodeId, address: SocketAddr) -> Result<Channel, ControlError> {
        // Not https: TLS is made below tonic.
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| ControlError::Failed(error.to_string()))?
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT);
        let to = (node, address);
        Ok(tls::channel(&endpoint, &self.identity, to, &self.shown))
    }
}
