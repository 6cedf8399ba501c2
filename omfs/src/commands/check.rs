//! `omfs check`.

use omfs_check::NeededBy;
use serde_json::json;

use crate::cli::Global;
use crate::error::{CommandError, CommandResult};
use crate::output;

/// Name what this machine lacks for omfs
///
/// Looks at everything omfs needs from this machine, one line each.
///
/// Exit status 1 when something that is needed is missing.
#[derive(clap::Args, Debug)]
pub struct CheckArgs {}

/// Checks this machine.
///
/// # Errors
/// Something needed is missing.
pub fn run(global: &Global, _args: &CheckArgs) -> CommandResult {
    let findings = omfs_check::all();
    if global.json {
        let list = findings.iter().map(|finding| {
            json!({
                "name": finding.name,
                "ok": finding.problem.is_none(),
                "needed": finding.needed_by == NeededBy::Omfs,
                "needed_by_lab": finding.needed_by != NeededBy::Nobody,
                "problem": finding.problem.as_ref().map(|problem| &problem.what),
                "remedy": finding.problem.as_ref().map(|problem| &problem.remedy),
            })
        });
        output::print_json(&list.collect::<Vec<_>>())?;
    } else {
        let lines: String = findings
            .iter()
            .map(|finding| format!("{finding}\n"))
            .collect();
        output::print(&lines)?;
    }
    let missing = findings.iter().filter(|finding| finding.is_fatal()).count();
    match missing {
        0 => Ok(()),
        1 => Err(CommandError::failure(
            "this machine lacks one thing that omfs needs",
        )),
        count => Err(CommandError::failure(format_args!(
            "this machine lacks {count} things that omfs needs"
        ))),
    }
}
