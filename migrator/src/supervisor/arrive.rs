//! A process arrives: its cage, its threads and memory, its filter. It runs only after `Go`.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::time::{ClockId, clock_gettime};
use proto::ids::ProcessId;
use proto::v1::job_message::What;
use proto::v1::{Built, JobHello, ProcessImage};

use super::SupervisorConfig;
use super::cage::{Cage, ClockOffsets};
use super::fds::{FdKind, FdTable};
use super::guest::Guest;
use super::quota::OwnGroup;
use super::returns::Returns;
use super::signals::Forwarded;
use crate::image::FileKind;
use crate::keeper::Peer;
use crate::keeper::transfer::{Ear, MoveError, runs_of};
use crate::numbers::HomeNumbers;
use crate::restore::guest::OPTIONS;
use crate::restore::{GuestBuilder, RestoreError};
use crate::sys::seccomp::{FILTER_FLAGS, Listener, SET_MODE_FILTER};
use crate::syscalls::filter;
use crate::tracee::{Frozen, Running, Stopped, TraceeError};

/// How long home may take to introduce the job.
const HELLO_LIMIT: Duration = Duration::from_secs(20);
/// How long home may take to send everything: memory at a slow link's rate.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(600);
/// How long home may take from `Built` to `Go`.
const GO_LIMIT: Duration = Duration::from_secs(60);

/// A guest that is complete and stands still.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) guest: Guest,
    pub(super) builder: GuestBuilder,
    pub(super) hello: JobHello,
}

/// Receives and builds the guest, up to and including home's `Go`.
pub(super) fn arrive(
    config: &SupervisorConfig,
    (cage, group): (&mut Cage, &OwnGroup),
    peer: &Peer,
    ear: &mut Ear<'_>,
) -> Result<Arrived, MoveError> {
    let hello = hello(config, peer, ear)?;
    let deadline = Instant::now() + ARRIVAL_LIMIT;
    let image = ear.image(peer, deadline)?;
    if image.pid != config.home_pid {
        return Err(MoveError::process(&"the image is of another process"));
    }
    let most = config.quota.map_or(u64::MAX, |quota| quota.threads);
    if image.threads.len() as u64 > most {
        let error = format!("it has more threads than a guest may have there ({most})");
        return Err(MoveError::Process {
            error,
            cantmove: true,
        });
    }
    let host_pid = start(cage, &image)?;
    group.join(config, host_pid);
    let blank = seize(host_pid).map_err(|error| MoveError::process(&error))?;
    let numbers = HomeNumbers::of(&config.root).map_err(|error| MoveError::process(&error))?;
    let numbers = Arc::new(numbers);
    let builder = GuestBuilder::begin(blank, image, &numbers);
    let mut builder = builder.map_err(|error| refusal(&error))?;
    receive_pages(&mut builder, peer, ear, deadline)?;
    let guest = dress(config, &mut builder, numbers)?;
    peer.tell(What::Built(Built {}), &[])?;
    let pick = |what| matches!(what, What::Go(_)).then_some(());
    ear.expect(peer, "the word to go", Instant::now() + GO_LIMIT, pick)?;
    Ok(Arrived {
        guest,
        builder,
        hello,
    })
}

/// What this node cannot build now, it cannot build next time either.
fn refusal(error: &RestoreError) -> MoveError {
    MoveError::Process {
        error: error.to_string(),
        cantmove: !matches!(error, RestoreError::Tracee(_)),
    }
}

fn hello(config: &SupervisorConfig, peer: &Peer, ear: &mut Ear<'_>) -> Result<JobHello, MoveError> {
    let pick = |what| match what {
        What::Hello(hello) => Some(hello),
        _ => None,
    };
    let deadline = Instant::now() + HELLO_LIMIT;
    let (hello, _) = ear.expect(peer, "the job's introduction", deadline, pick)?;
    let id = |pid, start_ticks| ProcessId { pid, start_ticks };
    let awaited = id(config.home_pid, config.home_start_ticks);
    let is_awaited = id(hello.pid, hello.start_ticks).matches(awaited);
    if hello.version != crate::shim::PROTOCOL_VERSION || !is_awaited {
        return Err(MoveError::process(&"this supervisor waits for another job"));
    }
    Ok(hello)
}

/// The guest's first thread, in its cage.
fn start(cage: &mut Cage, image: &ProcessImage) -> Result<i32, MoveError> {
    let clocks = clock_offsets(image).map_err(|error| MoveError::process(&error))?;
    let started = cage.start(image.pid, clocks, &image.hostname);
    started.map_err(|error| MoveError::process(&error))
}

/// The guest's clocks go on from where they stood at home.
fn clock_offsets(image: &ProcessImage) -> nix::Result<ClockOffsets> {
    let here = |clock| -> nix::Result<i64> {
        let time = clock_gettime(clock)?;
        Ok(time.tv_sec() * 1_000_000_000 + time.tv_nsec())
    };
    let Some(clocks) = &image.clocks else {
        return Ok(ClockOffsets::default());
    };
    Ok(ClockOffsets {
        monotonic_ns: clocks.monotonic_ns - here(ClockId::CLOCK_MONOTONIC)?,
        boottime_ns: clocks.boottime_ns - here(ClockId::CLOCK_BOOTTIME)?,
    })
}

fn seize(host_pid: i32) -> Result<Stopped, TraceeError> {
    let running = Running::seize(host_pid, OPTIONS)?;
    running.interrupt()?;
    running.wait(Instant::now() + crate::tracee::CALL_DEADLINE)
}

fn receive_pages(
    builder: &mut GuestBuilder,
    peer: &Peer,
    ear: &mut Ear<'_>,
    deadline: Instant,
) -> Result<(), MoveError> {
    loop {
        match ear.next(peer, "memory", deadline)? {
            (What::Pages(pages), frame) => {
                let runs = runs_of(&pages, &frame.payload)?;
                let written = builder.write_pages(&runs, &frame.payload);
                written.map_err(|error| refusal(&error))?;
            }
            (What::PagesDone(_), _) => return Ok(()),
            _ => return Err(MoveError::Unexpected("memory")),
        }
    }
}

/// Finishes the guest, with its filter.
fn dress(
    config: &SupervisorConfig,
    builder: &mut GuestBuilder,
    numbers: Arc<HomeNumbers>,
) -> Result<Guest, MoveError> {
    let fds = fd_table(builder.image());
    let code = filter::build(&fds.filter_input(config.home_pid));
    let code = code.map_err(|error| MoveError::Process {
        error: error.to_string(),
        cantmove: true,
    })?;
    let root = root_of(builder.host_pid()).map_err(|error| MoveError::process(&error))?;
    let mut listener = None;
    let install = |frozen: &mut Frozen| {
        listener = Some(install_filter(frozen, &code)?);
        Ok(())
    };
    builder.finish(install).map_err(|error| refusal(&error))?;
    let listener = listener.ok_or_else(|| MoveError::process(&"no filter was installed"))?;
    Ok(Guest {
        pid: config.home_pid,
        host_pid: builder.host_pid(),
        threads: BTreeMap::new(),
        listener,
        fds,
        calls: HashMap::new(),
        forwarded: Forwarded::default(),
        signals_taken: 0,
        stub: Some(builder.stub()),
        freezing: false,
        stopped: false,
        wants_home: None,
        returns: Returns::default(),
        home_calls: 0,
        numbers,
        root,
    })
}

/// Where the guest's absolute paths start; it cannot change that here.
fn root_of(host_pid: i32) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = format!("/proc/{host_pid}/root");
    open(Path::new(&root), flags, Mode::empty())
}

fn fd_table(image: &ProcessImage) -> FdTable {
    FdTable::new(image.files.iter().map(|file| {
        let kind = if file.home {
            FdKind::Home
        } else if file.opened_away || file.kind() == FileKind::LocalDevice {
            FdKind::Local
        } else {
            FdKind::Shared
        };
        (file.number, kind)
    }))
}

/// Installs the filter in the leader, for threads to inherit, and takes its listener.
fn install_filter(frozen: &mut Frozen, code: &[filter::Insn]) -> Result<Listener, TraceeError> {
    let failed = |error| TraceeError::Call {
        call: "seccomp",
        error,
    };
    let promise = [libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0, 0];
    frozen.call(0, ("prctl(PR_SET_NO_NEW_PRIVS)", libc::SYS_prctl), promise)?;
    let scratch = frozen.stub()?.scratch;
    // struct sock_fprog: length, padding, pointer.
    let mut program = (code.len() as u64).to_le_bytes().to_vec();
    program.extend_from_slice(&(scratch + 16).to_le_bytes());
    program.extend(code.iter().flat_map(|insn| insn.to_bytes()));
    frozen.leader()?.stopped.memory().write(scratch, &program)?;
    let args = [SET_MODE_FILTER, FILTER_FLAGS, scratch, 0, 0, 0];
    let fd = frozen.call(0, ("seccomp", libc::SYS_seccomp), args)?;
    let number = i32::try_from(fd).map_err(|error| failed(io::Error::other(error)))?;
    let pidfd = crate::sys::pidfd::open(frozen.pid()).map_err(failed)?;
    let listener = crate::sys::pidfd::get_fd(pidfd.as_fd(), number).map_err(failed)?;
    frozen.call(0, ("close", libc::SYS_close), [fd, 0, 0, 0, 0, 0])?;
    Listener::new(listener).map_err(failed)
}
