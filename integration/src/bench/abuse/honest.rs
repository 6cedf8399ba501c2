//! An honest user, in a node: each kind of work gives the 99th percentile of its latency.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use omfs_cluster::roster::Roster;
use omfs_dataplane::{self as dataplane, PURPOSE_FS};
use omfs_pki::Store;
use proto::ids::NodeId;

use super::attacks::become_user;

/// Another one than the attacker.
const HONEST_UID: u32 = 1001;
const STATE_DIR: &str = "/var/lib/omfs";
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// Milliseconds that 99 of 100 rounds of the work take at most, within `seconds`.
pub fn run(kind: &str, target: &str, seconds: u64) -> Result<f64> {
    let limit = Duration::from_secs(seconds);
    match kind {
        "files" => {
            become_user(HONEST_UID)?;
            let path = Path::new(target).join(format!("honest-{}", std::process::id()));
            percentile(limit, || files(&path))
        }
        "status" => {
            become_user(HONEST_UID)?;
            percentile(limit, || command(&["status"]))
        }
        "connect" => {
            let id = NodeId(target.parse()?);
            percentile(limit, || connect(id))
        }
        "move" => moves(target, limit),
        _ => bail!("no such work: {kind}"),
    }
}

fn percentile(limit: Duration, mut round: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut took = Vec::new();
    let end = Instant::now() + limit;
    while Instant::now() < end {
        let start = Instant::now();
        round()?;
        took.push(start.elapsed());
    }
    took.sort_unstable();
    let at = (took.len() * 99).div_ceil(100).saturating_sub(1);
    let worst = took.get(at).context("no round ended in time")?;
    Ok(worst.as_secs_f64() * 1000.0)
}

/// A small file's life.
fn files(path: &Path) -> Result<()> {
    fs::write(path, b"honest")?;
    ensure!(fs::read(path)? == b"honest", "it read something else");
    fs::remove_file(path)?;
    Ok(())
}

fn command(arguments: &[&str]) -> Result<()> {
    let output = Command::new("omfs").args(arguments).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "omfs {}: {said}",
        arguments.join(" ")
    );
    Ok(())
}

/// What a daemon does that has to reach a node anew.
fn connect(id: NodeId) -> Result<()> {
    let identity = Store::new(Path::new(STATE_DIR)).load()?;
    let roster = Roster::open(Path::new(STATE_DIR))?;
    let node = roster.nodes().iter().find(|node| node.id == id);
    let address = node.context("no such node")?.data;
    // A token of its own: it replaces no connection of the daemon.
    let token = std::process::id().to_be_bytes();
    let ours = dataplane::hello(identity.node(), PURPOSE_FS, &token, 1);
    let (link, _) = dataplane::connect(address, &identity, id, &ours, CONNECT_MAX)?;
    link.sink.close();
    Ok(())
}

/// A job that is ended with its measurement.
struct Job(Child);

impl Drop for Job {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A user's own job goes to a node and comes home.
fn moves(target: &str, limit: Duration) -> Result<f64> {
    become_user(HONEST_UID)?;
    std::env::set_current_dir("/")?;
    let mut sleep = Command::new("sleep");
    sleep
        .arg("600")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let job = Job(sleep.spawn()?);
    let pid = job.0.id().to_string();
    let there = |to: &str| command(&["migrate", &pid, to]);
    let moved = percentile(limit, || there(target).and_then(|()| there("home")));
    moved.map(|both| both / 2.0)
}
