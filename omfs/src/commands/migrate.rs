//! `omfs migrate`, `omfs bring`, `omfs expel`.

use proto::v1::{Empty, MigrateProgress, MigrateRequest};
use serde_json::json;
use tonic::Streaming;

use crate::admin;
use crate::cli::Global;
use crate::commands::progress::Bars;
use crate::error::{CommandError, CommandResult, Exit};
use crate::output;

/// Move a process to another node, or home
///
/// Moves a process of yours to another node while it runs, or home.
///
/// Returns when the process runs at its new place. If it cannot be moved now, it runs on where it
/// was, the reason is on standard error, and the exit status is 75.
#[derive(clap::Args, Debug)]
pub struct MigrateArgs {
    /// The process, by its PID on this node
    #[arg(value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: i32,
    /// A node's name or id, or "home"
    #[arg(value_name = "NODE|home")]
    pub target: String,
}

/// Bring all processes of this node home, and keep them here (sets lstay)
///
/// Brings all processes of this node that are away home, and keeps them here: sets lstay. Returns
/// when they are home. Root only.
#[derive(clap::Args, Debug)]
pub struct BringArgs {}

/// Send all guests away, and take no new ones (sets block)
///
/// Sends all guests of this node away, and takes no new ones: sets block. Returns when they have
/// left. Root only.
#[derive(clap::Args, Debug)]
pub struct ExpelArgs {}

/// Moves one process.
///
/// # Errors
/// Status 75 when it was left as it was.
pub fn run(global: &Global, args: &MigrateArgs) -> CommandResult {
    let done = admin::block_on(async {
        let mut client = admin::connect(&global.config()?).await?;
        let request = MigrateRequest {
            pid: args.pid,
            target: args.target.clone(),
            automatic: false,
        };
        let stream = client.migrate(request).await.map_err(admin::failed)?;
        follow(stream.into_inner()).await
    })?;
    report(global, &done)
}

/// Brings everything home.
///
/// # Errors
/// The first process that could not be brought.
pub fn bring(global: &Global, _args: &BringArgs) -> CommandResult {
    let done = admin::block_on(async {
        let mut client = admin::connect(&global.config()?).await?;
        let stream = client.bring(Empty {}).await.map_err(admin::failed)?;
        follow(stream.into_inner()).await
    })?;
    report(global, &done)
}

/// Sends all guests away.
///
/// # Errors
/// The first guest that could not be sent away.
pub fn expel(global: &Global, _args: &ExpelArgs) -> CommandResult {
    let done = admin::block_on(async {
        let mut client = admin::connect(&global.config()?).await?;
        let stream = client.expel(Empty {}).await.map_err(admin::failed)?;
        follow(stream.into_inner()).await
    })?;
    report(global, &done)
}

/// Shows progress until the stream ends; returns the last word on every process.
pub async fn follow(
    mut stream: Streaming<MigrateProgress>,
) -> Result<Vec<MigrateProgress>, CommandError> {
    let mut bars = Bars::new(output::is_watched());
    let mut done = Vec::new();
    while let Some(progress) = stream.message().await.map_err(admin::failed)? {
        bars.show(&progress);
        if matches!(progress.phase.as_str(), "done" | "failed") {
            done.push(progress);
        }
    }
    Ok(done)
}

/// Waits until the stream ends, without a bar; the process may have ended by itself.
///
/// # Errors
/// Why it was not moved.
pub async fn follow_quietly(mut stream: Streaming<MigrateProgress>) -> CommandResult {
    let mut result = Ok(());
    while let Some(progress) = stream.message().await.map_err(admin::failed)? {
        if progress.phase == "failed" {
            result = Err(failure(&progress));
        }
    }
    result
}

fn report(global: &Global, done: &[MigrateProgress]) -> CommandResult {
    if global.json {
        let list = done.iter().map(|last| {
            json!({
                "pid": last.pid,
                "done": last.phase == "done",
                "bytes": last.done_bytes,
                "freeze_us": last.freeze_us,
                "cantmove": last.cantmove,
                "error": (!last.error.is_empty()).then_some(&last.error),
            })
        });
        output::print_json(&list.collect::<Vec<_>>())?;
    }
    let mut failures: Vec<_> = done.iter().filter(|last| last.phase == "failed").collect();
    let first = failures.pop();
    for other in failures {
        output::warn(failure(other));
    }
    first.map_or(Ok(()), |last| Err(failure(last)))
}

fn failure(last: &MigrateProgress) -> CommandError {
    let message = format!("process {}: {}", last.pid, output::printable(&last.error));
    if last.cantmove {
        CommandError::new(Exit::CannotMove, message)
            .hint("it runs on where it was; `omfs ps` shows what keeps a process from moving")
    } else {
        CommandError::failure(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_as_it_was_has_its_own_status() {
        let mut last = MigrateProgress {
            pid: 7,
            phase: "failed".into(),
            error: "it shares memory with process 8".into(),
            cantmove: true,
            ..MigrateProgress::default()
        };
        assert_eq!(failure(&last).exit, Exit::CannotMove);
        assert!(
            failure(&last)
                .message
                .contains("process 7: it shares memory")
        );
        last.cantmove = false;
        assert_eq!(failure(&last).exit, Exit::Failure);
    }
}
