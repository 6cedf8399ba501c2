//! Open directories.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use proto::v1::fs_reply::Result as Answer;
use proto::v1::fs_request::Op;
use proto::v1::{DirEntry, FhArg, Fsync, NodeArg, ReadDir};

use super::opens::{Open, OpenDir};
use super::{Core, FilePlace, Outcome, Place, errno};
use crate::caller::Who;
use crate::namespace::{self, Synthetic, View, file_id};

/// Bytes of entries fetched at once; the kernel takes them in pieces of 4 KiB and more.
const FETCH_BYTES: u32 = 32 << 10;
/// Longest name that a directory may show: NAME_MAX of Linux.
const NAME_BYTES_MAX: usize = 255;

/// One name in a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirItem {
    /// The name.
    pub name: Vec<u8>,
    /// The number it shows (`d_ino`).
    pub id: u64,
    /// `DT_*` of readdir(3).
    pub kind: u8,
    /// Where the next name begins.
    pub next_offset: i64,
}

/// Entries fetched ahead of what the kernel has taken.
#[derive(Debug, Default)]
pub struct DirBuffer {
    /// The offset at which `items` begins.
    at: i64,
    items: VecDeque<DirItem>,
}

impl Core {
    pub fn opendir(&self, who: Who, id: u64) -> Outcome<u64> {
        let open = match self.place(id)? {
            Place::Synthetic(what) => {
                Self::check_entry(what, who)?;
                Open::List(Arc::new(self.list_synthetic(what)))
            }
            Place::File(place) => self.open_dir(who, id, place)?,
        };
        let fh = self.opens.insert(open);
        self.note_open(id, fh, (0, false));
        Ok(fh)
    }

    fn open_dir(&self, who: Who, id: u64, place: FilePlace) -> Outcome<Open> {
        let op = Op::OpenDir(NodeArg { node: place.handle });
        let caller = self.caller(who, place.route.node);
        match self.ask(&place.route, caller.clone(), op)?.reply.result {
            Some(Answer::Opened(opened)) => Ok(Open::Dir(Arc::new(OpenDir {
                route: place.route,
                fh: opened.fh,
                id,
                opener: self.keep(caller),
                view: place.view,
                dev: place.dev,
                buffer: Mutex::default(),
            }))),
            _ => Err(errno(libc::EPROTO)),
        }
    }

    /// Delivers the names from `offset` on to `take`, which answers true when it is full.
    pub fn readdir(
        &self,
        who: Who,
        fh: u64,
        offset: i64,
        take: &mut dyn FnMut(&DirItem) -> bool,
    ) -> Outcome<()> {
        match self.opens.get(fh) {
            Some(Open::List(list)) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                for item in list.iter().skip(start) {
                    if take(item) {
                        break;
                    }
                }
                Ok(())
            }
            Some(Open::Dir(dir)) => {
                let dir = self.current_dir(fh, dir)?;
                self.readdir_of(who, &dir, offset, take)
            }
            _ => Err(errno(libc::EBADF)),
        }
    }

    fn readdir_of(
        &self,
        who: Who,
        dir: &OpenDir,
        offset: i64,
        take: &mut dyn FnMut(&DirItem) -> bool,
    ) -> Outcome<()> {
        let mut buffer = dir.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        // Offset 0 is rewinddir(3), after which changes must be seen.
        if offset == 0 || buffer.at != offset || buffer.items.is_empty() {
            buffer.items = self.fetch(who, dir, offset)?;
            buffer.at = offset;
        }
        while let Some(item) = buffer.items.front() {
            if take(item) {
                break;
            }
            buffer.at = item.next_offset;
            buffer.items.pop_front();
        }
        Ok(())
    }

    fn fetch(&self, who: Who, dir: &OpenDir, offset: i64) -> Outcome<VecDeque<DirItem>> {
        let op = Op::ReadDir(ReadDir {
            fh: dir.fh,
            offset,
            max_bytes: FETCH_BYTES,
            plus: false,
        });
        let caller = self.caller_without_groups(who, dir.route.node);
        match self.ask(&dir.route, caller, op)?.reply.result {
            Some(Answer::DirEntries(list)) => {
                let items = list.entries.into_iter();
                Ok(items.filter_map(|entry| item_of(dir, entry)).collect())
            }
            _ => Err(errno(libc::EPROTO)),
        }
    }

    pub fn releasedir(&self, who: Who, fh: u64) -> Outcome<()> {
        let open = self.opens.remove(fh);
        self.note_closed(fh);
        let Some(Open::Dir(dir)) = open else {
            return Ok(());
        };
        let caller = self.caller_without_groups(who, dir.route.node);
        let op = Op::ReleaseDir(FhArg { fh: dir.fh });
        self.ask(&dir.route, caller, op).map(drop)
    }

    pub fn fsyncdir(&self, who: Who, fh: u64, data_only: bool) -> Outcome<()> {
        match self.opens.get(fh) {
            Some(Open::Dir(dir)) => {
                let caller = self.caller_without_groups(who, dir.route.node);
                let op = Op::FsyncDir(Fsync {
                    fh: dir.fh,
                    data_only,
                });
                self.ask(&dir.route, caller, op).map(drop)
            }
            Some(_) => Ok(()),
            None => Err(errno(libc::EBADF)),
        }
    }

    pub(super) fn list_synthetic(&self, what: Synthetic) -> Vec<DirItem> {
        let mut items = vec![
            (b".".to_vec(), what.id(), libc::DT_DIR),
            (b"..".to_vec(), namespace::ROOT, libc::DT_DIR),
        ];
        let mut directory = |name: &str, what: Synthetic| {
            items.push((name.as_bytes().to_vec(), what.id(), libc::DT_DIR));
        };
        match what {
            Synthetic::Root => {
                directory(".omfs", Synthetic::Omfs);
                let myself = self.myself();
                directory("here", Synthetic::NodeRoot(View::HERE, myself));
                directory("home", Synthetic::NodeRoot(View::HOME, myself));
                for peer in self.config.peers.peers() {
                    directory(&peer.name, Synthetic::NodeRoot(View::NAME, peer.id));
                }
            }
            Synthetic::Omfs => {
                directory("deputy", Synthetic::Deputies);
                for (index, name) in self.config.status.names().into_iter().enumerate() {
                    if let Some(file) = namespace::status(index) {
                        items.push((name.into_bytes(), file.id(), libc::DT_REG));
                    }
                }
            }
            Synthetic::Deputies => {
                for peer in self.config.peers.peers() {
                    directory(&peer.name, Synthetic::DeputyNode(peer.id));
                }
            }
            Synthetic::Deputy(node, pid) => {
                directory("fd", Synthetic::DeputyFds(node, pid));
                directory("map_files", Synthetic::DeputyMaps(node, pid));
            }
            // What deputies have open can be named, not listed.
            _ => {}
        }
        let numbered = items.into_iter().zip(1..);
        let item = |((name, id, kind), next_offset)| DirItem {
            name,
            id,
            kind,
            next_offset,
        };
        numbered.map(item).collect()
    }
}

/// A name as the owner told it; `None` for what no directory may contain.
fn item_of(dir: &OpenDir, entry: DirEntry) -> Option<DirItem> {
    let bad = entry.name.is_empty()
        || entry.name.len() > NAME_BYTES_MAX
        || entry.name.contains(&b'/')
        || entry.name.contains(&0);
    let kind = u8::try_from(entry.r#type).ok()?;
    let view = if kind == libc::DT_DIR {
        dir.view
    } else {
        View::NAME
    };
    (!bad).then(|| DirItem {
        id: file_id(view, dir.route.node, dir.dev, entry.ino),
        name: entry.name,
        kind,
        next_offset: entry.next_offset,
    })
}
