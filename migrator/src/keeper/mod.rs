//! What shim and supervisor have in common: each is a process with one loop that holds tracees,
//! listens to its peer on a link and to the daemon on a control socket.
//!
//! * [`inbox`] — everything that arrives, in one place.
//! * [`peer`] — the other end of the link, and whether it lives.
//! * [`desk`] — the control socket.
//! * [`transfer`] — a process on the wire; [`protocol`] — what both must agree on.

mod answers;
pub mod desk;
mod error;
pub mod inbox;
pub mod peer;
mod peer_id;
pub mod protocol;
pub mod transfer;

pub use answers::Answers;
pub use error::MoveError;
pub use inbox::{Inbox, Input};
pub use peer::{Moving, Peer, SILENCE_MAX};
pub use peer_id::PeerId;
