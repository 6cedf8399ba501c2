//! Moving a process, and the calls that it makes at home.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{BYTES, ROUNDS, probe};
use crate::lab::run::output;
use crate::lab::{Lab, wait};

const CALLS: u32 = 20_000;
const JOB_TIMEOUT: Duration = Duration::from_secs(60);

/// A move, as seen from outside.
#[derive(Clone, Copy, Debug)]
pub(super) struct Move {
    pub(super) total_ms: f64,
    /// The longest gap in the process' own heartbeat.
    pub(super) freeze_ms: f64,
}

/// Time of one call that must be made at home (a write to a pipe), from n2.
pub(super) fn home_call_us(lab: &Lab) -> Result<f64> {
    let calls = CALLS.to_string();
    let (_, printed) = away(lab, &["homecalls", &calls])?;
    Ok(printed)
}

/// Moves a process with memory that it uses; the best of some moves.
pub(super) fn move_ms(lab: &Lab) -> Result<Move> {
    let bytes = BYTES.to_string();
    let mut best: Option<Move> = None;
    for _ in 0..ROUNDS {
        let (took, freeze_ms) = away(lab, &["heartbeat", &bytes])?;
        let total_ms = took.as_secs_f64() * 1000.0;
        if best.is_none_or(|best| total_ms < best.total_ms) {
            best = Some(Move {
                total_ms,
                freeze_ms,
            });
        }
    }
    best.context("no rounds")
}

/// Starts a probe on n1, moves it to n2 and lets it go on; gives how long the move took and the
/// figure that the probe printed.
fn away(lab: &Lab, arguments: &[&str]) -> Result<(Duration, f64)> {
    lab.sh("n1", "rm -f /root/probe-*")?;
    // Its standard output is a pipe to this process, which does not move.
    let mut job = lab.command("n1", probe::command(arguments.iter().copied()))?;
    let job = std::thread::spawn(move || output(&mut job, JOB_TIMEOUT));
    let started = || {
        lab.sh("n1", "cat /root/probe-pid")
            .ok()
            .filter(|pid| pid.ends_with('\n'))
    };
    let pid = wait::until(Duration::from_secs(20), started).context("the probe did not start")?;
    let start = Instant::now();
    let moved = lab.sh("n1", &format!("omfs migrate {} n2", pid.trim()));
    let took = start.elapsed();
    lab.sh("n1", "touch /root/probe-go")?;
    let result = job.join().map_err(|_| anyhow::anyhow!("panicked"))??;
    moved?;
    ensure!(
        result.status.success(),
        "{}",
        String::from_utf8_lossy(&result.stderr)
    );
    let text = lab.sh("n1", "cat /root/probe-figure")?;
    Ok((took, text.trim().parse().with_context(|| text.clone())?))
}
