//! What the kernel has open.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

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
    /// Whether the kernel has read pages of it for a mapping.
    pub was_mapped: AtomicBool,
    /// Whether the kernel has written such pages back: the mapping is a writable one.
    pub was_stored: AtomicBool,
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

/// What is known of the mappings of a file of another node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Mapping {
    /// The kernel may hold pages of it.
    pub is_used: bool,
    /// Such pages were written back.
    pub is_stored_into: bool,
}

#[derive(Debug, Default)]
struct Table {
    by_handle: HashMap<u64, Open>,
    /// The handles of each file, by its number.
    by_file: HashMap<u64, Vec<u64>>,
}

impl Table {
    fn insert(&mut self, fh: u64, open: Open) {
        self.remove(fh);
        if let Open::File(file) = &open {
            self.by_file.entry(file.id).or_default().push(fh);
        }
        self.by_handle.insert(fh, open);
    }

    fn remove(&mut self, fh: u64) -> Option<Open> {
        let open = self.by_handle.remove(&fh)?;
        if let Open::File(file) = &open
            && let Some(handles) = self.by_file.get_mut(&file.id)
        {
            handles.retain(|other| *other != fh);
            if handles.is_empty() {
                self.by_file.remove(&file.id);
            }
        }
        Some(open)
    }

    fn file(&self, fh: u64) -> Option<&Arc<OpenFile>> {
        match self.by_handle.get(&fh)? {
            Open::File(file) => Some(file),
            _ => None,
        }
    }

    fn of_file(&self, id: u64) -> impl Iterator<Item = (u64, &Arc<OpenFile>)> {
        let handles = self.by_file.get(&id).into_iter().flatten();
        handles.filter_map(|fh| Some((*fh, self.file(*fh)?)))
    }
}

/// The table of what is open, by this session's own handles.
#[derive(Debug, Default)]
pub struct Opens {
    table: RwLock<Table>,
    last: AtomicU64,
}

impl Opens {
    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn insert(&self, open: Open) -> u64 {
        let fh = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.write().insert(fh, open);
        fh
    }

    pub fn get(&self, fh: u64) -> Option<Open> {
        self.read().by_handle.get(&fh).cloned()
    }

    pub fn file(&self, fh: u64) -> Option<Arc<OpenFile>> {
        self.read().file(fh).cloned()
    }

    pub fn remove(&self, fh: u64) -> Option<Open> {
        self.write().remove(fh)
    }

    /// Everything that is open of one file, by this session's handles.
    pub fn of_file(&self, id: u64) -> Vec<(u64, Arc<OpenFile>)> {
        let table = self.read();
        let files = table.of_file(id);
        files.map(|(fh, file)| (fh, Arc::clone(file))).collect()
    }

    /// Everything through which something may be held back.
    pub fn writers(&self) -> Vec<(u64, Arc<OpenFile>)> {
        let table = self.read();
        let files = table.by_handle.iter().filter_map(|(fh, open)| match open {
            Open::File(file) if file.behind.is_some() => Some((*fh, Arc::clone(file))),
            _ => None,
        });
        files.collect()
    }

    /// Takes over what a predecessor had open under `fh`.
    pub fn inherit(&self, fh: u64, open: Open) {
        self.last.fetch_max(fh, Ordering::Relaxed);
        self.write().insert(fh, open);
    }

    /// Puts another owner's handle in the place of one that is gone; `None` if the file was closed
    /// meanwhile.
    pub fn replace(&self, fh: u64, open: Open) -> Option<()> {
        let mut table = self.write();
        table.by_handle.get(&fh)?;
        table.insert(fh, open);
        Some(())
    }

    /// Whether a file is open for writing through this session.
    pub fn has_writer(&self, id: u64) -> bool {
        self.read().of_file(id).any(|(_, file)| file.writable)
    }

    /// Whether the kernel may hold pages of a file for mappings, and has written some back.
    pub fn mapping(&self, id: u64) -> Mapping {
        let table = self.read();
        let mut mapping = Mapping::default();
        for (_, file) in table.of_file(id) {
            mapping.is_used |= file.was_mapped.load(Ordering::Relaxed);
            mapping.is_stored_into |= file.was_stored.load(Ordering::Relaxed);
        }
        mapping
    }
}
