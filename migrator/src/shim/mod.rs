//! The process at home that holds the deputy of one job while it is away.
//!
//! * [`deputy`] — the parked process: signals seen, home calls made.
//! * [`depart`] — from home to a host; [`comeback`] — from a host to home or to a third node.
//! * [`away`] — what happens in between.
//! * [`orders`] — what the daemon wants, at once or when a move under way has ended.
//! * [`files`] — its descriptors brought into step.
//! * [`endings`] — the deputy stops and ends as its guest does.

mod away;
mod comeback;
mod depart;
pub mod deputy;
mod endings;
mod files;
mod orders;
mod sent;

#[cfg(test)]
mod deputy_tests;

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use proto::ids::ProcessId;
use proto::link::Link;

use crate::capture::identity;
use crate::control::{Command, ExpectedProcess, JobState, RunState, write_state};
use crate::keeper::{Inbox, Input, PeerId, desk};
use crate::sys::pidfd;
use crate::tracee::procfs;
use away::Away;
pub use depart::PROTOCOL_VERSION;
use orders::Postponed;

/// How often the loop looks at what nobody tells it, while something has a deadline.
const TICK: Duration = Duration::from_millis(500);
/// The same while nothing has: a home with a dozen jobs away shall not be kept busy by their shims.
const CALM_TICK: Duration = Duration::from_secs(5);
/// How long a shim without a job away waits for its first command.
const IDLE_LIMIT: Duration = Duration::from_secs(30);

/// What a shim is told about its job.
#[derive(Clone, Debug)]
pub struct ShimConfig {
    /// The job.
    pub pid: i32,
    /// When it was started; 0 takes whatever has the PID.
    pub start_ticks: u64,
    /// Name of this node.
    pub here: String,
    /// Rewritten on every change. Its last content tells how the job's journey ended; whoever
    /// started the shim removes it.
    pub state_file: Option<PathBuf>,
    /// How often the job has moved before this shim was started.
    pub moves_before: u32,
    /// How long a host may be silent whose node's kernel still answers.
    pub silence_max: Duration,
}

/// Connects to supervisors: TLS in production, socket pairs in tests.
pub trait Connector: Send + Sync + Debug {
    /// Connects and authenticates with the one-time token (hexadecimal).
    ///
    /// # Errors
    /// The supervisor cannot be reached within the transport's deadline or refuses.
    fn connect(&self, address: &str, token: &str) -> io::Result<Link>;
}

/// Serves the control socket and, once told to, moves the job; returns when it is home or ended.
///
/// To be called from the main thread of a process of its own, before any other thread exists:
/// SIGCHLD is blocked and taken over.
///
/// # Errors
/// The job cannot be held at all.
pub fn run(
    config: ShimConfig,
    connector: Arc<dyn Connector>,
    control: UnixListener,
) -> io::Result<()> {
    let (process, pidfd) = hold_process(&config)?;
    let inbox = Inbox::new()?;
    let desk = desk::serve(control, inbox.sender())?;
    let state = first_state(&config, process);
    let mut shim = Shim {
        config,
        pidfd,
        connector,
        inbox,
        later: VecDeque::new(),
        state,
        place: Place::Home,
        left_cpu_ms: 0,
        postponed: VecDeque::new(),
        dismissed: false,
        next_peer: 1,
    };
    shim.publish();
    let served = shim.serve();
    drop(shim); // an order that comes too late finds its connection closed
    desk.finish();
    served
}

/// The job's descriptor, opened before its start time is compared, so that it is the job's.
fn hold_process(config: &ShimConfig) -> io::Result<(ProcessId, OwnedFd)> {
    let pidfd = pidfd::open(config.pid)?;
    let process = identity::process_id(config.pid)?;
    let wanted = ProcessId {
        pid: config.pid,
        start_ticks: config.start_ticks,
    };
    if !process.matches(wanted) {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok((process, pidfd))
}

fn first_state(config: &ShimConfig, process: ProcessId) -> JobState {
    let status = procfs::Status::read(config.pid).unwrap_or_default();
    let keeper = identity::own_process();
    JobState {
        pid: config.pid,
        start_ticks: process.start_ticks,
        keeper_pid: keeper.pid,
        keeper_start_ticks: keeper.start_ticks,
        command: status.text("Name").to_owned(),
        home: config.here.clone(),
        place: config.here.clone(),
        moves: config.moves_before,
        uid: status
            .numbers("Uid")
            .first()
            .and_then(|uid| u32::try_from(*uid).ok())
            .unwrap_or(0),
        ..JobState::default()
    }
}

/// One shim.
#[derive(Debug)]
struct Shim {
    config: ShimConfig,
    /// The job, whatever becomes of its PID.
    pidfd: OwnedFd,
    connector: Arc<dyn Connector>,
    inbox: Inbox,
    /// What arrived while a move was waiting for something else.
    later: VecDeque<Input>,
    state: JobState,
    place: Place,
    /// CPU time the job used at hosts that it has left, in milliseconds.
    left_cpu_ms: u64,
    /// Orders that came while the job was being moved.
    postponed: VecDeque<Postponed>,
    /// The job is at home and nothing more is wanted of it.
    dismissed: bool,
    next_peer: u64,
}

/// Where the job is.
#[derive(Debug)]
enum Place {
    /// An ordinary process, not held by this shim.
    Home,
    /// At a host.
    Away(Box<Away>),
    /// Ended.
    Gone,
}

impl Shim {
    fn serve(&mut self) -> io::Result<()> {
        let mut idle = Duration::ZERO;
        loop {
            while let Some(input) = self.later.pop_front().or_else(|| self.inbox.take()) {
                idle = Duration::ZERO;
                self.on_input(input);
                self.take_up_postponed();
            }
            if self.is_done() {
                return Ok(());
            }
            self.look_after_deputy();
            self.take_up_postponed();
            if self.is_done() || !self.later.is_empty() {
                continue;
            }
            let ready = self.inbox.wait(None, self.tick())?;
            if matches!(self.place, Place::Home) && !ready.children {
                idle += TICK;
                self.dismissed |= idle >= IDLE_LIMIT;
            }
        }
    }

    fn tick(&self) -> Duration {
        match &self.place {
            Place::Away(away) if away.is_calm() && self.postponed.is_empty() => CALM_TICK,
            _ => TICK,
        }
    }

    fn on_input(&mut self, input: Input) {
        match input {
            Input::Command(command, answers) => self.on_command(command, answers),
            Input::Frame(peer, frame) => self.on_frame(peer, &frame),
            Input::Lost(peer, why) => self.on_lost(peer, &why),
        }
    }

    /// Whether nothing is left to do: a job that came home is not this shim's any more.
    fn is_done(&self) -> bool {
        match self.place {
            Place::Home => self.dismissed || self.state.moves > self.config.moves_before,
            Place::Away(_) => false,
            Place::Gone => true,
        }
    }

    fn new_peer_id(&mut self) -> PeerId {
        let id = PeerId(self.next_peer);
        self.next_peer += 1;
        id
    }

    /// Writes the state down. A full disk must not stop a job.
    fn publish(&self) {
        if let Some(path) = &self.config.state_file
            && let Err(error) = write_state(path, &self.state)
        {
            tracing::warn!(path = %path.display(), %error, "state not written");
        }
    }

    /// The job has left a host for good: what it used there is added up.
    fn note_move(&mut self, place: String) {
        self.state.moves += 1;
        self.state.place = place;
        self.left_cpu_ms = self.state.cpu_time_ms;
    }

    fn set_state(&mut self, state: RunState, note: impl Into<String>) {
        self.state.state = state;
        self.state.note = note.into();
        self.publish();
    }
}

/// Where a job is to go.
#[derive(Clone, Debug)]
struct Target {
    node: String,
    address: String,
    token: String,
    expected: Option<ExpectedProcess>,
}

impl Target {
    /// Where an order sends the job; `None`: home.
    fn of(order: &Command) -> Option<Self> {
        let Command::Migrate {
            node,
            address,
            token,
            expected,
        } = order
        else {
            return None;
        };
        Some(Self {
            node: node.clone(),
            address: address.clone(),
            token: token.clone(),
            expected: *expected,
        })
    }
}
