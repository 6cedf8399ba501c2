//! System calls that no crate wraps. The only module of this crate with unsafe code.

#![allow(unsafe_code)]

pub mod fdpass;
pub mod file;
pub mod fuse;
pub mod handle;
pub mod identity;
pub mod lease;
pub mod lock;
pub mod probe;
pub mod process;
pub mod xattr;
