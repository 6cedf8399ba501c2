//! Outcomes of operations as replies to the kernel.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use fuser::{
    BackingId, FileHandle, FopenFlags, Generation, ReplyAttr, ReplyCreate, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyWrite, ReplyXattr,
};
use omfs_sys::backing;
use proto::v1::Attr;

use super::Adapter;
use super::convert::{error, file_attr};
use super::passthrough::{Mode, plain};
use crate::core::{Core, Found, Opened, Outcome, XattrAnswer};

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

    pub fn reply_opened(&self, reply: ReplyOpen, id: u64, opened: Opened) {
        let fh = FileHandle(opened.fh);
        let mode = self.enter_mode(id, opened, |fd| reply.open_backing(fd));
        self.core.note_open(id, opened.fh, mode.backing());
        match mode {
            Mode::Direct => reply.opened(fh, FopenFlags::FOPEN_DIRECT_IO),
            Mode::Passthrough(_) => backing::opened(reply, fh, mode.backing()),
        }
    }

    pub fn reply_created(&self, reply: ReplyCreate, found: &Found, opened: Opened) {
        let fh = FileHandle(opened.fh);
        let mode = self.enter_mode(found.id, opened, |fd| reply.open_backing(fd));
        let Some(attr) = file_attr(found.id, &found.attr) else {
            return reply.error(fuser::Errno::EIO);
        };
        self.core.note_open(found.id, opened.fh, mode.backing());
        match mode {
            Mode::Direct => {
                let flags = FopenFlags::FOPEN_DIRECT_IO;
                reply.created(&TTL, &attr, GENERATION, fh, flags);
            }
            Mode::Passthrough(_) => {
                backing::created(reply, (&attr, TTL), GENERATION, fh, mode.backing())
            }
        }
    }
}
