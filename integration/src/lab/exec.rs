//! `lab exec`: runs a command in a node as if it had been started there, with this process as its
//! stand-in: descriptors, terminal, signals and wait status pass through.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{User, setgid, setgroups, setsid, setuid};

use super::control::{Request, ask, send_with_fds};
use super::options::{LAB_VARIABLE, state_dir};
use super::{relay, terminal};
use crate::sys::process;

/// Exit status when the command could not be started, as a shell has it.
const NOT_STARTED: i32 = 127;
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Variables that a command gets from its caller.
const PASSED_VARIABLES: [&str; 5] = ["TERM", "LANG", "LC_ALL", "RUST_LOG", "RUST_BACKTRACE"];

/// What to run.
#[derive(Clone, Debug)]
pub struct ExecRequest {
    /// The lab's name.
    pub lab: String,
    /// The node's name.
    pub node: String,
    /// As whom; root when nobody is named.
    pub user: Option<String>,
    /// Whether the node's CPU and memory limits do not count for it: for watching and preparing.
    pub unlimited: bool,
    /// The program and its arguments.
    pub command: Vec<OsString>,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It exited with a status.
    Exited(i32),
    /// A signal ended it.
    Signaled(i32),
}

impl Ended {
    /// Ends this process in the same way.
    pub fn imitate(self) -> ! {
        match self {
            Self::Exited(status) => std::process::exit(status),
            Self::Signaled(signal) => process::die_of(signal),
        }
    }
}

/// Runs a command in a node and waits for its end. The caller must have one thread.
///
/// # Errors
/// No such lab or node, or the node has no power.
pub fn exec(request: &ExecRequest) -> Result<Ended> {
    let node = request.node.clone();
    let (reply, fds) = ask(&state_dir(&request.lab), &Request::Enter { node })?;
    let init = fds
        .into_iter()
        .next()
        .context("no descriptor came with the answer")?;
    let tty = io::stdin().is_terminal() && io::stdout().is_terminal();
    let (ours, theirs) = UnixStream::pair()?;
    let signals = relay::catch_signals()?;
    setns(&init, CloneFlags::CLONE_NEWPID).context("the node's PID namespace")?;
    let child = process::fork(|| {
        let Err(error) = start(request, &init, &reply.procs_files, tty.then_some(&theirs));
        eprintln!("lab exec: {error:#}");
        NOT_STARTED
    })?;
    drop(theirs);
    if tty {
        terminal::relay(child, &signals, &ours)
    } else {
        relay::relay(child, &signals)
    }
}

/// Becomes the command; only comes back when that fails.
fn start(
    request: &ExecRequest,
    init: &OwnedFd,
    procs_files: &[PathBuf],
    tty: Option<&UnixStream>,
) -> Result<std::convert::Infallible> {
    for file in procs_files.iter().filter(|_| !request.unlimited) {
        std::fs::write(file, "0").with_context(|| file.display().to_string())?;
    }
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWCGROUP;
    setns(init, namespaces).context("the node's namespaces")?;
    setsid()?;
    if let Some(channel) = tty {
        take_terminal(channel).context("a terminal in the node")?;
    }
    let user = become_user(request.user.as_deref())?;
    let (program, arguments) = request.command.split_first().context("no command")?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear();
    for name in PASSED_VARIABLES {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    command.env("PATH", PATH).env(LAB_VARIABLE, &request.lab);
    command
        .env("HOME", &user.dir)
        .env("SHELL", &user.shell)
        .env("USER", &user.name)
        .env("LOGNAME", &user.name);
    let home: &Path = if user.dir.is_dir() {
        &user.dir
    } else {
        Path::new("/")
    };
    std::env::set_current_dir(home)?;
    // A shell's background jobs ignore SIGINT; what starts in the node has nothing of that.
    process::default_signals()?;
    SigSet::empty().thread_set_mask()?;
    Err(command.exec()).with_context(|| program.to_string_lossy().into_owned())
}

/// Makes a terminal of the node's own this session's, and gives its other side to the stand-in.
fn take_terminal(channel: &UnixStream) -> Result<()> {
    use nix::fcntl::OFlag;
    use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
    use std::os::fd::AsRawFd;

    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    crate::sys::tty::copy_window_size(io::stdin().as_fd(), master.as_fd())?;
    // Opening it is what makes it the controlling terminal of a session without one.
    let slave = File::options()
        .read(true)
        .write(true)
        .open(ptsname_r(&master)?)?;
    send_with_fds(channel, b"t", &[master.as_raw_fd()])?;
    nix::unistd::dup2_stdin(&slave)?;
    nix::unistd::dup2_stdout(&slave)?;
    if io::stderr().is_terminal() {
        nix::unistd::dup2_stderr(&slave)?;
    }
    Ok(())
}

/// Takes on the identity of a user of the node.
fn become_user(name: Option<&str>) -> Result<User> {
    let name = name.unwrap_or("root");
    let user = User::from_name(name)?.with_context(|| format!("the node knows no user {name}"))?;
    if !user.uid.is_root() {
        let login = std::ffi::CString::new(name)?;
        let groups = nix::unistd::getgrouplist(&login, user.gid)?;
        setgroups(&groups)?;
        setgid(user.gid)?;
        setuid(user.uid)?;
    }
    Ok(user)
}

/// All signals that a stand-in passes on.
pub(super) const PASSED_SIGNALS: [Signal; 9] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGCONT,
    Signal::SIGTSTP,
    Signal::SIGWINCH,
];
