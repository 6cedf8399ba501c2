//! Jobs that move by themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::lab::{Lab, wait};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::harness::{Module, SOON, with_omfs};

pub fn tests() -> Vec<Trial> {
    let mut module = Module::new("balancing", &[], || with_omfs(1));
    module
        .alone("jobs_spread_and_then_stay", &[], spread)
        .alone("short_jobs_stay", &[], short_jobs)
        .alone("a_node_with_work_of_its_own_sheds_guests", &[], shedding)
        .alone("run_places_jobs", &[], placing);
    module.finish()
}

fn lab_of(nodes: usize) -> Result<Lab> {
    let mut options = with_omfs(nodes)?;
    options.cpu_percent = Some(20);
    Lab::up(&options)
}

const BUSY: &str = "sh -c 'i=0; while :; do i=$((i+1)); done'";

/// A job started in `omfs shell` or by `omfs run`; it ends with this value.
struct Started(Child);

impl Started {
    fn start(lab: &Lab, node: &str, script: &str) -> Result<Self> {
        let mut command = lab.command(node, ["sh", "-c", script])?;
        let command = command.stdin(Stdio::null()).stdout(Stdio::null());
        Ok(Self(command.spawn()?))
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The balanced jobs of a node: PID to where it is and how often it moved.
fn jobs(lab: &Lab, node: &str) -> Result<BTreeMap<i64, (String, u64)>> {
    let text = lab.sh(node, "omfs ps --json")?;
    let list: Value = serde_json::from_str(&text)?;
    let describe = |job: &Value| {
        let busy = job["command"].as_str()?.contains("while") || job["command"] == "sh";
        let home = job["home"] == node && busy;
        let place = job["where"].as_str()?.to_owned();
        home.then_some((job["pid"].as_i64()?, (place, job["moves"].as_u64()?)))
    };
    Ok(list
        .as_array()
        .context("no array")?
        .iter()
        .filter_map(describe)
        .collect())
}

/// How long a steady state is watched; `OMFS_STEADY_S` sets another time, in seconds.
const STEADY: Duration = Duration::from_secs(20);

fn steady() -> Duration {
    let wanted = std::env::var("OMFS_STEADY_S").ok();
    let seconds = wanted.and_then(|text| text.parse().ok());
    seconds.map_or(STEADY, Duration::from_secs)
}

fn spread() -> Result<()> {
    let lab = lab_of(4)?;
    let script = format!("omfs shell -c \"{BUSY} & {BUSY} & {BUSY} & {BUSY} & wait\"");
    let _jobs = Started::start(&lab, "n1", &script.replace('$', "\\$"))?;
    let everywhere = || {
        let jobs = jobs(&lab, "n1").ok()?;
        let places: BTreeSet<&str> = jobs.values().map(|(place, _)| place.as_str()).collect();
        (places.len() == 4).then_some(())
    };
    wait::until(SOON, everywhere).context("they do not spread")?;
    std::thread::sleep(Duration::from_secs(5));
    let before = jobs(&lab, "n1")?;
    std::thread::sleep(steady());
    let after = jobs(&lab, "n1")?;
    ensure!(
        before == after,
        "a steady state makes no moves: {before:?} {after:?}"
    );
    lab.down()
}

fn short_jobs() -> Result<()> {
    let lab = lab_of(3)?;
    let short = "timeout 1 sh -c 'while :; do :; done'";
    let script = format!("omfs shell -c \"for i in 1 2 3 4 5 6; do {short}; done\"");
    let _jobs = Started::start(&lab, "n1", &script)?;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(6) {
        let moved: Vec<_> = jobs(&lab, "n1")?
            .into_values()
            .filter(|job| job.1 > 0)
            .collect();
        ensure!(moved.is_empty(), "{moved:?}");
        std::thread::sleep(Duration::from_millis(300));
    }
    lab.down()
}

fn shedding() -> Result<()> {
    let lab = lab_of(3)?;
    let _job = Started::start(&lab, "n1", &format!("omfs run {BUSY}"))?;
    let _local = Started::start(&lab, "n1", BUSY)?;
    let away = || {
        let jobs = jobs(&lab, "n1").ok()?;
        jobs.values()
            .find(|job| job.0 != "n1")
            .map(|job| job.0.clone())
    };
    let host = wait::until(SOON, away).context("it does not leave")?;
    let _own: Vec<Started> = (0..2)
        .map(|_| Started::start(&lab, &host, BUSY))
        .collect::<Result<_>>()?;
    let left = || {
        let jobs = jobs(&lab, "n1").ok()?;
        jobs.values().all(|job| job.0 != host).then_some(())
    };
    wait::until(SOON, left).context("the host keeps its guest")?;
    lab.down()
}

fn placing() -> Result<()> {
    let lab = lab_of(3)?;
    let _on = Started::start(&lab, "n1", &format!("omfs run --on n3 {BUSY}"))?;
    let there = || {
        let jobs = jobs(&lab, "n1").ok()?;
        jobs.values().any(|job| job.0 == "n3").then_some(())
    };
    wait::until(SOON, there).context("it is not on n3")?;
    lab.down()
}
