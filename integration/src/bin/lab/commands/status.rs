//! `lab status`

use anyhow::Result;
use integration::lab::Lab;
use integration::lab::control::LabStatus;

/// Show the nodes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// For programs.
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub fn run(lab: &str, args: &Args) -> Result<()> {
    let status = Lab::attach(lab)?.status()?;
    if args.json {
        println!("{}", serde_json::to_string(&status)?);
    } else {
        print(&status);
    }
    Ok(())
}

/// A line for each node.
pub fn print(status: &LabStatus) {
    println!("lab {}", status.id);
    for node in &status.nodes {
        let power = if node.running { "running" } else { "no power" };
        let cable = if node.cut { ", cable pulled" } else { "" };
        println!("  {:<4} {:<15} {power}{cable}", node.name, node.address);
    }
}
