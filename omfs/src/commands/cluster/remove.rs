//! `omfs cluster remove`.

use proto::v1::RemoveNodeRequest;
use serde_json::json;

use crate::admin;
use crate::cli::Global;
use crate::error::CommandResult;
use crate::output;

/// Take a node out of the cluster for good; on the node that made the cluster
///
/// Makes a node's certificate worthless on all other nodes at once, and frees its name and address. A
/// machine that was installed anew joins again under the old name, with a new id. Nodes that do not
/// answer now learn it when they come back.
#[derive(clap::Args, Debug)]
pub struct RemoveArgs {
    /// The node, by name or id
    #[arg(value_name = "NODE")]
    node: String,
}

/// Removes a node.
///
/// # Errors
/// The caller is not root; there is no such node; this node does not hold the CA key.
pub fn run(global: &Global, args: &RemoveArgs) -> CommandResult {
    let node = args.node.clone();
    let removed = admin::block_on(async {
        let mut client = admin::connect(&global.config()?).await?;
        let reply = client.remove_node(RemoveNodeRequest { node }).await;
        Ok(reply.map_err(admin::failed)?.into_inner())
    })?;
    if global.json {
        return output::print_json(&json!({ "removed": removed.name, "id": removed.id }));
    }
    output::print(&format!(
        "Removed node {} ({}). Its name and address are free; its id is not given again.\n",
        removed.id, removed.name,
    ))
}
