//! Outcomes of operations as replies to the kernel.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use fuser::{
    BackingId, FileHandle, FopenFlags, Generation, ReplyAttr, ReplyCreate, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyWrite, ReplyXattr,
};
use proto::v1::Attr;

use super::convert::{error, file_attr};
use super::passthrough::{Mode, plain};
use super::{Adapter, sys as backing};
use crate::caller::Who;
use crate::core::{Core, Found, Opened, Outcome, XattrAnswer};
use omfs_service::Errno;

/// Nothing is believed for longer than the request it came with.
pub const TTL: Duration = Duration::ZERO;
/// Numbers are never given to another file while the kernel knows them.
pub const GENERATION: Generation = Generation(0);

pub fn reply_empty(reply: ReplyEmpty, outcome: Outcome<()>) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(problem) => reply.error(error(problem)),
    }
}

pub fn reply_entry(core: &Core, reply: ReplyEntry, outcome: Outcome<Found>) {
    match outcome {
        Ok(found) => match file_attr(found.id, &found.attr) {
            Some(attr) => reply.entry(&TTL, &attr, GENERATION),
            None => {
                core.forget(found.id, 1);
                reply.error(fuser::Errno::EIO);
            }
        },
        Err(problem) => reply.error(error(problem)),
    }
}

pub fn reply_attr(reply: ReplyAttr, id: u64, outcome: Outcome<Attr>) {
    match outcome.map(|attr| file_attr(id, &attr)) {
        Ok(Some(attr)) => reply.attr(&TTL, &attr),
        Ok(None) => reply.error(fuser::Errno::EIO),
        Err(problem) => reply.error(error(problem)),
    }
}

pub fn reply_xattr(reply: ReplyXattr, outcome: Outcome<XattrAnswer>) {
    match outcome {
        Ok(XattrAnswer::Size(size)) => reply.size(size),
        Ok(XattrAnswer::Value(value)) => reply.data(&value),
        Err(problem) => reply.error(error(problem)),
    }
}

pub fn reply_write(reply: ReplyWrite, outcome: Outcome<u32>) {
    match outcome {
        Ok(count) => reply.written(count),
        Err(problem) => reply.error(error(problem)),
    }
}

impl Adapter {
    /// Remote files are never cached; local ones are the kernel's own business if it can.
    fn enter_mode(
        &self,
        id: u64,
        opened: Opened,
        open_backing: impl FnOnce(OwnedFd) -> io::Result<BackingId>,
    ) -> Mode {
        self.modes.enter(id, || {
            if !self.passthrough {
                return None;
            }
            let backing = plain(self.core.backing_fd(opened)?)?;
            open_backing(backing).ok().map(BackingId::into_raw)
        })
    }

    /// A file that others write is opened so that it cannot be mapped.
    ///
    /// # Errors
    /// `ETXTBSY` where a mapping exists already; `EINVAL` for `O_DIRECT`, which the kernel demands of the
    /// backing file, too.
    fn enter_unmappable(&self, id: u64, flags: i32) -> Outcome<Mode> {
        if self.core.mapping(id).is_used {
            return Err(Errno(libc::ETXTBSY));
        }
        if flags & libc::O_DIRECT != 0 {
            return Err(Errno(libc::EINVAL));
        }
        self.modes.enter_unmappable(id).map_err(|error| {
            tracing::info!(id, "a mapping cannot be refused: {error}");
            Errno(libc::ETXTBSY)
        })
    }

    fn mode_of(
        &self,
        id: u64,
        (opened, flags): (Opened, i32),
        open_backing: impl FnOnce(OwnedFd) -> io::Result<BackingId>,
    ) -> Outcome<Mode> {
        let mode = if opened.unmappable && self.maps_remote {
            self.enter_unmappable(id, flags)?
        } else {
            self.enter_mode(id, opened, open_backing)
        };
        let backing = (mode.backing(), mode.is_unmappable());
        self.core.note_open(id, opened.fh, backing);
        Ok(mode)
    }

    pub fn reply_opened(
        &self,
        who: Who,
        reply: ReplyOpen,
        id: u64,
        (opened, flags): (Opened, i32),
    ) {
        let fh = FileHandle(opened.fh);
        match self.mode_of(id, (opened, flags), |fd| reply.open_backing(fd)) {
            Ok(Mode::Direct) => reply.opened(fh, FopenFlags::FOPEN_DIRECT_IO),
            Ok(mode) => backing::opened(reply, fh, fopen_flags(&mode), mode.backing()),
            Err(problem) => {
                let _ = self.core.release(who, opened.fh, None);
                reply.error(error(problem));
            }
        }
    }

    pub fn reply_created(
        &self,
        who: Who,
        reply: ReplyCreate,
        found: &Found,
        (opened, flags): (Opened, i32),
    ) {
        let fh = FileHandle(opened.fh);
        let attr = file_attr(found.id, &found.attr).ok_or(Errno(libc::EIO));
        let mode = attr.and_then(|attr| {
            let mode = self.mode_of(found.id, (opened, flags), |fd| reply.open_backing(fd))?;
            Ok((attr, mode))
        });
        match mode {
            Ok((attr, Mode::Direct)) => {
                let flags = FopenFlags::FOPEN_DIRECT_IO;
                reply.created(&TTL, &attr, GENERATION, fh, flags);
            }
            Ok((attr, mode)) => {
                backing::created(
                    reply,
                    (&attr, TTL),
                    GENERATION,
                    fh,
                    (fopen_flags(&mode), mode.backing()),
                );
            }
            Err(problem) => {
                let _ = self.core.release(who, opened.fh, None);
                self.core.forget(found.id, 1);
                reply.error(error(problem));
            }
        }
    }
}

fn fopen_flags(mode: &Mode) -> FopenFlags {
    match mode {
        Mode::Direct | Mode::Unmappable(_) => FopenFlags::FOPEN_DIRECT_IO,
        Mode::Passthrough(_) => FopenFlags::empty(),
    }
}
