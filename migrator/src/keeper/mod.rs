//! What shim and supervisor have in common: each is a process with one loop that holds tracees,
//! listens to its peer on a link and to the daemon on a control socket.
//!
//! * [`inbox`] — everything that arrives, in one place.
//! * [`peer`] — the other end of the link, and whether it lives.
//! * [`desk`] — the control socket.

pub mod desk;
pub mod inbox;
pub mod peer;
pub mod transfer;

pub use desk::Answers;
pub use inbox::{Inbox, Input};
pub use peer::{Moving, Peer, PeerId, SILENCE_MAX};
