//! For the tests of the other crates only.
//!
//! * [`lateness`] — promised times on machines that do other things, too.
//! * [`network`] — peers and connections that misbehave on demand.
//! * [`pki`] — clusters in temporary directories.

#![forbid(unsafe_code)]

pub mod lateness;
pub mod network;
pub mod pki;
