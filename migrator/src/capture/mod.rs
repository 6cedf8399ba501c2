//! Process to image.
//!
//! * [`eligibility`] — what would break, found before anything is touched.
//! * [`identity`] — which process it is, and with which credentials.
//! * [`capture`] — a frozen process as a [`ProcessImage`]; the process is not changed.
//! * [`pages`] — which pages have content of their own, and a streaming reader for them.

pub mod eligibility;
pub mod files;
pub mod identity;
pub(crate) mod memory;
pub mod pages;
pub(crate) mod process;
#[cfg(test)]
mod tests;
mod thread;

use std::io;
use std::path::Path;

use crate::image::{self, FileIdImage, ProcessImage, cpu};
use crate::tracee::{Frozen, TraceeError, procfs};

pub use eligibility::{CantMove, CantMoveCode, eligibility};
pub use pages::{PageBatch, PageRun, PageStream};

/// Why a process could not be captured. It is unharmed.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// It ended, or does not let itself be traced.
    #[error(transparent)]
    Tracee(#[from] TraceeError),
    /// It has something that cannot move.
    #[error("{0}")]
    CantMove(CantMove),
    /// /proc or another kernel interface failed.
    #[error("{what}: {error}")]
    Kernel {
        /// What was asked for.
        what: &'static str,
        /// The answer.
        error: io::Error,
    },
}

impl CaptureError {
    pub(crate) fn kernel(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |error| Self::Kernel { what, error }
    }
}

/// Everything about a frozen process but its pages' content.
///
/// Thread and process ids are those of the process' innermost PID namespace: at home the ids
/// everybody there sees, and for a guest the ids it has at home.
///
/// # Errors
/// See [`CaptureError`]; the process can be thawed after any of them.
pub fn capture(frozen: &mut Frozen) -> Result<ProcessImage, CaptureError> {
    let pid = frozen.pid();
    let vmas = memory::mappings(frozen)?;
    let mut image = ProcessImage {
        version: image::VERSION,
        vmas,
        ..ProcessImage::default()
    };
    image.threads = thread::capture_all(frozen)?;
    image.pid = image.threads.first().map_or(pid, |leader| leader.tid);
    image.stopped_by = frozen
        .threads
        .iter()
        .find_map(|thread| thread.group_stop)
        .unwrap_or(0);
    image.layout = Some(memory::layout(frozen)?);
    image.vdso_crc32 = memory::vdso_crc32(frozen)?;
    process::capture_signals(frozen, &mut image)?;
    process::capture_state(frozen, &mut image)?;
    image.files = files::open_files(pid)?;
    image.cpu = Some(cpu::here().map_err(CaptureError::kernel("/proc/cpuinfo"))?);
    image.clocks = Some(process::clocks(pid)?);
    // Signals taken from the queues meanwhile belong to them, before what came since.
    for seen in frozen.signals.iter().rev() {
        let info = seen.info.0.to_vec();
        let host = |thread: &&mut image::ThreadImage| thread.host_tid == seen.tid && seen.to_thread;
        match image.threads.iter_mut().find(host) {
            Some(thread) => thread.pending_signals.insert(0, info),
            None => image.pending_signals.insert(0, info),
        }
    }
    Ok(image)
}

/// How the file behind a path (of /proc usually) is recognised again; the numbers are this node's,
/// and taken for home's. At a host [`crate::numbers::HomeNumbers`] puts that right.
///
/// # Errors
/// Those of stat(2).
pub fn file_id(path: &Path) -> io::Result<FileIdImage> {
    use std::os::unix::fs::MetadataExt;
    let data = std::fs::metadata(path)?;
    Ok(FileIdImage {
        device: data.dev(),
        inode: data.ino(),
        bytes: data.len(),
        modified_ns: data
            .mtime()
            .saturating_mul(1_000_000_000)
            .saturating_add(data.mtime_nsec()),
        mode: data.mode(),
        unlinked: data.nlink() == 0,
        homes_numbers: true,
    })
}

/// The id of a thread in its innermost PID namespace.
pub(crate) fn inner_id(status: &procfs::Status, outer: i32) -> i32 {
    status
        .numbers("NSpid")
        .last()
        .map_or(outer, |id| *id as i32)
}
