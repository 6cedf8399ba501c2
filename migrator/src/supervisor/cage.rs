//! Where a guest lives: namespaces of its own, home's file system as its root, and nothing of the
//! host within reach.
//!
//! A child of the supervisor becomes process 1 of the new PID namespace. It prepares the mounts,
//! starts the guest's first thread under its PID at home, and reaps whatever is orphaned; when the
//! guest is gone it ends, and with it everything in the cage. It dies with the supervisor.
//!
//! The cage has its final root before anything of the guest is there, and the host cannot be
//! reached from it: what home or the image names is looked up nowhere else. The one way out is the
//! descriptor of the deputy's files, opened before, with which the guest's first thread begins.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sched::CloneFlags;

use super::SupervisorConfig;
use super::mounts;
use crate::sys::clone3::{self, Forked};
use crate::sys::sched::{Share, set_share};
use crate::sys::wait;

/// How long each step of the cage's first process may take.
const STEP_LIMIT: Duration = Duration::from_secs(20);
/// Longest error text that is passed on.
const ERROR_BYTES_MAX: u64 = 1024;

/// The cage's first process is told this,
const START: u8 = b's';
/// and answers this to each step, or an error's text.
const DONE: u8 = b'+';

/// Where the guest's clocks stand against this node's, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ClockOffsets {
    /// CLOCK_MONOTONIC
    pub monotonic_ns: i64,
    /// CLOCK_BOOTTIME
    pub boottime_ns: i64,
}

/// A cage; dropping it kills everything inside.
#[derive(Debug)]
pub struct Cage {
    init: i32,
    init_pidfd: std::os::fd::OwnedFd,
    line: UnixStream,
}

impl Cage {
    /// Makes the namespaces, with the guest's root as their root.
    ///
    /// The calling process must not have other threads yet.
    ///
    /// # Errors
    /// Missing privileges or kernel features, a root that is not there.
    pub fn new(config: &SupervisorConfig) -> io::Result<Self> {
        let (line, inner) = UnixStream::pair()?;
        let flags = CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWNET;
        let flags = u64::from(flags.bits().cast_unsigned());
        match clone3::fork(flags, &[])? {
            Forked::Child => {
                drop(line);
                let _ = first_process(config, inner);
                std::process::exit(1)
            }
            Forked::Parent { pid, pidfd } => {
                drop(inner);
                let mut cage = Self {
                    init: pid,
                    init_pidfd: pidfd,
                    line,
                };
                cage.line.set_read_timeout(Some(STEP_LIMIT))?;
                cage.answer()?;
                Ok(cage)
            }
        }
    }

    /// Starts the guest's first thread under its PID, on a machine of this name unless that is
    /// empty; answers its PID here. It waits in `pause`, and its only descriptor, number 0, is the
    /// directory of the deputy's files.
    ///
    /// # Errors
    /// The time namespace or the process could not be made; the name is too long.
    pub fn start(&mut self, pid: i32, clocks: ClockOffsets, hostname: &[u8]) -> io::Result<i32> {
        let mut request = vec![START];
        request.extend_from_slice(&pid.to_le_bytes());
        request.extend_from_slice(&clocks.monotonic_ns.to_le_bytes());
        request.extend_from_slice(&clocks.boottime_ns.to_le_bytes());
        request.push(u8::try_from(hostname.len()).map_err(io::Error::other)?);
        request.extend_from_slice(hostname);
        self.line.write_all(&request)?;
        self.answer()?;
        let child = self.child()?;
        await_blank(child)?;
        Ok(child)
    }

    fn answer(&mut self) -> io::Result<()> {
        let mut first = [0];
        self.line.read_exact(&mut first).map_err(|error| {
            io::Error::new(error.kind(), format!("the guest's first process: {error}"))
        })?;
        if first == [DONE] {
            return Ok(());
        }
        let mut text = first.to_vec();
        let mut rest = Read::take(&self.line, ERROR_BYTES_MAX);
        let _ = rest.read_to_end(&mut text);
        Err(io::Error::other(
            String::from_utf8_lossy(&text).into_owned(),
        ))
    }

    /// The only child of the cage's first process, as seen here.
    fn child(&self) -> io::Result<i32> {
        let path = format!("/proc/{0}/task/{0}/children", self.init);
        let children = std::fs::read_to_string(path)?;
        let first = children.split_whitespace().next();
        first
            .and_then(|pid| pid.parse().ok())
            .ok_or_else(|| io::Error::other("the guest ended before it began"))
    }
}

/// Closing its other descriptors is the last thing a new guest does by itself.
fn await_blank(pid: i32) -> io::Result<()> {
    let deadline = Instant::now() + STEP_LIMIT;
    while std::fs::read_dir(format!("/proc/{pid}/fd"))?.count() != 1 {
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

impl Drop for Cage {
    fn drop(&mut self) {
        let _ = crate::sys::pidfd::send_signal(self.init_pidfd.as_fd(), libc::SIGKILL);
        // The first process is not gone before all others are, and those that are traced are not
        // gone before their tracer, this thread, has waited for them.
        while let Ok(Some((pid, status))) = wait::wait_blocking(-1) {
            if pid == self.init && crate::tracee::Event::decode(status).is_end() {
                break;
            }
        }
    }
}

/// The life of the cage's first process.
fn first_process(config: &SupervisorConfig, mut line: UnixStream) -> io::Result<()> {
    let deputy = match prepare(config) {
        Ok(deputy) => deputy,
        Err(error) => return report(&mut line, Err(error)),
    };
    report(&mut line, Ok(()))?;
    let mut request = [0];
    line.read_exact(&mut request)?;
    if request != [START] {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let started = start_leader(&mut line, deputy.as_fd());
    report(&mut line, started)?;
    drop(deputy);
    reap()
}

fn report(line: &mut UnixStream, step: io::Result<()>) -> io::Result<()> {
    match step {
        Ok(()) => line.write_all(&[DONE]),
        Err(error) => {
            line.write_all(error.to_string().as_bytes())?;
            line.shutdown(std::net::Shutdown::Write)?;
            Err(error)
        }
    }
}

/// Closes the cage; answers the directory of the deputy's files.
fn prepare(config: &SupervisorConfig) -> io::Result<OwnedFd> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    nix::unistd::setsid()?;
    nix::unistd::sethostname(&config.home)?;
    let deputy = mounts::open_directory(&config.proc_dir)?;
    mounts::enter(config)?;
    Ok(deputy)
}

fn start_leader(line: &mut UnixStream, deputy: BorrowedFd<'_>) -> io::Result<()> {
    let (mut pid, mut monotonic, mut boottime) = ([0; 4], [0; 8], [0; 8]);
    line.read_exact(&mut pid)?;
    line.read_exact(&mut monotonic)?;
    line.read_exact(&mut boottime)?;
    let clocks = ClockOffsets {
        monotonic_ns: i64::from_le_bytes(monotonic),
        boottime_ns: i64::from_le_bytes(boottime),
    };
    let mut length = [0];
    line.read_exact(&mut length)?;
    let mut hostname = vec![0; usize::from(length[0])];
    line.read_exact(&mut hostname)?;
    if !hostname.is_empty() {
        nix::unistd::sethostname(std::ffi::OsStr::from_bytes(&hostname))?;
    }
    enter_time_namespace(clocks)?;
    match clone3::fork(0, &[i32::from_le_bytes(pid)])? {
        Forked::Parent { .. } => Ok(()),
        Forked::Child => leader(deputy),
    }
}

/// Children of the caller will see its clocks moved by as much (time_namespaces(7)).
fn enter_time_namespace(clocks: ClockOffsets) -> io::Result<()> {
    const CLONE_NEWTIME: i32 = 0x80;
    nix::sched::unshare(CloneFlags::from_bits_retain(CLONE_NEWTIME))?;
    let split = |ns: i64| (ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000));
    let (monotonic, boottime) = (split(clocks.monotonic_ns), split(clocks.boottime_ns));
    let offsets = format!(
        "monotonic {} {}\nboottime {} {}\n",
        monotonic.0, monotonic.1, boottime.0, boottime.1
    );
    std::fs::write("/proc/self/timens_offsets", offsets)
}

/// What becomes the guest waits here to be taken over; in a process group of its own whose session
/// has another member, so that stop signals are not ignored for an orphaned group.
fn leader(deputy: BorrowedFd<'_>) -> ! {
    let me = nix::unistd::Pid::from_raw(0);
    let _ = nix::unistd::setpgid(me, me);
    // Unlike its supervisor it goes before nobody.
    if set_share(Share::ORDINARY).is_err() {
        std::process::exit(1);
    }
    crate::sys::signals::default_all();
    let _ = crate::sys::signals::unblock_all();
    if crate::sys::fds::keep_only(deputy).is_err() {
        std::process::exit(1);
    }
    loop {
        nix::unistd::pause();
    }
}

/// Waits until nothing but this process is left.
fn reap() -> io::Result<()> {
    loop {
        match nix::sys::wait::wait() {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return Ok(()),
        }
    }
}
