//! From the kernel's answers to the wire's.

use std::ffi::CString;

use bytes::Bytes;
use proto::v1::fs_reply::Result as Reply;
use proto::v1::{Attr, Count, FsReply, Time};

use super::{Errno, FsAnswer};
use omfs_sys::file::{Stat, Timestamp};

/// What every operation returns.
pub(super) type Answer = Result<FsAnswer, Errno>;

/// Success with nothing to say.
pub(super) fn done() -> Answer {
    Ok(FsAnswer::default())
}

/// Success with a message.
pub(super) fn reply(result: Reply) -> Answer {
    Ok(FsAnswer {
        reply: FsReply {
            result: Some(result),
        },
        payload: Bytes::new(),
    })
}

/// Success with bytes only.
pub(super) fn data(payload: Bytes) -> Answer {
    Ok(FsAnswer {
        reply: FsReply::default(),
        payload,
    })
}

/// Success with a number.
pub(super) fn count(value: u64) -> Answer {
    reply(Reply::Count(Count { value }))
}

pub(super) fn attr(stat: &Stat) -> Attr {
    Attr {
        ino: stat.ino,
        size: stat.size,
        blocks: stat.blocks,
        atime: Some(time(stat.atime)),
        mtime: Some(time(stat.mtime)),
        ctime: Some(time(stat.ctime)),
        crtime: Some(time(stat.crtime)),
        mode: stat.mode,
        nlink: stat.nlink,
        uid: stat.uid,
        gid: stat.gid,
        rdev: stat.rdev,
        blksize: stat.blksize,
        dev: stat.dev,
    }
}

pub(super) fn time(time: Timestamp) -> Time {
    Time {
        s: time.s,
        ns: time.ns,
    }
}

/// One component of a path, or `.`.
///
/// # Errors
/// `EINVAL` for what would lead elsewhere: `..`, a slash, a NUL, nothing.
pub(super) fn component(name: &[u8]) -> Result<CString, Errno> {
    if name.is_empty() || name == b".." || name.contains(&b'/') {
        return Err(Errno(libc::EINVAL));
    }
    c_string(name)
}

/// # Errors
/// `EINVAL` for a NUL inside.
pub(super) fn c_string(bytes: &[u8]) -> Result<CString, Errno> {
    CString::new(bytes).map_err(|_| Errno(libc::EINVAL))
}

/// An offset or length as system calls take it.
///
/// # Errors
/// `EINVAL` beyond the largest `off_t`.
pub(super) fn offset(value: u64) -> Result<i64, Errno> {
    i64::try_from(value).map_err(|_| Errno(libc::EINVAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for bad in [&b""[..], b"..", b"a/b", b"/", b"a\0b"] {
            assert_eq!(component(bad), Err(Errno(libc::EINVAL)), "{bad:?}");
        }
        for good in [&b"."[..], b"...", b"a", b"\xff\n"] {
            assert!(component(good).is_ok(), "{good:?}");
        }
    }
}
