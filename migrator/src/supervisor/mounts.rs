//! The guest's file system: home's tree, with the few things that are the host's own.
//!
//! Home decides what is in its tree, and may put links wherever the host mounts something. So only
//! descriptors are mounted on, which are opened here below home's root and through no link; and
//! before anything that home, an image or a guest names is looked up, that root is all there is.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstat, openat, openat2, symlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::SupervisorConfig;
use crate::image::LOCAL_DEVICES;
use crate::sys::mount::add_attributes;

/// Builds the guest's tree, in a mount namespace of its own, and makes it the root of everything
/// there: the host's own tree is gone.
pub(super) fn enter(config: &SupervisorConfig) -> io::Result<()> {
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    let nothing = None::<&str>;
    mount(nothing, "/", nothing, private, nothing).map_err(failed("private mounts"))?;
    let root = copy(&config.root)?;
    add_attributes(root.as_fd(), VIEW)?;
    let stage = open_directory(&config.stage)?;
    attach(&root, &stage)?;
    let shared_memory = shared_memory(&root)?;
    let devices = devices(&place(&root, "dev").map_err(failed("home's /dev"))?)?;
    if let Some(shared_memory) = shared_memory {
        rustix::fs::mkdirat(&devices, "shm", Mode::from_raw_mode(0o755))?;
        attach(&shared_memory, &place(&devices, "shm")?)?;
    }
    add_attributes(devices.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY)?;
    own_processes(&place(&root, "proc").map_err(failed("home's /proc"))?)?;
    if let Some(mfs) = &config.mfs {
        all_nodes(mfs, &root)?;
    }
    pivot(&root)
}

/// Makes `root` the root; the old one is gone.
fn pivot(root: &OwnedFd) -> io::Result<()> {
    nix::unistd::fchdir(root)?;
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    std::env::set_current_dir("/")
}

/// The host's view of all nodes; a home without a directory for it goes without.
fn all_nodes(mfs: &Path, root: &OwnedFd) -> io::Result<()> {
    let place = match place(root, "mfs") {
        Ok(place) => place,
        Err(error) if is_absence(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    let mfs = copy(mfs)?;
    add_attributes(mfs.as_fd(), VIEW)?;
    attach(&mfs, &place)
}

/// A /dev of the devices that are no machine's own.
fn devices(place: &OwnedFd) -> io::Result<OwnedFd> {
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let devices = made("tmpfs", &[("size", "64k"), ("mode", "755")], attributes)?;
    attach(&devices, place)?;
    for name in LOCAL_DEVICES {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        openat(&devices, name, flags, Mode::from_raw_mode(0o666))?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&devices, name, flags, Mode::empty())?;
        attach(&copy(&Path::new("/dev").join(name))?, &file)?;
    }
    for (link, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlinkat(target, &devices, link)?;
    }
    Ok(devices)
}

/// Home's /dev/shm, wherever in home's tree that is; `None` where home has none.
fn shared_memory(root: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let found = match openat2(root, "dev/shm", DIRECTORY, Mode::empty(), resolve) {
        Ok(found) => found,
        Err(error) if is_absence(&error.into()) => return Ok(None),
        Err(error) => return Err(failed("home's /dev/shm")(error)),
    };
    if fstat(&found)?.st_dev != fstat(root)?.st_dev {
        return Ok(None);
    }
    let copy = open_tree(&found, "", COPY | OpenTreeFlags::AT_EMPTY_PATH);
    let copy = copy.map_err(failed("home's /dev/shm"))?;
    add_attributes(copy.as_fd(), VIEW)?;
    Ok(Some(copy))
}

/// A /proc that shows the guest to itself and nothing of the machine. What is opened there is
/// opened at home; this is for what looks names up.
fn own_processes(place: &OwnedFd) -> io::Result<()> {
    let attributes = VIEW | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    // /proc/mounts shows the source; users expect the kind there.
    let options = [("source", "proc"), ("subset", "pid"), ("hidepid", "2")];
    attach(&made("proc", &options, attributes)?, place)
}

/// No devices, which would be the host's, and no set-id programs.
const VIEW: MountAttrFlags =
    MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NODEV);
const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const COPY: OpenTreeFlags = OpenTreeFlags::OPEN_TREE_CLONE.union(OpenTreeFlags::OPEN_TREE_CLOEXEC);

/// A directory directly below `root`, and nothing else: no link, nothing that is mounted there.
fn place(root: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = DIRECTORY | OFlags::NOFOLLOW;
    Ok(openat2(root, name, flags, Mode::empty(), resolve)?)
}

/// A directory of the host's own.
pub(super) fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let opened = openat(CWD, path, DIRECTORY, Mode::empty());
    opened.map_err(failed(&path.display().to_string()))
}

/// A mount of what the host has at this path of its own, attached nowhere yet.
fn copy(path: &Path) -> io::Result<OwnedFd> {
    open_tree(CWD, path, COPY).map_err(failed(&format!("a view of {}", path.display())))
}

/// A new file system, attached nowhere yet.
fn made(kind: &str, options: &[(&str, &str)], attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    let make = || {
        let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
        for (key, value) in options {
            fsconfig_set_string(&context, *key, *value)?;
        }
        fsconfig_create(&context)?;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    make().map_err(failed(kind))
}

fn attach(mount: &OwnedFd, place: &OwnedFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", place, "", flags).map_err(failed("a mount"))
}

/// Home has no such directory, as far as it lets the host see.
fn is_absence(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    let refused = [Some(libc::ELOOP), Some(libc::EXDEV)].contains(&error.raw_os_error());
    refused || matches!(error.kind(), NotFound | NotADirectory | PermissionDenied)
}

fn failed<E: Into<io::Error>>(what: &str) -> impl Fn(E) -> io::Error {
    let what = what.to_owned();
    move |error| {
        let error = error.into();
        io::Error::new(error.kind(), format!("{what}: {error}"))
    }
}
