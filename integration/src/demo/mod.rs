//! The demo: a dozen compressions, started on one node, take little longer than one.

mod jobs;
mod material;
mod report;
mod screen;
mod watch;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::lab::options::LabOptions;
use crate::lab::{Lab, binaries};

pub use report::DemoReport;

/// The node where everything is started.
const HOME: &str = "n1";

/// What to show.
#[derive(Clone, Copy, Debug)]
pub struct DemoOptions {
    /// How many nodes.
    pub nodes: usize,
    /// How many compressions.
    pub jobs: usize,
    /// CPU time of each node in percent of one CPU.
    pub cpu_percent: u32,
    /// How long one job alone shall take.
    pub job_s: u32,
    /// Whether to draw.
    pub quiet: bool,
}

/// Runs the demo in a lab of its own.
///
/// # Errors
/// Something could not be started, or a job failed.
pub fn run(options: &DemoOptions) -> Result<DemoReport> {
    ensure!((1..=200).contains(&options.jobs), "--jobs must be 1 to 200");
    let screen = screen::Screen::new(options.quiet);
    let mut lab_options = LabOptions::new(options.nodes);
    lab_options.id = format!("demo-{}", std::process::id());
    lab_options.cpu_percent = Some(options.cpu_percent);
    lab_options.omfs_binary = Some(binaries::omfs()?);
    screen.say("measuring this machine with gzip -9");
    let material = material::Material::collect(options)?;
    screen.say(&format!("starting {} nodes", options.nodes));
    let started = Instant::now();
    let lab = Lab::up(&lab_options)?;
    end_with_signals(lab.id());
    screen.say(&format!(
        "{} nodes run after {:.1?}",
        options.nodes,
        started.elapsed()
    ));
    let footprint = lab.footprint();
    let mut report = in_lab(&lab, options, &material, &screen)?;
    lab.down()?;
    let leaks = footprint.leaks()?;
    for leak in &leaks {
        screen.say(&format!("left behind: {leak}"));
    }
    report.leaks = leaks.len();
    Ok(report)
}

fn in_lab(
    lab: &Lab,
    options: &DemoOptions,
    material: &material::Material,
    screen: &screen::Screen,
) -> Result<DemoReport> {
    let mib = material.job_bytes() >> 20;
    screen.say(&format!(
        "writing {} files of {mib} MiB on {HOME}",
        options.jobs
    ));
    material.write(lab, options.jobs)?;
    screen.say("one job alone on one idle node");
    let single_limit = Duration::from_secs(u64::from(options.job_s) * 4);
    let before = jobs::single(lab, single_limit)?;
    screen.say(&format!(
        "it took {:.1} s; now {} of them",
        before.as_secs_f64(),
        options.jobs
    ));
    let limit = before * u32::try_from(options.jobs + 2)?;
    let run = watch::cluster(lab, options, screen, limit).context("the jobs in omfs shell")?;
    // Machines get faster and slower by the minute: what the cluster is measured by is the mean of
    // right before and right after.
    screen.say("one job alone again");
    let after = jobs::single(lab, single_limit)?;
    let single = (before + after) / 2;
    screen.say("comparing with gzip run natively");
    let differing = jobs::differences(lab, options.jobs)?;
    for line in run.failed.iter().chain(&differing) {
        screen.say(line);
    }
    Ok(DemoReport::new(options, single, &run, differing))
}

/// Lets Ctrl-C take the lab down before the program ends.
fn end_with_signals(id: &str) {
    use nix::sys::signal::{SigSet, Signal};

    let mut mask = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        mask.add(signal);
    }
    let id = id.to_owned();
    if mask.thread_block().is_err() {
        return;
    }
    std::thread::spawn(move || {
        if let Ok(signal) = mask.wait() {
            if let Ok(lab) = Lab::attach(&id) {
                let _ = lab.down();
            }
            std::process::exit(128 + signal as i32);
        }
    });
}
