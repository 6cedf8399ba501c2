//! Files that a process of this node holds open, by identity: deleted ones, too.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use proto::v1::DeputyFile;
use proto::v1::deputy_file::What;
use proto::v1::fs_reply::Result as Reply;

use super::answer::{Answer, c_string, reply};
use super::caller::Who;
use super::files::OpenFile;
use super::nodes::Keep;
use super::places::Place;
use super::{Errno, Export, ExportSession};
use omfs_sys::file::{self, Freshness};
use omfs_sys::{lease, process};

/// Descriptors of a deputy that are looked at.
const DESCRIPTORS_MAX: usize = 1024;

impl ExportSession {
    /// Follows one of proc(5)'s magic links, which lead to the inode and not to its name.
    pub(super) fn deputy_file(&self, who: &Who, arg: &DeputyFile) -> Answer {
        let is_others = who.guest_pid().is_some_and(|pid| pid != arg.pid);
        if !who.may_see_deputies || is_others {
            return Err(Errno(libc::EPERM));
        }
        self.export.jobs.check(&self.peer, arg.pid, "its files")?;
        let link = link_name(arg)?;
        let path = c_string(format!("/proc/{}/{link}", arg.pid).as_bytes())?;
        let fd = file::open_at(None, &path, libc::O_PATH, 0)?;
        let place = Place::of_deputy(arg.pid);
        let entry = self.enter(fd, (&self.export.root_mount, &place), Keep::Pinned)?;
        self.nodes.grant(entry.node, Grant::of(arg));
        reply(Reply::Entry(entry))
    }
}

/// What a deputy may do with a file that it holds, whatever its ids: it was opened before they
/// changed, or by another process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Grant {
    pid: i32,
    reads: bool,
    writes: bool,
}

impl Grant {
    fn of(arg: &DeputyFile) -> Self {
        let flags = match arg.what {
            Some(What::Fd(number)) => flags_of(arg.pid, number).unwrap_or(libc::O_PATH),
            Some(What::Cwd(_) | What::Root(_)) => libc::O_PATH,
            _ => libc::O_RDONLY,
        };
        let mode = flags & libc::O_ACCMODE;
        let opened = flags & libc::O_PATH == 0;
        Self {
            pid: arg.pid,
            reads: opened && mode != libc::O_WRONLY,
            writes: opened && mode != libc::O_RDONLY,
        }
    }

    /// Whether the job `pid` may open the file so.
    pub fn covers(&self, pid: i32, flags: i32) -> bool {
        let mode = flags & libc::O_ACCMODE;
        self.pid == pid
            && flags & libc::O_TRUNC == 0
            && (self.reads || mode == libc::O_WRONLY)
            && (self.writes || mode == libc::O_RDONLY)
    }
}

/// Whether a directory is where a process is.
pub(super) fn is_directory_of(pid: i32, directory: BorrowedFd<'_>) -> bool {
    let own = c_string(format!("/proc/{pid}/cwd").as_bytes())
        .and_then(|path| Ok(file::open_at(None, &path, libc::O_PATH, 0)?));
    let stat = file::stat(directory, Freshness::Known);
    matches!((own, stat), (Ok(own), Ok(stat)) if is_inode(&own, (stat.dev, stat.ino)))
}

/// Directories above a working directory that are looked at.
const ABOVE_MAX: usize = 128;

/// Opens a directory that is above the working directory of a process, or is it. The process came
/// there before it had its present ids, which need not suffice to go there again.
pub(super) fn open_on_the_way(pid: i32, parent: BorrowedFd<'_>, name: &CStr) -> Option<OwnedFd> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_DIRECTORY;
    let found = file::open_at(Some(parent), name, flags, 0).ok()?;
    let wanted = file::stat(found.as_fd(), Freshness::Known).ok()?;
    let path = c_string(format!("/proc/{pid}/cwd").as_bytes()).ok()?;
    let mut at = file::open_at(None, &path, libc::O_PATH | libc::O_DIRECTORY, 0).ok()?;
    for _ in 0..ABOVE_MAX {
        if is_inode(&at, (wanted.dev, wanted.ino)) {
            return Some(found);
        }
        at = file::open_at(Some(at.as_fd()), c"..", flags, 0).ok()?;
    }
    None
}

/// The flags of a descriptor, from proc_pid_fdinfo(5).
fn flags_of(pid: i32, number: u32) -> Option<i32> {
    let text = omfs_sys::procfs::text(format!("/proc/{pid}/fdinfo/{number}")).ok()?;
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"))?;
    i32::from_str_radix(flags.trim(), 8).ok()
}

impl ExportSession {
    /// Lets a guest's open file use the deputy's own description from now on, instead of one beside
    /// it, which would keep the file from ever being leased for writing. The deputy does not use it
    /// as long as its guest is away, and descriptions shared with other processes are not opened by
    /// guests. False when there is none that is as good.
    ///
    /// # Errors
    /// `EBADF` for an unknown file; `ENFILE`.
    pub(super) fn adopt(&self, who: &Who, fh: u64) -> Result<bool, Errno> {
        let open = self.files.get(fh)?;
        if open.is_adopted || open.is_flocked.load(Ordering::Acquire) {
            return Ok(false);
        }
        let Some(fd) = who.guest_pid().and_then(|pid| find_description(pid, &open)) else {
            return Ok(false);
        };
        let adopted = OpenFile {
            fd: self.files.count(Arc::new(fd))?,
            _keeps_node: Arc::clone(&open._keeps_node),
            is_regular: open.is_regular,
            is_directory: open.is_directory,
            is_writable: open.is_writable,
            mount: Arc::clone(&open.mount),
            place: Arc::clone(&open.place),
            inode: open.inode,
            dir_offset: Mutex::new(0),
            is_flocked: AtomicBool::new(false),
            is_adopted: true,
            writing: open.writing.clone(),
        };
        self.files.replace(fh, adopted);
        Ok(true)
    }
}

impl Export {
    /// Gives up the leases that an earlier daemon took on a deputy's own descriptions: they have
    /// outlived it, and would make every opener of these files wait for long.
    pub fn forget_leases_of(&self, pid: i32) {
        let numbers = numbers_in(&format!("/proc/{pid}/fd")).take(DESCRIPTORS_MAX);
        for fd in numbers.filter_map(|number| process::same_description(pid, number).ok()) {
            lease::give_up_orphan(fd.as_fd());
        }
    }
}

/// A deputy's description of the same file, opened in the same way.
fn find_description(pid: i32, open: &OpenFile) -> Option<OwnedFd> {
    let wanted = way_of_opening(open.fd())?;
    only_description(pid, open.inode, wanted)
}

/// A process' description of an inode that was opened in a certain way; `None` also when any other
/// process, except this one, has the inode open.
pub(super) fn only_description(pid: i32, inode: (u64, u64), wanted: i32) -> Option<OwnedFd> {
    let found = descriptors_of(pid, inode).find_map(|number| {
        let fd = process::same_description(pid, number).ok()?;
        let is_as_good = is_inode(&fd, inode) && way_of_opening(fd.as_fd()) == Some(wanted);
        is_as_good.then_some(fd)
    })?;
    // Another process may share it, and would be hidden from the kernel's count of descriptions.
    let myself = i32::try_from(std::process::id()).ok()?;
    let mut others = numbers_in("/proc").filter(|other| ![pid, myself].contains(other));
    let is_shared = others.any(|other| descriptors_of(other, inode).next().is_some());
    (!is_shared).then_some(found)
}

/// The descriptors through which a process has an inode open.
fn descriptors_of(pid: i32, inode: (u64, u64)) -> impl Iterator<Item = u32> {
    let numbers = numbers_in(&format!("/proc/{pid}/fd")).take(DESCRIPTORS_MAX);
    numbers.filter(move |number: &u32| {
        let path = c_string(format!("/proc/{pid}/fd/{number}").as_bytes());
        // Opened by path only, and not asked beyond this kernel: it may be a file of omfs itself.
        let fd = path.and_then(|path| Ok(file::open_at(None, &path, libc::O_PATH, 0)?));
        fd.is_ok_and(|fd| is_inode(&fd, inode))
    })
}

/// The names in a directory of procfs that are numbers.
fn numbers_in<T: std::str::FromStr>(directory: &str) -> impl Iterator<Item = T> + use<T> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

fn is_inode(fd: &OwnedFd, inode: (u64, u64)) -> bool {
    file::stat(fd.as_fd(), Freshness::Known).is_ok_and(|stat| (stat.dev, stat.ino) == inode)
}

/// What of open(2)'s flags decides whether one description is as good as another.
fn way_of_opening(fd: BorrowedFd<'_>) -> Option<i32> {
    let flags = file::status_flags(fd).ok()?;
    Some(flags & (libc::O_ACCMODE | libc::O_APPEND))
}

/// # Errors
/// `EINVAL` for what is not exactly one of the links.
fn link_name(arg: &DeputyFile) -> Result<String, Errno> {
    if arg.pid <= 0 {
        return Err(Errno(libc::EINVAL));
    }
    match &arg.what {
        Some(What::Fd(number)) => Ok(format!("fd/{number}")),
        Some(What::MapRange(range)) if is_range(range) => Ok(format!("map_files/{range}")),
        Some(What::Cwd(true)) => Ok("cwd".into()),
        Some(What::Root(true)) => Ok("root".into()),
        Some(What::Exe(true)) => Ok("exe".into()),
        _ => Err(Errno(libc::EINVAL)),
    }
}

fn is_range(text: &str) -> bool {
    let is_address = |text: &str| {
        (1..=16).contains(&text.len())
            && text
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    text.split_once('-')
        .is_some_and(|(start, end)| is_address(start) && is_address(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_known_links_are_followed() {
        let name = |pid, what| link_name(&DeputyFile { pid, what });
        assert_eq!(name(7, Some(What::Fd(3))), Ok("fd/3".into()));
        assert_eq!(name(7, Some(What::Exe(true))), Ok("exe".into()));
        let range = What::MapRange("7f00-7f10".into());
        assert_eq!(name(7, Some(range)), Ok("map_files/7f00-7f10".into()));
        for bad in [
            "",
            "-",
            "../../1/root",
            "7f00-",
            "7f00-7f10/..",
            "7F00-7f10",
            "0x1-0x2",
        ] {
            let what = Some(What::MapRange(bad.into()));
            assert_eq!(name(7, what), Err(Errno(libc::EINVAL)), "{bad}");
        }
        assert_eq!(name(0, Some(What::Fd(3))), Err(Errno(libc::EINVAL)));
        assert_eq!(name(7, Some(What::Cwd(false))), Err(Errno(libc::EINVAL)));
        assert_eq!(name(7, None), Err(Errno(libc::EINVAL)));
    }
}
