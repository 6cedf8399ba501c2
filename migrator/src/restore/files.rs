//! Descriptors of a frozen process, worked on from inside by injected calls.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::ResolveFlag;
use nix::sys::statfs::{PROC_SUPER_MAGIC, statfs};

use crate::capture::file_id;
use crate::image::{FileIdImage, FileImage, FileKind, ProcessImage};
use crate::numbers::HomeNumbers;
use crate::tracee::{Frozen, TraceeError};

use super::RestoreError;
use super::identity::{self, Found, Wanted};
use super::privileges;

/// Flags of an open description that a new open() can give again.
const KEPT_FLAGS: i32 = libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_NONBLOCK
    | libc::O_DIRECT
    | libc::O_NOATIME
    | libc::O_SYNC
    | libc::O_PATH
    | libc::O_DIRECTORY;

/// Longest path the kernel takes, its final zero byte included (PATH_MAX).
const PATH_BYTES_MAX: usize = 4096;

/// Finds the files of an image: by name if that is still the same file, else by the deputy's own.
#[derive(Clone, Debug)]
pub struct Finder {
    away: Option<Away>,
}

/// Where a process is built that is away from home. Its root is home's tree already, and nothing
/// else can be reached from there.
#[derive(Clone, Debug)]
struct Away {
    numbers: Arc<HomeNumbers>,
    /// The process' file system uid.
    uid: u64,
    /// Its own descriptor of the deputy's files, by identity, laid out as /proc/PID.
    deputy: i32,
    /// How names are looked up below that.
    below: ResolveFlag,
}

impl Finder {
    /// For a process with the directory of its deputy's files open as `deputy`, which uses files
    /// with the image's ids already.
    ///
    /// # Errors
    /// The kernel's, of looking at that.
    pub fn away(
        frozen: &Frozen,
        image: &ProcessImage,
        deputy: i32,
        numbers: Arc<HomeNumbers>,
    ) -> io::Result<Self> {
        let link = format!("/proc/{}/fd/{deputy}", frozen.pid());
        // On one machine it is /proc/PID itself, whose links lead to the files.
        let links = if statfs(Path::new(&link))?.filesystem_type() == PROC_SUPER_MAGIC {
            ResolveFlag::empty()
        } else {
            ResolveFlag::RESOLVE_BENEATH | NO_LINKS
        };
        let away = Away {
            numbers,
            uid: privileges::file_uid(image),
            deputy,
            below: links,
        };
        Ok(Self { away: Some(away) })
    }

    /// At home: paths are the process' own, and there is no other place to look.
    #[must_use]
    pub fn at_home() -> Self {
        Self { away: None }
    }

    /// Opens the file that had `path` and `id` at home, or else `inside` of the deputy's
    /// directory if the deputy has it, in the process; answers the new descriptor, the lowest free.
    ///
    /// # Errors
    /// `File` when neither is there, or is another file.
    pub fn open(
        &self,
        frozen: &mut Frozen,
        path: &[u8],
        id: Option<&FileIdImage>,
        inside: Option<&Path>,
        flags: i32,
    ) -> Result<i32, RestoreError> {
        let mut by_name = Err(io::Error::from_raw_os_error(libc::ENOENT));
        if let Some(id) = id.filter(|id| !id.unlinked) {
            let wanted = Wanted { path, id };
            by_name = match &self.away {
                Some(away) => away.open_by_name(frozen, wanted, flags)?,
                None => open_at_home(frozen, wanted, flags)?,
            };
        }
        let by_name = match by_name {
            Ok(fd) => return Ok(fd),
            Err(error) => error,
        };
        let (Some(away), Some(id), Some(inside)) = (&self.away, id, inside) else {
            return Err(failed(path, by_name));
        };
        let at_deputy = away.open_at_deputy(frozen, Wanted { path, id }, inside, flags)?;
        at_deputy.map_err(|error| {
            tracing::info!(
                "{} by name: {by_name}; at the deputy: {error}",
                String::from_utf8_lossy(path)
            );
            failed(path, error)
        })
    }
}

/// The outer results are the process' trouble, the inner ones the file's.
type Opened = Result<io::Result<i32>, RestoreError>;

impl Away {
    /// The names in an image are those that the kernel told: no link is on the way, unless somebody
    /// has put one there since.
    fn open_by_name(&self, frozen: &mut Frozen, wanted: Wanted<'_>, flags: i32) -> Opened {
        if !wanted.path.starts_with(b"/") {
            return Ok(Err(io::Error::from_raw_os_error(libc::ENOENT)));
        }
        let path = Path::new(OsStr::from_bytes(wanted.path));
        let opened = inner(open_beneath(
            frozen,
            (libc::AT_FDCWD, path),
            flags,
            NO_LINKS,
        ))?;
        self.checked(frozen, opened, wanted, Found::ByName)
    }

    /// Asked by this node itself, not by the process: the deputy may hold open what the process could
    /// not open any more. What home's tree does not have is not there.
    fn open_at_deputy(
        &self,
        frozen: &mut Frozen,
        wanted: Wanted<'_>,
        inside: &Path,
        flags: i32,
    ) -> Opened {
        let place = (self.deputy, inside);
        privileges::use_files_as(frozen, 0)?;
        let opened = inner(open_beneath(frozen, place, flags, self.below))?;
        privileges::use_files_as(frozen, self.uid)?;
        self.checked(frozen, opened, wanted, Found::AtDeputy)
    }

    /// Keeps what was opened only if it is the wanted file.
    fn checked(
        &self,
        frozen: &mut Frozen,
        opened: io::Result<i32>,
        wanted: Wanted<'_>,
        how: Found,
    ) -> Opened {
        let fd = match opened {
            Ok(fd) => fd,
            Err(error) => return Ok(Err(error)),
        };
        let link = format!("/proc/{}/fd/{fd}", frozen.pid());
        match identity::check(Path::new(&link), wanted, how, &self.numbers) {
            Ok(()) => Ok(Ok(fd)),
            Err(error) => {
                close(frozen, fd)?;
                Ok(Err(error))
            }
        }
    }
}

fn open_at_home(frozen: &mut Frozen, wanted: Wanted<'_>, flags: i32) -> Opened {
    let stale = || Ok(Err(io::Error::from_raw_os_error(libc::ESTALE)));
    let path = Path::new(OsStr::from_bytes(wanted.path));
    if is_another(frozen.pid(), path, wanted.id) {
        return stale();
    }
    let fd = match inner(open(frozen, path, flags))? {
        Ok(fd) => fd,
        Err(error) => return Ok(Err(error)),
    };
    let link = format!("/proc/{}/fd/{fd}", frozen.pid());
    if file_id(Path::new(&link)).is_ok_and(|found| same_file(wanted.id, &found)) {
        return Ok(Ok(fd));
    }
    close(frozen, fd)?;
    stale()
}

/// Tells what the call answered from what became of the process.
fn inner(opened: Result<i32, TraceeError>) -> Opened {
    match opened {
        Err(TraceeError::Call { error, .. }) => Ok(Err(error)),
        other => Ok(Ok(other?)),
    }
}

/// Whether another file has this name in a process' file system: opening that for a look would be
/// no harm, but closing it would drop the process' locks on it.
fn is_another(pid: i32, path: &Path, id: &FileIdImage) -> bool {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let seen = Path::new(&format!("/proc/{pid}/root")).join(relative);
    file_id(&seen).is_ok_and(|found| !same_file(id, &found))
}

fn failed(path: &[u8], error: io::Error) -> RestoreError {
    RestoreError::File {
        path: String::from_utf8_lossy(path).into_owned(),
        error,
    }
}

/// Is this the same file, as far as can be told? By home's numbers where they are known, else by
/// size and time: devices and inode numbers differ between a file system and its view elsewhere.
#[must_use]
pub fn same_file(wanted: &FileIdImage, found: &FileIdImage) -> bool {
    if (wanted.device, wanted.inode) == (found.device, found.inode) {
        return true;
    }
    if wanted.homes_numbers && found.homes_numbers {
        return false;
    }
    let same_type = wanted.mode & libc::S_IFMT == found.mode & libc::S_IFMT;
    // A directory's size and time are the file system's business.
    let directory = wanted.mode & libc::S_IFMT == libc::S_IFDIR;
    let device = wanted.mode & libc::S_IFMT == libc::S_IFCHR;
    let same_version = wanted.bytes == found.bytes && wanted.modified_ns == found.modified_ns;
    same_type && (directory || device || same_version)
}

/// openat(2) in the process; the path as the process sees it. The lowest free descriptor.
///
/// # Errors
/// `Call` with open's errno.
pub fn open(frozen: &mut Frozen, path: &Path, flags: i32) -> Result<i32, TraceeError> {
    let path = path_argument(frozen, path)?;
    let args = [libc::AT_FDCWD as u64, path, flags as u64, 0, 0, 0];
    frozen
        .call(0, ("open", libc::SYS_openat), args)
        .map(|fd| fd as i32)
}

/// No link is followed, neither a symbolic one nor one of procfs that leads to a file itself.
const NO_LINKS: ResolveFlag =
    ResolveFlag::RESOLVE_NO_SYMLINKS.union(ResolveFlag::RESOLVE_NO_MAGICLINKS);
/// What openat2(2) takes together with O_PATH.
const PATH_FLAGS: i32 = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;

/// openat2(2) in the process, of a path in one of its own directories. The lowest free descriptor.
fn open_beneath(
    frozen: &mut Frozen,
    (directory, path): (i32, &Path),
    flags: i32,
    resolve: ResolveFlag,
) -> Result<i32, TraceeError> {
    let allowed = if flags & libc::O_PATH != 0 {
        PATH_FLAGS
    } else {
        !0
    };
    // struct open_how (linux/openat2.h): flags, mode, resolve.
    let flags = u64::from((flags & allowed).cast_unsigned());
    let how = [flags, 0, resolve.bits()];
    let mut bytes = how.map(u64::to_ne_bytes).concat();
    bytes.extend(path_bytes(path)?);
    let arguments = frozen.put_arguments(&bytes)?;
    let how_bytes = size_of_val(&how) as u64;
    let directory = u64::from(directory.cast_unsigned());
    let args = [directory, arguments + how_bytes, arguments, how_bytes, 0, 0];
    frozen
        .call(0, ("open", libc::SYS_openat2), args)
        .map(|fd| fd as i32)
}

/// close(2) in the process.
///
/// # Errors
/// `Call`.
pub fn close(frozen: &mut Frozen, fd: i32) -> Result<(), TraceeError> {
    frozen
        .call(0, ("close", libc::SYS_close), [fd as u64, 0, 0, 0, 0, 0])
        .map(drop)
}

/// dup3(2) in the process: `to` becomes another number of `from`'s description.
///
/// # Errors
/// `Call`.
pub fn duplicate(
    frozen: &mut Frozen,
    from: i32,
    to: i32,
    close_on_exec: bool,
) -> Result<(), TraceeError> {
    let flags = if close_on_exec {
        libc::O_CLOEXEC as u64
    } else {
        0
    };
    frozen
        .call(
            0,
            ("dup3", libc::SYS_dup3),
            [from as u64, to as u64, flags, 0, 0, 0],
        )
        .map(drop)
}

/// lseek(2) in the process, to an absolute position.
///
/// # Errors
/// `Call`.
pub fn seek(frozen: &mut Frozen, fd: i32, offset: u64) -> Result<(), TraceeError> {
    let args = [fd as u64, offset, libc::SEEK_SET as u64, 0, 0, 0];
    frozen.call(0, ("lseek", libc::SYS_lseek), args).map(drop)
}

/// fcntl(F_SETFL) in the process.
///
/// # Errors
/// `Call`.
pub fn set_flags(frozen: &mut Frozen, fd: i32, flags: u32) -> Result<(), TraceeError> {
    let args = [fd as u64, libc::F_SETFL as u64, flags.into(), 0, 0, 0];
    frozen.call(0, ("fcntl", libc::SYS_fcntl), args).map(drop)
}

/// chdir(2) in the process.
///
/// # Errors
/// `Call`.
pub fn change_directory(frozen: &mut Frozen, path: &Path) -> Result<(), TraceeError> {
    let path = path_argument(frozen, path)?;
    frozen
        .call(0, ("chdir", libc::SYS_chdir), [path, 0, 0, 0, 0, 0])
        .map(drop)
}

/// A path with its final zero.
fn path_bytes(path: &Path) -> Result<Vec<u8>, TraceeError> {
    let mut bytes = path.as_os_str().to_owned().into_vec();
    bytes.push(0);
    if bytes.len() > PATH_BYTES_MAX {
        let error = io::Error::from_raw_os_error(libc::ENAMETOOLONG);
        return Err(TraceeError::Call {
            call: "open",
            error,
        });
    }
    Ok(bytes)
}

/// Writes a path into the scratch memory.
fn path_argument(frozen: &mut Frozen, path: &Path) -> Result<u64, TraceeError> {
    let bytes = path_bytes(path)?;
    let scratch = frozen.stub()?.scratch;
    frozen.leader()?.stopped.memory().write(scratch, &bytes)?;
    Ok(scratch)
}

/// Opens one descriptor of an image at its number, which must be free; lower ones that are open
/// in the image must be open already. Home's descriptors get a placeholder that can do nothing.
///
/// # Errors
/// `File` when it is not found.
pub fn place_file(
    frozen: &mut Frozen,
    file: &FileImage,
    finder: &Finder,
) -> Result<(), RestoreError> {
    let exec_flag = if file.close_on_exec {
        libc::O_CLOEXEC
    } else {
        0
    };
    if file.same_as > 0 && !file.home {
        duplicate(frozen, file.same_as - 1, file.number, file.close_on_exec)?;
        return Ok(());
    }
    let fd = if file.home {
        open(frozen, Path::new("/dev/null"), libc::O_PATH | exec_flag)?
    } else {
        let inside = (!file.opened_away).then(|| inside_fd(file.number));
        finder.open(
            frozen,
            &file.path,
            file.id.as_ref(),
            inside.as_deref(),
            open_flags(file),
        )?
    };
    settle(frozen, file, fd)?;
    Ok(())
}

/// Takes all free numbers below `number`, so that what is opened next gets that at once; answers
/// which are to be closed afterwards. Closing these is no harm to any lock.
///
/// # Errors
/// `Call` when there are too many open files.
pub fn take_lower(frozen: &mut Frozen, number: i32) -> Result<Vec<i32>, TraceeError> {
    let mut lower = Vec::new();
    loop {
        let fd = open(frozen, Path::new("/"), libc::O_PATH)?;
        if fd >= number {
            close(frozen, fd)?;
            return Ok(lower);
        }
        lower.push(fd);
    }
}

/// As [`place_file`], for a file that is found at this very path.
///
/// # Errors
/// `Call` with open's errno.
pub fn place_file_from(
    frozen: &mut Frozen,
    file: &FileImage,
    path: &Path,
) -> Result<(), TraceeError> {
    let fd = open(frozen, path, open_flags(file))?;
    settle(frozen, file, fd)
}

fn open_flags(file: &FileImage) -> i32 {
    let exec_flag = if file.close_on_exec {
        libc::O_CLOEXEC
    } else {
        0
    };
    (file.flags as i32 & KEPT_FLAGS) | exec_flag
}

/// Gives a file that was opened as `fd` its number and its offset.
fn settle(frozen: &mut Frozen, file: &FileImage, fd: i32) -> Result<(), TraceeError> {
    if fd != file.number {
        duplicate(frozen, fd, file.number, file.close_on_exec)?;
        close(frozen, fd)?;
    }
    let seekable = matches!(file.kind(), FileKind::Regular | FileKind::Directory);
    if !file.home && seekable && file.offset != 0 {
        seek(frozen, file.number, file.offset)?;
    }
    Ok(())
}

fn inside_fd(number: i32) -> PathBuf {
    PathBuf::from(format!("fd/{number}"))
}
