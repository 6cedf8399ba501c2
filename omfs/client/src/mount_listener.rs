//! The daemon's side of `mount -t fuse.omfs`: takes mounted `/dev/fuse` descriptors from the
//! mount helper and serves them.

use std::fmt::Debug;
use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use omfs_sys::fdpass;

/// What the helper says with the descriptor.
pub const HELLO: &[u8] = b"omfs mount 1\n";
/// What the daemon answers when the mount is served; anything else is an error text.
pub const MOUNTED: &str = "mounted\n";
/// Longest answer.
pub const ANSWER_BYTES_MAX: usize = 4096;
/// How long one helper may keep the listener.
const HELPER_DEADLINE: Duration = Duration::from_secs(5);

/// Serves a mounted descriptor; called on the listener's thread.
pub type ServeMount = Box<dyn Fn(OwnedFd) -> io::Result<()> + Send>;

/// A running listener; dropping it stops it and removes the socket.
#[derive(Debug)]
pub struct MountListener {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Listens for mount helpers at `path`, which is made accessible to root only; a socket left there
/// by an earlier daemon is replaced. `serve` is called for each mount, typically with
/// [`super::serve`], and keeps the session.
///
/// # Errors
/// The socket cannot be made.
pub fn listen(path: &Path, serve: ServeMount) -> io::Result<MountListener> {
    let listener = omfs_sys::unix_socket::listen(path, 0o600)?;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let thread = thread::Builder::new()
        .name("omfs-mount".into())
        .spawn(move || accept_all(&listener, &serve, &stopped))?;
    Ok(MountListener {
        path: path.to_owned(),
        stop,
        thread: Some(thread),
    })
}

impl Drop for MountListener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the thread out of accept(2).
        let woken = UnixStream::connect(&self.path).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| woken) {
            let _ = thread.join();
        }
        let _ = fs::remove_file(&self.path);
    }
}

fn accept_all(listener: &UnixListener, serve: &ServeMount, stop: &AtomicBool) {
    for socket in listener.incoming() {
        if stop.load(Ordering::Acquire) {
            return;
        }
        match socket {
            Ok(socket) => {
                if let Err(error) = answer(socket, serve) {
                    tracing::warn!(%error, "a mount request failed");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept mount helpers");
                thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

fn answer(mut socket: UnixStream, serve: &ServeMount) -> io::Result<()> {
    socket.set_read_timeout(Some(HELPER_DEADLINE))?;
    socket.set_write_timeout(Some(HELPER_DEADLINE))?;
    let text = match take(&socket).and_then(serve) {
        Ok(()) => MOUNTED.to_owned(),
        Err(error) => error.to_string(),
    };
    socket.write_all(text.as_bytes())?;
    socket.shutdown(std::net::Shutdown::Both)
}

fn take(socket: &UnixStream) -> io::Result<OwnedFd> {
    let peer = getsockopt(socket, PeerCredentials)?;
    if peer.uid() != 0 {
        return Err(io::Error::other("only root may mount"));
    }
    let mut hello = [0; HELLO.len()];
    let (count, fuse) = fdpass::recv_fd(socket, &mut hello)?;
    match fuse {
        Some(fuse) if hello.get(..count) == Some(HELLO) => Ok(fuse),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "this is not a mount helper of this version",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::sync::mpsc;

    fn ask(path: &Path, hello: &[u8]) -> String {
        let mut socket = UnixStream::connect(path).unwrap();
        let (reader, _writer) = io::pipe().unwrap();
        fdpass::send_fd(&socket, hello, &reader.into()).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn a_descriptor_is_served_and_garbage_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mount.sock");
        let (tell, told) = mpsc::channel();
        let serve = move |fuse| tell.send(fuse).map_err(io::Error::other);
        let listener = listen(&path, Box::new(serve)).unwrap();
        if nix::unistd::geteuid().is_root() {
            assert_eq!(ask(&path, HELLO), MOUNTED);
            assert!(told.recv_timeout(Duration::from_secs(5)).is_ok());
            assert!(ask(&path, b"GET / HTTP/1").contains("not a mount helper"));
        } else {
            assert!(ask(&path, HELLO).contains("only root"));
        }
        drop(listener);
        assert!(!path.exists());
    }
}
