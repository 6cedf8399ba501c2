//! `/etc/omfs/omfs.toml`: every setting of a node.
//!
//! `docs/omfs.toml` documents every key with its default; a test keeps the two in step. A wrong
//! key or value is refused with file, line and the name of the key.

#![forbid(unsafe_code)]

mod error;
mod export;
mod values;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use omfs_authz::export::{ENTRIES_MAX, MIN_ID};
use serde::Deserialize;

pub use error::ConfigError;
pub use export::{ExportEntry, ExportSquash};
pub use values::{AbsolutePath, LogFilter, Millis, NodeName, Port, PortRange, WeightPercent};

/// Where the configuration is looked for.
pub const DEFAULT_PATH: &str = "/etc/omfs/omfs.toml";

/// Longest configuration file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A node's settings.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Who this node is and where it keeps its things.
    pub node: Node,
    /// Addresses and ports.
    pub network: Network,
    /// What other nodes see of this one.
    pub export: Export,
    /// `/mfs`.
    pub mount: Mount,
    /// Messages.
    pub log: Log,
    /// Jobs that are away.
    pub jobs: Jobs,
    /// Automatic moves.
    pub balance: Balance,
    /// What the node allows when its daemon starts.
    pub policy: Policy,
}

/// `[node]`.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Node {
    /// The node's name in the cluster; the host name if not given.
    pub name: Option<NodeName>,
    /// What must survive a reboot.
    pub state_dir: AbsolutePath,
    /// Sockets and what concerns running processes.
    pub run_dir: AbsolutePath,
}

/// `[network]`.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// Address to listen on.
    pub listen: IpAddr,
    /// Address that other nodes shall use; chosen from the interfaces if not given.
    pub advertise: Option<IpAddr>,
    /// Control plane (gRPC).
    pub control_port: Port,
    /// Data plane.
    pub data_port: Port,
    /// Ports for supervisors of guests; the kernel chooses if not given.
    pub guest_ports: Option<PortRange>,
}

/// `[export]`.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Export {
    /// The directory that others see as this node.
    pub root: AbsolutePath,
    /// Treat root and the system's users of other nodes as nobody.
    pub root_squash: bool,
    /// Ids below are the system's.
    pub min_id: u32,
    /// Directories with rules of their own.
    pub entry: Vec<ExportEntry>,
}

/// `[mount]`.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mount {
    /// Where the daemon mounts the cluster file system by itself when it starts.
    pub points: Vec<AbsolutePath>,
    /// The mount point that guests of this node use.
    pub guests: AbsolutePath,
    /// How long a user waits for the owner of a file whose daemon is restarted.
    pub owner_wait_ms: Millis,
}

/// `[log]`.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `level` or `target=level,…`.
    pub filter: LogFilter,
}

/// `[jobs]`.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Jobs {
    /// How long the other side of a job may be silent whose kernel still answers.
    pub silence_max_ms: Millis,
}

/// `[balance]`.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Balance {
    /// Whether marked jobs move by themselves at all.
    pub enabled: bool,
    /// How often the load is measured and told.
    pub interval_ms: Millis,
    /// Jobs younger than this stay.
    pub min_age_ms: Millis,
    /// Whether jobs of root, and those with capabilities, move by themselves too.
    pub root_jobs: bool,
    /// Most guests that this node takes at the same time.
    pub guests_max: u32,
    /// Most of them that come from one node.
    pub guests_per_node_max: u32,
    /// Memory that any guest may have, in percent of the node's. One that came with more may have half
    /// as much again.
    pub guest_memory_percent: WeightPercent,
    /// Most threads of a guest.
    pub guest_threads_max: u32,
    /// CPU share of a guest beside the node's own processes; 100 is an equal one.
    pub guests_weight_percent: WeightPercent,
    /// Where the load is read from.
    pub sensor: Sensor,
}

/// Where load is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sensor {
    /// The node's cgroup if it has a CPU quota, else the host.
    #[default]
    Auto,
    /// The whole machine.
    Host,
    /// The cgroup in which the daemon runs.
    Cgroup,
}

/// `[policy]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Nothing leaves by itself.
    pub stay: bool,
    /// The node's own processes do not leave by themselves, guests may.
    pub lstay: bool,
    /// No guests come in.
    pub block: bool,
    /// The node does not tell its load.
    pub quiet: bool,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            name: None,
            state_dir: AbsolutePath::constant("/var/lib/omfs"),
            run_dir: AbsolutePath::constant("/run/omfs"),
        }
    }
}

impl Default for Network {
    fn default() -> Self {
        Self {
            listen: IpAddr::from([0, 0, 0, 0]),
            advertise: None,
            control_port: Port(7780),
            data_port: Port(7781),
            guest_ports: None,
        }
    }
}

impl Default for Export {
    fn default() -> Self {
        Self {
            root: AbsolutePath::constant("/"),
            root_squash: true,
            min_id: MIN_ID,
            entry: Vec::new(),
        }
    }
}

impl Default for Mount {
    fn default() -> Self {
        Self {
            points: Vec::new(),
            guests: AbsolutePath::constant("/mfs"),
            owner_wait_ms: Millis(5000),
        }
    }
}

impl Default for Jobs {
    fn default() -> Self {
        Self {
            silence_max_ms: Millis(600_000),
        }
    }
}

impl Default for Balance {
    fn default() -> Self {
        Self {
            enabled: true,
            interval_ms: Millis(500),
            min_age_ms: Millis(2000),
            root_jobs: false,
            guests_max: 64,
            guests_per_node_max: 48,
            guest_memory_percent: WeightPercent(50),
            guest_threads_max: 4096,
            guests_weight_percent: WeightPercent(50),
            sensor: Sensor::Auto,
        }
    }
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or something in it is wrong.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read_limited(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(path, &text)
    }

    /// [`Config::load`] of `path`, or of [`DEFAULT_PATH`] where a missing file means defaults.
    ///
    /// # Errors
    /// See [`Config::load`].
    pub fn load_or_default(path: Option<&Path>) -> Result<Self, ConfigError> {
        match path {
            Some(path) => Self::load(path),
            None if Path::new(DEFAULT_PATH).exists() => Self::load(Path::new(DEFAULT_PATH)),
            None => Ok(Self::default()),
        }
    }

    /// Reads the text of a file; `path` is for messages.
    ///
    /// # Errors
    /// Something in it is wrong.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self =
            toml::from_str(text).map_err(|error| ConfigError::from_toml(path, text, &error))?;
        config.check().map_err(|(key, reason)| ConfigError::Value {
            path: path.to_owned(),
            line: error::line_of_key(text, key),
            key: key.to_owned(),
            reason,
        })?;
        Ok(config)
    }

    /// What no single value can tell.
    fn check(&self) -> Result<(), (&'static str, String)> {
        let network = &self.network;
        if network.control_port == network.data_port && network.data_port != Port(0) {
            let reason = format!(
                "{} is the control_port already: choose another port",
                network.data_port.0
            );
            return Err(("network.data_port", reason));
        }
        if let Some(PortRange(range)) = &network.guest_ports {
            let ports = [network.control_port.0, network.data_port.0];
            if let Some(port) = ports.iter().find(|port| range.contains(port)) {
                let reason = format!("port {port} in it is the daemon's own: choose others");
                return Err(("network.guest_ports", reason));
            }
        }
        if self.export.entry.len() >= ENTRIES_MAX {
            let reason = format!("these are more than {ENTRIES_MAX} entries");
            return Err(("export.entry", reason));
        }
        if let Some(advertise) = network.advertise
            && advertise.is_unspecified()
        {
            let reason = format!("{advertise} is no address that another node could connect to");
            return Err(("network.advertise", reason));
        }
        Ok(())
    }

    /// The admin socket.
    #[must_use]
    pub fn admin_socket(&self) -> PathBuf {
        self.node.run_dir.join("admin.sock")
    }

    /// Where the mount helper hands its file descriptor to the daemon.
    #[must_use]
    pub fn mount_socket(&self) -> PathBuf {
        self.node.run_dir.join("mount.sock")
    }

    /// Exists while the daemon serves everything.
    #[must_use]
    pub fn ready_file(&self) -> PathBuf {
        self.node.run_dir.join("ready")
    }

    /// The node's name: as configured, else the host name up to its first dot.
    ///
    /// # Errors
    /// The host name cannot serve as a node name.
    pub fn node_name(&self) -> Result<String, ConfigError> {
        if let Some(name) = &self.node.name {
            return Ok(name.0.clone());
        }
        let host = nix::unistd::gethostname()
            .map_err(|errno| ConfigError::HostName(errno.desc().to_owned()))?;
        let host = host.to_string_lossy();
        let short = host.split('.').next().unwrap_or_default();
        NodeName::try_from(short.to_owned())
            .map(|name| name.0)
            .map_err(ConfigError::HostName)
    }

    /// Where the control plane listens.
    #[must_use]
    pub fn control_listen(&self) -> SocketAddr {
        SocketAddr::new(self.network.listen, self.network.control_port.0)
    }

    /// Where the data plane listens.
    #[must_use]
    pub fn data_listen(&self) -> SocketAddr {
        SocketAddr::new(self.network.listen, self.network.data_port.0)
    }
}

fn read_limited(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    let mut file = std::fs::File::open(path)?.take(FILE_BYTES_MAX);
    file.read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests;
