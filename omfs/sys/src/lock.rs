//! Locks that belong to an open file description (fcntl(2) "Open file description locks", flock(2)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Shared, exclusive, or none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LockKind {
    /// `F_RDLCK`, `LOCK_SH`.
    Shared,
    /// `F_WRLCK`, `LOCK_EX`.
    Exclusive,
    /// `F_UNLCK`, `LOCK_UN`.
    Unlocked,
}

/// A locked or wanted range of bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// First byte.
    pub start: i64,
    /// Number of bytes; 0 means to the end, however far the file grows.
    pub length: i64,
}

/// Sets or removes a record lock of `fd`'s open file description without waiting.
///
/// # Errors
/// `EAGAIN` when another holder is in the way; `EBADF` when `fd` is not open for what the kind
/// of lock needs; others of fcntl(2).
pub fn set_record(fd: BorrowedFd<'_>, kind: LockKind, range: Range) -> io::Result<()> {
    let lock = to_raw(kind, range);
    // SAFETY: the kernel only reads `lock`, which lives through the call. nix has no type for the
    // OFD commands with a kind of its own.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A record lock that is in the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Conflict {
    /// Its kind.
    pub kind: LockKind,
    /// What it covers.
    pub range: Range,
    /// The process that holds it; `None` for open file description locks.
    pub pid: Option<i32>,
}

/// What would keep [`set_record`] from succeeding.
///
/// # Errors
/// Those of fcntl(2).
pub fn find_conflict(
    fd: BorrowedFd<'_>,
    kind: LockKind,
    range: Range,
) -> io::Result<Option<Conflict>> {
    let mut lock = to_raw(kind, range);
    // SAFETY: `lock` lives through the call, which may overwrite it.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let kind = match i32::from(lock.l_type) {
        libc::F_UNLCK => return Ok(None),
        libc::F_RDLCK => LockKind::Shared,
        _ => LockKind::Exclusive,
    };
    let range = Range {
        start: lock.l_start,
        length: lock.l_len,
    };
    Ok(Some(Conflict {
        kind,
        range,
        pid: (lock.l_pid > 0).then_some(lock.l_pid),
    }))
}

fn to_raw(kind: LockKind, range: Range) -> libc::flock {
    let kind = match kind {
        LockKind::Shared => libc::F_RDLCK,
        LockKind::Exclusive => libc::F_WRLCK,
        LockKind::Unlocked => libc::F_UNLCK,
    };
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: range.start,
        l_len: range.length,
        // Must be 0 for the OFD commands.
        l_pid: 0,
    }
}

/// Sets or removes the BSD lock of `fd`'s open file description without waiting.
///
/// # Errors
/// `EAGAIN` when another holder is in the way; others of flock(2).
pub fn set_flock(fd: BorrowedFd<'_>, kind: LockKind) -> io::Result<()> {
    let operation = match kind {
        LockKind::Shared => libc::LOCK_SH,
        LockKind::Exclusive => libc::LOCK_EX,
        LockKind::Unlocked => libc::LOCK_UN,
    };
    // SAFETY: flock takes two integers. nix' safe form wants to own the descriptor.
    let result = unsafe { libc::flock(fd.as_raw_fd(), operation | libc::LOCK_NB) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
