//! Finding inodes: lookup, forget, and the entries other operations answer with.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use proto::v1::fs_reply::Result as Reply;
use proto::v1::{Entry, Forget, Lookup};

use super::answer::{Answer, attr, component, done, reply};
use super::caller::Who;
use super::deputy::open_on_the_way;
use super::gate::check_found;
use super::mounts::Mount;
use super::nodes::{Keep, NodeRef};
use super::places::Place;
use super::{Errno, ExportSession};
use omfs_sys::file::{self, Freshness, Stat};

/// Opens an inode without side effects, not following a symlink.
pub(super) const O_PATH_FLAGS: i32 = libc::O_PATH | libc::O_NOFOLLOW;

impl ExportSession {
    pub(super) fn lookup(&self, who: &Who, arg: &Lookup) -> Answer {
        let parent = self.node(arg.parent)?;
        let name = component(&arg.name)?;
        self.entry_of(who, &parent, &name)
    }

    pub(super) fn forget(&self, arg: &Forget) -> Answer {
        for one in &arg.nodes {
            self.nodes.forget(one.node, one.count);
        }
        done()
    }

    /// Answers with the entry of a name, with one more lookup count.
    pub(super) fn entry_of(&self, who: &Who, parent: &NodeRef, name: &CStr) -> Answer {
        if who.is_stranger() {
            self.check_name(parent, name.to_bytes())?;
        }
        let on_the_way = || open_on_the_way(who.deputy()?, parent.fd.as_fd(), name);
        let fd = match open_path(who, parent, name) {
            Err(denied @ Errno(libc::EACCES)) => on_the_way().ok_or(denied)?,
            opened => opened?,
        };
        let at = (&parent.mount, &parent.place);
        reply(Reply::Entry(self.enter_named(
            who,
            fd,
            at,
            name,
            Keep::Cached,
        )?))
    }

    /// Makes a node of what a name in a directory is.
    pub(super) fn enter_named(
        &self,
        who: &Who,
        fd: OwnedFd,
        (near, place): (&Arc<Mount>, &Arc<Place>),
        name: &CStr,
        keep: Keep,
    ) -> Result<Entry, Errno> {
        let (stat, mount) = self.inspect(&fd, near)?;
        let kind = stat.mode & libc::S_IFMT;
        if who.is_stranger() {
            check_found(&mount, near, kind)?;
        }
        let place = match kind {
            libc::S_IFDIR => place.below(name.to_bytes()),
            _ => Arc::clone(place),
        };
        self.enter_inspected(fd, stat, (&mount, &place), keep)
    }

    /// Makes a node of an inode. `near` is the mount it most likely is on.
    pub(super) fn enter(
        &self,
        fd: OwnedFd,
        (near, place): (&Arc<Mount>, &Arc<Place>),
        keep: Keep,
    ) -> Result<Entry, Errno> {
        let (stat, mount) = self.inspect(&fd, near)?;
        self.enter_inspected(fd, stat, (&mount, place), keep)
    }

    fn enter_inspected(
        &self,
        fd: OwnedFd,
        stat: Stat,
        (mount, place): (&Arc<Mount>, &Arc<Place>),
        keep: Keep,
    ) -> Result<Entry, Errno> {
        let stat = if stat.mode & libc::S_IFMT == libc::S_IFREG && !mount.is_remote {
            self.settled(stat, fd.as_fd())?
        } else {
            stat
        };
        let node = self
            .nodes
            .enter(&Arc::new(fd), &stat, (mount, place), keep)?;
        Ok(Entry {
            node,
            attr: Some(attr(&stat)),
            ..Entry::default()
        })
    }

    /// Attributes and mount of an inode, never asking a daemon before its mount is known not to
    /// be omfs itself: that could wait for this very thread.
    pub(super) fn inspect(
        &self,
        fd: &OwnedFd,
        near: &Arc<Mount>,
    ) -> Result<(Stat, Arc<Mount>), Errno> {
        let stat = file::stat(fd.as_fd(), Freshness::Known)?;
        let mount = if stat.mount == near.id {
            Arc::clone(near)
        } else {
            self.export.mounts.of(fd.as_fd(), &stat)?
        };
        let stat = if mount.is_remote {
            file::stat(fd.as_fd(), Freshness::Fresh)?
        } else {
            stat
        };
        Ok((stat, mount))
    }
}

/// Opens a name in a directory as the caller, who must have the right to search it.
pub(super) fn open_path(who: &Who, parent: &NodeRef, name: &CStr) -> Result<OwnedFd, Errno> {
    let _as_caller = who.assume()?;
    Ok(file::open_at(
        Some(parent.fd.as_fd()),
        name,
        O_PATH_FLAGS,
        0,
    )?)
}
