//! The kernel's requests, one by one.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, INodeNo,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};
use proto::v1::SetAttr;

use super::convert::{bytes, error, kind_of_entry, lock, time_or_now, who};
use super::replies::{reply_attr, reply_empty, reply_entry, reply_write, reply_xattr};
use super::{Adapter, Place, contain};
use crate::core::{Core, DirItem, NewName, Stretch};

/// Puts one more entry into a reply; whether it is full.
fn add_entry(reply: &mut ReplyDirectory, item: &DirItem) -> bool {
    let name = OsStr::from_bytes(&item.name);
    let next = item.next_offset.cast_unsigned();
    kind_of_entry(item.kind).is_some_and(|kind| reply.add(INodeNo(item.id), next, kind, name))
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.negotiate(config);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (who, name) = (who(req), bytes(name));
        let act = move |core: &Core| core.lookup(who, parent.0, &name);
        self.ask(who, parent.0, act, move |core, found| {
            reply_entry(core, reply, found)
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.note(ino.0, move |core| core.forget(ino.0, nlookup));
    }

    fn getattr(&self, req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        let (who, fh) = (who(req), fh.map(|fh| fh.0));
        let act = move |core: &Core| core.getattr(who, ino.0, fh);
        self.ask(who, ino.0, act, move |_, attr| {
            reply_attr(reply, ino.0, attr)
        });
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let who = who(req);
        let change = SetAttr {
            node: 0,
            fh: fh.map(|fh| fh.0),
            mode,
            uid,
            gid,
            size,
            atime: atime.map(time_or_now),
            mtime: mtime.map(time_or_now),
            lock_owner: None,
        };
        let act = move |core: &Core| core.setattr(who, ino.0, change);
        self.ask(who, ino.0, act, move |_, attr| {
            reply_attr(reply, ino.0, attr)
        });
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let who = who(req);
        self.ask(
            who,
            ino.0,
            move |core| core.readlink(who, ino.0),
            move |_, outcome| match outcome {
                Ok(target) => reply.data(&target),
                Err(problem) => reply.error(error(problem)),
            },
        );
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (who, name, parent) = (who(req), bytes(name), parent.0);
        self.ask(
            who,
            parent,
            move |core| {
                let new = NewName::new(parent, &name, umask);
                core.mknod(who, new, mode, u64::from(rdev))
            },
            move |core, found| reply_entry(core, reply, found),
        );
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let (who, name, parent) = (who(req), bytes(name), parent.0);
        self.ask(
            who,
            parent,
            move |core| {
                let new = NewName::new(parent, &name, umask);
                core.mkdir(who, new, mode)
            },
            move |core, found| reply_entry(core, reply, found),
        );
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (who, name) = (who(req), bytes(name));
        let act = move |core: &Core| core.unlink(who, parent.0, &name);
        self.ask(who, parent.0, act, move |_, outcome| {
            reply_empty(reply, outcome)
        });
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (who, name) = (who(req), bytes(name));
        let act = move |core: &Core| core.rmdir(who, parent.0, &name);
        self.ask(who, parent.0, act, move |_, outcome| {
            reply_empty(reply, outcome)
        });
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let (who, name, parent) = (who(req), bytes(link_name), parent.0);
        let target = bytes(target.as_os_str());
        self.ask(
            who,
            parent,
            move |core| {
                let new = NewName::new(parent, &name, 0);
                core.symlink(who, new, &target)
            },
            move |core, found| reply_entry(core, reply, found),
        );
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (who, name, newname) = (who(req), bytes(name), bytes(newname));
        self.ask(
            who,
            parent.0,
            move |core| {
                let (from, to) = ((parent.0, &name[..]), (newparent.0, &newname[..]));
                core.rename(who, from, to, flags.bits())
            },
            move |_, outcome| reply_empty(reply, outcome),
        );
    }

    fn link(
        &self,
        req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let (who, name) = (who(req), bytes(newname));
        let act = move |core: &Core| core.link(who, ino.0, newparent.0, &name);
        self.ask(who, ino.0, act, move |core, found| {
            reply_entry(core, reply, found)
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (who, this) = (who(req), self.clone());
        self.ask(
            who,
            ino.0,
            move |core| core.open(who, ino.0, flags.0),
            move |_, outcome| match outcome {
                Ok(opened) => this.reply_opened(who, reply, ino.0, (opened, flags.0)),
                Err(problem) => reply.error(error(problem)),
            },
        );
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (who, name, parent) = (who(req), bytes(name), parent.0);
        let this = self.clone();
        self.ask(
            who,
            parent,
            move |core| {
                let new = NewName::new(parent, &name, umask);
                core.create(who, new, mode, flags)
            },
            move |_, outcome| match outcome {
                Ok((found, opened)) => {
                    this.reply_created(who, reply, &found, (opened, flags));
                }
                Err(problem) => reply.error(error(problem)),
            },
        );
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let who = who(req);
        if lock_owner.is_none() {
            // The kernel reads for itself, not for a read(2): pages of a mapping.
            self.core.note_mapped(fh.0);
        }
        self.ask(
            who,
            ino.0,
            move |core| core.read(who, fh.0, offset, size),
            move |_, outcome| match outcome {
                Ok(data) => reply.data(&data),
                Err(problem) => reply.error(error(problem)),
            },
        );
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let who = who(req);
        // Pages of a mapping go where they belong, whatever the descriptor's flags.
        let mapped = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let append = flags.0 & libc::O_APPEND != 0 && !mapped;
        if mapped {
            self.core.note_stored(fh.0);
        }
        let reply = move |_: &Core, outcome| reply_write(reply, outcome);
        // The data is in the session's buffer, which is used again when this returns.
        let act = |data: Vec<u8>| move |core: &Core| core.write(who, fh.0, offset, &data, append);
        let Some(_slot) = self.slot(who.uid, self.core.is_remote(ino.0)) else {
            return self.ask_at(Place::MayWait, (who, ino.0), act(data.to_vec()), reply);
        };
        contain(|| {
            let outcome = self.core.write(who, fh.0, offset, data, append);
            match self.core.patience(who, ino.0, &outcome) {
                None => reply(&self.core, outcome),
                Some(until) => {
                    self.wait_for_owner((who, ino.0), until, act(data.to_vec()), reply);
                }
            }
        });
    }

    fn flush(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let who = who(req);
        let act = move |core: &Core| core.flush(who, fh.0, lock_owner.0);
        self.ask(who, ino.0, act, move |_, outcome| {
            reply_empty(reply, outcome)
        });
    }

    fn release(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let who = who(req);
        self.modes.leave(ino.0);
        // Nobody is told, and who closed it has waited for the owner.
        self.note(ino.0, move |core| {
            reply_empty(
                reply,
                core.release(who, fh.0, lock_owner.map(|owner| owner.0)),
            );
        });
    }

    fn fsync(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        let who = who(req);
        let act = move |core: &Core| core.fsync(who, fh.0, datasync);
        self.ask_at(Place::MayWait, (who, ino.0), act, move |_, outcome| {
            reply_empty(reply, outcome)
        });
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let who = who(req);
        self.ask(
            who,
            ino.0,
            move |core| core.opendir(who, ino.0),
            move |_, outcome| match outcome {
                Ok(fh) => reply.opened(FileHandle(fh), FopenFlags::empty()),
                Err(problem) => reply.error(error(problem)),
            },
        );
    }

    fn readdir(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let (who, offset) = (who(req), offset.cast_signed());
        let reply = Arc::new(Mutex::new(Some(reply)));
        let filled = Arc::clone(&reply);
        // Nothing is put in when it fails, so that it can be tried again.
        let act = move |core: &Core| {
            let mut reply = filled.lock().unwrap_or_else(PoisonError::into_inner);
            let mut add =
                |item: &DirItem| reply.as_mut().is_none_or(|reply| add_entry(reply, item));
            core.readdir(who, fh.0, offset, &mut add)
        };
        self.ask(who, ino.0, act, move |_, outcome| {
            let reply = reply.lock().unwrap_or_else(PoisonError::into_inner).take();
            match (reply, outcome) {
                (Some(reply), Ok(())) => reply.ok(),
                (Some(reply), Err(problem)) => reply.error(error(problem)),
                // Dropped, it has said EIO.
                (None, _) => {}
            }
        });
    }

    fn releasedir(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        let who = who(req);
        // Nobody is told.
        self.note(ino.0, move |core| {
            reply_empty(reply, core.releasedir(who, fh.0))
        });
    }

    fn fsyncdir(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        let who = who(req);
        let act = move |core: &Core| core.fsyncdir(who, fh.0, datasync);
        self.ask_at(Place::MayWait, (who, ino.0), act, move |_, outcome| {
            reply_empty(reply, outcome)
        });
    }

    fn statfs(&self, req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let who = who(req);
        self.ask(
            who,
            ino.0,
            move |core| core.statfs(who, ino.0),
            move |_, outcome| match outcome {
                Ok(s) => reply.statfs(
                    s.blocks, s.bfree, s.bavail, s.files, s.ffree, s.bsize, s.namelen, s.frsize,
                ),
                Err(problem) => reply.error(error(problem)),
            },
        );
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let (who, name, value) = (who(req), bytes(name), value.to_vec());
        let flags = flags.cast_unsigned();
        let act = move |core: &Core| core.setxattr(who, ino.0, &name, &value, flags);
        self.ask(who, ino.0, act, move |_, outcome| {
            reply_empty(reply, outcome)
        });
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let (who, name) = (who(req), bytes(name));
        let act = move |core: &Core| core.getxattr(who, ino.0, &name, size);
        self.ask(who, ino.0, act, move |_, outcome| {
            reply_xattr(reply, outcome)
        });
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let who = who(req);
        let act = move |core: &Core| core.listxattr(who, ino.0, size);
        self.ask(who, ino.0, act, move |_, outcome| {
            reply_xattr(reply, outcome)
        });
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (who, name) = (who(req), bytes(name));
        let act = move |core: &Core| core.removexattr(who, ino.0, &name);
        self.ask(who, ino.0, act, move |_, outcome| {
            reply_empty(reply, outcome)
        });
    }

    fn access(&self, req: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let (who, mask) = (who(req), mask.bits().cast_unsigned());
        let act = move |core: &Core| core.access(who, ino.0, mask);
        self.ask(who, ino.0, act, move |_, outcome| {
            reply_empty(reply, outcome)
        });
    }

    fn getlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let (who, request) = (who(req), lock(fh, lock_owner, (start, end), typ, pid));
        let act = move |core: &Core| core.getlk(who, request);
        self.ask(who, ino.0, act, move |_, outcome| match outcome {
            Ok(found) => {
                let (kind, pid) = (found.r#type.cast_signed(), found.pid.cast_unsigned());
                reply.locked(found.start, found.end, kind, pid);
            }
            Err(problem) => reply.error(error(problem)),
        });
    }

    fn setlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let (who, request) = (who(req), lock(fh, lock_owner, (start, end), typ, pid));
        let is_mapped = self.core.mapping(ino.0).is_used;
        let modes = Arc::clone(&self.modes);
        let drop_pages = move || {
            if is_mapped {
                modes.drop_pages(ino.0);
            }
        };
        let after = drop_pages.clone();
        // What a lock protects is seen by its next holder, and the other way round.
        let act = move |core: &Core| {
            if typ == libc::F_UNLCK {
                drop_pages();
            }
            core.setlk(who, request, sleep)
        };
        let reply = move |core: &Core, outcome| match outcome {
            Ok(None) => {
                if typ != libc::F_UNLCK {
                    after();
                }
                reply.ok();
            }
            Ok(Some(waiter)) => core.wait_for_lock(waiter, move |outcome| {
                after();
                reply_empty(reply, outcome);
            }),
            Err(problem) => reply.error(error(problem)),
        };
        let place = if is_mapped {
            Place::Invalidating
        } else {
            self.place_of(ino.0)
        };
        self.ask_at(place, (who, ino.0), act, reply);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(fuser::Errno::ENOTTY);
    }

    /// Makes the kernel treat every file as always ready, as poll(2) does with regular files.
    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let who = who(req);
        let stretch = Stretch {
            offset,
            length,
            mode: mode.cast_unsigned(),
        };
        let act = move |core: &Core| core.fallocate(who, fh.0, stretch);
        self.ask_at(Place::MayWait, (who, ino.0), act, move |_, outcome| {
            reply_empty(reply, outcome)
        });
    }

    fn lseek(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let who = who(req);
        let act = move |core: &Core| core.lseek(who, fh.0, offset, whence.cast_unsigned());
        self.ask(who, ino.0, act, move |_, outcome| match outcome {
            Ok(position) => reply.offset(position),
            Err(problem) => reply.error(error(problem)),
        });
    }

    fn copy_file_range(
        &self,
        req: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let who = who(req);
        let (from, to) = ((fh_in.0, offset_in), (fh_out.0, offset_out));
        let act = move |core: &Core| core.copy_file_range(who, from, to, len);
        self.ask_at(Place::MayWait, (who, ino_out.0), act, move |_, outcome| {
            reply_write(reply, outcome)
        });
    }
}
