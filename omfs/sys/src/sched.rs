//! Scheduling of a thread, and what the kernel tells about one outside /proc.

use std::io;

use super::answer;

/// Address and length of a thread's list of robust futexes (get_robust_list(2)); address 0 for none.
///
/// # Errors
/// ESRCH, EPERM.
pub fn robust_list(tid: i32) -> io::Result<(u64, u64)> {
    let (mut head, mut bytes) = (0_u64, 0_u64);
    // SAFETY: both pointers are to live variables of the size the kernel writes; no crate wraps it.
    answer(unsafe {
        libc::syscall(
            libc::SYS_get_robust_list,
            tid,
            &raw mut head,
            &raw mut bytes,
        )
    })?;
    Ok((head, bytes))
}

/// struct sched_attr, version 0 (sched_setattr(2)).
#[repr(C)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    /// For ordinary threads the slice, since Linux 6.12; 0 is the system's own.
    runtime_ns: u64,
    deadline_ns: u64,
    period_ns: u64,
}

const _: () = assert!(size_of::<SchedAttr>() == 48);

/// How a thread competes for CPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Share {
    /// Nice value: -20 to 19.
    pub nice: i32,
    /// How long it wants to run at a time, 0.1 to 100 ms; the shorter, the earlier after it wakes up.
    /// 0 is the system's own. Kernels before 6.12 do not look at it.
    pub slice_ns: u64,
}

impl Share {
    /// An ordinary thread's.
    pub const ORDINARY: Self = Self {
        nice: 0,
        slice_ns: 0,
    };
    /// That of the daemon: other nodes wait for its answers, which need little time. With nice -20
    /// it was seen to wait for seconds, beside a guest in its own CPU group (docs/figures.md).
    pub const DAEMON: Self = Self {
        nice: -10,
        slice_ns: 100_000,
    };
    /// That of shims and supervisors: a dozen of them may start at once, and the daemon must go on
    /// answering meanwhile.
    pub const KEEPER: Self = Self {
        nice: -7,
        slice_ns: 100_000,
    };
}

/// Sets the calling thread's share; threads and processes that it starts later inherit it.
///
/// # Errors
/// EACCES without CAP_SYS_NICE.
pub fn set_share(share: Share) -> io::Result<()> {
    let attr = SchedAttr {
        size: 48,
        policy: libc::SCHED_OTHER.cast_unsigned(),
        flags: 0,
        nice: share.nice,
        priority: 0,
        runtime_ns: share.slice_ns,
        deadline_ns: 0,
        period_ns: 0,
    };
    // SAFETY: the kernel reads as many bytes as `size` says; no crate in use wraps it.
    answer(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) })?;
    Ok(())
}
