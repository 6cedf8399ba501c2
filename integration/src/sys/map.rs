//! Anonymous memory.

use std::io;
use std::num::NonZeroUsize;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};

/// Maps memory that stays until the process ends; nobody is told where it is.
///
/// # Errors
/// Those of mmap(2).
pub fn anonymous(length: NonZeroUsize, protection: ProtFlags, flags: MapFlags) -> io::Result<()> {
    // SAFETY: the kernel chooses an address that nothing else has.
    unsafe { mmap_anonymous(None, length, protection, flags) }?;
    Ok(())
}
