//! The files and directories one session has open.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::Errno;
use super::limits::{Counted, Limits};
use super::mounts::Mount;
use super::places::Place;
use super::writers::Writing;

/// An open file description that stands for one of the peer.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub fd: Counted<Arc<OwnedFd>>,
    /// Keeps the inode's node alive, and findable by a descriptor.
    pub _keeps_node: Arc<OwnedFd>,
    pub is_regular: bool,
    pub is_directory: bool,
    pub is_writable: bool,
    pub mount: Arc<Mount>,
    pub place: Arc<Place>,
    /// Device and inode number.
    pub inode: (u64, u64),
    /// Where the next readdir continues without a seek, in directory offsets.
    pub dir_offset: Mutex<i64>,
    /// Whether a flock may be held.
    pub is_flocked: AtomicBool,
    /// Whether the description is a deputy's own.
    pub is_adopted: bool,
    /// Counts it among the writers of a regular file.
    pub writing: Option<Arc<Writing>>,
}

impl OpenFile {
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// All of a session's open files.
#[derive(Debug)]
pub(super) struct Files {
    limits: Arc<Limits>,
    newest: AtomicU64,
    open: RwLock<HashMap<u64, Arc<OpenFile>>>,
}

impl Files {
    pub fn new(limits: Arc<Limits>) -> Self {
        Self {
            limits,
            newest: AtomicU64::new(0),
            open: RwLock::default(),
        }
    }

    /// Counts a descriptor before it is given to an [`OpenFile`].
    ///
    /// # Errors
    /// `ENFILE` when the export has as many open files as it may.
    pub fn count(&self, fd: Arc<OwnedFd>) -> Result<Counted<Arc<OwnedFd>>, Errno> {
        self.limits.count_opened(fd)
    }

    /// Gives a file its number (`fh`).
    pub fn add(&self, file: OpenFile) -> u64 {
        let fh = self.newest.fetch_add(1, Ordering::Relaxed) + 1;
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        open.insert(fh, Arc::new(file));
        fh
    }

    /// Puts another file in the place of one, unless that was closed meanwhile.
    pub fn replace(&self, fh: u64, file: OpenFile) {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = open.get_mut(&fh) {
            *place = Arc::new(file);
        }
    }

    /// # Errors
    /// `EBADF` for an unknown number.
    pub fn get(&self, fh: u64) -> Result<Arc<OpenFile>, Errno> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.get(&fh).cloned().ok_or(Errno(libc::EBADF))
    }

    /// Forgets the number; the file closes when no operation uses it any more.
    ///
    /// # Errors
    /// `EBADF` for an unknown number.
    pub fn remove(&self, fh: u64) -> Result<Arc<OpenFile>, Errno> {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        open.remove(&fh).ok_or(Errno(libc::EBADF))
    }

    /// Whether an inode is still open.
    pub fn has_open(&self, inode: (u64, u64)) -> bool {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.values().any(|file| file.inode == inode)
    }
}
