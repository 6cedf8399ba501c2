//! The daemon of a node, as a library that tests and fuzzers can link.
//!
//! * [`daemon`] — puts the parts together, and serves the admin and cluster services.
//! * [`jobs`] — jobs that are away, guests that are here, and the balancer.
//! * [`log`] — where messages go.

#![forbid(unsafe_code)]

pub mod daemon;
pub mod jobs;
pub mod log;
