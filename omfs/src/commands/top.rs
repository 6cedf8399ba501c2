//! `omfs top`.

use std::io::IsTerminal;

use serde_json::json;

use crate::admin;
use crate::cli::Global;
use crate::commands::{nodes, ps};
use crate::error::{CommandError, CommandResult};
use crate::output;
use crate::top;

/// Watch nodes and jobs live
///
/// Shows nodes and jobs live: a bar per node for load, memory and guests, and a table of jobs.
///
/// Keys: up and down choose a job, m moves it (then choose a node), h brings it home, e expels all
/// guests, ? explains, q quits. With --json, prints one snapshot.
#[derive(clap::Args, Debug)]
pub struct TopArgs {}

/// Shows the live view, or one snapshot as JSON.
///
/// # Errors
/// The daemon does not answer, or there is no terminal.
pub fn run(global: &Global, _args: &TopArgs) -> CommandResult {
    let config = global.config()?;
    if global.json {
        let snapshot = admin::block_on(async {
            let mut client = admin::connect(&config).await?;
            top::fetch(&mut client).await
        })?;
        return output::print_json(&json!({
            "nodes": snapshot.nodes.iter().map(nodes::to_json).collect::<Vec<_>>(),
            "processes": snapshot.processes.iter().map(ps::to_json).collect::<Vec<_>>(),
        }));
    }
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        return Err(CommandError::usage("omfs top needs a terminal")
            .hint("`omfs nodes` and `omfs ps` print the same once; both know --json"));
    }
    admin::block_on(async {
        let client = admin::connect(&config).await?;
        top::run(client).await
    })
}
