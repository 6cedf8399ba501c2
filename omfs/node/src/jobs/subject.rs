//! What a PID is, and whether its process may be moved by somebody.

use std::io;

use migrator::capture::{CantMove, CantMoveCode, eligibility, identity};
use migrator::control::ExpectedProcess;
use omfs_authz::process::{self, Credentials, Refusal};
use omfs_cluster::control::{Caller, ControlError};
use proto::ids::ProcessId;

use super::moves::MoveError;

/// A process of this node, as far as moving it is concerned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Subject {
    /// Its PID.
    pub pid: i32,
    /// Its name (comm).
    pub command: String,
    /// Which process had it then.
    pub process: ProcessId,
    /// What it was allowed to do then.
    pub credentials: Credentials,
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
        let ExpectedProcess {
            process,
            credentials,
            ..
        } = identity::expected(pid).map_err(|_| gone())?;
        let sensors = loadbal::sensors::Processes::new(loadbal::sensors::Roots::default());
        Ok(Self {
            pid,
            command: field("Name").unwrap_or_default().to_owned(),
            process,
            credentials,
            mark: sensors.mark(pid),
            memory: sensors.private_memory(pid).unwrap_or(0),
        })
    }

    /// Its real user.
    pub fn uid(&self) -> u32 {
        self.credentials.uids[0]
    }

    /// What is expected of it when it stands still. Root's word is for whatever it is then.
    pub fn expected(&self, by_itself: bool) -> ExpectedProcess {
        ExpectedProcess {
            process: self.process,
            credentials: self.credentials,
            ask_dumpable: by_itself && self.credentials.uids[1] == 0,
        }
    }

    /// Whether a user may order its moves.
    ///
    /// # Errors
    /// [`MoveError::Cantmove`] for a privileged process of the user's, else `NotPermitted`.
    pub fn check_caller(&self, caller: Caller) -> Result<(), MoveError> {
        let allowed = process::may_move(caller.identity(), &self.credentials);
        allowed.map_err(|refusal| self.refused(refusal))
    }

    /// Whether it may leave without a user's order.
    ///
    /// # Errors
    /// [`MoveError::Cantmove`].
    pub fn check_by_itself(&self, root_jobs: bool) -> Result<(), MoveError> {
        let allowed = process::may_move_by_itself(&self.credentials, root_jobs);
        allowed.map_err(|refusal| self.refused(refusal))
    }

    fn refused(&self, refusal: Refusal) -> MoveError {
        match refusal {
            Refusal::OtherUser(_) | Refusal::OtherGroup(_) => {
                let text = format!("process {} ({}): {refusal}", self.pid, self.command);
                ControlError::NotPermitted(text).into()
            }
            Refusal::Privileged(_) | Refusal::RootStays => {
                let reason = CantMove::new(CantMoveCode::Privileged, refusal.to_string());
                MoveError::Cantmove(reason.to_string())
            }
        }
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

fn join(reasons: &[CantMove]) -> String {
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
    fn a_privileged_process_is_told_from_anothers() {
        let mut subject = Subject::look(i32::try_from(std::process::id()).unwrap()).unwrap();
        subject.credentials = Credentials {
            uids: [1000; 4],
            gids: [1000; 4],
            capabilities: 0,
            dumpable: true,
        };
        let asks = |subject: &Subject, uid| {
            let (gid, pid) = (uid, None);
            subject.check_caller(Caller { uid, gid, pid })
        };
        assert_eq!([0, 1000].map(|uid| asks(&subject, uid).is_ok()), [true; 2]);
        let other = asks(&subject, 1001);
        assert!(
            matches!(&other, Err(MoveError::Control(ControlError::NotPermitted(text)))
                if text.contains("belongs to user 1000")),
            "{other:?}"
        );
        subject.credentials.uids = [1000, 0, 0, 0];
        let own = asks(&subject, 1000);
        assert!(
            matches!(&own, Err(MoveError::Cantmove(text)) if text.starts_with("privileged: ")),
            "{own:?}"
        );
        assert!(subject.check_by_itself(true).is_err() && asks(&subject, 0).is_ok());
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
