//! Which process a PID is, and with which credentials.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use omfs_authz::process::Credentials;
use proto::ids::ProcessId;

use crate::control::ExpectedProcess;
use crate::tracee::procfs::{self, Stat, Status};
use crate::tracee::{Frozen, TraceeError};

use super::{CantMove, CantMoveCode};

/// When a process was started, in `/proc/PID/stat` (proc_pid_stat(5)).
const START_TIME_FIELD: usize = 22;

/// The process that has this PID now.
///
/// # Errors
/// `NotFound`/ESRCH when there is none.
pub fn process_id(pid: i32) -> io::Result<ProcessId> {
    let start_ticks = Stat::read(pid)?.number(START_TIME_FIELD);
    Ok(ProcessId { pid, start_ticks })
}

/// This process; without its start time if /proc does not tell.
#[must_use]
pub fn own_process() -> ProcessId {
    let pid = i32::try_from(std::process::id()).unwrap_or(0);
    process_id(pid).unwrap_or(ProcessId {
        pid,
        start_ticks: 0,
    })
}

/// The credentials of one thread.
///
/// # Errors
/// `NotFound`/ESRCH when it is gone; `InvalidData`.
pub fn credentials(pid: i32, tid: i32) -> io::Result<Credentials> {
    let status = Status::of_thread(pid, tid)?;
    let uids = ids(&status, "Uid")?;
    let gids = ids(&status, "Gid")?;
    // task_dump_owner() of fs/proc/base.c: the effective ids, or root's when it is not dumpable.
    let shown = fs::metadata(format!("/proc/{pid}/task/{tid}/stat"))?;
    let [_, effective_uid, ..] = uids;
    let [_, effective_gid, ..] = gids;
    Ok(Credentials {
        uids,
        gids,
        capabilities: status.mask("CapPrm") | status.mask("CapEff") | status.mask("CapAmb"),
        dumpable: shown.uid() == effective_uid && shown.gid() == effective_gid,
    })
}

fn ids(status: &Status, key: &'static str) -> io::Result<[u32; 4]> {
    let numbers = status.numbers(key);
    let ids = numbers.iter().filter_map(|id| u32::try_from(*id).ok());
    let ids: Vec<u32> = ids.collect();
    ids.try_into().map_err(|_| procfs::invalid(key))
}

/// A process with the credentials of its first thread, as an order may name it.
///
/// # Errors
/// As [`process_id`] and [`credentials`].
pub fn expected(pid: i32) -> io::Result<ExpectedProcess> {
    Ok(ExpectedProcess {
        process: process_id(pid)?,
        credentials: credentials(pid, pid)?,
        ask_dumpable: false,
    })
}

fn changed(reason: impl Into<String>) -> CantMove {
    CantMove::new(CantMoveCode::Changed, reason)
}

fn unreadable(error: &io::Error) -> CantMove {
    changed(format!("it ended while it was being moved ({error})"))
}

/// Compares a process with the one that was allowed to be moved: all its threads.
///
/// # Errors
/// It is another one, or has other credentials.
pub fn check(pid: i32, expected: Option<&ExpectedProcess>) -> Result<(), CantMove> {
    let Some(expected) = expected else {
        return Err(changed("the order does not say which process it means"));
    };
    let now = process_id(pid).map_err(|error| unreadable(&error))?;
    if now != expected.process {
        return Err(changed(
            "another process got its PID while it was being moved",
        ));
    }
    for tid in procfs::threads(pid).map_err(|error| unreadable(&error))? {
        match credentials(pid, tid) {
            Ok(found) if found == expected.credentials => {}
            // A thread that has just ended; a frozen one does not.
            Err(_) if tid != pid => {}
            Ok(_) => {
                return Err(changed("its credentials changed while it was being moved"));
            }
            Err(error) => return Err(unreadable(&error)),
        }
    }
    Ok(())
}

/// As [`check`], of a process that stands still: what holds now holds until it goes on.
///
/// # Errors
/// As [`check`].
pub fn check_frozen(
    frozen: &mut Frozen,
    expected: Option<&ExpectedProcess>,
) -> Result<(), CantMove> {
    check(frozen.pid(), expected)?;
    if expected.is_some_and(|expected| expected.ask_dumpable) && !is_dumpable(frozen)? {
        let reason = "it is not dumpable: only root may move it";
        return Err(CantMove::new(CantMoveCode::Privileged, reason));
    }
    Ok(())
}

/// Has the process ask for what /proc does not tell of root's.
fn is_dumpable(frozen: &mut Frozen) -> Result<bool, CantMove> {
    let call = ("prctl", libc::SYS_prctl);
    let args = [libc::PR_GET_DUMPABLE as u64, 0, 0, 0, 0, 0];
    let answer = frozen.call(0, call, args);
    let answer = answer.map_err(|error: TraceeError| changed(error.to_string()))?;
    Ok(answer == 1)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    struct Sleeper(Child);

    impl Sleeper {
        fn start() -> Self {
            Self(Command::new("sleep").arg("100").spawn().unwrap())
        }

        fn pid(&self) -> i32 {
            self.0.id() as i32
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_process_is_as_it_is_expected_to_be() {
        let sleeper = Sleeper::start();
        let pid = sleeper.pid();
        let right = expected(pid).unwrap();
        assert!(right.process.start_ticks > 0 && right.credentials.dumpable);
        assert_eq!(right.credentials.privilege(), None);
        assert_eq!(check(pid, Some(&right)), Ok(()));
        let code = |expected: Option<&ExpectedProcess>| check(pid, expected).map_err(|no| no.code);
        assert_eq!(code(None), Err(CantMoveCode::Changed));
        let mut wrong = right;
        wrong.process.start_ticks += 1;
        assert_eq!(code(Some(&wrong)), Err(CantMoveCode::Changed));
        let mut wrong = right;
        wrong.credentials.uids[2] = 1;
        assert_eq!(code(Some(&wrong)), Err(CantMoveCode::Changed));
    }
}
