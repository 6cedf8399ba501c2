//! The thread that senses, gossips and decides (docs/balancing.md).

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use loadbal::balancer::{NodeSample, Outcome};
use loadbal::decide::{Candidate, Move};
use loadbal::load::ProcessKey;
use loadbal::sensors::{ProcessSample, Processes, Roots, Sensors};
use migrator::capture::identity;
use omfs_authz::process::may_move_by_itself;
use omfs_cluster::control::ControlError;
use omfs_service::peers::Liveness;
use proto::ids::{NodeId, Pid};
use proto::v1;
use tokio::runtime::Handle;

use super::moves::{self, MoveError, Reporter, Wish};
use super::own_pid;
use super::registry::{Entry, GuestKey, is_away};
use super::shared::{Marked, Shared};

/// A process' environment is read again after this time: it may have executed another program.
const MARK_VALID: Duration = Duration::from_secs(5);
/// Processes younger than this are not asked for their mark: most end before they matter.
const MARK_AGE_MIN: Duration = Duration::from_secs(1);
/// Candidates of one decision, those that want most of a CPU first.
const CANDIDATES_MAX: usize = 64;
/// A guest that home agreed to move must be gone within this time.
const GUEST_LEAVES_MAX: Duration = Duration::from_secs(60);

/// The running thread.
#[derive(Debug)]
pub struct Thread {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Thread {
    /// Starts it; to be called within a tokio runtime, which carries out what is decided.
    ///
    /// # Errors
    /// No thread, or no /proc.
    pub fn start(shared: Arc<Shared>) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let runtime = Handle::current();
        let mut senses = Senses::new()?;
        let stopped = Arc::clone(&stop);
        let step = shared.context.config.balance.interval_ms.duration();
        let run = move || {
            while !stopped.load(Ordering::Relaxed) {
                let next = Instant::now() + step;
                senses.step(&shared, &runtime);
                thread::park_timeout(next.saturating_duration_since(Instant::now()));
            }
        };
        let thread = thread::Builder::new().name("balancer".into()).spawn(run)?;
        Ok(Self { stop, thread })
    }

    /// Tells it to end, without waiting for it.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.stop();
    }
}

#[derive(Debug)]
struct Senses {
    sensors: Sensors,
    processes: Processes,
    marks: HashMap<ProcessKey, (Option<String>, Instant)>,
}

impl Senses {
    fn new() -> io::Result<Self> {
        Ok(Self {
            sensors: Sensors::new(Roots::default())?,
            processes: Processes::new(Roots::default()).without_threads_of(own_pid()),
            marks: HashMap::new(),
        })
    }

    fn step(&mut self, shared: &Arc<Shared>, runtime: &Handle) {
        shared.refresh();
        let sampled = self.sample();
        let now = shared.now();
        let sample = self.node_sample(shared, &sampled);
        {
            let mut balancer = shared.balancer();
            let (alive, dead) = members(shared);
            balancer.set_members(alive, dead);
            balancer.observe(now, &sample);
        }
        shared.set_sampled(sampled.clone());
        gossip(shared, runtime);
        if shared.context.config.balance.enabled {
            let candidates = self.candidates(shared, &sampled);
            let moves = shared.balancer().decide(now, &candidates);
            for decided in moves {
                runtime.spawn(carry_out(Arc::clone(shared), decided));
            }
        }
    }

    fn sample(&mut self) -> Vec<Marked> {
        let samples = self.processes.sample();
        let keys: HashSet<ProcessKey> = samples.iter().map(|sample| sample.key).collect();
        self.marks.retain(|key, _| keys.contains(key));
        let marked = samples.into_iter().map(|sample| Marked {
            mark: self.mark(&sample),
            sample,
        });
        marked.collect()
    }

    fn mark(&mut self, sample: &ProcessSample) -> Option<String> {
        if sample.age < MARK_AGE_MIN {
            return None;
        }
        let processes = &self.processes;
        let read = || (processes.mark(sample.key.pid), Instant::now());
        let known = self.marks.entry(sample.key).or_insert_with(read);
        let idle = sample.cpus == 0.0 && sample.runnable == 0;
        let valid = if idle { MARK_VALID * 6 } else { MARK_VALID };
        if known.1.elapsed() > valid {
            *known = read();
        }
        known.0.clone()
    }

    fn node_sample(&mut self, shared: &Shared, sampled: &[Marked]) -> NodeSample {
        let guests = shared.registry.guests();
        let hosted: HashSet<i32> = guests.iter().map(|(_, one)| one.state.host_pid).collect();
        let overhead = overhead(shared, &guests);
        let counted = sampled
            .iter()
            .filter(|one| !overhead.contains(&one.sample.key.pid));
        let observations = counted
            .map(|one| one.sample.observation(hosted.contains(&one.sample.key.pid)))
            .collect();
        let local = |one: &&Marked| {
            one.mark.as_deref() == Some("balance") && !hosted.contains(&one.sample.key.pid)
        };
        let local_jobs = sampled.iter().filter(local).count();
        NodeSample {
            capacity: self.sensors.read().capacity,
            observations,
            guests: guests
                .iter()
                .filter(|(_, entry)| entry.state.host_pid > 0)
                .map(|((home, pid), _)| (*home, Pid(*pid)))
                .collect(),
            local_jobs: u32::try_from(local_jobs).unwrap_or(u32::MAX),
        }
    }

    /// Marked jobs of this node that are at home, and marked guests.
    fn candidates(&self, shared: &Shared, sampled: &[Marked]) -> Vec<Candidate> {
        let guests = shared.registry.guests();
        let by_process: HashMap<i32, &(GuestKey, Entry)> = guests
            .iter()
            .map(|guest| (guest.1.state.host_pid, guest))
            .collect();
        let overhead = overhead(shared, &guests);
        let mut found = Vec::new();
        let pressed = shared.balancer().is_pressed();
        let locks = &shared.locks;
        for one in sampled {
            let pid = one.sample.key.pid;
            if one.mark.as_deref() != Some("balance") || overhead.contains(&pid) {
                continue;
            }
            match by_process.get(&pid) {
                Some((key, _)) if locks.holds_guest(*key) && !pressed => {}
                Some((key, entry)) => found.push(guest_candidate(*key, entry, one)),
                None if locks.holds(one.sample.key) => {}
                None => found.push(local_candidate(shared, one)),
            }
        }
        self.measure(shared, found)
    }

    /// Fills in what is dear to know, for those that may matter only.
    fn measure(&self, shared: &Shared, mut found: Vec<Candidate>) -> Vec<Candidate> {
        {
            let balancer = shared.balancer();
            let least = balancer.tuning().demand_min;
            for candidate in &mut found {
                candidate.demand = balancer.demand(candidate.key).mean;
            }
            found.retain(|candidate| candidate.demand >= least);
        }
        found.retain(|candidate| !shared.is_moving(candidate.pid.0));
        found.sort_by(|a, b| b.demand.total_cmp(&a.demand));
        let mut found: Vec<Candidate> = found
            .into_iter()
            .filter(|candidate| candidate.home != shared.me() || may_leave(shared, candidate))
            .take(CANDIDATES_MAX)
            .collect();
        for candidate in &mut found {
            candidate.memory = self
                .processes
                .private_memory(candidate.key.pid)
                .unwrap_or(0);
        }
        found
    }
}

/// Whether a job at home may leave without a user's order; of a guest its home says.
fn may_leave(shared: &Shared, candidate: &Candidate) -> bool {
    let root_jobs = shared.context.config.balance.root_jobs;
    let expected = identity::expected(candidate.key.pid);
    expected.is_ok_and(|found| {
        found.process == candidate.key && may_move_by_itself(&found.credentials, root_jobs).is_ok()
    })
}

fn local_candidate(shared: &Shared, one: &Marked) -> Candidate {
    let moved = shared.moved(one.sample.key);
    Candidate {
        key: one.sample.key,
        pid: Pid(one.sample.key.pid),
        home: shared.me(),
        demand: 0.0,
        memory: 0,
        age: one.sample.age,
        resident: moved.map_or(one.sample.age, |moved| moved.at.elapsed()),
        automatic_moves: moved.map_or(0, |moved| moved.count),
    }
}

fn guest_candidate((home, pid): GuestKey, entry: &Entry, one: &Marked) -> Candidate {
    Candidate {
        key: one.sample.key,
        pid: Pid(pid),
        home,
        demand: 0.0,
        memory: 0,
        age: one.sample.age,
        resident: entry.since.elapsed(),
        automatic_moves: entry.state.moves.max(1),
    }
}

/// Processes that are no load of their own: the daemon, keepers, and parked deputies.
fn overhead(shared: &Shared, guests: &[(GuestKey, Entry)]) -> HashSet<i32> {
    let mut pids: HashSet<i32> = HashSet::new();
    pids.insert(own_pid());
    for entry in shared.registry.jobs() {
        pids.insert(entry.state.keeper_pid);
        if is_away(&entry.state) {
            pids.insert(entry.state.pid);
        }
    }
    pids.extend(guests.iter().map(|(_, entry)| entry.state.keeper_pid));
    pids
}

fn members(shared: &Shared) -> (Vec<NodeId>, Vec<NodeId>) {
    let (mut alive, mut dead) = (Vec::new(), Vec::new());
    for peer in shared.context.directory.peers() {
        match peer.liveness {
            Liveness::Myself => {}
            Liveness::Alive | Liveness::Suspect => alive.push(peer.id),
            Liveness::Dead => dead.push(peer.id),
        }
    }
    (alive, dead)
}

fn gossip(shared: &Arc<Shared>, runtime: &Handle) {
    let (peer, message) = {
        let mut balancer = shared.balancer();
        let Some(peer) = balancer.gossip_peer() else {
            return;
        };
        (peer, balancer.message(shared.now()))
    };
    let shared = Arc::clone(shared);
    runtime.spawn(async move {
        match shared.context.clients.gossip(peer, message).await {
            Ok(answer) => shared.balancer().receive(shared.now(), &answer),
            Err(error) => tracing::trace!("gossip with {peer}: {error}"),
        }
    });
}

async fn carry_out(shared: Arc<Shared>, decided: Move) {
    let (pid, target) = (decided.pid, decided.target);
    tracing::debug!(
        "{pid} of {} to {target}: {}",
        decided.home,
        decided.reason.as_str()
    );
    let outcome = if decided.home == shared.me() {
        send(&shared, &decided).await
    } else {
        ask_home(&shared, &decided).await
    };
    let now = shared.now();
    shared
        .balancer()
        .finished(now, decided.key, target, outcome);
}

async fn send(shared: &Arc<Shared>, decided: &Move) -> Outcome {
    let wish = Wish {
        pid: decided.pid.0,
        target: decided.target.to_string(),
        caller: None,
        believed: Some(decided.believed),
    };
    match moves::move_job(shared, &wish, &Reporter::silent(wish.pid)).await {
        Ok(_) => Outcome::Moved,
        Err(MoveError::Refused(_) | MoveError::Control(ControlError::Unreachable(_))) => {
            Outcome::Refused
        }
        Err(MoveError::Failed(_)) => Outcome::Failed,
        Err(MoveError::Cantmove(_) | MoveError::Control(_)) => Outcome::Cantmove,
    }
}

async fn ask_home(shared: &Arc<Shared>, decided: &Move) -> Outcome {
    let target = if decided.target == decided.home {
        "home".to_owned()
    } else {
        decided.target.to_string()
    };
    let guest = shared.registry.guest((decided.home, decided.pid.0));
    let request = v1::RequestMoveRequest {
        pid: decided.pid.0,
        start_ticks: guest.map_or(0, |guest| guest.state.start_ticks),
        target,
        reason: decided.reason.as_str().to_owned(),
        must_leave: shared.balancer().is_pressed(),
    };
    match shared
        .context
        .clients
        .request_move(decided.home, request)
        .await
    {
        Ok(()) => left(shared, (decided.home, decided.pid.0)).await,
        Err(ControlError::Refused(_) | ControlError::Unreachable(_)) => Outcome::Refused,
        Err(ControlError::Failed(_)) => Outcome::Failed,
        Err(_) => Outcome::Cantmove,
    }
}

/// Waits until a guest has left.
async fn left(shared: &Shared, guest: GuestKey) -> Outcome {
    let until = Instant::now() + GUEST_LEAVES_MAX;
    while Instant::now() < until {
        if !shared
            .registry
            .guests()
            .iter()
            .any(|(key, _)| *key == guest)
        {
            return Outcome::Moved;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Outcome::Failed
}
