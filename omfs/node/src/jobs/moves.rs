//! A move as home carries it out: check, ask the target, tell the shim.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use migrator::control::Command as Order;
use omfs_authz::admin::{Action, may_ask};
use omfs_cluster::control::{Caller, ControlError};
use omfs_service::peers::{Liveness, Peer};
use proto::ids::{NodeId, ProcessId};
use proto::v1;

use super::keeper::{self, Answer, Step};
use super::keeper_files::wait_for_end;
use super::registry::{Entry, is_away};
pub use super::report::{Done, MoveError, Reporter};
use super::shared::Shared;
use super::subject::Subject;
use super::{Progress, own_pid};

/// How long a host that asked for a move waits for its end; the move goes on beyond.
const REQUEST_ANSWER_MAX: Duration = Duration::from_secs(8);

/// How long a move waits for another one of the same process to end. The balancer's do not: it
/// will decide anew.
const MOVE_WAIT_MAX: Duration = Duration::from_secs(10);

/// How often an order is given to shims, when each brings its job home by itself and ends meanwhile:
/// on a busy node the end of one may take several times [`SHIM_ENDS_MAX`].
const ORDER_TRIES_MAX: u32 = 20;

/// A target that has not been reached in this time is not asked again.
const PREPARE_AGAIN_MAX: Duration = Duration::from_secs(5);

/// A shim whose job is home ends within this time, unless it waits for another order.
const SHIM_ENDS_MAX: Duration = Duration::from_millis(300);

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Which process.
    pub pid: i32,
    /// A node's name or id, or "home".
    pub target: String,
    /// Who wants it; `None` for the balancer and for hosts.
    pub caller: Option<Caller>,
    /// The load the balancer believes the target to have; `None` for people.
    pub believed: Option<f64>,
}

/// Where a process is to go.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Target {
    Home,
    Node(Peer),
}

/// Moves one process of this node; returns when it runs at its new place.
///
/// # Errors
/// See [`MoveError`]; the process runs on where it was unless it says otherwise.
pub async fn move_job(
    shared: &Arc<Shared>,
    wish: &Wish,
    reporter: &Reporter,
) -> Result<Done, MoveError> {
    let target = target(shared, wish)?;
    let look = || {
        shared.refresh();
        Subject::look(wish.pid)
    };
    let looked = shared.turns.run(wish.caller, look).await;
    if shared.registry.job(wish.pid).is_none() && looked.is_err() {
        // PIDs of guests are those of their homes: `omfs ps` shows them.
        if let Some(home) = guest_home(shared, wish) {
            return move_guest(shared, wish, home).await;
        }
    }
    let subject = looked?;
    check_permission(shared, wish, &subject, &target)?;
    check_ours(shared, wish)?;
    let patience = wish.believed.map_or(MOVE_WAIT_MAX, |_| Duration::ZERO);
    let Some(_claim) = shared.claim_within(wish.pid, patience).await else {
        let text = format!("process {} is being moved already", wish.pid);
        return Err(MoveError::Refused(text));
    };
    shared.refresh();
    let entry = shared.registry.job(wish.pid);
    let place = entry.as_ref().filter(|entry| is_away(&entry.state));
    let place = place.map(|entry| entry.state.place.clone());
    let done = match (&target, place) {
        (Target::Home, None) => Ok(Done::default()),
        (Target::Node(peer), Some(place)) if peer.name == place => Ok(Done::default()),
        (Target::Home, Some(_)) => {
            let path = shared.registry.job_socket(wish.pid);
            match carry_out(&path, &Order::Home, reporter).await {
                Ok(done) => done,
                Err(ShimGone) => came_home(shared, wish.pid),
            }
        }
        (Target::Node(peer), place) => {
            if place.is_none() {
                let check = || subject.check_leaving();
                shared.turns.run(wish.caller, check).await?;
            }
            let memory = entry.as_ref().map_or(0, |entry| entry.state.memory_bytes);
            let memory = memory.max(if place.is_none() { subject.memory } else { 0 });
            send(shared, wish, peer, &subject, memory, reporter).await
        }
    };
    if done.is_ok() {
        shared.note_move(wish.pid);
        // Placed by hand it stays there, until it has to go from there.
        shared.locks.set(subject.process, wish.caller.is_some());
    }
    shared.refresh();
    log(shared, wish, &subject, &done);
    done
}

fn log(shared: &Shared, wish: &Wish, subject: &Subject, done: &Result<Done, MoveError>) {
    let (pid, command, target) = (wish.pid, &subject.command, &wish.target);
    let who = wish
        .caller
        .map_or("the balancer".into(), |caller| caller.to_string());
    let here = &shared.context.here;
    match done {
        Ok(done) => tracing::info!(
            "moved {pid} ({command}) of {here} to {target} for {who}, frozen {} us",
            done.freeze_us
        ),
        Err(error) => {
            tracing::info!(
                "did not move {pid} ({command}) of {here} to {target} for {who}: {error}"
            );
        }
    }
}

fn target(shared: &Shared, wish: &Wish) -> Result<Target, ControlError> {
    let text = wish.target.as_str();
    if text == "home" {
        return Ok(Target::Home);
    }
    let peer = shared.context.directory.by_name_or_id(text);
    let peer = peer.ok_or_else(|| ControlError::NotFound(format!("there is no node {text}")))?;
    match peer.liveness {
        Liveness::Myself => Ok(Target::Home),
        Liveness::Dead if wish.caller.is_none() => {
            let text = format!("node {} does not answer", peer.name);
            Err(ControlError::Unreachable(text))
        }
        // A person may know before the failure detector that a node is back: it is asked itself.
        Liveness::Dead | Liveness::Alive | Liveness::Suspect => Ok(Target::Node(peer)),
    }
}

/// Coming home takes a user's right to the process; leaving without a user's order takes more.
fn check_permission(
    shared: &Shared,
    wish: &Wish,
    subject: &Subject,
    target: &Target,
) -> Result<(), MoveError> {
    match (wish.caller, target) {
        (Some(caller), _) => subject.check_caller(caller),
        (None, Target::Home) => Ok(()),
        (None, Target::Node(_)) => subject.check_by_itself(shared.context.config.balance.root_jobs),
    }
}

/// Processes of omfs itself, and the one that asks, stay.
fn check_ours(shared: &Shared, wish: &Wish) -> Result<(), MoveError> {
    let keepers = shared.registry.jobs().into_iter();
    let shims = keepers.map(|entry| entry.state.keeper_pid);
    let supervisors = shared.registry.guest_keepers().into_keys();
    let supervisors = supervisors.map(|process| process.pid);
    let daemon = own_pid();
    if shims
        .chain(supervisors)
        .chain([daemon])
        .any(|pid| pid == wish.pid)
    {
        return Err(MoveError::Cantmove("it belongs to omfs itself".into()));
    }
    if wish.caller.and_then(|caller| caller.pid) == Some(wish.pid) {
        return Err(MoveError::Cantmove("it is the process that asks".into()));
    }
    Ok(())
}

/// Asks the target for a place and sends the process there.
async fn send(
    shared: &Arc<Shared>,
    wish: &Wish,
    peer: &Peer,
    subject: &Subject,
    memory: u64,
    reporter: &Reporter,
) -> Result<Done, MoveError> {
    let request = prepare_request(shared, wish, subject, memory);
    let prepared = prepare(shared, peer, request);
    // The shim takes as long to start as the target to answer. If it is not needed, it ends by itself.
    let (reply, held) = tokio::join!(prepared, hold(shared, subject.process));
    let reply = reply.map_err(|error| match error {
        ControlError::Unreachable(text) => {
            let text = format!("node {} does not answer: {text}", peer.name);
            MoveError::Control(ControlError::Unreachable(text))
        }
        other => MoveError::Refused(format!("node {} does not take it: {other}", peer.name)),
    })?;
    // From its consent on the target may ask for the job's files, to the end of this move.
    let _expected = shared.hosts.expect(wish.pid, peer.id);
    let path = shared.registry.job_socket(wish.pid);
    tracing::debug!("{}: node {} takes it", path.display(), peer.name);
    let order = Order::Migrate {
        node: peer.name.clone(),
        address: super::shim_main::address(&reply.data_address, peer.id),
        token: hex(&reply.token),
        expected: Some(subject.expected(wish.caller.is_none())),
    };
    held?;
    for _ in 0..ORDER_TRIES_MAX {
        let taken_up = carry_out(&path, &order, reporter).await;
        // What the shim has written must be known before the target stops being expected.
        shared.refresh();
        if let Ok(done) = taken_up {
            return done;
        }
        hold(shared, subject.process).await?;
    }
    Err(MoveError::Failed("its shims do not answer".into()))
}

/// Asks a node for a place; once more, if the connection broke, as an idle one may have done long
/// before. A place that nobody comes to is given up by its node.
async fn prepare(
    shared: &Shared,
    peer: &Peer,
    request: v1::PrepareGuestRequest,
) -> Result<v1::PrepareGuestReply, ControlError> {
    let clients = &shared.context.clients;
    if peer.liveness == Liveness::Dead {
        clients.forget(peer.id);
    }
    let begun = Instant::now();
    match clients.prepare_guest(peer.id, request.clone()).await {
        Err(ControlError::Unreachable(_)) if begun.elapsed() < PREPARE_AGAIN_MAX => {
            clients.forget(peer.id);
            clients.prepare_guest(peer.id, request).await
        }
        other => other,
    }
}

/// The shim ended before it took the order to bring its job home: because that is where it is.
fn came_home(shared: &Arc<Shared>, pid: i32) -> Result<Done, MoveError> {
    shared.refresh();
    let away = |entry: Entry| is_away(&entry.state);
    if shared.registry.job(pid).is_some_and(away) {
        return Err(MoveError::Failed("its shim does not answer".into()));
    }
    Subject::look(pid)?;
    Ok(Done::default())
}

/// Makes sure that the process has a shim. One that has brought it home a moment ago is about to
/// end, and would take the order with it.
async fn hold(shared: &Arc<Shared>, process: ProcessId) -> Result<(), MoveError> {
    if let Some(entry) = shared.registry.job(process.pid) {
        let keeper = entry.state.keeper();
        if is_away(&entry.state) || !wait_for_end(keeper, "shim", SHIM_ENDS_MAX).await {
            return Ok(());
        }
        shared.refresh();
    }
    start_shim(shared, process)
}

fn prepare_request(
    shared: &Shared,
    wish: &Wish,
    subject: &Subject,
    memory: u64,
) -> v1::PrepareGuestRequest {
    let cpu = &shared.cpu;
    v1::PrepareGuestRequest {
        home_id: shared.me().0,
        pid: wish.pid,
        command: subject.command.clone(),
        memory_bytes: memory,
        cpu: Some(v1::CpuFeatures {
            flags: cpu.flags.clone(),
            xcr0: cpu.xcr0,
            xsave_bytes: cpu.xsave_bytes,
            kernel: String::new(),
        }),
        automatic: wish.believed.is_some(),
        uid: subject.uid(),
        start_ticks: subject.process.start_ticks,
        believed_load_milli: wish.believed.map_or(0, loadbal::vector::milli),
        locked: wish.caller.is_some(),
    }
}

fn start_shim(shared: &Arc<Shared>, process: ProcessId) -> Result<(), MoveError> {
    let pid = process.pid;
    let failed = |error: std::io::Error| MoveError::Failed(format!("cannot start a shim: {error}"));
    let listener = keeper::bind(&shared.registry.job_socket(pid)).map_err(failed)?;
    let moves = shared.moved(process).map_or(0, |moved| moved.count);
    let arguments = [
        "shim",
        "--pid",
        &pid.to_string(),
        "--start-ticks",
        &process.start_ticks.to_string(),
        "--moves",
        &moves.to_string(),
    ];
    let arguments = arguments.map(OsString::from);
    let child = keeper::start(&shared.context, &arguments, &[], OwnedFd::from(listener));
    let after = Arc::clone(shared);
    keeper::reap(
        child.map_err(failed)?,
        format!("shim of {pid}"),
        move || {
            after.refresh();
        },
    )
    .map_err(failed)
}

/// The shim ended without having taken up an order.
struct ShimGone;

async fn carry_out(
    path: &std::path::Path,
    order: &Order,
    reporter: &Reporter,
) -> Result<Result<Done, MoveError>, ShimGone> {
    use std::io::ErrorKind;
    let step = |step: Step| {
        tracing::debug!("{}: {}", path.display(), step.phase.as_str());
        reporter.step(step);
    };
    match keeper::order(path, order, step).await {
        Ok(Answer::Done { freeze_us }) => Ok(Ok(Done { freeze_us })),
        Ok(Answer::Failed {
            error,
            cantmove: true,
        }) => Ok(Err(MoveError::Cantmove(error))),
        Ok(Answer::Failed { error, .. }) => Ok(Err(MoveError::Failed(error))),
        Err(error) => match error.kind() {
            ErrorKind::UnexpectedEof
            | ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionReset
            | ErrorKind::BrokenPipe
            | ErrorKind::NotFound => Err(ShimGone),
            _ => Ok(Err(MoveError::Failed(format!(
                "its shim does not answer: {error}"
            )))),
        },
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The home of the guest that is meant, if there is exactly one of this PID; guests are root's.
fn guest_home(shared: &Shared, wish: &Wish) -> Option<NodeId> {
    let may = |caller: Caller| may_ask(caller.identity(), Action::MoveGuest).is_ok();
    let root = wish.caller.is_some_and(may);
    let guests = shared.registry.guests();
    let mut homes = guests.iter().filter(|((_, pid), _)| *pid == wish.pid);
    let ((home, _), _) = homes.next().filter(|_| root)?;
    homes.next().is_none().then_some(*home)
}

async fn move_guest(shared: &Shared, wish: &Wish, home: NodeId) -> Result<Done, MoveError> {
    let guest = shared.registry.guest((home, wish.pid));
    let request = v1::RequestMoveRequest {
        pid: wish.pid,
        start_ticks: guest.map_or(0, |guest| guest.state.start_ticks),
        target: wish.target.clone(),
        reason: "root of its host wants it".into(),
        must_leave: true,
    };
    let asked = shared.context.clients.request_move(home, request).await;
    asked
        .map(|()| Done::default())
        .map_err(|error| match error {
            ControlError::Refused(text) => MoveError::Refused(text),
            other => MoveError::Control(other),
        })
}

/// A host asks that one of our jobs leave it.
///
/// # Errors
/// The job is not there, or could not be moved.
pub async fn requested(
    shared: &Arc<Shared>,
    from: NodeId,
    request: &v1::RequestMoveRequest,
) -> Result<(), ControlError> {
    let asked = ProcessId {
        pid: request.pid,
        start_ticks: request.start_ticks,
    };
    let job = shared.registry.job(request.pid);
    let job = job.filter(|entry| entry.state.process().matches(asked));
    let place = job.map(|entry| entry.state.place);
    let host = shared.context.directory.by_id(from).map(|peer| peer.name);
    if place.is_none() || place != host {
        let text = format!("process {} is not on node {from}", request.pid);
        return Err(ControlError::NotFound(text));
    }
    let key = shared.key_of(request.pid);
    if !request.must_leave && key.is_some_and(|key| shared.locks.holds(key)) {
        let text = format!("process {} was placed there by hand", request.pid);
        return Err(ControlError::NotPermitted(text));
    }
    let wish = Wish {
        pid: request.pid,
        target: request.target.clone(),
        caller: None,
        believed: None,
    };
    check_sent_on(shared, &wish).await?;
    tracing::info!(
        "node {from} wants {} to go to {}: {}",
        wish.pid,
        wish.target,
        request.reason
    );
    let shared = Arc::clone(shared);
    let moving =
        tokio::spawn(async move { move_job(&shared, &wish, &Reporter::silent(wish.pid)).await });
    match tokio::time::timeout(REQUEST_ANSWER_MAX, moving).await {
        // It goes on; the host will see the guest leave.
        Err(_) => Ok(()),
        Ok(Ok(Ok(_))) => Ok(()),
        Ok(Ok(Err(MoveError::Control(error)))) => Err(error),
        Ok(Ok(Err(MoveError::Failed(text)))) => Err(ControlError::Failed(text)),
        Ok(Ok(Err(error))) => Err(ControlError::Refused(error.to_string())),
        Ok(Err(error)) => Err(ControlError::Failed(error.to_string())),
    }
}

/// What does not leave by itself a host cannot send on either; so that the host tries others, it is
/// told that this is for good.
async fn check_sent_on(shared: &Shared, wish: &Wish) -> Result<(), ControlError> {
    let Target::Node(_) = target(shared, wish)? else {
        return Ok(());
    };
    let look = || Subject::look(wish.pid);
    let subject = shared.turns.run_for_others(look).await?;
    let allowed = subject.check_by_itself(shared.context.config.balance.root_jobs);
    allowed.map_err(|error| ControlError::NotPermitted(format!("process {}: {error}", wish.pid)))
}

/// Brings all jobs of this node home, one after the other.
///
/// # Errors
/// What could not even be tried; jobs that could not be brought are in the progress.
pub async fn bring(shared: &Arc<Shared>, progress: &Progress) -> Result<(), ControlError> {
    shared.refresh();
    let away: Vec<Entry> = shared.registry.away();
    for entry in away {
        let wish = Wish {
            pid: entry.state.pid,
            target: "home".into(),
            caller: None,
            believed: None,
        };
        let reporter = Reporter::new(wish.pid, progress.clone());
        let moved = move_job(shared, &wish, &reporter).await;
        // A job that ended meanwhile needs no bringing.
        let ended = matches!(moved, Err(MoveError::Control(ControlError::NotFound(_))));
        let moved = if ended { Ok(Done::default()) } else { moved };
        if let Err(error) = reporter.end(moved).await {
            let failed = Err(MoveError::Failed(error.to_string()));
            reporter.end(failed).await?;
        }
    }
    Ok(())
}
