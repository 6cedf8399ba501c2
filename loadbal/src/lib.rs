//! Who moves where: pure logic, and no I/O but in [`sensors`].
//!
//! * [`sensors`] — what this node can do and what it is doing: by cgroup or for the whole host.
//! * [`load`] — from samples to a load that does not jump: one smoothed demand per process.
//! * [`vector`] — a node's load as it is told to others.
//! * [`gossip`] — the window of what is known of others: constant size, aged, merged.
//! * [`decide`] — opportunity cost: which process is better off where.
//! * [`admit`] — the receiver's side: flood guard, memory, block.
//! * [`balancer`] — all of it for one node, driven by the daemon and by the simulator alike.
//! * [`sim`] — many such nodes on a simulated clock.
//! * [`tuning`] — every constant, with its unit and where it comes from.
//!
//! Time is a [`std::time::Duration`] since any epoch the caller keeps to. The rule in words:
//! docs/balancing.md.

#![forbid(unsafe_code)]

pub mod admit;
pub mod balancer;
pub mod decide;
pub mod gossip;
pub mod load;
pub mod sensors;
pub mod sim;
pub mod tuning;
pub mod vector;
