//! Sending signals to single threads and with a value.

use std::io;

use super::answer;
use super::ptrace::RawSiginfo;

/// Sends a signal to one thread of a process (tgkill(2)).
///
/// # Errors
/// ESRCH, EPERM, EINVAL.
pub fn tgkill(pid: i32, tid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: integers only; libc has no wrapper.
    answer(unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) }).map(drop)
}

/// Queues a signal with its description to a process, or to one of its threads
/// (rt_sigqueueinfo(2), rt_tgsigqueueinfo(2)). The kernel lets others claim only negative
/// `si_code`s but `SI_TKILL`.
///
/// # Errors
/// ESRCH, EPERM, EAGAIN (too many queued), EINVAL.
pub fn queue(pid: i32, tid: Option<i32>, info: &RawSiginfo) -> io::Result<()> {
    let (signal, pointer) = (info.signal(), std::ptr::from_ref(info));
    // SAFETY: the kernel reads 128 bytes behind `pointer`, which RawSiginfo has; libc has no
    // wrapper for either call.
    answer(unsafe {
        match tid {
            Some(tid) => libc::syscall(libc::SYS_rt_tgsigqueueinfo, pid, tid, signal, pointer),
            None => libc::syscall(libc::SYS_rt_sigqueueinfo, pid, signal, pointer),
        }
    })
    .map(drop)
}

/// Lets all signals through to the calling thread again.
///
/// # Errors
/// None are known.
pub fn unblock_all() -> io::Result<()> {
    Ok(nix::sys::signal::SigSet::empty().thread_set_mask()?)
}

/// Gives every signal its default action, as after exec.
pub fn default_all() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL is a valid handler and no Rust code relies on any other in a process
        // that is about to become a guest. Numbers that cannot be set are refused.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}
