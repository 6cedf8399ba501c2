//! Membership and failure detection.
//!
//! * [`directory`] — the membership, in memory.
//! * [`roster`] — the nodes that ever joined, in `<state_dir>/nodes.json`.
//! * [`swim`] — drives the SWIM failure detector (`foca`) over the control plane.
//! * [`join`] — making a cluster and becoming a node of one.
//! * [`control`] — calls to other nodes.
//! * [`history`] — last-seen times and load history, in sled; may be lost.

#![forbid(unsafe_code)]

pub mod control;
pub mod directory;
pub mod history;
pub mod join;
pub mod roster;
pub mod swim;
