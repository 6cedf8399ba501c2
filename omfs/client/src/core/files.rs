//! Open files.

use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use proto::v1::fs_reply::Result as Answer;
use proto::v1::fs_request::Op;
use proto::v1::{
    Caller, CopyFileRange, Create, Fallocate, Flush, Fsync, Lseek, Open as OpenArg, Read, Release,
    Write,
};

use super::ahead::ReadAhead;
use super::behind::WriteBehind;
use super::change::NewName;
use super::holding::count_within;
use super::opens::{Mapping, Open, OpenFile};
use super::unsent::{stamp_of, written};
use super::{Core, Found, Outcome, Place, Route, count_of, entry_of, errno};
use crate::caller::Who;
use crate::inodes::Path;
use crate::namespace::Synthetic;
use omfs_service::Errno;

/// Bytes that one copy_file_range request moves at most, so that it ends in reasonable time.
const COPY_BYTES_MAX: u64 = 64 << 20;

/// A file that was opened.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// This session's handle.
    pub fh: u64,
    /// The local export's handle, when the file is a regular file of this node.
    pub local_fh: Option<u64>,
    /// Others have it open for writing: no shared writable mapping of it may be made.
    pub unmappable: bool,
}

/// A stretch of a file to be preallocated, punched or the like: fallocate(2).
#[derive(Clone, Copy, Debug)]
pub struct Stretch {
    pub offset: u64,
    pub length: u64,
    pub mode: u32,
}

pub(super) fn is_writable(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY
}

/// Whether a shared writable mapping can be made of what is opened with these flags.
fn is_mappable(flags: i32) -> bool {
    flags & libc::O_ACCMODE == libc::O_RDWR
}

/// Open flags as the owner shall see them: O_DIRECT would demand aligned buffers of our network
/// code and means nothing across it; the kernel has dealt with the creation flags.
pub(super) fn owner_flags(flags: i32) -> i32 {
    flags & !(libc::O_DIRECT | libc::O_ASYNC | libc::O_NOCTTY)
}

impl Core {
    pub(super) fn file(&self, fh: u64) -> Outcome<Arc<OpenFile>> {
        let open = self.opens.file(fh).ok_or(errno(libc::EBADF))?;
        self.current(fh, open)
    }

    fn ask_open(&self, who: Who, open: &OpenFile, op: Op) -> Outcome<omfs_service::FsAnswer> {
        let caller = self.caller_without_groups(who, open.route.node);
        self.ask(&open.route, caller, op)
    }

    fn insert_file(&self, mut open: OpenFile, unmappable: bool) -> Opened {
        let is_local = open.route.node == self.myself();
        let local_fh = is_local.then_some(open.fh);
        let writes_behind = open.writable && open.route.service.lease_client().is_some();
        let open = Arc::new_cyclic(|weak| {
            let behind = || WriteBehind::new(weak.clone(), &self.holding, None);
            open.behind = writes_behind.then(behind);
            open
        });
        let fh = self.opens.insert(Open::File(open));
        Opened {
            fh,
            local_fh,
            unmappable,
        }
    }

    pub(super) fn reads_ahead(&self, route: &Route, flags: i32) -> Option<Arc<ReadAhead>> {
        let leased = !is_writable(flags) && route.service.lease_client().is_some();
        leased.then(|| ReadAhead::new(&self.kept_bytes))
    }

    pub fn open(&self, who: Who, id: u64, flags: i32) -> Outcome<Opened> {
        let place = match self.place(id)? {
            Place::File(place) => place,
            Place::Synthetic(what) => return self.open_status(what, flags),
        };
        self.give_up_leases(id, is_writable(flags));
        let op = Op::Open(OpenArg {
            node: place.handle,
            flags: owner_flags(flags & !(libc::O_CREAT | libc::O_EXCL)),
        });
        let caller = self.caller(who, place.route.node);
        match self.ask(&place.route, caller.clone(), op)?.reply.result {
            Some(Answer::Opened(opened)) => {
                let file = OpenFile {
                    ahead: self.reads_ahead(&place.route, flags),
                    behind: None,
                    route: place.route,
                    handle: place.handle,
                    fh: opened.fh,
                    id,
                    flags,
                    opener: self.keep(caller),
                    writable: is_writable(flags),
                    was_locked: AtomicBool::new(false),
                    was_mapped: AtomicBool::new(false),
                    was_stored: AtomicBool::new(false),
                    lock_owners: Mutex::default(),
                    reopening: Mutex::default(),
                };
                Ok(self.insert_file(file, opened.unmappable && is_mappable(flags)))
            }
            _ => Err(errno(libc::EPROTO)),
        }
    }

    fn open_status(&self, what: Synthetic, flags: i32) -> Outcome<Opened> {
        let Synthetic::Status(index) = what else {
            return Err(errno(libc::EISDIR));
        };
        if is_writable(flags) {
            return Err(errno(libc::EACCES));
        }
        let content = Bytes::from(self.status_content(index)?);
        let fh = self.opens.insert(Open::Text(content));
        Ok(Opened {
            fh,
            local_fh: None,
            unmappable: false,
        })
    }

    pub fn create(
        &self,
        who: Who,
        new: NewName<'_>,
        mode: u32,
        flags: i32,
    ) -> Outcome<(Found, Opened)> {
        let place = self.real(new.parent, libc::EPERM)?;
        let op = Op::Create(Create {
            parent: place.handle,
            name: new.name.to_vec(),
            mode,
            flags: owner_flags(flags),
        });
        let caller = Caller {
            umask: new.umask,
            ..self.caller(who, place.route.node)
        };
        let entry = entry_of(self.ask(&place.route, caller.clone(), op)?)?;
        let (handle, fh) = (entry.node, entry.fh);
        let unmappable = entry.unmappable && is_mappable(flags);
        let origin = self.origin(caller, Path::Name(new.parent, new.name.into()));
        let opener = Arc::clone(&origin.caller);
        let found = match self.remember(&place.route, place.view, entry, &origin) {
            Ok(found) => found,
            Err(error) => {
                let release = Op::Release(Release {
                    fh,
                    flock_owner: None,
                });
                let _ = self.ask(&place.route, Caller::default(), release);
                return Err(error);
            }
        };
        let file = OpenFile {
            ahead: None,
            behind: None,
            route: place.route,
            handle,
            fh,
            id: found.id,
            flags,
            opener,
            writable: is_writable(flags),
            was_locked: AtomicBool::new(false),
            was_mapped: AtomicBool::new(false),
            was_stored: AtomicBool::new(false),
            lock_owners: Mutex::default(),
            reopening: Mutex::default(),
        };
        Ok((found, self.insert_file(file, unmappable)))
    }

    /// What is known of the mappings of a file of another node.
    pub fn mapping(&self, id: u64) -> Mapping {
        self.opens.mapping(id)
    }

    /// A descriptor for FUSE passthrough, of a file opened at this node.
    pub fn backing_fd(&self, opened: Opened) -> Option<OwnedFd> {
        self.config.local.backing_fd(opened.local_fh?)
    }

    pub fn read(&self, who: Who, fh: u64, offset: u64, size: u32) -> Outcome<Bytes> {
        let open = match self.opens.get(fh) {
            Some(Open::File(open)) => self.current(fh, open)?,
            Some(Open::Text(text)) => {
                let start = usize::try_from(offset)
                    .unwrap_or(usize::MAX)
                    .min(text.len());
                let end = start.saturating_add(size as usize).min(text.len());
                return Ok(text.slice(start..end));
            }
            _ => return Err(errno(libc::EBADF)),
        };
        self.settle_writes(open.id);
        if let Some(outcome) = self.read_ahead(who, &open, offset, size) {
            return outcome;
        }
        let op = Op::Read(Read {
            fh: open.fh,
            offset,
            size,
            ..Read::default()
        });
        let payload = self.ask_open(who, &open, op)?.payload;
        if payload.len() > size as usize {
            return Err(errno(libc::EPROTO));
        }
        Ok(payload)
    }

    /// `append`: at the owner's end of file, wherever this node believes that to be.
    pub fn write(&self, who: Who, fh: u64, offset: u64, data: &[u8], append: bool) -> Outcome<u32> {
        let open = self.file(fh)?;
        let outcome = self.write_through(who, (fh, &open), (offset, data), append);
        // Another thread may have found the file again while this one had its old handle.
        match outcome {
            Err(Errno(libc::EHOSTDOWN)) if self.is_gone(&open.route) => {
                let open = self.file(fh)?;
                self.write_through(who, (fh, &open), (offset, data), append)
            }
            outcome => outcome,
        }
    }

    fn write_through(
        &self,
        who: Who,
        (fh, open): (u64, &Arc<OpenFile>),
        (offset, data): (u64, &[u8]),
        append: bool,
    ) -> Outcome<u32> {
        if let Some(outcome) = self.write_behind(who, (fh, open), (offset, data), append) {
            return outcome;
        }
        let op = Op::Write(Write {
            fh: open.fh,
            offset,
            append,
            kill_suidgid: who.uid != 0,
            stamped: open.behind.is_some(),
            ..Write::default()
        });
        let caller = self.caller_without_groups(who, open.route.node);
        let answer = self.ask_with(&open.route, caller, op, data)?;
        if let Some(behind) = &open.behind {
            behind.note_stamp(stamp_of(&answer).as_ref());
        }
        count_within(written(&answer)?, data.len())
    }

    pub fn flush(&self, who: Who, fh: u64, lock_owner: u64) -> Outcome<()> {
        let Some(open) = self.opens.file(fh) else {
            return Ok(());
        };
        let open = self.settled(fh, open)?;
        let lease = Self::lease_for_writing(&open);
        let has_locks = self.forget_locks(open.id, lock_owner);
        // The locks and leases of a connection that is gone went with it.
        if !has_locks && lease.is_none() || self.is_gone(&open.route) {
            return Ok(());
        }
        let op = Op::Flush(Flush {
            fh: open.fh,
            lock_owner,
            lease: lease.unwrap_or(0),
        });
        self.ask_open(who, &open, op).map(drop)
    }

    /// The write lease of a file that is closed, which is no more used. The release would come too
    /// late: who opens the file next, after close(2) or at the end of its writer, may do it with
    /// O_NONBLOCK, as gzip does, and would be told EAGAIN.
    fn lease_for_writing(open: &OpenFile) -> Option<u64> {
        let lease = open.behind.as_ref()?.do_without()?;
        open.route.service.lease_client()?.unregister(lease);
        Some(lease)
    }

    /// Closing any descriptor of a file ends its owner's record locks on it; whether there are any.
    fn forget_locks(&self, id: u64, lock_owner: u64) -> bool {
        let files = self.opens.of_file(id);
        let forgotten = files.iter().map(|(_, open)| {
            let owners = open.lock_owners.lock();
            owners
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&lock_owner)
        });
        forgotten.fold(false, |any, one| any | one)
    }

    pub fn release(&self, who: Who, fh: u64, flock_owner: Option<u64>) -> Outcome<()> {
        if let Some(open) = self.opens.file(fh) {
            // Whoever closed it was told what went wrong.
            let _ = self.settled(fh, open);
        }
        let open = self.opens.remove(fh);
        self.note_closed(fh);
        let Some(Open::File(open)) = open else {
            return Ok(());
        };
        let reading = open.ahead.as_ref().and_then(|ahead| ahead.give_up());
        let writing = open.behind.as_ref().and_then(|behind| behind.give_up());
        if let Some(leases) = open.route.service.lease_client() {
            // The release gives them back.
            reading
                .into_iter()
                .chain(writing)
                .for_each(|lease| leases.unregister(lease));
        }
        if let Some(behind) = &open.behind {
            behind.end();
        }
        self.drop_descriptor_locks(who, &open);
        let op = Op::Release(Release {
            fh: open.fh,
            flock_owner,
        });
        self.ask_open(who, &open, op).map(drop)
    }

    pub fn fsync(&self, who: Who, fh: u64, data_only: bool) -> Outcome<()> {
        let open = self.file(fh)?;
        self.settle_writes(open.id);
        let open = self.settled(fh, open)?;
        let op = Op::Fsync(Fsync {
            fh: open.fh,
            data_only,
        });
        self.ask_open(who, &open, op).map(drop)
    }

    pub fn fallocate(&self, who: Who, fh: u64, stretch: Stretch) -> Outcome<()> {
        let open = self.file(fh)?;
        self.settle_for_change(open.id);
        let op = Op::Fallocate(Fallocate {
            fh: open.fh,
            offset: stretch.offset,
            length: stretch.length,
            mode: stretch.mode,
        });
        self.ask_open(who, &open, op).map(drop)
    }

    pub fn lseek(&self, who: Who, fh: u64, offset: i64, whence: u32) -> Outcome<i64> {
        let open = self.file(fh)?;
        self.settle_writes(open.id);
        let op = Op::Lseek(Lseek {
            fh: open.fh,
            offset,
            whence,
        });
        let position = count_of(&self.ask_open(who, &open, op)?)?;
        i64::try_from(position).map_err(|_| errno(libc::EOVERFLOW))
    }

    /// Copies within one node; `EXDEV` otherwise, which makes callers read and write themselves.
    pub fn copy_file_range(
        &self,
        who: Who,
        from: (u64, u64),
        to: (u64, u64),
        length: u64,
    ) -> Outcome<u32> {
        let (source, target) = (self.file(from.0)?, self.file(to.0)?);
        self.settle_writes(source.id);
        self.settle_for_change(target.id);
        let same =
            (source.route.node, source.route.epoch) == (target.route.node, target.route.epoch);
        if !same {
            return Err(errno(libc::EXDEV));
        }
        let op = Op::CopyFileRange(CopyFileRange {
            fh_in: source.fh,
            offset_in: from.1,
            fh_out: target.fh,
            offset_out: to.1,
            length: length.min(COPY_BYTES_MAX),
        });
        let count = count_of(&self.ask_open(who, &target, op)?)?;
        u32::try_from(count).map_err(|_| errno(libc::EPROTO))
    }
}
