//! The omfs wire: everything that crosses a connection, and nothing that does I/O beyond
//! reading and writing one frame.
//!
//! * [`ids`] — newtypes for node, process and request numbers.
//! * [`frame`] — the data plane's framing (docs/protocol-data.md).
//! * [`link`] — what a data-plane connection looks like to the crates that use one.
//! * [`v1`] — the protobuf messages and gRPC services, generated from `proto/omfs/v1/`.

#![forbid(unsafe_code)]

pub mod frame;
#[doc(hidden)]
pub mod fuzzing;
pub mod ids;
pub mod link;

/// Generated messages and services of protocol version 1.
#[allow(missing_docs, missing_debug_implementations, clippy::all)]
pub mod v1 {
    tonic::include_proto!("omfs.v1");
}
