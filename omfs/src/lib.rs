//! The cluster filesystem and the parts of a node that do not concern processes.
//!
//! * [`export`] — the owner's side: performs file operations with the caller's identity.
//! * [`fs`] — the user's side: the FUSE session(s) behind `/mfs`, and the namespace.
//! * [`dataplane`] — framed TCP with TLS, pipelined requests, deadlines.
//! * [`pki`] — the cluster's certificate authority, node certificates, join tokens.
//! * [`cluster`] — membership and failure detection, who has which address.
//! * [`check`] — what omfs needs from a machine.
//! * [`config`] — `/etc/omfs/omfs.toml`.
//! * [`lease`] — leases as both ends of a connection see them.
//! * [`procfs`] — what the kernel says of processes.
//! * [`sys`] — the only module with unsafe code.

#![deny(unsafe_code)]

pub mod check;
pub mod cluster;
pub mod config;
pub mod dataplane;
pub mod export;
pub mod fs;
#[cfg(test)]
mod lateness;
pub mod lease;
pub mod pki;
pub mod procfs;
pub mod sys;
