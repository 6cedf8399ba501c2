//! The probes. Each looks at one thing and says in one line what is missing.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::machine::{Feature, Machine};
use super::{NeededBy, Problem};

/// The oldest kernel omfs is for: PAGEMAP_SCAN came with it.
const KERNEL_MIN: (u32, u32) = (6, 7);
/// FUSE passthrough came with this one.
const PASSTHROUGH_MIN: (u32, u32) = (6, 9);

pub(super) struct Probe {
    pub name: &'static str,
    pub needed_by: NeededBy,
    pub purpose: &'static str,
    pub look: Look,
    /// Whether somebody else than root learns nothing.
    pub asks_root: bool,
}

type Look = fn(&Machine) -> Result<(), Problem>;

impl Probe {
    const fn new(
        needed_by: NeededBy,
        name: &'static str,
        purpose: &'static str,
        look: Look,
    ) -> Self {
        Self {
            name,
            needed_by,
            purpose,
            look,
            asks_root: false,
        }
    }

    const fn by_root(self) -> Self {
        Self {
            asks_root: true,
            ..self
        }
    }
}

const fn needed(name: &'static str, purpose: &'static str, look: Look) -> Probe {
    Probe::new(NeededBy::Omfs, name, purpose, look)
}

const fn lab(name: &'static str, look: Look) -> Probe {
    Probe::new(NeededBy::Lab, name, "the lab", look)
}

const fn optional(name: &'static str, purpose: &'static str, look: Look) -> Probe {
    Probe::new(NeededBy::Nobody, name, purpose, look)
}

pub(super) const PROBES: &[Probe] = &[
    needed("root", "mounting, and acting for every user", root),
    needed("x86-64", "moving processes", x86_64),
    needed("kernel 6.7", "everything", kernel),
    needed("/dev/fuse", "/mfs", dev_fuse).by_root(),
    needed("ptrace", "moving processes", ptrace).by_root(),
    needed(
        "seccomp user notification",
        "system calls of moved processes",
        seccomp,
    ),
    needed(
        "PID, mount, IPC, UTS and network namespaces",
        "guests and the lab",
        namespaces,
    ),
    needed(
        "time namespaces",
        "clocks of moved processes",
        time_namespace,
    ),
    needed(
        "clone3 with chosen PIDs",
        "guests with their home PID",
        checkpoint_restore,
    )
    .by_root(),
    needed("PAGEMAP_SCAN", "moving memory", pagemap_scan),
    needed("process_vm_readv", "moving memory", process_vm),
    needed("pidfd", "signals and files of moved processes", pidfd),
    needed("kcmp", "files that processes share", kcmp),
    optional("userfaultfd", "moving with little standstill", userfaultfd).by_root(),
    optional(
        "FUSE passthrough",
        "local files at native speed",
        passthrough,
    ),
    needed(
        "cgroup CPU controller",
        "load measurement and the lab",
        cgroup_cpu,
    ),
    optional(
        "cgroup memory controller",
        "memory limits in the lab",
        cgroup_memory,
    ),
    lab("overlayfs", overlayfs),
    lab("bridge and veth devices", bridge_and_veth).by_root(),
];

fn problem(what: impl Into<String>, remedy: impl Into<String>) -> Result<(), Problem> {
    Err(Problem {
        what: what.into(),
        remedy: remedy.into(),
    })
}

fn root(machine: &Machine) -> Result<(), Problem> {
    if machine.is_root {
        Ok(())
    } else {
        problem("you are not root", "run this as root, e.g. with sudo")
    }
}

fn x86_64(machine: &Machine) -> Result<(), Problem> {
    match machine.arch {
        "x86_64" => Ok(()),
        other => problem(format!("this is {other}"), "use an x86-64 machine"),
    }
}

/// The first two numbers of a kernel release such as `6.18.0-1-amd64`.
fn version_of(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn at_least(machine: &Machine, minimum: (u32, u32)) -> Result<(), Problem> {
    let release = machine.proc_text("sys/kernel/osrelease");
    let release = release.trim();
    match version_of(release) {
        Some(version) if version >= minimum => Ok(()),
        Some(_) => problem(
            format!("the kernel is {release}"),
            format!("install Linux {}.{} or newer", minimum.0, minimum.1),
        ),
        None => problem(
            "the kernel's version cannot be read",
            "mount proc at /proc: mount -t proc proc /proc",
        ),
    }
}

fn kernel(machine: &Machine) -> Result<(), Problem> {
    at_least(machine, KERNEL_MIN)
}

fn passthrough(machine: &Machine) -> Result<(), Problem> {
    at_least(machine, PASSTHROUGH_MIN)
}

fn dev_fuse(machine: &Machine) -> Result<(), Problem> {
    let (path, wanted) = &machine.fuse;
    let opened = fs::OpenOptions::new().read(true).write(true).open(path);
    let device = opened.and_then(|file| Ok(file.metadata()?.rdev()));
    let what = match device {
        Ok(number) if number == *wanted => return Ok(()),
        Ok(_) => "it is something else (not character device 10:229)".to_owned(),
        Err(error) => error.to_string(),
    };
    problem(
        what,
        "load the module (modprobe fuse), and in a container pass the device in (--device /dev/fuse)",
    )
}

fn ptrace(machine: &Machine) -> Result<(), Problem> {
    let scope = machine.proc_text("sys/kernel/yama/ptrace_scope");
    if scope.trim() == "3" {
        return problem(
            "kernel.yama.ptrace_scope is 3",
            "set kernel.yama.ptrace_scope to 1 in /etc/sysctl.d and restart the machine",
        );
    }
    capability(machine, 19, "CAP_SYS_PTRACE")?;
    capability(machine, 21, "CAP_SYS_ADMIN")
}

/// Looks whether this process has a capability, by number (linux/capability.h).
fn capability(machine: &Machine, number: u32, name: &str) -> Result<(), Problem> {
    let status = machine.proc_text("self/status");
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    if mask.is_some_and(|mask| mask >> number & 1 == 1) {
        return Ok(());
    }
    problem(
        format!("{name} is missing"),
        "run as root; in a container add the capability (--privileged)",
    )
}

/// Tries something harmless.
fn tried(feature: Feature, remedy: &str) -> Result<(), Problem> {
    feature().or_else(|error| problem(error.to_string(), remedy))
}

fn seccomp(machine: &Machine) -> Result<(), Problem> {
    tried(
        machine.tries.seccomp,
        "use a kernel with CONFIG_SECCOMP_FILTER",
    )
}

fn namespaces(machine: &Machine) -> Result<(), Problem> {
    for name in ["pid", "mnt", "ipc", "uts", "net"] {
        if !machine.has_proc(&format!("self/ns/{name}")) {
            return problem(
                format!("the kernel has no {name} namespaces"),
                "use a kernel with CONFIG_NAMESPACES",
            );
        }
    }
    Ok(())
}

fn time_namespace(machine: &Machine) -> Result<(), Problem> {
    if machine.has_proc("self/ns/time") {
        Ok(())
    } else {
        problem("the kernel has none", "use a kernel with CONFIG_TIME_NS")
    }
}

fn checkpoint_restore(machine: &Machine) -> Result<(), Problem> {
    // The file is there exactly when CONFIG_CHECKPOINT_RESTORE is.
    if !machine.has_proc("sys/kernel/ns_last_pid") {
        return problem(
            "the kernel cannot restore processes",
            "use a kernel with CONFIG_CHECKPOINT_RESTORE",
        );
    }
    capability(machine, 21, "CAP_SYS_ADMIN")
}

fn userfaultfd(machine: &Machine) -> Result<(), Problem> {
    tried(
        machine.tries.userfaultfd,
        "use a kernel with CONFIG_USERFAULTFD",
    )
}

fn pagemap_scan(machine: &Machine) -> Result<(), Problem> {
    let remedy = "install Linux 6.7 or newer with CONFIG_PROC_PAGE_MONITOR";
    tried(machine.tries.pagemap_scan, remedy)
}

fn process_vm(machine: &Machine) -> Result<(), Problem> {
    let remedy = "use a kernel with CONFIG_CROSS_MEMORY_ATTACH";
    tried(machine.tries.process_vm, remedy)
}

fn pidfd(machine: &Machine) -> Result<(), Problem> {
    let remedy =
        "allow pidfd_open and pidfd_getfd in the container's seccomp profile (--privileged)";
    tried(machine.tries.pidfd, remedy)
}

fn kcmp(machine: &Machine) -> Result<(), Problem> {
    tried(machine.tries.kcmp, "use a kernel with CONFIG_KCMP")
}

/// Where a cgroup controller is: `Some(1)` or `Some(2)`, the version of its hierarchy.
fn controller(machine: &Machine, name: &str) -> Option<u8> {
    let mounts = machine.proc_text("self/mounts");
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(dir), Some(kind), Some(options)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        if kind == "cgroup" && options.split(',').any(|option| option == name) {
            return Some(1);
        }
        let has =
            || fs::read_to_string(Path::new(dir).join("cgroup.controllers")).unwrap_or_default();
        if kind == "cgroup2" && has().split_whitespace().any(|one| one == name) {
            return Some(2);
        }
    }
    None
}

fn cgroup(machine: &Machine, name: &str) -> Result<(), Problem> {
    match controller(machine, name) {
        Some(_) => Ok(()),
        None => problem(
            format!("no mounted cgroup hierarchy has the {name} controller"),
            "mount one: mount -t cgroup2 cgroup2 /sys/fs/cgroup",
        ),
    }
}

fn cgroup_cpu(machine: &Machine) -> Result<(), Problem> {
    cgroup(machine, "cpu")
}

fn cgroup_memory(machine: &Machine) -> Result<(), Problem> {
    cgroup(machine, "memory")
}

fn overlayfs(machine: &Machine) -> Result<(), Problem> {
    let known = machine.proc_text("filesystems");
    if known.split_whitespace().any(|name| name == "overlay") {
        Ok(())
    } else {
        problem(
            "the kernel does not know it",
            "load the module: modprobe overlay",
        )
    }
}

fn bridge_and_veth(machine: &Machine) -> Result<(), Problem> {
    let remedy = "load the modules: modprobe -a bridge veth";
    tried(machine.tries.bridge_and_veth, remedy)
}

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;
