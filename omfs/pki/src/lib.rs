//! The cluster's certificate authority, node certificates and join tokens (docs/security.md).
//!
//! * [`store`] — what lies under `<state_dir>/pki/`, and how a cluster is made.
//! * [`identity`] — a node's certificate and key as TLS configurations.
//! * [`authority`] — signs certificates and checks tokens; only on the node with the CA key.
//! * [`token`] — the one line of text that lets a machine join.
//! * [`join`] — the joining machine's side.
//! * [`revocation`] — the nodes that were removed.
//! * [`name`] — cluster names, and the names in certificates.

#![forbid(unsafe_code)]

pub mod authority;
pub mod error;
pub mod files;
pub mod identity;
pub mod join;
pub mod name;
pub mod revocation;
pub mod store;
pub mod token;

pub use authority::Authority;
pub use error::PkiError;
pub use identity::{Certified, PemBundle, TlsIdentity};
pub use join::PendingJoin;
pub use name::ClusterName;
pub use revocation::{Revocation, Revocations};
pub use store::Store;
pub use token::{Token, TokenEntry, TokenError};

// Under its own name, too, for the file that it has in common with `omfs-testing`.
#[cfg(test)]
extern crate self as omfs_pki;
#[cfg(test)]
#[allow(dead_code)] // Other crates have a use for the rest of it.
#[path = "../../testing/src/pki.rs"]
mod testing;
#[cfg(test)]
mod tests;
