//! A node as the supervisor sees it.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, poll};

use super::cgroup::LabCgroups;
use super::control::{NodeStatus, receive_some};
use super::init::{self, NodeSpec};
use super::options::{LabOptions, node_address, node_name};
use super::supervisor::BRIDGE;
use crate::netlink::Netlink;
use omfs_sys::pidfd;

/// How long making a node may take.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long its processes may take to end.
const KILL_TIMEOUT_MS: u16 = 60_000;

/// One node, with power or without.
#[derive(Debug)]
pub(super) struct Node {
    index: usize,
    spec: NodeSpec,
    cgroups: LabCgroups,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    running: Option<Running>,
    cut: bool,
}

#[derive(Debug)]
struct Running {
    /// Waits for the node's first process.
    parent: Child,
    /// The node's first process.
    init: OwnedFd,
}

impl Node {
    pub(super) fn new(index: usize, options: &LabOptions) -> Result<Self> {
        let spec = NodeSpec {
            name: node_name(index),
            address: node_address(index),
            options: options.clone(),
        };
        let cgroups = LabCgroups::new(&options.id)?;
        Ok(Self {
            index,
            spec,
            cgroups,
            state: Mutex::default(),
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.spec.name
    }

    pub(super) fn status(&self) -> NodeStatus {
        let mut state = self.state();
        let ended = |running: &mut Running| !matches!(running.parent.try_wait(), Ok(None));
        if state.running.as_mut().is_some_and(ended) {
            state.running = None;
        }
        NodeStatus {
            name: self.spec.name.clone(),
            address: self.spec.address.to_string(),
            running: state.running.is_some(),
            cut: state.cut,
        }
    }

    /// Its first process, by which everybody enters.
    pub(super) fn init(&self) -> Result<OwnedFd> {
        let state = self.state();
        let running = state.running.as_ref();
        let running = running.with_context(|| format!("{} has no power", self.spec.name))?;
        Ok(running.init.try_clone()?)
    }

    pub(super) fn procs_files(&self) -> Vec<PathBuf> {
        self.cgroups.procs_files(&self.spec.name)
    }

    /// Makes its namespaces, link and root; `omfs` is started by others.
    pub(super) fn start(&self) -> Result<()> {
        let mut state = self.state();
        ensure!(state.running.is_none(), "{} is running", self.spec.name);
        let name = &self.spec.name;
        self.cgroups
            .create_node(name, self.index, &self.spec.options)?;
        state.running = Some(
            self.launch(state.cut)
                .with_context(|| format!("node {name}"))?,
        );
        Ok(())
    }

    fn launch(&self, cut: bool) -> Result<Running> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(START_TIMEOUT))?;
        let parent = Command::new("/proc/self/exe")
            .arg(init::SUBCOMMAND)
            .arg(serde_json::to_string(&self.spec)?)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .context("spawn")?;
        let (first, fds) = receive_some(&ours)?;
        let Ok([init, netns]) = <[OwnedFd; 2]>::try_from(fds) else {
            bail!("it did not start: {}", rest(&ours, first));
        };
        self.plug_in(&netns, cut)?;
        (&ours).write_all(b"g")?;
        let answer = rest(&ours, Vec::new());
        ensure!(answer == init::READY, "{answer}");
        Ok(Running { parent, init })
    }

    fn plug_in(&self, netns: &OwnedFd, cut: bool) -> Result<()> {
        let mut netlink = Netlink::open()?;
        let name = &self.spec.name;
        let [.., high, low] = self.spec.address.octets();
        let mac = [0x02, 0x77, 0, 0, high, low];
        netlink
            .add_veth(name, BRIDGE, init::LINK, mac, netns.as_fd())
            .context("a pair of links")?;
        if let Some(mbit) = self.spec.options.link_mbit {
            netlink.limit_rate(name, mbit).context("a link rate")?;
        }
        if cut {
            netlink.set_master(name, None)?;
        }
        netlink.set_up(name, true)?;
        Ok(())
    }

    /// Takes its power away: the link goes first, so that nobody hears a last word.
    pub(super) fn kill(&self) -> Result<()> {
        let mut state = self.state();
        let name = &self.spec.name;
        let running = state
            .running
            .take()
            .with_context(|| format!("{name} has no power"))?;
        let mut netlink = Netlink::open()?;
        netlink.set_up(name, false)?;
        let _ = self.cgroups.set_frozen(name, false); // what is frozen cannot end
        let result = end(running).with_context(|| format!("node {name}"));
        let _ = netlink.delete_link(name);
        result
    }

    /// Pulls its cable or plugs it in; its link stays up and packets vanish.
    pub(super) fn set_cut(&self, cut: bool) -> Result<()> {
        let mut state = self.state();
        if state.running.is_some() {
            let bridge = (!cut).then_some(BRIDGE);
            Netlink::open()?.set_master(&self.spec.name, bridge)?;
        }
        state.cut = cut;
        Ok(())
    }

    /// Stops all its processes where they are, or lets them go on.
    pub(super) fn set_frozen(&self, frozen: bool) -> Result<()> {
        let state = self.state();
        let name = &self.spec.name;
        ensure!(state.running.is_some(), "{name} has no power");
        self.cgroups.set_frozen(name, frozen)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Kills the first process, and all others of its PID namespace with it, and waits for the last.
fn end(mut running: Running) -> Result<()> {
    pidfd::send_signal(running.init.as_fd(), libc::SIGKILL)?;
    let mut fds = [PollFd::new(running.init.as_fd(), PollFlags::POLLIN)];
    ensure!(
        poll(&mut fds, KILL_TIMEOUT_MS)? == 1,
        "its processes do not end"
    );
    running.parent.wait()?;
    Ok(())
}

/// What comes until the end of the stream, as text.
fn rest(mut stream: &UnixStream, mut bytes: Vec<u8>) -> String {
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}
