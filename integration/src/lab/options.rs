//! What a lab is made of, and where its things are.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// Environment variable that marks every process of a lab with the lab's id.
pub const LAB_VARIABLE: &str = "OMFS_LAB";
/// Where the state of all labs is.
pub const STATE_ROOT: &str = "/run/omfs-lab";
/// A lab's limit; addresses and a machine's memory end somewhere.
pub const NODES_MAX: usize = 64;
/// Length of the network part of the nodes' addresses.
pub const PREFIX: u8 = 16;

/// Tests and demos work as root: what they start may move by itself.
pub const ROOT_JOBS: &str = "[balance]\nroot_jobs = true\n";

/// How nodes are made. All of them are equal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LabOptions {
    /// The lab's name: letters, digits and hyphens.
    pub id: String,
    /// How many nodes.
    pub nodes: usize,
    /// CPU time of each node in percent of one CPU.
    pub cpu_percent: Option<u32>,
    /// Memory of each node.
    pub mem_mib: Option<u32>,
    /// Rate of each node's link, in each direction.
    pub link_mbit: Option<u32>,
    /// The `omfs` program to run; without one the nodes are bare.
    pub omfs_binary: Option<PathBuf>,
    /// Whether `/mfs` is mounted.
    pub mount: bool,
    /// Each node's `/etc/omfs/omfs.toml`; `{name}` and `{address}` stand for the node's.
    pub config: String,
    /// Whether the lab outlives the process that asked for it.
    pub detached: bool,
}

impl LabOptions {
    /// `nodes` nodes without limits, running the `omfs` beside this program.
    #[must_use]
    pub fn new(nodes: usize) -> Self {
        Self {
            id: format!("t{:08x}", rand::random::<u32>()),
            nodes,
            cpu_percent: None,
            mem_mib: None,
            link_mbit: None,
            omfs_binary: None,
            mount: true,
            // Last the table that tests add to.
            config: format!("{ROOT_JOBS}[network]\nadvertise = \"{{address}}\"\n"),
            detached: false,
        }
    }

    /// Adds keys to the table `balance` of the nodes' configuration.
    pub fn add_to_balance(&mut self, keys: &str) {
        let with_keys = format!("{ROOT_JOBS}{keys}");
        self.config = self.config.replacen(ROOT_JOBS, &with_keys, 1);
    }

    /// Refuses what cannot be built.
    ///
    /// # Errors
    /// Says which option is out of bounds.
    pub fn check(&self) -> Result<()> {
        let well_named = |c: char| c.is_ascii_alphanumeric() || c == '-';
        ensure!(
            !self.id.is_empty() && self.id.len() <= 32 && self.id.chars().all(well_named),
            "the lab's name must be 1 to 32 letters, digits or hyphens"
        );
        ensure!(
            (1..=NODES_MAX).contains(&self.nodes),
            "a lab has 1 to {NODES_MAX} nodes"
        );
        ensure!(
            self.cpu_percent
                .is_none_or(|percent| (1..=10_000).contains(&percent)),
            "--cpu is a percentage of one CPU, 1 to 10000"
        );
        ensure!(
            self.mem_mib.is_none_or(|mib| mib >= 32),
            "--mem must be at least 32 MiB"
        );
        ensure!(
            self.link_mbit
                .is_none_or(|mbit| (1..=34_000).contains(&mbit)),
            "--link-mbit must be 1 to 34000"
        );
        Ok(())
    }

    /// The directory with the lab's control socket, lock and log.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        state_dir(&self.id)
    }
}

/// The state directory of lab `id`.
#[must_use]
pub fn state_dir(id: &str) -> PathBuf {
    PathBuf::from(STATE_ROOT).join(id)
}

/// The name of the node with `index`, from 0.
#[must_use]
pub fn node_name(index: usize) -> String {
    format!("n{}", index + 1)
}

/// The address of the node with `index`, from 0; the same in every lab.
#[must_use]
pub fn node_address(index: usize) -> Ipv4Addr {
    let [high, low] = u16::try_from(index + 1).unwrap_or(u16::MAX).to_be_bytes();
    Ipv4Addr::new(10, 77, high, low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_count_from_one() {
        assert_eq!(node_name(0), "n1");
        assert_eq!(node_address(0), Ipv4Addr::new(10, 77, 0, 1));
        assert_eq!(node_address(299), Ipv4Addr::new(10, 77, 1, 44));
    }

    #[test]
    fn impossible_labs_are_refused() {
        assert!(LabOptions::new(12).check().is_ok());
        assert!(LabOptions::new(0).check().is_err());
        assert!(LabOptions::new(NODES_MAX + 1).check().is_err());
        let mut options = LabOptions::new(1);
        options.id = "../x".into();
        assert!(options.check().is_err());
        options.id = "x".into();
        options.cpu_percent = Some(0);
        assert!(options.check().is_err());
    }
}
