//! The state behind [`super::Jobs`].

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use loadbal::balancer::{Balancer, Policy};
use loadbal::load::ProcessKey;
use loadbal::sensors::ProcessSample;
use loadbal::tuning::Tuning;
use migrator::capture::identity;
use migrator::control::JobState;
use migrator::image::CpuImage;
use omfs_cluster::control::ControlError;
use omfs_limits::reservations::{Refusal, Reservations, Room};
use proto::ids::NodeId;
use proto::v1;

use super::JobsContext;
use super::guest_cgroup::GuestCgroup;
use super::guest_table::GuestTable;
use super::host_table::HostTable;
use super::locks::Locks;
use super::policy_store::PolicyStore;
use super::registry::{GuestKey, Registry};
use super::turns::Turns;

/// The balancer's clock starts here, so that what was measured before the daemon started has a
/// time too.
const CLOCK_START: Duration = Duration::from_secs(3600);

/// Guests of one node that were promised a place and have not come: each is a waiting process.
const ARRIVING_PER_NODE_MAX: usize = 16;
/// A supervisor that was killed is gone within this time, on a busy machine too.
const SUPERVISOR_ENDS_MAX: Duration = Duration::from_secs(5);
/// How often it is looked whether a move has ended.
const CLAIM_AGAIN: Duration = Duration::from_millis(10);

/// What is remembered of a process of this node that was moved.
#[derive(Clone, Copy, Debug)]
pub struct Moved {
    /// Completed moves, returns included.
    pub count: u32,
    /// When the last one ended.
    pub at: Instant,
    /// CPU time it has used away from home, in milliseconds: all that its shims have told of.
    pub away_cpu_ms: u64,
    /// The process of the shim that told last.
    told_by: i32,
}

impl Moved {
    fn add_cpu(&mut self, last: &JobState) {
        if self.told_by != last.keeper_pid {
            self.told_by = last.keeper_pid;
            self.away_cpu_ms += last.cpu_time_ms;
        }
    }

    /// What it has used away before a shim was started that has now this to say.
    pub fn cpu_before_ms(&self, shim: &JobState) -> u64 {
        if self.told_by == shim.keeper_pid {
            return self.away_cpu_ms.saturating_sub(shim.cpu_time_ms);
        }
        self.away_cpu_ms
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Shared {
    /// What the daemon gave us.
    pub context: JobsContext,
    /// What shims and supervisors say.
    pub registry: Registry,
    /// Where guests' CPU time and memory are counted.
    pub cgroup: Arc<GuestCgroup>,
    /// For the filesystem.
    pub guests: Arc<GuestTable>,
    /// For the export.
    pub hosts: Arc<HostTable>,
    /// This node's CPU, as a program sees it.
    pub cpu: CpuImage,
    /// Jobs that were placed by hand.
    pub locks: Locks,
    /// Whose turn it is to have processes examined.
    pub turns: Turns,
    arriving: Mutex<Reservations<GuestKey, NodeId>>,
    /// Supervisors of guests that were promised a place.
    supervisors: Mutex<HashMap<GuestKey, OwnedFd>>,
    balancer: Mutex<Balancer>,
    policy_store: PolicyStore,
    started: Instant,
    moving: Mutex<HashSet<i32>>,
    moved: Mutex<HashMap<ProcessKey, Moved>>,
    sampled: Mutex<Vec<Marked>>,
}

/// A process of the last sample with its mark.
#[derive(Clone, PartialEq, Debug)]
pub struct Marked {
    /// As sampled.
    pub sample: ProcessSample,
    /// Value of `OMFS_JOB`.
    pub mark: Option<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Makes the directories and an idle balancer.
    ///
    /// # Errors
    /// The run directory cannot be written, or /proc is unlike any we know.
    pub fn new(context: JobsContext) -> anyhow::Result<Self> {
        let run_dir: PathBuf = context.config.node.run_dir.to_path_buf();
        let registry = Registry::open(&run_dir, &context.here)
            .with_context(|| format!("cannot use {}", run_dir.display()))?;
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        let millis = since_epoch.unwrap_or_default().as_millis();
        let sequence = u64::try_from(millis).unwrap_or(u64::MAX / 2);
        let mut balancer = Balancer::new(
            context.directory.myself(),
            tuning(&context),
            rand::random(),
            sequence,
        );
        let policy_store = PolicyStore::new(&context.config.node.state_dir);
        let switched = policy_store.load();
        balancer.set_policy(switched.unwrap_or_else(|| start_policy(&context)));
        let locks =
            Locks::open(&run_dir).with_context(|| format!("cannot use {}", run_dir.display()))?;
        Ok(Self {
            locks,
            policy_store,
            registry,
            cgroup: Arc::new(GuestCgroup::find(
                context.config.balance.guests_weight_percent,
            )),
            guests: Arc::default(),
            hosts: Arc::default(),
            cpu: migrator::image::cpu::here().context("cannot read the CPU's features")?,
            balancer: Mutex::new(balancer),
            started: Instant::now(),
            turns: Turns::default(),
            arriving: Mutex::default(),
            supervisors: Mutex::default(),
            moving: Mutex::default(),
            moved: Mutex::default(),
            sampled: Mutex::default(),
            context,
        })
    }

    /// The balancer's clock.
    pub fn now(&self) -> Duration {
        CLOCK_START + self.started.elapsed()
    }

    /// The balancer; never to be held across an await.
    pub fn balancer(&self) -> MutexGuard<'_, Balancer> {
        lock(&self.balancer)
    }

    /// This node's id.
    pub fn me(&self) -> NodeId {
        self.context.directory.myself()
    }

    /// Changes the admin's switches, and keeps them over restarts.
    ///
    /// # Errors
    /// They hold, but could not be written to disk.
    pub async fn change_policy(
        self: &Arc<Self>,
        change: impl FnOnce(&mut Policy),
    ) -> Result<(), ControlError> {
        let policy = {
            let mut balancer = self.balancer();
            let mut policy = balancer.policy();
            change(&mut policy);
            balancer.set_policy(policy);
            policy
        };
        tracing::info!(?policy, "policy");
        let store = self.policy_store.clone();
        let saved = tokio::task::spawn_blocking(move || store.save(policy)).await;
        let saved = saved.map_err(|error| error.to_string());
        saved
            .and_then(|result| result.map_err(|error| error.to_string()))
            .map_err(|reason| {
                ControlError::Failed(format!("it holds only until the daemon ends: {reason}"))
            })
    }

    /// Reads what shims and supervisors wrote, and tells those who need to know.
    pub fn refresh(&self) {
        let changes = self.registry.refresh();
        self.guests.set_keepers(self.registry.guest_keepers());
        self.hosts.update(|| self.places());
        // Whose guest has come ends by itself.
        lock(&self.supervisors).retain(|guest, _| self.registry.guest(*guest).is_none());
        // Those that were told to are noted by who told them.
        for pid in changes.came_home {
            if !self.is_moving(pid) {
                self.note_move(pid);
            }
        }
        for last in changes.at_home.iter().filter(|last| last.cpu_time_ms > 0) {
            self.remember(last.pid, |moved| moved.add_cpu(last));
        }
        for (home, pid) in changes.guests_gone {
            self.balancer().withdrawn(home, proto::ids::Pid(pid));
            self.locks.set_guest((home, pid), false);
        }
    }

    /// Where the jobs of this node are that are away.
    fn places(&self) -> HashMap<i32, NodeId> {
        let away = self.registry.away();
        if away.is_empty() {
            return HashMap::new();
        }
        let peers = self.context.directory.peers();
        let node = |name: &str| peers.iter().find(|peer| peer.name == name);
        away.iter()
            .filter_map(|entry| Some((entry.state.pid, node(&entry.state.place)?.id)))
            .collect()
    }

    /// Promises a guest its place, beside those that are here or on their way. It lasts until the
    /// answer is dropped, which is when its supervisor has ended.
    ///
    /// # Errors
    /// The limit that was reached.
    pub fn reserve(self: &Arc<Self>, guest: GuestKey) -> Result<Reserved, Refusal> {
        let balance = &self.context.config.balance;
        let total = balance.guests_max as usize;
        let room = Room {
            total,
            per_owner: total.min(balance.guests_per_node_max as usize),
            arriving_per_owner: total.clamp(1, ARRIVING_PER_NODE_MAX),
        };
        let here = self.registry.guests().into_iter();
        let here: HashMap<GuestKey, NodeId> = here.map(|(key, _)| (key, key.0)).collect();
        lock(&self.arriving).reserve(guest, guest.0, &here, &room)?;
        Ok(Reserved {
            shared: Arc::clone(self),
            guest,
        })
    }

    /// Notes which process, a child that nobody has waited for, waits for a guest that was promised
    /// a place.
    pub fn set_supervisor(&self, guest: GuestKey, pid: i32) {
        match omfs_sys::pidfd::open(pid) {
            Ok(process) => drop(lock(&self.supervisors).insert(guest, process)),
            Err(error) => tracing::warn!("the supervisor of {}-{}: {error}", guest.0, guest.1),
        }
    }

    /// Takes back the promise of a place to which no guest has come: its home asks anew, so nobody
    /// will. Waits until the supervisor has ended.
    pub async fn take_back(&self, guest: GuestKey) {
        let until = Instant::now() + SUPERVISOR_ENDS_MAX;
        loop {
            // One that has left is neither here nor gone until its supervisor was waited for.
            self.refresh();
            let is_here = self.registry.guest(guest).is_some();
            if is_here || !lock(&self.arriving).has(&guest) || Instant::now() >= until {
                return;
            }
            if let Some(process) = lock(&self.supervisors).remove(&guest)
                && let Err(error) = omfs_sys::pidfd::send_signal(process.as_fd(), libc::SIGKILL)
                && error.raw_os_error() != Some(libc::ESRCH)
            {
                tracing::warn!("the supervisor of {}-{}: {error}", guest.0, guest.1);
            }
            tokio::time::sleep(CLAIM_AGAIN).await;
        }
    }

    /// Claims a process for one move; `None` while another move of it is under way.
    pub fn claim(self: &Arc<Self>, pid: i32) -> Option<Claim> {
        lock(&self.moving).insert(pid).then(|| Claim {
            shared: Arc::clone(self),
            pid,
        })
    }

    /// As [`Self::claim`], waiting for another move to end.
    pub async fn claim_within(self: &Arc<Self>, pid: i32, limit: Duration) -> Option<Claim> {
        let deadline = Instant::now() + limit;
        loop {
            let claim = self.claim(pid);
            if claim.is_some() || Instant::now() >= deadline {
                return claim;
            }
            tokio::time::sleep(CLAIM_AGAIN).await;
        }
    }

    /// Whether a move of this process is under way.
    pub fn is_moving(&self, pid: i32) -> bool {
        lock(&self.moving).contains(&pid)
    }

    /// Remembers that a process of this node was moved just now.
    pub fn note_move(&self, pid: i32) {
        self.remember(pid, |moved| {
            moved.count = moved.count.saturating_add(1);
            moved.at = Instant::now();
        });
    }

    /// Changes what is remembered of a process of this node that has moved.
    fn remember(&self, pid: i32, change: impl FnOnce(&mut Moved)) {
        let Some(key) = self.key_of(pid) else {
            return;
        };
        let mut all = lock(&self.moved);
        change(all.entry(key).or_insert_with(|| Moved {
            count: 0,
            at: Instant::now(),
            away_cpu_ms: 0,
            told_by: 0,
        }));
    }

    /// What is remembered of a process' moves.
    pub fn moved(&self, key: ProcessKey) -> Option<Moved> {
        lock(&self.moved).get(&key).copied()
    }

    /// A living process of this node; also one that is too young for any sample.
    pub fn key_of(&self, pid: i32) -> Option<ProcessKey> {
        identity::process_id(pid).ok()
    }

    /// The processes of the last sample.
    pub fn sampled(&self) -> Vec<Marked> {
        lock(&self.sampled).clone()
    }

    /// Takes over a sample; what was remembered of processes that are gone is forgotten.
    pub fn set_sampled(&self, sampled: Vec<Marked>) {
        let keys: HashSet<ProcessKey> = sampled.iter().map(|one| one.sample.key).collect();
        // One that was started while the sample was taken is not in it.
        let lives = |key: ProcessKey| keys.contains(&key) || self.key_of(key.pid) == Some(key);
        lock(&self.moved).retain(|key, _| lives(*key));
        self.locks.retain(lives);
        *lock(&self.sampled) = sampled;
    }
}

/// A guest's place.
#[derive(Debug)]
pub struct Reserved {
    shared: Arc<Shared>,
    guest: GuestKey,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        lock(&self.shared.supervisors).remove(&self.guest);
        lock(&self.shared.arriving).release(&self.guest);
    }
}

/// One move of one process; dropping it lets the next one begin.
#[derive(Debug)]
pub struct Claim {
    shared: Arc<Shared>,
    pid: i32,
}

impl Drop for Claim {
    fn drop(&mut self) {
        lock(&self.shared.moving).remove(&self.pid);
    }
}

fn tuning(context: &JobsContext) -> Tuning {
    let balance = &context.config.balance;
    Tuning {
        step: balance.interval_ms.duration(),
        age_min: balance.min_age_ms.duration(),
        ..Tuning::default()
    }
}

fn start_policy(context: &JobsContext) -> Policy {
    let policy = context.config.policy;
    Policy {
        stay: policy.stay,
        local_stay: policy.lstay,
        block: policy.block,
        quiet: policy.quiet,
    }
}

/// The admin's switches as the admin API has them.
pub fn policy_to_wire(policy: Policy) -> v1::Policy {
    v1::Policy {
        stay: policy.stay,
        local_stay: policy.local_stay,
        block: policy.block,
        quiet: policy.quiet,
    }
}
