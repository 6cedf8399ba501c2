//! Unix sockets that have their final mode from the first moment.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Listens at `path`, which gets these permissions; a socket that is there is replaced. The socket
/// is made in a directory that only this user can enter, and moved when it is ready: nobody finds it
/// with other permissions.
///
/// # Errors
/// The directory is not there, or not ours.
pub fn listen(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let nursery = Nursery::make(path)?;
    let fresh = nursery.0.join("s");
    let listener = UnixListener::bind(&fresh)?;
    fs::set_permissions(&fresh, Permissions::from_mode(mode))?;
    fs::rename(&fresh, path)?;
    Ok(listener)
}

/// A private directory beside the socket, which goes away.
struct Nursery(PathBuf);

impl Nursery {
    fn make(socket: &Path) -> io::Result<Self> {
        let mut name = socket.as_os_str().to_owned();
        name.push(".new");
        let nursery = Self(name.into());
        // What a crash has left may have other permissions.
        nursery.remove()?;
        DirBuilder::new().mode(0o700).create(&nursery.0)?;
        Ok(nursery)
    }

    fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for Nursery {
    fn drop(&mut self) {
        let _ = self.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn no_other_mode_is_ever_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let done = AtomicBool::new(false);
        let seen = std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let mut seen = std::collections::BTreeSet::new();
                while !done.load(Ordering::Relaxed) {
                    if let Ok(found) = fs::metadata(&path) {
                        seen.insert(found.permissions().mode() & 0o777);
                    }
                }
                seen
            });
            for _ in 0..2000 {
                listen(&path, 0o600).unwrap();
            }
            done.store(true, Ordering::Relaxed);
            watcher.join().unwrap()
        });
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [0o600]);
    }

    #[test]
    fn a_left_over_is_replaced_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        fs::create_dir(dir.path().join("a.sock.new")).unwrap();
        drop(listen(&path, 0o600).unwrap());
        let _listener = listen(&path, 0o666).unwrap();
        UnixStream::connect(&path).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
