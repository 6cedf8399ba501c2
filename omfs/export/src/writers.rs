//! Which sessions have a file open for writing, and which of them may map it shared and writable.
//!
//! A shared mapping of a remote file lives in the page cache of the node that mapped it. Two nodes with
//! such mappings, or one and a native writer, would overwrite each other's pages without an error. So only
//! the session that finds no other writer may map a file, as long as it has it open for writing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Device and inode number.
type Inode = (u64, u64);

#[derive(Clone, Copy, Debug)]
struct Session {
    opens: usize,
    may_map: bool,
    is_local: bool,
}

type Table = HashMap<Inode, HashMap<u64, Session>>;

/// The files that are open for writing through this export.
#[derive(Debug, Default)]
pub(super) struct Writers(Mutex<Table>);

/// What is known of a file's writers before a session opens it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Known {
    /// The session has it open already, and may map it or not.
    Own(bool),
    /// Another session has it open.
    Others,
    /// No session has: there may be native writers.
    Nobody,
}

impl Writers {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn known(&self, inode: Inode, session: u64) -> Known {
        let table = self.lock();
        let Some(sessions) = table.get(&inode) else {
            return Known::Nobody;
        };
        match sessions.get(&session) {
            Some(own) => Known::Own(own.may_map),
            None => Known::Others,
        }
    }

    /// Whether this node's own session has a file open for writing.
    pub fn has_local(&self, inode: Inode) -> bool {
        let table = self.lock();
        let mut sessions = table.get(&inode).into_iter().flatten();
        sessions.any(|(_, session)| session.is_local)
    }

    /// Counts one more open for writing by a session, which may be this node's own. `may_map`: what was
    /// found before the file was opened.
    pub fn enter(
        self: &Arc<Self>,
        inode: Inode,
        (session, is_local): (u64, bool),
        may_map: bool,
    ) -> Arc<Writing> {
        let mut table = self.lock();
        let sessions = table.entry(inode).or_default();
        let is_alone = sessions.keys().all(|other| *other == session);
        let own = sessions.entry(session).or_insert(Session {
            opens: 0,
            may_map: may_map && (is_local || is_alone),
            is_local,
        });
        own.opens += 1;
        Arc::new(Writing {
            writers: Arc::clone(self),
            inode,
            session,
            may_map: own.may_map,
        })
    }

    fn leave(&self, inode: Inode, session: u64) {
        let mut table = self.lock();
        let Some(sessions) = table.get_mut(&inode) else {
            return;
        };
        if let Some(own) = sessions.get_mut(&session) {
            own.opens -= 1;
            if own.opens == 0 {
                sessions.remove(&session);
            }
        }
        if sessions.is_empty() {
            table.remove(&inode);
        }
    }
}

/// One open for writing, until it is dropped.
#[derive(Debug)]
pub(super) struct Writing {
    writers: Arc<Writers>,
    inode: Inode,
    session: u64,
    /// Whether the session may map the file shared and writable.
    pub may_map: bool,
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.writers.leave(self.inode, self.session);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Inode = (1, 2);

    #[test]
    fn only_the_first_session_may_map_a_file() {
        let writers: Arc<Writers> = Arc::default();
        assert_eq!(writers.known(FILE, 1), Known::Nobody);
        let first = writers.enter(FILE, (1, false), true);
        assert!(first.may_map);
        assert_eq!(writers.known(FILE, 1), Known::Own(true));
        assert_eq!(writers.known(FILE, 2), Known::Others);
        assert!(!writers.enter(FILE, (2, false), true).may_map);
        let again = writers.enter(FILE, (1, false), false);
        assert!(again.may_map, "it has the file open already");
        drop((first, again));
        assert!(writers.enter(FILE, (2, false), true).may_map);
        assert!(writers.lock().is_empty());
    }

    #[test]
    fn who_may_not_map_a_file_may_not_until_all_is_closed() {
        let writers: Arc<Writers> = Arc::default();
        let native = writers.enter(FILE, (1, false), false);
        assert!(!writers.enter(FILE, (1, false), true).may_map);
        drop(native);
        assert!(writers.enter(FILE, (1, false), true).may_map);
    }

    #[test]
    fn this_nodes_own_users_map_what_is_theirs() {
        let writers: Arc<Writers> = Arc::default();
        let _remote = writers.enter(FILE, (1, false), true);
        assert!(!writers.has_local(FILE));
        assert!(writers.enter(FILE, (2, true), true).may_map);
        let _local = writers.enter(FILE, (2, true), true);
        assert!(writers.has_local(FILE));
    }

    #[test]
    fn other_files_do_not_count() {
        let writers: Arc<Writers> = Arc::default();
        let _one = writers.enter(FILE, (1, false), true);
        assert!(writers.enter((1, 3), (2, false), true).may_map);
    }
}
