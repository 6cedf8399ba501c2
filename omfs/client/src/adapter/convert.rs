//! Between the FUSE crate's types and ours.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileHandle, FileType, INodeNo, LockOwner, Request, TimeOrNow};
use proto::v1::time_or_now::When;
use proto::v1::{Attr, Time, TimeOrNow as ProtoTime};

use crate::caller::Who;
use crate::core::{LockRequest, UNSURE};
use omfs_service::Errno;

pub fn who(request: &Request) -> Who {
    Who {
        uid: request.uid(),
        gid: request.gid(),
        pid: request.pid().cast_signed(),
    }
}

pub fn bytes(name: &OsStr) -> Vec<u8> {
    name.as_bytes().to_vec()
}

/// `range`: first and last byte.
pub fn lock(
    fh: FileHandle,
    owner: LockOwner,
    range: (u64, u64),
    kind: i32,
    pid: u32,
) -> LockRequest {
    LockRequest {
        fh: fh.0,
        owner: owner.0,
        start: range.0,
        end: range.1,
        kind,
        pid,
    }
}

pub fn error(errno: Errno) -> fuser::Errno {
    if errno.0 == UNSURE {
        return fuser::Errno::from_i32(libc::EHOSTDOWN);
    }
    fuser::Errno::from_i32(if errno.0 > 0 { errno.0 } else { libc::EIO })
}

/// The type in a mode; `None` for what Linux does not know.
pub fn kind_of_mode(mode: u32) -> Option<FileType> {
    Some(match mode & libc::S_IFMT {
        libc::S_IFREG => FileType::RegularFile,
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFSOCK => FileType::Socket,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        _ => return None,
    })
}

/// The type that readdir(3) calls `DT_*`: the type bits of a mode, shifted.
pub fn kind_of_entry(kind: u8) -> Option<FileType> {
    kind_of_mode(u32::from(kind) << 12)
}

fn system_time(time: Option<Time>) -> SystemTime {
    let Some(time) = time else {
        return UNIX_EPOCH;
    };
    let whole = Duration::from_secs(time.s.unsigned_abs());
    let base = if time.s < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    let exact = base.and_then(|base| base.checked_add(Duration::from_nanos(u64::from(time.ns))));
    exact.unwrap_or(UNIX_EPOCH)
}

/// The inverse of what fuser 0.18 does to times before 1970: it takes the nanoseconds off
/// instead of adding them, so seconds and nanoseconds are found unchanged in the distance.
fn proto_time(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Time {
            s: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            ns: after.subsec_nanos(),
        },
        Err(before) => Time {
            s: 0_i64.saturating_sub_unsigned(before.duration().as_secs()),
            ns: before.duration().subsec_nanos(),
        },
    }
}

pub fn time_or_now(time: TimeOrNow) -> ProtoTime {
    let when = match time {
        TimeOrNow::Now => When::Now(true),
        TimeOrNow::SpecificTime(time) => When::At(proto_time(time)),
    };
    ProtoTime { when: Some(when) }
}

/// A device number as the kernel's FUSE takes it: both use the 32 bits of `new_encode_dev` for
/// all numbers that Linux has.
fn device(rdev: u64) -> u32 {
    u32::try_from(rdev & u64::from(u32::MAX)).unwrap_or(0)
}

/// Attributes for the kernel; `None` when the owner sent a type that does not exist.
pub fn file_attr(id: u64, attr: &Attr) -> Option<FileAttr> {
    Some(FileAttr {
        ino: INodeNo(id),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.crtime),
        kind: kind_of_mode(attr.mode)?,
        perm: u16::try_from(attr.mode & 0o7777).ok()?,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: device(attr.rdev),
        blksize: attr.blksize,
        flags: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What fuser 0.18 does with a time that the kernel sends.
    fn as_fuser_reads(s: i64, ns: u32) -> SystemTime {
        if s >= 0 {
            UNIX_EPOCH + Duration::new(s.unsigned_abs(), ns)
        } else {
            UNIX_EPOCH - Duration::new(s.unsigned_abs(), ns)
        }
    }

    #[test]
    fn the_first_and_the_last_time_arrive_as_they_were_set() {
        // The kernel takes the nanoseconds off these two.
        for s in [i64::MIN, i64::MAX] {
            assert_eq!(proto_time(as_fuser_reads(s, 0)), Time { s, ns: 0 });
        }
    }

    proptest! {
        #[test]
        fn times_arrive_as_they_were_set(s in -1i64 << 60..1 << 60, ns in 0u32..1_000_000_000) {
            prop_assert_eq!(proto_time(as_fuser_reads(s, ns)), Time { s, ns });
        }

        #[test]
        fn no_time_of_an_owner_panics(s: i64, ns: u32) {
            system_time(Some(Time { s, ns }));
        }

        #[test]
        fn no_attributes_of_an_owner_panic(mode: u32, rdev: u64, size: u64) {
            let attr = Attr { mode, rdev, size, ..Attr::default() };
            let seen = file_attr(1, &attr);
            prop_assert_eq!(seen.is_some(), kind_of_mode(mode).is_some());
        }
    }

    #[test]
    fn times_are_shown_as_the_owner_tells_them() {
        let shown = system_time(Some(Time {
            s: -2,
            ns: 800_000_000,
        }));
        assert_eq!(shown, UNIX_EPOCH - Duration::from_millis(1200));
    }
}
