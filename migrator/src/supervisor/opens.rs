//! Where a path at the host leads that does not name home: through links, or from a directory.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::{SFlag, fstat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, SYSFS_MAGIC, fstatfs};

use super::decide::{Guest, Trapped};
use super::named::{Named, named};
use super::paths;
use crate::homecall::{HomeCallError, Memory};
use crate::sys::file_ids::{FileIds, assume};
use crate::tracee::procfs::Status;

/// As many links as the kernel follows (path_resolution(7)).
const LINKS_MAX: u32 = 40;
/// Where a guest has its host's view of all nodes.
const MFS: &str = "/mfs";
/// Where a path lies that was made absolute: no process has memory there.
const PATH_PLACE: u64 = 1 << 63;

/// What a guest sees.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'g> {
    pub(super) guest: Guest<'g>,
    /// Its PID here.
    pub(super) host_pid: i32,
    /// Its root directory.
    pub(super) root: BorrowedFd<'g>,
}

/// How closely a path is looked at: asking for names is slow here, they are home's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Look {
    /// Whether it names home's by its text, or by the directory it starts at.
    Text,
    /// Whether it leads there also by links, or to what is opened at home.
    Links,
    /// The same, when the kernel here has not found it.
    LinksOfLost,
}

/// Whether a call names what is home's: something in its /proc or /sys, a terminal; or opens
/// what is there, a FIFO or a device.
pub(super) fn leads_home(call: &Trapped, look: Look, view: View<'_>, memory: &dyn Memory) -> bool {
    let opens = paths::opens(call.number);
    let named = named(call, memory).unwrap_or_default(); // the kernel here says what is wrong
    named.iter().any(|one| view.leads_home(one, opens, look))
}

impl View<'_> {
    fn leads_home(&self, one: &Named, opens: bool, look: Look) -> bool {
        if one.starts_at_home(self.guest) {
            return true;
        }
        let Some(path) = self.absolute(one) else {
            return false;
        };
        let is_home = |path: &Path| paths::is_home(path, opens, self.guest);
        if paths::means_home(&path) {
            return is_home(&path);
        }
        if look == Look::Text || path.starts_with(MFS) && !opens {
            return false;
        }
        let Some(ids) = self.file_ids() else {
            return false; // it is gone
        };
        let search = Search {
            root: self.root,
            ids: &ids,
            is_home: &is_home,
            opens,
        };
        match look {
            Look::LinksOfLost => search.meets_link(&path) && search.passes_home(&path, one.follows),
            _ => search.ends_at_home(&path, one.follows),
        }
    }

    /// What it may look at: no more than that is looked at for it.
    fn file_ids(&self) -> Option<FileIds> {
        let status = Status::read(self.host_pid).ok()?;
        let ids = |name: &str| {
            status
                .numbers(name)
                .into_iter()
                .map(|id| u32::try_from(id).ok())
        };
        Some(FileIds {
            uid: ids("Uid").nth(3)??,
            gid: ids("Gid").nth(3)??,
            groups: ids("Groups").collect::<Option<_>>()?,
        })
    }

    /// A path from the guest's root; `None` if it names the directory itself, which is no path.
    fn absolute(&self, one: &Named) -> Option<PathBuf> {
        if one.path.is_absolute() {
            return Some(one.path.clone());
        }
        let host_pid = self.host_pid;
        let base = match one.directory {
            Some(number) => format!("/proc/{host_pid}/fd/{number}"),
            None => format!("/proc/{host_pid}/cwd"),
        };
        if one.path.as_os_str().is_empty() {
            return None;
        }
        Some(std::fs::read_link(base).ok()?.join(&one.path))
    }

    /// A call as home has to make it: its own working directory is another.
    pub(super) fn as_home_makes_it<'m>(
        &self,
        call: &Trapped,
        memory: &'m dyn Memory,
    ) -> (Trapped, Renamed<'m>) {
        let (mut call, mut path) = (*call, None);
        let named = named(&call, memory).unwrap_or_default();
        let relative = named
            .iter()
            .find(|one| one.path.is_relative() && !one.starts_at_home(self.guest));
        if let Some(one) = relative
            && let Some(absolute) = self.absolute(one)
            && let Some(argument) = call.args.get_mut(usize::from(one.argument))
        {
            *argument = PATH_PLACE;
            path = Some(absolute.into_os_string().into_vec());
        }
        (call, Renamed { memory, path })
    }
}

/// A guest's memory, and a path beyond it.
pub(super) struct Renamed<'m> {
    memory: &'m dyn Memory,
    path: Option<Vec<u8>>,
}

impl Memory for Renamed<'_> {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), HomeCallError> {
        self.memory.read(address, into)
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), HomeCallError> {
        self.memory.write(address, bytes)
    }

    fn read_string(&self, address: u64) -> Result<Vec<u8>, HomeCallError> {
        match &self.path {
            Some(path) if address == PATH_PLACE => Ok(path.clone()),
            _ => self.memory.read_string(address),
        }
    }
}

/// How it is found out where a path leads.
struct Search<'s> {
    root: BorrowedFd<'s>,
    ids: &'s FileIds,
    is_home: &'s dyn Fn(&Path) -> bool,
    opens: bool,
}

impl Search<'_> {
    fn find(&self, path: &Path, follows: bool) -> nix::Result<OwnedFd> {
        let last = if follows {
            OFlag::empty()
        } else {
            OFlag::O_NOFOLLOW
        };
        self.resolve(path, last, ResolveFlag::empty())
    }

    fn resolve(&self, path: &Path, last: OFlag, resolve: ResolveFlag) -> nix::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC | last)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | resolve);
        let _as_guest = assume(self.ids).map_err(|_| Errno::EACCES)?;
        openat2(self.root, path, how)
    }

    /// Whether there is a link on the way, the last name included.
    fn meets_link(&self, path: &Path) -> bool {
        let found = self.resolve(path, OFlag::O_NOFOLLOW, ResolveFlag::RESOLVE_NO_SYMLINKS);
        match found {
            Ok(_) => true,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) => false,
            Err(error) => !is_unanswered(error),
        }
    }

    fn ends_at_home(&self, path: &Path, follows: bool) -> bool {
        match self.find(path, follows) {
            // No device can be opened there, neither here nor at home, and `here` is this node.
            Ok(found) if path.starts_with(MFS) => is_fifo(&found),
            Ok(found) => is_in_kernel(&found) || self.opens && is_homes(&found),
            Err(error) => !is_unanswered(error) && self.passes_home(path, follows),
        }
    }

    /// Of a path that leads nowhere here: the guest's /proc has nothing for others, nor its /dev
    /// all of home's. What does not exist is not home's, unless a link on the way says so.
    fn passes_home(&self, path: &Path, follows: bool) -> bool {
        let (mut path, mut follows) = (path.to_owned(), follows);
        for _ in 0..LINKS_MAX {
            let Some(parent) = path.parent().map(Path::to_owned) else {
                return false;
            };
            let link = follows.then(|| self.find(&path, false)).transpose();
            if link.as_ref().is_err_and(|error| is_unanswered(*error)) {
                return false;
            }
            let link = link.ok().flatten();
            match link.and_then(|link| readlinkat(&link, "").ok()) {
                Some(target) => path = parent.join(Path::new(&target)),
                None => match self.find(&parent, true) {
                    Ok(parent) => return is_in_kernel(&parent),
                    Err(error) if is_unanswered(error) => return false,
                    Err(_) => (path, follows) = (parent, true),
                },
            }
            if (self.is_home)(&path) {
                return true;
            }
        }
        false
    }
}

/// Whether nobody was there to say what a name means. Each question takes half a minute then, and
/// the guest's keeper has others to hear meanwhile.
fn is_unanswered(error: Errno) -> bool {
    use Errno::{EHOSTDOWN, EINTR, EIO, ENOTCONN, ESTALE, ETIMEDOUT};
    matches!(
        error,
        EHOSTDOWN | EINTR | EIO | ENOTCONN | ESTALE | ETIMEDOUT
    )
}

fn is_fifo(found: &OwnedFd) -> bool {
    fstat(found).is_ok_and(|stat| stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFIFO.bits())
}

fn is_homes(found: &OwnedFd) -> bool {
    let Ok(stat) = fstat(found) else { return false };
    match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFIFO | SFlag::S_IFBLK => true,
        SFlag::S_IFCHR => !is_local_device(stat.st_rdev),
        _ => false,
    }
}

/// A window into the kernel here.
fn is_in_kernel(found: &OwnedFd) -> bool {
    let windows = [PROC_SUPER_MAGIC, SYSFS_MAGIC];
    fstatfs(found).is_ok_and(|statfs| windows.contains(&statfs.filesystem_type()))
}

/// null, zero, full, random, urandom: the host's own (Documentation/admin-guide/devices.txt).
fn is_local_device(device: u64) -> bool {
    libc::major(device) == 1 && [3, 5, 7, 8, 9].contains(&libc::minor(device))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::sys::stat::Mode;

    use super::super::fds::{FdKind, FdTable};
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
            ("/proc/4194305", "to-4194305"),
            ("/dev/null", "to-null"),
            ("/absent", "to-nothing"),
        ] {
            std::os::unix::fs::symlink(target, at(name))?;
        }
        let root = root()?;
        let fds = FdTable::default();
        let ids = own_view(&fds, &root).file_ids().ok_or("no ids")?;
        let search = |opens| Search {
            root: root.as_fd(),
            ids: &ids,
            is_home: &paths::means_home,
            opens,
        };
        let leads = |name: &str| search(true).ends_at_home(&at(name), true);
        for name in ["fifo", "to-fifo", "to-proc", "to-nobody", "to-that"] {
            assert!(leads(name), "{name}");
        }
        for name in ["file", "to-file", "to-null", "to-nothing", "absent"] {
            assert!(!leads(name), "{name}");
        }
        assert!(!search(true).ends_at_home(&at("to-fifo"), false));
        let asks = |name: &str| search(false).ends_at_home(&at(name), true);
        for name in ["to-proc", "to-nobody", "to-that", "to-4194305/status"] {
            assert!(asks(name) && search(false).meets_link(&at(name)), "{name}");
        }
        assert!(!search(false).meets_link(&at("absent/file")));
        for name in [
            "fifo",
            "to-fifo",
            "file",
            "to-nothing",
            "absent/file",
            "file/below",
        ] {
            assert!(!asks(name), "{name}");
        }
        Ok(())
    }

    fn root() -> nix::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        nix::fcntl::open("/", flags, Mode::empty())
    }

    /// What this process sees, with these descriptors.
    fn own_view<'g>(fds: &'g FdTable, root: &'g OwnedFd) -> View<'g> {
        View {
            guest: Guest { fds, threads: &[1] },
            host_pid: std::process::id().cast_signed(),
            root: root.as_fd(),
        }
    }

    #[test]
    fn a_relative_path_starts_at_its_directory() -> TestResult {
        let (root, fds) = (root()?, FdTable::new([(0, FdKind::Home)]));
        let view = own_view(&fds, &root);
        let named = |directory, path: &str| Named {
            directory,
            path: path.into(),
            argument: 0,
            follows: true,
        };
        let absolute = view.absolute(&named(None, "tty"));
        assert_eq!(absolute, Some(std::env::current_dir()?.join("tty")));
        assert_eq!(view.absolute(&named(Some(-1), "tty")), None);
        let absolute = view.absolute(&named(Some(-1), "/dev/tty"));
        assert_eq!(absolute, Some("/dev/tty".into()));
        for look in [Look::Text, Look::Links, Look::LinksOfLost] {
            assert!(view.leads_home(&named(Some(0), "tty"), false, look));
            assert!(!view.leads_home(&named(Some(0), "/tmp"), false, look));
            assert!(!view.leads_home(&named(Some(-1), ""), false, look));
        }
        Ok(())
    }

    #[test]
    fn home_is_told_the_whole_path() -> TestResult {
        let (root, fds) = (root()?, FdTable::default());
        let view = own_view(&fds, &root);
        let own = crate::tracee::Memory::of(std::process::id().cast_signed());
        let path = c"some/tty".as_ptr().expose_provenance() as u64;
        let call = Trapped {
            number: u32::try_from(libc::SYS_access)?,
            arch: 0,
            args: [path, 4, 0, 0, 0, 0],
        };
        let (call, memory) = view.as_home_makes_it(&call, &own);
        let gathered = crate::homecall::gather::gather(1, call.number, call.args, &memory)?;
        let wanted = std::env::current_dir()?.join("some/tty");
        let text = [wanted.into_os_string().into_vec(), vec![0]].concat();
        assert_eq!(gathered.payload, text);
        Ok(())
    }
}
