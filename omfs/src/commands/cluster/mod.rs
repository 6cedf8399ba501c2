//! `omfs cluster init`, `token`, `tokens`, `join`, `remove`.

mod remove;
mod tokens;

use std::net::{SocketAddr, ToSocketAddrs};

use omfs_cluster::join::{self, JoinError, NewNode};
use omfs_pki::{ClusterName, PkiError};
use proto::ids::NodeId;
use serde_json::json;

use crate::admin;
use crate::cli::Global;
use crate::error::{CommandError, CommandResult, Exit};
use crate::output;

/// Make a cluster, let machines join it
///
/// Makes a cluster, and lets machines join it.
#[derive(clap::Args, Debug)]
pub struct ClusterArgs {
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(clap::Subcommand, Debug)]
enum ClusterCommand {
    Init(InitArgs),
    Token(tokens::TokenArgs),
    Tokens(tokens::TokensArgs),
    Join(JoinArgs),
    Remove(remove::RemoveArgs),
}

/// Make a new cluster with this machine as its first node
///
/// Makes a new cluster: a certificate authority, and this machine's certificate as node 1. Then
/// start `omfs daemon` here.
#[derive(clap::Args, Debug)]
struct InitArgs {
    /// The cluster's name: 1 to 40 of a-z, 0-9 and -
    #[arg(value_name = "NAME")]
    name: String,
}

/// Make this machine a node of a cluster
///
/// Gets a certificate for this machine. Then start `omfs daemon` here.
#[derive(clap::Args, Debug)]
struct JoinArgs {
    /// The node that made the cluster: its name or address, with :PORT if that is not 7780
    #[arg(value_name = "ADDRESS")]
    address: String,
    #[command(flatten)]
    token: tokens::TokenSource,
    /// The node id to ask for, as in /mfs/ID; the next one if not given
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u32).range(1..=i64::from(NodeId::MAX)))]
    id: Option<u32>,
}

/// Does it.
///
/// # Errors
/// See the commands.
pub fn run(global: &Global, args: ClusterArgs) -> CommandResult {
    match args.command {
        ClusterCommand::Init(args) => init(global, &args),
        ClusterCommand::Token(args) => tokens::token(global, &args),
        ClusterCommand::Tokens(args) => tokens::list(global, &args),
        ClusterCommand::Join(args) => join(global, &args),
        ClusterCommand::Remove(args) => remove::run(global, &args),
    }
}

fn init(global: &Global, args: &InitArgs) -> CommandResult {
    let config = global.config()?;
    let cluster: ClusterName = args.name.parse().map_err(pki)?;
    let name = config.node_name()?;
    let identity = join::init(&config, &cluster, &name).map_err(joining)?;
    if global.json {
        return output::print_json(&json!({
            "cluster": args.name, "node": name, "id": identity.node().0,
        }));
    }
    output::print(&format!(
        "Made cluster {cluster} with node {} ({name}).\n\
         Next: start `omfs daemon` here; `omfs cluster token` lets other machines join.\n",
        identity.node(),
    ))
}

fn join(global: &Global, args: &JoinArgs) -> CommandResult {
    let config = global.config()?;
    let token = tokens::read(&args.token)?;
    let address = resolve(&args.address)?;
    let new = NewNode {
        name: config.node_name()?,
        control: join::advertised(&config, Some(address), config.network.control_port.0),
        data: join::advertised(&config, Some(address), config.network.data_port.0),
        id: args.id.map(NodeId),
    };
    let joined = admin::block_on(async {
        join::join(&config, address, &token, &new)
            .await
            .map_err(joining)
    })?;
    if global.json {
        return output::print_json(&json!({
            "cluster": token.cluster.as_str(), "node": new.name, "id": joined.node().0,
        }));
    }
    output::print(&format!(
        "This machine is node {} ({}) of cluster {}.\nNext: start `omfs daemon` here.\n",
        joined.node(),
        new.name,
        token.cluster,
    ))
}

fn resolve(text: &str) -> Result<SocketAddr, CommandError> {
    let default = omfs_config::Network::default().control_port.0;
    let found = match text.parse::<std::net::IpAddr>() {
        Ok(ip) => return Ok(SocketAddr::new(ip, default)),
        Err(_) if text.contains(':') => text.to_socket_addrs(),
        Err(_) => (text, default).to_socket_addrs(),
    };
    let addresses = found.map_err(|error| {
        let exit = match error.kind() {
            std::io::ErrorKind::InvalidInput => Exit::Usage,
            _ => Exit::Unavailable,
        };
        CommandError::new(exit, format_args!("{text}: {error}"))
            .hint("give a host name or an address, with :PORT if the port is not 7780")
    })?;
    addresses
        .into_iter()
        .next()
        .ok_or_else(|| CommandError::new(Exit::Unavailable, format_args!("{text} has no address")))
}

fn pki(error: PkiError) -> CommandError {
    match error {
        PkiError::BadClusterName(_) | PkiError::BadNodeName(_) => CommandError::usage(error),
        PkiError::AlreadyMember { .. } => CommandError::failure(error)
            .hint("a machine is in one cluster; to leave it, stop the daemon and remove the state directory"),
        PkiError::Io { ref source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            CommandError::new(Exit::NotPermitted, error).hint("become root")
        }
        _ => CommandError::failure(error),
    }
}

fn joining(error: JoinError) -> CommandError {
    match error {
        JoinError::Pki(error) => pki(error),
        JoinError::Unreachable(_) => CommandError::new(Exit::Unavailable, error)
            .hint("does `omfs daemon` run there, and is the port open?"),
        JoinError::Token(_) => CommandError::new(Exit::NotPermitted, error)
            .hint("make a new token with `omfs cluster token` on the first node"),
        JoinError::WrongNode { .. } | JoinError::Refused(_) | JoinError::Roster(_) => {
            CommandError::failure(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_the_default_port_or_its_own() {
        let default = omfs_config::Network::default().control_port.0;
        for (text, port) in [("127.0.0.1", default), ("127.0.0.1:9", 9), ("[::1]:9", 9)] {
            assert_eq!(resolve(text).unwrap().port(), port, "{text}");
        }
        assert_eq!(resolve("::1").unwrap().port(), default);
    }

    #[test]
    fn an_impossible_port_is_a_mistake_of_the_command_line() {
        for text in ["n1:99999", "n1:", "n1:port"] {
            assert_eq!(resolve(text).unwrap_err().exit, Exit::Usage, "{text}");
        }
    }
}
