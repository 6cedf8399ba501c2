//! Running all jobs in `omfs shell` and watching who runs where.

use std::collections::BTreeMap;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::screen::Screen;
use super::{DemoOptions, HOME, jobs};
use crate::lab::Lab;
use crate::lab::run::output;

/// How often is looked while jobs begin and move,
const INTERVAL: Duration = Duration::from_secs(1);
/// and later: home answers with the CPU time that its own job lacks.
const CALM_INTERVAL: Duration = Duration::from_secs(2);
/// Jobs begin and spread in this time.
const BEGINNING: Duration = Duration::from_secs(10);
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// What `omfs ps --json` says of a job, as far as it is drawn.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Job {
    pub(super) pid: i32,
    pub(super) command: String,
    #[serde(rename = "where")]
    pub(super) place: String,
    pub(super) state: String,
    pub(super) moves: u32,
}

/// How one job went.
#[derive(Clone, Debug, Default)]
pub struct Course {
    pub(super) moves: u32,
    /// Where it was seen, one after the other.
    pub(super) places: Vec<String>,
    /// How long after the start it was last seen at work.
    pub(super) until: Duration,
}

/// How the jobs went.
#[derive(Debug)]
pub(super) struct ClusterRun {
    pub(super) elapsed: Duration,
    /// What was seen of each job, by its PID.
    pub(super) courses: BTreeMap<i32, Course>,
    /// What the shell said of jobs that failed.
    pub(super) failed: Vec<String>,
}

/// Starts the jobs and waits for the last one.
pub(super) fn cluster(
    lab: &Lab,
    options: &DemoOptions,
    screen: &Screen,
    limit: Duration,
) -> Result<ClusterRun> {
    let script = jobs::script(options.jobs);
    let start = Instant::now();
    let mut shell = lab
        .command(HOME, ["omfs", "shell", "-c", &script])?
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut run = ClusterRun {
        elapsed: Duration::ZERO,
        courses: BTreeMap::new(),
        failed: Vec::new(),
    };
    while !ended_within(&mut shell, interval(start.elapsed()))? {
        if start.elapsed() > limit {
            shell.kill()?;
            bail!("the jobs did not end within {limit:.0?}");
        }
        if let Ok(jobs) = look(lab) {
            run.note(&jobs, start.elapsed());
            screen.draw(options, start.elapsed(), &jobs);
        }
    }
    run.elapsed = start.elapsed();
    screen.forget();
    let said = shell.wait_with_output()?;
    let text = String::from_utf8_lossy(&said.stdout);
    if !said.status.success() {
        bail!("{} {}", said.status, text.trim());
    }
    run.failed = text.lines().map(ToOwned::to_owned).collect();
    Ok(run)
}

fn interval(elapsed: Duration) -> Duration {
    if elapsed < BEGINNING {
        INTERVAL
    } else {
        CALM_INTERVAL
    }
}

/// Waits a while for the end of a child, looking often so that its time is exact.
fn ended_within(child: &mut Child, time: Duration) -> Result<bool> {
    let until = Instant::now() + time;
    while Instant::now() < until {
        if child.try_wait()?.is_some() {
            return Ok(true);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(false)
}

/// Asks the home node; only its daemon's answer is paid with the node's CPU time.
fn look(lab: &Lab) -> Result<Vec<Job>> {
    let mut ps = lab.unlimited_command(HOME, ["omfs", "ps", "--json"])?;
    let text = output(&mut ps, LOOK_TIMEOUT)?.stdout;
    let jobs: Vec<Job> = serde_json::from_slice(&text).context("omfs ps --json")?;
    Ok(jobs
        .into_iter()
        .filter(|job| job.command.contains("gzip"))
        .collect())
}

impl ClusterRun {
    fn note(&mut self, jobs: &[Job], now: Duration) {
        for job in jobs {
            let course = self.courses.entry(job.pid).or_default();
            if job.state != "ended" {
                course.until = now;
            }
            course.moves = job.moves.max(course.moves);
            if course.places.last() != Some(&job.place) {
                course.places.push(job.place.clone());
            }
        }
    }
}
