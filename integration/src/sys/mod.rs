//! System calls that no crate wraps. The only module with unsafe code.

#![allow(unsafe_code)]

pub mod process;
pub mod tty;
pub mod xattr;
