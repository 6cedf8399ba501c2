//! Namespaces with one blank child, as a supervisor makes them, but on the machine's own root.

use std::error::Error;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use migrator::sys::clone3::{self, Forked};
use migrator::sys::pidfd;
use nix::sched::CloneFlags;

const CLONE_NEWTIME: i32 = 0x80;
/// A busy machine may take seconds.
const STEP_LIMIT: Duration = Duration::from_secs(20);

pub fn run(
    pid: &str,
    monotonic_ns: &str,
    boottime_ns: &str,
    deputy: &str,
) -> Result<(), Box<dyn Error>> {
    let pid: i32 = pid.parse()?;
    let deputy = fs::File::open(deputy)?;
    let offsets: (i64, i64) = (monotonic_ns.parse()?, boottime_ns.parse()?);
    let flags = CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC;
    match clone3::fork(flags.bits() as u64, &[])? {
        Forked::Child => {
            let made = first_process(pid, offsets, deputy.as_fd());
            eprintln!("cage: {made:?}");
            std::process::exit(1)
        }
        Forked::Parent { pid: init, pidfd } => {
            let mut rest = Vec::new();
            println!("{}", blank_child(init)?);
            io::stdin().read_to_end(&mut rest)?;
            pidfd::send_signal(pidfd.as_fd(), libc::SIGKILL)?;
            Ok(())
        }
    }
}

/// The child, once it has closed its other descriptors, which is the last thing it does by itself. Without
/// one this process ends, or whoever reads what it says would wait for ever.
fn blank_child(init: i32) -> Result<i32, Box<dyn Error>> {
    let children = format!("/proc/{init}/task/{init}/children");
    let deadline = Instant::now() + STEP_LIMIT;
    while Instant::now() < deadline {
        let text = fs::read_to_string(&children)?;
        if let Some(child) = text.split_whitespace().next()
            && fs::read_dir(format!("/proc/{child}/fd"))?.count() == 1
        {
            return Ok(child.parse()?);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err("the first process has started none".into())
}

fn first_process(
    pid: i32,
    (monotonic_ns, boottime_ns): (i64, i64),
    deputy: BorrowedFd<'_>,
) -> Result<(), Box<dyn Error>> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    nix::sched::unshare(CloneFlags::from_bits_retain(CLONE_NEWTIME))?;
    let line = |name: &str, ns: i64| {
        let (seconds, rest) = (ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000));
        format!("{name} {seconds} {rest}\n")
    };
    let text = line("monotonic", monotonic_ns) + &line("boottime", boottime_ns);
    fs::write("/proc/self/timens_offsets", text)?;
    match clone3::fork(0, &[pid])? {
        Forked::Child => {
            migrator::sys::fds::keep_only(deputy)?;
            loop {
                nix::unistd::pause();
            }
        }
        Forked::Parent { .. } => loop {
            match nix::sys::wait::wait() {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(_) => return Ok(()),
            }
        },
    }
}
