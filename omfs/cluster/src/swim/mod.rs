//! Drives the SWIM failure detector (`foca`, which does no I/O) and tells the [`Directory`].
//!
//! Timing: a dead node is noticed after at most one probe period, suspected at the end of it, and
//! declared dead one and a half seconds later, so within 2.5 s: a busy node that has used up its
//! share of the CPU may well be silent for a second. Those that wait for an answer need not wait
//! for this: a data connection knows within 1.5 s that nobody is there. A node that was declared
//! dead by mistake learns so from the first message it sends anybody, and comes back under a new
//! epoch.
//!
//! A member speaks for itself only: what it says of others is taken from its packets before the
//! detector sees them ([`filter`]), and makes this node ask those others itself ([`doubts`]).

mod doubts;
mod driver;
mod filter;
pub mod grpc;
pub mod member;

use std::fmt::Debug;
use std::num::{NonZeroU8, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use foca::PeriodicParams;
use tokio::sync::{mpsc, oneshot};

use super::directory::Directory;
pub use member::Member;
use omfs_pki::Certified;

/// Packets that wait for the driver; more are dropped, as a network would.
const QUEUE_PACKETS_MAX: usize = 1024;
/// Largest packet made or accepted.
pub const PACKET_BYTES_MAX: usize = 32 << 10;
/// How long a leaving node has to tell the others.
const LEAVE_DEADLINE: Duration = Duration::from_millis(500);

/// Carries packets to other nodes; may lose them, never waits.
pub trait Transport: Send + Sync + Debug {
    /// Sends a packet to a node's daemon.
    fn send(&self, to: &Member, packet: Bytes);

    /// Sends a packet to a node of which only `to.id` and a possible address are known.
    fn greet(&self, to: &Member, packet: Bytes) {
        self.send(to, packet);
    }
}

#[derive(Debug)]
enum Input {
    Packet(Received),
    Leave(oneshot::Sender<()>),
}

/// A packet, and where the packets that it makes us send to its sender go.
#[derive(Debug)]
struct Received {
    from: Certified,
    packet: Bytes,
    answer: Option<oneshot::Sender<Vec<Bytes>>>,
}

/// A running failure detector.
#[derive(Clone, Debug)]
pub struct Swim {
    inputs: mpsc::Sender<Input>,
}

impl Swim {
    /// Starts the detector as a task of the current tokio runtime.
    #[must_use]
    pub fn start(myself: Member, directory: Arc<Directory>, transport: Arc<dyn Transport>) -> Self {
        let (inputs, receiver) = mpsc::channel(QUEUE_PACKETS_MAX);
        let driver = driver::Driver::new(myself, directory, transport);
        tokio::spawn(driver.run(receiver));
        Self { inputs }
    }

    /// Takes a packet that came from node `from`, as its certificate says. Packets that claim
    /// another sender, and those that come faster than they can be handled, are dropped.
    pub fn receive(&self, from: &Certified, packet: Bytes) {
        self.put(from, packet, None);
    }

    /// [`receive`](Self::receive), and returns the packets for `from` that this one calls for,
    /// so that they need no connection of their own.
    pub async fn receive_and_answer(&self, from: &Certified, packet: Bytes) -> Vec<Bytes> {
        let (answer, answered) = oneshot::channel();
        self.put(from, packet, Some(answer));
        answered.await.unwrap_or_default()
    }

    fn put(&self, from: &Certified, packet: Bytes, answer: Option<oneshot::Sender<Vec<Bytes>>>) {
        match member::sender_of(&packet) {
            Ok(claimed) if claimed == from.node => {
                let _ = self.inputs.try_send(Input::Packet(Received {
                    from: from.clone(),
                    packet,
                    answer,
                }));
            }
            Ok(claimed) => tracing::debug!(
                "node {} sent a membership packet in the name of node {claimed}",
                from.node
            ),
            Err(error) => tracing::debug!("node {} sent no membership packet: {error}", from.node),
        }
    }

    /// Tells the others that this daemon ends, so that nobody waits for it.
    pub async fn leave(&self) {
        let (done, wait) = oneshot::channel();
        if self.inputs.send(Input::Leave(done)).await.is_ok() {
            let _ = tokio::time::timeout(LEAVE_DEADLINE, wait).await;
        }
    }
}

const fn at_least_one(number: usize) -> NonZeroUsize {
    match NonZeroUsize::new(number) {
        Some(number) => number,
        None => NonZeroUsize::MIN,
    }
}

fn timing() -> foca::Config {
    let every = |milliseconds, members| {
        Some(PeriodicParams {
            frequency: Duration::from_millis(milliseconds),
            num_members: at_least_one(members),
        })
    };
    foca::Config {
        probe_period: Duration::from_millis(500),
        probe_rtt: Duration::from_millis(200),
        num_indirect_probes: at_least_one(3),
        max_transmissions: NonZeroU8::new(10).unwrap_or(NonZeroU8::MIN),
        suspect_to_down_after: Duration::from_millis(1500),
        // One entry per node that ever joined: never forgotten, or it could not be greeted.
        remove_down_after: None,
        max_packet_size: at_least_one(PACKET_BYTES_MAX),
        notify_down_members: true,
        periodic_announce: every(10_000, 1),
        // The driver greets the dead itself.
        periodic_announce_to_down_members: None,
        periodic_gossip: every(200, 3),
    }
}

#[cfg(test)]
mod forged_tests;
#[cfg(test)]
mod tests;
