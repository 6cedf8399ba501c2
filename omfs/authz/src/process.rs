//! Who may move a process, and who may see more of it than that it is there.
//!
//! The rule is the kernel's for ptrace(2) ("ptrace access mode checking"), not the one for kill(2):
//! a moved process is memory and registers in the hands of another node's root, so moving it takes
//! the right to read and change it.
//!
//! Two differences to the kernel's rule, both stricter. A caller other than root counts as one
//! without capabilities: those of a caller cannot be known, because it may execute a privileged
//! program after it has connected. And fsuid and fsgid are compared, too.

use serde::{Deserialize, Serialize};

/// Credentials of one thread, as `/proc/PID/status` and the owner of its files show them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Credentials {
    /// Real, effective, saved and file-system user id.
    pub uids: [u32; 4],
    /// Real, effective, saved and file-system group id.
    pub gids: [u32; 4],
    /// Permitted, effective and ambient capabilities together. Inheritable ones give no right by
    /// themselves, and container runtimes hand them to everybody.
    pub capabilities: u64,
    /// Whether the kernel lets other processes of its user look into it (PR_SET_DUMPABLE). The
    /// owner of the files in `/proc/PID` tells, except for effective user 0, where it is `true`.
    pub dumpable: bool,
}

/// The user who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    /// User id, as the kernel says (SO_PEERCRED).
    pub uid: u32,
    /// Group id, likewise.
    pub gid: u32,
}

impl Caller {
    /// Root of this node.
    #[must_use]
    pub fn is_root(self) -> bool {
        self.uid == 0
    }
}

/// Why a process has more rights than the user who started it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Privilege {
    /// A set-user-ID program, or one that has changed some of its user ids.
    #[error("it runs with several user ids (a set-user-ID program?)")]
    UserIds,
    /// A set-group-ID program, or one that has changed some of its group ids.
    #[error("it runs with several group ids (a set-group-ID program?)")]
    GroupIds,
    /// It has capabilities.
    #[error("it has capabilities")]
    Capabilities,
    /// The kernel hides it from its own user.
    #[error("it is not dumpable, as programs that hold secrets or were privileged")]
    NotDumpable,
}

/// Why a process may not be moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// It belongs to another user.
    #[error("it belongs to user {0}: only they and root may move it")]
    OtherUser(u32),
    /// Its user runs it with another group.
    #[error("it runs with group {0}: ask from a shell with that group (newgrp), or as root")]
    OtherGroup(u32),
    /// It may do more than its user.
    #[error("{0}: only root may move it")]
    Privileged(Privilege),
    /// Root's processes and those with capabilities do not move by themselves here.
    #[error("root's processes do not move by themselves (balance.root_jobs is not set)")]
    RootStays,
}

impl Credentials {
    /// What this process may do that other processes of its user may not. Root's own processes
    /// have nothing more than root.
    #[must_use]
    pub fn privilege(&self) -> Option<Privilege> {
        let same = |ids: &[u32; 4]| ids.iter().all(|id| *id == ids[0]);
        if !same(&self.uids) {
            Some(Privilege::UserIds)
        } else if !same(&self.gids) {
            Some(Privilege::GroupIds)
        } else if !self.dumpable {
            Some(Privilege::NotDumpable)
        } else if self.capabilities != 0 && self.uids[0] != 0 {
            Some(Privilege::Capabilities)
        } else {
            None
        }
    }

    /// Whether it has rights of root, by its user or by a capability.
    #[must_use]
    pub fn is_rooted(&self) -> bool {
        self.uids.contains(&0) || self.capabilities != 0
    }
}

/// Whether a user may order a move of a process, keep it where it is, or see why it cannot move.
///
/// # Errors
/// The reason why not.
pub fn may_move(caller: Caller, target: &Credentials) -> Result<(), Refusal> {
    if caller.is_root() {
        return Ok(());
    }
    if target.uids[0] != caller.uid {
        return Err(Refusal::OtherUser(target.uids[0]));
    }
    match target.privilege() {
        Some(privilege) => Err(Refusal::Privileged(privilege)),
        None if target.gids[0] != caller.gid => Err(Refusal::OtherGroup(target.gids[0])),
        None => Ok(()),
    }
}

/// Whether a process may leave without an order of a user of this node: by the balancer, or because
/// its host asks for it. `root_jobs` is this node's `balance.root_jobs`.
///
/// # Errors
/// The reason why not.
pub fn may_move_by_itself(target: &Credentials, root_jobs: bool) -> Result<(), Refusal> {
    match target.privilege() {
        Some(Privilege::Capabilities) | None => {}
        Some(privilege) => return Err(Refusal::Privileged(privilege)),
    }
    if target.is_rooted() && !root_jobs {
        return Err(Refusal::RootStays);
    }
    Ok(())
}

/// How much of a process a listing shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum View {
    /// That it is there: what ps(1) shows of everybody's processes.
    Presence,
    /// Also that it is privileged: its user started it, but may not look into it.
    Privilege,
    /// Everything.
    Full,
}

/// How much of a process a user sees.
#[must_use]
pub fn view(caller: Caller, target: &Credentials) -> View {
    match may_move(caller, target) {
        Ok(()) | Err(Refusal::OtherGroup(_)) => View::Full,
        Err(Refusal::Privileged(_)) => View::Privilege,
        Err(Refusal::OtherUser(_) | Refusal::RootStays) => View::Presence,
    }
}

/// How much of a process a listing shows to a user of another node; root of that node is nobody
/// here. `of_asking_node`: the process is at home there.
#[must_use]
pub fn remote_view(caller: Option<Caller>, uid: u32, of_asking_node: bool) -> View {
    match caller {
        Some(caller) if caller.is_root() && of_asking_node => View::Full,
        Some(caller) if !caller.is_root() && caller.uid == uid => View::Full,
        _ => View::Presence,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plain(uid: u32, gid: u32) -> Credentials {
        Credentials {
            uids: [uid; 4],
            gids: [gid; 4],
            capabilities: 0,
            dumpable: true,
        }
    }

    /// Few values, so that equal ones meet.
    fn ids() -> impl Strategy<Value = [u32; 4]> {
        let few = prop_oneof![Just(0_u32), Just(1000), Just(1001), any::<u32>()];
        prop_oneof![
            few.clone().prop_map(|id| [id; 4]),
            [few.clone(), few.clone(), few.clone(), few]
        ]
    }

    fn credentials() -> impl Strategy<Value = Credentials> {
        let capabilities = prop_oneof![Just(0_u64), Just(1 << 13), any::<u64>()];
        (ids(), ids(), capabilities, any::<bool>()).prop_map(
            |(uids, gids, capabilities, dumpable)| Credentials {
                uids,
                gids,
                capabilities,
                dumpable,
            },
        )
    }

    fn callers() -> impl Strategy<Value = Caller> {
        let few = prop_oneof![Just(0_u32), Just(1000), Just(1001), any::<u32>()];
        (few.clone(), few).prop_map(|(uid, gid)| Caller { uid, gid })
    }

    proptest! {
        /// The kernel's rule, written down a second time (`__ptrace_may_access`).
        #[test]
        fn whoever_may_move_a_process_may_trace_it(caller in callers(), target in credentials()) {
            let kernel = caller.uid == 0 || {
                let Credentials { uids: [uid, euid, suid, _], gids: [gid, egid, sgid, _], .. } = target;
                [uid, euid, suid].iter().all(|id| *id == caller.uid)
                    && [gid, egid, sgid].iter().all(|id| *id == caller.gid)
                    && target.capabilities == 0
                    && target.dumpable
            };
            prop_assert!(kernel || may_move(caller, &target).is_err());
        }

        #[test]
        fn nobody_but_root_moves_a_process_with_any_difference(
            caller in callers(), which in 0..4_usize, other in any::<u32>(), capability in 0..64_u32,
        ) {
            prop_assume!(caller.uid != 0 && other != caller.uid && other != caller.gid);
            let own = plain(caller.uid, caller.gid);
            prop_assert_eq!(may_move(caller, &own), Ok(()));
            let mut changed = [own; 4];
            changed[0].uids[which] = other;
            changed[1].gids[which] = other;
            changed[2].capabilities = 1 << capability;
            changed[3].dumpable = false;
            for target in changed {
                prop_assert!(may_move(caller, &target).is_err(), "{:?}", target);
                let root = Caller { uid: 0, gid: 0 };
                prop_assert_eq!(may_move(root, &target), Ok(()));
            }
        }

        #[test]
        fn what_moves_by_itself_its_user_could_move(target in credentials()) {
            let user = Caller { uid: target.uids[0], gid: target.gids[0] };
            prop_assert!(may_move_by_itself(&target, false).is_err() || may_move(user, &target).is_ok());
            prop_assert!(may_move_by_itself(&target, false).is_err() || !target.is_rooted());
        }

        #[test]
        fn a_node_that_lets_roots_jobs_move_lets_no_set_id_program_move(target in credentials()) {
            if may_move_by_itself(&target, true).is_ok() {
                prop_assert!(target.dumpable && target.uids.iter().all(|id| *id == target.uids[0]));
                prop_assert!(target.gids.iter().all(|id| *id == target.gids[0]));
            }
        }

        #[test]
        fn another_user_sees_that_a_process_is_there_and_no_more(
            caller in callers(), target in credentials(), of_asking_node: bool,
        ) {
            prop_assume!(caller.uid != 0 && caller.uid != target.uids[0]);
            prop_assert_eq!(view(caller, &target), View::Presence);
            let seen = remote_view(Some(caller), target.uids[0], of_asking_node);
            prop_assert_eq!(seen, View::Presence);
        }

        #[test]
        fn only_what_can_be_looked_into_is_shown_in_full(caller in callers(), target in credentials()) {
            if view(caller, &target) == View::Full && !caller.is_root() {
                prop_assert!(target.privilege().is_none());
                prop_assert_eq!(target.uids[0], caller.uid);
            }
        }
    }

    #[test]
    fn root_of_another_node_is_nobody_here() {
        let root = Some(Caller { uid: 0, gid: 0 });
        assert_eq!(remote_view(root, 0, false), View::Presence);
        assert_eq!(remote_view(root, 0, true), View::Full);
        assert_eq!(remote_view(None, 1000, true), View::Presence);
    }

    #[test]
    fn a_users_own_set_id_program_is_named_privileged() {
        let user = Caller {
            uid: 1000,
            gid: 1000,
        };
        let mut su = plain(1000, 1000);
        su.uids = [1000, 0, 0, 0];
        su.capabilities = u64::MAX;
        let refused = may_move(user, &su);
        assert_eq!(refused, Err(Refusal::Privileged(Privilege::UserIds)));
        assert_eq!(view(user, &su), View::Privilege);
        // A daemon of root that has taken on the user's id for a while is not the user's.
        let mut daemon = plain(0, 0);
        daemon.uids = [0, 1000, 0, 1000];
        assert_eq!(may_move(user, &daemon), Err(Refusal::OtherUser(0)));
    }
}
