//! What a daemon leaves to its successor about one mount: which files the kernel knows, and what
//! it has open. Written as it changes, so that it is there whatever ends the daemon.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prost::Message;
use proto::v1::mount_record::What;
use proto::v1::{KnownFile, KnownOpen, MountRecord};

/// A journal is written anew when it is longer than this, and four times as long as it was then.
const BYTES_MIN: u64 = 8 << 20;
const GROWTH_MAX: u64 = 4;
/// One that could not be written anew, for want of room, grows on up to so many times its limit.
const OVERDRAFT: u64 = 2;
/// How long after a failure it is tried next.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Whether the journal has to be [rewritten](Journal::rewrite): it is too long, or it could not be
/// written and is tried once more.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RewriteDue(pub bool);

#[derive(Debug, Default)]
struct State {
    file: Option<File>,
    bytes: u64,
    bytes_at_rewrite: u64,
    opens: HashMap<u64, KnownOpen>,
    /// A failure is told of once, until the journal is whole.
    has_failed: bool,
    retry_at: Option<Instant>,
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

    /// A file is known, or is somewhere else now.
    pub fn known(&self, file: KnownFile) -> RewriteDue {
        self.note(|_| Some(What::Known(file)))
    }

    /// The kernel forgot a file.
    pub fn forgotten(&self, id: u64) -> RewriteDue {
        self.note(|_| Some(What::Forgotten(id)))
    }

    /// Something was opened.
    pub fn opened(&self, open: KnownOpen) -> RewriteDue {
        self.note(|opens| {
            opens.insert(open.fh, open.clone());
            Some(What::Opened(open))
        })
    }

    /// Something about it has changed.
    pub fn change(&self, fh: u64, change: impl FnOnce(&mut KnownOpen)) -> RewriteDue {
        self.note(|opens| {
            let open = opens.get_mut(&fh)?;
            change(open);
            Some(What::Opened(open.clone()))
        })
    }

    /// It was closed.
    pub fn closed(&self, fh: u64) -> RewriteDue {
        self.note(|opens| {
            opens.remove(&fh)?;
            Some(What::Closed(fh))
        })
    }

    /// All that is ever appended passes here, so that no sequence of calls makes the journal grow
    /// without its caller being told.
    fn note(&self, what: impl FnOnce(&mut HashMap<u64, KnownOpen>) -> Option<What>) -> RewriteDue {
        if !self.is_kept() {
            return RewriteDue(false);
        }
        let mut state = self.state();
        if let Some(what) = what(&mut state.opens) {
            state.append(what);
        }
        RewriteDue(state.is_due())
    }

    /// Writes anew what is true now, if that is still due. The caller holds what keeps `files` from
    /// changing.
    pub fn rewrite_if_due(&self, files: impl Iterator<Item = KnownFile>) {
        if self.state().is_due() {
            self.rewrite(files);
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
                ..State::default()
            };
            for file in files {
                new.write(What::Known(file))?;
            }
            for open in state.opens.values() {
                new.write(What::Opened(open.clone()))?;
            }
            std::fs::rename(&temporary, &self.path)?;
            Ok(new)
        });
        match written {
            Ok(new) => state.replace(new),
            Err(error) => {
                // It may be this very file that fills the disk.
                let _ = std::fs::remove_file(&temporary);
                state.retry_at = Some(Instant::now() + RETRY_INTERVAL);
                let no_more = OVERDRAFT * state.limit();
                if state.file.is_none() || state.bytes > no_more {
                    state.give_up(&error);
                    // A predecessor's tells what is no longer so.
                    let _ = std::fs::remove_file(&self.path);
                }
            }
        }
    }
}

impl State {
    fn limit(&self) -> u64 {
        BYTES_MIN.max(GROWTH_MAX * self.bytes_at_rewrite)
    }

    fn is_due(&self) -> bool {
        let wants = self.file.is_none() || self.bytes > self.limit();
        wants && self.has_failed_long_ago()
    }

    fn has_failed_long_ago(&self) -> bool {
        self.retry_at.is_none_or(|at| Instant::now() >= at)
    }

    fn replace(&mut self, new: Self) {
        if self.has_failed {
            tracing::info!("a restart of the daemon will not be noticed by users of /mfs any more");
        }
        *self = Self {
            opens: std::mem::take(&mut self.opens),
            bytes_at_rewrite: new.bytes,
            ..new
        };
    }

    fn append(&mut self, what: What) {
        if self.file.is_some()
            && let Err(error) = self.write(what)
        {
            self.give_up(&error);
            self.retry_at = Some(Instant::now() + RETRY_INTERVAL);
        }
    }

    fn write(&mut self, what: What) -> io::Result<()> {
        let record = MountRecord { what: Some(what) }.encode_length_delimited_to_vec();
        self.bytes += record.len() as u64;
        match &mut self.file {
            Some(file) => file.write_all(&record),
            None => Ok(()),
        }
    }

    /// Half a journal would be worse than none.
    fn give_up(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.has_failed, true) {
            tracing::warn!(
                "a restart of the daemon would be noticed by users of /mfs until this ends: {error}"
            );
        }
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
            assert!(!journal.known(file(id)).0);
            assert!(!journal.opened(open(id + 10)).0);
        }
        let _ = (journal.forgotten(2), journal.closed(11));
        assert_eq!(ids(&Left::read(&path).unwrap()), (vec![1, 3], vec![12, 13]));
        journal.rewrite([file(3)].into_iter());
        assert!(!journal.known(file(4)).0);
        assert_eq!(ids(&Left::read(&path).unwrap()), (vec![3, 4], vec![12, 13]));
    }

    #[test]
    fn a_successor_keeps_what_is_open_and_forgets_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1");
        let journal = Journal::create(&path).unwrap();
        let _ = (journal.known(file(1)), journal.opened(open(7)));
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
        let _ = (journal.known(file(1)), journal.known(file(2)));
        let bytes = std::fs::read(&path).unwrap();
        for length in bytes.len() / 2..bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert_eq!(ids(&Left::read(&path).unwrap()).0, [1], "{length}");
        }
    }

    /// What the session does after each word.
    fn tend(journal: &Journal, due: RewriteDue, files: &[u64]) {
        if due.0 {
            journal.rewrite_if_due(files.iter().map(|id| file(*id)));
        }
    }

    fn length(path: &Path) -> u64 {
        std::fs::metadata(path).unwrap().len()
    }

    #[test]
    fn a_journal_grows_only_so_far() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::create(&dir.path().join("1")).unwrap();
        let due = (0..1_000_000).find(|id| journal.known(file(*id)).0);
        assert!(due.is_some());
        journal.rewrite([file(1)].into_iter());
        assert!(!journal.known(file(2)).0);
    }

    #[test]
    fn opening_and_closing_one_file_a_million_times_takes_no_more_room() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1");
        let journal = Journal::create(&path).unwrap();
        tend(&journal, journal.known(file(1)), &[1]);
        for fh in 0..1_000_000 {
            tend(&journal, journal.opened(open(fh)), &[1]);
            tend(
                &journal,
                journal.change(fh, |open| open.locked = true),
                &[1],
            );
            tend(&journal, journal.closed(fh), &[1]);
            if fh % 10_000 == 0 {
                assert!(length(&path) <= BYTES_MIN + 4096, "{fh}");
            }
        }
        assert_eq!(ids(&Left::read(&path).unwrap()), (vec![1], vec![]));
    }

    #[test]
    fn looking_up_and_forgetting_takes_no_more_room() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1");
        let journal = Journal::create(&path).unwrap();
        for id in 0..1_000_000 {
            tend(&journal, journal.known(file(id)), &[id]);
            tend(&journal, journal.forgotten(id), &[]);
        }
        assert!(length(&path) <= BYTES_MIN + 4096);
    }

    #[test]
    fn a_journal_that_could_not_be_written_is_whole_when_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1");
        let journal = Journal::create(&path).unwrap();
        assert!(!journal.known(file(1)).0);
        // As a full disk does.
        journal.state().file = Some(File::options().write(true).open("/dev/full").unwrap());
        std::fs::create_dir(path.with_extension("new")).unwrap();
        let due = journal.opened(open(7));
        assert!(!due.0, "not at once: it has just failed");
        assert!(journal.state().file.is_none());
        journal.state().retry_at = None;
        let due = journal.opened(open(8));
        assert!(due.0);
        journal.rewrite_if_due([file(1)].into_iter());
        assert!(!path.exists(), "half a journal would be worse than none");
        std::fs::remove_dir(path.with_extension("new")).unwrap();
        journal.state().retry_at = None;
        tend(&journal, journal.closed(8), &[1]);
        assert_eq!(ids(&Left::read(&path).unwrap()), (vec![1], vec![7]));
        tend(&journal, journal.opened(open(9)), &[1]);
        assert_eq!(ids(&Left::read(&path).unwrap()), (vec![1], vec![7, 9]));
    }

    #[test]
    fn a_journal_that_cannot_be_written_anew_is_still_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1");
        let journal = Journal::create(&path).unwrap();
        std::fs::create_dir(path.with_extension("new")).unwrap();
        let most = OVERDRAFT * BYTES_MIN + 4096;
        let given_up = (0..10_000_000).find(|fh| {
            let fh = *fh;
            tend(&journal, journal.opened(open(fh)), &[]);
            tend(&journal, journal.closed(fh), &[]);
            journal.state().retry_at = None;
            let bytes = std::fs::metadata(&path).map(|metadata| metadata.len());
            assert!(bytes.as_ref().is_ok_and(|bytes| *bytes <= most) || bytes.is_err());
            bytes.is_err()
        });
        assert!(given_up.is_some());
    }
}
