//! The process that holds a lab: first process of the lab's PID namespace (so that everything ends
//! with it), owner of the network namespace with the bridge, parent of all nodes.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};

use super::boot;
use super::control::{LabStatus, Reply, Request, read_request, send_reply};
use super::node::Node;
use super::options::LabOptions;
use crate::netlink::Netlink;

/// The bridge to which all nodes are plugged.
pub(super) const BRIDGE: &str = "lab";
/// The directory of the nodes' disks, in the supervisor's mount namespace.
pub(super) const DATA_DIR: &str = "/run/lab-data";
/// The `omfs` program in there.
pub(super) const OMFS_BINARY: &str = "/run/lab-data/omfs";
/// What the supervisor tells the owner when all nodes run.
pub(super) const READY: &str = "ready";

/// Runs a lab until it is told to end; gives the exit status.
pub fn main(options: &LabOptions) -> i32 {
    match prepare(options).and_then(|(lab, listener)| {
        let serving = Arc::clone(&lab);
        std::thread::spawn(move || serving.serve(&listener));
        lab.start_all()?;
        Ok(lab)
    }) {
        Ok(_lab) => {
            let _ = tell_owner(READY, &options.state_dir());
            loop {
                std::thread::park();
            }
        }
        Err(error) => {
            let _ = tell_owner(&format!("{error:#}"), &options.state_dir());
            1
        }
    }
}

/// Says how it went, and closes the pipe to the owner.
fn tell_owner(text: &str, state_dir: &Path) -> Result<()> {
    let mut stdout = std::io::stdout();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    let log = File::options()
        .create(true)
        .append(true)
        .open(state_dir.join("log"))?;
    nix::unistd::dup2_stdout(&log)?;
    Ok(())
}

fn prepare(options: &LabOptions) -> Result<(Arc<Supervisor>, UnixListener)> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    SigSet::empty().thread_set_mask()?;
    let state_dir = options.state_dir();
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC,
    )
    .context("namespaces for the lab")?;
    private_root(options, &state_dir).context("the lab's root directory")?;
    let log = File::options()
        .create(true)
        .append(true)
        .open(state_dir.join("log"))?;
    nix::unistd::dup2_stderr(&log)?;
    nix::unistd::dup2_stdin(File::open("/dev/null")?)?;
    let mut netlink = Netlink::open()?;
    netlink.add_bridge(BRIDGE).context("a network bridge")?;
    netlink.set_up(BRIDGE, true)?;
    let listener = UnixListener::bind(state_dir.join("control.sock")).context("control socket")?;
    let nodes = (0..options.nodes)
        .map(|index| Node::new(index, options))
        .collect::<Result<_>>()?;
    Ok((
        Arc::new(Supervisor {
            options: options.clone(),
            nodes,
        }),
        listener,
    ))
}

/// Leaves the host's mounts for a root with only what the lab needs, so that the lab does not keep
/// anybody's mount busy.
fn private_root(options: &LabOptions, state_dir: &Path) -> Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let root = state_dir.join("root");
    fs::create_dir(&root)?;
    let bind = |from: &Path, to: &Path, flags: MsFlags| {
        mount(Some(from), to, none, MsFlags::MS_BIND | flags, none)
            .with_context(|| format!("{} on {}", from.display(), to.display()))
    };
    bind(Path::new("/"), &root, MsFlags::empty())?;
    mount(
        Some("proc"),
        &root.join("proc"),
        Some("proc"),
        MsFlags::empty(),
        none,
    )?;
    bind(Path::new("/sys"), &root.join("sys"), MsFlags::MS_REC)?;
    bind(Path::new("/dev"), &root.join("dev"), MsFlags::MS_REC)?;
    let run = root.join("run");
    mount(
        Some("run"),
        &run,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=755"),
    )?;
    let inner_state = run.join(state_dir.strip_prefix("/run")?);
    fs::create_dir_all(&inner_state)?;
    bind(state_dir, &inner_state, MsFlags::empty())?;
    let data_dir = root.join(Path::new(DATA_DIR).strip_prefix("/")?);
    fs::create_dir(&data_dir)?;
    super::data::mount_at(&options.id, &data_dir)?;
    if let Some(binary) = &options.omfs_binary {
        let copy = data_dir.join("omfs");
        // A name of its own, since a build may replace the file while the lab runs.
        fs::hard_link(binary, &copy)
            .or_else(|_| fs::copy(binary, &copy).map(drop))
            .with_context(|| binary.display().to_string())?;
    }
    enter_root(&root)
}

/// Makes `root` the root directory, and lets go of the old one.
pub(super) fn enter_root(root: &Path) -> Result<()> {
    std::env::set_current_dir(root)?;
    nix::unistd::pivot_root(".", ".").context("pivot_root")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    std::env::set_current_dir("/")?;
    Ok(())
}

#[derive(Debug)]
pub(super) struct Supervisor {
    options: LabOptions,
    nodes: Vec<Node>,
}

impl Supervisor {
    /// Starts every node, all at once where one does not need the other.
    fn start_all(&self) -> Result<()> {
        std::thread::scope(|scope| {
            let started: Vec<_> = self
                .nodes
                .iter()
                .map(|node| scope.spawn(|| node.start()))
                .collect();
            let mut results = started.into_iter().map(|one| one.join());
            results.try_for_each(|one| one.unwrap_or_else(|_| anyhow::bail!("panicked")))
        })?;
        boot::boot_all(&self.options)
    }

    fn serve(self: &Arc<Self>, listener: &UnixListener) {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { continue };
            let lab = Arc::clone(self);
            std::thread::spawn(move || {
                let _ = lab.answer(&stream);
            });
        }
    }

    fn answer(&self, stream: &UnixStream) -> Result<()> {
        let request = read_request(stream)?;
        if matches!(request, Request::Down) {
            send_reply(stream, &Reply::default(), &[])?;
            self.thaw_all();
            std::process::exit(0);
        }
        if let Request::Enter { node } = &request {
            return self.answer_enter(stream, node);
        }
        let reply = match self.perform(&request) {
            Ok(reply) => reply,
            Err(error) => Reply {
                error: Some(format!("{error:#}")),
                ..Reply::default()
            },
        };
        send_reply(stream, &reply, &[])
    }

    fn answer_enter(&self, stream: &UnixStream, node: &str) -> Result<()> {
        match self
            .node(node)
            .and_then(|node| Ok((node.init()?, node.procs_files())))
        {
            Ok((init, procs_files)) => {
                let reply = Reply {
                    procs_files,
                    ..Reply::default()
                };
                send_reply(stream, &reply, &[init.as_raw_fd()])
            }
            Err(error) => {
                let reply = Reply {
                    error: Some(format!("{error:#}")),
                    ..Reply::default()
                };
                send_reply(stream, &reply, &[])
            }
        }
    }

    fn perform(&self, request: &Request) -> Result<Reply> {
        match request {
            Request::Status => {
                let nodes = self.nodes.iter().map(Node::status).collect();
                let status = Some(LabStatus {
                    id: self.options.id.clone(),
                    nodes,
                });
                return Ok(Reply {
                    status,
                    ..Reply::default()
                });
            }
            Request::Kill { node } => self.node(node)?.kill()?,
            Request::Start { node } => {
                self.node(node)?.start()?;
                boot::boot_one(&self.options, node)?;
            }
            Request::Cut { node } => self.node(node)?.set_cut(true)?,
            Request::Heal { node } => self.node(node)?.set_cut(false)?,
            Request::Freeze { node } => self.node(node)?.set_frozen(true)?,
            Request::Thaw { node } => self.node(node)?.set_frozen(false)?,
            Request::Enter { .. } | Request::Down => {}
        }
        Ok(Reply::default())
    }

    /// What is frozen cannot end.
    fn thaw_all(&self) {
        for node in &self.nodes {
            let _ = node.set_frozen(false);
        }
    }

    fn node(&self, name: &str) -> Result<&Node> {
        self.nodes
            .iter()
            .find(|node| node.name() == name)
            .with_context(|| {
                format!(
                    "no node is called {name}; they are n1 to n{}",
                    self.nodes.len()
                )
            })
    }
}
