//! `omfs nodes`.

use std::time::{SystemTime, UNIX_EPOCH};

use proto::v1::{Empty, NodeStatus};
use serde_json::{Value, json};

use crate::admin;
use crate::cli::Global;
use crate::error::{CommandError, CommandResult};
use crate::output;

/// List the cluster's nodes, their state and load
///
/// Lists every node that ever joined, with its state and load.
#[derive(clap::Args, Debug)]
pub struct NodesArgs {}

/// Lists the nodes.
///
/// # Errors
/// The daemon does not answer.
pub fn run(global: &Global, _args: &NodesArgs) -> CommandResult {
    let nodes = admin::block_on(fetch(global))?;
    if global.json {
        return output::print_json(&nodes.iter().map(to_json).collect::<Vec<_>>());
    }
    let header = [
        "ID", "NAME", "STATE", "LOAD", "CPUS", "FREE", "GUESTS", "ADDRESS",
    ];
    output::print(&output::table(&header, nodes.iter().map(row).collect()))
}

async fn fetch(global: &Global) -> Result<Vec<NodeStatus>, CommandError> {
    let mut client = admin::connect(&global.config()?).await?;
    let reply = client.nodes(Empty {}).await.map_err(admin::failed)?;
    Ok(reply.into_inner().nodes)
}

fn row(status: &NodeStatus) -> Vec<String> {
    let node = status.node.clone().unwrap_or_default();
    let load = status.load.as_ref();
    let told = |text: fn(&proto::v1::LoadVector) -> String| load.map_or("-".to_owned(), text);
    vec![
        node.id.to_string(),
        node.name,
        state(status),
        told(|load| format!("{:.2}", f64::from(load.load_milli) / 1000.0)),
        told(|load| format!("{:.2}", f64::from(load.cpus_milli) / 1000.0)),
        told(|load| output::bytes(load.mem_free_bytes)),
        told(|load| load.guests.to_string()),
        node.address,
    ]
}

/// Of a dead node also since when.
fn state(status: &NodeStatus) -> String {
    if status.state != "dead" {
        return status.state.clone();
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let seconds = now
        .as_secs()
        .saturating_sub(status.last_seen_unix_ms / 1000);
    match (status.last_seen_unix_ms, seconds) {
        (0, _) => "dead (never seen)".to_owned(),
        (_, 0..=119) => format!("dead for {seconds} s"),
        (_, 120..=7199) => format!("dead for {} min", seconds / 60),
        (_, _) => format!("dead for {} h", seconds / 3600),
    }
}

/// The documented form (docs/protocol-admin.md).
pub fn to_json(status: &NodeStatus) -> Value {
    let node = status.node.clone().unwrap_or_default();
    let load = status.load.as_ref().map(|load| {
        json!({
            "age_ms": load.age_ms,
            "cpus": f64::from(load.cpus_milli) / 1000.0,
            "speed": load.speed,
            "load": f64::from(load.load_milli) / 1000.0,
            "utilisation": f64::from(load.utilisation_milli) / 1000.0,
            "mem_total_bytes": load.mem_total_bytes,
            "mem_free_bytes": load.mem_free_bytes,
            "guests": load.guests,
            "local_jobs": load.local_jobs,
            "blocked": load.blocked,
        })
    });
    json!({
        "id": node.id,
        "name": node.name,
        "state": status.state,
        "address": node.address,
        "data_address": node.data_address,
        "last_seen_unix_ms": status.last_seen_unix_ms,
        "load": load,
    })
}
