//! System calls that no crate wraps, and what the kernel says of processes.

pub mod backing;
pub mod fdpass;
pub mod file;
pub mod fuse;
pub mod handle;
pub mod identity;
pub mod lease;
pub mod lock;
pub mod probe;
pub mod process;
pub mod procfs;
pub mod xattr;
