//! Paths that mean home whatever the root is: /proc, /sys, terminals.

use std::path::{Component, Path, PathBuf};

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use crate::homecall::{HomeCallError, Memory};

/// Longest path, as everywhere in Linux.
const PATH_BYTES_MAX: usize = 4096;
/// Devices that are the same everywhere.
const LOCAL_DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];
/// Files that are links to /proc.
const LINKS: [&str; 1] = ["/etc/mtab"];

/// Reads a path from the guest's memory.
///
/// # Errors
/// [`HomeCallError::Fault`].
pub fn read(address: u64, memory: &dyn Memory) -> Result<PathBuf, HomeCallError> {
    let mut path = Vec::new();
    while path.len() < PATH_BYTES_MAX {
        // Up to the end of the page: what follows may not be mapped.
        let at = address.wrapping_add(path.len() as u64);
        let room = usize::try_from(4096 - at % 4096).unwrap_or(4096).min(256);
        let mut piece = vec![0; room];
        memory.read(at, &mut piece)?;
        match piece.iter().position(|byte| *byte == 0) {
            Some(end) => {
                path.extend(piece.into_iter().take(end));
                return Ok(OsString::from_vec(path).into());
            }
            None => path.extend(piece),
        }
    }
    Ok(OsString::from_vec(path).into()) // ENAMETOOLONG is the kernel's to say
}

/// Whether opening this path has to happen at home.
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
            None => false,
        },
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
            "/etc/mtab",
        ] {
            assert!(means_home(Path::new(home)), "{home}");
        }
        for file in [
            "/dev/null",
            "/dev/shm/x",
            "/dev",
            "/procfs",
            "/home/proc/x",
            "proc",
            "",
            "/",
        ] {
            assert!(!means_home(Path::new(file)), "{file}");
        }
    }
}
