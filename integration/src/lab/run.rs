//! Running a command with a deadline.

use std::io::Read;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::wait;

/// How long a command in a test may take: only one that hangs takes longer, however busy the machine.
pub const TIMEOUT: Duration = Duration::from_secs(180);
/// How long the last output of a command that was killed is waited for.
const DRAIN: Duration = Duration::from_secs(1);

/// Runs a command without input and gives all that came of it.
///
/// # Errors
/// It did not start, or not end in time (it is then killed; the error tells what it had said).
pub fn output(command: &mut Command, timeout: Duration) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start it")?;
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let ended = wait::until(timeout, || child.try_wait().transpose());
    if ended.is_none() {
        child.kill()?;
    }
    let status = child.wait()?;
    let stdout = stdout.take();
    let stderr = stderr.take();
    if ended.is_none() {
        bail!(
            "it did not end within {timeout:?}; it said: {}{}",
            String::from_utf8_lossy(&stdout),
            String::from_utf8_lossy(&stderr)
        );
    }
    Ok(Output {
        status,
        stdout,
        stderr,
    })
}

/// What a pipe brought so far, and a sign that came when it was closed.
struct Collected {
    bytes: Arc<Mutex<Vec<u8>>>,
    closed: Receiver<()>,
}

impl Collected {
    /// All of it, or what came until a descendant was waited for in vain that keeps the pipe open.
    fn take(self) -> Vec<u8> {
        let _ = self.closed.recv_timeout(DRAIN);
        std::mem::take(&mut *self.bytes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Reads to the end in a thread of its own.
fn collect(pipe: Option<impl Read + Send + 'static>) -> Collected {
    let (sender, closed) = channel();
    let bytes = Arc::new(Mutex::new(Vec::new()));
    let filled = Arc::clone(&bytes);
    std::thread::spawn(move || {
        let mut piece = vec![0; 64 * 1024];
        let Some(mut pipe) = pipe else { return };
        while let Ok(length @ 1..) = pipe.read(&mut piece) {
            let mut bytes = filled.lock().unwrap_or_else(PoisonError::into_inner);
            bytes.extend(piece.iter().take(length));
        }
        let _ = sender.send(());
    });
    Collected { bytes, closed }
}
