//! Which nodes may act for this node's jobs: what the owner knows by itself, whatever peers say.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use proto::ids::NodeId;
use proto::v1::FsRequest;

use super::{Errno, SessionPeer};

/// Refusals are logged at most this often: a peer must not fill the disk.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Knows where this node's jobs are.
pub trait JobHosts: Send + Sync + Debug {
    /// Whether the job `pid` of this node runs at `node`, or is being moved there just now.
    fn is_host(&self, pid: i32, node: NodeId) -> bool;
}

/// No process of this node is away.
#[derive(Clone, Copy, Debug)]
pub struct NoJobs;

impl JobHosts for NoJobs {
    fn is_host(&self, _pid: i32, _node: NodeId) -> bool {
        false
    }
}

/// Checks what peers claim.
#[derive(Debug)]
pub(super) struct Hosts {
    jobs: Arc<dyn JobHosts>,
    /// When a refusal was logged last, and how many were not since.
    logged: Mutex<(Option<Instant>, u64)>,
}

impl Hosts {
    pub fn new(jobs: Arc<dyn JobHosts>) -> Self {
        Self {
            jobs,
            logged: Mutex::default(),
        }
    }

    /// Whether the caller really can be a guest of this node, if the peer says that it is one.
    ///
    /// # Errors
    /// `EPERM` when the job is not at the peer.
    pub fn check_guest(&self, peer: &SessionPeer, request: &FsRequest) -> Result<(), Errno> {
        match &request.caller {
            Some(caller) if caller.from_home_guest => {
                self.check(peer, caller.guest_pid, "the rights of a guest")
            }
            _ => Ok(()),
        }
    }

    /// Whether the peer may have what belongs to a job.
    ///
    /// # Errors
    /// `EPERM` when the job is not at the peer.
    pub fn check(&self, peer: &SessionPeer, pid: i32, wanted: &str) -> Result<(), Errno> {
        if peer.is_local || self.jobs.is_host(pid, peer.node) {
            return Ok(());
        }
        if let Some(unlogged) = self.may_log() {
            tracing::warn!(
                "refused node {}: process {pid} is not there, but it wants {wanted} \
                 ({unlogged} more such requests since the last line)",
                peer.node
            );
        }
        Err(Errno(libc::EPERM))
    }

    fn may_log(&self) -> Option<u64> {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, unlogged) = &mut *logged;
        if last.is_some_and(|at| at.elapsed() < LOG_INTERVAL) {
            *unlogged += 1;
            return None;
        }
        *last = Some(Instant::now());
        Some(std::mem::take(unlogged))
    }
}

#[cfg(test)]
mod tests {
    use proto::v1::Caller;

    use super::*;

    #[derive(Debug)]
    struct SevenAtTwo;

    impl JobHosts for SevenAtTwo {
        fn is_host(&self, pid: i32, node: NodeId) -> bool {
            (pid, node) == (7, NodeId(2))
        }
    }

    fn guest(node: u32, is_local: bool, guest_pid: i32) -> Result<(), Errno> {
        let hosts = Hosts::new(Arc::new(SevenAtTwo));
        let peer = SessionPeer {
            node: NodeId(node),
            is_local,
        };
        let caller = Caller {
            from_home_guest: true,
            guest_pid,
            ..Caller::default()
        };
        let request = FsRequest {
            caller: Some(caller),
            op: None,
        };
        hosts.check_guest(&peer, &request)
    }

    #[test]
    fn only_where_a_job_is_it_is_a_guest() {
        assert_eq!(guest(2, false, 7), Ok(()));
        for (node, pid) in [(3, 7), (2, 8), (2, 0)] {
            assert_eq!(guest(node, false, pid), Err(Errno(libc::EPERM)));
        }
        assert_eq!(guest(1, true, 8), Ok(()), "this node itself");
    }

    #[test]
    fn a_flood_of_refusals_is_logged_once_a_second() {
        let hosts = Hosts::new(Arc::new(NoJobs));
        assert_eq!(hosts.may_log(), Some(0));
        assert_eq!(hosts.may_log(), None);
        hosts.logged.lock().unwrap().0 = Instant::now().checked_sub(LOG_INTERVAL);
        assert_eq!(hosts.may_log(), Some(1));
    }
}
