//! What a node remembers between its daemon's lives: when each node was last seen, and its own
//! load of the last day. Kept in sled under `<state_dir>/history`.
//!
//! Nothing here is needed: sled can panic, or silently lose records, on a damaged file, so every
//! value carries a checksum, every call is caught, a file that does not open is put aside and a
//! new one begun, and after a failure the node goes on without.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use proto::ids::NodeId;

/// sled's default would be 1 GiB.
const CACHE_BYTES: u64 = 2 << 20;
/// Bytes of a value's checksum.
const CHECK_BYTES: usize = 8;
/// Load is kept per minute, for a day.
const LOAD_SLOTS: u64 = 24 * 60;

/// How sled 0.34 says that another process, or a database being dropped, holds the file.
const LOCKED: &str = "could not acquire lock";
/// How EROFS is written in sled's errors.
const READ_ONLY: &str = "(os error 30)";
/// How long a holder may take to let go.
const LOCK_LIMIT: Duration = Duration::from_secs(2);
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// One minute's load of this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LoadSample {
    /// Minutes since 1970.
    pub minute: u64,
    /// Runnable tasks × 1000.
    pub load_milli: u32,
    /// Guests.
    pub guests: u32,
}

/// The history; without a usable file it remembers nothing.
pub struct History {
    path: PathBuf,
    database: Mutex<Option<sled::Db>>,
}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("History")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl History {
    /// Opens the history. Never fails: a damaged file is moved to `history.damaged` and a new one
    /// begun; if that does not work either, nothing is remembered. Reads and writes files.
    #[must_use]
    pub fn open(state_dir: &Path) -> Self {
        let path = state_dir.join("history");
        let database = open_guarded(&path).or_else(|reason| {
            // Somebody else's, or a disk that takes nothing: not damaged.
            if reason.contains(LOCKED) || reason.contains(READ_ONLY) {
                return Err(reason);
            }
            tracing::warn!(
                "{} is damaged ({reason}): beginning a new one",
                path.display()
            );
            quarantine(&path);
            open_guarded(&path)
        });
        if let Err(reason) = &database {
            tracing::warn!("{} cannot be used: {reason}", path.display());
        }
        Self {
            path,
            database: Mutex::new(database.ok()),
        }
    }

    /// Notes that a node answered at that time, in milliseconds since 1970.
    pub fn note_seen(&self, node: NodeId, unix_ms: u64) {
        self.put(&seen_key(node), &unix_ms.to_be_bytes());
    }

    /// When a node answered last, in milliseconds since 1970.
    #[must_use]
    pub fn last_seen(&self, node: NodeId) -> Option<u64> {
        let value = self.get(&seen_key(node))?;
        Some(u64::from_be_bytes(value.try_into().ok()?))
    }

    /// Keeps one minute's load, in place of that a day ago.
    pub fn note_load(&self, sample: LoadSample) {
        let mut value = sample.minute.to_be_bytes().to_vec();
        value.extend_from_slice(&sample.load_milli.to_be_bytes());
        value.extend_from_slice(&sample.guests.to_be_bytes());
        self.put(&load_key(sample.minute), &value);
    }

    /// The loads of the day that ends with `minute`, oldest first; minutes without are left out.
    #[must_use]
    pub fn loads(&self, minute: u64) -> Vec<LoadSample> {
        let first = minute.saturating_sub(LOAD_SLOTS - 1);
        let samples = (first..=minute).filter_map(|minute| self.load(minute));
        samples.collect()
    }

    fn load(&self, minute: u64) -> Option<LoadSample> {
        let value = self.get(&load_key(minute))?;
        let (stored, rest) = value.split_first_chunk::<8>()?;
        let (load, guests) = rest.split_first_chunk::<4>()?;
        let sample = LoadSample {
            minute: u64::from_be_bytes(*stored),
            load_milli: u32::from_be_bytes(*load),
            guests: u32::from_be_bytes(guests.try_into().ok()?),
        };
        // The slot may still hold yesterday's.
        (sample.minute == minute).then_some(sample)
    }

    /// Writes everything to disk; may take long.
    pub fn flush(&self) {
        self.guarded("flush", |database| database.flush().map(drop));
    }

    fn put(&self, key: &[u8], value: &[u8]) {
        self.guarded("write", |database| {
            database.insert(key, seal(key, value)).map(drop)
        });
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        let sealed = self.guarded("read", |database| database.get(key))??;
        let value = unseal(key, &sealed);
        if value.is_none() {
            tracing::warn!("{}: a damaged record was dropped", self.path.display());
            self.guarded("remove", |database| database.remove(key).map(drop));
        }
        value
    }

    /// Runs one operation; an error or a panic inside sled ends the use of the file.
    fn guarded<T>(&self, what: &str, work: impl FnOnce(&sled::Db) -> sled::Result<T>) -> Option<T> {
        let mut slot = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let database = slot.as_ref()?;
        let reason = match catch_unwind(AssertUnwindSafe(|| work(database))) {
            Ok(Ok(value)) => return Some(value),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it panicked".to_owned(),
        };
        tracing::warn!(
            "{}: cannot {what}: {reason}; going on without",
            self.path.display()
        );
        // Dropping a database that has panicked may panic again, or wait for ever.
        std::mem::forget(slot.take());
        None
    }
}

/// Opens it once whoever has it locked let go: a daemon that is ending lets go of it last.
fn open_guarded(path: &Path) -> Result<sled::Db, String> {
    let deadline = Instant::now() + LOCK_LIMIT;
    loop {
        match try_open(path) {
            Err(reason) if reason.contains(LOCKED) && Instant::now() < deadline => {
                std::thread::sleep(LOCK_PAUSE);
            }
            result => return result,
        }
    }
}

fn try_open(path: &Path) -> Result<sled::Db, String> {
    let open = || {
        sled::Config::new()
            .path(path)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(None)
            .open()
    };
    match catch_unwind(AssertUnwindSafe(open)) {
        Ok(Ok(database)) => Ok(database),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("opening it panicked".to_owned()),
    }
}

/// Keeps the newest damaged file for whoever wants to look at it.
fn quarantine(path: &Path) {
    let aside = path.with_extension("damaged");
    let moved = match std::fs::remove_dir_all(&aside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => std::fs::rename(path, &aside),
    };
    if let Err(error) = moved {
        tracing::warn!("cannot move {} aside: {error}", path.display());
    }
}

fn seen_key(node: NodeId) -> Vec<u8> {
    let mut key = b"seen/".to_vec();
    key.extend_from_slice(&node.0.to_be_bytes());
    key
}

fn load_key(minute: u64) -> Vec<u8> {
    let mut key = b"load/".to_vec();
    key.extend_from_slice(&(minute % LOAD_SLOTS).to_be_bytes());
    key
}

fn checksum(key: &[u8], value: &[u8]) -> [u8; CHECK_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher
        .update(&(key.len() as u64).to_be_bytes())
        .update(key)
        .update(value);
    let mut check = [0; CHECK_BYTES];
    hasher.finalize_xof().fill(&mut check);
    check
}

fn seal(key: &[u8], value: &[u8]) -> Vec<u8> {
    [&checksum(key, value), value].concat()
}

fn unseal(key: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
    let (check, value) = sealed.split_first_chunk::<CHECK_BYTES>()?;
    (*check == checksum(key, value)).then(|| value.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn sample(minute: u64) -> LoadSample {
        LoadSample {
            minute,
            load_milli: 1500,
            guests: 3,
        }
    }

    #[test]
    fn what_was_noted_is_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::open(dir.path());
        assert_eq!(history.last_seen(NodeId(2)), None);
        history.note_seen(NodeId(2), 12_345);
        history.note_load(sample(100));
        history.note_load(sample(101));
        history.flush();
        drop(history);
        let history = History::open(dir.path());
        assert_eq!(history.last_seen(NodeId(2)), Some(12_345));
        assert_eq!(history.loads(101), [sample(100), sample(101)]);
        // A day later the same slots hold nothing of that day.
        assert_eq!(history.loads(100 + LOAD_SLOTS), [sample(101)]);
    }

    #[test]
    fn a_value_of_another_key_or_a_changed_one_is_no_value() {
        let sealed = seal(b"a", b"value");
        assert_eq!(unseal(b"a", &sealed).as_deref(), Some(&b"value"[..]));
        assert_eq!(unseal(b"b", &sealed), None);
        for at in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[at] ^= 4;
            assert_eq!(unseal(b"a", &bad), None);
        }
        assert_eq!(unseal(b"a", b"short"), None);
    }

    #[test]
    fn any_damage_leaves_a_history_that_works() {
        for damage in [&b""[..], b"garbage", &[0xff; 70_000]] {
            let dir = tempfile::tempdir().unwrap();
            let history = History::open(dir.path());
            for node in 1..500 {
                history.note_seen(NodeId(node), 1);
            }
            history.flush();
            drop(history);
            for file in files_below(&dir.path().join("history")) {
                fs::write(file, damage).unwrap();
            }
            let history = History::open(dir.path());
            history.note_seen(NodeId(7), 9);
            history.flush();
            assert_eq!(
                history.last_seen(NodeId(7)),
                Some(9),
                "{} bytes",
                damage.len()
            );
        }
    }

    fn files_below(dir: &Path) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files.extend(files_below(&path));
            } else {
                files.push(path);
            }
        }
        files
    }
}
