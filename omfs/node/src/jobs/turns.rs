//! Whose turn it is to have processes examined: reading /proc of a large process takes long, and
//! every user may ask for it. One user's requests wait for each other before they wait for others'.

use std::sync::{Arc, Mutex, PoisonError};

use omfs_cluster::control::Caller;
use omfs_limits::bounded::BoundedMap;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Examinations of one user at the same time,
const PER_USER: usize = 1;
/// of all users together,
const USERS: usize = 3;
/// of the node itself, for the balancer,
const NODE: usize = 2;
/// and for other nodes.
const OTHERS: usize = 1;
/// Users that are remembered.
const USERS_MAX: usize = 1024;

/// See the module's documentation.
#[derive(Debug)]
pub struct Turns {
    users: Mutex<BoundedMap<u32, Arc<Semaphore>>>,
    of_users: Arc<Semaphore>,
    of_node: Arc<Semaphore>,
    of_others: Arc<Semaphore>,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            users: Mutex::new(BoundedMap::new(USERS_MAX)),
            of_users: Arc::new(Semaphore::new(USERS)),
            of_node: Arc::new(Semaphore::new(NODE)),
            of_others: Arc::new(Semaphore::new(OTHERS)),
        }
    }
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub struct Turn {
    _permits: Vec<OwnedSemaphorePermit>,
}

impl Turns {
    /// Does something that blocks when it is the caller's turn; `None` is the node itself.
    pub async fn run<T>(&self, caller: Option<Caller>, work: impl FnOnce() -> T) -> T {
        let _turn = self.take(caller).await;
        blocking(work)
    }

    /// Does something that blocks, for another node.
    pub async fn run_for_others<T>(&self, work: impl FnOnce() -> T) -> T {
        let _turn = self.of_others.acquire().await;
        blocking(work)
    }

    /// Waits for the caller's turn.
    async fn take(&self, caller: Option<Caller>) -> Turn {
        let queues = match caller {
            Some(caller) => vec![self.of_user(caller.uid), Arc::clone(&self.of_users)],
            None => vec![Arc::clone(&self.of_node)],
        };
        let mut permits = Vec::with_capacity(queues.len());
        for queue in queues {
            // No semaphore here is ever closed.
            permits.extend(queue.acquire_owned().await.ok());
        }
        Turn { _permits: permits }
    }

    fn of_user(&self, uid: u32) -> Arc<Semaphore> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = users.get_or_insert_with(&uid, || Arc::new(Semaphore::new(PER_USER)));
        Arc::clone(queue)
    }
}

/// Blocks, while another thread takes over the runtime's other tasks.
pub fn blocking<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    fn user(uid: u32) -> Option<Caller> {
        Some(Caller {
            uid,
            gid: uid,
            pid: None,
        })
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_users_flood_leaves_turns_for_others_and_for_the_node() {
        let turns = Arc::new(Turns::default());
        let (running, peak) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut flood = tokio::task::JoinSet::new();
        for _ in 0..50 {
            let (turns, running, peak) = (turns.clone(), running.clone(), peak.clone());
            flood.spawn(async move {
                let work = || {
                    let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                    peak.fetch_max(now, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(20));
                    running.fetch_sub(1, Ordering::SeqCst);
                };
                turns.run(user(1000), work).await;
            });
        }
        // One of them is under way, and nobody else waits for the others.
        turns.run(user(1001), || ()).await;
        turns.run(None, || ()).await;
        assert!(!flood.is_empty());
        while flood.join_next().await.is_some() {}
        assert_eq!(peak.load(Ordering::SeqCst), PER_USER);
    }
}
