//! Permission to open fifos and to connect to sockets.
//!
//! The kernel opens special files by itself and asks a file system for permission only in access(2)
//! and chdir(2), unless it decides by attributes that it has cached. But it looks every name up before,
//! in the caller's name. So a fifo or socket is not found by a call that would open it, if the owner does
//! not allow that; whatever deals with the name alone finds it.

use super::{Core, Found, Outcome};
use crate::caller::{self, Who};

impl Core {
    /// # Errors
    /// `EACCES` when the caller's system call opens a fifo or socket that it may not; others of the owner.
    pub(super) fn check_special(&self, who: Who, found: Found) -> Outcome<Found> {
        let kind = found.attr.mode & libc::S_IFMT;
        if kind != libc::S_IFIFO && kind != libc::S_IFSOCK {
            return Ok(found);
        }
        let Some(mask) = caller::opening(who.pid) else {
            return Ok(found);
        };
        match self.access(who, found.id, mask) {
            Ok(()) => Ok(found),
            Err(problem) => {
                self.forget(found.id, 1);
                Err(problem)
            }
        }
    }
}
