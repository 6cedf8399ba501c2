//! `omfs shim`: the process that keeps a job of this node while it is away.

use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use migrator::control::{RunState, read_state};
use migrator::shim::{Connector, ShimConfig};
use omfs_dataplane::{self as dataplane, PURPOSE_JOB};
use omfs_pki::TlsIdentity;
use proto::ids::NodeId;
use proto::link::Link;

use super::child;

/// Connecting, handshake and Hello together.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// `omfs shim …`: hidden, started by the daemon.
#[derive(clap::Args, Debug)]
pub struct ShimArgs {
    /// The job
    #[arg(long)]
    pid: i32,
    /// When it was started
    #[arg(long, default_value_t = 0)]
    start_ticks: u64,
    /// How often it has moved before
    #[arg(long, default_value_t = 0)]
    moves: u32,
    /// Configuration file
    #[arg(from_global)]
    config: Option<std::path::PathBuf>,
}

/// Keeps the job until it is home or has ended.
///
/// # Errors
/// The job could not be taken over.
pub fn shim_main(args: ShimArgs) -> anyhow::Result<()> {
    let start = child::start(args.config.as_deref(), "omfs-shim")?;
    let jobs = start.config.node.run_dir.join("jobs");
    let state_file = jobs.join(format!("{}.json", args.pid));
    let config = ShimConfig {
        pid: args.pid,
        start_ticks: args.start_ticks,
        here: start.identity.node_name().to_owned(),
        state_file: Some(state_file.clone()),
        moves_before: args.moves,
        silence_max: start.config.jobs.silence_max_ms.duration(),
    };
    let connector = Arc::new(TlsConnector::new(start.identity));
    let result = migrator::shim::run(config, connector, UnixListener::from(start.listener));
    let _ = std::fs::remove_file(state_file.with_extension("sock"));
    // The daemon takes over last words, and removes them: how it ended, or what it used away.
    let last = read_state(&state_file);
    let last_words = last.is_ok_and(|last| match last.state {
        RunState::Lost | RunState::Ended => true,
        RunState::Home => last.moves > args.moves,
        RunState::Migrating | RunState::Running | RunState::Stopped => false,
    });
    if !last_words {
        let _ = std::fs::remove_file(state_file);
    }
    result.with_context(|| format!("job {}", args.pid))
}

/// A supervisor's address with the node whose certificate it must show, as the shim passes it on:
/// `ip:port#id`.
pub fn address(data_address: &str, node: NodeId) -> String {
    format!("{data_address}#{node}")
}

fn parse_address(text: &str) -> Option<(SocketAddr, NodeId)> {
    let (address, node) = text.split_once('#')?;
    Some((address.parse().ok()?, node.parse().ok()?))
}

fn parse_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.map(byte).collect()
}

/// Connects to supervisors as this node.
#[derive(Debug)]
pub struct TlsConnector {
    identity: TlsIdentity,
}

impl TlsConnector {
    /// With this node's certificate.
    pub fn new(identity: TlsIdentity) -> Self {
        Self { identity }
    }
}

impl Connector for TlsConnector {
    fn connect(&self, address: &str, token: &str) -> io::Result<Link> {
        let malformed =
            || io::Error::new(io::ErrorKind::InvalidInput, "malformed address or token");
        let (address, node) = parse_address(address).ok_or_else(malformed)?;
        let token = parse_hex(token).ok_or_else(malformed)?;
        let hello = dataplane::hello(self.identity.node(), PURPOSE_JOB, &token, 0);
        let connected = dataplane::connect(address, &self.identity, node, &hello, CONNECT_MAX);
        connected.map(|(link, _)| link)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_tokens_are_read_back() {
        let text = address("10.0.0.2:7800", NodeId(2));
        let expected = ("10.0.0.2:7800".parse().unwrap(), NodeId(2));
        assert_eq!(parse_address(&text), Some(expected));
        assert_eq!(parse_hex("00fF"), Some(vec![0, 255]));
        assert_eq!((parse_hex("0g"), parse_hex("é")), (None, None));
        assert_eq!(
            (parse_address("10.0.0.2:1"), parse_address("#1")),
            (None, None)
        );
    }
}
