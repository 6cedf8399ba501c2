//! Calls to other nodes' control planes: one gRPC channel per node, every call with a deadline
//! (docs/protocol-control.md).

mod clients;
mod error;
mod tls;

pub use clients::{ControlClients, SwimAnswers};
pub use error::{Caller, ControlError};
