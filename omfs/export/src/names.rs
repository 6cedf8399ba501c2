//! Making, removing and moving names.

use std::ffi::CStr;
use std::os::fd::AsFd;

use bytes::Bytes;
use nix::fcntl::{AtFlags, RenameFlags, readlinkat, renameat2};
use nix::sys::stat::{Mode, SFlag, mkdirat, mknodat};
use nix::unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat};
use proto::v1::{Link, MkDir, MkNod, NameArg, NodeArg, Rename, Symlink};

use super::answer::{Answer, c_string, component, data, done};
use super::caller::Who;
use super::nodes::NodeRef;
use super::session::Removal;
use super::{Errno, ExportSession, procfs};
use omfs_sys::file::{self, FdPath, Freshness};

impl ExportSession {
    pub(super) fn read_link(&self, who: &Who, arg: &NodeArg) -> Answer {
        let node = self.node(arg.node)?;
        if node.kind != libc::S_IFLNK {
            return Err(Errno(libc::EINVAL));
        }
        let _as_caller = who.assume()?;
        let target = readlinkat(node.fd.as_fd(), c"")?;
        let target = target.into_encoded_bytes();
        let own = match who.local_pid {
            Some(pid) if node.mount.is_procfs => procfs::own_link(&target, pid),
            _ => None,
        };
        data(own.map_or(Bytes::from(target), Bytes::from))
    }

    pub(super) fn mk_dir(&self, who: &Who, arg: &MkDir) -> Answer {
        let parent = self.node(arg.parent)?;
        let name = component(&arg.name)?;
        {
            let _as_caller = who.assume_creating()?;
            mkdirat(parent.fd.as_fd(), name.as_c_str(), permissions(arg.mode))?;
        }
        self.entry_of(who, &parent, &name)
    }

    pub(super) fn mk_nod(&self, who: &Who, arg: &MkNod) -> Answer {
        let parent = self.node(arg.parent)?;
        let name = component(&arg.name)?;
        let kind = SFlag::from_bits_truncate(arg.mode & libc::S_IFMT);
        {
            let _as_caller = who.assume_creating()?;
            let mode = permissions(arg.mode);
            mknodat(parent.fd.as_fd(), name.as_c_str(), kind, mode, arg.rdev)?;
        }
        self.entry_of(who, &parent, &name)
    }

    pub(super) fn symlink(&self, who: &Who, arg: &Symlink) -> Answer {
        let parent = self.node(arg.parent)?;
        let name = component(&arg.name)?;
        let target = c_string(&arg.target)?;
        {
            let _as_caller = who.assume()?;
            symlinkat(target.as_c_str(), parent.fd.as_fd(), name.as_c_str())?;
        }
        self.entry_of(who, &parent, &name)
    }

    pub(super) fn link(&self, who: &Who, arg: &Link) -> Answer {
        let node = self.node(arg.node)?;
        let parent = self.node(arg.new_parent)?;
        let name = component(&arg.new_name)?;
        {
            let _as_caller = who.assume()?;
            // AT_EMPTY_PATH would need CAP_DAC_READ_SEARCH.
            let path = FdPath::new(node.fd.as_fd());
            let follow = AtFlags::AT_SYMLINK_FOLLOW;
            linkat(
                nix::fcntl::AT_FDCWD,
                path.as_c_str(),
                parent.fd.as_fd(),
                name.as_c_str(),
                follow,
            )?;
        }
        self.entry_of(who, &parent, &name)
    }

    pub(super) fn unlink(&self, who: &Who, arg: &NameArg, removal: Removal) -> Answer {
        let parent = self.node(arg.node)?;
        let name = component(&arg.name)?;
        let pinned = self.pin_victim(&parent, &name);
        let flag = match removal {
            Removal::File => UnlinkatFlags::NoRemoveDir,
            Removal::Directory => UnlinkatFlags::RemoveDir,
        };
        let removed = {
            let _as_caller = who.assume()?;
            unlinkat(parent.fd.as_fd(), name.as_c_str(), flag)
        };
        self.keep_pin(pinned, removed)
    }

    pub(super) fn rename(&self, who: &Who, arg: &Rename) -> Answer {
        let (from, to) = (self.node(arg.parent)?, self.node(arg.new_parent)?);
        let (name, new_name) = (component(&arg.name)?, component(&arg.new_name)?);
        let flags = RenameFlags::from_bits(arg.flags).ok_or(Errno(libc::EINVAL))?;
        let replaces = flags.is_empty();
        let pinned = replaces.then(|| self.pin_victim(&to, &new_name)).flatten();
        let renamed = {
            let _as_caller = who.assume()?;
            renameat2(
                from.fd.as_fd(),
                name.as_c_str(),
                to.fd.as_fd(),
                new_name.as_c_str(),
                flags,
            )
        };
        self.keep_pin(pinned, renamed)
    }

    /// An inode that the peer knows must outlive the name it is about to lose: it may be somebody's
    /// current directory. Other inodes die at once and free their space.
    fn pin_victim(&self, parent: &NodeRef, name: &CStr) -> Option<u64> {
        let stat = file::stat_at(parent.fd.as_fd(), name, Freshness::Known).ok()?;
        self.nodes.pin(&stat)
    }

    /// A name that was not removed needs no pin: who may remove nothing takes nothing.
    fn keep_pin(&self, pinned: Option<u64>, removed: nix::Result<()>) -> Answer {
        if removed.is_err()
            && let Some(id) = pinned
        {
            self.nodes.unpin(id);
        }
        removed?;
        done()
    }
}

/// The permission bits of a mode.
fn permissions(mode: u32) -> Mode {
    Mode::from_bits_truncate(mode & 0o7777)
}
