//! What this node's user database says of users of other nodes.
//!
//! A lookup may ask a directory server, and may hang. So each is made on a thread of its own, nobody
//! waits for one for long, and what was found is kept: a request of a user who is known costs a look
//! into a table.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::fmt::Debug;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::unistd::{Gid, Group, Uid, getgrouplist};
use omfs_authz::export::User;

/// What was found is believed this long.
const VALID: Duration = Duration::from_secs(60);
/// That somebody is not there is believed this long: an account may have just been made.
const ABSENT_VALID: Duration = Duration::from_secs(5);
/// What is older is used while it is looked up anew, but not beyond this.
const STALE_MAX: Duration = Duration::from_secs(3600);
/// How long a request waits for a first lookup; then its user has no groups.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// Answers kept.
const ANSWERS_MAX: usize = 4096;
/// Lookups under way; beyond, users that are not known have no groups.
const LOOKUPS_MAX: usize = 8;

/// A database of users.
pub trait Users: Send + Sync + Debug {
    /// A user with this number, who claims to be in a group.
    fn user(&self, uid: u32, gid: u32) -> User;
}

/// What is asked of the database.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Question {
    User(u32),
    Group(u32),
}

/// What it says: a user's primary group and all groups; nothing of a group but that it is there.
type Answer = Option<(u32, Vec<u32>)>;

#[derive(Debug, Default)]
struct Inner {
    answers: HashMap<Question, (Answer, Instant)>,
    asked: HashSet<Question>,
}

#[derive(Debug, Default)]
struct Shared {
    inner: Mutex<Inner>,
    answered: Condvar,
}

/// passwd(5), group(5), and whatever else nsswitch.conf(5) names.
#[derive(Clone, Debug, Default)]
pub struct SystemUsers(Arc<Shared>);

impl Users for SystemUsers {
    fn user(&self, uid: u32, gid: u32) -> User {
        match self.ask(Question::User(uid)) {
            Some((gid, groups)) => User::Known { gid, groups },
            None => User::Unknown {
                group_exists: self.ask(Question::Group(gid)).is_some(),
            },
        }
    }
}

impl SystemUsers {
    fn ask(&self, question: Question) -> Answer {
        let deadline = Instant::now() + WAIT_MAX;
        let mut inner = self.0.lock();
        if let Some((answer, at)) = inner.answers.get(&question) {
            let valid = if answer.is_some() {
                VALID
            } else {
                ABSENT_VALID
            };
            let (answer, age) = (answer.clone(), at.elapsed());
            if age < valid {
                return answer;
            }
            if answer.is_some() && age < STALE_MAX {
                self.start(&mut inner, question);
                return answer;
            }
            inner.answers.remove(&question);
        }
        self.start(&mut inner, question);
        while inner.asked.contains(&question) {
            let left = deadline.checked_duration_since(Instant::now())?;
            let woken = self.0.answered.wait_timeout(inner, left);
            inner = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        inner.answers.get(&question)?.0.clone()
    }

    fn start(&self, inner: &mut Inner, question: Question) {
        if inner.asked.len() >= LOOKUPS_MAX || !inner.asked.insert(question) {
            return;
        }
        let shared = Arc::clone(&self.0);
        let look = move || {
            let answer = look_up(question);
            let mut inner = shared.lock();
            if inner.answers.len() >= ANSWERS_MAX {
                inner.answers.retain(|_, (_, at)| at.elapsed() < VALID);
                if inner.answers.len() >= ANSWERS_MAX {
                    inner.answers.clear();
                }
            }
            inner.answers.insert(question, (answer, Instant::now()));
            inner.asked.remove(&question);
            shared.answered.notify_all();
        };
        let thread = std::thread::Builder::new().name("export-users".into());
        if thread.spawn(look).is_err() {
            inner.asked.remove(&question);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn look_up(question: Question) -> Answer {
    match question {
        Question::Group(gid) => {
            let group = Group::from_gid(Gid::from_raw(gid)).ok()??;
            Some((group.gid.as_raw(), Vec::new()))
        }
        Question::User(uid) => {
            let user = nix::unistd::User::from_uid(Uid::from_raw(uid)).ok()??;
            let name = CString::new(user.name).ok()?;
            let groups = getgrouplist(&name, user.gid).unwrap_or_default();
            let groups = groups.into_iter().map(Gid::as_raw).collect();
            Some((user.gid.as_raw(), groups))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_nodes_root_is_known_and_an_odd_number_is_not() {
        let users = SystemUsers::default();
        let User::Known { gid, groups } = users.user(0, 42) else {
            panic!("no root");
        };
        assert_eq!((gid, groups.contains(&0)), (0, true));
        let nobody = users.user(3_999_999_999, 0);
        assert_eq!(nobody, User::Unknown { group_exists: true });
        let nobody = users.user(3_999_999_999, 3_999_999_999);
        let group_exists = false;
        assert_eq!(nobody, User::Unknown { group_exists });
        let inner = users.0.lock();
        assert_eq!((inner.answers.len(), inner.asked.len()), (4, 0));
    }
}
