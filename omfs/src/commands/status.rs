//! `omfs status`.

use proto::v1::{Empty, Policy, StatusReply};
use serde_json::{Value, json};

use crate::admin;
use crate::cli::Global;
use crate::error::{CommandError, CommandResult};
use crate::output;

/// Show what this node is and does
///
/// Shows this node's name, cluster, policy and mounts.
#[derive(clap::Args, Debug)]
pub struct StatusArgs {}

/// Shows the status.
///
/// # Errors
/// The daemon does not answer.
pub fn run(global: &Global, _args: &StatusArgs) -> CommandResult {
    let status = admin::block_on(fetch(global))?;
    print(global, &status)
}

async fn fetch(global: &Global) -> Result<StatusReply, CommandError> {
    let mut client = admin::connect(&global.config()?).await?;
    let reply = client.status(Empty {}).await.map_err(admin::failed)?;
    Ok(reply.into_inner())
}

/// Prints a status, also after a change of policy.
///
/// # Errors
/// Standard output's.
pub fn print(global: &Global, status: &StatusReply) -> CommandResult {
    if global.json {
        return output::print_json(&to_json(status));
    }
    let node = status.node.clone().unwrap_or_default();
    let mounts = match status.mounts.as_slice() {
        [] => "none (mount -t fuse.omfs omfs /mfs)".to_owned(),
        mounts => output::printable(&mounts.join(", ")).into_owned(),
    };
    output::print(&format!(
        "node     {} ({}) of cluster {}, omfs {}\n\
         address  {} (control), {} (data)\n\
         nodes    {} of {} answer\n\
         jobs     {} away, {} guests here\n\
         policy   {}\n\
         mounts   {}\n",
        node.name,
        node.id,
        status.cluster,
        status.version,
        node.address,
        node.data_address,
        status.nodes_alive,
        status.nodes_known,
        status.away,
        status.guests,
        policy_words(&status.policy.unwrap_or_default()),
        mounts,
    ))
}

fn policy_words(policy: &Policy) -> String {
    let set = [
        (policy.stay, "stay: nothing leaves by itself"),
        (
            policy.local_stay,
            "lstay: own processes do not leave by themselves",
        ),
        (policy.block, "block: takes no guests"),
        (policy.quiet, "quiet: does not tell its load"),
    ];
    let words: Vec<_> = set
        .iter()
        .filter(|pair| pair.0)
        .map(|pair| pair.1)
        .collect();
    if words.is_empty() {
        "processes come and go".to_owned()
    } else {
        words.join("; ")
    }
}

fn to_json(status: &StatusReply) -> Value {
    let node = status.node.clone().unwrap_or_default();
    let policy = status.policy.unwrap_or_default();
    json!({
        "cluster": status.cluster,
        "id": node.id,
        "name": node.name,
        "address": node.address,
        "data_address": node.data_address,
        "version": status.version,
        "nodes_alive": status.nodes_alive,
        "nodes_known": status.nodes_known,
        "guests": status.guests,
        "away": status.away,
        "policy": {
            "stay": policy.stay,
            "lstay": policy.local_stay,
            "block": policy.block,
            "quiet": policy.quiet,
        },
        "mounts": status.mounts,
    })
}
