//! Limits on what one user, one source address or one peer may take from a node.
//!
//! All ports, sockets and tables of a node count with the types of this crate. Time is a parameter:
//! nothing here reads a clock or does I/O.

#![forbid(unsafe_code)]
