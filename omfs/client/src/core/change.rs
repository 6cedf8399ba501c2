//! Changes of names: create, remove, rename, link.

use proto::v1::fs_request::Op;
use proto::v1::{Caller, Link, MkDir, MkNod, NameArg, NodeArg, Rename, Symlink};

use bytes::Bytes;

use super::{Core, FilePlace, Found, Outcome, entry_of, errno};
use crate::caller::Who;
use crate::inodes::Path;

/// Where something new shall be, and under which umask.
#[derive(Clone, Copy, Debug)]
pub struct NewName<'a> {
    /// Number of the directory.
    pub parent: u64,
    /// Its name there.
    pub name: &'a [u8],
    /// The caller's umask, which the owner applies unless a default ACL replaces it.
    pub umask: u32,
}

impl<'a> NewName<'a> {
    /// A name in the directory of this number.
    #[must_use]
    pub fn new(parent: u64, name: &'a [u8], umask: u32) -> Self {
        Self {
            parent,
            name,
            umask,
        }
    }
}

impl Core {
    fn creator(&self, who: Who, place: &FilePlace, umask: u32) -> Caller {
        Caller {
            umask,
            ..self.caller(who, place.route.node)
        }
    }

    fn make(&self, who: Who, place: &FilePlace, new: NewName<'_>, op: Op) -> Outcome<Found> {
        let caller = self.creator(who, place, new.umask);
        let entry = entry_of(self.ask(&place.route, caller.clone(), op)?)?;
        let origin = self.origin(caller, Path::Name(new.parent, new.name.into()));
        self.remember(&place.route, place.view, entry, &origin)
    }

    pub fn mknod(&self, who: Who, new: NewName<'_>, mode: u32, rdev: u64) -> Outcome<Found> {
        let place = self.real(new.parent, libc::EPERM)?;
        let op = Op::MkNod(MkNod {
            parent: place.handle,
            name: new.name.to_vec(),
            mode,
            rdev,
        });
        self.make(who, &place, new, op)
    }

    pub fn mkdir(&self, who: Who, new: NewName<'_>, mode: u32) -> Outcome<Found> {
        let place = self.real(new.parent, libc::EPERM)?;
        let op = Op::MkDir(MkDir {
            parent: place.handle,
            name: new.name.to_vec(),
            mode,
        });
        self.make(who, &place, new, op)
    }

    pub fn symlink(&self, who: Who, new: NewName<'_>, target: &[u8]) -> Outcome<Found> {
        let place = self.real(new.parent, libc::EPERM)?;
        let op = Op::Symlink(Symlink {
            parent: place.handle,
            name: new.name.to_vec(),
            target: target.to_vec(),
        });
        self.make(who, &place, new, op)
    }

    pub fn link(&self, who: Who, id: u64, new_parent: u64, new_name: &[u8]) -> Outcome<Found> {
        let file = self.real(id, libc::EPERM)?;
        let parent = self.real(new_parent, libc::EPERM)?;
        same_owner(&file, &parent)?;
        let op = Op::Link(Link {
            node: file.handle,
            new_parent: parent.handle,
            new_name: new_name.to_vec(),
        });
        let new = NewName {
            parent: new_parent,
            name: new_name,
            umask: 0,
        };
        self.make(who, &parent, new, op)
    }

    pub fn unlink(&self, who: Who, parent: u64, name: &[u8]) -> Outcome<()> {
        let place = self.real(parent, libc::EPERM)?;
        let op = Op::Unlink(NameArg {
            node: place.handle,
            name: name.to_vec(),
        });
        let caller = self.caller(who, place.route.node);
        self.ask(&place.route, caller, op).map(drop)
    }

    pub fn rmdir(&self, who: Who, parent: u64, name: &[u8]) -> Outcome<()> {
        let place = self.real(parent, libc::EPERM)?;
        let op = Op::RmDir(NameArg {
            node: place.handle,
            name: name.to_vec(),
        });
        let caller = self.caller(who, place.route.node);
        self.ask(&place.route, caller, op).map(drop)
    }

    /// `from` and `to`: directory number and name.
    pub fn rename(
        &self,
        who: Who,
        from: (u64, &[u8]),
        to: (u64, &[u8]),
        flags: u32,
    ) -> Outcome<()> {
        let old = self.real(from.0, libc::EPERM)?;
        let new = self.real(to.0, libc::EPERM)?;
        same_owner(&old, &new)?;
        let op = Op::Rename(Rename {
            parent: old.handle,
            name: from.1.to_vec(),
            new_parent: new.handle,
            new_name: to.1.to_vec(),
            flags,
        });
        let caller = self.caller(who, old.route.node);
        self.ask(&old.route, caller, op).map(drop)
    }

    pub fn readlink(&self, who: Who, id: u64) -> Outcome<Bytes> {
        let place = self.real(id, libc::EINVAL)?;
        let op = Op::ReadLink(NodeArg { node: place.handle });
        let caller = self.caller_without_groups(who, place.route.node);
        Ok(self.ask(&place.route, caller, op)?.payload)
    }
}

fn same_owner(one: &FilePlace, other: &FilePlace) -> Outcome<()> {
    if one.route.node == other.route.node {
        Ok(())
    } else {
        Err(errno(libc::EXDEV))
    }
}
