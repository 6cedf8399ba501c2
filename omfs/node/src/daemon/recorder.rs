//! Writes down, every few seconds, who answers and how loaded this node is.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use omfs_cluster::directory::Directory;
use omfs_cluster::history::{History, LoadSample};
use omfs_service::peers::{Liveness, PeerDirectory};
use tokio::time::MissedTickBehavior;

use crate::jobs::Jobs;

/// How exact "last seen" is.
const PERIOD: Duration = Duration::from_secs(10);

/// Records until the task is dropped.
pub async fn run(history: Arc<History>, directory: Arc<Directory>, jobs: Arc<Jobs>) {
    let mut tick = tokio::time::interval(PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut changes = directory.subscribe();
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            changed = changes.changed() => if changed.is_err() { return },
        }
        let (history, directory) = (Arc::clone(&history), Arc::clone(&directory));
        let jobs = Arc::clone(&jobs);
        // sled writes to disk on the calling thread.
        let written = tokio::task::spawn_blocking(move || record(&history, &directory, &jobs));
        if written.await.is_err() {
            return;
        }
    }
}

fn record(history: &History, directory: &Directory, jobs: &Jobs) {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let unix_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    for peer in directory.peers() {
        // Suspicion comes within a second of the last answer.
        if matches!(peer.liveness, Liveness::Alive | Liveness::Suspect) {
            history.note_seen(peer.id, unix_ms);
        }
    }
    let myself = directory.myself().0;
    if let Some(load) = jobs.loads().into_iter().find(|load| load.node_id == myself) {
        history.note_load(LoadSample {
            minute: now.as_secs() / 60,
            load_milli: load.load_milli,
            guests: load.guests,
        });
    }
    history.flush();
}
