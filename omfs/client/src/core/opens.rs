//! What the kernel has open.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::Bytes;
use proto::v1::Caller;

use super::Route;
use super::ahead::ReadAhead;
use super::behind::WriteBehind;
use super::dirs::{DirBuffer, DirItem};
use crate::namespace::View;

/// An open file of some node.
#[derive(Debug)]
pub struct OpenFile {
    /// The connection it was opened on; it lives and dies with that.
    pub route: Route,
    /// The owner's handle of the file.
    pub handle: u64,
    /// The owner's handle of the open file.
    pub fh: u64,
    /// This session's number of the file.
    pub id: u64,
    /// As it was opened.
    pub flags: i32,
    /// By whom.
    pub opener: Arc<Caller>,
    /// Whether it may be written.
    pub writable: bool,
    /// What is read ahead of its reader; only of files of other nodes that are open for reading alone.
    pub ahead: Option<Arc<ReadAhead>>,
    /// What is written behind; only of files of other nodes that are open for writing.
    pub behind: Option<Arc<WriteBehind>>,
    /// Whether a lock was ever taken through it: then the loss of the owner's handle, and with it of
    /// the lock, must be noticed.
    pub was_locked: AtomicBool,
    /// Owners of record locks taken through it that have not closed it yet.
    pub lock_owners: Mutex<HashSet<u64>>,
    /// Held while the file is opened again on another connection.
    pub reopening: Mutex<()>,
}

/// An open directory of some node.
#[derive(Debug)]
pub struct OpenDir {
    /// The connection it was opened on.
    pub route: Route,
    /// The owner's handle of the open directory.
    pub fh: u64,
    /// This session's number of the directory.
    pub id: u64,
    /// Who opened it.
    pub opener: Arc<Caller>,
    /// Through which path it is seen.
    pub view: View,
    /// The owner's device number of it.
    pub dev: u64,
    /// Entries that were fetched and not yet delivered.
    pub buffer: Mutex<DirBuffer>,
}

/// Anything open.
#[derive(Clone, Debug)]
pub enum Open {
    /// A file of some node.
    File(Arc<OpenFile>),
    /// A directory of some node.
    Dir(Arc<OpenDir>),
    /// A status file, as it was when it was opened.
    Text(Bytes),
    /// A synthetic directory, as it was when it was opened.
    List(Arc<Vec<DirItem>>),
}

/// The table of what is open, by this session's own handles.
#[derive(Debug, Default)]
pub struct Opens {
    table: RwLock<HashMap<u64, Open>>,
    last: AtomicU64,
}

impl Opens {
    pub fn insert(&self, open: Open) -> u64 {
        let fh = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.insert(fh, open);
        fh
    }

    pub fn get(&self, fh: u64) -> Option<Open> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.get(&fh).cloned()
    }

    pub fn file(&self, fh: u64) -> Option<Arc<OpenFile>> {
        match self.get(fh)? {
            Open::File(file) => Some(file),
            _ => None,
        }
    }

    pub fn remove(&self, fh: u64) -> Option<Open> {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.remove(&fh)
    }

    /// Everything that is open of one file, by this session's handles.
    pub fn of_file(&self, id: u64) -> Vec<(u64, Arc<OpenFile>)> {
        self.files(|file| file.id == id)
    }

    /// Everything through which something may be held back.
    pub fn writers(&self) -> Vec<(u64, Arc<OpenFile>)> {
        self.files(|file| file.behind.is_some())
    }

    fn files(&self, wanted: impl Fn(&OpenFile) -> bool) -> Vec<(u64, Arc<OpenFile>)> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let files = table.iter().filter_map(|(fh, open)| match open {
            Open::File(file) if wanted(file) => Some((*fh, Arc::clone(file))),
            _ => None,
        });
        files.collect()
    }

    /// Takes over what a predecessor had open under `fh`.
    pub fn inherit(&self, fh: u64, open: Open) {
        self.last.fetch_max(fh, Ordering::Relaxed);
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.insert(fh, open);
    }

    /// Puts another owner's handle in the place of one that is gone; `None` if the file was closed
    /// meanwhile.
    pub fn replace(&self, fh: u64, open: Open) -> Option<()> {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        *table.get_mut(&fh)? = open;
        Some(())
    }

    /// Whether a file is open for writing through this session.
    pub fn has_writer(&self, id: u64) -> bool {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table
            .values()
            .any(|open| matches!(open, Open::File(file) if file.id == id && file.writable))
    }
}
