//! A node from the inside: its namespaces, its network, and its first process.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::cgroup::LabCgroups;
use super::control::send_with_fds;
use super::options::{LabOptions, PREFIX};
use super::rootfs;
use crate::netlink::Netlink;
use crate::sys::process;
use omfs_sys::pidfd;

/// How the supervisor calls this part of the program.
pub const SUBCOMMAND: &str = "__node";
/// A node's link to the bridge.
pub(super) const LINK: &str = "eth0";
/// What a node says when it is made.
pub(super) const READY: &str = "ready";

/// One node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeSpec {
    /// Its host name.
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// The lab.
    pub options: LabOptions,
}

/// Becomes the parent of a node's first process, in the node's namespaces; standard input is the
/// socket to the supervisor. Gives the first process' exit status.
///
/// # Errors
/// Something could not be made; the supervisor was told.
pub fn main(spec: &NodeSpec) -> Result<i32> {
    let channel = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    nix::unistd::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    let init = match begin(spec, &channel) {
        Ok(init) => init,
        Err(error) => {
            let _ = (&channel).write_all(format!("{error:#}").as_bytes());
            return Err(error);
        }
    };
    // The supervisor must see the end of the stream when the first process dies.
    drop(channel);
    match waitpid(init, None)? {
        WaitStatus::Exited(_, status) => Ok(status),
        _ => Ok(1),
    }
}

/// Makes the namespaces and the first process, and sends the supervisor the descriptors of both.
fn begin(spec: &NodeSpec, channel: &UnixStream) -> Result<Pid> {
    let cgroups = LabCgroups::new(&spec.options.id)?;
    cgroups.become_root(&spec.name).context("control groups")?;
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWPID,
    )
    .context("namespaces")?;
    let netns = std::fs::File::open("/proc/self/ns/net")?;
    let init = process::fork(|| first_process(spec, &cgroups, channel))?;
    let init_fd = pidfd::open(init.as_raw())?;
    send_with_fds(channel, b"i", &[init_fd.as_raw_fd(), netns.as_raw_fd()])?;
    Ok(init)
}

fn first_process(spec: &NodeSpec, cgroups: &LabCgroups, mut channel: &UnixStream) -> i32 {
    match build(spec, cgroups, channel) {
        Ok(()) => {
            let _ = channel.write_all(READY.as_bytes());
            let _ = channel.shutdown(std::net::Shutdown::Both);
            reap_for_ever()
        }
        Err(error) => {
            let _ = channel.write_all(format!("{error:#}").as_bytes());
            1
        }
    }
}

fn build(spec: &NodeSpec, cgroups: &LabCgroups, mut channel: &UnixStream) -> Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    let mut go = [0];
    channel
        .read_exact(&mut go)
        .context("the supervisor is gone")?;
    nix::unistd::sethostname(&spec.name)?;
    configure_network(spec).context("network")?;
    rootfs::enter(spec, cgroups).context("root directory")
}

fn configure_network(spec: &NodeSpec) -> Result<()> {
    let mut netlink = Netlink::open()?;
    netlink.set_up("lo", true)?;
    netlink.add_address(LINK, spec.address, PREFIX)?;
    if let Some(mbit) = spec.options.link_mbit {
        netlink.limit_rate(LINK, mbit)?;
    }
    netlink.set_up(LINK, true)?;
    Ok(())
}

/// What is left of an init: it collects orphans until it is killed.
fn reap_for_ever() -> i32 {
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    if children.thread_block().is_err() {
        return 1;
    }
    loop {
        while let Ok(status) = waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            if status == WaitStatus::StillAlive {
                break;
            }
        }
        let _ = children.wait();
    }
}
