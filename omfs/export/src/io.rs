//! Data of open files.

use std::sync::Arc;

use bytes::BytesMut;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, fdatasync, fsync, lseek};
use proto::v1::fs_reply::Result as Reply;
use proto::v1::{CopyFileRange, Fallocate, FsReply, Fsync, Leased, Lseek, Read, Write};

use super::answer::{Answer, count, data, done, offset, reply, time};
use super::caller::Who;
use super::files::OpenFile;
use super::limits::{COPY_BYTES_MAX, TRANSFER_BYTES_MAX};
use super::{Errno, ExportSession, FsAnswer};
use omfs_sys::file::{self, Freshness, Position};
use omfs_sys::lease::LeaseKind;

impl ExportSession {
    pub(super) fn read(&self, who: &Who, arg: &Read) -> Answer {
        let open = self.files.get(arg.fh)?;
        let size = arg.size as usize;
        if size > TRANSFER_BYTES_MAX {
            return Err(Errno(libc::EINVAL));
        }
        let start = offset(arg.offset)?;
        // What may be read of a plain file was settled when it was opened; procfs asks again.
        let _as_caller = if open.mount.is_synthetic {
            Some(who.assume()?)
        } else {
            None
        };
        if arg.lease != 0 {
            return self.read_leased(arg, &open, start);
        }
        let buffer = read_fully(&open, start, size)?;
        data(buffer.freeze())
    }

    /// Reads under a lease if that can be had: then more than was needed at once.
    fn read_leased(&self, arg: &Read, open: &Arc<OpenFile>, start: i64) -> Answer {
        let granted = !open.is_writable && self.grant(arg.lease, LeaseKind::Read, open);
        let extra = if granted { arg.ahead as usize } else { 0 };
        let length = (arg.size as usize)
            .saturating_add(extra)
            .min(TRANSFER_BYTES_MAX);
        let buffer = read_fully(open, start, length)?;
        let size = file::stat(open.fd(), Freshness::Fresh)?.size;
        let reply = FsReply {
            result: Some(Reply::Leased(Leased {
                granted,
                size,
                ..Leased::default()
            })),
        };
        Ok(FsAnswer {
            reply,
            payload: buffer.freeze(),
        })
    }

    pub(super) fn write(&self, who: &Who, arg: &Write, payload: &[u8]) -> Answer {
        let open = self.files.get(arg.fh)?;
        if payload.len() > TRANSFER_BYTES_MAX {
            return Err(Errno(libc::EINVAL));
        }
        let start = offset(arg.offset)?;
        if arg.lease != 0 && !arg.append {
            drop(open);
            return self.write_leased(who, arg, payload);
        }
        let written = {
            // The writer's identity decides whether setuid bits are cleared, on quotas, and on
            // blocks reserved for root.
            let _as_caller = who.assume()?;
            if arg.append {
                file::write_at(open.fd(), payload, Position::End)?
            } else {
                write_fully(&open, start, payload)?
            }
        };
        clear_set_id(who, arg, &open)?;
        self.export.leases.mind_room(&open);
        if arg.stamped {
            return stamped(&open, false, written);
        }
        count(written as u64)
    }

    /// Writes under a lease if that can be had: then the peer may hold back what follows.
    fn write_leased(&self, who: &Who, arg: &Write, payload: &[u8]) -> Answer {
        let mut granted = self.grant_write(arg)?;
        if !granted && self.adopt(who, arg.fh)? {
            granted = self.grant_write(arg)?;
        }
        let open = self.files.get(arg.fh)?;
        let count = {
            let _as_caller = who.assume()?;
            write_fully(&open, offset(arg.offset)?, payload)?
        };
        clear_set_id(who, arg, &open)?;
        stamped(&open, granted, count)
    }

    fn grant_write(&self, arg: &Write) -> Result<bool, Errno> {
        let open = self.files.get(arg.fh)?;
        Ok(open.is_writable && self.grant(arg.lease, LeaseKind::Write, &open))
    }

    pub(super) fn fsync(&self, arg: &Fsync) -> Answer {
        let open = self.files.get(arg.fh)?;
        if arg.data_only {
            fdatasync(open.fd())?;
        } else {
            fsync(open.fd())?;
        }
        done()
    }
}

impl ExportSession {
    pub(super) fn fallocate(&self, who: &Who, arg: &Fallocate) -> Answer {
        let open = self.files.get(arg.fh)?;
        let mode = i32::try_from(arg.mode).map_err(|_| Errno(libc::EINVAL))?;
        let (start, length) = (offset(arg.offset)?, offset(arg.length)?);
        let _as_caller = who.assume()?;
        fallocate(
            open.fd(),
            FallocateFlags::from_bits_retain(mode),
            start,
            length,
        )?;
        done()
    }

    /// Finds data and holes; positions are the peer's own business.
    pub(super) fn lseek(&self, arg: &Lseek) -> Answer {
        let open = self.files.get(arg.fh)?;
        let whence = match i32::try_from(arg.whence) {
            Ok(libc::SEEK_DATA) => Whence::SeekData,
            Ok(libc::SEEK_HOLE) => Whence::SeekHole,
            _ => return Err(Errno(libc::EINVAL)),
        };
        count(lseek(open.fd(), arg.offset, whence)?.unsigned_abs())
    }

    pub(super) fn copy_file_range(&self, who: &Who, arg: &CopyFileRange) -> Answer {
        let (from, to) = (self.files.get(arg.fh_in)?, self.files.get(arg.fh_out)?);
        let (start, target) = (offset(arg.offset_in)?, offset(arg.offset_out)?);
        let length = usize::try_from(arg.length.min(COPY_BYTES_MAX)).unwrap_or(usize::MAX);
        let _as_caller = who.assume()?;
        let copied = file::copy_range((from.fd(), start), (to.fd(), target), length)?;
        count(copied as u64)
    }
}

/// Takes the set-id bits away for a writer who may not keep them, when the write was carried out as
/// root: as anybody else the kernel has done it (write(2)). The opener's ids may be other than the writer's.
fn clear_set_id(who: &Who, arg: &Write, open: &OpenFile) -> Result<(), Errno> {
    if !arg.kill_suidgid || !who.is_root() {
        return Ok(());
    }
    let mode = file::stat(open.fd(), Freshness::Known)?.mode;
    let mut kept = mode & !libc::S_ISUID;
    if mode & libc::S_IXGRP != 0 {
        kept &= !libc::S_ISGID;
    }
    if kept != mode {
        file::chmod(open.fd(), kept)?;
    }
    Ok(())
}

/// The answer to a write, with what the file is like afterwards.
fn stamped(open: &OpenFile, granted: bool, count: usize) -> Answer {
    let stat = file::stat(open.fd(), Freshness::Fresh)?;
    reply(Reply::Leased(Leased {
        granted,
        size: stat.size,
        count: count as u64,
        mtime: Some(time(stat.mtime)),
    }))
}

/// A short answer means the end of the file to the peer, so short reads are continued.
fn read_fully(open: &OpenFile, start: i64, size: usize) -> Result<BytesMut, Errno> {
    let mut buffer = BytesMut::new();
    while buffer.len() < size {
        let at = start.saturating_add_unsigned(buffer.len() as u64);
        match file::read_at(open.fd(), at, size - buffer.len(), &mut buffer) {
            Ok(0) => break,
            Ok(_) if open.mount.is_synthetic => break,
            Ok(_) => {}
            Err(_) if !buffer.is_empty() => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(buffer)
}

fn write_fully(open: &OpenFile, start: i64, payload: &[u8]) -> Result<usize, Errno> {
    let mut written = 0;
    while let Some(rest) = payload
        .get(written..)
        .filter(|rest| !rest.is_empty() || written == 0)
    {
        let at = start.saturating_add_unsigned(written as u64);
        match file::write_at(open.fd(), rest, Position::At(at)) {
            Ok(0) => break,
            Ok(count) => written += count,
            Err(_) if written > 0 => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(written)
}
