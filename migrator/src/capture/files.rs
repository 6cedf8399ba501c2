//! Open descriptors.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, fstatat};

use crate::image::{FileImage, FileKind};
use crate::sys::kcmp;
use crate::tracee::{TraceeError, procfs};

use super::{CaptureError, file_id};

/// Every open descriptor of a process, ascending.
///
/// # Errors
/// See [`CaptureError`].
pub fn open_files(pid: i32) -> Result<Vec<FileImage>, CaptureError> {
    let numbers = procfs::descriptors(pid).map_err(|error| procfs::failed(pid, error))?;
    let mut files = Vec::with_capacity(numbers.len());
    for number in numbers {
        match describe(pid, number) {
            Ok(file) => files.push(file),
            // Closed since it was listed; only when called on a process that runs.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(TraceeError::request("/proc/PID/fd", pid, error).into()),
        }
    }
    mark_duplicates(pid, &mut files);
    mark_shared(pid, &mut files);
    Ok(files)
}

/// One descriptor by itself.
///
/// # Errors
/// `NotFound` when it is closed, and others of /proc.
pub fn describe(pid: i32, number: i32) -> io::Result<FileImage> {
    let link = PathBuf::from(format!("/proc/{pid}/fd/{number}"));
    let target = fs::read_link(&link)?;
    let info = procfs::read_text(format!("/proc/{pid}/fdinfo/{number}"))?;
    let field = |name: &str| {
        info.lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    let flags = field("flags:")
        .and_then(|text| u32::from_str_radix(text, 8).ok())
        .unwrap_or(0);
    let offset = field("pos:")
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    let target = target.as_os_str().as_bytes();
    // Anonymous inodes share one, of which stat tells nothing.
    let id = file_id(&link)?;
    let kind = kind_of(target, &link, id.mode);
    let path = target
        .strip_suffix(b" (deleted)")
        .filter(|_| id.unlinked)
        .unwrap_or(target);
    Ok(FileImage {
        number,
        close_on_exec: flags & libc::O_CLOEXEC as u32 != 0,
        kind: kind.into(),
        flags: flags & !(libc::O_CLOEXEC as u32),
        offset,
        path: path.to_vec(),
        id: Some(id),
        home: !stays_local(kind),
        same_as: 0,
        locked: field("lock:").is_some(),
        opened_away: false,
    })
}

/// Is a file of this kind opened at the host, rather than left to the deputy?
#[must_use]
pub fn stays_local(kind: FileKind) -> bool {
    matches!(
        kind,
        FileKind::Regular | FileKind::Directory | FileKind::LocalDevice
    )
}

fn kind_of(target: &[u8], link: &Path, mode: u32) -> FileKind {
    if let Some(name) = target.strip_prefix(b"anon_inode:") {
        return anonymous_kind(name);
    }
    match mode & libc::S_IFMT {
        libc::S_IFREG | libc::S_IFDIR if is_kernel_file_system(link) => FileKind::Proc,
        libc::S_IFREG => FileKind::Regular,
        libc::S_IFDIR => FileKind::Directory,
        libc::S_IFIFO => FileKind::Pipe,
        libc::S_IFSOCK => FileKind::Socket,
        libc::S_IFCHR => device_kind(link),
        libc::S_IFBLK => FileKind::Device,
        _ if target.starts_with(b"pidfd:") => FileKind::Pidfd,
        _ => FileKind::Other,
    }
}

fn anonymous_kind(name: &[u8]) -> FileKind {
    match name {
        b"[eventfd]" => FileKind::Eventfd,
        b"[eventpoll]" => FileKind::Epoll,
        b"[timerfd]" => FileKind::Timerfd,
        b"[signalfd]" => FileKind::Signalfd,
        b"inotify" | b"[fanotify]" => FileKind::Inotify,
        b"[io_uring]" => FileKind::IoUring,
        b"[userfaultfd]" => FileKind::Userfaultfd,
        b"[pidfd]" => FileKind::Pidfd,
        _ => FileKind::Other,
    }
}

/// Character devices by number (Documentation/admin-guide/devices.txt).
fn device_kind(link: &Path) -> FileKind {
    use std::os::unix::fs::MetadataExt;
    let Ok(data) = fs::metadata(link) else {
        return FileKind::Device;
    };
    match (
        nix::sys::stat::major(data.rdev()),
        nix::sys::stat::minor(data.rdev()),
    ) {
        (1, 3 | 5 | 7 | 8 | 9) => FileKind::LocalDevice,
        (4 | 5 | 136..=143, _) => FileKind::Tty,
        _ => FileKind::Device,
    }
}

/// File systems whose files are windows into this kernel (magic numbers of linux/magic.h).
fn is_kernel_file_system(link: &Path) -> bool {
    const MAGICS: [i64; 9] = [
        0x9fa0,      // proc
        0x6265_6572, // sysfs
        0x0027_e0eb, // cgroup
        0x6367_7270, // cgroup2
        0x6462_6720, // debugfs
        0x7472_6163, // tracefs
        0x7363_6673, // securityfs
        0x1980_0202, // mqueue
        0x1cd1,      // devpts
    ];
    nix::sys::statfs::statfs(link).is_ok_and(|stat| MAGICS.contains(&stat.filesystem_type().0))
}

/// Finds descriptors of one open file description within the process (dup).
fn mark_duplicates(pid: i32, files: &mut [FileImage]) {
    for at in 1..files.len() {
        let (earlier, rest) = files.split_at_mut(at);
        let Some(file) = rest.first_mut() else {
            continue;
        };
        let twin = earlier.iter().find(|other| {
            other.id == file.id
                && other.path == file.path
                && kcmp::same_file(pid, other.number, pid, file.number).unwrap_or(false)
        });
        file.same_as = twin.map_or(0, |twin| twin.number + 1);
    }
}

/// Marks what shares its description, and so its offset, with a process that stays here.
fn mark_shared(pid: i32, files: &mut [FileImage]) {
    let mut wanted: HashMap<(u64, u64), Vec<usize>> = HashMap::new();
    for (index, file) in files.iter().enumerate().filter(|(_, file)| !file.home) {
        if let Some(id) = file
            .id
            .as_ref()
            .filter(|_| file.kind() != FileKind::LocalDevice)
        {
            wanted.entry((id.device, id.inode)).or_default().push(index);
        }
    }
    if wanted.is_empty() {
        return;
    }
    let program_of = |pid: &str| file_id(Path::new(&format!("/proc/{pid}/exe"))).ok();
    let ours = program_of("self");
    for other in procfs::processes().unwrap_or_default() {
        // The daemon and other keepers use no offsets, and have many descriptors.
        if other == pid || ours.is_some() && program_of(&other.to_string()) == ours {
            continue;
        }
        for (number, device_and_inode) in inodes_of(other).unwrap_or_default() {
            for index in wanted.get(&device_and_inode).into_iter().flatten() {
                let Some(file) = files.get_mut(*index) else {
                    continue;
                };
                let same = kcmp::same_file(pid, file.number, other, number);
                file.home |= same.unwrap_or(false);
            }
        }
    }
}

/// Device and inode of each open descriptor. There may be tens of thousands on a node, and the
/// process to be moved stands still meanwhile: so no path is resolved from the root for each.
fn inodes_of(pid: i32) -> io::Result<Vec<(i32, (u64, u64))>> {
    let path = format!("/proc/{pid}/fd");
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut directory = Dir::open(path.as_str(), flags, Mode::empty())?;
    let names: Vec<CString> = directory
        .iter()
        .filter_map(|entry| Some(entry.ok()?.file_name().to_owned()))
        .collect();
    let look = |name: CString| {
        let number = name.to_str().ok()?.parse().ok()?;
        let stat = fstatat(directory.as_fd(), name.as_c_str(), AtFlags::empty()).ok()?;
        Some((number, (stat.st_dev, stat.st_ino)))
    };
    Ok(names.into_iter().filter_map(look).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    type TestResult = Result<(), Box<dyn std::error::Error>>;

    #[test]
    fn kinds_are_told_apart() -> TestResult {
        let me = std::process::id() as i32;
        let (reader, _writer) = nix::unistd::pipe()?;
        let null = fs::File::open("/dev/null")?;
        let maps = fs::File::open("/proc/self/maps")?;
        let directory = fs::File::open("/")?;
        let temporary = tempfile::tempfile()?;
        let kind = |fd: i32| describe(me, fd).map(|file| (file.kind(), file.home));
        assert_eq!(kind(reader.as_raw_fd())?, (FileKind::Pipe, true));
        assert_eq!(kind(null.as_raw_fd())?, (FileKind::LocalDevice, false));
        assert_eq!(kind(maps.as_raw_fd())?, (FileKind::Proc, true));
        assert_eq!(kind(directory.as_raw_fd())?, (FileKind::Directory, false));
        assert_eq!(kind(temporary.as_raw_fd())?, (FileKind::Regular, false));
        let file = describe(me, temporary.as_raw_fd())?;
        assert!(file.close_on_exec && file.id.is_some_and(|id| id.unlinked));
        assert_eq!(file.flags & libc::O_ACCMODE as u32, libc::O_RDWR as u32);
        Ok(())
    }

    #[test]
    fn a_description_shared_with_another_process_stays_home() -> TestResult {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("out");
        let shared = fs::File::create(&path)?;
        let alone = fs::File::open(&path)?;
        let twin = shared.try_clone()?;
        let mut child = std::process::Command::new("sleep")
            .arg("100")
            .stdout(shared.try_clone()?)
            .spawn()?;
        let files = open_files(std::process::id() as i32)?;
        let find = |fd: i32| files.iter().find(|file| file.number == fd).cloned();
        child.kill()?;
        child.wait()?;
        let shared_image = find(shared.as_raw_fd()).ok_or("shared")?;
        let alone_image = find(alone.as_raw_fd()).ok_or("alone")?;
        let twin_image = find(twin.as_raw_fd()).ok_or("twin")?;
        assert!(shared_image.home && twin_image.home && !alone_image.home);
        let (first, second) = if shared.as_raw_fd() < twin.as_raw_fd() {
            (&shared_image, &twin_image)
        } else {
            (&twin_image, &shared_image)
        };
        assert_eq!((second.same_as, first.same_as), (first.number + 1, 0));
        assert_eq!(alone_image.same_as, 0);
        Ok(())
    }
}
