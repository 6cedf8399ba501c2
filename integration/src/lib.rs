//! The lab: emulated nodes on one machine, and what is shown and measured with them.
//!
//! * [`lab`] — N nodes in namespaces of their own, running the real `omfs`; the Rust API.
//! * [`bench`] — ratios against raw TCP and the native disk.
//! * [`demo`] — a dozen compressions on a dozen nodes.
//! * [`forge`] — a member that lies, for tests.
//! * [`netlink`] — links, addresses and queues by rtnetlink, so that no tool is needed.
//! * [`sys`] — the only module with unsafe code.

#![deny(unsafe_code)]

pub mod bench;
pub mod demo;
pub mod forge;
pub mod lab;
pub mod netlink;
pub mod sys;
