//! The data plane: framed TCP with TLS, pipelined requests, deadlines (docs/protocol-data.md).
//!
//! * [`link`] — makes connections: TCP, TLS handshake, certificates, Hello.
//! * [`preauth`] — connections whose clients have not shown a certificate yet.
//! * `handshake`, `record`, `reader`, `writer` — TLS on blocking sockets, each direction alone.
//! * [`hello`] — what is said first.
//! * [`client`] — file operations on other nodes.
//! * [`server`] — file operations for other nodes.

#![forbid(unsafe_code)]

pub mod client;
mod handshake;
pub mod hello;
pub mod link;
pub mod preauth;
mod reader;
mod record;
pub mod server;
mod socket;
mod writer;

pub use client::{FsSession, NodeClient, Remotes};
pub use hello::{PURPOSE_FS, PURPOSE_JOB, hello};
pub use link::{Accepted, accept, connect};
pub use reader::TlsSource;
pub use server::{Server, ServiceFactory};
pub use writer::TlsSink;

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod link_tests;
#[cfg(test)]
mod rpc_tests;
#[cfg(test)]
mod testing;
