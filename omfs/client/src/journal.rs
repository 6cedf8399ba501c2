//! What a daemon leaves to its successor about one mount: which files the kernel knows, and what
//! it has open. Written as it changes, so that it is there whatever ends the daemon.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use prost::Message;
use proto::v1::mount_record::What;
use proto::v1::{KnownFile, KnownOpen, MountRecord};

/// A journal is written anew when it is longer than this, and four times as long as it was then.
const BYTES_MIN: u64 = 8 << 20;
const GROWTH_MAX: u64 = 4;

#[derive(Debug, Default)]
struct State {
    file: Option<File>,
    bytes: u64,
    bytes_at_rewrite: u64,
    opens: HashMap<u64, KnownOpen>,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Journal {
    path: PathBuf,
    state: Mutex<State>,
}

/// What a predecessor left.
#[derive(Debug, Default)]
pub struct Left {
    /// Files the kernel knows.
    pub files: Vec<KnownFile>,
    /// What it has open.
    pub opens: Vec<KnownOpen>,
}

impl Journal {
    /// A journal that starts empty.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn create(path: &Path) -> io::Result<Self> {
        let state = State {
            file: Some(new_file(path)?),
            ..State::default()
        };
        Ok(Self {
            path: path.to_owned(),
            state: Mutex::new(state),
        })
    }

    /// A journal that goes on with what is left of a predecessor's. That is overwritten, as a whole,
    /// by the first [`rewrite`](Journal::rewrite).
    #[must_use]
    pub fn succeed(path: &Path, left: &Left) -> Self {
        let opens: HashMap<_, _> = left
            .opens
            .iter()
            .map(|open| (open.fh, open.clone()))
            .collect();
        forget_spools(path, &opens);
        let state = State {
            opens,
            ..State::default()
        };
        Self {
            path: path.to_owned(),
            state: Mutex::new(state),
        }
    }

    /// Nothing is written: nobody comes after this session.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anything is written.
    pub fn is_kept(&self) -> bool {
        !self.path.as_os_str().is_empty()
    }

    /// Where bytes are that were written through an open file and are not at its owner yet; `None`
    /// when nobody comes after this session.
    pub fn spool(&self, fh: u64) -> Option<PathBuf> {
        self.is_kept().then(|| spool_path(&self.path, fh))
    }

    /// A file is known, or is somewhere else now. True when the journal is due for [`rewrite`].
    ///
    /// [`rewrite`]: Journal::rewrite
    pub fn known(&self, file: KnownFile) -> bool {
        let mut state = self.state();
        state.append(What::Known(file));
        let limit = BYTES_MIN.max(GROWTH_MAX * state.bytes_at_rewrite);
        state.bytes > limit
    }

    /// The kernel forgot a file.
    pub fn forgotten(&self, id: u64) {
        if self.is_kept() {
            self.state().append(What::Forgotten(id));
        }
    }

    /// Something was opened.
    pub fn opened(&self, open: KnownOpen) {
        let mut state = self.state();
        state.opens.insert(open.fh, open.clone());
        state.append(What::Opened(open));
    }

    /// Something about it has changed.
    pub fn change(&self, fh: u64, change: impl FnOnce(&mut KnownOpen)) {
        let mut state = self.state();
        if let Some(open) = state.opens.get_mut(&fh) {
            change(open);
            let open = open.clone();
            state.append(What::Opened(open));
        }
    }

    /// It was closed.
    pub fn closed(&self, fh: u64) {
        if self.is_kept() {
            let mut state = self.state();
            state.opens.remove(&fh);
            state.append(What::Closed(fh));
        }
    }

    /// Writes anew what is true now. The caller holds what keeps `files` from changing.
    pub fn rewrite(&self, files: impl Iterator<Item = KnownFile>) {
        if !self.is_kept() {
            return;
        }
        let mut state = self.state();
        let temporary = self.path.with_extension("new");
        let written = new_file(&temporary).and_then(|file| {
            let mut new = State {
                file: Some(file),
                opens: std::mem::take(&mut state.opens),
                ..State::default()
            };
            let opens: Vec<_> = new.opens.values().cloned().collect();
            files.for_each(|file| new.append(What::Known(file)));
            opens
                .into_iter()
                .for_each(|open| new.append(What::Opened(open)));
            new.bytes_at_rewrite = new.bytes;
            *state = new;
            std::fs::rename(&temporary, &self.path)
        });
        if let Err(error) = written {
            state.give_up(&error);
        }
    }
}

impl State {
    fn append(&mut self, what: What) {
        let Some(file) = &mut self.file else {
            return;
        };
        let record = MountRecord { what: Some(what) }.encode_length_delimited_to_vec();
        self.bytes += record.len() as u64;
        if let Err(error) = file.write_all(&record) {
            self.give_up(&error);
        }
    }

    /// Half a journal would be worse than none.
    fn give_up(&mut self, error: &io::Error) {
        tracing::warn!("a restart of the daemon will be noticed by users of /mfs: {error}");
        if let Some(file) = self.file.take() {
            let _ = file.set_len(0);
        }
    }
}

fn spool_path(journal: &Path, fh: u64) -> PathBuf {
    let mut name = journal.file_name().unwrap_or_default().to_owned();
    name.push(format!("-{fh}"));
    journal.with_file_name(name)
}

/// Removes what was held back for files that are closed.
fn forget_spools(journal: &Path, opens: &HashMap<u64, KnownOpen>) {
    let (Some(directory), Some(name)) = (journal.parent(), journal.file_name()) else {
        return;
    };
    let of_file = |file: &str| -> Option<u64> {
        let rest = file.strip_prefix(name.to_str()?)?;
        rest.strip_prefix('-')?.parse().ok()
    };
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let fh = entry.file_name().to_str().and_then(of_file);
        if fh.is_some_and(|fh| !opens.contains_key(&fh)) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn new_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(true).write(true).mode(0o600);
    options.open(path)
}

impl Left {
    /// Reads a predecessor's journal, as far as it is whole.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(path: &Path) -> io::Result<Self> {
        let bytes = std::fs::read(path)?;
        let mut rest = &bytes[..];
        let (mut files, mut opens) = (HashMap::new(), HashMap::new());
        // The last record may be cut off: its request was not answered.
        while let Ok(record) = MountRecord::decode_length_delimited(&mut rest) {
            match record.what {
                Some(What::Known(file)) => drop(files.insert(file.id, file)),
                Some(What::Forgotten(id)) => drop(files.remove(&id)),
                Some(What::Opened(open)) => drop(opens.insert(open.fh, open)),
                Some(What::Closed(fh)) => drop(opens.remove(&fh)),
                None => {}
            }
            if rest.is_empty() {
                break;
            }
        }
        Ok(Self {
            files: files.into_values().collect(),
            opens: opens.into_values().collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(id: u64) -> KnownFile {
        KnownFile {
            id,
            name: b"x".to_vec(),
            ..KnownFile::default()
        }
    }

    fn open(fh: u64) -> KnownOpen {
        KnownOpen {
            fh,
            ..KnownOpen::default()
        }
    }

    fn ids(left: &Left) -> (Vec<u64>, Vec<u64>) {
        let mut files: Vec<_> = left.files.iter().map(|file| file.id).collect();
        let mut opens: Vec<_> = left.opens.iter().map(|open| open.fh).collect();
        files.sort_unstable();
        opens.sort_unstable();
        (files, opens)
    }

    #[test]
    fn what_is_left_is_what_was_not_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1");
        let journal = Journal::create(&path).unwrap();
        for id in 1..=3 {
            assert!(!journal.known(file(id)));
            journal.opened(open(id + 10));
        }
        journal.forgotten(2);
        journal.closed(11);
        assert_eq!(ids(&Left::read(&path).unwrap()), (vec![1, 3], vec![12, 13]));
        journal.rewrite([file(3)].into_iter());
        journal.known(file(4));
        assert_eq!(ids(&Left::read(&path).unwrap()), (vec![3, 4], vec![12, 13]));
    }

    #[test]
    fn a_successor_keeps_what_is_open_and_forgets_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1");
        let journal = Journal::create(&path).unwrap();
        journal.known(file(1));
        journal.opened(open(7));
        for name in ["1-7", "1-8", "2-8"] {
            std::fs::write(dir.path().join(name), b"").unwrap();
        }
        let left = Left::read(&path).unwrap();
        let next = Journal::succeed(&path, &left);
        let again = Left::read(&path).unwrap();
        assert_eq!(ids(&again), (vec![1], vec![7]), "if that dies at once, too");
        next.rewrite(left.files.into_iter());
        assert_eq!(ids(&Left::read(&path).unwrap()), (vec![1], vec![7]));
        let is_there = |name| dir.path().join(name).exists();
        assert_eq!(
            [is_there("1-7"), is_there("1-8"), is_there("2-8")],
            [true, false, true]
        );
    }

    #[test]
    fn a_record_that_is_cut_off_harms_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1");
        let journal = Journal::create(&path).unwrap();
        journal.known(file(1));
        journal.known(file(2));
        let bytes = std::fs::read(&path).unwrap();
        for length in bytes.len() / 2..bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert_eq!(ids(&Left::read(&path).unwrap()).0, [1], "{length}");
        }
    }

    #[test]
    fn a_journal_grows_only_so_far() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::create(&dir.path().join("1")).unwrap();
        let due = (0..1_000_000).find(|id| journal.known(file(*id)));
        assert!(due.is_some());
        journal.rewrite([file(1)].into_iter());
        assert!(!journal.known(file(2)));
    }
}
