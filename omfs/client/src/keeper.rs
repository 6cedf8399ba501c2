//! Keeps mounts alive while no daemon serves them: a process of its own that holds their `/dev/fuse`
//! descriptors and does nothing else, so that there is nothing for it to die of.
//!
//! Without it the end of a daemon, for whatever reason, would end its mounts: users would find
//! ENOTCONN, and guests would die. With it requests wait until the next daemon takes over.
//!
//! The daemon keeps one connection. On it come messages of [`MESSAGE_BYTES`]: from the keeper all
//! that is kept, with the descriptors, and an end; from the daemon what is to be kept or dropped.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use omfs_sys::fdpass;

/// How long mounts are kept while no daemon is there. Whoever uses them waits so long at most.
const ORPHAN_MAX: Duration = Duration::from_secs(60);
/// How often is looked whether mounts are gone. To wait for it would mean to be woken by every
/// request.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// One message: what it says, the length of the name, the name, zeroes.
const MESSAGE_BYTES: usize = 256;
/// Longest name of a mount.
pub const NAME_BYTES_MAX: usize = MESSAGE_BYTES - 2;

const KEEP: u8 = b'k';
const DROP: u8 = b'd';
const END: u8 = b'e';

type Message = [u8; MESSAGE_BYTES];

fn message(what: u8, name: &str) -> Message {
    let mut message = [0; MESSAGE_BYTES];
    let length = name.len().min(NAME_BYTES_MAX);
    let fields = [what, u8::try_from(length).unwrap_or(0)];
    let bytes = fields.iter().chain(&name.as_bytes()[..length]);
    for (place, byte) in message.iter_mut().zip(bytes) {
        *place = *byte;
    }
    message
}

fn receive(socket: &UnixStream) -> io::Result<(u8, String, Option<OwnedFd>)> {
    let mut bytes = [0; MESSAGE_BYTES];
    let (count, fd) = fdpass::recv_fd(socket, &mut bytes)?;
    match bytes {
        _ if count == 0 => Err(io::ErrorKind::UnexpectedEof.into()),
        [what, length, ref name @ ..] if count == MESSAGE_BYTES => {
            let name = name.get(..usize::from(length)).unwrap_or_default();
            Ok((what, String::from_utf8_lossy(name).into_owned(), fd))
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// The daemon's connection to the keeper.
#[derive(Debug)]
pub struct Keeper(UnixStream);

/// A mount that an earlier daemon served.
#[derive(Debug)]
pub struct Kept {
    /// As it was given to [`Keeper::keep`].
    pub name: String,
    /// Its `/dev/fuse`.
    pub fuse: OwnedFd,
}

impl Keeper {
    /// Connects, and takes what is kept, which stays kept.
    ///
    /// # Errors
    /// There is no keeper, or it does not answer.
    pub fn connect(path: &Path) -> io::Result<(Self, Vec<Kept>)> {
        let socket = UnixStream::connect(path)?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut kept = Vec::new();
        loop {
            match receive(&socket)? {
                (KEEP, name, Some(fuse)) => kept.push(Kept { name, fuse }),
                (END, ..) => return Ok((Self(socket), kept)),
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
    }

    /// Has a mount kept.
    ///
    /// # Errors
    /// The keeper is gone.
    pub fn keep(&self, name: &str, fuse: &OwnedFd) -> io::Result<()> {
        fdpass::send_fd(&self.0, &message(KEEP, name), fuse)
    }

    /// Has it dropped.
    ///
    /// # Errors
    /// The keeper is gone.
    pub fn drop(&self, name: &str) -> io::Result<()> {
        (&self.0).write_all(&message(DROP, name))
    }
}

/// Keeps mounts until there are none, or no daemon has come for too long.
///
/// # Errors
/// The listening socket does not work.
pub fn run(listener: &UnixListener) -> io::Result<()> {
    let mut desk = Desk {
        kept: BTreeMap::new(),
        daemon: None,
        has_served: false,
        left: Instant::now(),
    };
    while desk.daemon.is_some() || desk.left.elapsed() < desk.patience() {
        if desk.wait(listener)? {
            if desk.daemon.is_some() {
                desk.hear();
            } else {
                desk.admit(listener.accept()?.0);
            }
        }
        desk.kept.retain(|_, fuse| is_mounted(fuse));
    }
    Ok(())
}

#[derive(Debug)]
struct Desk {
    kept: BTreeMap<String, OwnedFd>,
    daemon: Option<UnixStream>,
    has_served: bool,
    /// When the last daemon left.
    left: Instant,
}

impl Desk {
    /// How long to wait for a daemon.
    fn patience(&self) -> Duration {
        match (self.kept.is_empty(), self.has_served) {
            (true, true) => Duration::ZERO,
            (true, false) => LOOK_INTERVAL,
            (false, _) => ORPHAN_MAX,
        }
    }

    /// Waits for the daemon to say something or to go; while there is none, for one to come. Nobody
    /// else is heard before all that a daemon has said. False when nothing happened.
    fn wait(&self, listener: &UnixListener) -> io::Result<bool> {
        let timeout = PollTimeout::try_from(LOOK_INTERVAL).unwrap_or(PollTimeout::ZERO);
        let daemon = self.daemon.as_ref().map(AsFd::as_fd);
        let awaited = daemon.unwrap_or(listener.as_fd());
        let mut fds = [PollFd::new(awaited, PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(ready) => Ok(ready > 0),
            Err(nix::errno::Errno::EINTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn hear(&mut self) {
        let Some(daemon) = &self.daemon else {
            return;
        };
        match receive(daemon) {
            Ok((KEEP, name, Some(fuse))) => drop(self.kept.insert(name, fuse)),
            Ok((DROP, name, _)) => drop(self.kept.remove(&name)),
            _ => {
                self.daemon = None;
                self.left = Instant::now();
            }
        }
    }

    fn admit(&mut self, daemon: UnixStream) {
        let is_root = getsockopt(&daemon, PeerCredentials).is_ok_and(|peer| peer.uid() == 0);
        if !is_root {
            return;
        }
        let tell = || -> io::Result<()> {
            daemon.set_write_timeout(Some(LOOK_INTERVAL))?;
            for (name, fuse) in &self.kept {
                fdpass::send_fd(&daemon, &message(KEEP, name), fuse)?;
            }
            (&daemon).write_all(&message(END, ""))
        };
        if tell().is_ok() {
            self.daemon = Some(daemon);
            self.has_served = true;
        }
    }
}

/// An unmounted `/dev/fuse` is in error.
fn is_mounted(fuse: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(fuse.as_fd(), PollFlags::empty())];
    let _ = poll(&mut fds, PollTimeout::ZERO);
    fds.iter().all(|fd| {
        fd.revents()
            .is_none_or(|seen| !seen.contains(PollFlags::POLLERR))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_daemon_gave_the_next_one_gets() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keeper.sock");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || run(&listener));
        let (first, kept) = Keeper::connect(&path).unwrap();
        assert!(kept.is_empty());
        let (mut reader, writer) = io::pipe().unwrap();
        first.keep("a\t/mfs", &writer.into()).unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        first.keep("b", &null.into()).unwrap();
        first.drop("b").unwrap();
        drop(first);
        let (_second, kept) = Keeper::connect(&path).unwrap();
        let names: Vec<_> = kept.iter().map(|kept| &kept.name[..]).collect();
        assert_eq!(names, ["a\t/mfs"]);
        let fuse = kept.into_iter().next().unwrap().fuse;
        std::fs::File::from(fuse).write_all(b"x").unwrap();
        let mut byte = [0];
        io::Read::read_exact(&mut reader, &mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }

    #[test]
    fn long_names_are_cut() {
        let name = "x".repeat(1000);
        assert_eq!(message(KEEP, &name)[1] as usize, NAME_BYTES_MAX);
    }
}
