//! Which local processes are guests of whom, for the filesystem: `/mfs/home` and the rights of
//! guests depend on it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use proto::ids::NodeId;

use super::registry::GuestKey;

/// How many parents are looked at: guest's thread, guest, its init, its supervisor.
const ANCESTORS_MAX: usize = 6;
/// An answer is valid this long; a PID is not reused within it.
const VALID: Duration = Duration::from_millis(500);
/// Answers remembered.
const ANSWERS_MAX: usize = 4096;

#[derive(Debug, Default)]
struct Table {
    keepers: HashMap<i32, GuestKey>,
    started: HashMap<i32, (GuestKey, Instant)>,
    answers: HashMap<i32, (Option<GuestKey>, Instant)>,
}

/// A supervisor that was just started is believed this long before its state file shows it.
const STARTED_VALID: Duration = Duration::from_secs(30);

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct GuestTable(Mutex<Table>);

impl GuestTable {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the supervisors that state files tell of.
    pub fn set_keepers(&self, keepers: HashMap<i32, GuestKey>) {
        let mut table = self.table();
        table.keepers = keepers;
        table
            .started
            .retain(|_, (_, at)| at.elapsed() < STARTED_VALID);
        table.answers.retain(|_, (_, at)| at.elapsed() < VALID);
    }

    /// A supervisor was started.
    pub fn started(&self, keeper: i32, guest: GuestKey) {
        self.table().started.insert(keeper, (guest, Instant::now()));
    }

    /// A supervisor ended.
    pub fn ended(&self, keeper: i32) {
        let mut table = self.table();
        table.started.remove(&keeper);
        table.keepers.remove(&keeper);
        table.answers.clear();
    }

    /// The guests of a home, by their PIDs there.
    pub fn guests_of(&self, home: NodeId) -> Vec<i32> {
        let table = self.table();
        let started = table.started.values().map(|(guest, _)| guest);
        let all = table.keepers.values().chain(started);
        let pids = all.filter(|(node, _)| *node == home).map(|(_, pid)| *pid);
        pids.collect()
    }

    /// The guest that a process or thread is, or that a supervisor works for; `None` for this
    /// node's own.
    pub fn guest(&self, pid: i32) -> Option<GuestKey> {
        let keepers = {
            let table = self.table();
            if table.keepers.is_empty() && table.started.is_empty() {
                return None;
            }
            if let Some((answer, _)) = table
                .answers
                .get(&pid)
                .filter(|(_, at)| at.elapsed() < VALID)
            {
                return *answer;
            }
            let started = table.started.iter().map(|(pid, (guest, _))| (*pid, *guest));
            started
                .chain(table.keepers.iter().map(|(pid, guest)| (*pid, *guest)))
                .collect::<HashMap<i32, GuestKey>>()
        };
        let answer = ancestors(pid).find_map(|parent| keepers.get(&parent).copied());
        let mut table = self.table();
        if table.answers.len() >= ANSWERS_MAX {
            table.answers.clear();
        }
        table.answers.insert(pid, (answer, Instant::now()));
        answer
    }
}

/// The process of a thread and its parents, nearest first.
fn ancestors(pid: i32) -> impl Iterator<Item = i32> {
    let parents = std::iter::successors(status(pid, "Tgid:"), |pid| status(*pid, "PPid:"));
    parents.take(ANCESTORS_MAX)
}

fn status(pid: i32, field: &str) -> Option<i32> {
    let status = omfs_sys::procfs::status(pid).ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(field))?;
    value.trim().parse().ok().filter(|found| *found > 1)
}

#[cfg(test)]
mod tests {
    use proto::ids::NodeId;

    use super::*;

    #[test]
    fn a_supervisor_and_its_children_act_for_the_guests_home() {
        let me = i32::try_from(std::process::id()).unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("30")
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let table = GuestTable::default();
        assert_eq!(table.guest(pid), None);
        let guest = (NodeId(4), 4711);
        table.started(me, guest);
        assert_eq!(table.guest(pid), Some(guest));
        assert_eq!(table.guest(me), Some(guest));
        assert_eq!(table.guest(i32::MAX), None);
        table.ended(me);
        assert_eq!(table.guest(pid), None);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
