//! Whether a file that was opened for a guest is the one that the image means.
//!
//! The deputy holds every file of the image open, so home cannot give its device and inode number to
//! another file meanwhile: they tell one file from all others, as home tells them.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::capture::file_id;
use crate::image::{FileIdImage, LOCAL_DEVICES};
use crate::numbers::HomeNumbers;

/// Where guests have their host's view of all nodes.
const ALL_NODES: &[u8] = b"/mfs/";
/// Where they have devices of the host's own.
const OWN_DEVICES: &[u8] = b"/dev/";

/// Which file of a guest-to-be is meant.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'i> {
    /// As home names it.
    pub(super) path: &'i [u8],
    pub(super) id: &'i FileIdImage,
}

/// How the file was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// By its name.
    ByName,
    /// As the one that the deputy has open.
    AtDeputy,
}

/// Whether the descriptor behind `link` (of /proc/PID/fd) is the wanted file.
///
/// # Errors
/// ESTALE when it is another one; what stat(2) says.
pub(super) fn check(
    link: &Path,
    wanted: Wanted<'_>,
    how: Found,
    numbers: &HomeNumbers,
) -> io::Result<()> {
    let found = file_id(link)?;
    let right = if is_kind(wanted.id.mode, libc::S_IFCHR) {
        how == Found::ByName && is_own_device(wanted.path, link)?
    } else {
        same_kind(wanted.id, &found) && is_wanted(wanted, &found, how, numbers)
    };
    if right {
        return Ok(());
    }
    Err(io::Error::from_raw_os_error(libc::ESTALE))
}

fn is_wanted(
    Wanted { path, id }: Wanted<'_>,
    found: &FileIdImage,
    how: Found,
    numbers: &HomeNumbers,
) -> bool {
    if !numbers.differ() {
        return (id.device, id.inode) == (found.device, found.inode);
    }
    if !numbers.is_view(found.device) {
        return false;
    }
    if path.starts_with(ALL_NODES) {
        return how == Found::AtDeputy || is_seen_alike(id, found);
    }
    if !id.homes_numbers {
        // It was opened at another host, whose numbers it has; the deputy has opened it since.
        return how == Found::AtDeputy;
    }
    numbers.at_home(found.device, found.inode) == Some((id.device, id.inode))
}

/// Below /mfs a file has the same number on all nodes, and a directory one for each of its names
/// (`here`, `home`, the node's name), of which the image has the last.
fn is_seen_alike(wanted: &FileIdImage, found: &FileIdImage) -> bool {
    let version = |id: &FileIdImage| (id.bytes, id.modified_ns, id.mode);
    let is_directory = is_kind(wanted.mode, libc::S_IFDIR);
    wanted.inode == found.inode || is_directory && version(wanted) == version(found)
}

fn same_kind(wanted: &FileIdImage, found: &FileIdImage) -> bool {
    wanted.mode & libc::S_IFMT == found.mode & libc::S_IFMT
}

fn is_kind(mode: u32, kind: u32) -> bool {
    mode & libc::S_IFMT == kind
}

/// Whether it is one of the devices that the host gives to its guests, under its own name.
fn is_own_device(path: &[u8], link: &Path) -> io::Result<bool> {
    let name = path.strip_prefix(OWN_DEVICES);
    let known = LOCAL_DEVICES
        .iter()
        .any(|device| name == Some(device.as_bytes()));
    let found = std::fs::metadata(link)?;
    let own = Path::new("/dev").join(String::from_utf8_lossy(name.unwrap_or_default()).as_ref());
    Ok(known
        && is_kind(found.mode(), libc::S_IFCHR)
        && found.rdev() == std::fs::metadata(own)?.rdev())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    type TestResult = Result<(), Box<dyn std::error::Error>>;

    fn is_found(path: &str, id: &FileIdImage, opened: &std::fs::File) -> bool {
        let link = format!("/proc/self/fd/{}", opened.as_raw_fd());
        let wanted = Wanted {
            path: path.as_bytes(),
            id,
        };
        let numbers = HomeNumbers::default();
        check(Path::new(&link), wanted, Found::ByName, &numbers).is_ok()
    }

    #[test]
    fn size_and_time_make_no_file_another_one() -> TestResult {
        let directory = tempfile::tempdir()?;
        let path = |name: &str| directory.path().join(name);
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        for name in ["one", "other"] {
            std::fs::write(path(name), "content")?;
            std::fs::File::options()
                .write(true)
                .open(path(name))?
                .set_modified(time)?;
        }
        let id = file_id(&path("one"))?;
        let name = path("one").display().to_string();
        assert!(is_found(&name, &id, &std::fs::File::open(path("one"))?));
        assert!(!is_found(&name, &id, &std::fs::File::open(path("other"))?));
        std::fs::create_dir(path("directory"))?;
        let id = file_id(&path("directory"))?;
        assert!(!is_found(
            &name,
            &id,
            &std::fs::File::open(directory.path())?
        ));
        Ok(())
    }

    #[test]
    fn a_device_is_the_hosts_own_of_that_name() -> TestResult {
        let null = std::fs::File::open("/dev/null")?;
        let id = file_id(Path::new("/dev/null"))?;
        assert!(is_found("/dev/null", &id, &null));
        assert!(!is_found("/dev/zero", &id, &null));
        assert!(!is_found("/dev/kmsg", &id, &null));
        assert!(!is_found("/srv/null", &id, &null));
        Ok(())
    }
}
