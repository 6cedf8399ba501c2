//! What a session takes over from its predecessor on the same mount.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use proto::v1::KnownOpen;

use super::behind::WriteBehind;
use super::opens::{Open, OpenDir, OpenFile};
use super::{Core, Route, errno};
use crate::inodes::InodeTable;
use crate::journal::{Left, RewriteDue};
use crate::known::GONE_EPOCH;
use crate::namespace::Synthetic;
use crate::spool::Spool;
use omfs_service::{Errno, FileService, FsAnswer};

/// A connection of a predecessor.
#[derive(Debug)]
struct Gone;

impl FileService for Gone {
    fn call(
        &self,
        _request: &proto::v1::FsRequest,
        _payload: &[u8],
        _cancel: &AtomicBool,
    ) -> Result<FsAnswer, Errno> {
        Err(errno(libc::EHOSTDOWN))
    }
}

impl Core {
    /// Takes over what a predecessor left; nothing is asked of any node until it is used.
    pub fn inherit(&self, left: Left) {
        let mut inodes = self.inodes();
        for file in left.files {
            inodes.inherit(&file);
        }
        self.journal.rewrite(inodes.all());
        drop(inodes);
        for open in left.opens {
            match self.inherited(&open) {
                Some(open_again) => self.opens.inherit(open.fh, open_again),
                None => self.tend_journal(self.journal.closed(open.fh)),
            }
        }
    }

    fn inherited(&self, open: &KnownOpen) -> Option<Open> {
        if let Some(what) = Synthetic::of(open.id)
            && !matches!(what, Synthetic::NodeRoot(..))
        {
            return Some(match what {
                Synthetic::Status(index) => {
                    Open::Text(Bytes::from(self.status_content(index).unwrap_or_default()))
                }
                _ => Open::List(Arc::new(self.list_synthetic(what))),
            });
        }
        let (node, view, dev) = match Synthetic::of(open.id) {
            Some(Synthetic::NodeRoot(view, node)) => (node, view, 0),
            _ => {
                let known = self.inodes().get(open.id)?;
                (known.key.node, known.key.view, known.dev)
            }
        };
        let route = Route {
            node,
            epoch: GONE_EPOCH,
            service: Arc::new(Gone),
        };
        let opener = self.keep(open.caller.clone().unwrap_or_default());
        Some(if open.directory {
            Open::Dir(Arc::new(OpenDir {
                route,
                fh: 0,
                id: open.id,
                opener,
                view,
                dev,
                buffer: Mutex::default(),
            }))
        } else {
            Open::File(Arc::new_cyclic(|weak| OpenFile {
                route,
                handle: 0,
                fh: 0,
                id: open.id,
                flags: open.flags,
                opener,
                writable: super::files::is_writable(open.flags),
                ahead: None,
                behind: self
                    .held_before(open)
                    .map(|spool| WriteBehind::new(weak.clone(), &self.holding, Some(spool))),
                lock_owners: Mutex::default(),
                was_locked: AtomicBool::new(open.locked),
                was_mapped: AtomicBool::new(open.stored),
                was_stored: AtomicBool::new(open.stored),
                reopening: Mutex::default(),
            }))
        })
    }

    /// What a predecessor held back for an open file.
    fn held_before(&self, open: &KnownOpen) -> Option<Spool> {
        let path = self.journal.spool(open.fh)?;
        match Spool::inherit(&path) {
            Ok(spool) => Some(spool),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!("{}: {error}", path.display());
                let mut spool = Spool::create(Some(path)).ok()?;
                spool.lose(libc::EIO).ok().map(|()| spool)
            }
        }
    }

    /// Leaves word of something that was opened; to be called before the kernel is told.
    /// `backing`: the number of the backing file, 0 for none; `unmappable`: it only refuses mappings.
    pub fn note_open(&self, id: u64, fh: u64, (backing, unmappable): (u32, bool)) {
        if !self.journal.is_kept() {
            return;
        }
        let mut note = KnownOpen {
            fh,
            id,
            backing,
            unmappable,
            ..KnownOpen::default()
        };
        match self.opens.get(fh) {
            Some(Open::File(file)) => {
                note.flags = file.flags;
                note.locked = file.was_locked.load(Ordering::Relaxed);
                note.stored = file.was_stored.load(Ordering::Relaxed);
                note.caller = Some((*file.opener).clone());
            }
            Some(Open::Dir(dir)) => {
                note.directory = true;
                note.caller = Some((*dir.opener).clone());
            }
            Some(Open::List(_)) => note.directory = true,
            Some(Open::Text(_)) => {}
            None => return,
        }
        self.tend_journal(self.journal.opened(note));
    }

    /// Leaves word that a lock was taken through an open file.
    pub(super) fn note_locked(&self, fh: u64) {
        self.tend_journal(self.journal.change(fh, |open| open.locked = true));
    }

    /// Leaves word that something was closed.
    pub(super) fn note_closed(&self, fh: u64) {
        self.tend_journal(self.journal.closed(fh));
    }

    /// Writes the journal anew if that is due. The table of files must not be locked.
    fn tend_journal(&self, due: RewriteDue) {
        if due.0 {
            self.journal.rewrite_if_due(self.inodes().all());
        }
    }

    /// The kernel reads pages of a file for a mapping.
    pub fn note_mapped(&self, fh: u64) {
        if let Some(open) = self.opens.file(fh) {
            open.was_mapped.store(true, Ordering::Relaxed);
        }
    }

    /// The kernel writes pages of a mapping back.
    pub fn note_stored(&self, fh: u64) {
        self.note_mapped(fh);
        let open = self.opens.file(fh);
        if open.is_some_and(|open| !open.was_stored.swap(true, Ordering::Relaxed)) {
            self.tend_journal(self.journal.change(fh, |open| open.stored = true));
        }
    }

    /// Leaves word of where a file is. The table is locked so that the order of words is that of
    /// what happened.
    pub(super) fn note_known(&self, inodes: &InodeTable, id: u64) {
        if !self.journal.is_kept() {
            return;
        }
        if let Some(file) = inodes.describe(id)
            && self.journal.known(file).0
        {
            self.journal.rewrite_if_due(inodes.all());
        }
    }
}
