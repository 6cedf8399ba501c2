//! Where an open at the host leads that does not name home: through links, or from a directory.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2, readlinkat};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, SYSFS_MAGIC, fstatfs};

use super::decide::Trapped;
use super::fds::{FdKind, FdTable, fd_argument};
use super::paths;
use crate::homecall::Memory;

/// As many links as the kernel follows (path_resolution(7)).
const LINKS_MAX: u32 = 40;
/// Where a guest has its host's view of all nodes.
const MFS: &str = "/mfs";

/// What a call is to open.
struct Opening {
    /// `None`: the working directory.
    directory: Option<i32>,
    path: PathBuf,
    follows: bool,
}

impl Opening {
    /// `None` for other calls, and for a path that cannot be read: the kernel here says so.
    fn of(call: &Trapped, memory: &dyn Memory) -> Option<Self> {
        let [first, second, third, ..] = call.args;
        let (directory, address, flags) = match i64::from(call.number) {
            libc::SYS_open => (libc::AT_FDCWD, first, fd_argument(second)),
            libc::SYS_creat => (libc::AT_FDCWD, first, 0),
            libc::SYS_openat => (fd_argument(first), second, fd_argument(third)),
            libc::SYS_openat2 => {
                let flags = fd_argument(memory.read_u64(third).ok()?);
                (fd_argument(first), second, flags)
            }
            _ => return None,
        };
        Some(Self {
            directory: (directory != libc::AT_FDCWD).then_some(directory),
            path: paths::read(address, memory).ok()?,
            follows: flags & libc::O_NOFOLLOW == 0,
        })
    }

    /// The path from the guest's root.
    fn absolute(&self, host_pid: i32) -> Option<PathBuf> {
        if self.path.is_absolute() {
            return Some(self.path.clone());
        }
        let base = match self.directory {
            Some(number) => format!("/proc/{host_pid}/fd/{number}"),
            None => format!("/proc/{host_pid}/cwd"),
        };
        Some(std::fs::read_link(base).ok()?.join(&self.path))
    }
}

/// Whether a call opens what is home's: something in its /proc or /sys, a FIFO, a device.
pub(super) fn leads_home(
    call: &Trapped,
    fds: &FdTable,
    memory: &dyn Memory,
    host_pid: i32,
) -> bool {
    let Some(opening) = Opening::of(call, memory) else {
        return false;
    };
    let is_home = |fd: i32| fds.kind(u64::from(fd.cast_unsigned())) == FdKind::Home;
    if opening.path.is_relative() && opening.directory.is_some_and(is_home) {
        return true;
    }
    let Some(path) = opening.absolute(host_pid) else {
        return false;
    };
    if paths::means_home(&path) {
        return true;
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = format!("/proc/{host_pid}/root");
    let Ok(root) = open(Path::new(&root), flags, Mode::empty()) else {
        return false;
    };
    ends_at_home(&root, &path, opening.follows)
}

/// As seen from a root directory; what does not exist is not home's, unless a link says so.
fn ends_at_home(root: &OwnedFd, path: &Path, follows: bool) -> bool {
    let find = |path: &Path, follows: bool| {
        let last = if follows {
            OFlag::empty()
        } else {
            OFlag::O_NOFOLLOW
        };
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC | last)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT);
        openat2(root, path, how)
    };
    match find(path, follows) {
        // No device can be opened there, neither here nor at home, and `here` is this node.
        Ok(found) if path.starts_with(MFS) => is_fifo(&found),
        Ok(found) => is_homes(&found),
        Err(_) if !follows => false,
        // The guest's /proc has nothing for others, nor its /dev all of home's.
        Err(_) => {
            let mut path = path.to_owned();
            for _ in 0..LINKS_MAX {
                let link = find(&path, false);
                let Ok(target) = link.and_then(|link| readlinkat(&link, "")) else {
                    return false;
                };
                let directory = path.parent().unwrap_or(Path::new("/"));
                path = directory.join(Path::new(&target));
                if paths::means_home(&path) {
                    return true;
                }
            }
            false
        }
    }
}

fn is_fifo(found: &OwnedFd) -> bool {
    fstat(found).is_ok_and(|stat| stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFIFO.bits())
}

fn is_homes(found: &OwnedFd) -> bool {
    let Ok(stat) = fstat(found) else { return false };
    match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFIFO | SFlag::S_IFBLK => true,
        SFlag::S_IFCHR => !is_local_device(stat.st_rdev),
        SFlag::S_IFREG | SFlag::S_IFDIR => fstatfs(found).is_ok_and(|statfs| {
            [PROC_SUPER_MAGIC, SYSFS_MAGIC].contains(&statfs.filesystem_type())
        }),
        _ => false,
    }
}

/// null, zero, full, random, urandom: the host's own (Documentation/admin-guide/devices.txt).
fn is_local_device(device: u64) -> bool {
    libc::major(device) == 1 && [3, 5, 7, 8, 9].contains(&libc::minor(device))
}

#[cfg(test)]
mod tests {
    use super::*;

    type TestResult = Result<(), Box<dyn std::error::Error>>;

    #[test]
    fn links_fifos_and_directories_are_seen_through() -> TestResult {
        let directory = tempfile::tempdir()?;
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("file"), "")?;
        nix::unistd::mkfifo(&at("fifo"), Mode::S_IRUSR)?;
        for (target, name) in [
            ("file", "to-file"),
            ("fifo", "to-fifo"),
            ("/proc/self/status", "to-proc"),
            ("/proc/4194305/status", "to-nobody"),
            ("to-nobody", "to-that"),
            ("/dev/null", "to-null"),
            ("/absent", "to-nothing"),
        ] {
            std::os::unix::fs::symlink(target, at(name))?;
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let root = open("/", flags, Mode::empty())?;
        let leads = |name: &str| ends_at_home(&root, &at(name), true);
        for name in ["fifo", "to-fifo", "to-proc", "to-nobody", "to-that"] {
            assert!(leads(name), "{name}");
        }
        for name in ["file", "to-file", "to-null", "to-nothing", "absent"] {
            assert!(!leads(name), "{name}");
        }
        assert!(!ends_at_home(&root, &at("to-fifo"), false));
        Ok(())
    }

    #[test]
    fn a_relative_path_starts_at_its_directory() {
        let opening = |directory, path: &str| Opening {
            directory,
            path: path.into(),
            follows: true,
        };
        let pid = std::process::id().cast_signed();
        let absolute = opening(None, "tty").absolute(pid);
        assert_eq!(
            absolute,
            std::env::current_dir().ok().map(|d| d.join("tty"))
        );
        assert_eq!(opening(Some(-1), "tty").absolute(pid), None);
        let absolute = opening(Some(-1), "/dev/tty").absolute(pid);
        assert_eq!(absolute, Some("/dev/tty".into()));
    }
}
