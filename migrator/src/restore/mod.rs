//! Image to process.
//!
//! * [`guest`] — a blank child in a cage becomes the process ([`GuestBuilder`]).
//! * [`deputy`] — the original process gives up its memory, and becomes the process again.
//! * [`files`] — descriptors opened, placed and closed inside a frozen process; `identity` — whether
//!   they are the files that the image means.
//! * [`restart`] — what becomes of the system call a thread was interrupted in.
//!
//! Everything is done by injected calls, so that the kernel itself builds what it later runs.

pub mod deputy;
pub mod files;
pub mod guest;
mod identity;
mod mapped;
mod privileges;
mod process;
pub mod restart;
mod space;
mod threads;

use std::io;

use crate::image::ImageError;
use crate::tracee::{Frozen, TraceeError, procfs};

pub use guest::GuestBuilder;

/// Why a process could not be built. Nothing has run yet.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The half-built process died or misbehaved.
    #[error(transparent)]
    Tracee(#[from] TraceeError),
    /// The image makes no sense.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// This node cannot run it.
    #[error("this node cannot run it: {0}")]
    Incompatible(String),
    /// A file of the process cannot be opened here.
    #[error("file {path}: {error}")]
    File {
        /// As home names it.
        path: String,
        /// Why.
        error: io::Error,
    },
}

/// Reads the current memory map of a frozen process.
fn maps_of(frozen: &Frozen) -> Result<procfs::Maps, TraceeError> {
    procfs::Maps::read(frozen.pid()).map_err(|error| procfs::failed(frozen.pid(), error))
}
