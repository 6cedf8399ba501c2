//! The text files of /proc/PID, which omfs-sys reads and parses.

use std::io;

pub use omfs_sys::procfs::{
    Mapping, Maps, Stat, Status, bytes as read, descriptors, invalid, processes, threads,
    utf8 as read_text,
};

use super::TraceeError;

/// A failed read of /proc as a tracee's error: what is not there any more has died.
#[must_use]
pub fn failed(pid: i32, error: io::Error) -> TraceeError {
    match error.kind() {
        io::ErrorKind::NotFound => TraceeError::Died { tid: pid },
        _ => TraceeError::request("/proc", pid, error),
    }
}
