//! Limits on what one user, one source address or one peer may take from a node.
//!
//! All ports, sockets and tables of a node count with the types of this crate. Time is a parameter:
//! nothing here reads a clock or does I/O.
//!
//! * [`source`]: the key by which connections are counted before a certificate is shown.
//! * [`connections`]: which connection is admitted, which one has to go, which one is overdue.
//! * [`permits`]: how much of something each key and all keys together hold.
//! * [`reservations`]: room for what was promised and has not arrived yet.
//! * [`fair_queue`]: work that waits for a thread.
//! * [`rate`]: how often somebody may ask.
//! * [`repeats`]: one log line per minute for what repeats.
//! * [`bounded`]: a map that forgets what was not used for longest.

#![forbid(unsafe_code)]

pub mod bounded;
pub mod connections;
pub mod fair_queue;
pub mod guest;
pub mod permits;
pub mod rate;
pub mod repeats;
pub mod reservations;
pub mod source;
