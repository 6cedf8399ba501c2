//! What would break if a process moved, found from /proc before anything is touched.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::thread;
use std::time::Duration;

use crate::image::FileKind;
use crate::sys::kcmp;
use crate::tracee::procfs::{self, Stat, Status};

use super::files;
use super::memory::{self, Detailed};

/// How often a process without a vdso is looked at again, and after which pause.
const EXEC_LOOKS: u32 = 5;
const EXEC_PAUSE: Duration = Duration::from_millis(20);

/// The kinds of reasons, with codes that scripts can rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CantMoveCode {
    /// It has ended, or is a zombie.
    Ended,
    /// A thread of the kernel.
    KernelThread,
    /// Process 1 of its PID namespace.
    Init,
    /// Somebody else traces it.
    Traced,
    /// It has a seccomp filter.
    Seccomp,
    /// It lives in another PID, user or mount namespace, or another root directory.
    Namespace,
    /// A 32-bit program.
    NotX86_64,
    /// It shares its address space with another process (vfork).
    SharedAddressSpace,
    /// Threads that do not share their descriptors.
    OddThreads,
    /// Its first thread has ended.
    LeaderEnded,
    /// Real-time scheduling.
    RealTime,
    /// Writable memory shared with others.
    SharedMemory,
    /// A device mapped into memory.
    DeviceMapping,
    /// Kernel asynchronous I/O.
    Aio,
    /// io_uring.
    IoUring,
    /// userfaultfd.
    Userfaultfd,
    /// A signalfd.
    Signalfd,
    /// Sealed memory (mseal).
    SealedMemory,
    /// No vdso to enter through.
    NoVdso,
    /// Its /proc entry cannot be read.
    Unreadable,
    /// It may do more than its user: only root moves it.
    Privileged,
    /// It is not as it was when the move was allowed: another process, or with other credentials.
    Changed,
}

impl CantMoveCode {
    /// The code as text.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ended => "ended",
            Self::KernelThread => "kernel-thread",
            Self::Init => "init",
            Self::Traced => "traced",
            Self::Seccomp => "seccomp",
            Self::Namespace => "namespace",
            Self::NotX86_64 => "not-x86-64",
            Self::SharedAddressSpace => "shared-address-space",
            Self::OddThreads => "odd-threads",
            Self::LeaderEnded => "leader-ended",
            Self::RealTime => "real-time",
            Self::SharedMemory => "shared-memory",
            Self::DeviceMapping => "device-mapping",
            Self::Aio => "aio",
            Self::IoUring => "io-uring",
            Self::Userfaultfd => "userfaultfd",
            Self::Signalfd => "signalfd",
            Self::SealedMemory => "sealed-memory",
            Self::NoVdso => "no-vdso",
            Self::Unreadable => "unreadable",
            Self::Privileged => "privileged",
            Self::Changed => "changed",
        }
    }
}

impl fmt::Display for CantMoveCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One reason why a process cannot move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CantMove {
    /// Its kind.
    pub code: CantMoveCode,
    /// The particulars, for people.
    pub reason: String,
}

impl CantMove {
    /// A reason.
    #[must_use]
    pub fn new(code: CantMoveCode, reason: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.into(),
        }
    }
}

impl fmt::Display for CantMove {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.reason)
    }
}

/// Everything known to keep this process from moving; empty when it can.
#[must_use]
pub fn eligibility(pid: i32) -> Vec<CantMove> {
    let mut found = Vec::new();
    match Process::read(pid) {
        Ok(process) => {
            if process.cannot_be_entered(&mut found) {
                return found;
            }
            let checks = [
                Process::check_scheduling,
                Process::check_memory,
                Process::check_files,
            ];
            for check in checks {
                if let Err(error) = check(&process, &mut found) {
                    found.push(unreadable(&error));
                }
            }
        }
        Err(error) => found.push(unreadable(&error)),
    }
    found
}

fn unreadable(error: &io::Error) -> CantMove {
    let gone = error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH);
    if gone {
        CantMove::new(CantMoveCode::Ended, "there is no such process")
    } else {
        CantMove::new(CantMoveCode::Unreadable, error.to_string())
    }
}

struct Process {
    pid: i32,
    stat: Stat,
    status: Status,
}

/// `PF_KTHREAD` (linux/sched.h), in field 9 of /proc/PID/stat.
const PF_KTHREAD: u64 = 0x0020_0000;

impl Process {
    fn read(pid: i32) -> io::Result<Self> {
        Ok(Self {
            pid,
            stat: Stat::read(pid)?,
            status: Status::read(pid)?,
        })
    }

    /// Reasons that make all further questions pointless.
    fn cannot_be_entered(&self, found: &mut Vec<CantMove>) -> bool {
        let before = found.len();
        let threads = procfs::threads(self.pid).map_or(0, |threads| threads.len());
        if self.pid == 1 {
            found.push(CantMove::new(
                CantMoveCode::Init,
                "process 1 cannot leave its node",
            ));
        } else if self.stat.number(9) & PF_KTHREAD != 0 {
            found.push(CantMove::new(
                CantMoveCode::KernelThread,
                "a thread of the kernel",
            ));
        } else if matches!(self.stat.text(3), "Z" | "X") && threads > 1 {
            found.push(CantMove::new(
                CantMoveCode::LeaderEnded,
                "its first thread has ended",
            ));
        } else if matches!(self.stat.text(3), "Z" | "X") {
            found.push(CantMove::new(CantMoveCode::Ended, "it has ended already"));
        } else if self
            .status
            .numbers("TracerPid")
            .iter()
            .any(|tracer| *tracer != 0)
        {
            let tracer = self.status.text("TracerPid");
            let reason = format!("process {tracer} traces it (a debugger?)");
            found.push(CantMove::new(CantMoveCode::Traced, reason));
        } else if self.is_32_bit() {
            found.push(CantMove::new(
                CantMoveCode::NotX86_64,
                "not a 64-bit x86 program",
            ));
        }
        found.len() > before
    }

    /// By the class in the program's ELF header.
    fn is_32_bit(&self) -> bool {
        let mut header = [0; 5];
        let program = File::open(format!("/proc/{}/exe", self.pid));
        let read = program.and_then(|mut file| file.read_exact(&mut header));
        read.is_ok() && header.starts_with(b"\x7fELF") && header.last() != Some(&2)
    }

    fn check_scheduling(&self, found: &mut Vec<CantMove>) -> io::Result<()> {
        let pid = self.pid;
        if self.status.numbers("Seccomp").iter().any(|mode| *mode != 0) {
            let reason = "it runs under a seccomp filter of its own";
            found.push(CantMove::new(CantMoveCode::Seccomp, reason));
        }
        if self.status.numbers("NSpid").len() > 1 {
            found.push(CantMove::new(
                CantMoveCode::Namespace,
                "it lives in an inner PID namespace",
            ));
        }
        for name in ["user", "mnt"] {
            let of = |who: &str| fs::read_link(format!("/proc/{who}/ns/{name}"));
            if of(&pid.to_string())? != of("self")? {
                let reason = format!("it lives in another {name} namespace");
                found.push(CantMove::new(CantMoveCode::Namespace, reason));
            }
        }
        if fs::read_link(format!("/proc/{pid}/root"))?.as_os_str() != "/" {
            found.push(CantMove::new(
                CantMoveCode::Namespace,
                "its root directory is not /",
            ));
        }
        self.check_threads(found)?;
        self.check_address_space(found);
        Ok(())
    }

    fn check_threads(&self, found: &mut Vec<CantMove>) -> io::Result<()> {
        for tid in procfs::threads(self.pid)? {
            let Ok(stat) = Stat::of_thread(self.pid, tid) else {
                continue;
            };
            let policy = stat.number(41) as i32;
            if [libc::SCHED_FIFO, libc::SCHED_RR, libc::SCHED_DEADLINE].contains(&policy) {
                let reason = format!("thread {tid} has real-time scheduling");
                found.push(CantMove::new(CantMoveCode::RealTime, reason));
            }
            if tid != self.pid && !kcmp::same_fd_table(self.pid, tid).unwrap_or(true) {
                let reason = format!("thread {tid} has descriptors of its own");
                found.push(CantMove::new(CantMoveCode::OddThreads, reason));
            }
        }
        Ok(())
    }

    /// Looks at relatives only: sharing memory without being parent and child takes a clone()
    /// whose parent has ended, which nobody is known to do.
    fn check_address_space(&self, found: &mut Vec<CantMove>) {
        let children = procfs::threads(self.pid)
            .unwrap_or_default()
            .into_iter()
            .flat_map(|tid| {
                let path = format!("/proc/{}/task/{tid}/children", self.pid);
                let text = procfs::read_text(path).unwrap_or_default();
                text.split_whitespace()
                    .filter_map(|word| word.parse().ok())
                    .collect::<Vec<i32>>()
            });
        let parent = self.stat.number(4) as i32;
        for relative in children.chain([parent]).filter(|relative| *relative > 0) {
            if kcmp::same_memory(self.pid, relative).unwrap_or(false) {
                let reason = format!("it shares its memory with process {relative} (vfork?)");
                found.push(CantMove::new(CantMoveCode::SharedAddressSpace, reason));
            }
        }
    }

    fn check_memory(&self, found: &mut Vec<CantMove>) -> io::Result<()> {
        let has_vdso = |all: &[Detailed]| {
            all.iter()
                .any(|vma| vma.mapping.name.as_os_str() == "[vdso]")
        };
        let mut all = memory::detailed(self.pid).map_err(io::Error::other)?;
        // In the middle of execve(2) the vdso is the last mapping to come.
        for _ in 0..EXEC_LOOKS {
            if has_vdso(&all) {
                break;
            }
            thread::sleep(EXEC_PAUSE);
            all = memory::detailed(self.pid).map_err(io::Error::other)?;
        }
        found.extend(all.iter().filter_map(mapping_problem));
        if !has_vdso(&all) {
            found.push(CantMove::new(CantMoveCode::NoVdso, "it has no vdso"));
        }
        Ok(())
    }

    fn check_files(&self, found: &mut Vec<CantMove>) -> io::Result<()> {
        for number in procfs::descriptors(self.pid)? {
            let Ok(file) = files::describe(self.pid, number) else {
                continue;
            };
            let (code, name) = match file.kind() {
                FileKind::IoUring => (CantMoveCode::IoUring, "an io_uring"),
                FileKind::Userfaultfd => (CantMoveCode::Userfaultfd, "a userfaultfd"),
                FileKind::Signalfd => (CantMoveCode::Signalfd, "a signalfd"),
                _ => continue,
            };
            found.push(CantMove::new(
                code,
                format!("descriptor {number} is {name}"),
            ));
        }
        Ok(())
    }
}

fn mapping_problem(vma: &Detailed) -> Option<CantMove> {
    let map = &vma.mapping;
    let name = map.name.to_string_lossy();
    let special = name.starts_with('[');
    // Without the address, which is a secret of the process (ASLR).
    let new = |code, text: &str| Some(CantMove::new(code, text));
    if vma.has("sl") && !special {
        return new(CantMoveCode::SealedMemory, "sealed memory");
    }
    if name.starts_with("/[aio]") {
        return new(CantMoveCode::Aio, "a kernel AIO ring");
    }
    if special || !map.shared && !vma.has("io") && !vma.has("pf") {
        return None;
    }
    let is_device = name.starts_with("/dev/") && !name.starts_with("/dev/shm/");
    if vma.has("io") || vma.has("pf") || is_device && name != "/dev/zero" {
        return new(
            CantMoveCode::DeviceMapping,
            &format!("device memory ({name})"),
        );
    }
    // What could be made writable later was opened for writing: VmFlags mw.
    let writable = map.protection & libc::PROT_WRITE != 0 || vma.has("mw");
    let anonymous = name.starts_with("/dev/zero") || name.starts_with("/SYSV") || !map.is_file();
    if writable || anonymous {
        return new(
            CantMoveCode::SharedMemory,
            &format!("shared memory ({name})"),
        );
    }
    None
}
