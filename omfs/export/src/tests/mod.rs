//! Tests of the operations, one file per topic.
//!
//! They run in a temporary directory. Those that act as other users need root: without it they
//! fail with that reason ([`client::need_root`]) rather than pass.

mod basic;
mod client;
mod identity;
mod locks;
mod model;
mod more;
mod overlay;
mod processes;
mod stress;
