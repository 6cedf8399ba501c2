//! Paths that mean home whatever the root is: /proc, /sys, terminals.

use std::path::{Component, Path, PathBuf};

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use super::decide::Guest;
use super::fds::FdKind;
use crate::homecall::{HomeCallError, Memory};
use crate::image::LOCAL_DEVICES;

/// Files that are links to /proc.
const LINKS: [&str; 1] = ["/etc/mtab"];

/// Reads a path from the guest's memory.
///
/// # Errors
/// [`HomeCallError::Fault`].
pub fn read(address: u64, memory: &dyn Memory) -> Result<PathBuf, HomeCallError> {
    let path = memory.read_string(address)?;
    Ok(OsString::from_vec(path).into())
}

/// Whether what is under this path is home's, wherever the process is.
#[must_use]
pub fn means_home(path: &Path) -> bool {
    if !path.is_absolute() {
        return false;
    }
    let plain = normal(path);
    if LINKS.iter().any(|link| plain == Path::new(link)) {
        return true;
    }
    let mut parts = plain.iter().skip(1);
    let first = parts.next().and_then(|part| part.to_str());
    match first {
        Some("proc" | "sys") => true,
        Some("dev") => match parts.next().and_then(|part| part.to_str()) {
            Some(name) => name != "shm" && !LOCAL_DEVICES.contains(&name),
            None => true,
        },
        _ => false,
    }
}

/// Whether a call of this number opens what it names.
#[must_use]
pub fn opens(number: u32) -> bool {
    matches!(
        i64::from(number),
        libc::SYS_open | libc::SYS_creat | libc::SYS_openat | libc::SYS_openat2
    )
}

/// Whether a call goes home for this path. What is opened is home's in any case: it may be what
/// the process sees of itself.
#[must_use]
pub fn is_home(path: &Path, opens: bool, guest: Guest<'_>) -> bool {
    means_home(path) && (opens || !is_the_guests_own(path, guest))
}

/// Whether a path that means home leads to what only the guest's own kernel can tell: a file that
/// the process has opened here, its working directory, its memory.
#[must_use]
pub fn is_the_guests_own(path: &Path, guest: Guest<'_>) -> bool {
    let plain = normal(path);
    let parts: Vec<&str> = plain
        .iter()
        .skip(1)
        .filter_map(|part| part.to_str())
        .collect();
    let opened_here = |number: &str| {
        let number = number.parse::<u32>();
        number.is_ok_and(|number| guest.fds.kind(number.into()) == FdKind::Local)
    };
    let itself = |name: &str| {
        let id = |name: &str| name.parse().is_ok_and(|id| guest.threads.contains(&id));
        matches!(name, "self" | "thread-self") || id(name)
    };
    let inside = match parts.as_slice() {
        ["proc", name, "task", _, inside @ ..] if itself(name) => inside,
        ["proc", name, inside @ ..] if itself(name) => inside,
        ["dev", "fd", number, ..] => return opened_here(number),
        ["dev", "stdin"] => return opened_here("0"),
        ["dev", "stdout"] => return opened_here("1"),
        ["dev", "stderr"] => return opened_here("2"),
        _ => return false,
    };
    match inside {
        ["fd" | "fdinfo", number, ..] => opened_here(number),
        ["cwd" | "root" | "map_files", ..] => true,
        _ => false,
    }
}

/// Without `.`, `..` and double slashes; links are not followed.
fn normal(path: &Path) -> PathBuf {
    let mut plain = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => {
                plain.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::super::fds::FdTable;
    use super::*;

    #[test]
    fn what_means_home_is_told_from_files() {
        for home in [
            "/proc/self/maps",
            "/proc",
            "//proc/./cpuinfo",
            "/usr/../sys/class",
            "/dev/tty",
            "/dev/pts/0",
            "/dev/../dev/stdin",
            "/dev",
            "/etc/mtab",
        ] {
            assert!(means_home(Path::new(home)), "{home}");
        }
        for file in [
            "/dev/null",
            "/dev/shm/x",
            "/procfs",
            "/home/proc/x",
            "proc",
            "",
            "/",
        ] {
            assert!(!means_home(Path::new(file)), "{file}");
        }
    }

    #[test]
    fn what_the_guest_has_opened_is_its_own() {
        let fds = FdTable::new([(0, FdKind::Home), (3, FdKind::Shared)]);
        let guest = Guest {
            fds: &fds,
            threads: &[100, 101],
        };
        for (path, own) in [
            ("/proc/self/fd/5", true),
            ("/proc/self/fd/0", false),
            ("/proc/self/fd/3", false),
            ("/proc/100/fd/5/below", true),
            ("/proc/100/task/101/fdinfo/5", true),
            ("/proc/thread-self/cwd", true),
            ("/proc/102/cwd", false),
            ("/proc/self", false),
            ("/proc/self/exe", false),
            ("/dev/fd/7", true),
            ("/dev/stdin", false),
            ("/dev/tty", false),
        ] {
            assert_eq!(is_the_guests_own(Path::new(path), guest), own, "{path}");
        }
    }
}
