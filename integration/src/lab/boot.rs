//! Starting `omfs` in nodes: one cluster, `/mfs` mounted everywhere.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::options::{LabOptions, node_address, node_name};
use super::{run as running, wait};

/// How long one command may take, on the slowest node.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);
/// The port of the control plane, where nodes join.
const CONTROL_PORT: u16 = 7780;
const START_DAEMON: &str = "exec omfs daemon >>/var/log/omfs.log 2>&1 </dev/null";
const MOUNT: &str = "if command -v mount >/dev/null; then exec mount -t fuse.omfs omfs /mfs; \
                     else exec /sbin/mount.fuse.omfs omfs /mfs; fi";

/// Starts `omfs` in all nodes.
pub(super) fn boot_all(options: &LabOptions) -> Result<()> {
    if options.omfs_binary.is_none() {
        return Ok(());
    }
    let first = node_name(0);
    run(options, &first, &["omfs", "cluster", "init", "lab"])?;
    start_daemon(options, &first)?;
    let uses = options.nodes.max(1).to_string();
    let token = ["omfs", "cluster", "token", "--uses", &uses];
    let token = run(options, &first, &token)?;
    std::thread::scope(|scope| {
        let token = token.trim();
        let others: Vec<_> = (1..options.nodes)
            .map(|index| scope.spawn(move || join(options, index, token)))
            .chain([scope.spawn(|| mount(options, &node_name(0)))])
            .collect();
        let mut results = others.into_iter().map(|one| one.join());
        results.try_for_each(|one| one.unwrap_or_else(|_| anyhow::bail!("panicked")))
    })
}

/// Starts `omfs` in a node that has been a member before.
pub(super) fn boot_one(options: &LabOptions, node: &str) -> Result<()> {
    if options.omfs_binary.is_none() {
        return Ok(());
    }
    start_daemon(options, node)?;
    mount(options, node)
}

/// Nodes join all at once, and yet n2 is node 2.
fn join(options: &LabOptions, index: usize, token: &str) -> Result<()> {
    let first = format!("{}:{CONTROL_PORT}", node_address(0));
    let (node, id) = (node_name(index), (index + 1).to_string());
    let token = format!("OMFS_TOKEN={token}");
    run(
        options,
        &node,
        &[
            "env", &token, "omfs", "cluster", "join", &first, "--id", &id,
        ],
    )?;
    start_daemon(options, &node)?;
    mount(options, &node)
}

/// Starts the daemon and waits until it answers.
fn start_daemon(options: &LabOptions, node: &str) -> Result<()> {
    let mut daemon = exec(options, node, &["sh", "-c", START_DAEMON])?;
    let mut child = daemon.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    std::thread::spawn(move || child.wait());
    let answers = || run(options, node, &["omfs", "status"]).ok();
    if wait::until(COMMAND_TIMEOUT, answers).is_none() {
        let log = run(options, node, &["tail", "-n", "20", "/var/log/omfs.log"]);
        anyhow::bail!(
            "{node}: omfs daemon does not answer:\n{}",
            log.unwrap_or_default()
        );
    }
    Ok(())
}

fn mount(options: &LabOptions, node: &str) -> Result<()> {
    if !options.mount {
        return Ok(());
    }
    run(options, node, &["sh", "-c", MOUNT]).map(drop)
}

/// A command in a node, by way of this lab's own socket.
fn exec(options: &LabOptions, node: &str, command: &[&str]) -> Result<Command> {
    let mut exec = Command::new("/proc/self/exe");
    exec.args(["--lab", &options.id, "exec", node, "--"])
        .args(command);
    Ok(exec)
}

/// Runs a command in a node and gives what it printed.
fn run(options: &LabOptions, node: &str, command: &[&str]) -> Result<String> {
    let output = running::output(&mut exec(options, node, command)?, COMMAND_TIMEOUT)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{node}: {}: {}: {}",
        command.join(" "),
        output.status,
        errors.trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
