//! What a write-behind says to the owner.

use proto::v1::fs_reply::Result as Answer;
use proto::v1::fs_request::Op;
use proto::v1::{
    Attr, Caller, FsRequest, GetAttr, HeldBack, Leased, Open as OpenArg, Read, Release, Write,
};

use super::opens::OpenFile;
use super::{NEVER, Outcome, attr_of, count_of, errno};
use omfs_service::FsAnswer;

fn ask(open: &OpenFile, caller: &Caller, op: Op, payload: &[u8]) -> Outcome<FsAnswer> {
    let request = FsRequest {
        caller: Some(caller.clone()),
        op: Some(op),
    };
    open.route.service.call(&request, payload, &NEVER)
}

/// Writes all of a piece at the owner; what the file is like afterwards.
pub fn send(open: &OpenFile, caller: &Caller, at: u64, piece: &[u8]) -> Outcome<Option<Leased>> {
    let mut done = 0;
    let mut stamp = None;
    while let Some(rest) = piece.get(done..).filter(|rest| !rest.is_empty()) {
        let write = Write {
            fh: open.fh,
            offset: at + done as u64,
            kill_suidgid: caller.uid != 0,
            stamped: true,
            ..Write::default()
        };
        let answer = ask(open, caller, Op::Write(write), rest)?;
        match usize::try_from(written(&answer)?) {
            Ok(count) if count > 0 && count <= rest.len() => done += count,
            _ => return Err(errno(libc::EIO)),
        }
        stamp = stamp_of(&answer);
    }
    Ok(stamp)
}

/// What an owner says that the file is like after a write.
pub fn stamp_of(answer: &FsAnswer) -> Option<Leased> {
    match &answer.reply.result {
        Some(Answer::Leased(leased)) => Some(*leased),
        _ => None,
    }
}

/// The number of bytes written, also of an owner that knows nothing of leases.
pub fn written(answer: &FsAnswer) -> Outcome<u64> {
    match &answer.reply.result {
        Some(Answer::Leased(leased)) => Ok(leased.count),
        _ => count_of(answer),
    }
}

/// Whether nobody has changed a file since bytes of it were held back on another connection. Only
/// then they may be sent still: whatever others wrote meanwhile was written later. `piece`: the
/// first of these bytes; some of them may have arrived, without word of it.
pub fn is_as_it_was(open: &OpenFile, head: &HeldBack, piece: &[u8]) -> Outcome<bool> {
    let caller = head.caller.clone().unwrap_or_default();
    let op = Op::GetAttr(GetAttr {
        node: open.handle,
        fh: Some(open.fh),
    });
    let now = attr_of(ask(open, &caller, op, &[])?)?;
    if head.mtime.is_some() && (now.mtime, now.size) == (head.mtime, head.size) {
        return Ok(true);
    }
    let sent_end = head.from + head.sending;
    let could_be = head.size..=head.size.max(sent_end);
    if head.sending == 0 || !could_be.contains(&now.size) {
        return Ok(false);
    }
    let sent = usize::try_from(head.sending).unwrap_or(usize::MAX);
    let sent = piece.get(..sent).unwrap_or(piece);
    has_arrived(open, head.from, sent, &now)
}

/// Whether a file's bytes are those of a piece, as far as the file reaches.
fn has_arrived(open: &OpenFile, at: u64, piece: &[u8], now: &Attr) -> Outcome<bool> {
    let op = Op::Open(OpenArg {
        node: open.handle,
        flags: libc::O_RDONLY,
    });
    let Some(Answer::Opened(opened)) = ask(open, &open.opener, op, &[])?.reply.result else {
        return Err(errno(libc::EPROTO));
    };
    let read = Op::Read(Read {
        fh: opened.fh,
        offset: at,
        size: u32::try_from(piece.len()).map_err(|_| errno(libc::EINVAL))?,
        ..Read::default()
    });
    let seen = ask(open, &open.opener, read, &[]);
    let release = Op::Release(Release {
        fh: opened.fh,
        flock_owner: None,
    });
    let _ = ask(open, &open.opener, release, &[]);
    let seen = seen?.payload;
    let reach = now.size.saturating_sub(at).min(piece.len() as u64);
    Ok(seen.len() as u64 == reach && piece.starts_with(&seen))
}
