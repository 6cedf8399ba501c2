use std::io;
use std::path::Path;

use super::super::machine::{Machine, Tries};
use super::*;

/// A machine that has everything, made of plain files.
fn complete(dir: &Path) -> Machine {
    let write = |name: &str, text: &str| {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let cgroups = dir.join("cgroup");
    write("cgroup/cgroup.controllers", "cpuset cpu io memory pids\n");
    write(
        "self/mounts",
        &format!("cgroup2 {} cgroup2 rw 0 0\n", cgroups.display()),
    );
    write("self/status", "Name:\tx\nCapEff:\t000001ffffffffff\n");
    write("sys/kernel/osrelease", "6.12.3-amd64\n");
    write("sys/kernel/ns_last_pid", "1\n");
    write("sys/kernel/yama/ptrace_scope", "1\n");
    write("filesystems", "nodev\toverlay\n\text4\n");
    for name in ["pid", "mnt", "ipc", "uts", "net", "time"] {
        write(&format!("self/ns/{name}"), "");
    }
    let there = || Ok(());
    Machine {
        is_root: true,
        arch: "x86_64",
        proc: dir.to_owned(),
        // Any device will do for what is asked of it here.
        fuse: ("/dev/null".into(), nix::sys::stat::makedev(1, 3)),
        tries: Tries {
            seccomp: there,
            userfaultfd: there,
            pagemap_scan: there,
            process_vm: there,
            pidfd: there,
            kcmp: there,
            bridge_and_veth: there,
        },
    }
}

/// Names of what a machine lacks, with the lines that say so.
fn lacks(machine: &Machine) -> Vec<(&'static str, String)> {
    let findings = super::super::findings(machine);
    let missing = findings.iter().filter(|one| one.problem.is_some());
    missing.map(|one| (one.name, one.to_string())).collect()
}

fn no() -> io::Result<()> {
    Err(io::Error::from_raw_os_error(libc::ENOSYS))
}

/// Takes something away: from the machine, or from its files.
type Take = fn(&mut Machine);

fn write(machine: &Machine, name: &str, text: &str) {
    fs::write(machine.proc.join(name), text).unwrap();
}

fn remove(machine: &Machine, name: &str) {
    fs::remove_file(machine.proc.join(name)).unwrap();
}

/// What is taken away, what is then missing, and words of the line that says so.
const CASES: &[(Take, &[&str], &[&str])] = &[
    (|m| m.arch = "aarch64", &["x86-64"], &["MISSING", "aarch64"]),
    (
        |m| write(m, "sys/kernel/osrelease", "6.6.99\n"),
        &["kernel 6.7", "FUSE passthrough"],
        &["MISSING", "6.6.99", "6.7 or newer"],
    ),
    (
        |m| write(m, "sys/kernel/osrelease", "6.8.1\n"),
        &["FUSE passthrough"],
        &["without", "6.9 or newer"],
    ),
    (
        |m| remove(m, "sys/kernel/osrelease"),
        &["kernel 6.7", "FUSE passthrough"],
        &["MISSING", "mount -t proc"],
    ),
    (
        |m| m.fuse.0 = "/dev/no-such-device".into(),
        &["/dev/fuse"],
        &["MISSING", "No such file", "modprobe fuse"],
    ),
    (
        |m| m.fuse.0 = "/dev/zero".into(),
        &["/dev/fuse"],
        &["MISSING", "something else"],
    ),
    (
        |m| write(m, "sys/kernel/yama/ptrace_scope", "3\n"),
        &["ptrace"],
        &["MISSING", "ptrace_scope"],
    ),
    (
        |m| write(m, "self/status", "CapEff:\t0000000000000000\n"),
        &["ptrace", "clone3 with chosen PIDs"],
        &["MISSING", "CAP_SYS_PTRACE", "--privileged"],
    ),
    (
        |m| m.tries.seccomp = no,
        &["seccomp user notification"],
        &["MISSING", "CONFIG_SECCOMP_FILTER"],
    ),
    (
        |m| remove(m, "self/ns/pid"),
        &["PID, mount, IPC, UTS and network namespaces"],
        &["MISSING", "no pid namespaces"],
    ),
    (
        |m| remove(m, "self/ns/time"),
        &["time namespaces"],
        &["MISSING", "CONFIG_TIME_NS"],
    ),
    (
        |m| remove(m, "sys/kernel/ns_last_pid"),
        &["clone3 with chosen PIDs"],
        &["MISSING", "CONFIG_CHECKPOINT_RESTORE"],
    ),
    (
        |m| m.tries.pagemap_scan = no,
        &["PAGEMAP_SCAN"],
        &["MISSING", "6.7 or newer"],
    ),
    (
        |m| m.tries.process_vm = no,
        &["process_vm_readv"],
        &["MISSING", "CONFIG_CROSS_MEMORY_ATTACH"],
    ),
    (
        |m| m.tries.pidfd = no,
        &["pidfd"],
        &["MISSING", "pidfd_getfd"],
    ),
    (
        |m| m.tries.kcmp = no,
        &["kcmp"],
        &["MISSING", "CONFIG_KCMP"],
    ),
    (
        |m| m.tries.userfaultfd = no,
        &["userfaultfd"],
        &["without", "CONFIG_USERFAULTFD"],
    ),
    (
        |m| write(m, "cgroup/cgroup.controllers", "memory\n"),
        &["cgroup CPU controller"],
        &["MISSING", "cpu controller", "mount -t cgroup2"],
    ),
    (
        |m| write(m, "self/mounts", "proc /proc proc rw 0 0\n"),
        &["cgroup CPU controller", "cgroup memory controller"],
        &["MISSING", "cpu controller"],
    ),
    (
        |m| write(m, "filesystems", "nodev\tfuse\n"),
        &["overlayfs"],
        &["without", "modprobe overlay"],
    ),
    (
        |m| m.tries.bridge_and_veth = no,
        &["bridge and veth devices"],
        &["without", "modprobe -a bridge veth"],
    ),
];

#[test]
fn everything_that_is_taken_away_is_named() {
    for (take, names, words) in CASES {
        let dir = tempfile::tempdir().unwrap();
        let mut machine = complete(dir.path());
        assert_eq!(lacks(&machine), []);
        take(&mut machine);
        let found = lacks(&machine);
        let found_names: Vec<_> = found.iter().map(|one| one.0).collect();
        assert_eq!(&found_names, names);
        let line = &found[0].1;
        assert!(words.iter().all(|word| line.contains(word)), "{line}");
        assert!(!line.contains('\n'), "{line}");
    }
}

#[test]
fn every_probe_has_something_to_find() {
    let tested: Vec<_> = CASES.iter().flat_map(|case| case.1).collect();
    for probe in PROBES.iter().filter(|probe| probe.name != "root") {
        assert!(tested.contains(&&probe.name), "{}", probe.name);
    }
}

#[test]
fn who_is_not_root_is_told_that_and_what_can_be_seen_nevertheless() {
    let dir = tempfile::tempdir().unwrap();
    let mut machine = complete(dir.path());
    machine.is_root = false;
    machine.fuse.0 = "/dev/no-such-device".into();
    write(&machine, "sys/kernel/osrelease", "6.1.0\n");
    let names: Vec<_> = lacks(&machine).iter().map(|one| one.0).collect();
    assert_eq!(names, ["root", "kernel 6.7", "FUSE passthrough"]);
}

#[test]
fn a_controller_of_version_1_will_do() {
    let dir = tempfile::tempdir().unwrap();
    let machine = complete(dir.path());
    write(
        &machine,
        "self/mounts",
        "cgroup /c/cpu cgroup rw,cpu,cpuacct 0 0\ncgroup /c/m cgroup rw,memory 0 0\n",
    );
    assert_eq!(lacks(&machine), []);
    assert_eq!(controller(&machine, "cpuacct"), Some(1));
}

#[test]
fn versions_are_read_from_releases() {
    assert_eq!(version_of("6.18.0-1-amd64"), Some((6, 18)));
    assert_eq!(version_of("6.7-rc1"), Some((6, 7)));
    assert_eq!(version_of("six"), None);
}
