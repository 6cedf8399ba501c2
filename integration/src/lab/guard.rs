//! The process around a lab: starts the supervisor, and whatever ends the lab (`down`, the owner's
//! death, the supervisor's crash), it then removes what namespaces do not remove by themselves.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::cgroup::LabCgroups;
use super::options::{LabOptions, STATE_ROOT};
use super::{data, supervisor, wait};
use crate::sys::process;

/// How often the guard looks at what nobody tells it.
const LOOK_EVERY_MS: u16 = 1000;

/// Runs the guard until the lab has ended and nothing of it is left. The lab's owner holds the
/// other end of standard input, unless the lab is detached; standard output tells it how it goes.
///
/// # Errors
/// The lab could not be made.
pub fn run(options: &LabOptions) -> Result<()> {
    let result = hold(options);
    if let Err(error) = &result {
        // As long as the owner listens to standard output; to the lab's log afterwards.
        print!("{error:#}");
    }
    result
}

fn hold(options: &LabOptions) -> Result<()> {
    nix::unistd::setsid().context("setsid")?;
    sweep()?;
    let state_dir = options.state_dir();
    let lock = make_state(&state_dir)?;
    let signals = end_signals()?;
    unshare(CloneFlags::CLONE_NEWPID).context("a PID namespace (is this root?)")?;
    let started = process::fork(|| supervisor::main(options)).context("fork");
    // The owner must see the end of its progress pipe when the supervisor is gone, not when this is.
    redirect_output(&state_dir)?;
    let result = started.and_then(|supervisor| watch(supervisor, options, &signals));
    clean(&options.id)?;
    drop(lock);
    result
}

/// Makes the state directory, and the lock that says that the lab lives.
fn make_state(state_dir: &Path) -> Result<Flock<File>> {
    let make = || {
        fs::create_dir_all(STATE_ROOT)?;
        fs::DirBuilder::new().mode(0o700).create(state_dir)
    };
    // Another lab's end may just remove the directory of all labs.
    let made = wait::until(std::time::Duration::from_secs(1), || match make() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        result => Some(result),
    });
    if let Err(error) = made.context("it is removed again and again")? {
        ensure!(
            error.kind() == io::ErrorKind::AlreadyExists,
            "{}: {error}",
            state_dir.display()
        );
        bail!("a lab of this name is up already; `lab down` ends it, --lab NAME makes another");
    }
    lock(state_dir)?.context("the new lab's lock is held by somebody else")
}

/// Locks a lab's state; nothing when its guard is alive.
fn lock(state_dir: &Path) -> Result<Option<Flock<File>>> {
    let path = state_dir.join("lock");
    let file = File::options().create(true).append(true).open(&path);
    let file = file.with_context(|| path.display().to_string())?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error.into()),
    }
}

/// Whether a lab is alive, and not only its remains.
#[must_use]
pub fn is_alive(id: &str) -> bool {
    let dir = super::options::state_dir(id);
    dir.exists() && lock(&dir).is_ok_and(|lock| lock.is_none())
}

/// Removes what labs left whose guard was killed.
///
/// # Errors
/// The state directory is not readable.
pub fn sweep() -> Result<()> {
    let Ok(entries) = fs::read_dir(STATE_ROOT) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let young = entry
            .metadata()
            .and_then(|data| data.modified())
            .is_ok_and(|time| {
                time.elapsed()
                    .is_ok_and(|age| age < std::time::Duration::from_secs(2))
            });
        let id = entry.file_name().to_string_lossy().into_owned();
        if !young && lock(&entry.path()).is_ok_and(|lock| lock.is_some()) {
            let _ = clean(&id);
        }
    }
    Ok(())
}

fn end_signals() -> Result<SignalFd> {
    let mut mask = SigSet::empty();
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGCHLD,
    ] {
        mask.add(signal);
    }
    mask.thread_block()?;
    Ok(SignalFd::with_flags(
        &mask,
        SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK,
    )?)
}

fn redirect_output(state_dir: &Path) -> Result<()> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(state_dir.join("log"))?;
    nix::unistd::dup2_stdout(&log)?;
    nix::unistd::dup2_stderr(&log)?;
    Ok(())
}

/// Waits for the supervisor's end, and brings it about when the owner is gone.
fn watch(supervisor: Pid, options: &LabOptions, signals: &SignalFd) -> Result<()> {
    let cgroups = LabCgroups::new(&options.id)?;
    let stdin = io::stdin();
    loop {
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if !options.detached {
            fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, LOOK_EVERY_MS) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = |fd: Option<&PollFd>| fd.and_then(PollFd::any).unwrap_or(false);
        let owner_gone = ready(fds.get(1));
        let asked = signals
            .read_signal()?
            .is_some_and(|info| info.ssi_signo != 17);
        if owner_gone || asked {
            let _ = nix::sys::signal::kill(supervisor, Signal::SIGKILL);
            cgroups.thaw_all();
            waitpid(supervisor, None)?;
            return Ok(());
        }
        match waitpid(supervisor, Some(WaitPidFlag::WNOHANG))? {
            WaitStatus::StillAlive if is_ending(supervisor) => cgroups.thaw_all(),
            WaitStatus::StillAlive => {}
            WaitStatus::Exited(_, 0) => return Ok(()),
            status => bail!("the lab's supervisor ended: {status:?}"),
        }
    }
}

/// Whether the supervisor has died and waits for the lab's last process, which may be frozen
/// (`proc_pid_stat(5)`: flags).
fn is_ending(supervisor: Pid) -> bool {
    const PF_EXITING: u64 = 4;
    let stat = omfs_sys::procfs::text(format!("/proc/{supervisor}/stat")).unwrap_or_default();
    let flags = stat.rsplit_once(") ").and_then(|(_, rest)| {
        let field = rest.split(' ').nth(6)?;
        field.parse::<u64>().ok()
    });
    flags.is_some_and(|flags| flags & PF_EXITING != 0)
}

/// Removes groups and files of a lab whose processes have ended.
fn clean(id: &str) -> Result<()> {
    let groups = LabCgroups::new(id)?.remove().context("control groups");
    let data_dir = data::dir_of(id);
    let files = remove_dir(&data_dir);
    let state = remove_dir(&super::options::state_dir(id));
    data::forget_root();
    let _ = fs::remove_dir(STATE_ROOT);
    groups.and(files).and(state)
}

fn remove_dir(dir: &PathBuf) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| dir.display().to_string())
        }
        _ => Ok(()),
    }
}
