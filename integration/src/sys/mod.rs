//! System calls that no crate wraps. The only module with unsafe code.

#![allow(unsafe_code)]

pub mod map;
pub mod process;
pub mod tty;
pub mod xattr;
