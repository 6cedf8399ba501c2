//! Carries the detector's packets as `Cluster.Swim` calls.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use proto::ids::NodeId;
use tokio::sync::{Semaphore, mpsc};

use super::{Member, Swim, Transport};
use crate::control::{ControlClients, SwimAnswers};

/// Packets that wait for one node; newer ones are dropped, since the detector repeats itself.
const OUTBOX_PACKETS_MAX: usize = 16;

/// Nodes greeted at one time at addresses that are hearsay.
const GREETINGS_MAX: usize = 8;

/// One outbox per node, so that a node that hangs delays nobody else's packets.
#[derive(Debug)]
pub struct GrpcTransport {
    clients: Arc<ControlClients>,
    outboxes: Mutex<HashMap<NodeId, mpsc::Sender<Bytes>>>,
    /// Where answers go; set once, since the detector and its transport need each other.
    swim: Arc<OnceLock<Swim>>,
    greetings: Arc<Semaphore>,
}

impl GrpcTransport {
    /// To be used within a tokio runtime.
    #[must_use]
    pub fn new(clients: Arc<ControlClients>) -> Self {
        Self {
            clients,
            outboxes: Mutex::default(),
            swim: Arc::default(),
            greetings: Arc::new(Semaphore::new(GREETINGS_MAX)),
        }
    }

    /// Says which detector takes the answers; before that they are dropped.
    pub fn answer_to(&self, swim: Swim) {
        let _ = self.swim.set(swim);
    }

    fn outbox(&self, node: NodeId) -> mpsc::Sender<Bytes> {
        let mut outboxes = self.outboxes.lock().unwrap_or_else(PoisonError::into_inner);
        let outbox = outboxes.entry(node).or_insert_with(|| {
            let (sender, receiver) = mpsc::channel(OUTBOX_PACKETS_MAX);
            let swim = Arc::clone(&self.swim);
            tokio::spawn(deliver(Arc::clone(&self.clients), swim, node, receiver));
            sender
        });
        outbox.clone()
    }
}

impl Transport for GrpcTransport {
    fn send(&self, to: &Member, packet: Bytes) {
        let _ = self.outbox(to.id).try_send(packet);
    }

    fn greet(&self, to: &Member, packet: Bytes) {
        let Ok(turn) = Arc::clone(&self.greetings).try_acquire_owned() else {
            return;
        };
        let (clients, swim) = (Arc::clone(&self.clients), Arc::clone(&self.swim));
        let (node, address) = (to.id, to.control);
        tokio::spawn(async move {
            let _turn = turn;
            match clients.greet(node, address, packet).await {
                Ok(answers) => hand_over(&swim, &answers),
                Err(error) => tracing::trace!("greeting node {node} at {address}: {error}"),
            }
        });
    }
}

fn hand_over(swim: &OnceLock<Swim>, answers: &SwimAnswers) {
    let Some(swim) = swim.get() else {
        return;
    };
    for packet in &answers.packets {
        swim.receive(&answers.from, packet.clone());
    }
}

async fn deliver(
    clients: Arc<ControlClients>,
    swim: Arc<OnceLock<Swim>>,
    node: NodeId,
    mut packets: mpsc::Receiver<Bytes>,
) {
    while let Some(packet) = packets.recv().await {
        match clients.swim(node, packet).await {
            Ok(answers) => hand_over(&swim, &answers),
            Err(error) => {
                tracing::trace!("membership packet to node {node}: {error}");
                // What waited behind it is as stale as the connection.
                while packets.try_recv().is_ok() {}
            }
        }
    }
}
