//! Newtypes for the numbers that would otherwise be mixed up.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A node's number in its cluster, 1 to 65,535, given once at join and never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub u32);

impl NodeId {
    /// The largest id the cluster hands out (openMosix' own limit).
    pub const MAX: u32 = 65_535;
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a text is no [`NodeId`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a node id is a number from 1 to 65535")]
pub struct BadNodeId;

impl FromStr for NodeId {
    type Err = BadNodeId;

    fn from_str(text: &str) -> Result<Self, BadNodeId> {
        match text.parse::<u32>() {
            Ok(id) if (1..=Self::MAX).contains(&id) => Ok(Self(id)),
            _ => Err(BadNodeId),
        }
    }
}

/// A process id in the home node's outermost PID namespace that omfs sees.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pid(pub i32);

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A process for its whole life: its number is given out again, with its start time it is not.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
pub struct ProcessId {
    /// Its number in the PID namespace of whoever names it.
    pub pid: i32,
    /// When it was started, in clock ticks since boot (field 22 of proc_pid_stat(5)); 0 where a
    /// node of an earlier version does not tell.
    pub start_ticks: u64,
}

impl ProcessId {
    /// Whether both may be the same process: a start time that was not told matches any.
    #[must_use]
    pub fn matches(self, other: Self) -> bool {
        let known = self.start_ticks != 0 && other.start_ticks != 0;
        self.pid == other.pid && (!known || self.start_ticks == other.start_ticks)
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pid.fmt(f)
    }
}

/// Ties a reply to its request on one data-plane connection; 0 is for frames without a reply.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct RequestId(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_pid_is_another_process() {
        let one = |start_ticks| ProcessId {
            pid: 7,
            start_ticks,
        };
        assert!(one(5).matches(one(5)) && !one(5).matches(one(6)));
        assert!(one(0).matches(one(5)) && one(5).matches(one(0)));
        assert!(!one(0).matches(ProcessId {
            pid: 8,
            start_ticks: 0
        }));
    }

    #[test]
    fn node_ids_outside_the_range_are_refused() {
        assert_eq!("12".parse(), Ok(NodeId(12)));
        for bad in ["0", "65536", "-1", "", "n1", "1 "] {
            assert_eq!(bad.parse::<NodeId>(), Err(BadNodeId), "{bad:?}");
        }
    }
}
