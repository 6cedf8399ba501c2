//! As whom a request in a guest's name is carried out at its home.
//!
//! A guest's host is not believed: it says which ids the guest has, and home compares them with what
//! the threads of the deputy have now.

/// The ids that one operation is performed with.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ids {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// The credentials of one thread, as `proc_pid_status(5)` shows them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ThreadCredentials {
    /// Real, effective, saved and file system user.
    pub uids: [u32; 4],
    /// Real, effective, saved and file system group.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

impl ThreadCredentials {
    /// What the kernel checks files against.
    #[must_use]
    pub fn file_system_ids(&self) -> Ids {
        Ids {
            uid: self.uids[3],
            gid: self.gids[3],
            groups: self.groups.clone(),
        }
    }

    /// access(2) goes by the real ids, everything else by those of the file system. A saved id is
    /// not used before the process has made it an effective one, which happens at home.
    fn may_claim(&self, claimed: &Ids) -> bool {
        let [real_uid, _, _, fs_uid] = self.uids;
        let [real_gid, _, _, fs_gid] = self.gids;
        [real_uid, fs_uid].contains(&claimed.uid)
            && [real_gid, fs_gid].contains(&claimed.gid)
            && claimed
                .groups
                .iter()
                .all(|group| self.groups.contains(group))
    }
}

/// The ids that a request in a guest's name gets; `None` refuses it.
///
/// `threads` are the deputy's, its leader first. A claim that fits one of them is granted with that
/// thread's own groups. A claim of uid 0 that fits none comes from the programs with which the host
/// builds and watches the guest: they act as the deputy's leader, never as root.
#[must_use]
pub fn ids_of_request(threads: &[ThreadCredentials], claimed: &Ids) -> Option<Ids> {
    let fitting = || threads.iter().filter(|thread| thread.may_claim(claimed));
    let exact = fitting().find(|thread| thread.groups.len() == claimed.groups.len());
    if let Some(thread) = exact.or_else(|| fitting().next()) {
        return Some(Ids {
            groups: thread.groups.clone(),
            ..*claimed
        });
    }
    let leader = threads.first()?;
    (claimed.uid == 0).then(|| leader.file_system_ids())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn thread(uid: u32, gid: u32, groups: &[u32]) -> ThreadCredentials {
        ThreadCredentials {
            uids: [uid; 4],
            gids: [gid; 4],
            groups: groups.to_vec(),
        }
    }

    fn ids(uid: u32, gid: u32, groups: &[u32]) -> Ids {
        Ids {
            uid,
            gid,
            groups: groups.to_vec(),
        }
    }

    #[test]
    fn a_claim_that_fits_gets_the_deputys_own_groups() {
        let threads = [thread(1000, 1000, &[20, 24])];
        let own = Some(ids(1000, 1000, &[20, 24]));
        assert_eq!(ids_of_request(&threads, &ids(1000, 1000, &[20, 24])), own);
        assert_eq!(ids_of_request(&threads, &ids(1000, 1000, &[])), own);
        for claim in [
            ids(1001, 1000, &[]),
            ids(1000, 42, &[]),
            ids(1000, 1000, &[42]),
            ids(1000, 1000, &[20, 42]),
        ] {
            assert_eq!(ids_of_request(&threads, &claim), None, "{claim:?}");
        }
    }

    #[test]
    fn root_in_the_name_of_a_user_is_that_user() {
        let threads = [thread(1000, 1000, &[20])];
        let user = Some(ids(1000, 1000, &[20]));
        assert_eq!(ids_of_request(&threads, &ids(0, 0, &[])), user);
        assert_eq!(ids_of_request(&threads, &ids(0, 42, &[42])), user);
        let root = [thread(0, 0, &[0])];
        assert_eq!(
            ids_of_request(&root, &ids(0, 0, &[])),
            Some(ids(0, 0, &[0]))
        );
    }

    #[test]
    fn every_thread_counts_with_its_own_ids() {
        let threads = [thread(0, 0, &[]), thread(1000, 1000, &[20])];
        assert_eq!(
            ids_of_request(&threads, &ids(1000, 1000, &[20])),
            Some(ids(1000, 1000, &[20]))
        );
        assert_eq!(ids_of_request(&threads, &ids(1000, 0, &[])), None);
    }

    #[test]
    fn a_saved_id_is_no_claim() {
        let dropped = ThreadCredentials {
            uids: [1000, 1000, 0, 1000],
            gids: [1000, 1000, 0, 1000],
            groups: Vec::new(),
        };
        assert_eq!(
            ids_of_request(&[dropped], &ids(0, 0, &[])),
            Some(ids(1000, 1000, &[]))
        );
    }

    #[test]
    fn without_a_deputy_nothing_is_granted() {
        assert_eq!(ids_of_request(&[], &ids(0, 0, &[])), None);
    }

    fn some_ids() -> impl Strategy<Value = Ids> {
        let id = 0u32..4;
        (id.clone(), id.clone(), proptest::collection::vec(id, 0..4))
            .prop_map(|(uid, gid, groups)| Ids { uid, gid, groups })
    }

    fn some_thread() -> impl Strategy<Value = ThreadCredentials> {
        let id = 0u32..4;
        (
            proptest::array::uniform4(id.clone()),
            proptest::array::uniform4(id.clone()),
            proptest::collection::vec(id, 0..4),
        )
            .prop_map(|(uids, gids, groups)| ThreadCredentials { uids, gids, groups })
    }

    proptest! {
        /// Whatever is claimed: what is granted belongs to one thread of the deputy, as a whole.
        #[test]
        fn nothing_is_granted_that_no_thread_has(
            threads in proptest::collection::vec(some_thread(), 0..4),
            claimed in some_ids(),
        ) {
            if let Some(granted) = ids_of_request(&threads, &claimed) {
                let has = |thread: &ThreadCredentials| {
                    let ([ruid, _, _, fsuid], [rgid, _, _, fsgid]) = (thread.uids, thread.gids);
                    [ruid, fsuid].contains(&granted.uid)
                        && [rgid, fsgid].contains(&granted.gid)
                        && thread.groups == granted.groups
                };
                prop_assert!(threads.iter().any(has));
            }
        }

        #[test]
        fn root_is_granted_only_for_a_root_thread(
            threads in proptest::collection::vec(some_thread(), 0..4),
            claimed in some_ids(),
        ) {
            let root = |thread: &ThreadCredentials| thread.uids[0] == 0 || thread.uids[3] == 0;
            let granted = ids_of_request(&threads, &claimed);
            if granted.is_some_and(|granted| granted.uid == 0) {
                prop_assert!(threads.iter().any(root));
            }
        }

        #[test]
        fn what_a_thread_does_itself_is_granted(
            threads in proptest::collection::vec(some_thread(), 1..4),
            index in any::<prop::sample::Index>(),
        ) {
            let claimed = index.get(&threads).file_system_ids();
            let granted = ids_of_request(&threads, &claimed);
            let ids = granted.map(|granted| (granted.uid, granted.gid));
            prop_assert_eq!(ids, Some((claimed.uid, claimed.gid)));
        }
    }
}
