//! `omfs export list`, `add`, `remove`, `reset`.

use omfs_config::ExportEntry as Checked;
use proto::v1::change_exports_request::Change;
use proto::v1::{ChangeExportsRequest, Empty, ExportEntry};
use serde_json::{Value, json};

use crate::admin;
use crate::cli::Global;
use crate::error::{CommandError, CommandResult, Exit};
use crate::output;

/// Show or change what other nodes see of this one
///
/// Of all entries the one with the most specific path decides. Changes need root; they take effect at once and
/// hold over restarts, until `omfs export reset`: then the configuration file's [export] holds again.
#[derive(clap::Args, Debug)]
pub struct ExportArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    /// List the exported directories
    List,
    /// Export a directory, or change how it is exported
    Add(AddArgs),
    /// Take an entry away: the one above its directory decides then
    Remove {
        /// Path of the entry
        path: String,
    },
    /// Go back to what the configuration file says
    Reset,
}

#[derive(clap::Args, Debug)]
struct AddArgs {
    /// Absolute path of the directory on this node
    path: String,
    /// Names or ids of nodes, with commas; `*` is all of them, nothing hides the directory
    #[arg(long, default_value = "*")]
    nodes: String,
    /// Let other nodes change nothing
    #[arg(long)]
    ro: bool,
    /// Whose ids become nobody's: `none`, `root`, `system` or `all`
    #[arg(long, default_value = "system")]
    squash: String,
    /// Ids below this are the system's
    #[arg(long, default_value_t = 1000)]
    min_id: u32,
}

/// Carries it out, and lists what is exported.
///
/// # Errors
/// The daemon does not answer or refuses, the caller is not root, the entry makes no sense.
pub fn run(global: &Global, args: ExportArgs) -> CommandResult {
    let change = match args.verb {
        Verb::List => None,
        Verb::Add(args) => Some(Change::Add(entry(args)?)),
        Verb::Remove { path } => Some(Change::Remove(path)),
        Verb::Reset => Some(Change::Reset(true)),
    };
    let is_listed = change.is_none() || global.json;
    let entries = admin::block_on(ask(global, change))?;
    if !is_listed {
        return Ok(());
    }
    if global.json {
        return output::print_json(&entries.iter().map(to_json).collect::<Vec<_>>());
    }
    let header = ["PATH", "NODES", "ACCESS", "SQUASH", "MIN ID"];
    output::print(&output::table(&header, entries.iter().map(row).collect()))
}

fn entry(args: AddArgs) -> Result<ExportEntry, CommandError> {
    let nodes = args.nodes.split(',').filter(|name| !name.is_empty());
    let nodes: Vec<String> = nodes.map(str::to_owned).collect();
    let (path, squash) = (args.path, args.squash);
    Checked::checked(path.clone(), nodes.clone(), args.ro, &squash, args.min_id)
        .map_err(|reason| CommandError::new(Exit::Usage, reason))?;
    Ok(ExportEntry {
        path,
        nodes,
        read_only: args.ro,
        squash,
        min_id: args.min_id,
    })
}

async fn ask(global: &Global, change: Option<Change>) -> Result<Vec<ExportEntry>, CommandError> {
    let mut client = admin::connect(&global.config()?).await?;
    let reply = match change {
        None => client.exports(Empty {}).await,
        Some(change) => {
            let change = Some(change);
            client.change_exports(ChangeExportsRequest { change }).await
        }
    };
    Ok(reply.map_err(admin::failed)?.into_inner().entries)
}

fn row(entry: &ExportEntry) -> Vec<String> {
    let nodes = match entry.nodes.as_slice() {
        [] => "-".to_owned(),
        nodes => nodes.join(","),
    };
    let access = if entry.read_only { "ro" } else { "rw" };
    vec![
        output::printable(&entry.path).into_owned(),
        nodes,
        access.to_owned(),
        entry.squash.clone(),
        entry.min_id.to_string(),
    ]
}

fn to_json(entry: &ExportEntry) -> Value {
    json!({
        "path": entry.path,
        "nodes": entry.nodes,
        "ro": entry.read_only,
        "squash": entry.squash,
        "min_id": entry.min_id,
    })
}
