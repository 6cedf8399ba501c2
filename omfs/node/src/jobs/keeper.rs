//! Starts shims and supervisors, and talks to them over their control sockets.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use migrator::control::{Command as Order, Event, LINE_BYTES_MAX, Phase};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::JobsContext;

/// A keeper that says nothing for so long hangs.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// Connecting to a control socket that is listened on takes no time.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// A final answer of a keeper.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Done; how long the job stood still.
    Done {
        /// In microseconds.
        freeze_us: u64,
    },
    /// Not done.
    Failed {
        /// Why, for people.
        error: String,
        /// The job runs on where it was.
        cantmove: bool,
    },
}

/// A step of a move.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// Which step.
    pub phase: Phase,
    /// Bytes of memory sent.
    pub done_bytes: u64,
    /// Bytes of memory to send.
    pub total_bytes: u64,
}

/// Starts a subcommand of this program that survives the daemon. `listener` becomes its standard
/// input. Its end is noticed by nobody but the caller of `wait`.
///
/// # Errors
/// It could not be started.
pub fn start(
    context: &JobsContext,
    arguments: &[OsString],
    environment: &[(&str, String)],
    listener: OwnedFd,
) -> io::Result<std::process::Child> {
    // The running program, also when its file was replaced meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("omfs");
    if let Some(path) = &context.config_path {
        command.arg("--config").arg(path);
    }
    command.args(arguments).envs(environment.iter().cloned());
    command.stdin(Stdio::from(listener)).stdout(Stdio::null());
    command.spawn()
}

/// Waits for a child in a thread of its own, so that it leaves no zombie; then calls `ended`.
pub fn reap(
    mut child: std::process::Child,
    name: String,
    ended: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    let wait = move || {
        match child.wait() {
            Ok(status) if status.success() => tracing::debug!("{name} ended"),
            Ok(status) => tracing::warn!("{name} ended with {status}"),
            Err(error) => tracing::warn!("{name}: {error}"),
        }
        ended();
    };
    let thread = std::thread::Builder::new().name("reaper".into());
    thread.stack_size(128 << 10).spawn(wait).map(drop)
}

/// Makes a control socket that only root can connect to.
///
/// # Errors
/// The directory is not there or not ours.
pub fn bind(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    omfs_sys::unix_socket::listen(path, 0o600)
}

/// Gives a keeper an order; `step` is told of the steps.
///
/// # Errors
/// The keeper is not there, hangs, or speaks something else.
pub async fn order(path: &Path, order: &Order, mut step: impl FnMut(Step)) -> io::Result<Answer> {
    let stream = tokio::time::timeout(CONNECT_MAX, UnixStream::connect(path)).await??;
    let (reader, mut writer) = stream.into_split();
    let mut line = serde_json::to_vec(order)?;
    line.push(b'\n');
    writer.write_all(&line).await?;
    let mut reader = BufReader::new(reader);
    loop {
        match tokio::time::timeout(SILENCE_MAX, event(&mut reader)).await?? {
            Event::Progress {
                phase,
                done_bytes,
                total_bytes,
            } => step(Step {
                phase,
                done_bytes,
                total_bytes,
            }),
            Event::Done { freeze_us } => return Ok(Answer::Done { freeze_us }),
            Event::Failed { error, cantmove } => return Ok(Answer::Failed { error, cantmove }),
            Event::State(_) => return Ok(Answer::Done { freeze_us: 0 }),
        }
    }
}

async fn event(reader: &mut (impl tokio::io::AsyncBufRead + Unpin)) -> io::Result<Event> {
    let mut line = Vec::new();
    let mut limited = reader.take(LINE_BYTES_MAX);
    limited.read_until(b'\n', &mut line).await?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&line)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use migrator::control::{read_line, write_line};

    /// A keeper that answers one order with these events.
    fn keeper(path: &Path, events: Vec<Event>) -> std::thread::JoinHandle<Order> {
        let listener = bind(path).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = std::io::BufReader::new(stream.try_clone().unwrap());
            let order = read_line(&mut reader).unwrap();
            for event in events {
                write_line(&mut stream, &event).unwrap();
            }
            order
        })
    }

    #[tokio::test]
    async fn steps_are_told_until_the_final_answer() {
        let run = tempfile::tempdir().unwrap();
        let path = run.path().join("7.sock");
        let progress = Event::Progress {
            phase: Phase::Memory,
            done_bytes: 1,
            total_bytes: 2,
        };
        let keeper = keeper(&path, vec![progress, Event::Done { freeze_us: 9 }]);
        let mut steps = Vec::new();
        let answer = order(&path, &Order::Home, |step| steps.push(step)).await;
        assert_eq!(answer.unwrap(), Answer::Done { freeze_us: 9 });
        assert_eq!((steps.len(), steps[0].total_bytes), (1, 2));
        assert_eq!(keeper.join().unwrap(), Order::Home);
    }

    #[tokio::test]
    async fn a_keeper_that_dies_or_is_not_there_is_an_error() {
        let run = tempfile::tempdir().unwrap();
        let path = run.path().join("7.sock");
        assert!(order(&path, &Order::Status, |_| ()).await.is_err());
        let keeper = keeper(&path, Vec::new());
        let error = order(&path, &Order::Status, |_| ()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        keeper.join().unwrap();
    }
}
