//! What the crates that carry out file operations have in common; no I/O.
//!
//! * [`service`] — the one interface of file operations.
//! * [`lease`] — leases as both ends of a connection see them.
//! * [`peers`] — the membership as the filesystem and the data plane see it.

#![forbid(unsafe_code)]

pub mod lease;
pub mod peers;
pub mod service;

pub use service::{Errno, FileService, FsAnswer, LocalFiles, SessionPeer};
