//! Moves running processes between nodes.
//!
//! * [`syscalls`] — what becomes of each system call away from home; the first thing to read.
//! * [`tracee`] — a ptraced thread as a typestate, and system calls injected into it.
//! * [`image`] — what a frozen process consists of, as protobuf.
//! * [`capture`] — process to image; [`restore`] — image to process.
//! * [`homecall`] — system calls forwarded to the deputy.
//! * [`shim`] — the process at home that holds the deputy; [`supervisor`]: the one at the host
//!   that holds the guest.
//! * [`keeper`] — what both have in common.
//! * [`numbers`] — what home calls the files that a guest sees through omfs.
//! * [`control`] — how the daemon talks to both.
//! * [`fuzzing`] — what reads bytes of others, for the fuzzer and property tests.
//! * [`sys`] — the only module with unsafe code.

#![deny(unsafe_code)]

pub mod capture;
pub mod control;
pub mod fuzzing;
pub mod homecall;
pub mod image;
pub mod keeper;
pub mod numbers;
pub mod restore;
pub mod shim;
pub mod supervisor;
pub mod sys;
pub mod syscalls;
pub mod tracee;
