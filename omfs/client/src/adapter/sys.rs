//! Replies that name a backing file by number: numbers outlive the process that got them.

#![allow(unsafe_code)]

use std::time::Duration;

use fuser::{FileAttr, FileHandle, FopenFlags, Generation, ReplyCreate, ReplyOpen};

/// Answers an open with a backing file.
pub fn opened(reply: ReplyOpen, fh: FileHandle, flags: FopenFlags, backing: u32) {
    // SAFETY: the number is of this session and stays open, since it is in the table of modes, and
    // is not closed here, because `into_raw` takes it back. Needed because there is no other way
    // to name a backing file to the FUSE crate.
    let wrapped = unsafe { reply.wrap_backing(backing) };
    reply.opened_passthrough(fh, flags, &wrapped);
    let _ = wrapped.into_raw();
}

/// Answers a creation with a backing file.
pub fn created(
    reply: ReplyCreate,
    (attr, ttl): (&FileAttr, Duration),
    generation: Generation,
    fh: FileHandle,
    (flags, backing): (FopenFlags, u32),
) {
    // SAFETY: as in `opened`.
    let wrapped = unsafe { reply.wrap_backing(backing) };
    reply.created_passthrough(&ttl, attr, generation, fh, flags, &wrapped);
    let _ = wrapped.into_raw();
}
