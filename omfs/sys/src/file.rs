//! File system calls on descriptors that may be `O_PATH`, which no crate wraps that way.

use std::ffi::{CStr, CString};
use std::io;
use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;

use bytes::BytesMut;

/// Seconds and nanoseconds since 1970.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Timestamp {
    /// Seconds; negative before 1970.
    pub s: i64,
    /// Nanoseconds, 0 to 999,999,999.
    pub ns: u32,
}

/// What statx(2) tells of an inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs)]
pub struct Stat {
    pub dev: u64,
    pub ino: u64,
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    pub size: u64,
    pub blksize: u32,
    /// Of 512 bytes.
    pub blocks: u64,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    /// Of birth; the change time where the file system keeps none.
    pub crtime: Timestamp,
    /// The mount's id; reused after the mount is gone.
    pub mount: u64,
}

/// How fresh the answer of [`stat`] must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Freshness {
    /// As fresh as stat(2).
    Fresh,
    /// Whatever the kernel knows without asking a server: never waits for a network or a daemon.
    Known,
}

/// The inode behind a descriptor.
///
/// # Errors
/// Those of statx(2).
pub fn stat(fd: BorrowedFd<'_>, freshness: Freshness) -> io::Result<Stat> {
    stat_at(fd, c"", freshness)
}

/// The inode that `name` in `dir` is, not following a symlink.
///
/// # Errors
/// Those of statx(2).
pub fn stat_at(dir: BorrowedFd<'_>, name: &CStr, freshness: Freshness) -> io::Result<Stat> {
    let sync = match freshness {
        Freshness::Fresh => libc::AT_STATX_SYNC_AS_STAT,
        Freshness::Known => libc::AT_STATX_DONT_SYNC,
    };
    let flags = libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT | sync;
    let mask = libc::STATX_BASIC_STATS | libc::STATX_BTIME | libc::STATX_MNT_ID;
    // SAFETY: statx is plain integers, for which zero is a value.
    let mut raw: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the name is a C string and `raw` lives through the call. nix and std have no statx.
    let result = unsafe { libc::statx(dir.as_raw_fd(), name.as_ptr(), flags, mask, &raw mut raw) };
    check(result)?;
    Ok(from_statx(&raw))
}

fn from_statx(raw: &libc::statx) -> Stat {
    let time = |t: &libc::statx_timestamp| Timestamp {
        s: t.tv_sec,
        ns: t.tv_nsec,
    };
    let born = raw.stx_mask & libc::STATX_BTIME != 0;
    Stat {
        dev: libc::makedev(raw.stx_dev_major, raw.stx_dev_minor),
        ino: raw.stx_ino,
        mode: u32::from(raw.stx_mode),
        nlink: raw.stx_nlink,
        uid: raw.stx_uid,
        gid: raw.stx_gid,
        rdev: libc::makedev(raw.stx_rdev_major, raw.stx_rdev_minor),
        size: raw.stx_size,
        blksize: raw.stx_blksize,
        blocks: raw.stx_blocks,
        atime: time(&raw.stx_atime),
        mtime: time(&raw.stx_mtime),
        ctime: time(&raw.stx_ctime),
        crtime: time(if born { &raw.stx_btime } else { &raw.stx_ctime }),
        mount: raw.stx_mnt_id,
    }
}

const FD_DIRECTORY: &str = "/proc/self/fd/";

/// `/proc/self/fd/N`: leads the kernel to the inode of a descriptor, with the ordinary permission
/// checks of the thread's identity (proc(5)).
#[derive(Clone, Copy, Debug)]
pub struct FdPath([u8; 32]);

impl FdPath {
    /// The path of `fd`; means it only as long as `fd` is open.
    #[must_use]
    pub fn new(fd: BorrowedFd<'_>) -> Self {
        let mut path = [0; 32];
        // 14 bytes and at most ten digits fit, so this cannot fail; an empty path gives ENOENT.
        let _ = write!(&mut path[..31], "{FD_DIRECTORY}{}", fd.as_raw_fd());
        Self(path)
    }

    /// The last component alone.
    fn number(&self) -> &CStr {
        let number = self.0.get(FD_DIRECTORY.len()..).unwrap_or_default();
        CStr::from_bytes_until_nul(number).unwrap_or_default()
    }

    /// The path for system calls.
    #[must_use]
    pub fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or_default()
    }
}

/// Opens the inode behind `fd` anew, with `flags` of open(2) and the thread's permissions.
///
/// # Errors
/// Those of open(2).
pub fn reopen(fd: BorrowedFd<'_>, flags: i32) -> io::Result<OwnedFd> {
    let path = FdPath::new(fd);
    // A microsecond less than walking there each time.
    match fd_directory() {
        Some(dir) => open_at(Some(dir.as_fd()), path.number(), flags, 0),
        None => open_at(None, path.as_c_str(), flags, 0),
    }
}

/// `/proc/self/fd`; `None` when procfs was not there at the first use.
fn fd_directory() -> Option<&'static OwnedFd> {
    static DIRECTORY: OnceLock<Option<OwnedFd>> = OnceLock::new();
    DIRECTORY
        .get_or_init(|| open_at(None, c"/proc/self/fd", libc::O_PATH | libc::O_DIRECTORY, 0).ok())
        .as_ref()
}

/// openat(2); `dir` is the current directory when none is given.
///
/// # Errors
/// Those of openat(2).
pub fn open_at(
    dir: Option<BorrowedFd<'_>>,
    name: &CStr,
    flags: i32,
    mode: u32,
) -> io::Result<OwnedFd> {
    let dir: RawFd = dir.map_or(libc::AT_FDCWD, |dir| dir.as_raw_fd());
    // SAFETY: the name is a C string that the kernel only reads. nix drops unknown flag bits.
    let fd = unsafe { libc::openat(dir, name.as_ptr(), flags | libc::O_CLOEXEC, mode) };
    check(fd)?;
    // SAFETY: the kernel just gave us this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Changes the permission bits of the inode behind `fd`.
///
/// # Errors
/// Those of fchmodat2(2); `EOPNOTSUPP` for symlinks.
pub fn chmod(fd: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    // SAFETY: the path is an empty C string. The C library has no wrapper of fchmodat2.
    let result = unsafe {
        libc::syscall(
            libc::SYS_fchmodat2,
            fd.as_raw_fd(),
            c"".as_ptr(),
            mode & 0o7777,
            libc::AT_EMPTY_PATH,
        )
    };
    check(result as i32)
}

/// Changes owner and group; `None` leaves one as it is.
///
/// # Errors
/// Those of chown(2).
pub fn chown(fd: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    // SAFETY: the path is an empty C string, the rest integers.
    let result = unsafe {
        libc::fchownat(
            fd.as_raw_fd(),
            c"".as_ptr(),
            uid.unwrap_or(u32::MAX),
            gid.unwrap_or(u32::MAX),
            libc::AT_EMPTY_PATH,
        )
    };
    check(result)
}

/// truncate(2) of the inode behind an `O_PATH` descriptor: checks write permission.
///
/// # Errors
/// Those of truncate(2).
pub fn truncate(fd: BorrowedFd<'_>, size: i64) -> io::Result<()> {
    // SAFETY: the path is a C string that the kernel only reads.
    check(unsafe { libc::truncate(FdPath::new(fd).as_c_str().as_ptr(), size) })
}

/// What [`set_times`] does to one of the times.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetTime {
    /// Leaves it.
    Keep,
    /// Sets it to the owner's clock.
    Now,
    /// Sets it.
    At(Timestamp),
}

impl SetTime {
    fn to_raw(self) -> libc::timespec {
        let (s, ns) = match self {
            Self::Keep => (0, libc::UTIME_OMIT),
            Self::Now => (0, libc::UTIME_NOW),
            Self::At(time) => (time.s, i64::from(time.ns)),
        };
        libc::timespec {
            tv_sec: s,
            tv_nsec: ns,
        }
    }
}

/// Sets access and modification time.
///
/// # Errors
/// Those of utimensat(2).
pub fn set_times(fd: BorrowedFd<'_>, atime: SetTime, mtime: SetTime) -> io::Result<()> {
    let times = [atime.to_raw(), mtime.to_raw()];
    // SAFETY: the path is an empty C string and `times` has the two elements the call reads; nix
    // has no AT_EMPTY_PATH for it.
    let result = unsafe {
        libc::utimensat(
            fd.as_raw_fd(),
            c"".as_ptr(),
            times.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    check(result)
}

/// Whether the thread's effective identity may access the inode so (`R_OK`, …).
///
/// # Errors
/// Those of faccessat2(2); `EACCES` when it may not.
pub fn access(fd: BorrowedFd<'_>, mask: u32) -> io::Result<()> {
    // SAFETY: the path is an empty C string. The C library's wrapper emulates AT_EACCESS on some
    // versions, with the real identity.
    let result = unsafe {
        libc::syscall(
            libc::SYS_faccessat2,
            fd.as_raw_fd(),
            c"".as_ptr(),
            mask,
            libc::AT_EACCESS | libc::AT_EMPTY_PATH,
        )
    };
    check(result as i32)
}

/// Reads once at `offset`, at most `size` bytes, and appends them to `buffer`.
///
/// # Errors
/// Those of pread(2).
pub fn read_at(
    fd: BorrowedFd<'_>,
    offset: i64,
    size: usize,
    buffer: &mut BytesMut,
) -> io::Result<usize> {
    buffer.reserve(size);
    let room = buffer.spare_capacity_mut();
    let room_bytes = room.len().min(size);
    // SAFETY: the kernel writes at most `room_bytes` bytes into the spare capacity. Needed because
    // safe wrappers want the megabyte zeroed first.
    let count =
        unsafe { libc::pread(fd.as_raw_fd(), room.as_mut_ptr().cast(), room_bytes, offset) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel has initialised `count` more bytes, which is within the capacity.
    unsafe { buffer.set_len(buffer.len() + count) };
    Ok(count)
}

/// Where a write goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Position {
    /// At a byte offset.
    At(i64),
    /// At the end of the file as it is at that moment, atomically.
    End,
}

/// Writes once; may write less than asked.
///
/// # Errors
/// Those of pwritev2(2).
pub fn write_at(fd: BorrowedFd<'_>, data: &[u8], position: Position) -> io::Result<usize> {
    let (offset, flags) = match position {
        Position::At(offset) => (offset, 0),
        Position::End => (0, libc::RWF_APPEND),
    };
    let vector = libc::iovec {
        iov_base: data.as_ptr().cast_mut().cast(),
        iov_len: data.len(),
    };
    // SAFETY: `vector` describes `data`, which the kernel only reads. nix has no pwritev2.
    let count = unsafe { libc::pwritev2(fd.as_raw_fd(), &raw const vector, 1, offset, flags) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Copies inside the kernel, from a file and offset to another; may copy less than asked.
///
/// # Errors
/// Those of copy_file_range(2).
pub fn copy_range(
    from: (BorrowedFd<'_>, i64),
    to: (BorrowedFd<'_>, i64),
    length: usize,
) -> io::Result<usize> {
    let ((input, mut start), (output, mut target)) = (from, to);
    // SAFETY: both offsets live through the call, which updates them; the rest are integers. nix
    // has it only together with more than is needed (feature "zerocopy").
    let count = unsafe {
        libc::copy_file_range(
            input.as_raw_fd(),
            &raw mut start,
            output.as_raw_fd(),
            &raw mut target,
            length,
            0,
        )
    };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// How a description was opened, and what was set since (`F_GETFL` of fcntl(2)).
///
/// # Errors
/// Those of fcntl(2).
pub fn status_flags(fd: BorrowedFd<'_>) -> io::Result<i32> {
    // SAFETY: integers only. nix drops unknown flag bits.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    check(flags)?;
    Ok(flags)
}

/// One name in a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirItem {
    /// The name, without the NUL.
    pub name: CString,
    /// Inode number; of the directory underneath where something is mounted.
    pub ino: u64,
    /// `DT_*`.
    pub kind: u8,
    /// The directory offset after this name (`d_off`).
    pub next_offset: i64,
}

/// Bytes before the name in `struct linux_dirent64`: ino, off, reclen, type.
const DIRENT_HEADER_BYTES: usize = 19;

/// Reads names from the descriptor's position on into `buffer` (getdents64(2)).
///
/// # Errors
/// Those of getdents64(2); `EINVAL` when not one name fits into `buffer`.
pub fn read_dir(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Vec<DirItem>> {
    // SAFETY: the kernel writes at most `buffer.len()` bytes into it. No crate gives the offsets.
    let count = unsafe {
        libc::syscall(
            libc::SYS_getdents64,
            fd.as_raw_fd(),
            buffer.as_mut_ptr(),
            buffer.len(),
        )
    };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    let mut rest = buffer.get(..count).unwrap_or_default();
    let mut items = Vec::new();
    while let Some((item, tail)) = split_dirent(rest) {
        items.push(item);
        rest = tail;
    }
    Ok(items)
}

fn split_dirent(bytes: &[u8]) -> Option<(DirItem, &[u8])> {
    let (ino, tail) = bytes.split_first_chunk::<8>()?;
    let (offset, tail) = tail.split_first_chunk::<8>()?;
    let (length, tail) = tail.split_first_chunk::<2>()?;
    let length = usize::from(u16::from_ne_bytes(*length));
    let kind = *tail.first()?;
    let name = bytes.get(DIRENT_HEADER_BYTES..length)?;
    let item = DirItem {
        name: CStr::from_bytes_until_nul(name).ok()?.to_owned(),
        ino: u64::from_ne_bytes(*ino),
        kind,
        next_offset: i64::from_ne_bytes(*offset),
    };
    Some((item, bytes.get(length..)?))
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
