//! `lab exec`

use std::ffi::OsString;

use anyhow::Result;
use integration::lab::exec::{ExecRequest, exec};

/// Run a command in a node; its terminal, signals and exit status pass through.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// As whom; a user of the node.
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Outside of the node's CPU and memory limits.
    #[arg(long)]
    unlimited: bool,
    /// Where.
    node: String,
    /// What.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Runs it, and ends as it ended.
pub fn run(lab: &str, args: &Args) -> Result<()> {
    let request = ExecRequest {
        lab: lab.into(),
        node: args.node.clone(),
        user: args.user.clone(),
        unlimited: args.unlimited,
        command: args.command.clone(),
    };
    exec(&request)?.imitate()
}
