//! `/mfs/.omfs/*`: what this node knows, as JSON, for scripts that have no access to the socket.

use std::sync::Arc;

use omfs_client::StatusFiles;
use omfs_cluster::directory::Directory;
use omfs_service::peers::{Liveness, PeerDirectory};
use serde_json::json;

use super::files::FilesContext;
use crate::jobs::Jobs;

const NAMES: [&str; 3] = ["cluster", "load", "nodes"];

/// Implements [`StatusFiles`] from memory.
#[derive(Debug)]
pub struct Status {
    cluster: String,
    directory: Arc<Directory>,
    jobs: Arc<Jobs>,
}

impl Status {
    /// For a mount of this node.
    pub fn new(context: &FilesContext) -> Self {
        Self {
            cluster: context.identity.cluster().to_string(),
            directory: Arc::clone(&context.directory),
            jobs: Arc::clone(&context.jobs),
        }
    }

    fn cluster(&self) -> serde_json::Value {
        let (guests, away) = self.jobs.counts();
        json!({
            "cluster": self.cluster,
            "id": self.directory.myself().0,
            "version": env!("CARGO_PKG_VERSION"),
            "guests": guests,
            "away": away,
        })
    }

    fn nodes(&self) -> serde_json::Value {
        let peers = self.directory.peers().into_iter();
        peers
            .map(|peer| {
                json!({
                    "id": peer.id.0,
                    "name": peer.name,
                    "state": state_word(peer.liveness),
                    "address": peer.control.to_string(),
                    "data_address": peer.data.to_string(),
                })
            })
            .collect()
    }

    fn load(&self) -> serde_json::Value {
        let loads = self.jobs.loads().into_iter();
        loads
            .map(|load| {
                json!({
                    "id": load.node_id,
                    "age_ms": load.age_ms,
                    "load": f64::from(load.load_milli) / 1000.0,
                    "cpus": f64::from(load.cpus_milli) / 1000.0,
                    "speed": load.speed,
                    "mem_free_bytes": load.mem_free_bytes,
                    "guests": load.guests,
                })
            })
            .collect()
    }
}

impl StatusFiles for Status {
    fn names(&self) -> Vec<String> {
        NAMES.map(str::to_owned).to_vec()
    }

    fn content(&self, name: &str) -> Option<Vec<u8>> {
        let value = match name {
            "cluster" => self.cluster(),
            "load" => self.load(),
            "nodes" => self.nodes(),
            _ => return None,
        };
        let mut text = serde_json::to_vec_pretty(&value).ok()?;
        text.push(b'\n');
        Some(text)
    }
}

/// How a node's state is written everywhere.
pub fn state_word(liveness: Liveness) -> &'static str {
    match liveness {
        Liveness::Myself => "self",
        Liveness::Alive => "alive",
        Liveness::Suspect => "suspect",
        Liveness::Dead => "dead",
    }
}
