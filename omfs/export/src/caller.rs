//! As whom an operation is performed.

use proto::v1::{Caller, FsRequest};

use super::{Errno, SessionPeer};
use omfs_sys::identity::{self, Assumed, Credentials, Umask};

/// `nobody` and `nogroup`.
const NOBODY: u32 = 65_534;

/// The caller of one request, after squashing.
#[derive(Debug)]
pub(super) struct Who {
    credentials: Credentials,
    umask: u32,
    /// Root of its node, before squashing, and neither a guest there of a third node.
    pub may_see_deputies: bool,
    /// The job, of a guest of this node.
    pub guest_pid: Option<i32>,
    /// The calling thread, if it is one of this node: a guest's is its deputy here.
    pub local_pid: Option<i32>,
}

impl Who {
    /// # Errors
    /// `EINVAL` for a request without a caller, or with ids that nobody can have.
    pub fn of(request: &FsRequest, peer: &SessionPeer, squash_root: bool) -> Result<Self, Errno> {
        let caller = request.caller.as_ref().ok_or(Errno(libc::EINVAL))?;
        let is_ours = peer.is_local && !caller.foreign_guest || caller.from_home_guest;
        let keeps_root = is_ours || !squash_root;
        let credentials = if keeps_root {
            as_is(caller)
        } else {
            squashed(caller)
        };
        if !credentials.are_valid() {
            return Err(Errno(libc::EINVAL));
        }
        Ok(Self {
            credentials,
            umask: caller.umask,
            may_see_deputies: caller.uid == 0 && !caller.foreign_guest,
            guest_pid: caller.from_home_guest.then_some(caller.guest_pid),
            local_pid: is_ours.then_some(caller.pid),
        })
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

fn as_is(caller: &Caller) -> Credentials {
    Credentials {
        uid: caller.uid,
        gid: caller.gid,
        groups: caller.groups.clone(),
    }
}

/// Root's ids become nobody's, as with `root_squash` of exports(5).
fn squashed(caller: &Caller) -> Credentials {
    let squash = |id: u32| if id == 0 { NOBODY } else { id };
    Credentials {
        uid: squash(caller.uid),
        gid: squash(caller.gid),
        groups: caller.groups.iter().copied().map(squash).collect(),
    }
}

#[cfg(test)]
mod tests {
    use proto::ids::NodeId;

    use super::*;

    fn credentials(caller: Caller, squash_root: bool) -> Result<Credentials, Errno> {
        credentials_at(caller, squash_root, false)
    }

    fn credentials_at(
        caller: Caller,
        squash_root: bool,
        is_local: bool,
    ) -> Result<Credentials, Errno> {
        let request = FsRequest {
            caller: Some(caller),
            op: None,
        };
        let peer = SessionPeer {
            node: NodeId(2),
            is_local,
        };
        Who::of(&request, &peer, squash_root).map(|who| who.credentials)
    }

    #[test]
    fn root_of_another_node_is_nobody_unless_allowed() {
        let root = Caller {
            groups: vec![0, 5],
            ..Caller::default()
        };
        let nobody = Credentials {
            uid: NOBODY,
            gid: NOBODY,
            groups: vec![NOBODY, 5],
        };
        let unsquashed = Credentials {
            uid: 0,
            gid: 0,
            groups: vec![0, 5],
        };
        assert_eq!(credentials(root.clone(), true), Ok(nobody));
        assert_eq!(credentials(root.clone(), false), Ok(unsquashed.clone()));
        let guest = Caller {
            from_home_guest: true,
            ..root
        };
        assert_eq!(credentials(guest, true), Ok(unsquashed));
    }

    #[test]
    fn root_of_another_nodes_guest_is_nobody_at_its_host() {
        let guest = Caller {
            foreign_guest: true,
            ..Caller::default()
        };
        let uid = |caller, squash_root| {
            let credentials = credentials_at(caller, squash_root, true);
            credentials.map(|credentials| credentials.uid)
        };
        assert_eq!(uid(guest.clone(), true), Ok(NOBODY));
        assert_eq!(uid(guest, false), Ok(0), "as from any other node");
        assert_eq!(uid(Caller::default(), true), Ok(0), "the host's own root");
    }

    #[test]
    fn an_id_that_means_unchanged_is_refused() {
        for bad in [
            Caller {
                uid: u32::MAX,
                ..Caller::default()
            },
            Caller {
                gid: u32::MAX,
                ..Caller::default()
            },
            Caller {
                groups: vec![u32::MAX],
                ..Caller::default()
            },
        ] {
            assert_eq!(credentials(bad, true), Err(Errno(libc::EINVAL)));
        }
        let nobody_at_all = FsRequest::default();
        let peer = SessionPeer {
            node: NodeId(2),
            is_local: true,
        };
        assert_eq!(
            Who::of(&nobody_at_all, &peer, true).err(),
            Some(Errno(libc::EINVAL))
        );
    }
}
