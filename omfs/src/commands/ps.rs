//! `omfs ps`.

use proto::v1::{Process, PsRequest};
use serde_json::{Value, json};

use crate::admin;
use crate::cli::Global;
use crate::error::{CommandError, CommandResult};
use crate::output;

/// List jobs that are away, marked jobs and guests
///
/// Lists this node's jobs that are away or may move by themselves, and the guests it hosts.
///
/// A job is shown under its PID at home. CANTMOVE says why a process cannot be moved now; empty
/// means that it can, as far as is known.
#[derive(clap::Args, Debug)]
pub struct PsArgs {
    /// All processes of this node, movable or not
    #[arg(short, long)]
    pub all: bool,
}

/// Lists jobs.
///
/// # Errors
/// The daemon does not answer.
pub fn run(global: &Global, args: &PsArgs) -> CommandResult {
    let processes = admin::block_on(fetch(global, args.all))?;
    if global.json {
        return output::print_json(&processes.iter().map(to_json).collect::<Vec<_>>());
    }
    let header = [
        "PID", "COMMAND", "HOME", "WHERE", "STATE", "CPU", "TIME", "MEMORY", "MOVES", "REMARKS",
    ];
    output::print(&output::table(&header, processes.iter().map(row).collect()))
}

async fn fetch(global: &Global, all: bool) -> Result<Vec<Process>, CommandError> {
    let mut client = admin::connect(&global.config()?).await?;
    let reply = client.ps(PsRequest { all }).await.map_err(admin::failed)?;
    Ok(reply.into_inner().processes)
}

fn row(process: &Process) -> Vec<String> {
    vec![
        process.pid.to_string(),
        process.command.clone(),
        process.home.clone(),
        process.r#where.clone(),
        process.state.clone(),
        format!("{}%", process.cpu_milli / 10),
        time(process.cpu_time_ms),
        output::bytes(process.memory_bytes),
        process.moves.to_string(),
        remark(process),
    ]
}

/// Why it does not move, or what is to be said of it.
pub fn remark(process: &Process) -> String {
    if !process.cantmove.is_empty() {
        return process.cantmove.join(", ");
    }
    if process.note.is_empty() && process.locked {
        return "placed by hand".to_owned();
    }
    process.note.clone()
}

/// CPU time as ps(1) writes it, minutes and seconds.
fn time(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

/// The documented form (docs/protocol-admin.md).
pub fn to_json(process: &Process) -> Value {
    json!({
        "pid": process.pid,
        "command": process.command,
        "home": process.home,
        "where": process.r#where,
        "state": process.state,
        "moves": process.moves,
        "cantmove": process.cantmove,
        "cpu": f64::from(process.cpu_milli) / 1000.0,
        "cpu_time_ms": process.cpu_time_ms,
        "memory_bytes": process.memory_bytes,
        "uid": process.uid,
        "balanced": process.balanced,
        "locked": process.locked,
        "home_calls": process.home_calls,
        "note": process.note,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_the_promised_keys() {
        let json = to_json(&Process::default());
        for key in [
            "pid", "command", "home", "where", "state", "moves", "cantmove",
        ] {
            assert!(json.get(key).is_some(), "{key}");
        }
        assert!(json["cantmove"].is_array());
    }
}
