//! Nodes and keepers that fall silent: cut off from the others, or frozen. What becomes of a job
//! then is in docs/protocol-job.md.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::lab::Lab;
use integration::lab::run::output;
use serde_json::Value;

use crate::harness::{BEGIN, BEGUN, SOON, until, with_omfs};

/// The limit of silence where a test is to see it passed; by default it is minutes.
const LIMITED: &str = "[jobs]\nsilence_max_ms = 15000\n";
/// Longer than that limit, and what a busy machine adds.
const TOO_LONG: Duration = Duration::from_secs(25);
/// A silence that must be borne.
const BORNE: Duration = Duration::from_secs(8);
/// How long an order may take that cannot be carried out.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// The processes of a job at its host and at home, and of nothing else.
const GUEST: &str = "pgrep -f '[s]ilent:'";

/// A job of n1 that adds to a file, and whose parent writes down how it ended.
struct Job<'lab> {
    lab: &'lab Lab,
    pid: i64,
}

impl<'lab> Job<'lab> {
    fn start(lab: &'lab Lab) -> Result<Self> {
        let job = format!("{BEGIN} : silent:; while :; do echo x >>/root/progress; done");
        let parent = format!(
            "rm -f /root/status /root/pid; \
             setsid sh -c \"sh -c '{}' & echo \\$! >/root/pid; wait \\$!; echo \\$? >/root/status\" \
             >/dev/null 2>&1 </dev/null &",
            job.replace('$', "\\$")
        );
        lab.sh("n1", &parent)?;
        until(lab, "n1", "test -s /root/pid")?;
        let script = format!("{BEGUN} begun $(cat /root/pid); cat /root/pid");
        let pid = lab.sh("n1", &script)?.trim().parse()?;
        Ok(Self { lab, pid })
    }

    fn at(lab: &'lab Lab, node: &str) -> Result<Self> {
        let job = Self::start(lab)?;
        job.migrate(node)?;
        until(lab, node, GUEST)?;
        Ok(job)
    }

    fn migrate(&self, target: &str) -> Result<()> {
        let script = format!("omfs migrate {} {target}", self.pid);
        self.lab.sh("n1", &script).map(drop)
    }

    fn works(&self) -> Result<()> {
        let size = self.lab.sh("n1", "stat -c %s /root/progress || echo 0")?;
        let grown = format!("[ $(stat -c %s /root/progress) -gt {} ]", size.trim());
        until(self.lab, "n1", &grown).context("the job does not work")
    }

    /// Where `omfs ps` says that it is.
    fn place(&self) -> Result<String> {
        let place = self.listed()?["where"].as_str().context("no text")?.into();
        Ok(place)
    }

    fn listed(&self) -> Result<Value> {
        let text = self.lab.sh("n1", "omfs ps -a --json")?;
        let jobs: Value = serde_json::from_str(&text)?;
        let mut jobs = jobs.as_array().context("no array")?.iter();
        let job = jobs.find(|job| job["pid"] == self.pid && job["home"] == "n1");
        Ok(job
            .with_context(|| format!("{text} without {}", self.pid))?
            .clone())
    }

    /// It was killed, and whoever asks is told why.
    fn is_lost(&self, host: &str, why: &str) -> Result<()> {
        until(self.lab, "n1", "test -s /root/status").context("its parent does not hear")?;
        let status = self.lab.sh("n1", "cat /root/status")?;
        ensure!(status == "137\n", "its parent saw {status}");
        let listed = self.listed()?;
        let note = listed["note"].as_str().unwrap_or_default();
        ensure!(
            listed["state"] == "lost" && listed["where"] == host && note.contains(why),
            "no {why:?} in {listed}"
        );
        let log = self.lab.sh("n1", "grep 'job lost' /var/log/omfs.log")?;
        let told = |line: &str| {
            line.contains(&format!("pid={}", self.pid)) && line.contains(host) && line.contains(why)
        };
        ensure!(log.lines().any(told), "{log}");
        Ok(())
    }

    fn end(self) -> Result<()> {
        let kill = format!("kill -KILL {}", self.pid);
        self.lab.sh("n1", &kill)?;
        until(self.lab, "n1", "test -s /root/status")
    }
}

fn lab_of(nodes: usize) -> Result<Lab> {
    Lab::up(&with_omfs(nodes)?)
}

/// Nodes that bear a silence of 15 s.
fn limited_lab() -> Result<Lab> {
    let mut options = with_omfs(2)?;
    options.config.push_str(LIMITED);
    Lab::up(&options)
}

/// All nodes are one cluster again, nothing of a lost job is left, and the next one moves.
fn all_is_well(lab: &Lab, host: &str) -> Result<()> {
    for (node, other) in [("n1", host), (host, "n1")] {
        until(lab, node, &format!("cat /mfs/{other}/etc/hostname"))?;
    }
    let nothing = "! pgrep -f ' [s]upervisor --home' && [ -z \"$(ls /run/omfs/guests)\" ] && \
                   ! grep ' /mfs/.*/mfs ' /proc/mounts";
    until(lab, host, &format!("! {GUEST} && {nothing}")).context("something is left")?;
    until(
        lab,
        "n1",
        "! pgrep -f ' [s]him --pid' && ! ls /run/omfs/jobs/*.sock",
    )
    .context("something is left at home")?;
    let job = Job::start(lab)?;
    // Who has just come back may not be believed in yet.
    until(lab, "n1", &format!("omfs migrate {} {host}", job.pid))?;
    until(lab, host, GUEST)?;
    job.works()?;
    job.migrate("home")?;
    job.works()?;
    job.end()
}

/// Pulls a cable between a job's home, n1, and its host, n2.
fn cut(node: &str) -> Result<()> {
    let lab = lab_of(3)?;
    let job = Job::at(&lab, "n2")?;
    job.works()?;
    lab.cut(node)?;
    until(&lab, "n2", &format!("! {GUEST}")).context("the guest outlives its link")?;
    job.is_lost("n2", "the host is lost: ")?;
    let killed = format!(
        "grep 'guest killed' /var/log/omfs.log | grep 'pid={}'",
        job.pid
    );
    lab.sh("n2", &killed).context("its log says nothing")?;
    if node == "n2" {
        // The others do not wait for it.
        let next = Job::at(&lab, "n3")?;
        next.works()?;
        next.end()?;
    }
    lab.heal(node)?;
    all_is_well(&lab, "n2")?;
    lab.down()
}

pub fn home_cut_off() -> Result<()> {
    cut("n1")
}

pub fn host_cut_off() -> Result<()> {
    cut("n2")
}

/// Freezes a node for less than the limit, which does no harm, and then for longer.
fn frozen(node: &str, why: &str) -> Result<()> {
    let lab = limited_lab()?;
    let job = Job::at(&lab, "n2")?;
    job.works()?;
    lab.freeze(node)?;
    std::thread::sleep(BORNE);
    lab.thaw(node)?;
    job.works().context("after a short silence")?;
    ensure!(job.place()? == "n2", "{}", job.listed()?);
    lab.freeze(node)?;
    std::thread::sleep(TOO_LONG);
    if node == "n1" {
        until(&lab, "n2", &format!("! {GUEST}")).context("a guest outlives its home's silence")?;
    } else {
        job.is_lost("n2", why)?;
    }
    lab.thaw(node)?;
    until(&lab, "n2", &format!("! {GUEST}")).context("a guest outlives its job")?;
    job.is_lost("n2", why)?;
    all_is_well(&lab, "n2")?;
    lab.down()
}

pub fn home_frozen() -> Result<()> {
    frozen("n1", "the host is lost: ")
}

pub fn host_frozen() -> Result<()> {
    frozen("n2", "no sign of life")
}

/// Freezes each node in turn for longer than a dead one takes to be noticed.
pub fn long_frozen() -> Result<()> {
    let lab = lab_of(2)?;
    let job = Job::at(&lab, "n2")?;
    for node in ["n1", "n2"] {
        job.works()?;
        lab.freeze(node)?;
        std::thread::sleep(TOO_LONG);
        lab.thaw(node)?;
        job.works().with_context(|| format!("{node} was frozen"))?;
        ensure!(job.place()? == "n2", "{}", job.listed()?);
    }
    job.migrate("home")?;
    job.works()?;
    job.end()?;
    lab.down()
}

/// Freezes a job's cgroup at home, as `docker pause` does, while the job makes calls there.
pub fn deputy_frozen() -> Result<()> {
    let lab = lab_of(2)?;
    let frozen = "/sys/fs/cgroup/freezer/paused";
    lab.sh("n1", &format!("mkdir -p {frozen}"))?;
    let start = "rm -f /root/said; mkfifo -m 600 /root/pipe; cat /root/pipe >/root/said 2>/dev/null </dev/null & \
        setsid python3 -uc 'import itertools,time\nfor i in itertools.count(): print(i); time.sleep(0.05)' \
        >/root/pipe 2>/dev/null </dev/null & echo $!";
    let pid = lab.sh("n1", start)?.trim().to_owned();
    let grows = |what: &str| -> Result<()> {
        let lines = lab.sh("n1", "wc -l </root/said")?;
        let more = format!("[ $(wc -l </root/said) -gt $(({} + 20)) ]", lines.trim());
        until(&lab, "n1", &more).with_context(|| what.to_owned())
    };
    grows("at home")?;
    lab.sh("n1", &format!("omfs migrate {pid} n2"))?;
    grows("away")?;
    lab.sh(
        "n1",
        &format!("echo {pid} >{frozen}/cgroup.procs; echo FROZEN >{frozen}/freezer.state"),
    )?;
    std::thread::sleep(BORNE);
    lab.sh("n1", &format!("echo THAWED >{frozen}/freezer.state"))?;
    grows("after its deputy was frozen")?;
    lab.sh("n1", &format!("omfs migrate {pid} home"))?;
    grows("home again")?;
    lab.sh("n1", &format!("kill -KILL {pid}"))?;
    lab.down()
}

/// A keeper's own process, as its state file tells.
fn keeper(lab: &Lab, node: &str, file: &str) -> Result<i64> {
    let state: Value = serde_json::from_str(&lab.sh(node, &format!("cat /run/omfs/{file}"))?)?;
    state["keeper_pid"].as_i64().context("no keeper")
}

/// Stops the process of a keeper for longer than the limit.
fn stopped_keeper(node: &str, file: impl Fn(i64) -> String, why: &str) -> Result<()> {
    let lab = limited_lab()?;
    let job = Job::at(&lab, "n2")?;
    let keeper = keeper(&lab, node, &file(job.pid))?;
    lab.sh(node, &format!("kill -STOP {keeper}"))?;
    std::thread::sleep(TOO_LONG);
    if node == "n1" {
        until(&lab, "n2", &format!("! {GUEST}")).context("a guest outlives its home's silence")?;
    } else {
        job.is_lost("n2", why)?;
    }
    lab.sh(node, &format!("kill -CONT {keeper}"))?;
    until(&lab, "n2", &format!("! {GUEST}")).context("a guest outlives its job")?;
    job.is_lost("n2", why)?;
    all_is_well(&lab, "n2")?;
    lab.down()
}

pub fn shim_stopped() -> Result<()> {
    stopped_keeper("n1", |pid| format!("jobs/{pid}.json"), "the host is lost: ")
}

pub fn supervisor_stopped() -> Result<()> {
    stopped_keeper(
        "n2",
        |pid| format!("guests/1-{pid}.json"),
        "no sign of life",
    )
}

/// Orders a job to a node that does not answer; it must say so, and soon.
fn refused(lab: &Lab, job: &Job<'_>) -> Result<()> {
    let script = format!("omfs migrate {} n2", job.pid);
    let began = Instant::now();
    let result = output(&mut lab.command("n1", ["sh", "-c", &script])?, SOON)?;
    let took = began.elapsed();
    let said = String::from_utf8_lossy(&result.stderr);
    ensure!(
        result.status.code() == Some(69) && said.contains("n2 does not answer"),
        "{:?}: {said}",
        result.status
    );
    ensure!(took < ANSWER_MAX, "it took {took:?} to say: {said}");
    Ok(())
}

pub fn target_cut_off() -> Result<()> {
    let lab = lab_of(3)?;
    let job = Job::start(&lab)?;
    lab.cut("n2")?;
    // At first nobody knows yet.
    refused(&lab, &job)?;
    job.works()?;
    ensure!(job.place()? == "n1");
    job.migrate("n3")?;
    until(&lab, "n1", "omfs nodes | grep '^2 .*dead'")?;
    refused(&lab, &job)?;
    ensure!(job.place()? == "n3");
    job.works()?;
    lab.heal("n2")?;
    until(&lab, "n1", "cat /mfs/n2/etc/hostname")?;
    until(&lab, "n1", &format!("omfs migrate {} n2", job.pid))?;
    ensure!(job.place()? == "n2");
    job.works()?;
    job.end()?;
    lab.down()
}
