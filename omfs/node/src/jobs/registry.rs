//! What shims and supervisors say in their state files, and what became of those that ended.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use migrator::control::{JobState, RunState};
use proto::ids::{NodeId, ProcessId};

use super::keeper_files::KeeperFiles;

/// Ended jobs that `omfs ps` still shows.
const ENDED_MAX: usize = 64;
/// How long `omfs ps` shows a job that ended away.
const ENDED_SHOWN: Duration = Duration::from_secs(60);
/// How long it shows one that was lost.
const LOST_SHOWN: Duration = Duration::from_secs(3600);

/// A guest: its home node and its PID there, which a home has once at a time. Which process it is
/// is in its state: [`JobState::process`].
pub type GuestKey = (NodeId, i32);

/// One job or guest with what can be computed from several looks at it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// As its keeper wrote it.
    pub state: JobState,
    /// CPUs used of late.
    pub cpus: f64,
    /// Since when it is at this place.
    pub since: Instant,
    measured: (Instant, u64),
}

/// What changed between two looks.
#[derive(Debug, Default)]
pub struct Changes {
    /// PIDs of jobs that are home again.
    pub came_home: Vec<i32>,
    /// The last words of shims whose jobs are home. A shim may be here more than once.
    pub at_home: Vec<JobState>,
    /// Guests that left or ended.
    pub guests_gone: Vec<GuestKey>,
}

#[derive(Debug, Default)]
struct Known {
    away: BTreeMap<i32, Entry>,
    guests: BTreeMap<GuestKey, Entry>,
    ended: VecDeque<(Instant, JobState)>,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Registry {
    jobs: PathBuf,
    here: String,
    known: Mutex<Known>,
    /// Held for a whole look, so that nobody acts on files that another look has removed.
    files: Mutex<Files>,
}

#[derive(Debug)]
struct Files {
    jobs: KeeperFiles,
    guests: KeeperFiles,
}

impl Registry {
    /// Makes the directories.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn open(run_dir: &Path, here: &str) -> io::Result<Self> {
        let (jobs, guests) = (run_dir.join("jobs"), run_dir.join("guests"));
        std::fs::create_dir_all(&jobs)?;
        std::fs::create_dir_all(&guests)?;
        let files = Files {
            jobs: KeeperFiles::new(&jobs, "shim"),
            guests: KeeperFiles::new(&guests, "supervisor"),
        };
        Ok(Self {
            jobs,
            here: here.to_owned(),
            known: Mutex::default(),
            files: Mutex::new(files),
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The control socket of a job's shim; its state file has the extension json.
    pub fn job_socket(&self, pid: i32) -> PathBuf {
        self.jobs.join(format!("{pid}.sock"))
    }

    /// The control socket of a guest's supervisor.
    #[cfg(test)]
    pub fn guest_socket(&self, (home, pid): GuestKey) -> PathBuf {
        self.jobs
            .with_file_name("guests")
            .join(format!("{home}-{pid}.sock"))
    }

    /// Jobs that have a shim, the ones at home that may go away again included.
    pub fn jobs(&self) -> Vec<Entry> {
        self.known().away.values().cloned().collect()
    }

    /// Jobs that are away or between two places.
    pub fn away(&self) -> Vec<Entry> {
        let mut jobs = self.jobs();
        jobs.retain(|entry| is_away(&entry.state));
        jobs
    }

    /// One job that has a shim.
    pub fn job(&self, pid: i32) -> Option<Entry> {
        self.known().away.get(&pid).cloned()
    }

    /// Guests here.
    pub fn guests(&self) -> Vec<(GuestKey, Entry)> {
        let known = self.known();
        let all = known.guests.iter();
        all.map(|(key, entry)| (*key, entry.clone())).collect()
    }

    /// One guest.
    pub fn guest(&self, key: GuestKey) -> Option<Entry> {
        self.known().guests.get(&key).cloned()
    }

    /// Processes of supervisors with their guest.
    pub fn guest_keepers(&self) -> HashMap<ProcessId, GuestKey> {
        let known = self.known();
        let guests = known.guests.iter();
        guests
            .map(|(key, entry)| (entry.state.keeper(), *key))
            .collect()
    }

    /// Jobs that ended away not long ago, newest first.
    pub fn ended(&self) -> Vec<JobState> {
        let mut known = self.known();
        known.ended.retain(|(at, state)| {
            let shown = match state.state {
                RunState::Lost => LOST_SHOWN,
                _ => ENDED_SHOWN,
            };
            at.elapsed() < shown
        });
        known.ended.iter().map(|(_, state)| state.clone()).collect()
    }

    /// Reads all state files. Those of keepers that are gone are removed.
    pub fn refresh(&self) -> Changes {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let mut jobs = files.jobs.look(parse_job);
        let guests = files.guests.look(parse_guest);
        let mut known = self.known();
        let mut changes = Changes::default();
        let taken = take_over(&mut known.away, std::mem::take(&mut jobs.live));
        for (pid, before) in taken.gone {
            if is_away(&before) {
                changes.came_home.push(pid);
            }
            let last = jobs.left_behind.remove(&pid).unwrap_or(before);
            changes.note_home(&last);
            remember_end(&mut known.ended, last, &self.here);
        }
        for last in jobs.left_behind.into_values() {
            changes.note_home(&last);
            remember_end(&mut known.ended, last, &self.here);
        }
        for pid in taken.came_home {
            changes.came_home.push(pid);
            if let Some(entry) = known.away.get(&pid) {
                changes.note_home(&entry.state);
            }
        }
        let guests = take_over(&mut known.guests, guests.live);
        changes
            .guests_gone
            .extend(guests.gone.into_iter().map(|(key, _)| key));
        changes
    }
}

impl Changes {
    fn note_home(&mut self, last: &JobState) {
        if last.state == RunState::Home {
            self.at_home.push(last.clone());
        }
    }
}

/// Whether the process runs elsewhere, or is on its way.
pub fn is_away(state: &JobState) -> bool {
    match state.state {
        RunState::Running | RunState::Stopped | RunState::Lost => true,
        RunState::Migrating | RunState::Home => state.place != state.home,
        RunState::Ended => false,
    }
}

/// A job whose process is alive has come home; one whose process is gone has ended.
fn remember_end(ended: &mut VecDeque<(Instant, JobState)>, mut last: JobState, here: &str) {
    let at_home = last.state == RunState::Home || last.place == here;
    let lost = last.state == RunState::Lost;
    if !lost && (at_home || is_alive(last.pid)) {
        return;
    }
    if !lost {
        last.state = RunState::Ended;
    }
    ended.push_front((Instant::now(), last));
    ended.truncate(ENDED_MAX);
}

fn is_alive(pid: i32) -> bool {
    let stat = omfs_sys::procfs::text(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest.chars().next());
    matches!(state, Some(Some(letter)) if !matches!(letter, 'Z' | 'X'))
}

struct Taken<K> {
    gone: Vec<(K, JobState)>,
    came_home: Vec<K>,
}

fn take_over<K: Ord + Copy>(
    known: &mut BTreeMap<K, Entry>,
    mut live: BTreeMap<K, JobState>,
) -> Taken<K> {
    let mut taken = Taken {
        gone: Vec::new(),
        came_home: Vec::new(),
    };
    known.retain(|key, entry| {
        let stays = live.contains_key(key);
        if !stays {
            taken.gone.push((*key, entry.state.clone()));
        }
        stays
    });
    while let Some((key, state)) = live.pop_first() {
        if let Some(entry) = known.get_mut(&key) {
            if is_away(&entry.state) && !is_away(&state) {
                taken.came_home.push(key);
            }
            entry.update(state);
        } else {
            known.insert(key, Entry::new(state));
        }
    }
    taken
}

impl Entry {
    fn new(state: JobState) -> Self {
        Self {
            cpus: 0.0,
            since: Instant::now(),
            measured: (Instant::now(), state.cpu_time_ms),
            state,
        }
    }

    fn update(&mut self, state: JobState) {
        if state.place != self.state.place {
            self.since = Instant::now();
        }
        let (at, before) = self.measured;
        if state.cpu_time_ms != before || at.elapsed().as_secs() >= 2 {
            let used = state.cpu_time_ms.saturating_sub(before);
            self.cpus = used as f64 / 1000.0 / at.elapsed().as_secs_f64().max(0.001);
            self.measured = (Instant::now(), state.cpu_time_ms);
        }
        self.state = state;
    }
}

fn parse_job(name: &str) -> Option<i32> {
    name.strip_suffix(".json")?
        .parse()
        .ok()
        .filter(|pid| *pid > 0)
}

fn parse_guest(name: &str) -> Option<GuestKey> {
    let (home, pid) = name.strip_suffix(".json")?.split_once('-')?;
    Some((home.parse().ok()?, pid.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use migrator::control::write_state;

    fn state(pid: i32, place: &str, run: RunState) -> JobState {
        JobState {
            pid,
            keeper_pid: i32::try_from(std::process::id()).unwrap(),
            home: "n1".into(),
            place: place.into(),
            state: run,
            ..JobState::default()
        }
    }

    #[test]
    fn a_job_is_followed_out_and_home() {
        let run = tempfile::tempdir().unwrap();
        let registry = Registry::open(run.path(), "n1").unwrap();
        let path = registry.job_socket(7).with_extension("json");
        write_state(&path, &state(7, "n2", RunState::Running)).unwrap();
        registry.refresh();
        assert_eq!(registry.away().len(), 1);
        write_state(&path, &state(7, "n1", RunState::Home)).unwrap();
        assert_eq!(registry.refresh().came_home, [7]);
        assert_eq!((registry.away().len(), registry.jobs().len()), (0, 1));
        std::fs::remove_file(&path).unwrap();
        registry.refresh();
        assert!(registry.job(7).is_none() && registry.ended().is_empty());
    }

    #[test]
    fn a_job_that_ended_away_is_remembered() {
        let run = tempfile::tempdir().unwrap();
        let registry = Registry::open(run.path(), "n1").unwrap();
        let path = registry.job_socket(i32::MAX).with_extension("json");
        let mut lost = state(i32::MAX, "n2", RunState::Lost);
        lost.note = "n2 died".into();
        write_state(&path, &lost).unwrap();
        registry.refresh();
        std::fs::remove_file(&path).unwrap();
        registry.refresh();
        assert_eq!(registry.ended(), [lost]);
    }

    #[test]
    fn the_last_words_of_a_shim_are_kept() {
        let run = tempfile::tempdir().unwrap();
        let registry = Registry::open(run.path(), "n1").unwrap();
        let path = registry.job_socket(i32::MAX).with_extension("json");
        let mut last = state(i32::MAX, "n2", RunState::Running);
        write_state(&path, &last).unwrap();
        registry.refresh();
        last.state = RunState::Lost;
        last.note = "n2 died".into();
        last.keeper_pid = i32::MAX;
        write_state(&path, &last).unwrap();
        registry.refresh();
        assert_eq!(registry.ended(), [last]);
        assert!(!path.exists());
    }

    #[test]
    fn files_of_dead_keepers_and_garbage_do_no_harm() {
        let run = tempfile::tempdir().unwrap();
        let registry = Registry::open(run.path(), "n2").unwrap();
        let dead = registry.guest_socket((NodeId(1), 9)).with_extension("json");
        let mut state = state(9, "n2", RunState::Running);
        state.keeper_pid = i32::MAX;
        write_state(&dead, &state).unwrap();
        std::fs::write(run.path().join("guests/1-8.json"), "garbage\n").unwrap();
        std::fs::write(run.path().join("guests/README"), "").unwrap();
        registry.refresh();
        assert!(registry.guests().is_empty());
        assert!(!dead.exists());
    }
}
