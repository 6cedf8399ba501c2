//! How the outside talks to a lab's supervisor: one JSON request per connection on a unix socket,
//! answered by one JSON reply, with descriptors where the request asks for some.

use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::{Deserialize, Serialize};

/// Longest reply or request.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Starting a node is the slowest request.
const REPLY_TIMEOUT: Duration = Duration::from_secs(240);

/// Who asks has the whole request ready, but may be late on a busy machine.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// What can be asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// All nodes and how they are.
    Status,
    /// What is needed to enter a node: comes with a descriptor of its first process.
    Enter {
        /// Its name.
        node: String,
    },
    /// Turns a node's power off.
    Kill {
        /// Its name.
        node: String,
    },
    /// Turns it on again.
    Start {
        /// Its name.
        node: String,
    },
    /// Pulls its network cable.
    Cut {
        /// Its name.
        node: String,
    },
    /// Plugs it in again.
    Heal {
        /// Its name.
        node: String,
    },
    /// Stops all its processes where they are.
    Freeze {
        /// Its name.
        node: String,
    },
    /// Lets them go on.
    Thaw {
        /// Its name.
        node: String,
    },
    /// Ends the lab.
    Down,
}

/// The answer.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Reply {
    /// Why it was not done.
    pub error: Option<String>,
    /// To `Status`.
    pub status: Option<LabStatus>,
    /// To `Enter`: files that take the id of a process that shall belong to the node.
    pub procs_files: Vec<PathBuf>,
}

/// A lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LabStatus {
    /// Its name.
    pub id: String,
    /// Its nodes in order.
    pub nodes: Vec<NodeStatus>,
}

/// A node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    /// n1 and so on.
    pub name: String,
    /// Its only address.
    pub address: String,
    /// Whether it has power.
    pub running: bool,
    /// Whether its cable is pulled.
    pub cut: bool,
}

/// Asks the supervisor whose socket is in `state_dir`.
///
/// # Errors
/// No lab there, or what the supervisor says.
pub fn ask(state_dir: &Path, request: &Request) -> Result<(Reply, Vec<OwnedFd>)> {
    let path = state_dir.join("control.sock");
    let mut stream = UnixStream::connect(&path).with_context(|| {
        format!(
            "no lab runs here ({}); start one with `up N`",
            path.display()
        )
    })?;
    stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
    stream.write_all(&serde_json::to_vec(request)?)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let (bytes, fds) = receive(&stream)?;
    let reply: Reply = serde_json::from_slice(&bytes).context("the lab's supervisor is gone")?;
    if let Some(error) = &reply.error {
        bail!("{error}");
    }
    Ok((reply, fds))
}

/// Reads the request of one connection.
///
/// # Errors
/// It is none, or does not come in time.
pub fn read_request(stream: &UnixStream) -> Result<Request> {
    stream.set_read_timeout(Some(REQUEST_TIMEOUT))?;
    let mut bytes = Vec::new();
    let limit = u64::try_from(MESSAGE_BYTES_MAX)?;
    stream.take(limit).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// Sends the reply, with descriptors.
///
/// # Errors
/// The other side is gone.
pub fn send_reply(stream: &UnixStream, reply: &Reply, fds: &[RawFd]) -> Result<()> {
    let bytes = serde_json::to_vec(reply)?;
    send_with_fds(stream, &bytes, fds)
}

/// Sends bytes, with descriptors beside the first ones.
///
/// # Errors
/// The other side is gone.
pub fn send_with_fds(mut stream: &UnixStream, bytes: &[u8], fds: &[RawFd]) -> Result<()> {
    let control = [ControlMessage::ScmRights(fds)];
    let control = if fds.is_empty() {
        &[][..]
    } else {
        &control[..]
    };
    let sent = sendmsg::<()>(
        stream.as_raw_fd(),
        &[IoSlice::new(bytes)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    stream.write_all(bytes.get(sent..).unwrap_or_default())?;
    Ok(())
}

/// Reads everything until the other side closes.
fn receive(stream: &UnixStream) -> Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut all = Vec::new();
    let mut fds = Vec::new();
    loop {
        let (bytes, mut more) = receive_some(stream)?;
        fds.append(&mut more);
        if bytes.is_empty() {
            return Ok((all, fds));
        }
        all.extend(bytes);
        if all.len() > MESSAGE_BYTES_MAX {
            bail!("a reply is longer than {MESSAGE_BYTES_MAX} bytes");
        }
    }
}

/// One receive: bytes (none at the end of the stream) and the descriptors that came with them.
///
/// # Errors
/// The socket's.
pub fn receive_some(stream: &UnixStream) -> Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut buffer = vec![0; 16 * 1024];
    let (length, fds) = omfs_sys::fdpass::recv_fds(stream, &mut buffer)?;
    buffer.truncate(length);
    Ok((buffer, fds))
}
