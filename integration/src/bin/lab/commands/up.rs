//! `lab up`

use anyhow::Result;
use integration::lab::options::LabOptions;
use integration::lab::{Lab, binaries};

/// Start N nodes, n1 to nN, that are one cluster with /mfs mounted.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many nodes.
    nodes: usize,
    /// CPU time of each node, in percent of one CPU.
    #[arg(long, value_name = "PERCENT")]
    cpu: Option<u32>,
    /// Memory of each node.
    #[arg(long, value_name = "MIB")]
    mem: Option<u32>,
    /// Rate of each node's link, in megabits per second.
    #[arg(long, value_name = "N")]
    link_mbit: Option<u32>,
    /// Do not mount /mfs.
    #[arg(long)]
    no_mount: bool,
    /// Only the nodes, without omfs.
    #[arg(long)]
    bare: bool,
}

/// Runs it.
pub fn run(lab: &str, args: &Args) -> Result<()> {
    let mut options = LabOptions::new(args.nodes);
    options.id = lab.into();
    options.cpu_percent = args.cpu;
    options.mem_mib = args.mem;
    options.link_mbit = args.link_mbit;
    options.detached = true;
    options.mount = !args.no_mount;
    if !args.bare {
        options.omfs_binary = Some(binaries::omfs()?);
    }
    let lab = Lab::up(&options)?;
    super::status::print(&lab.status()?);
    Ok(())
}
