//! The lab's own processes, which are this program again.

use anyhow::{Context, Result};
use integration::lab::{guard, init};

/// For the lab's own use.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// JSON.
    spec: String,
}

/// For the bench's own use.
#[derive(Debug, clap::Args)]
pub struct ProbeArgs {
    /// Which, and its arguments.
    arguments: Vec<String>,
}

/// For tests: lies about another node to a third.
#[derive(Debug, clap::Args)]
pub struct ForgeArgs {
    /// The id of the node that is lied to.
    victim: u32,
    /// Its control port.
    address: std::net::SocketAddr,
    /// The id of the node that is lied about.
    other: u32,
    /// Its name.
    name: String,
}

/// Forged gossip, in a node.
pub fn forge(args: &ForgeArgs) -> Result<()> {
    integration::forge::run((args.victim, args.address), (args.other, &args.name))
}

/// A probe of the bench, in a node.
pub fn probe(args: &ProbeArgs) -> Result<()> {
    integration::bench::probe::run(&args.arguments)
}

/// The guard of a lab.
pub fn guard(args: &Args) -> Result<()> {
    let ended = guard::run(&serde_json::from_str(&args.spec).context("options")?);
    // The guard has told its owner already.
    std::process::exit(i32::from(ended.is_err()))
}

/// The parent of a node's first process.
pub fn node(args: &Args) -> Result<()> {
    let status = init::main(&serde_json::from_str(&args.spec).context("node")?)?;
    std::process::exit(status)
}
