//! Attributes of inodes and file systems.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::statvfs::fstatvfs;
use proto::v1::fs_reply::Result as Reply;
use proto::v1::time_or_now::When;
use proto::v1::{Access, GetAttr, NodeArg, SetAttr, StatFs, TimeOrNow};

use super::answer::{Answer, attr, done, offset, reply};
use super::caller::Who;
use super::deputy::is_directory_of;
use super::nodes::NodeRef;
use super::{Errno, ExportSession};
use omfs_sys::file::{self, Freshness, SetTime, Stat, Timestamp};

impl ExportSession {
    pub(super) fn get_attr(&self, arg: &GetAttr) -> Answer {
        if let Some(fh) = arg.fh {
            return self.answer_attr(self.files.get(fh)?.fd());
        }
        self.answer_attr(self.node(arg.node)?.fd.as_fd())
    }

    /// In the order in which no step takes away the right to do the next: the owner, whose change
    /// clears bits that the mode may set again; the mode; the size; the times, which the size changes.
    pub(super) fn set_attr(&self, who: &Who, arg: &SetAttr) -> Answer {
        let node = self.node(arg.node)?;
        let fd = node.fd.as_fd();
        self.settled(file::stat(fd, Freshness::Known)?, fd)?;
        {
            let _as_caller = who.assume()?;
            if arg.uid.is_some() || arg.gid.is_some() {
                file::chown(fd, arg.uid, arg.gid)?;
            }
            if let Some(mode) = arg.mode {
                file::chmod(fd, mode)?;
            }
            if let Some(size) = arg.size {
                self.set_size(&node, arg.fh, offset(size)?)?;
            }
            let (atime, mtime) = (set_time(arg.atime)?, set_time(arg.mtime)?);
            if (atime, mtime) != (SetTime::Keep, SetTime::Keep) {
                file::set_times(fd, atime, mtime)?;
            }
        }
        self.answer_attr(fd)
    }

    fn answer_attr(&self, fd: BorrowedFd<'_>) -> Answer {
        let stat = self.settled(file::stat(fd, Freshness::Fresh)?, fd)?;
        reply(Reply::Attr(attr(&stat)))
    }

    /// Attributes with everything that other peers have written.
    pub(super) fn settled(&self, stat: Stat, fd: BorrowedFd<'_>) -> Result<Stat, Errno> {
        if !self.export.leases.has_writers() {
            return Ok(stat);
        }
        self.settle((stat.dev, stat.ino));
        Ok(file::stat(fd, Freshness::Fresh)?)
    }

    /// Through an open file no permission is needed any more. One that is open for reading only
    /// can stand here too, for `O_RDONLY|O_TRUNC`.
    fn set_size(&self, node: &NodeRef, fh: Option<u64>, size: i64) -> Result<(), Errno> {
        if let Some(fh) = fh {
            let open = self.files.get(fh)?;
            if open.is_writable {
                return Ok(nix::unistd::ftruncate(open.fd(), size)?);
            }
        }
        Ok(file::truncate(node.fd.as_fd(), size)?)
    }

    pub(super) fn access(&self, who: &Who, arg: &Access) -> Answer {
        let node = self.node(arg.node)?;
        let allowed = {
            let _as_caller = who.assume()?;
            file::access(node.fd.as_fd(), arg.mask)
        };
        // A guest is where its deputy is, even if it could not go there with its present ids.
        let is_there = |pid| arg.mask == libc::X_OK as u32 && is_directory_of(pid, node.fd.as_fd());
        match allowed {
            Err(error) if !who.deputy().is_some_and(is_there) => Err(error.into()),
            _ => done(),
        }
    }

    pub(super) fn stat_fs(&self, arg: &NodeArg) -> Answer {
        let stat = fstatvfs(self.node(arg.node)?.fd.as_fd())?;
        reply(Reply::StatFs(StatFs {
            blocks: stat.blocks(),
            bfree: stat.blocks_free(),
            bavail: stat.blocks_available(),
            files: stat.files(),
            ffree: stat.files_free(),
            bsize: u32::try_from(stat.block_size()).unwrap_or(u32::MAX),
            namelen: u32::try_from(stat.name_max()).unwrap_or(u32::MAX),
            frsize: u32::try_from(stat.fragment_size()).unwrap_or(u32::MAX),
        }))
    }
}

fn set_time(time: Option<TimeOrNow>) -> Result<SetTime, Errno> {
    match time.and_then(|time| time.when) {
        None | Some(When::Now(false)) => Ok(SetTime::Keep),
        Some(When::Now(true)) => Ok(SetTime::Now),
        // Larger values would mean "now" and "keep" to the kernel.
        Some(When::At(at)) if at.ns > 999_999_999 => Err(Errno(libc::EINVAL)),
        Some(When::At(at)) => Ok(SetTime::At(Timestamp { s: at.s, ns: at.ns })),
    }
}
