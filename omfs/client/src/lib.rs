//! The user's side of the filesystem: FUSE sessions and the `/mfs` namespace.
//!
//! * [`namespace`], [`inodes`], [`options`] — pure: which number means which file, mount options.
//! * `window` — pure: what was read ahead of a reader.
//! * `core` — what each operation does: routes it to the node that owns the file.
//! * `adapter` — the only module that knows the FUSE crate: kernel requests to `core` calls.
//! * [`serve`] — runs a session on an opened and mounted `/dev/fuse`.
//! * [`keeper`], [`journal`] — how a mount outlives its daemon (docs/restart.md).
//! * [`mount_helper`], [`mount_listener`] — `mount -t fuse.omfs` and the daemon's side of it.

#![deny(unsafe_code)]

mod adapter;
mod caller;
mod config;
mod core;
pub mod inodes;
pub mod journal;
pub mod keeper;
mod known;
pub mod mount;
pub mod mount_helper;
pub mod mount_listener;
pub mod namespace;
pub mod options;
mod pool;
mod spool;
mod window;

pub use adapter::{Session, resume, serve, serve_first};
pub use config::{
    FsConfig, Guest, GuestHomes, NoGuests, NoStatus, RemoteServices, RemoteSession, StatusFiles,
};
pub use omfs_service::LocalFiles;
