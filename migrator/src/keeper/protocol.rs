//! What both ends of a link must agree on before anything moves (docs/protocol-job.md).

/// Version of the messages between home agent and supervisor.
pub const PROTOCOL_VERSION: u32 = 1;
