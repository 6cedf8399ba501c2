//! Jobs that are away, guests that are here, and the balancer.
//!
//! * [`shared`] — the state behind [`Jobs`].
//! * `moves` — a move as home carries it out; `host` — guests as their host sees them.
//! * `balance` — the thread that senses, gossips and decides (docs/balancing.md).
//! * `keeper` — starts shims and supervisors and talks to them; `registry` — what they say.
//! * `subject` — what a PID is, and whether it may be moved.
//! * `list` — what `omfs ps` shows.
//! * `locks` — jobs that were placed by hand; `policy_store` — the admin's switches on disk.
//! * `guest_table` — which local processes are guests, for the filesystem; `host_table` — where
//!   this node's jobs are, for the export.
//! * `guest_cgroup` — what guests' CPU time and memory are counted and weighed in.
//! * `reception` — who connects to a supervisor.
//! * `turns` — one user's requests do not keep others' waiting.
//! * `shim_main`, `supervisor_main` — the hidden subcommands.

mod balance;
mod child;
mod guest_cgroup;
mod guest_table;
mod host;
mod host_table;
mod keeper;
mod keeper_files;
mod list;
mod locks;
mod moves;
mod policy_store;
mod reception;
mod registry;
mod report;
mod shared;
mod shim_main;
mod subject;
mod supervisor_main;
mod turns;

use std::sync::Arc;

use loadbal::balancer::Policy;
use omfs_cluster::control::{Caller, ControlClients, ControlError};
use omfs_config::Config;
use omfs_pki::TlsIdentity;
use omfs_service::peers::PeerDirectory;
use proto::ids::{NodeId, ProcessId};
use proto::v1;
use tokio::sync::mpsc;

pub use child::name_process;
#[allow(unused_imports)]
pub use guest_table::GuestTable;
pub use keeper::bind as bind_private;
use moves::{Reporter, Wish};
use shared::Shared;
pub use shim_main::{ShimArgs, shim_main};
pub use supervisor_main::{SupervisorArgs, supervisor_main};

/// This process, which is the daemon.
fn own_pid() -> i32 {
    i32::try_from(std::process::id()).unwrap_or(0)
}

/// What the daemon gives to this module.
#[derive(Clone, Debug)]
pub struct JobsContext {
    /// The node's settings.
    pub config: Arc<Config>,
    /// Where the settings were read, for shims and supervisors; `None` for the default.
    pub config_path: Option<std::path::PathBuf>,
    /// Name of this node.
    pub here: String,
    /// Who is in the cluster.
    pub directory: Arc<dyn PeerDirectory>,
    /// Calls to other nodes.
    pub clients: Arc<ControlClients>,
    /// This node's certificate.
    #[allow(dead_code)]
    pub identity: TlsIdentity,
}

/// Where steps of moves are told; the receiver may be gone.
pub type Progress = mpsc::Sender<v1::MigrateProgress>;

/// The jobs of this node.
#[derive(Debug)]
pub struct Jobs {
    shared: Arc<Shared>,
    balancer: balance::Thread,
}

impl Jobs {
    /// Finds the shims and supervisors that outlived an earlier daemon, and starts the balancer.
    ///
    /// # Errors
    /// The run directory cannot be used.
    pub async fn start(context: JobsContext) -> anyhow::Result<Arc<Self>> {
        let shared = Arc::new(Shared::new(context)?);
        shared.refresh();
        let balancer = balance::Thread::start(Arc::clone(&shared))?;
        Ok(Arc::new(Self { shared, balancer }))
    }

    /// Moves one process; returns when it runs at its new place. The last progress is `done` or
    /// `failed`, also told there; only what could not even be tried is an error.
    pub async fn migrate(
        &self,
        caller: Caller,
        request: v1::MigrateRequest,
        progress: Progress,
    ) -> Result<(), ControlError> {
        let wish = Wish {
            pid: request.pid,
            target: request.target,
            caller: Some(caller),
            believed: None,
        };
        let reporter = Reporter::new(request.pid, progress);
        let moved = moves::move_job(&self.shared, &wish, &reporter).await;
        reporter.end(moved).await
    }

    /// Brings all processes of this node home; returns when they are here. Sets `local_stay`.
    pub async fn bring(&self, progress: Progress) -> Result<(), ControlError> {
        self.shared
            .change_policy(|policy| policy.local_stay = true)
            .await?;
        moves::bring(&self.shared, &progress).await
    }

    /// Sends all guests away; returns when they are gone. Sets `block`.
    pub async fn expel(&self, progress: Progress) -> Result<(), ControlError> {
        self.shared
            .change_policy(|policy| policy.block = true)
            .await?;
        host::expel(&self.shared, &progress).await
    }

    /// Jobs of this node that are away or marked, and guests here; with `all` every process of
    /// this node, and the other nodes' jobs and guests.
    pub async fn processes(&self, caller: Caller, all: bool) -> Vec<v1::Process> {
        let viewer = list::Viewer::User(caller);
        list::processes(&self.shared, viewer, all).await
    }

    /// What another node shows to one of its users.
    pub async fn processes_for(
        &self,
        from: NodeId,
        request: &v1::ProcessesRequest,
    ) -> Vec<v1::Process> {
        let peer = self.shared.context.directory.by_id(from);
        let name = peer.map(|peer| peer.name).unwrap_or_default();
        let viewer = list::Viewer::node(name, request);
        list::processes(&self.shared, viewer, false).await
    }

    /// Another node asks to send a guest here.
    pub async fn prepare_guest(
        &self,
        from: NodeId,
        request: v1::PrepareGuestRequest,
    ) -> Result<v1::PrepareGuestReply, ControlError> {
        host::prepare(&self.shared, from, &request).await
    }

    /// A host asks that one of our jobs be moved away from it.
    pub async fn request_move(
        &self,
        from: NodeId,
        request: v1::RequestMoveRequest,
    ) -> Result<(), ControlError> {
        moves::requested(&self.shared, from, &request).await
    }

    /// Another node's load window; answers ours.
    pub fn gossip(&self, _from: NodeId, window: v1::LoadWindow) -> v1::LoadWindow {
        let now = self.shared.now();
        let mut balancer = self.shared.balancer();
        balancer.receive(now, &window);
        balancer.message(now)
    }

    /// What is known of every node's load, this one's included.
    pub fn loads(&self) -> Vec<v1::LoadVector> {
        let now = self.shared.now();
        let balancer = self.shared.balancer();
        let own = balancer.vector();
        let all = balancer.others().chain(own.as_ref());
        all.map(|node| node.to_wire(now)).collect()
    }

    /// What the node allows now.
    pub fn policy(&self) -> v1::Policy {
        shared::policy_to_wire(self.shared.balancer().policy())
    }

    /// Changes what the node allows, for good.
    pub async fn set_policy(&self, wish: v1::PolicyRequest) -> Result<(), ControlError> {
        let change = move |policy: &mut Policy| {
            policy.stay = wish.stay.unwrap_or(policy.stay);
            policy.local_stay = wish.local_stay.unwrap_or(policy.local_stay);
            policy.block = wish.block.unwrap_or(policy.block);
            policy.quiet = wish.quiet.unwrap_or(policy.quiet);
        };
        self.shared.change_policy(change).await
    }

    /// Keeps a job where it is, or lets it move by itself again.
    pub async fn lock(&self, caller: Caller, pid: i32, locked: bool) -> Result<(), ControlError> {
        locks::change(&self.shared, caller, pid, locked).await
    }

    /// A guest's home says whether it is to stay here.
    pub fn lock_guest(&self, from: NodeId, request: v1::LockGuestRequest) {
        let told = ProcessId {
            pid: request.pid,
            start_ticks: request.start_ticks,
        };
        let guest = (from, request.pid);
        let other = |entry: registry::Entry| !entry.state.process().matches(told);
        if self.shared.registry.guest(guest).is_some_and(other) {
            tracing::debug!("node {from} tells of {told}, which is not the guest here");
            return;
        }
        self.shared.locks.set_guest(guest, request.locked);
    }

    /// Number of guests here, and of this node's jobs that are away.
    pub fn counts(&self) -> (u32, u32) {
        let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        (
            count(self.shared.registry.guests().len()),
            count(self.shared.registry.away().len()),
        )
    }

    /// This node's jobs that are away.
    pub fn away(&self) -> Vec<i32> {
        let away = self.shared.registry.away();
        away.iter().map(|entry| entry.state.pid).collect()
    }

    /// Which local processes are guests of whom.
    pub fn guest_table(&self) -> Arc<GuestTable> {
        Arc::clone(&self.shared.guests)
    }

    /// Whether the job `pid` of this node is at `node`, or on its way there.
    pub fn is_host(&self, pid: i32, node: NodeId) -> bool {
        let shared = &self.shared;
        if shared.hosts.is_host(pid, node) {
            return true;
        }
        // A move may have ended while no daemon was there to be told.
        shared.hosts.may_look() && {
            shared.refresh();
            shared.hosts.is_host(pid, node)
        }
    }

    /// The daemon ends; shims and supervisors go on.
    pub async fn shutdown(&self) {
        self.balancer.stop();
        self.shared.cgroup.remove_unused();
    }
}
