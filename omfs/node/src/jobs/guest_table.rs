//! Which local processes are guests of whom, for the filesystem: `/mfs/home` and the rights of
//! guests depend on it.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use migrator::tracee::procfs::{Stat, Status};
use proto::ids::{NodeId, ProcessId};

use super::registry::GuestKey;

/// How many parents are looked at: guest's thread, guest, its init, its supervisor.
const ANCESTORS_MAX: usize = 6;
/// An answer is valid this long, unless its process ends before.
const VALID: Duration = Duration::from_millis(500);
/// Answers remembered; each takes a descriptor.
const ANSWERS_MAX: usize = 1024;
/// When a process was started, and its parent, in `/proc/PID/stat` (proc_pid_stat(5)).
const START_TIME_FIELD: usize = 22;
const PARENT_FIELD: usize = 4;

#[derive(Debug, Default)]
struct Table {
    keepers: HashMap<ProcessId, GuestKey>,
    started: HashMap<ProcessId, (GuestKey, Instant)>,
    answers: HashMap<i32, Answer>,
}

#[derive(Debug)]
struct Answer {
    guest: Option<GuestKey>,
    at: Instant,
    /// A file of `/proc/PID`: it stays that process', whoever gets the PID next.
    process: File,
}

impl Answer {
    /// Whether it is recent, and still about the process that has the PID.
    fn holds(&self) -> bool {
        self.at.elapsed() < VALID && self.process.read_at(&mut [0], 0).is_ok()
    }
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
    pub fn set_keepers(&self, keepers: HashMap<ProcessId, GuestKey>) {
        let mut table = self.table();
        table.keepers = keepers;
        table
            .started
            .retain(|_, (_, at)| at.elapsed() < STARTED_VALID);
        table.answers.retain(|_, answer| answer.holds());
    }

    /// A supervisor was started.
    pub fn started(&self, keeper: ProcessId, guest: GuestKey) {
        self.table().started.insert(keeper, (guest, Instant::now()));
    }

    /// A supervisor ended.
    pub fn ended(&self, keeper: ProcessId) {
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
            if let Some(answer) = table.answers.get(&pid).filter(|answer| answer.holds()) {
                return answer.guest;
            }
            let started = table.started.iter().map(|(keeper, one)| (*keeper, one.0));
            let known = table.keepers.iter().map(|(keeper, one)| (*keeper, *one));
            let all = started.chain(known);
            all.map(|(keeper, guest)| (keeper.pid, (keeper, guest)))
                .collect::<HashMap<i32, (ProcessId, GuestKey)>>()
        };
        // Opened before it is looked at: if it ends and its PID is given out again meanwhile, the
        // answer does not hold.
        let process = File::open(format!("/proc/{pid}/comm"));
        let guest = ancestors(pid).find_map(|one| {
            let (keeper, guest) = keepers.get(&one.pid)?;
            keeper.matches(one).then_some(*guest)
        });
        let mut table = self.table();
        if table.answers.len() >= ANSWERS_MAX {
            table.answers.clear();
        }
        if let Ok(process) = process {
            let at = Instant::now();
            table.answers.insert(pid, Answer { guest, at, process });
        }
        guest
    }
}

/// The process of a thread and its parents, nearest first.
fn ancestors(pid: i32) -> impl Iterator<Item = ProcessId> {
    let leader = Status::read(pid).ok().and_then(|status| {
        let leaders = status.numbers("Tgid");
        i32::try_from(*leaders.first()?).ok()
    });
    let mut next = leader;
    let parents = std::iter::from_fn(move || {
        let pid = next.filter(|pid| *pid > 1)?;
        let stat = Stat::read(pid).ok()?;
        next = i32::try_from(stat.number(PARENT_FIELD)).ok();
        let start_ticks = stat.number(START_TIME_FIELD);
        Some(ProcessId { pid, start_ticks })
    });
    parents.take(ANCESTORS_MAX)
}

#[cfg(test)]
mod tests {
    use migrator::capture::identity;

    use super::*;

    #[test]
    fn a_supervisor_and_its_children_act_for_the_guests_home() {
        let me = identity::own_process();
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
        assert_eq!(table.guest(me.pid), Some(guest));
        assert_eq!(table.guest(i32::MAX), None);
        table.ended(me);
        assert_eq!(table.guest(pid), None);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn another_process_with_a_supervisors_pid_is_no_guest() {
        let table = GuestTable::default();
        let mut before = identity::own_process();
        before.start_ticks -= 1;
        table.started(before, (NodeId(4), 4711));
        assert_eq!(table.guest(before.pid), None);
    }

    #[test]
    fn an_answer_ends_with_its_process() {
        let mut child = std::process::Command::new("sleep")
            .arg("30")
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let table = GuestTable::default();
        table.started(identity::own_process(), (NodeId(4), 4711));
        assert!(table.guest(pid).is_some());
        assert!(table.table().answers[&pid].holds());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!table.table().answers[&pid].holds());
    }
}
