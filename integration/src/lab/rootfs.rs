//! A node's root directory: an overlay over the host's, with its own /proc, /sys, /dev, /run, /tmp.

use std::fmt::Write as _;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use super::cgroup::LabCgroups;
use super::init::NodeSpec;
use super::options::{node_address, node_name};
use super::supervisor::{DATA_DIR, OMFS_BINARY, enter_root};
use crate::sys::xattr;

/// Directories that a node has of its own: nothing of the host's is seen there.
const OWN_DIRS: [(&str, u32); 5] = [
    ("tmp", 0o1777),
    ("var/tmp", 0o1777),
    ("var/log", 0o755),
    ("var/lib/omfs", 0o700),
    ("etc/omfs", 0o755),
];
/// Device nodes: name, major and minor number.
const DEVICES: [(&str, u64, u64); 7] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
    ("fuse", 10, 229),
];
/// Where the program is between leaving the old root and binding it in the new one.
const BINARY_IN_TRANSIT: &str = "run/omfs-program";
const NONE: Option<&str> = None;

/// Makes the root directory of the node and enters it, in the calling mount namespace.
pub(super) fn enter(spec: &NodeSpec, cgroups: &LabCgroups) -> Result<()> {
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    let dir = Path::new(DATA_DIR).join(&spec.name);
    let root = dir.join("root");
    if !dir.exists() {
        make_upper(&dir)?;
    }
    mount_overlay(&dir, &root)?;
    // Before the old root goes: cgroups are mounted by what /proc/mounts of the host says.
    mount_system(&root, cgroups)?;
    if Path::new(OMFS_BINARY).exists() {
        let transit = root.join(BINARY_IN_TRANSIT);
        File::create(&transit)?;
        mount(Some(OMFS_BINARY), &transit, NONE, MsFlags::MS_BIND, NONE)?;
    }
    enter_root(&root)?;
    install_program().context("the omfs program")?;
    write_etc(spec).context("/etc")?;
    fs::create_dir_all("/mfs")?;
    Ok(())
}

/// Makes the node's disk, empty.
fn make_upper(dir: &Path) -> Result<()> {
    for name in ["root", "work", "upper"] {
        fs::create_dir_all(dir.join(name))?;
    }
    fs::set_permissions(dir.join("upper"), Permissions::from_mode(0o755))?;
    for (name, mode) in OWN_DIRS {
        let path = dir.join("upper").join(name);
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
        xattr::set(&path, c"trusted.overlay.opaque", b"y")?;
    }
    Ok(())
}

/// Mounts the overlay so that it can be exported (file handles that last), or at least at all.
fn mount_overlay(dir: &Path, root: &Path) -> Result<()> {
    let layers = format!(
        "lowerdir=/,upperdir={0}/upper,workdir={0}/work",
        dir.display()
    );
    let try_with = |extra: &str| {
        let options = format!("{layers}{extra}");
        mount(
            Some("overlay"),
            root,
            Some("overlay"),
            MsFlags::empty(),
            Some(&*options),
        )
    };
    try_with(",index=on,nfs_export=on")
        .or_else(|_| try_with(""))
        .context("an overlay over the host's root")
}

fn mount_system(root: &Path, cgroups: &LabCgroups) -> Result<()> {
    let secure = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let on = |name: &str, kind: &str, flags: MsFlags, options: Option<&str>| {
        mount(Some(kind), &root.join(name), Some(kind), flags, options)
            .with_context(|| format!("{kind} on /{name}"))
    };
    on("proc", "proc", secure, None)?;
    on("sys", "sysfs", secure, None)?;
    on(
        "run",
        "tmpfs",
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some("mode=755"),
    )?;
    on("dev", "tmpfs", MsFlags::MS_NOSUID, Some("mode=755"))?;
    mount_cgroups(root, cgroups).context("control groups")?;
    fill_dev(&root.join("dev"))?;
    on(
        "dev/pts",
        "devpts",
        MsFlags::MS_NOSUID,
        Some("newinstance,ptmxmode=0666,mode=620,gid=5"),
    )?;
    on(
        "dev/shm",
        "tmpfs",
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some("mode=1777"),
    )
}

fn mount_cgroups(root: &Path, cgroups: &LabCgroups) -> Result<()> {
    let top = root.join("sys/fs/cgroup");
    if let [only] = cgroups.hierarchies()
        && only.unified
    {
        mount(
            Some("cgroup2"),
            &top,
            Some("cgroup2"),
            MsFlags::empty(),
            NONE,
        )?;
        return Ok(());
    }
    mount(
        Some("tmpfs"),
        &top,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=755"),
    )?;
    for hierarchy in cgroups.hierarchies() {
        let name = hierarchy.mount.file_name().context("a hierarchy at /")?;
        let target = top.join(name);
        fs::create_dir(&target)?;
        let kind = if hierarchy.unified {
            "cgroup2"
        } else {
            "cgroup"
        };
        let options = (!hierarchy.unified).then(|| hierarchy.controllers.join(","));
        mount(
            Some(kind),
            &target,
            Some(kind),
            MsFlags::empty(),
            options.as_deref(),
        )
        .with_context(|| target.display().to_string())?;
    }
    Ok(())
}

fn fill_dev(dev: &Path) -> Result<()> {
    for (name, major, minor) in DEVICES {
        let path = dev.join(name);
        mknod(&path, SFlag::S_IFCHR, Mode::empty(), makedev(major, minor))
            .with_context(|| path.display().to_string())?;
        fs::set_permissions(&path, Permissions::from_mode(0o666))?;
    }
    for (name, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, dev.join(name))?;
    }
    fs::create_dir(dev.join("pts"))?;
    fs::create_dir(dev.join("shm"))?;
    Ok(())
}

/// Puts `omfs` where a package would, and the mount helper beside it. Runs in the new root.
fn install_program() -> Result<()> {
    let transit = Path::new("/").join(BINARY_IN_TRANSIT);
    if !transit.exists() {
        return Ok(());
    }
    let program = Path::new("/usr/bin/omfs");
    let _ = fs::remove_file(program);
    File::create(program)?;
    fs::set_permissions(program, Permissions::from_mode(0o755))?;
    mount(Some(&transit), program, NONE, MsFlags::MS_BIND, NONE)?;
    umount2(&transit, MntFlags::MNT_DETACH)?;
    fs::remove_file(&transit)?;
    let helper = Path::new("/sbin/mount.fuse.omfs");
    let _ = fs::remove_file(helper);
    symlink(program, helper)?;
    Ok(())
}

fn write_etc(spec: &NodeSpec) -> Result<()> {
    let mut hosts = String::from("127.0.0.1 localhost\n");
    for index in 0..spec.options.nodes {
        writeln!(hosts, "{} {}", node_address(index), node_name(index))?;
    }
    fs::write("/etc/hosts", hosts)?;
    fs::write("/etc/hostname", format!("{}\n", spec.name))?;
    let config = spec
        .options
        .config
        .replace("{address}", &spec.address.to_string());
    let config = config.replace("{name}", &spec.name);
    let file = Path::new("/etc/omfs/omfs.toml");
    if !file.exists() {
        fs::write(file, config)?;
    }
    Ok(())
}
