//! Which open files the kernel reads and writes without us.
//!
//! The kernel demands that all opens of one inode go the same way while any of them lives, and
//! that passthrough opens share one backing file. So the way is chosen by the first open and
//! kept until the last release.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::statfs::fstatfs;

use omfs_sys as sys;

/// How an open file's data travels.
#[derive(Clone, Debug)]
pub enum Mode {
    /// Every read and write is a request; nothing is cached but for mappings.
    Direct,
    /// The same, and the kernel refuses to map the file: mappings would be the backing file's, which has none.
    Unmappable(Arc<Backing>),
    /// The kernel uses the backing file.
    Passthrough(Arc<Backing>),
}

impl Mode {
    /// The number of the backing file; 0 for none.
    pub fn backing(&self) -> u32 {
        match self {
            Self::Direct => 0,
            Self::Unmappable(backing) | Self::Passthrough(backing) => backing.number,
        }
    }

    pub fn is_unmappable(&self) -> bool {
        matches!(self, Self::Unmappable(_))
    }
}

/// A backing file, which is closed when this is dropped; not when the process ends.
#[derive(Debug)]
pub struct Backing {
    number: u32,
    fuse: Arc<OwnedFd>,
}

impl Drop for Backing {
    fn drop(&mut self) {
        // An unmounted filesystem has closed it already.
        let _ = sys::fuse::close_backing(self.fuse.as_fd(), self.number);
    }
}

#[derive(Debug)]
struct Chosen {
    mode: Mode,
    opens: usize,
}

/// The choices of all files that are open.
#[derive(Debug)]
pub struct Modes {
    table: Mutex<HashMap<u64, Chosen>>,
    /// The backing file of all that is not to be mapped.
    refusing: Mutex<Option<Arc<Backing>>>,
    fuse: Arc<OwnedFd>,
}

impl Modes {
    /// Nothing is open yet. `fuse` is the session's `/dev/fuse`.
    pub fn new(fuse: OwnedFd) -> Self {
        Self {
            table: Mutex::default(),
            refusing: Mutex::default(),
            fuse: Arc::new(fuse),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Chosen>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mode(&self, backing: Option<u32>) -> Mode {
        let backing = backing.map(|number| Backing {
            number,
            fuse: Arc::clone(&self.fuse),
        });
        backing.map_or(Mode::Direct, |backing| Mode::Passthrough(Arc::new(backing)))
    }

    /// The way of one more open of a file; `make` opens the backing file if this is the first, and
    /// answers its number.
    pub fn enter(&self, id: u64, make: impl FnOnce() -> Option<u32>) -> Mode {
        let mut table = self.lock();
        let chosen = table.entry(id).or_insert_with(|| Chosen {
            mode: self.mode(make()),
            opens: 0,
        });
        chosen.opens += 1;
        chosen.mode.clone()
    }

    /// The way of one more open of a file that must not be mapped from now on. Those who have it open
    /// and have not mapped it yet cannot any more, either.
    ///
    /// # Errors
    /// The kernel has no passthrough, by which it is told so.
    pub fn enter_unmappable(&self, id: u64) -> io::Result<Mode> {
        let refusing = self.refusing()?;
        Ok(note_unmappable(&mut self.lock(), id, refusing))
    }

    fn refusing(&self) -> io::Result<Arc<Backing>> {
        let mut refusing = self.refusing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(backing) = &*refusing {
            return Ok(Arc::clone(backing));
        }
        let file = File::open(NOT_MAPPABLE)?;
        let number = sys::fuse::open_backing(self.fuse.as_fd(), file.as_fd())?;
        let backing = Arc::new(Backing {
            number,
            fuse: Arc::clone(&self.fuse),
        });
        Ok(Arc::clone(refusing.insert(backing)))
    }

    /// An open that the kernel was told of by a predecessor. `backing`: 0 for none.
    pub fn inherit(&self, id: u64, backing: u32, unmappable: bool) {
        if unmappable {
            let refusing = self.inherited_refusing(backing);
            note_unmappable(&mut self.lock(), id, refusing);
        } else {
            self.enter(id, || (backing != 0).then_some(backing));
        }
    }

    /// All sessions of a mount use the same one, since the kernel wants one of each file.
    fn inherited_refusing(&self, number: u32) -> Arc<Backing> {
        let mut refusing = self.refusing.lock().unwrap_or_else(PoisonError::into_inner);
        let inherited = || {
            Arc::new(Backing {
                number,
                fuse: Arc::clone(&self.fuse),
            })
        };
        Arc::clone(refusing.get_or_insert_with(inherited))
    }

    /// Has the kernel write back and drop all pages that it holds of a file for mappings.
    pub fn drop_pages(&self, id: u64) {
        // It has none of a file that it does not know. What cannot be written is told at msync(2).
        let _ = sys::fuse::invalidate_pages(self.fuse.as_fd(), id);
    }

    /// One open of a file is over.
    pub fn leave(&self, id: u64) {
        let mut table = self.lock();
        if let Some(chosen) = table.get_mut(&id) {
            chosen.opens -= 1;
            if chosen.opens == 0 {
                table.remove(&id);
            }
        }
    }
}

fn note_unmappable(table: &mut HashMap<u64, Chosen>, id: u64, refusing: Arc<Backing>) -> Mode {
    let chosen = table.entry(id).or_insert(Chosen {
        mode: Mode::Direct,
        opens: 0,
    });
    chosen.opens += 1;
    if matches!(chosen.mode, Mode::Direct) {
        chosen.mode = Mode::Unmappable(refusing);
    }
    chosen.mode.clone()
}

/// A regular file that has no mmap(2): the kernel answers ENODEV.
const NOT_MAPPABLE: &str = "/proc/self/ns/uts";

/// Filesystems whose files hold plain data. Files of procfs, sysfs and the like make up their
/// content as they are read, some only through calls that passthrough does not use.
const PLAIN: [i64; 10] = [
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // xfs
    0x9123_683e, // btrfs
    0x0102_1994, // tmpfs
    0x794c_7630, // overlayfs
    0xf2f5_2010, // f2fs
    0x8584_58f6, // ramfs
    0xca45_1a4e, // bcachefs
    0x2fc1_2fc1, // zfs
    0x7371_7368, // squashfs
];

/// The descriptor, if its filesystem is one for passthrough.
pub fn plain(backing: OwnedFd) -> Option<OwnedFd> {
    let kind = fstatfs(&backing).ok()?.filesystem_type();
    PLAIN.contains(&kind.0).then_some(backing)
}
