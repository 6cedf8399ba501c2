//! Which nodes may act for this node's jobs: what the owner knows by itself, whatever peers say.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use omfs_authz::guest::Ids;
use proto::ids::NodeId;
use proto::v1::Caller;

use super::guest_ids::DeputyIds;
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
    deputies: DeputyIds,
    /// When a refusal was logged last, and how many were not since.
    logged: Mutex<(Option<Instant>, u64)>,
}

impl Hosts {
    pub fn new(jobs: Arc<dyn JobHosts>) -> Self {
        Self {
            jobs,
            deputies: DeputyIds::default(),
            logged: Mutex::default(),
        }
    }

    /// The ids of a caller that is a guest of this node, as its peer says: the deputy's, if the job
    /// is at the peer and has what the request claims.
    ///
    /// # Errors
    /// `EPERM` otherwise.
    pub fn guest_ids(&self, peer: &SessionPeer, caller: &Caller) -> Result<Ids, Errno> {
        let pid = caller.guest_pid;
        self.check(peer, pid, "the rights of a guest")?;
        let granted = self.deputies.of_request(pid, caller);
        granted.ok_or_else(|| {
            let (uid, gid) = (caller.uid, caller.gid);
            let wanted = format!("to act as uid {uid}, gid {gid}");
            self.refused(peer, &format!("process {pid} has other ids"), &wanted)
        })
    }

    /// Whether the peer may have what belongs to a job.
    ///
    /// # Errors
    /// `EPERM` when the job is not at the peer.
    pub fn check(&self, peer: &SessionPeer, pid: i32, wanted: &str) -> Result<(), Errno> {
        if peer.is_local || self.jobs.is_host(pid, peer.node) {
            return Ok(());
        }
        Err(self.refused(peer, &format!("process {pid} is not there"), wanted))
    }

    /// The error for a peer that asks for what it has no right to; a line in the log.
    pub fn refused(&self, peer: &SessionPeer, reason: &str, wanted: &str) -> Errno {
        if let Some(unlogged) = self.may_log() {
            tracing::warn!(
                "refused node {}: {reason}, but it wants {wanted} \
                 ({unlogged} more such requests since the last line)",
                peer.node
            );
        }
        Errno(libc::EPERM)
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

    /// This process is a job that is at node 2.
    #[derive(Debug)]
    struct ThisOneAtTwo;

    fn own_pid() -> i32 {
        i32::try_from(std::process::id()).unwrap()
    }

    impl JobHosts for ThisOneAtTwo {
        fn is_host(&self, pid: i32, node: NodeId) -> bool {
            (pid, node) == (own_pid(), NodeId(2))
        }
    }

    fn guest(node: u32, guest_pid: i32, uid: u32) -> Result<Ids, Errno> {
        let hosts = Hosts::new(Arc::new(ThisOneAtTwo));
        let peer = SessionPeer {
            node: NodeId(node),
            is_local: false,
        };
        let caller = Caller {
            from_home_guest: true,
            guest_pid,
            uid,
            gid: nix::unistd::getegid().as_raw(),
            ..Caller::default()
        };
        hosts.guest_ids(&peer, &caller)
    }

    #[test]
    fn only_where_a_job_is_it_is_a_guest_and_only_with_its_own_ids() {
        let own = nix::unistd::geteuid().as_raw();
        assert_eq!(guest(2, own_pid(), own).map(|ids| ids.uid), Ok(own));
        for (node, pid) in [(3, own_pid()), (2, 1), (2, 0)] {
            assert_eq!(guest(node, pid, own), Err(Errno(libc::EPERM)));
        }
        assert_eq!(guest(2, own_pid(), own + 4711), Err(Errno(libc::EPERM)));
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
