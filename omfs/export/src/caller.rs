//! As whom an operation is performed.

use omfs_authz::export::{Rules, User};
use omfs_authz::guest::Ids;
use proto::v1::Caller;
use proto::v1::fs_request::Op;

use super::{Errno, ExportSession};
use omfs_sys::identity::{self, Assumed, Credentials, Umask};

/// What a caller is to this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    /// A process of this node.
    Own,
    /// A guest of this node, by its PID here; its deputy has the ids that it acts with.
    Guest(i32),
    /// A process of another node, or a guest of one.
    Stranger,
}

/// The caller of one request, after squashing.
#[derive(Debug)]
pub(super) struct Who {
    credentials: Credentials,
    umask: u32,
    standing: Standing,
    /// Root of its node, before squashing, and neither a guest there of a third node.
    pub may_see_deputies: bool,
    /// The calling thread, if it is one of this node: a guest's is its deputy here.
    pub local_pid: Option<i32>,
}

impl ExportSession {
    /// # Errors
    /// `EINVAL` for ids that nobody can have; `EPERM` for a guest that is not at the peer, or has
    /// other ids; for strangers those of [`ExportSession::admit`].
    pub(super) fn who(&self, caller: &Caller, op: &Op) -> Result<Who, Errno> {
        let standing = self.standing(caller);
        let credentials = match standing {
            Standing::Own => as_is(caller),
            Standing::Guest(_) => from_ids(self.export.jobs.guest_ids(&self.peer, caller)?),
            Standing::Stranger => from_ids(self.ids_of_stranger(caller, self.admit(op)?)),
        };
        if !credentials.are_valid() {
            return Err(Errno(libc::EINVAL));
        }
        Ok(Who {
            credentials,
            umask: caller.umask,
            standing,
            may_see_deputies: caller.uid == 0 && !caller.foreign_guest,
            local_pid: (standing != Standing::Stranger).then_some(caller.pid),
        })
    }

    fn ids_of_stranger(&self, caller: &Caller, rules: Rules) -> Ids {
        let claimed = claim_of(caller);
        let user = if rules.needs_user(claimed.uid) {
            self.export.users.user(claimed.uid, claimed.gid)
        } else {
            User::Unknown { group_exists: true }
        };
        rules.ids_of_stranger(&claimed, &user)
    }

    fn standing(&self, caller: &Caller) -> Standing {
        match (self.peer.is_local, caller) {
            (true, caller) if !caller.foreign_guest => Standing::Own,
            (false, caller) if caller.from_home_guest => Standing::Guest(caller.guest_pid),
            _ => Standing::Stranger,
        }
    }
}

impl Who {
    /// Whether it is no process of this node, and no guest of it.
    pub fn is_stranger(&self) -> bool {
        self.standing == Standing::Stranger
    }

    /// Whether its operations are carried out as root.
    pub fn is_root(&self) -> bool {
        self.credentials.uid == 0
    }

    /// The job, of a guest of this node.
    pub fn guest_pid(&self) -> Option<i32> {
        match self.standing {
            Standing::Guest(pid) => Some(pid),
            Standing::Own | Standing::Stranger => None,
        }
    }

    /// The job, of a host's program that asks in a guest's name: it has what the deputy holds.
    pub fn deputy(&self) -> Option<i32> {
        self.guest_pid().filter(|_| self.may_see_deputies)
    }

    /// Acts as the caller until the guard is dropped.
    pub fn assume(&self) -> Result<Assumed, Errno> {
        Ok(identity::assume(&self.credentials)?)
    }

    /// Acts as the caller, with the caller's umask: the kernel applies it, or a default ACL of the
    /// parent instead (acl(5)).
    pub fn assume_creating(&self) -> Result<(Umask, Assumed), Errno> {
        Ok((
            identity::set_umask(self.umask)?,
            identity::assume(&self.credentials)?,
        ))
    }
}

/// The ids that a request claims.
pub(super) fn claim_of(caller: &Caller) -> Ids {
    Ids {
        uid: caller.uid,
        gid: caller.gid,
        groups: caller.groups.clone(),
    }
}

fn from_ids(ids: Ids) -> Credentials {
    Credentials {
        uid: ids.uid,
        gid: ids.gid,
        groups: ids.groups,
    }
}

fn as_is(caller: &Caller) -> Credentials {
    Credentials {
        uid: caller.uid,
        gid: caller.gid,
        groups: caller.groups.clone(),
    }
}
