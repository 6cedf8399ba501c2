//! The stand-in of a command without a terminal: passes signals on and waits.

use std::os::fd::AsFd;

use anyhow::Result;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::exec::{Ended, PASSED_SIGNALS};

/// Catches what is to be passed on, and the end of children.
pub(super) fn catch_signals() -> Result<SignalFd> {
    let mut mask = SigSet::empty();
    for signal in PASSED_SIGNALS {
        mask.add(signal);
    }
    mask.add(Signal::SIGCHLD);
    mask.thread_block()?;
    Ok(SignalFd::with_flags(
        &mask,
        SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK,
    )?)
}

/// Passes signals on until `child` has ended.
pub(super) fn relay(child: Pid, signals: &SignalFd) -> Result<Ended> {
    loop {
        if let Some(ended) = reap(child)? {
            return Ok(ended);
        }
        let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        for signal in pending(signals)? {
            pass_on(child, signal)?;
        }
    }
}

/// Signals that came since the last call.
pub(super) fn pending(signals: &SignalFd) -> Result<Vec<Signal>> {
    let mut found = Vec::new();
    while let Some(info) = signals.read_signal()? {
        let number = i32::try_from(info.ssi_signo)?;
        found.extend(
            Signal::try_from(number)
                .ok()
                .filter(|signal| *signal != Signal::SIGCHLD),
        );
    }
    Ok(found)
}

/// How the child ended, when it has.
pub(super) fn reap(child: Pid) -> Result<Option<Ended>> {
    Ok(match waitpid(child, Some(WaitPidFlag::WNOHANG))? {
        WaitStatus::Exited(_, status) => Some(Ended::Exited(status)),
        WaitStatus::Signaled(_, signal, _) => Some(Ended::Signaled(signal as i32)),
        _ => None,
    })
}

fn pass_on(child: Pid, signal: Signal) -> Result<()> {
    if signal == Signal::SIGTSTP {
        // The command leads a session of its own, where this signal would be ignored.
        let _ = kill(child, Signal::SIGSTOP);
        raise(Signal::SIGSTOP)?;
        return Ok(());
    }
    let _ = kill(child, signal);
    Ok(())
}
