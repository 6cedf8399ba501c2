//! Where bytes are that were written and that their owner does not have yet: in a file of the
//! run directory, so that they outlive the daemon and the next one sends them.
//!
//! The file is a head of one page, which is written after the bytes that it tells of, and a ring.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sys::memfd::{MFdFlags, memfd_create};
use prost::Message;
use proto::v1::HeldBack;

/// So much is held back for one open file, what is being sent included.
pub const HELD_BYTES_MAX: usize = 3 << 20;
/// The head; the ring follows. A write(2) of one page is done whole or not at all.
const HEAD_BYTES: usize = 4096;
const RING_BYTES: u64 = HELD_BYTES_MAX as u64;

/// What is held back for one open file.
#[derive(Debug)]
pub struct Spool {
    file: File,
    path: Option<PathBuf>,
    head: HeldBack,
}

impl Spool {
    /// Nothing is held back yet. Without a path it ends with this process.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn create(path: Option<PathBuf>) -> io::Result<Self> {
        let file = match &path {
            None => File::from(memfd_create(c"omfs-spool", MFdFlags::MFD_CLOEXEC)?),
            Some(path) => {
                let mut options = OpenOptions::new();
                options.create(true).truncate(true).read(true).write(true);
                options.mode(0o600).open(path)?
            }
        };
        let head = HeldBack::default();
        Ok(Self { file, path, head })
    }

    /// What a predecessor held back.
    ///
    /// # Errors
    /// There is no such file, or it says nothing sensible.
    pub fn inherit(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut page = vec![0; HEAD_BYTES];
        let count = file.read_at(&mut page, 0)?;
        page.truncate(count);
        let head = HeldBack::decode_length_delimited(&page[..]).unwrap_or_default();
        let length = head.end.checked_sub(head.from);
        let is_sane = length.is_some_and(|length| length <= RING_BYTES)
            && head.base <= head.from
            && head.sending <= head.end - head.from;
        if !is_sane {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let path = Some(path.to_owned());
        Ok(Self { file, path, head })
    }

    /// What is known of it.
    #[must_use]
    pub fn head(&self) -> &HeldBack {
        &self.head
    }

    /// Changes what is known of it, not where it is.
    ///
    /// # Errors
    /// It cannot be written down.
    pub fn note(&mut self, change: impl FnOnce(&mut HeldBack)) -> io::Result<()> {
        let mut head = self.head.clone();
        change(&mut head);
        let page = head.encode_length_delimited_to_vec();
        if page.len() > HEAD_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.file.write_all_at(&page, 0)?;
        self.head = head;
        Ok(())
    }

    /// Bytes held back.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::try_from(self.head.end - self.head.from).unwrap_or(usize::MAX)
    }

    /// Whether nothing is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.head.end == self.head.from
    }

    /// Adds bytes at the end of what is held, or anywhere if nothing is.
    ///
    /// # Errors
    /// They do not fit or cannot be written down, and are not held.
    pub fn push(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let is_first = self.is_empty();
        let follows = is_first || offset == self.head.end;
        let end = offset.checked_add(data.len() as u64);
        let (true, Some(end)) = (follows && self.len() + data.len() <= HELD_BYTES_MAX, end) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let base = if is_first { offset } else { self.head.base };
        for (place, part) in places(base, offset, data.len()) {
            let bytes = data.get(part).unwrap_or_default();
            self.file.write_all_at(bytes, place)?;
        }
        self.note(|head| {
            if is_first {
                (head.base, head.from) = (offset, offset);
            }
            head.end = end;
        })
    }

    /// The first bytes held, which are about to be sent; and where they belong.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn take(&mut self, max: usize) -> io::Result<(u64, Vec<u8>)> {
        let at = self.head.from;
        let mut piece = vec![0; self.len().min(max)];
        for (place, part) in places(self.head.base, at, piece.len()) {
            let bytes = piece.get_mut(part).unwrap_or_default();
            self.file.read_exact_at(bytes, place)?;
        }
        let count = piece.len() as u64;
        self.note(|head| head.sending = count)?;
        Ok((at, piece))
    }

    /// The owner has the bytes that were taken. `change`: what else is known now.
    ///
    /// # Errors
    /// It cannot be written down.
    pub fn sent(&mut self, change: impl FnOnce(&mut HeldBack)) -> io::Result<()> {
        self.note(|head| {
            head.from += head.sending;
            head.sending = 0;
            change(head);
        })
    }

    /// What is held is given up, for a reason that is to be told.
    ///
    /// # Errors
    /// It cannot be written down.
    pub fn lose(&mut self, errno: i32) -> io::Result<()> {
        self.note(|head| give_up(head, errno))
    }

    /// The same, when it cannot be written down.
    pub fn lose_unnoted(&mut self, errno: i32) {
        give_up(&mut self.head, errno);
    }

    /// Nothing is held any more, for good.
    pub fn remove(self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn give_up(head: &mut HeldBack, errno: i32) {
    head.from = head.end;
    head.sending = 0;
    head.lost = errno;
}

/// Where bytes of the user's file are in the ring: places, and which parts of them.
fn places(base: u64, at: u64, count: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let place = (at - base) % RING_BYTES;
    let first = usize::try_from(RING_BYTES - place)
        .unwrap_or(usize::MAX)
        .min(count);
    let head = HEAD_BYTES as u64;
    [(head + place, 0..first), (head, first..count)]
        .into_iter()
        .filter(|(_, part)| !part.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_next_daemon_finds_what_was_not_sent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1-2");
        let mut spool = Spool::create(Some(path.clone())).unwrap();
        spool.push(100, b"one").unwrap();
        spool.push(103, b"two").unwrap();
        assert!(spool.push(200, b"elsewhere").is_err());
        assert_eq!(spool.take(3).unwrap(), (100, b"one".to_vec()));
        let mut next = Spool::inherit(&path).unwrap();
        assert_eq!(next.head().sending, 3);
        assert_eq!(next.take(99).unwrap(), (100, b"onetwo".to_vec()));
        spool.sent(|_| ()).unwrap();
        let mut next = Spool::inherit(&path).unwrap();
        assert_eq!((next.len(), next.head().sending), (3, 0));
        assert_eq!(next.take(99).unwrap(), (103, b"two".to_vec()));
        next.remove();
        assert!(Spool::inherit(&path).is_err());
    }

    #[test]
    fn nonsense_is_not_inherited() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1-2");
        let head = HeldBack {
            from: 9,
            end: 3,
            ..HeldBack::default()
        };
        std::fs::write(&path, head.encode_length_delimited_to_vec()).unwrap();
        assert!(Spool::inherit(&path).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        /// What comes out is what went in, whatever is sent in between and wherever it is cut.
        #[test]
        fn the_ring_is_a_queue(steps in proptest::collection::vec((1..700_000usize, 0..1_500_000usize), 1..24)) {
            let mut spool = Spool::create(None).unwrap();
            let (mut written, mut read) = (7_u64, 7_u64);
            let byte = |at: u64| (at % 251) as u8;
            for (push, take) in steps {
                if spool.len() + push <= HELD_BYTES_MAX {
                    let data: Vec<u8> = (written..written + push as u64).map(byte).collect();
                    spool.push(written, &data).unwrap();
                    written += push as u64;
                }
                let (at, piece) = spool.take(take).unwrap();
                prop_assert_eq!(at, read);
                prop_assert!(piece.iter().zip(read..).all(|(seen, at)| *seen == byte(at)));
                read += piece.len() as u64;
                spool.sent(|_| ()).unwrap();
                prop_assert_eq!(spool.len() as u64, written - read);
            }
        }
    }
}
