//! Emulated nodes on one machine.
//!
//! A lab is a tree of processes: [`guard`] (removes what namespaces leave) → [`supervisor`] (first
//! process of the lab's PID namespace, owner of the bridge) → per node its first process
//! ([`init`]) in namespaces of its own, with a root ([`rootfs`]) and limits ([`cgroup`]). When the
//! owner of a lab dies, in whatever way, the guard ends everything.

pub mod binaries;
mod boot;
pub mod cgroup;
pub mod control;
mod cpuset;
mod data;
pub mod exec;
pub mod guard;
pub mod init;
pub mod leaks;
mod machine;
mod node;
pub mod options;
mod relay;
mod rootfs;
pub mod run;
pub mod supervisor;
mod terminal;
pub mod wait;

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use control::{LabStatus, Request, ask};
use leaks::Footprint;
use options::{LAB_VARIABLE, LabOptions, state_dir};

/// How the owner calls the guard.
pub const GUARD_SUBCOMMAND: &str = "__guard";
const DOWN_TIMEOUT: Duration = Duration::from_secs(60);

/// A running lab. One that this process made ends with this value, or with the process.
#[derive(Debug)]
pub struct Lab {
    id: String,
    guard: Option<Owned>,
}

#[derive(Debug)]
struct Owned {
    child: Child,
    /// The guard ends the lab when this is closed.
    _life: ChildStdin,
}

impl Lab {
    /// Makes a lab and waits until all its nodes run.
    ///
    /// # Errors
    /// Says what could not be made; nothing is left then.
    pub fn up(options: &LabOptions) -> Result<Self> {
        options.check()?;
        machine::check()?;
        let mut child = Command::new(binaries::lab()?)
            .arg(GUARD_SUBCOMMAND)
            .arg(serde_json::to_string(options)?)
            .env(LAB_VARIABLE, &options.id)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the lab's guard")?;
        let mut progress = String::new();
        if let Some(mut stdout) = child.stdout.take() {
            stdout.read_to_string(&mut progress)?;
        }
        if progress != supervisor::READY {
            let status = child.wait()?;
            bail!("the lab did not come up: {} ({status})", progress.trim());
        }
        let life = child.stdin.take().context("no pipe to the guard")?;
        let guard = (!options.detached).then_some(Owned { child, _life: life });
        Ok(Self {
            id: options.id.clone(),
            guard,
        })
    }

    /// A lab that somebody else made.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn attach(id: &str) -> Result<Self> {
        let lab = Self {
            id: id.into(),
            guard: None,
        };
        lab.status()?;
        Ok(lab)
    }

    /// The lab's name.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// All nodes and how they are.
    ///
    /// # Errors
    /// The lab is gone.
    pub fn status(&self) -> Result<LabStatus> {
        let (reply, _) = ask(&state_dir(&self.id), &Request::Status)?;
        reply.status.context("no status came")
    }

    /// Turns a node's power off.
    ///
    /// # Errors
    /// No such node, or it has none.
    pub fn kill(&self, node: &str) -> Result<()> {
        self.request(&Request::Kill { node: node.into() })
    }

    /// Turns a node on again and waits until it is a member.
    ///
    /// # Errors
    /// No such node, or it does not start.
    pub fn start(&self, node: &str) -> Result<()> {
        self.request(&Request::Start { node: node.into() })
    }

    /// Pulls a node's network cable.
    ///
    /// # Errors
    /// No such node.
    pub fn cut(&self, node: &str) -> Result<()> {
        self.request(&Request::Cut { node: node.into() })
    }

    /// Plugs it in again.
    ///
    /// # Errors
    /// No such node.
    pub fn heal(&self, node: &str) -> Result<()> {
        self.request(&Request::Heal { node: node.into() })
    }

    /// Stops all processes of a node where they are; its kernel goes on answering. No command can
    /// be run in it until it is thawed.
    ///
    /// # Errors
    /// No such node, or this machine has no freezer.
    pub fn freeze(&self, node: &str) -> Result<()> {
        self.request(&Request::Freeze { node: node.into() })
    }

    /// Lets the processes of a frozen node go on.
    ///
    /// # Errors
    /// No such node.
    pub fn thaw(&self, node: &str) -> Result<()> {
        self.request(&Request::Thaw { node: node.into() })
    }

    fn request(&self, request: &Request) -> Result<()> {
        ask(&state_dir(&self.id), request).map(drop)
    }

    /// A command that runs in a node as root.
    ///
    /// # Errors
    /// The program `lab` is not found.
    pub fn command<S: AsRef<OsStr>>(
        &self,
        node: &str,
        command: impl IntoIterator<Item = S>,
    ) -> Result<Command> {
        self.command_with(&[], node, command)
    }

    /// A command in a node for which the node's limits do not count.
    ///
    /// # Errors
    /// The program `lab` is not found.
    pub fn unlimited_command<S: AsRef<OsStr>>(
        &self,
        node: &str,
        command: impl IntoIterator<Item = S>,
    ) -> Result<Command> {
        self.command_with(&["--unlimited"], node, command)
    }

    /// A command in a node, with options of `lab exec`.
    ///
    /// # Errors
    /// The program `lab` is not found.
    pub fn command_with<S: AsRef<OsStr>>(
        &self,
        options: &[&str],
        node: &str,
        command: impl IntoIterator<Item = S>,
    ) -> Result<Command> {
        let mut exec = Command::new(binaries::lab()?);
        exec.args(["--lab", &self.id, "exec"])
            .args(options)
            .args([node, "--"])
            .args(command);
        Ok(exec)
    }

    /// Runs a shell script in a node and gives all that came of it, within [`run::TIMEOUT`].
    ///
    /// # Errors
    /// It could not be started, or did not end in time.
    pub fn run(&self, node: &str, script: &str) -> Result<Output> {
        run::output(&mut self.command(node, ["sh", "-c", script])?, run::TIMEOUT)
            .with_context(|| format!("{node}: {script}"))
    }

    /// Runs a shell script in a node and gives what it printed.
    ///
    /// # Errors
    /// It did not exit with 0, in time; tells what it said.
    pub fn sh(&self, node: &str, script: &str) -> Result<String> {
        let output = self.run(node, script)?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "{node}: {script}: {}\n{stdout}{stderr}",
            output.status
        );
        Ok(stdout)
    }

    /// Writes a file in a node, making its directory.
    ///
    /// # Errors
    /// The node's, with what it said.
    pub fn put(&self, node: &str, path: &str, bytes: &[u8]) -> Result<()> {
        let script = "mkdir -p \"$(dirname \"$1\")\" && cat >\"$1\"";
        let mut writer = self
            .unlimited_command(node, ["sh", "-c", script, "sh", path])?
            .stdin(Stdio::piped())
            .spawn()?;
        writer.stdin.take().context("no pipe")?.write_all(bytes)?;
        ensure!(writer.wait()?.success(), "cannot write {path} on {node}");
        Ok(())
    }

    /// What the lab has that could outlive it; see [`Footprint::leaks`].
    #[must_use]
    pub fn footprint(&self) -> Footprint {
        Footprint::of(&self.id)
    }

    /// Ends the lab and waits until nothing of it is left.
    ///
    /// # Errors
    /// It does not end.
    pub fn down(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        let asked = self.request(&Request::Down);
        if let Some(mut owned) = self.guard.take() {
            drop(owned._life);
            owned.child.wait()?;
            return Ok(());
        }
        asked?;
        let dir = state_dir(&self.id);
        let gone = wait::until(DOWN_TIMEOUT, || (!dir.exists()).then_some(()));
        gone.with_context(|| format!("lab {} does not end", self.id))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.guard.is_some() {
            let _ = self.end();
        }
    }
}
