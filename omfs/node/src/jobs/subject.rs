//! What a PID is, and whether its process may be moved by somebody.

use std::io;

use migrator::capture::{CantMoveCode, eligibility};
use omfs_cluster::control::{Caller, ControlError};

use super::moves::MoveError;

/// A process of this node, as far as moving it is concerned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Subject {
    /// Its PID.
    pub pid: i32,
    /// Its name (comm).
    pub command: String,
    /// Real user.
    pub uid: u32,
    /// Effective user.
    pub effective_uid: u32,
    /// Value of `OMFS_JOB`.
    pub mark: Option<String>,
    /// What would have to be sent, in bytes.
    pub memory: u64,
}

impl Subject {
    /// Looks at a process.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for a thread that is no process.
    pub fn look(pid: i32) -> Result<Self, ControlError> {
        let gone = || ControlError::NotFound(format!("there is no process {pid} on this node"));
        let status = match omfs_sys::procfs::status(pid) {
            Ok(status) if pid > 0 => status,
            Err(error) if is_odd(&error) => {
                return Err(ControlError::Failed(format!("process {pid}: {error}")));
            }
            _ => return Err(gone()),
        };
        let field = |name: &str| {
            let mut lines = status.lines().filter_map(|line| line.split_once(':'));
            lines
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value.trim())
        };
        let leader = field("Tgid").and_then(|text| text.parse::<i32>().ok());
        if let Some(leader) = leader.filter(|leader| *leader != pid) {
            let text = format!("{pid} is a thread of process {leader}: move that");
            return Err(ControlError::Invalid(text));
        }
        let uids: Vec<u32> = field("Uid")
            .unwrap_or_default()
            .split_ascii_whitespace()
            .filter_map(|uid| uid.parse().ok())
            .collect();
        let (Some(uid), Some(effective_uid)) = (uids.first(), uids.get(1)) else {
            return Err(gone());
        };
        let sensors = loadbal::sensors::Processes::new(loadbal::sensors::Roots::default());
        Ok(Self {
            pid,
            command: field("Name").unwrap_or_default().to_owned(),
            uid: *uid,
            effective_uid: *effective_uid,
            mark: sensors.mark(pid),
            memory: sensors.private_memory(pid).unwrap_or(0),
        })
    }

    /// Whoever may signal it may move it: root, and its real or effective user.
    ///
    /// # Errors
    /// `NotPermitted`.
    pub fn check_caller(&self, caller: Option<Caller>) -> Result<(), ControlError> {
        let allowed = caller.is_none_or(|caller| {
            caller.may_act_for(self.uid) || caller.may_act_for(self.effective_uid)
        });
        if allowed {
            return Ok(());
        }
        Err(ControlError::NotPermitted(format!(
            "process {} ({}) belongs to user {}: only they and root may move it",
            self.pid, self.command, self.uid
        )))
    }

    /// Everything that keeps it from leaving.
    ///
    /// # Errors
    /// [`MoveError::Cantmove`] with all reasons; `NotFound` if it has ended.
    pub fn check_leaving(&self) -> Result<(), MoveError> {
        if self.mark.as_deref() == Some("home") {
            let reason = "it was started to stay at home (OMFS_JOB=home)";
            return Err(MoveError::Cantmove(reason.into()));
        }
        let found = eligibility(self.pid);
        if found.is_empty() {
            return Ok(());
        }
        if found.iter().any(|one| one.code == CantMoveCode::Ended) {
            let text = format!("process {} has ended", self.pid);
            return Err(ControlError::NotFound(text).into());
        }
        Err(MoveError::Cantmove(join(&found)))
    }
}

/// Errors other than that there is no such process.
fn is_odd(error: &io::Error) -> bool {
    error.kind() != io::ErrorKind::NotFound
        && error.raw_os_error() != Some(nix::errno::Errno::ESRCH as i32)
}

fn join(reasons: &[migrator::capture::CantMove]) -> String {
    let texts: Vec<String> = reasons.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_pids_threads_and_nonsense_are_refused_clearly() {
        for pid in [i32::MAX, 0, -1] {
            assert!(
                matches!(Subject::look(pid), Err(ControlError::NotFound(_))),
                "{pid}"
            );
        }
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            tell.send(nix::unistd::gettid().as_raw()).unwrap();
            let _ = wait.recv();
        });
        let tid = told.recv().unwrap();
        assert!(matches!(Subject::look(tid), Err(ControlError::Invalid(_))));
        drop(done);
        thread.join().unwrap();
    }

    #[test]
    fn only_its_user_and_root_may_move_a_process() {
        let mut subject = Subject::look(i32::try_from(std::process::id()).unwrap()).unwrap();
        subject.uid = 1000;
        subject.effective_uid = 1001;
        let may = |uid| {
            let caller = Caller { uid, pid: None };
            subject.check_caller(Some(caller)).is_ok()
        };
        assert_eq!([0, 1000, 1001, 1002].map(may), [true, true, true, false]);
        assert!(subject.check_caller(None).is_ok());
    }

    #[test]
    fn process_1_and_kernel_threads_are_named_as_such() {
        let codes = |pid| -> Vec<_> { eligibility(pid).iter().map(|one| one.code).collect() };
        assert!(codes(1).contains(&CantMoveCode::Init), "{:?}", codes(1));
        // In a PID namespace of its own a machine shows none.
        let name = std::fs::read_to_string("/proc/2/comm").unwrap_or_default();
        if name == "kthreadd\n" {
            let subject = Subject::look(2).unwrap();
            match subject.check_leaving() {
                Err(MoveError::Cantmove(text)) => assert!(text.contains("kernel-thread"), "{text}"),
                other => panic!("{other:?}"),
            }
        }
    }
}
