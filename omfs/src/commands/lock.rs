//! `omfs lock`, `omfs unlock`.

use proto::v1::LockRequest;
use serde_json::json;

use crate::admin;
use crate::cli::Global;
use crate::error::{CommandError, CommandResult};
use crate::output;

/// What these commands have in common.
pub const AFTER_HELP: &str = "\
Whoever moves a job by hand (omfs migrate, omfs top) locks it where it then is; unlock gives it
back to the balancer. A locked guest still leaves a node that needs its CPU or memory for its own
work, and is free from then on.";

/// Which process.
#[derive(clap::Args, Debug)]
pub struct LockArgs {
    /// The process, by its PID on this node, its home
    #[arg(value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: i32,
}

/// Locks or unlocks.
///
/// # Errors
/// No such process, not the caller's, or its host does not answer.
pub fn run(global: &Global, args: &LockArgs, locked: bool) -> CommandResult {
    admin::block_on(set(global, args.pid, locked))?;
    if global.json {
        output::print_json(&json!({ "pid": args.pid, "locked": locked }))?;
    }
    Ok(())
}

async fn set(global: &Global, pid: i32, locked: bool) -> Result<(), CommandError> {
    let mut client = admin::connect(&global.config()?).await?;
    let reply = client.lock(LockRequest { pid, locked }).await;
    reply.map(drop).map_err(admin::failed)
}
