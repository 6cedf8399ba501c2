//! Files that a process of this node holds open, by identity: deleted ones, too.

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
use super::{Errno, Export, ExportSession};
use omfs_sys::file::{self, Freshness};
use omfs_sys::{lease, process};

/// Descriptors of a deputy that are looked at.
const DESCRIPTORS_MAX: usize = 1024;

impl ExportSession {
    /// Follows one of proc(5)'s magic links, which lead to the inode and not to its name.
    pub(super) fn deputy_file(&self, who: &Who, arg: &DeputyFile) -> Answer {
        let is_others = who.guest_pid.is_some_and(|pid| pid != arg.pid);
        if !who.may_see_deputies || is_others {
            return Err(Errno(libc::EPERM));
        }
        self.export.jobs.check(&self.peer, arg.pid, "its files")?;
        let link = link_name(arg)?;
        let path = c_string(format!("/proc/{}/{link}", arg.pid).as_bytes())?;
        let fd = file::open_at(None, &path, libc::O_PATH, 0)?;
        let mount = Arc::clone(&self.export.root_mount);
        reply(Reply::Entry(self.enter(fd, &mount, Keep::Pinned)?))
    }
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
        let Some(fd) = who.guest_pid.and_then(|pid| find_description(pid, &open)) else {
            return Ok(false);
        };
        let adopted = OpenFile {
            fd: self.files.count(Arc::new(fd))?,
            _keeps_node: Arc::clone(&open._keeps_node),
            is_regular: open.is_regular,
            is_writable: open.is_writable,
            mount: Arc::clone(&open.mount),
            inode: open.inode,
            dir_offset: Mutex::new(0),
            is_flocked: AtomicBool::new(false),
            is_adopted: true,
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
    let found = descriptors_of(pid, open.inode).find_map(|number| {
        let fd = process::same_description(pid, number).ok()?;
        let is_as_good = is_inode(&fd, open.inode) && way_of_opening(fd.as_fd()) == Some(wanted);
        is_as_good.then_some(fd)
    })?;
    // Another process may share it, and would be hidden from the kernel's count of descriptions.
    let myself = i32::try_from(std::process::id()).ok()?;
    let mut others = numbers_in("/proc").filter(|other| ![pid, myself].contains(other));
    let is_shared = others.any(|other| descriptors_of(other, open.inode).next().is_some());
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
