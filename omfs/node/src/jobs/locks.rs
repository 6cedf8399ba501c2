//! Jobs that somebody placed by hand: they stay where they are (docs/balancing.md, "By hand").
//!
//! Home knows its own: one file per job in `<run_dir>/locks`, named by its PID, with the start time
//! that tells it from a later process of the same PID. So a new daemon knows them too. A host is
//! told when a guest comes, and when that changes.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use loadbal::load::ProcessKey;
use omfs_cluster::control::{Caller, ControlError};
use omfs_pki::files;
use proto::v1;

use super::moves::MoveError;
use super::registry::{GuestKey, is_away};
use super::shared::Shared;
use super::subject::Subject;

/// More files than this are not read.
const FILES_MAX: usize = 4096;
/// More guests than this are not remembered: homes tell of them, and may tell anything.
const GUESTS_MAX: usize = 4096;

/// Of one node: its own jobs, and its guests.
#[derive(Debug)]
pub struct Locks {
    directory: PathBuf,
    own: Mutex<HashMap<i32, u64>>,
    guests: Mutex<HashSet<GuestKey>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Locks {
    /// Reads what an earlier daemon wrote.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open(run_dir: &Path) -> io::Result<Self> {
        let directory = run_dir.join("locks");
        std::fs::create_dir_all(&directory)?;
        let files = std::fs::read_dir(&directory)?.flatten().take(FILES_MAX);
        let own = files.filter_map(|file| {
            let pid = file.file_name().to_str()?.parse().ok()?;
            let start = std::fs::read_to_string(file.path()).ok()?;
            Some((pid, start.trim().parse().ok()?))
        });
        Ok(Self {
            own: Mutex::new(own.collect()),
            guests: Mutex::default(),
            directory,
        })
    }

    /// Whether this process of this node is to stay where it is.
    pub fn holds(&self, key: ProcessKey) -> bool {
        lock(&self.own).get(&key.pid) == Some(&key.start_ticks)
    }

    /// Keeps a process of this node where it is, or lets it move by itself again.
    pub fn set(&self, key: ProcessKey, locked: bool) {
        let path = self.directory.join(key.pid.to_string());
        let mut own = lock(&self.own);
        let written = if locked {
            own.insert(key.pid, key.start_ticks);
            let text = key.start_ticks.to_string();
            files::replace(&path, text.as_bytes()).map_err(|error| error.to_string())
        } else if own.remove(&key.pid).is_some() {
            std::fs::remove_file(&path).map_err(|error| format!("{}: {error}", path.display()))
        } else {
            Ok(())
        };
        if let Err(error) = written {
            tracing::warn!("{error}");
        }
    }

    /// Forgets processes that are gone.
    pub fn retain(&self, lives: impl Fn(ProcessKey) -> bool) {
        lock(&self.own).retain(|pid, start_ticks| {
            let lives = lives(ProcessKey {
                pid: *pid,
                start_ticks: *start_ticks,
            });
            if !lives {
                let _ = std::fs::remove_file(self.directory.join(pid.to_string()));
            }
            lives
        });
    }

    /// Whether this guest is to stay here.
    pub fn holds_guest(&self, guest: GuestKey) -> bool {
        lock(&self.guests).contains(&guest)
    }

    /// Takes over what a guest's home says.
    pub fn set_guest(&self, guest: GuestKey, locked: bool) {
        let mut guests = lock(&self.guests);
        if !locked {
            guests.remove(&guest);
        } else if guests.len() < GUESTS_MAX {
            guests.insert(guest);
        } else {
            tracing::warn!("more than {GUESTS_MAX} guests are to stay: {guest:?} may move");
        }
    }
}

/// Keeps a job of this node where it is, or lets it move by itself again; tells its host.
///
/// # Errors
/// No such process, not the caller's, or its host does not answer.
pub async fn change(
    shared: &Arc<Shared>,
    caller: Caller,
    pid: i32,
    locked: bool,
) -> Result<(), ControlError> {
    let subject = Subject::look(pid)?;
    subject.check_caller(caller).map_err(|error| match error {
        MoveError::Control(error) => error,
        other => ControlError::NotPermitted(format!("process {pid}: {other}")),
    })?;
    shared.locks.set(subject.process, locked);
    shared.refresh();
    let entry = shared
        .registry
        .job(pid)
        .filter(|entry| is_away(&entry.state));
    let host = entry.and_then(|entry| shared.context.directory.by_name_or_id(&entry.state.place));
    match host {
        Some(host) => {
            let request = v1::LockGuestRequest {
                pid,
                locked,
                start_ticks: subject.process.start_ticks,
            };
            shared.context.clients.lock_guest(host.id, request).await
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::ids::NodeId;

    fn key(pid: i32, start_ticks: u64) -> ProcessKey {
        ProcessKey { pid, start_ticks }
    }

    #[test]
    fn locks_outlive_the_daemon_but_not_the_process() {
        let run = tempfile::tempdir().unwrap();
        let locks = Locks::open(run.path()).unwrap();
        locks.set(key(7, 100), true);
        locks.set(key(8, 100), true);
        locks.set(key(8, 100), false);
        std::fs::write(run.path().join("locks/README"), "no PID").unwrap();
        let locks = Locks::open(run.path()).unwrap();
        assert!(locks.holds(key(7, 100)));
        assert!(!locks.holds(key(7, 101)), "another process of this PID");
        assert!(!locks.holds(key(8, 100)));
        locks.retain(|one| one == key(7, 100));
        assert!(locks.holds(key(7, 100)));
        locks.retain(|one| one == key(7, 101));
        assert!(!Locks::open(run.path()).unwrap().holds(key(7, 100)));
    }

    #[test]
    fn guests_are_known_by_home_and_pid() {
        let run = tempfile::tempdir().unwrap();
        let locks = Locks::open(run.path()).unwrap();
        locks.set_guest((NodeId(1), 7), true);
        assert!(locks.holds_guest((NodeId(1), 7)) && !locks.holds_guest((NodeId(2), 7)));
        locks.set_guest((NodeId(1), 7), false);
        assert!(!locks.holds_guest((NodeId(1), 7)));
    }

    #[test]
    fn what_homes_tell_is_bounded() {
        let run = tempfile::tempdir().unwrap();
        let locks = Locks::open(run.path()).unwrap();
        (1..=i32::MAX)
            .take(GUESTS_MAX + 10)
            .for_each(|pid| locks.set_guest((NodeId(1), pid), true));
        assert_eq!(lock(&locks.guests).len(), GUESTS_MAX);
    }
}
