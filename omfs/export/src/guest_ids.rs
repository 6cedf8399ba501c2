//! The ids that a deputy has, as `/proc` says now.
//!
//! A deputy is parked while its guest is away, so its ids change only when it is home. What was read
//! is kept for a moment, and read again at once when a claim does not fit it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use omfs_authz::guest::{Ids, ThreadCredentials, ids_of_request};
use proto::v1::Caller;

use omfs_sys::procfs;

use super::caller::claim_of;

/// What was read is used this long without another look.
const FRESH: Duration = Duration::from_millis(250);
/// A claim that does not fit has the files read again at most this often, so that wrong claims cost
/// no more than others.
const REREAD_INTERVAL: Duration = Duration::from_millis(20);
/// The ids of a deputy that is gone hold for what its guest has yet to write, even if its PID has
/// been taken over already.
const TAKEN_OVER_VALID: Duration = Duration::from_secs(10);
/// Deputies that are remembered.
const DEPUTIES_MAX: usize = 1024;
/// Threads of one process that are looked at.
const THREADS_MAX: usize = 4096;

/// What one look at a deputy has shown.
#[derive(Clone, Debug)]
struct Known {
    start_ticks: u64,
    read_at: Instant,
    /// The leader's first; each different set of ids once.
    threads: Arc<[ThreadCredentials]>,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct DeputyIds(Mutex<HashMap<i32, Known>>);

impl DeputyIds {
    fn known(&self) -> MutexGuard<'_, HashMap<i32, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ids that a request in the name of the job `pid` gets; `None` when the deputy has none
    /// that it claims.
    pub fn of_request(&self, pid: i32, caller: &Caller) -> Option<Ids> {
        let claimed = claim_of(caller);
        let before = self.known().get(&pid).cloned();
        if let Some(known) = before
            .as_ref()
            .filter(|known| known.read_at.elapsed() < FRESH)
        {
            let granted = ids_of_request(&known.threads, &claimed);
            if granted.is_some() || known.read_at.elapsed() < REREAD_INTERVAL {
                return granted;
            }
        }
        let now = match (read(pid), before) {
            (Some(now), Some(before)) if now.start_ticks != before.start_ticks => {
                if before.read_at.elapsed() < TAKEN_OVER_VALID {
                    return ids_of_request(&before.threads, &claimed);
                }
                now
            }
            (Some(now), _) => now,
            (None, before) => return ids_of_request(&before?.threads, &claimed),
        };
        let granted = ids_of_request(&now.threads, &claimed);
        self.remember(pid, now);
        granted
    }

    fn remember(&self, pid: i32, now: Known) {
        let mut known = self.known();
        if known.len() >= DEPUTIES_MAX && !known.contains_key(&pid) {
            known.retain(|_, known| known.read_at.elapsed() < TAKEN_OVER_VALID);
            if known.len() >= DEPUTIES_MAX {
                known.clear();
            }
        }
        known.insert(pid, now);
    }
}

fn read(pid: i32) -> Option<Known> {
    let start_ticks = start_ticks(pid)?;
    let mut threads = vec![parse(&procfs::status(pid).ok()?)?];
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).ok();
    for task in tasks.into_iter().flatten().flatten().take(THREADS_MAX) {
        // A thread that has just ended is none.
        let status = procfs::text(task.path().join("status")).ok();
        if let Some(thread) = status.as_deref().and_then(parse)
            && !threads.contains(&thread)
        {
            threads.push(thread);
        }
    }
    // All of it belongs to one process only if that is still there.
    (self::start_ticks(pid)? == start_ticks).then(|| Known {
        start_ticks,
        read_at: Instant::now(),
        threads: threads.into(),
    })
}

/// Field 22 of proc_pid_stat(5); the name before may contain anything.
fn start_ticks(pid: i32) -> Option<u64> {
    let stat = procfs::text(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(19)?.parse().ok()
}

fn parse(status: &str) -> Option<ThreadCredentials> {
    let numbers = |name: &str| -> Option<Vec<u32>> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_ascii_whitespace()
            .map(|number| number.parse().ok())
            .collect()
    };
    Some(ThreadCredentials {
        uids: numbers("Uid:")?.try_into().ok()?,
        gids: numbers("Gid:")?.try_into().ok()?,
        groups: numbers("Groups:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_pid() -> i32 {
        i32::try_from(std::process::id()).unwrap()
    }

    #[test]
    fn a_status_file_gives_the_ids() {
        let text = "Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t4 24 \nNStgid:\t1\n";
        let wanted = ThreadCredentials {
            uids: [1, 2, 3, 4],
            gids: [5, 6, 7, 8],
            groups: vec![4, 24],
        };
        assert_eq!(parse(text), Some(wanted));
        assert_eq!(parse("Name:\tx\nUid:\t1\t2\t3\n"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn the_ids_are_those_of_the_process_now() {
        let ids = DeputyIds::default();
        let own = Caller {
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            ..Caller::default()
        };
        let granted = ids.of_request(own_pid(), &own).expect("its own ids");
        assert_eq!((granted.uid, granted.gid), (own.uid, own.gid));
        let other = Caller { uid: 4711, ..own };
        assert_eq!(ids.of_request(own_pid(), &other), None);
        assert_eq!(ids.of_request(i32::MAX, &other), None);
    }

    #[test]
    fn what_a_dead_deputy_had_holds_for_its_last_writes() {
        let mut child = std::process::Command::new("sleep")
            .arg("30")
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let ids = DeputyIds::default();
        let own = Caller {
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            ..Caller::default()
        };
        let alive = ids.of_request(pid, &own);
        assert!(alive.is_some());
        child.kill().unwrap();
        child.wait().unwrap();
        let long_ago = Instant::now().checked_sub(FRESH);
        ids.known().get_mut(&pid).unwrap().read_at = long_ago.unwrap();
        assert_eq!(ids.of_request(pid, &own), alive);
    }
}
