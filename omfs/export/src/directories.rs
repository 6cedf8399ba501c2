//! Reading directories.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::PoisonError;

use nix::unistd::{Whence, lseek};
use proto::v1::fs_reply::Result as Reply;
use proto::v1::{DirEntries, DirEntry, Entry, ReadDir};

use super::answer::{Answer, reply};
use super::caller::Who;
use super::files::OpenFile;
use super::limits::TRANSFER_BYTES_MAX;
use super::lookup::O_PATH_FLAGS;
use super::nodes::Keep;
use super::{Errno, ExportSession};
use omfs_sys::file::{self, DirItem};

/// Room for the longest name; less than that reads nothing.
const BUFFER_BYTES_MIN: usize = 512;
/// More is not faster.
const BUFFER_BYTES_MAX: usize = 64 << 10;
/// Names that are open at a time while their entries are made.
const CHUNK_ITEMS: usize = 64;
/// `struct fuse_dirent` before the name.
const DIRENT_BYTES: usize = 24;
/// `struct fuse_entry_out`, which readdirplus adds.
const ENTRY_BYTES: usize = 128;

impl ExportSession {
    /// Answers with as many names as fit into `max_bytes` of a FUSE reply, so that the peer does
    /// not have to forget entries it found no room for; at least one, if there is one.
    pub(super) fn read_dir(&self, who: &Who, arg: &ReadDir) -> Answer {
        let open = self.files.get(arg.fh)?;
        let max_bytes = (arg.max_bytes as usize).min(TRANSFER_BYTES_MAX);
        let items = self.visible_items(who, &open, arg, max_bytes)?;
        let mut entries = Vec::with_capacity(items.len());
        for chunk in items.chunks(CHUNK_ITEMS) {
            let found = self.dir_entries(who, &open, chunk, arg.plus)?;
            entries.extend(chunk.iter().zip(found).map(|(item, entry)| DirEntry {
                name: item.name.as_bytes().to_vec(),
                ino: item.ino,
                r#type: u32::from(item.kind),
                next_offset: item.next_offset,
                entry,
            }));
        }
        reply(Reply::DirEntries(DirEntries { entries }))
    }

    /// The next names that the caller may see: none only at the end.
    fn visible_items(
        &self,
        who: &Who,
        open: &OpenFile,
        arg: &ReadDir,
        max_bytes: usize,
    ) -> Result<Vec<DirItem>, Errno> {
        let mut offset = arg.offset;
        loop {
            let mut items = read_items(who, open, offset, max_bytes, arg.plus)?;
            let Some(last) = items.last() else {
                return Ok(items);
            };
            offset = last.next_offset;
            if who.is_stranger() {
                items.retain(|item| self.shows(&open.place, &open.mount, item.name.as_bytes()));
            }
            if !items.is_empty() {
                return Ok(items);
            }
        }
    }

    /// What lookups of the names would answer. `None` where that is not asked for, not cheap, or
    /// fails: then the peer asks for it when somebody does.
    fn dir_entries(
        &self,
        who: &Who,
        open: &OpenFile,
        items: &[DirItem],
        plus: bool,
    ) -> Result<Vec<Option<Entry>>, Errno> {
        if !plus || open.mount.anchor.is_none() {
            return Ok(vec![None; items.len()]);
        }
        let opened: Vec<Option<OwnedFd>> = {
            // Once for all: it costs more than opening one of them.
            let _as_caller = who.assume()?;
            items
                .iter()
                .map(|item| match item.name.as_bytes() {
                    b"." | b".." => None,
                    _ => file::open_at(Some(open.fd()), &item.name, O_PATH_FLAGS, 0).ok(),
                })
                .collect()
        };
        let at = (&open.mount, &open.place);
        let enter = |(fd, item): (Option<OwnedFd>, &DirItem)| {
            self.enter_named(who, fd?, at, &item.name, Keep::Nothing)
                .ok()
        };
        Ok(opened.into_iter().zip(items).map(enter).collect())
    }
}

fn read_items(
    who: &Who,
    open: &OpenFile,
    offset: i64,
    max_bytes: usize,
    plus: bool,
) -> Result<Vec<DirItem>, Errno> {
    let mut position = open
        .dir_offset
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    // procfs shows what the reader may see.
    let _as_caller = if open.mount.is_synthetic {
        Some(who.assume()?)
    } else {
        None
    };
    if *position != offset || offset == 0 {
        lseek(open.fd.as_fd(), offset, Whence::SeekSet)?;
    }
    let mut buffer = vec![0; max_bytes.clamp(BUFFER_BYTES_MIN, BUFFER_BYTES_MAX)];
    let mut items = file::read_dir(open.fd(), &mut buffer)?;
    let read_up_to = items.last().map_or(offset, |item| item.next_offset);
    items.truncate(count_fitting(&items, max_bytes, plus));
    let next = items.last().map_or(offset, |item| item.next_offset);
    // Names that did not fit are read again from their offset.
    *position = if next == read_up_to { next } else { i64::MIN };
    Ok(items)
}

fn count_fitting(items: &[DirItem], max_bytes: usize, plus: bool) -> usize {
    let header = DIRENT_BYTES + if plus { ENTRY_BYTES } else { 0 };
    let mut used = 0;
    let fitting = items
        .iter()
        .take_while(|item| {
            used += (header + item.name.as_bytes().len()).next_multiple_of(8);
            used <= max_bytes
        })
        .count();
    fitting.max(1)
}
