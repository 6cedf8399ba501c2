//! What probes look at: this machine, or in tests one that lacks something.

use std::io;
use std::path::PathBuf;

use omfs_sys::probe;

/// Major and minor number of /dev/fuse (admin-guide/devices.txt).
const FUSE_DEVICE: (u64, u64) = (10, 229);

/// A harmless try of a kernel feature.
pub(super) type Feature = fn() -> io::Result<()>;

/// Kernel features that only a try can tell of.
#[derive(Clone, Debug)]
pub(super) struct Tries {
    pub seccomp: Feature,
    pub userfaultfd: Feature,
    pub pagemap_scan: Feature,
    pub process_vm: Feature,
    pub pidfd: Feature,
    pub kcmp: Feature,
    pub bridge_and_veth: Feature,
}

/// A machine, seen by one of its processes.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    pub is_root: bool,
    pub arch: &'static str,
    /// Where procfs is mounted.
    pub proc: PathBuf,
    /// The FUSE device, and the number it has.
    pub fuse: (PathBuf, u64),
    pub tries: Tries,
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        Self {
            is_root: nix::unistd::geteuid().is_root(),
            arch: std::env::consts::ARCH,
            proc: "/proc".into(),
            fuse: (
                "/dev/fuse".into(),
                nix::sys::stat::makedev(FUSE_DEVICE.0, FUSE_DEVICE.1),
            ),
            tries: Tries {
                seccomp: probe::seccomp_user_notification,
                userfaultfd: probe::userfaultfd,
                pagemap_scan: probe::pagemap_scan,
                process_vm: probe::process_vm,
                pidfd: probe::pidfd,
                kcmp: probe::kcmp,
                bridge_and_veth,
            },
        }
    }

    /// The text of a file of procfs; empty when there is none.
    pub fn proc_text(&self, name: &str) -> String {
        omfs_sys::procfs::text(self.proc.join(name)).unwrap_or_default()
    }

    /// Whether procfs has a file.
    pub fn has_proc(&self, name: &str) -> bool {
        // Links to namespaces lead nowhere in the file system.
        self.proc.join(name).symlink_metadata().is_ok()
    }
}

/// Makes both devices in a network namespace of its own, which vanishes with the thread.
fn bridge_and_veth() -> io::Result<()> {
    let make = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
        probe::make_link("bridge").and_then(|()| probe::make_link("veth"))
    };
    let made = std::thread::spawn(make).join();
    made.unwrap_or_else(|_| Err(io::Error::other("the probe failed: report this")))
}
