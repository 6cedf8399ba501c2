//! Forking and dying.

use std::io;

use nix::sys::signal::{SigHandler, Signal};
use nix::unistd::{ForkResult, Pid};

/// Forks a process that has a single thread; `child` runs in the new process and gives its exit
/// status.
///
/// # Errors
/// The caller has more threads than one (the child could then find any lock held for ever), or
/// `fork(2)`'s own.
pub fn fork(child: impl FnOnce() -> i32) -> io::Result<Pid> {
    if thread_count()? != 1 {
        return Err(io::Error::other(
            "a process with several threads must not fork here",
        ));
    }
    // SAFETY: with one thread no lock can be held by somebody who is not in the child.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => exit_now(child()),
    }
}

fn thread_count() -> io::Result<usize> {
    Ok(std::fs::read_dir("/proc/self/task")?.count())
}

/// Ends the process without running anybody's exit handlers (`_exit(2)`).
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit takes an integer and does not return.
    unsafe { libc::_exit(status) }
}

/// Gives every signal its default action, as for a program that is started on a machine of its own:
/// what a caller ignores would stay ignored across exec (signal(7)).
///
/// # Errors
/// None that sigaction(2) has for these signals.
pub fn default_signals() -> io::Result<()> {
    for signal in Signal::iterator().filter(|one| !matches!(one, Signal::SIGKILL | Signal::SIGSTOP))
    {
        // SAFETY: no handler is set, so none can run at a wrong time; std has no way to do it.
        unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) }?;
    }
    Ok(())
}

/// Ends this process as `signal` ends one, without a core file, so that its parent sees the same
/// wait status as the one that was handed over.
pub fn die_of(signal: i32) -> ! {
    let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0);
    // SAFETY: resets one disposition; no handler of ours could run in between.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    if let Ok(signal) = Signal::try_from(signal) {
        let mut set = nix::sys::signal::SigSet::empty();
        set.add(signal);
        let _ = set.thread_unblock();
    }
    // SAFETY: raise takes an integer; what it does to us is the purpose.
    unsafe { libc::raise(signal) };
    exit_now(128 + signal)
}
