//! `lab demo`

use anyhow::{Result, ensure};
use integration::demo::{DemoOptions, run as run_demo};

/// A dozen compressions, started on one node of a dozen, spread by themselves.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many nodes.
    #[arg(long, default_value_t = 12)]
    nodes: usize,
    /// How many compressions.
    #[arg(long, default_value_t = 12)]
    jobs: usize,
    /// CPU time of each node, in percent of one CPU.
    #[arg(long, default_value_t = 12, value_name = "PERCENT")]
    cpu: u32,
    /// How long one job alone shall take.
    #[arg(long, default_value_t = 45, value_name = "SECONDS")]
    job_s: u32,
    /// Only the figures, for programs.
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub fn run(args: &Args) -> Result<()> {
    let report = run_demo(&DemoOptions {
        nodes: args.nodes,
        jobs: args.jobs,
        cpu_percent: args.cpu,
        job_s: args.job_s,
        quiet: args.json,
    })?;
    if !args.json {
        print!("{}", report.table());
    }
    println!("{}", serde_json::to_string(&report)?);
    ensure!(report.failed.is_empty(), "{}", report.failed.join("; "));
    ensure!(report.identical, "{}", report.differing.join("; "));
    Ok(())
}
