//! The guest's file system: home's tree, with the few things that are the host's own.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::SupervisorConfig;

/// Devices that are the same everywhere.
const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];

/// Begins the name of every directory that a cage is mounted on; the supervisor's PID follows.
const DIRECTORY_PREFIX: &str = "omfs-guest-";

/// Removes what supervisors have left behind that were killed before their cage was sealed; answers
/// how many. Nothing but empty directories of processes that are gone.
pub fn sweep() -> usize {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else {
        return 0;
    };
    let left_behind = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        let rest = name.to_str()?.strip_prefix(DIRECTORY_PREFIX)?;
        let pid: u32 = rest.split_once('-')?.0.parse().ok()?;
        (!Path::new("/proc").join(pid.to_string()).exists()).then_some(())
    };
    entries
        .flatten()
        .filter(|entry| left_behind(entry).is_some())
        .filter(|entry| fs::remove_dir(entry.path()).is_ok())
        .count()
}

/// A new empty directory to mount on.
pub(super) fn temporary_directory() -> io::Result<PathBuf> {
    let parent = std::env::temp_dir();
    for attempt in 0..1000 {
        let path = parent.join(format!(
            "{DIRECTORY_PREFIX}{}-{attempt}",
            std::process::id()
        ));
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Builds the tree at `top`, in a mount namespace of its own.
pub(super) fn prepare(config: &SupervisorConfig, top: &Path) -> io::Result<()> {
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    attach("private mounts", None, Path::new("/"), None, private, None)?;
    bind(&config.root, top, MsFlags::MS_BIND)?;
    restrict(top)?;
    devices(&config.root, &top.join("dev"))?;
    own_processes(&top.join("proc"))?;
    if let Some(mfs) = &config.mfs {
        let place = top.join("mfs");
        if place.is_dir() {
            bind(mfs, &place, MsFlags::MS_BIND)?;
            restrict(&place)?;
        }
    }
    Ok(())
}

/// A /dev of the devices that are no machine's own, and home's /dev/shm. It is filled from inside:
/// every path that leads there from outside asks home for its way.
fn devices(root: &Path, dev: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let size = Some("size=64k,mode=755");
    attach("/dev", Some("tmpfs"), dev, Some("tmpfs"), flags, size)?;
    std::env::set_current_dir(dev)?;
    for name in DEVICES {
        fs::File::create(name)?;
        let device = Path::new("/dev").join(name);
        bind(&device, Path::new(name), MsFlags::MS_BIND)?;
    }
    let shared_memory = root.join("dev/shm");
    if shared_memory.is_dir() {
        fs::create_dir("shm")?;
        bind(&shared_memory, Path::new("shm"), MsFlags::MS_BIND)?;
    }
    for (link, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, link)?;
    }
    let flags = flags | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    attach("/dev read-only", None, Path::new("."), None, flags, size)?;
    std::env::set_current_dir("/")
}

/// A /proc that shows the guest to itself and nothing of the machine. What is opened there is
/// opened at home; this is for what looks names up.
fn own_processes(proc: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let options = Some("subset=pid,hidepid=2");
    attach("/proc", Some("proc"), proc, Some("proc"), flags, options)
}

/// Makes `top` the root of everything in the namespace; the old one is gone.
pub(super) fn enter(top: &Path) -> io::Result<()> {
    std::env::set_current_dir(top)?;
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    std::env::set_current_dir("/")
}

/// No devices, which would be the host's, and no set-id programs.
fn restrict(place: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    attach("without devices", None, place, None, flags, None)
}

fn bind(from: &Path, to: &Path, flags: MsFlags) -> io::Result<()> {
    mount(Some(from), to, None::<&str>, flags, None::<&str>).map_err(|error| {
        let text = format!("binding {} at {}: {error}", from.display(), to.display());
        io::Error::other(text)
    })
}

fn attach(
    what: &str,
    source: Option<&str>,
    to: &Path,
    kind: Option<&str>,
    flags: MsFlags,
    options: Option<&str>,
) -> io::Result<()> {
    mount(source, to, kind, flags, options)
        .map_err(|error| io::Error::other(format!("mounting {what}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_of_the_dead_are_swept() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let of_the_dead = format!("{DIRECTORY_PREFIX}{}-0", child.id());
        child.wait().unwrap();
        let of_the_dead = std::env::temp_dir().join(of_the_dead);
        fs::create_dir(&of_the_dead).unwrap();
        let mine = temporary_directory().unwrap();
        assert!(sweep() >= 1);
        assert!(!of_the_dead.exists());
        fs::remove_dir(mine).unwrap();
    }
}
