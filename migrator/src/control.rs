//! How the node's daemon talks to shims and supervisors: one JSON object per line over a unix
//! socket, and a state file beside the socket that is rewritten atomically on every change.
//!
//! The daemon may come and go; a shim or supervisor never needs it to keep its job running. Any
//! number of connections may be open. Every command is answered by exactly one final event
//! (`Done`, `Failed` or `State`), before it any number of `Progress`.

use std::io::{self, BufRead, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use omfs_authz::process::Credentials;
use proto::ids::ProcessId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Longest line of the control protocol, in bytes.
pub const LINE_BYTES_MAX: u64 = 1 << 16;

/// What the daemon asks of a shim. A supervisor understands only `Status` and `Kill`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "snake_case")]
pub enum Command {
    /// Move the job to a node whose supervisor already listens (`Cluster.PrepareGuest`).
    Migrate {
        /// Name of the target, for people.
        node: String,
        /// Where its supervisor listens, ip:port.
        address: String,
        /// The one-time token that the supervisor expects, hexadecimal.
        token: String,
        /// The process that was allowed to be moved; without it nothing is moved.
        #[serde(default)]
        expected: Option<ExpectedProcess>,
    },
    /// Bring the job home. The shim ends after answering.
    Home,
    /// Asks for the state.
    Status,
    /// Ends the job as SIGKILL would.
    Kill,
}

/// Which process an order means, and with which credentials it was allowed to be moved. The shim
/// compares when all threads of the process stand still.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ExpectedProcess {
    /// The process.
    pub process: ProcessId,
    /// Those of each of its threads.
    pub credentials: Credentials,
    /// It must be dumpable though it is root's, of which /proc does not tell that.
    #[serde(default)]
    pub ask_dumpable: bool,
}

/// What shims and supervisors answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A step of a move.
    Progress {
        /// The step.
        phase: Phase,
        /// Bytes of memory sent.
        done_bytes: u64,
        /// Bytes of memory to send, as far as known.
        total_bytes: u64,
    },
    /// The command was carried out: the job runs at its new place.
    Done {
        /// How long the job stood still, in microseconds; 0 where nothing moved.
        freeze_us: u64,
    },
    /// The command was not carried out.
    Failed {
        /// What happened, for people.
        error: String,
        /// The job runs on where it was, unharmed.
        cantmove: bool,
    },
    /// Answer to `Status`.
    State(JobState),
}

/// Steps of a move, as `omfs migrate` shows them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Connecting to the target's supervisor.
    Prepare,
    /// Stopping all threads and reading their state.
    Freeze,
    /// Sending memory.
    Memory,
    /// The target builds the process.
    Build,
    /// The one point of no return.
    Commit,
}

impl Phase {
    /// The name on the wire and on screens.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Freeze => "freeze",
            Self::Memory => "memory",
            Self::Build => "build",
            Self::Commit => "commit",
        }
    }
}

/// What a job is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// At home, an ordinary process.
    #[default]
    Home,
    /// Between two places.
    Migrating,
    /// Away, running.
    Running,
    /// Away, stopped by a signal.
    Stopped,
    /// Its host died; the job ended with SIGKILL.
    Lost,
    /// It ended.
    Ended,
}

/// A job's state: the state file's content, and the answer to `Status`.
///
/// Shims describe the job as home sees it; supervisors describe the guest (`where` is then the
/// host itself).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct JobState {
    /// At home, which is also the guest's own.
    pub pid: i32,
    /// When the job was started at home; 0 if that is not known.
    pub start_ticks: u64,
    /// The shim's or supervisor's own process.
    pub keeper_pid: i32,
    /// When that was started; 0 if that is not known.
    pub keeper_start_ticks: u64,
    /// Supervisors: the guest's PID in the host's PID namespace; 0 if there is none.
    pub host_pid: i32,
    /// Name of the program, at most 15 bytes (comm).
    pub command: String,
    /// Name of the home node.
    pub home: String,
    /// Name of the node where it runs.
    #[serde(rename = "where")]
    pub place: String,
    /// What it is doing.
    pub state: RunState,
    /// Completed moves, the one home included.
    pub moves: u32,
    /// Why it cannot be moved now; empty if it can as far as is known.
    pub cantmove: Vec<String>,
    /// What happened to it last, for people.
    pub note: String,
    /// Owner, as at home.
    pub uid: u32,
    /// System calls carried out at home since it left.
    pub home_calls: u64,
    /// CPU time in milliseconds. Shims: used by the job away from home, at all hosts since the shim
    /// was started;
    /// supervisors: used by the guest at this host.
    pub cpu_time_ms: u64,
    /// Resident memory of the guest, in bytes.
    pub memory_bytes: u64,
    /// The job went home by itself for a system call and may be sent away again.
    pub returned_for: Option<String>,
}

impl JobState {
    /// The job, at home.
    #[must_use]
    pub fn process(&self) -> ProcessId {
        ProcessId {
            pid: self.pid,
            start_ticks: self.start_ticks,
        }
    }

    /// The shim or supervisor.
    #[must_use]
    pub fn keeper(&self) -> ProcessId {
        ProcessId {
            pid: self.keeper_pid,
            start_ticks: self.keeper_start_ticks,
        }
    }
}

/// Reads one message.
///
/// # Errors
/// `UnexpectedEof` at the end of the stream; `InvalidData` for a line that is too long or no such
/// message.
pub fn read_line<T: DeserializeOwned>(reader: &mut impl BufRead) -> io::Result<T> {
    let mut line = Vec::new();
    io::Read::take(&mut *reader, LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if line.last() != Some(&b'\n') {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the control line is too long or cut off",
        ));
    }
    Ok(serde_json::from_slice(&line)?)
}

/// Writes one message as one line.
///
/// # Errors
/// The writer's.
pub fn write_line(writer: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    writer.write_all(&line)
}

/// Replaces a state file atomically, so that a reader never sees half of it. Where there is no room
/// for a second file the first one is overwritten: a daemon that does not know where a job is does
/// more harm than one that has to read twice.
///
/// # Errors
/// The directory is gone; it is full, and there was no file yet.
pub fn write_state(path: &Path, state: &JobState) -> io::Result<()> {
    let mut line = Vec::new();
    write_line(&mut line, state)?;
    let temporary = temporary(path);
    let written = put(&temporary, &line, true).and_then(|()| std::fs::rename(&temporary, path));
    match written {
        Err(error) if is_full(&error) => {
            let _ = std::fs::remove_file(&temporary);
            put(path, &line, false).map_err(|_| error)
        }
        written => written,
    }
}

/// Makes sure that there is room for a state file that does not exist yet.
///
/// # Errors
/// The directory is gone or full.
pub fn reserve_state(path: &Path) -> io::Result<()> {
    put(&temporary(path), &[b' '; STATE_BYTES], true)
}

/// Room for a state, in bytes: a page, which hardly any needs.
const STATE_BYTES: usize = 4096;

fn temporary(path: &Path) -> PathBuf {
    path.with_extension("json.new")
}

/// Makes `content` all that is in a file. What is there is overwritten, so that its room is kept.
fn put(path: &Path, content: &[u8], create: bool) -> io::Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(create)
        .truncate(false)
        .mode(0o644)
        .open(path)?;
    file.write_all(content)?;
    file.set_len(content.len() as u64)?;
    // Renamed before its content is on disk, it could be empty after a crash.
    file.sync_data()
}

fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

/// Reads a state file.
///
/// # Errors
/// It does not exist, or it is none.
pub fn read_state(path: &Path) -> io::Result<JobState> {
    let mut reader = io::BufReader::new(std::fs::File::open(path)?);
    read_line(&mut reader)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_look_as_documented() {
        let mut line = Vec::new();
        let command = Command::Migrate {
            node: "n2".into(),
            address: "10.0.0.2:7900".into(),
            token: "00ff".into(),
            expected: None,
        };
        write_line(&mut line, &command).unwrap();
        assert_eq!(
            String::from_utf8(line.clone()).unwrap(),
            "{\"cmd\":\"migrate\",\"node\":\"n2\",\"address\":\"10.0.0.2:7900\",\"token\":\"00ff\",\"expected\":null}\n"
        );
        assert_eq!(read_line::<Command>(&mut line.as_slice()).unwrap(), command);
        let mut state = Vec::new();
        write_line(&mut state, &Event::State(JobState::default())).unwrap();
        assert!(state.starts_with(b"{\"event\":\"state\",\"pid\":0"));
        assert!(matches!(
            read_line(&mut state.as_slice()).unwrap(),
            Event::State(_)
        ));
    }

    #[test]
    fn lines_that_never_end_and_garbage_are_refused() {
        let endless = vec![b'x'; 1 << 17];
        for bad in [&endless[..], b"", b"{\"cmd\":\"fly\"}\n", b"{}\n", b"\n"] {
            assert!(read_line::<Command>(&mut &*bad).is_err());
        }
    }

    #[test]
    fn a_state_file_is_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("7.json");
        let state = JobState {
            pid: 7,
            place: "n3".into(),
            cantmove: vec!["io_uring".into()],
            ..JobState::default()
        };
        write_state(&path, &state).unwrap();
        assert_eq!(read_state(&path).unwrap(), state);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_longer_state_leaves_nothing_behind_a_shorter_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("7.json");
        reserve_state(&path).unwrap();
        let mut state = JobState {
            note: "x".repeat(9000),
            ..JobState::default()
        };
        write_state(&path, &state).unwrap();
        assert_eq!(read_state(&path).unwrap(), state);
        state.note.clear();
        let mut line = Vec::new();
        write_line(&mut line, &state).unwrap();
        put(&path, &line, false).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), line);
        assert!(put(&directory.path().join("8.json"), &line, false).is_err());
    }
}
