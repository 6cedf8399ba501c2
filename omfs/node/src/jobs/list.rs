//! What `omfs ps` shows.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use loadbal::sensors::{Processes, Roots};
use migrator::capture::{CantMove, CantMoveCode, eligibility, identity};
use migrator::control::{JobState, RunState};
use omfs_authz::process::{self, Caller, Credentials, Refusal, View};
use omfs_cluster::control;
use omfs_service::peers::Liveness;
use proto::v1::{Process, ProcessesRequest, Viewer as WireViewer};

use super::own_pid;
use super::registry::{Entry, is_away};
use super::shared::{Marked, Shared};
use super::subject::Subject;

/// Processes that are examined for one listing; beyond, what keeps them from moving is not shown.
const EXAMINED_MAX: usize = 256;
/// The note of what is a guest here.
const GUEST: &str = "guest";
/// Other nodes must answer within this time.
const OTHERS_MAX: Duration = Duration::from_secs(3);

/// Who asks for a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Viewer {
    /// A user of this node.
    User(control::Caller),
    /// Another node, for one of its users; an old one does not say for whom.
    Node {
        /// The other node's name.
        name: String,
        /// Its user, as it says.
        user: Option<Caller>,
    },
}

impl Viewer {
    /// Another node asks.
    pub fn node(name: String, request: &ProcessesRequest) -> Self {
        let user = request
            .viewer
            .map(|WireViewer { uid, gid }| Caller { uid, gid });
        Self::Node { name, user }
    }

    /// How much it sees of a process of this node, or of a guest, of user `uid`.
    fn view(&self, home: &str, uid: u32, credentials: Option<&Credentials>) -> View {
        match self {
            Self::User(caller) => match (caller.identity(), credentials) {
                (caller, Some(credentials)) => process::view(caller, credentials),
                (caller, None) if caller.is_root() || caller.uid == uid => View::Full,
                (_, None) => View::Presence,
            },
            Self::Node { name, user } => {
                let seen = process::remote_view(*user, uid, home == name);
                match credentials.and_then(Credentials::privilege) {
                    Some(_) => View::Presence,
                    None => seen,
                }
            }
        }
    }
}

/// Jobs that are away or marked, guests, and what ended away of late; with `all` every process
/// here, and what other nodes have.
pub async fn processes(shared: &Arc<Shared>, viewer: Viewer, all: bool) -> Vec<Process> {
    let examine = || local(shared, &viewer, all);
    let mut listed = match &viewer {
        Viewer::User(caller) => shared.turns.run(Some(*caller), examine).await,
        Viewer::Node { .. } => shared.turns.run_for_others(examine).await,
    };
    if let Viewer::User(caller) = viewer
        && all
    {
        let caller = caller.identity();
        let shown: HashSet<(String, i32)> = keys(&listed);
        for process in others(shared, caller).await {
            // A job is best described by its home.
            let known = shown.contains(&(process.home.clone(), process.pid));
            let from_home = process.note != GUEST;
            if !known && from_home {
                // A node of an earlier version tells everybody everything.
                let own = caller.is_root() || caller.uid == process.uid;
                let view = if own { View::Full } else { View::Presence };
                listed.push(restricted(process, view));
            }
        }
    }
    listed.sort_by(|a, b| (&a.home, a.pid, &a.r#where).cmp(&(&b.home, b.pid, &b.r#where)));
    listed
}

/// Adds processes that were started after the last sample.
fn add_young(sampled: &mut Vec<Marked>) {
    let known: HashSet<_> = sampled.iter().map(|one| one.sample.key).collect();
    let mut sensors = Processes::new(Roots::default());
    let now = sensors.sample();
    let young = now.into_iter().filter(|one| !known.contains(&one.key));
    sampled.extend(young.map(|sample| Marked {
        mark: sensors.mark(sample.key.pid),
        sample,
    }));
}

fn keys(processes: &[Process]) -> HashSet<(String, i32)> {
    processes
        .iter()
        .map(|process| (process.home.clone(), process.pid))
        .collect()
}

fn local(shared: &Shared, viewer: &Viewer, all: bool) -> Vec<Process> {
    shared.refresh();
    let mut sampled = shared.sampled();
    if all {
        add_young(&mut sampled);
    }
    let jobs = shared.registry.jobs();
    let mut listed: Vec<Process> = jobs
        .iter()
        .map(|entry| job(shared, viewer, entry, &sampled))
        .collect();
    let shown: HashSet<i32> = listed.iter().map(|process| process.pid).collect();
    let guests = shared.registry.guests();
    let guests = guests.iter().map(|(_, entry)| guest(entry, &sampled));
    let ended = shared.registry.ended();
    let ended = ended.iter().filter(|state| !shown.contains(&state.pid));
    let ended = ended.map(|state| from_state(state, ""));
    let strangers = guests.chain(ended).map(|process| {
        let view = viewer.view(&process.home, process.uid, None);
        restricted(process, view)
    });
    listed.extend(strangers);
    let hidden = hidden(shared);
    let mut examined = 0;
    for one in &sampled {
        let pid = one.sample.key.pid;
        if shown.contains(&pid) || hidden.contains(&pid) || !(all || one.mark.is_some()) {
            continue;
        }
        let Some((subject, process)) = at_home(shared, one) else {
            continue;
        };
        let view = viewer.view(&process.home, process.uid, Some(&subject.credentials));
        let examine = view == View::Full && {
            examined += 1;
            examined <= EXAMINED_MAX
        };
        let cantmove = reasons(one, &subject, examine);
        let process = Process {
            cantmove,
            ..process
        };
        listed.push(restricted(process, view));
    }
    listed
}

/// The daemon's own processes, and those shown as guests already.
fn hidden(shared: &Shared) -> HashSet<i32> {
    let jobs = shared.registry.jobs().into_iter();
    let mut hidden: HashSet<i32> = jobs.map(|entry| entry.state.keeper_pid).collect();
    for (_, entry) in shared.registry.guests() {
        hidden.extend([entry.state.keeper_pid, entry.state.host_pid]);
    }
    hidden.insert(own_pid());
    hidden
}

fn run_state(state: RunState) -> &'static str {
    match state {
        RunState::Home => "home",
        RunState::Migrating => "migrating",
        RunState::Running => "running",
        RunState::Stopped => "stopped",
        RunState::Lost => "lost",
        RunState::Ended => "ended",
    }
}

fn from_state(state: &JobState, note: &str) -> Process {
    Process {
        pid: state.pid,
        start_ticks: state.start_ticks,
        command: state.command.clone(),
        home: state.home.clone(),
        r#where: state.place.clone(),
        state: run_state(state.state).to_owned(),
        moves: state.moves,
        cantmove: state.cantmove.clone(),
        memory_bytes: state.memory_bytes,
        uid: state.uid,
        cpu_time_ms: state.cpu_time_ms,
        note: if note.is_empty() {
            state.note.clone()
        } else {
            note.to_owned()
        },
        home_calls: state.home_calls,
        ..Process::default()
    }
}

fn job(shared: &Shared, viewer: &Viewer, entry: &Entry, sampled: &[Marked]) -> Process {
    let sample = sampled
        .iter()
        .find(|one| one.sample.key.pid == entry.state.pid);
    let mut process = from_state(&entry.state, "");
    process.cpu_milli = loadbal::vector::milli(entry.cpus);
    process.balanced = sample.is_some_and(|one| one.mark.as_deref() == Some("balance"));
    let key = shared.key_of(entry.state.pid);
    process.locked = key.is_some_and(|key| shared.locks.holds(key));
    if let Some(one) = sample {
        if !is_away(&entry.state) {
            fill(&mut process, one);
        }
        let before = shared
            .moved(one.sample.key)
            .map_or(0, |moved| moved.cpu_before_ms(&entry.state));
        process.cpu_time_ms = before + entry.state.cpu_time_ms + millis(one.sample.cpu_time);
    }
    let credentials = identity::credentials(process.pid, process.pid).ok();
    let view = viewer.view(&process.home, process.uid, credentials.as_ref());
    restricted(process, view)
}

/// What is left of a description for one who sees only so much.
fn restricted(process: Process, view: View) -> Process {
    let privileged = |reason: &String| reason.starts_with(CantMoveCode::Privileged.as_str());
    let mut cantmove = process.cantmove.clone();
    match view {
        View::Full => return process,
        View::Privilege => cantmove.retain(privileged),
        View::Presence => cantmove.clear(),
    }
    let is_guest = process.note == GUEST;
    Process {
        cantmove,
        note: if is_guest {
            GUEST.to_owned()
        } else {
            String::new()
        },
        home_calls: 0,
        balanced: false,
        locked: false,
        ..process
    }
}

fn guest(entry: &Entry, sampled: &[Marked]) -> Process {
    let mut process = from_state(&entry.state, GUEST);
    let sample = sampled
        .iter()
        .find(|one| one.sample.key.pid == entry.state.host_pid);
    if let Some(one) = sample {
        fill(&mut process, one);
        process.balanced = one.mark.as_deref() == Some("balance");
    }
    process
}

fn fill(process: &mut Process, one: &Marked) {
    process.cpu_milli = loadbal::vector::milli(one.sample.cpus);
    process.memory_bytes = one.sample.resident;
    process.cpu_time_ms = millis(one.sample.cpu_time);
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What keeps a process from moving: for its user's moves, or for the balancer's.
fn reasons(one: &Marked, subject: &Subject, examine: bool) -> Vec<String> {
    let privilege = subject.credentials.privilege();
    let privilege = privilege.map(|reason| {
        let reason = format!("{reason}: only root may move it");
        CantMove::new(CantMoveCode::Privileged, reason).to_string()
    });
    let mut cantmove: Vec<String> = privilege.into_iter().collect();
    if one.mark.as_deref() == Some("home") {
        cantmove.push("home: it was started to stay at home".to_owned());
    } else if examine {
        cantmove.extend(eligibility(subject.pid).iter().map(ToString::to_string));
    }
    cantmove
}

fn at_home(shared: &Shared, one: &Marked) -> Option<(Subject, Process)> {
    let pid = one.sample.key.pid;
    let subject = Subject::look(pid).ok()?;
    let moved = shared.moved(one.sample.key);
    let stopped = matches!(one.sample.state, 'T' | 't');
    let mut process = Process {
        pid,
        start_ticks: subject.process.start_ticks,
        command: subject.command.clone(),
        home: shared.context.here.clone(),
        r#where: shared.context.here.clone(),
        state: if stopped { "stopped" } else { "home" }.to_owned(),
        moves: moved.map_or(0, |moved| moved.count),
        uid: subject.uid(),
        balanced: one.mark.as_deref() == Some("balance"),
        locked: shared.locks.holds(one.sample.key),
        ..Process::default()
    };
    fill(&mut process, one);
    process.cpu_time_ms += moved.map_or(0, |moved| moved.away_cpu_ms);
    let root_jobs = shared.context.config.balance.root_jobs;
    let stays = process::may_move_by_itself(&subject.credentials, root_jobs);
    if let (true, Err(refusal @ Refusal::RootStays)) = (process.balanced, stays) {
        process.note = refusal.to_string();
    }
    Some((subject, process))
}

/// What all other nodes show to this user, as far as they answer.
async fn others(shared: &Arc<Shared>, caller: Caller) -> Vec<Process> {
    let (uid, gid) = (caller.uid, caller.gid);
    let request = ProcessesRequest {
        viewer: Some(WireViewer { uid, gid }),
    };
    let mut asked = tokio::task::JoinSet::new();
    for peer in shared.context.directory.peers() {
        if matches!(peer.liveness, Liveness::Alive | Liveness::Suspect) {
            let clients = Arc::clone(&shared.context.clients);
            asked.spawn(async move { clients.processes(peer.id, request).await });
        }
    }
    let mut found = Vec::new();
    let collect = async {
        while let Some(answer) = asked.join_next().await {
            if let Ok(Ok(reply)) = answer {
                found.extend(reply.processes);
            }
        }
    };
    let _ = tokio::time::timeout(OTHERS_MAX, collect).await;
    found
}
