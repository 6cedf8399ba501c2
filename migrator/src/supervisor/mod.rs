//! The process at the host that holds the guest.
//!
//! * [`arrive`] — receives and builds it, [`cage`] — in namespaces of its own with [`mounts`] and a [`quota`].
//! * [`host`] — the loop while it runs; [`guest`] — its threads; [`calls`] — its trapped calls, by
//!   [`decide`] with [`fds`], [`named`], [`paths`] and [`opens`]; [`results`]: what a call has told
//!   it of a file; [`signals`] — those forwarded by the deputy.
//! * [`leave`] — sends it home; [`waits`] — how long its threads have waited; [`returns`] — how often that is tried.

mod arrive;
mod cage;
mod calls;
pub mod decide;
pub mod fds;
mod guest;
mod host;
mod leave;
mod mounts;
mod named;
mod opens;
mod paths;
mod quota;
mod results;
mod returns;
mod signals;
mod waits;

#[cfg(test)]
mod decide_tests;

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;

use proto::link::Link;
use proto::v1::job_message::What;
use proto::v1::{Refused, Running};

use crate::control::{JobState, RunState, reserve_state};
use crate::keeper::transfer::Ear;
use crate::keeper::{Inbox, Moving, Peer, PeerId, desk};
use cage::Cage;
use host::{End, Host};
use quota::OwnGroup;
pub use quota::Quota;

/// What a supervisor is told about its guest-to-be.
#[derive(Clone, Debug)]
pub struct SupervisorConfig {
    /// The job's PID at home, which the guest gets too.
    pub home_pid: i32,
    /// When it was started at home; 0 if home does not tell.
    pub home_start_ticks: u64,
    /// Name of the home node; also the guest's host name.
    pub home: String,
    /// Name of this node.
    pub here: String,
    /// Home's file system as this node sees it, e.g. `/mfs/n1`.
    pub root: PathBuf,
    /// The deputy's files by identity, laid out as `/proc/PID`, e.g. `/mfs/.omfs/deputy/n1/4711`.
    pub proc_dir: PathBuf,
    /// This node's own `/mfs`, bound at `/mfs` in the guest's root.
    pub mfs: Option<PathBuf>,
    /// A directory of this node's own. The guest's root is mounted on it in the guest's mount
    /// namespace, so nothing of that is seen elsewhere.
    pub stage: PathBuf,
    /// Directories of cgroups (v1: one per controller) in which the guest gets one of its own.
    pub cgroups: Vec<PathBuf>,
    /// What the guest may use at most; `None` for no limit.
    pub quota: Option<Quota>,
    /// Rewritten on every change; removed at the end.
    pub state_file: Option<PathBuf>,
    /// How long home may be silent whose node's kernel still answers.
    pub silence_max: Duration,
}

/// Builds the guest that comes over `link` and holds it until it ended or left.
///
/// To be called from the main thread of a process of its own, before any other thread exists (the
/// namespaces' first process is forked from it): SIGCHLD is blocked and taken over.
///
/// # Errors
/// The link broke, or the guest could not be built.
#[allow(clippy::needless_pass_by_value)] // the process is for this one guest
pub fn run(config: SupervisorConfig, link: Link, control: Option<UnixListener>) -> io::Result<()> {
    let config = &config;
    // Dropped after the cage, so after all of the guest's processes.
    let group = OwnGroup::make(config);
    let cage = Cage::new(config);
    let inbox = Inbox::new()?;
    let peer = Peer::start(PeerId(0), link, &inbox.sender(), config.silence_max)?;
    if let Some(control) = control {
        desk::serve(control, inbox.sender())?;
    }
    let ended = match cage {
        Ok(cage) => host(config, &inbox, peer, cage, &group),
        Err(error) => {
            let _ = refuse(&peer, &error.to_string(), false);
            Err(error)
        }
    };
    if let Some(path) = &config.state_file {
        let _ = std::fs::remove_file(path);
        let _ = std::fs::remove_file(path.with_extension("json.new"));
    }
    ended
}

fn host(
    config: &SupervisorConfig,
    inbox: &Inbox,
    peer: Peer,
    mut cage: Cage,
    group: &OwnGroup,
) -> io::Result<()> {
    let mut later = VecDeque::new();
    if let Some(path) = &config.state_file
        && let Err(error) = reserve_state(path)
    {
        let why = format!(
            "a guest's state cannot be kept in {}: {error}",
            path.display()
        );
        let _ = refuse(&peer, &why, true);
        return Err(io::Error::other(why));
    }
    let arrived = arrive::arrive(
        config,
        (&mut cage, group),
        &peer,
        &mut Ear::new(inbox, &mut later),
    );
    let arrived = match arrived {
        Ok(arrived) => arrived,
        Err(error) => {
            let _ = refuse(&peer, &error.to_string(), error.is_cantmove());
            return Err(io::Error::other(error));
        }
    };
    let state = first_state(config, &arrived);
    let mut host = Host {
        config,
        inbox,
        later,
        peer,
        guest: arrived.guest,
        _cage: cage,
        state,
        frozen_by: None,
    };
    host.guest
        .begin(arrived.builder)
        .map_err(io::Error::other)?;
    let _ = host.peer.tell(What::Running(Running {}), &[]); // a broken link shows when serving
    host.peer.set_moving(false);
    // The loop may hang in a look at home's files just then.
    let guest = crate::sys::pidfd::open(host.guest.host_pid)?;
    let pid = config.home_pid;
    host.peer.when_lost(move |Moving(moving)| {
        let killed = crate::sys::pidfd::send_signal(guest.as_fd(), libc::SIGKILL).is_ok();
        if killed && !moving {
            tracing::info!(pid, "the link to home has ended: guest killed");
        }
    });
    host.publish();
    let end = match host.serve() {
        Err(error) if is_of_the_link(&error) => End::Abandoned(error.to_string()),
        Ok(End::Exited(_)) if host.peer.has_ended() => End::Abandoned("home is lost".to_owned()),
        other => other?,
    };
    match end {
        End::Exited(status) => {
            tracing::info!(pid = config.home_pid, status, "the guest ended");
            host.linger();
        }
        End::Left => tracing::info!(pid = config.home_pid, "the guest left"),
        End::Abandoned(why) => {
            tracing::warn!(pid = config.home_pid, why, "guest killed");
        }
    }
    Ok(())
}

/// Home ended, or cannot be reached any more.
fn is_of_the_link(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::NotConnected
            | io::ErrorKind::UnexpectedEof
            | io::ErrorKind::TimedOut
    )
}

fn refuse(peer: &Peer, error: &str, cantmove: bool) -> io::Result<()> {
    let refused = Refused {
        error: error.to_owned(),
        cantmove,
    };
    peer.tell(What::Refused(refused), &[])
}

fn first_state(config: &SupervisorConfig, arrived: &arrive::Arrived) -> JobState {
    let keeper = crate::capture::identity::own_process();
    JobState {
        pid: config.home_pid,
        start_ticks: arrived.hello.start_ticks,
        keeper_pid: keeper.pid,
        keeper_start_ticks: keeper.start_ticks,
        host_pid: arrived.guest.host_pid,
        command: arrived.hello.command.clone(),
        home: config.home.clone(),
        place: config.here.clone(),
        state: RunState::Running,
        uid: arrived.hello.uid,
        moves: arrived.hello.moves,
        ..JobState::default()
    }
}
