use super::*;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn roots(directory: &Path) -> Roots {
    Roots {
        proc: directory.join("proc"),
        mounts: directory.to_owned(),
    }
}

#[test]
fn a_version_1_cgroup_is_read_with_its_parents() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let mount = |name: &str| format!("30 20 0:9 / /cg/{name} rw - cgroup cgroup rw,{name}\n");
    let mounts: String = ["cpu", "cpuacct", "memory"].map(mount).concat();
    write(root, "proc/self/mountinfo", &mounts);
    write(
        root,
        "proc/self/cgroup",
        "4:memory:/lab/n1\n2:cpuacct:/lab/n1\n1:cpu:/lab/n1/sub\n0::/\n",
    );
    write(root, "cg/cpu/lab/n1/cpu.cfs_quota_us", "12000\n");
    write(root, "cg/cpu/lab/n1/cpu.cfs_period_us", "100000\n");
    write(root, "cg/cpu/lab/n1/sub/cpu.cfs_quota_us", "-1\n");
    write(root, "cg/cpu/cpu.cfs_quota_us", "-1\n");
    write(
        root,
        "cg/cpu/lab/n1/cpu.stat",
        "nr_periods 1\nthrottled_time 77\n",
    );
    write(root, "cg/cpuacct/lab/n1/cpuacct.usage", "5000\n");
    write(root, "cg/memory/lab/n1/memory.limit_in_bytes", "1000000\n");
    write(root, "cg/memory/lab/n1/memory.usage_in_bytes", "400000\n");
    write(
        root,
        "cg/memory/lab/n1/memory.stat",
        "cache 9\ntotal_inactive_file 100000\n",
    );
    write(
        root,
        "cg/memory/memory.limit_in_bytes",
        "9223372036854771712\n",
    );
    let cgroup = Cgroup::of_self(&roots(root)).unwrap();
    assert_eq!(cgroup.quota(), Some(0.12));
    assert_eq!(cgroup.memory(), Some((1_000_000, 300_000)));
    assert_eq!(cgroup.throttled_ns(), 77);
    assert_eq!(cgroup.cpu_ns(), Some(5000));
    // Guests are limited with the node.
    let parents = cgroup.guest_parents();
    let dirs: Vec<_> = parents.iter().map(|parent| parent.dir.as_path()).collect();
    assert_eq!(
        dirs,
        [root.join("cg/cpu/lab/n1"), root.join("cg/memory/lab/n1")]
    );
    assert!(parents.iter().all(|parent| !parent.unified));
}

#[test]
fn a_version_2_cgroup_namespace_is_read_at_its_root() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let mounts = "30 20 0:9 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
    write(root, "proc/self/mountinfo", mounts);
    write(root, "proc/self/cgroup", "0::/\n");
    write(root, "sys/fs/cgroup/cpu.max", "150000 100000\n");
    write(
        root,
        "sys/fs/cgroup/cpu.stat",
        "usage_usec 25\nthrottled_usec 3\n",
    );
    write(root, "sys/fs/cgroup/memory.max", "max\n");
    let cgroup = Cgroup::of_self(&roots(root)).unwrap();
    assert_eq!(cgroup.quota(), Some(1.5));
    assert_eq!(cgroup.cpu_ns(), Some(25_000));
    assert_eq!(cgroup.throttled_ns(), 3000);
    assert_eq!(cgroup.memory(), None);
}

#[test]
fn without_limits_guests_belong_beside_everything_else() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let mounts = "30 20 0:9 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
    write(root, "proc/self/mountinfo", mounts);
    write(root, "proc/self/cgroup", "0::/system.slice/omfs.service\n");
    let parents = || Cgroup::of_self(&roots(root)).unwrap().guest_parents();
    let at = |path: &str| {
        let dir = root.join("sys/fs/cgroup").join(path);
        let dir = dir.components().collect();
        [cgroup::GuestParent { dir, unified: true }]
    };
    assert_eq!(parents(), at(""));
    let slice = "sys/fs/cgroup/system.slice";
    write(root, &format!("{slice}/memory.max"), "1000000\n");
    write(root, &format!("{slice}/memory.current"), "1\n");
    assert_eq!(parents(), at("system.slice"));
    write(
        root,
        &format!("{slice}/omfs.service/cpu.max"),
        "5000 10000\n",
    );
    assert_eq!(parents(), at("system.slice/omfs.service"));
}

#[test]
fn a_machine_without_cgroups_is_a_host() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), "proc/self/mountinfo", "garbage\n - \n");
    let cgroup = Cgroup::of_self(&roots(directory.path())).unwrap();
    assert_eq!(
        (cgroup.quota(), cgroup.cpu_ns(), cgroup.memory()),
        (None, None, None)
    );
    assert!(Sensors::new(Roots::default()).is_ok());
}

#[test]
fn this_machine_has_cpus_and_memory() {
    let mut sensors = Sensors::new(Roots::default()).unwrap();
    sensors.read();
    let capacity = sensors.read().capacity;
    assert!(capacity.cpus > 0.0 && capacity.cpus < 10_000.0);
    assert!(capacity.memory_free > 0 && capacity.memory_free <= capacity.memory_total);
    assert!((0.0..=1.0).contains(&capacity.utilisation));
}

/// A process that computes until it is dropped.
struct Busy(std::process::Child);

impl Busy {
    fn start() -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", "while :; do :; done"]);
        command.env("OMFS_JOB", "balance").stdin(Stdio::null());
        Self(command.spawn().unwrap())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_computing_process_is_seen_running_with_its_mark() {
    let busy = Busy::start();
    let pid = i32::try_from(busy.0.id()).unwrap();
    let mut processes = Processes::new(Roots::default());
    processes.sample();
    let mut samples = Vec::new();
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(100));
        samples.extend(
            processes
                .sample()
                .into_iter()
                .filter(|one| one.key.pid == pid),
        );
    }
    assert_eq!(samples.len(), 5);
    assert!(
        samples
            .iter()
            .any(|one| one.runnable == 1 && one.cpus > 0.0)
    );
    assert!(
        samples
            .last()
            .is_some_and(|one| one.age >= Duration::from_millis(400))
    );
    assert_eq!(processes.mark(pid).as_deref(), Some("balance"));
    assert!(processes.private_memory(pid).is_some_and(|bytes| bytes > 0));
}

#[test]
fn threads_are_counted_but_for_the_process_that_is_left_out() {
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let stopped = std::sync::Arc::clone(&stop);
            std::thread::spawn(move || while !stopped.load(std::sync::atomic::Ordering::Relaxed) {})
        })
        .collect();
    let pid = i32::try_from(std::process::id()).unwrap();
    let most_runnable = |mut processes: Processes| {
        let looks = (0..5).filter_map(|_| {
            std::thread::sleep(Duration::from_millis(50));
            let found = processes.sample();
            found.iter().find(|one| one.key.pid == pid).copied()
        });
        looks.map(|one| one.runnable).max()
    };
    let counted = most_runnable(Processes::new(Roots::default()));
    let left_out = most_runnable(Processes::new(Roots::default()).without_threads_of(pid));
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    assert!(counted.is_some_and(|threads| threads >= 3), "{counted:?}");
    assert!(left_out.is_some_and(|threads| threads <= 1), "{left_out:?}");
}

#[test]
fn a_process_that_is_gone_is_no_error() {
    let processes = Processes::new(Roots::default());
    assert_eq!(processes.mark(i32::MAX), None);
    assert_eq!(processes.private_memory(i32::MAX), None);
}

/// Not a measurement of the machine but a guard: a node with 12 % of a CPU samples twice a second.
#[test]
fn sampling_is_cheap() {
    let mut sensors = Sensors::new(Roots::default()).unwrap();
    let mut processes = Processes::new(Roots::default());
    let count = processes.sample().len().max(1);
    let clock = || nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
    let before = clock();
    for _ in 0..20 {
        sensors.read();
        processes.sample();
    }
    let used = Duration::from(clock()) - Duration::from(before);
    println!(
        "speed {}, {count} processes, {used:?} for 20 samples",
        sensors.speed
    );
    assert!(
        used < Duration::from_micros(20 * (2000 + 100 * count as u64)),
        "{used:?}"
    );
}
