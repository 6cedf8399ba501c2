//! The stand-in of a command with a terminal: connects the caller's terminal, in raw mode, with the
//! one in the node.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{Pid, read, write};

use super::control::receive_some;
use super::exec::Ended;
use super::relay::{pending, reap};
use crate::sys::tty::copy_window_size;

/// Puts the terminal back as it was.
struct RawMode(Termios);

impl RawMode {
    fn enter() -> Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSADRAIN, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.0);
    }
}

/// Relays until `child` has ended; `channel` brings the other side of its terminal.
pub(super) fn relay(child: Pid, signals: &SignalFd, channel: &UnixStream) -> Result<Ended> {
    channel.set_read_timeout(Some(Duration::from_secs(10)))?;
    let (_, fds) = receive_some(channel)?;
    let Some(master) = fds.into_iter().next() else {
        // It failed before it had one, and said why.
        return super::relay::relay(child, signals);
    };
    let _raw = RawMode::enter()?;
    let mut input_open = true;
    loop {
        let ended = reap(child)?;
        let (input, output) = wait(signals, &master, input_open, ended.is_some())?;
        if output && !copy(master.as_fd(), io::stdout().as_fd())? || ended.is_some() && !output {
            if let Some(ended) = ended {
                return Ok(ended);
            }
            // All sides of the terminal are closed, but the command goes on.
            return super::relay::relay(child, signals);
        }
        if input {
            input_open = copy(io::stdin().as_fd(), master.as_fd())?;
        }
        for signal in pending(signals)? {
            if signal == Signal::SIGWINCH {
                let _ = copy_window_size(io::stdin().as_fd(), master.as_fd());
            } else {
                let _ = kill(child, signal);
            }
        }
    }
}

/// Waits until there is input, output or a signal; at once when the command has ended.
fn wait(
    signals: &SignalFd,
    master: &OwnedFd,
    input_open: bool,
    ended: bool,
) -> Result<(bool, bool)> {
    let stdin = io::stdin();
    let mut fds = vec![
        PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        PollFd::new(master.as_fd(), PollFlags::POLLIN),
    ];
    if input_open && !ended {
        fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
    }
    let timeout = if ended {
        PollTimeout::ZERO
    } else {
        PollTimeout::NONE
    };
    match poll(&mut fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(error).context("poll"),
    }
    let ready = |index: usize| fds.get(index).and_then(PollFd::any).unwrap_or(false);
    Ok((ready(2), ready(1)))
}

/// Moves some bytes; false at the end of the stream.
fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<bool> {
    let mut buffer = [0; 4096];
    let length = match read(from, &mut buffer) {
        // A terminal whose other side is closed says EIO.
        Ok(0) | Err(Errno::EIO) => return Ok(false),
        Err(Errno::EINTR | Errno::EAGAIN) => return Ok(true),
        Ok(length) => length,
        Err(error) => return Err(error.into()),
    };
    let mut rest = buffer.get(..length).unwrap_or_default();
    while !rest.is_empty() {
        match write(to, rest) {
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            Err(Errno::EIO) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    io::stdout().flush()?;
    Ok(true)
}
