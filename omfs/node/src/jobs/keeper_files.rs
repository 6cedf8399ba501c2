//! The state files of one directory, looked at again and again: a file that is as it was is not
//! read.
//!
//! Whether a keeper lives is asked in one way only ([`is_keeper`]): a process descriptor tells of an
//! end a moment later, and in that moment the next keeper of the same job may be started, whose
//! socket would then be taken for the old one's.

use std::collections::{BTreeMap, HashMap};
use std::fs::{DirEntry, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use migrator::capture::identity;
use migrator::control::{JobState, RunState, read_state};
use proto::ids::ProcessId;

use super::own_pid;

/// State files that are read.
const FILES_MAX: usize = 4096;
/// A file that was changed so short a time before it was read may be changed again with the same
/// time of modification, which the kernel takes from its tick.
const RACY: Duration = Duration::from_millis(50);

/// What was found in one directory.
pub struct Found<K> {
    /// Files of keepers that live.
    pub live: BTreeMap<K, JobState>,
    /// Last words of keepers that are gone; the files are removed.
    pub left_behind: BTreeMap<K, JobState>,
}

/// One directory of state files.
#[derive(Debug)]
pub struct KeeperFiles {
    directory: PathBuf,
    /// The subcommand that its keepers run.
    keeper: &'static str,
    read: HashMap<PathBuf, Read>,
}

#[derive(Debug)]
struct Read {
    stamp: Stamp,
    state: JobState,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp {
    inode: u64,
    bytes: u64,
    modified_ns: i128,
}

impl Stamp {
    fn of(data: &Metadata) -> Self {
        Self {
            inode: data.ino(),
            bytes: data.len(),
            modified_ns: i128::from(data.mtime()) * 1_000_000_000 + i128::from(data.mtime_nsec()),
        }
    }

    fn is_racy(&self, now: SystemTime) -> bool {
        let now = now.duration_since(SystemTime::UNIX_EPOCH);
        let now_ns = now.map_or(0, |time| i128::try_from(time.as_nanos()).unwrap_or(0));
        let racy_ns = i128::try_from(RACY.as_nanos()).unwrap_or(0);
        self.modified_ns + racy_ns >= now_ns
    }
}

impl KeeperFiles {
    /// Nothing looked at yet.
    pub fn new(directory: &Path, keeper: &'static str) -> Self {
        Self {
            directory: directory.to_owned(),
            keeper,
            read: HashMap::new(),
        }
    }

    /// Looks at all files whose names mean something to `parse`.
    pub fn look<K: Ord>(&mut self, parse: impl Fn(&str) -> Option<K>) -> Found<K> {
        let entries = std::fs::read_dir(&self.directory);
        let mut found = Found {
            live: BTreeMap::new(),
            left_behind: BTreeMap::new(),
        };
        let mut before = std::mem::take(&mut self.read);
        for entry in entries.into_iter().flatten().flatten().take(FILES_MAX) {
            let Some(key) = entry.file_name().to_str().and_then(&parse) else {
                continue;
            };
            let path = entry.path();
            let Some(state) = self.state(&entry, before.remove(&path)) else {
                continue;
            };
            if is_keeper(state.keeper(), self.keeper) {
                found.live.insert(key, state);
            } else {
                self.clean_up(&path, &state);
                found.left_behind.insert(key, state);
            }
        }
        found
    }

    fn state(&mut self, entry: &DirEntry, before: Option<Read>) -> Option<JobState> {
        let path = entry.path();
        let stamp = entry.metadata().ok().map(|data| Stamp::of(&data));
        if let (Some(stamp), Some(before)) = (stamp, before)
            && stamp == before.stamp
        {
            let state = before.state.clone();
            self.read.insert(path, before);
            return Some(state);
        }
        let now = SystemTime::now();
        match read_state(&path) {
            Ok(state) => {
                if let Some(stamp) = stamp.filter(|stamp| !stamp.is_racy(now)) {
                    let state = state.clone();
                    self.read.insert(path, Read { stamp, state });
                }
                Some(state)
            }
            // It may have been removed just now.
            Err(error) => {
                tracing::debug!("{}: {error}", path.display());
                None
            }
        }
    }

    fn clean_up(&mut self, path: &Path, state: &JobState) {
        if !matches!(
            state.state,
            RunState::Lost | RunState::Ended | RunState::Home
        ) {
            tracing::warn!(pid = state.pid, "its {} is gone: cleaning up", self.keeper);
        }
        let _ = std::fs::remove_file(path.with_extension("sock"));
        let _ = std::fs::remove_file(path);
        self.read.remove(path);
    }
}

/// Waits until a keeper has ended; false if it lives on.
pub async fn wait_for_end(process: ProcessId, keeper: &str, limit: Duration) -> bool {
    let until = Instant::now() + limit;
    while is_keeper(process, keeper) {
        if Instant::now() > until {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    true
}

/// Whether a process is still there and a keeper. The start time tells it from a later process
/// of its PID; its command line is empty as soon as it ends, before its parent has noticed.
fn is_keeper(process: ProcessId, keeper: &str) -> bool {
    let pid = process.pid;
    if pid == own_pid() {
        return true; // tests keep jobs themselves
    }
    if !identity::process_id(pid).is_ok_and(|now| now.matches(process)) {
        return false;
    }
    let line = omfs_sys::procfs::bytes(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0)
        .any(|argument| argument == keeper.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use migrator::control::write_state;
    use std::process::{Child, Command};

    fn number(name: &str) -> Option<i32> {
        name.strip_suffix(".json")?.parse().ok()
    }

    fn write(path: &Path, keeper_pid: i32, note: &str) {
        let state = JobState {
            pid: 7,
            keeper_pid,
            note: note.to_owned(),
            ..JobState::default()
        };
        write_state(path, &state).unwrap();
    }

    /// A process whose command line says that it keeps something.
    fn keeper() -> Child {
        let mut command = Command::new("sh");
        command.args(["-c", "while :; do sleep 1; done", "shim"]);
        command.spawn().unwrap()
    }

    #[test]
    fn another_process_with_a_keepers_pid_is_none() {
        let mut child = keeper();
        let pid = i32::try_from(child.id()).unwrap();
        let now = identity::process_id(pid).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !is_keeper(now, "shim") {
            assert!(Instant::now() < deadline);
        }
        let mut before = now;
        before.start_ticks -= 1;
        assert!(!is_keeper(before, "shim"));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn changes_are_seen_however_fast_they_come() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("7.json");
        let me = i32::try_from(std::process::id()).unwrap();
        let mut files = KeeperFiles::new(directory.path(), "shim");
        for round in 0..200 {
            // In place and of equal length: neither inode number nor size tells.
            let note = format!("note{round:03}");
            if round == 0 {
                write(&path, me, &note);
            } else {
                let text = std::fs::read_to_string(&path).unwrap();
                let text = text.replace(&format!("note{:03}", round - 1), &note);
                std::fs::write(&path, text).unwrap();
            }
            assert_eq!(files.look(number).live[&7].note, note);
        }
    }

    #[test]
    fn what_has_not_changed_is_not_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("7.json");
        write(&path, i32::try_from(std::process::id()).unwrap(), "a");
        std::thread::sleep(RACY * 2);
        let mut files = KeeperFiles::new(directory.path(), "shim");
        files.look(number);
        let known = files.read.get_mut(&path).unwrap();
        known.state.note = "from memory".to_owned();
        assert_eq!(files.look(number).live[&7].note, "from memory");
    }

    #[test]
    fn the_end_of_a_keeper_is_noticed_though_its_file_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("7.json");
        let mut child = keeper();
        write(&path, i32::try_from(child.id()).unwrap(), "a");
        let mut files = KeeperFiles::new(directory.path(), "shim");
        let deadline = Instant::now() + Duration::from_secs(20);
        while files.look(number).live.is_empty() {
            // Until it has executed its program it is no keeper, and its file goes.
            write(&path, i32::try_from(child.id()).unwrap(), "a");
            assert!(Instant::now() < deadline);
        }
        assert_eq!(files.look(number).live.len(), 1);
        child.kill().unwrap();
        child.wait().unwrap();
        let found = files.look(number);
        assert!(found.live.is_empty() && found.left_behind.contains_key(&7));
        assert!(!path.exists());
    }
}
