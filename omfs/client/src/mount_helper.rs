//! `mount.fuse.omfs SRC DIR -o OPTS`: what mount(8) calls.
//!
//! Mounts in its own mount namespace, hands the descriptor to the node's daemon and returns when
//! the mount answers. mount(8) clears the environment, so nothing here may depend on PATH.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::options::{self, MountOptions, UnknownOption};
use super::{mount, mount_listener};
use omfs_sys::fdpass;

/// How long the daemon and then the mount may take to answer, each.
const DEADLINE: Duration = Duration::from_secs(10);
/// Where the daemon listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/omfs/mount.sock";
/// What updatedb(8) spares is said here.
const UPDATEDB: &str = "/etc/updatedb.conf";
/// The option that names another socket.
const SOCKET_OPTION: &str = "socket=";

/// Why a mount failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The command line is wrong.
    #[error("usage: mount.fuse.omfs SOURCE DIRECTORY [-o OPTIONS]")]
    Usage,
    /// An option is wrong.
    #[error(transparent)]
    Option(#[from] UnknownOption),
    /// No daemon.
    #[error("cannot reach the omfs daemon at {socket}: {error}; is `omfs daemon` running?")]
    Daemon {
        /// The socket that was tried.
        socket: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
    /// The daemon's socket is root's.
    #[error("only root may mount")]
    NotRoot,
    /// A second mount would only hide the first one.
    #[error("omfs is mounted on {0} already")]
    Mounted(PathBuf),
    /// mount(2) or /dev/fuse.
    #[error("cannot mount on {target}: {error}")]
    Mount {
        /// The mount point.
        target: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
    /// The daemon said no.
    #[error("the omfs daemon refused the mount: {0}")]
    Refused(String),
    /// Nothing answers behind the mount.
    #[error("the mount did not answer within {} s", DEADLINE.as_secs())]
    Silent,
}

impl MountError {
    /// The exit status, as mount(8) documents it: 1 for wrong use, 32 for a failed mount.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Usage | Self::Option(_) => 1,
            _ => 32,
        }
    }
}

/// A parsed command line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountCommand {
    /// What `/proc/mounts` shows as the source.
    pub source: String,
    /// The mount point.
    pub target: PathBuf,
    /// The mount's options.
    pub options: MountOptions,
    /// The daemon's socket.
    pub socket: PathBuf,
    /// `-f`: do everything but the mount.
    pub fake: bool,
}

/// Reads the command line that mount(8) gives its helpers, without the program's name:
/// `SOURCE DIRECTORY [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]`.
///
/// # Errors
/// [`MountError::Usage`] and [`MountError::Option`].
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<MountCommand, MountError> {
    let mut words = Vec::new();
    let mut texts = Vec::new();
    let mut fake = false;
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("-o") => texts.push(text(args.next())?),
            Some("-t" | "-N") => drop(args.next().ok_or(MountError::Usage)?),
            Some(flags) if flags.len() > 1 && flags.starts_with('-') => {
                fake |= known_flags(flags)?.contains('f');
            }
            _ => words.push(arg),
        }
    }
    let [source, target] = <[OsString; 2]>::try_from(words).map_err(|_| MountError::Usage)?;
    let mut socket = PathBuf::from(DEFAULT_SOCKET);
    let joined = texts.join(",");
    let mut others = Vec::new();
    for option in joined.split(',') {
        match option.strip_prefix(SOCKET_OPTION) {
            Some(path) => socket = path.into(),
            None => others.push(option),
        }
    }
    Ok(MountCommand {
        source: source.to_string_lossy().into_owned(),
        target: target.into(),
        options: options::parse(&others.join(","))?,
        socket,
        fake,
    })
}

fn text(arg: Option<OsString>) -> Result<String, MountError> {
    arg.and_then(|arg| arg.into_string().ok())
        .ok_or(MountError::Usage)
}

/// `-s` (sloppy), `-f` (fake), `-n` (no mtab), `-v` (verbose), together or apart.
fn known_flags(arg: &str) -> Result<&str, MountError> {
    let flags = arg.trim_start_matches('-');
    if flags.chars().all(|flag| "sfnv".contains(flag)) {
        Ok(flags)
    } else {
        Err(MountError::Usage)
    }
}

/// Whether a program name is the mount helper's.
#[must_use]
pub fn is_helper_name(program: &OsStr) -> bool {
    let name = Path::new(program).file_name();
    name == Some(OsStr::new("mount.fuse.omfs")) || name == Some(OsStr::new("mount.omfs"))
}

/// Mounts, and returns when the mount answers.
///
/// # Errors
/// [`MountError`]; nothing stays mounted then.
pub fn run(command: &MountCommand) -> Result<(), MountError> {
    // First the daemon, so that nothing is mounted when there is none.
    let socket = connect(&command.socket)?;
    if command.fake {
        return Ok(());
    }
    clear_dead_mount(&command.target);
    if mount::mounted().contains(&command.target) {
        return Err(MountError::Mounted(command.target.clone()));
    }
    let mounted = mount::mount_fuse(&command.source, &command.target, command.options);
    let fuse = mounted.map_err(|error| MountError::Mount {
        target: command.target.clone(),
        error,
    })?;
    let outcome = hand_over(&socket, fuse, command);
    if outcome.is_err() {
        // The error that is reported is the one that matters.
        let _ = mount::unmount_lazily(&command.target);
    }
    outcome
}

/// The whole helper: parses, mounts, prints what went wrong, answers the exit status.
#[must_use]
pub fn main(args: impl IntoIterator<Item = OsString>) -> u8 {
    match parse(args).and_then(|command| run(&command).map(|()| command)) {
        Ok(command) => {
            let settings = std::fs::read_to_string(UPDATEDB).unwrap_or_default();
            if is_crawled(&settings, &command.target) {
                eprintln!(
                    "mount.fuse.omfs: updatedb would search the disks of all nodes: \
                     add fuse.omfs to PRUNEFS in {UPDATEDB}"
                );
            }
            0
        }
        Err(error) => {
            eprintln!("mount.fuse.omfs: {error}");
            error.exit_status()
        }
    }
}

fn connect(path: &Path) -> Result<UnixStream, MountError> {
    let socket = UnixStream::connect(path).and_then(|socket| {
        socket.set_read_timeout(Some(DEADLINE))?;
        socket.set_write_timeout(Some(DEADLINE))?;
        Ok(socket)
    });
    socket.map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => MountError::NotRoot,
        _ => MountError::Daemon {
            socket: path.to_owned(),
            error,
        },
    })
}

/// Whether updatedb(8) with these settings would go through every node's files.
fn is_crawled(settings: &str, target: &Path) -> bool {
    let lines = settings.lines().map(str::trim);
    let mut lines = lines.filter(|line| !line.starts_with('#')).peekable();
    let target = target.to_string_lossy();
    let spared = |line: &str| {
        let names = line.split(['=', '"', ' ', '\t']);
        names
            .skip(1)
            .any(|name| name.eq_ignore_ascii_case(mount::FS_TYPE) || name == target)
    };
    lines.peek().is_some() && !lines.any(spared)
}

/// A daemon that died leaves a mount that only says ENOTCONN: the new one takes its place.
fn clear_dead_mount(target: &Path) {
    let dead = std::fs::symlink_metadata(target)
        .is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN));
    if dead {
        let _ = mount::unmount_lazily(target);
    }
}

fn hand_over(socket: &UnixStream, fuse: OwnedFd, command: &MountCommand) -> Result<(), MountError> {
    let unreachable = |error| MountError::Daemon {
        socket: command.socket.clone(),
        error,
    };
    fdpass::send_fd(socket, mount_listener::HELLO, &fuse).map_err(unreachable)?;
    // Only the daemon may keep the mount alive: its death must show as ENOTCONN.
    drop(fuse);
    let mut answer = String::new();
    let limit = mount_listener::ANSWER_BYTES_MAX as u64;
    socket
        .take(limit)
        .read_to_string(&mut answer)
        .map_err(unreachable)?;
    if answer != mount_listener::MOUNTED {
        return Err(MountError::Refused(answer));
    }
    wait_until_it_answers(&command.target)
}

/// On a thread, since a call into a mount that does not answer cannot be interrupted.
fn wait_until_it_answers(target: &Path) -> Result<(), MountError> {
    let (tell, told) = mpsc::channel();
    let path = target.to_owned();
    thread::spawn(move || {
        // Nobody listens any more after the deadline.
        let _ = tell.send(nix::sys::statvfs::statvfs(&path));
    });
    match told.recv_timeout(DEADLINE) {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(errno)) => Err(MountError::Mount {
            target: target.to_owned(),
            error: errno.into(),
        }),
        Err(_) => Err(MountError::Silent),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn what_mount_calls_is_understood() {
        let command = parse(words("omfs /mfs -o rw,_netdev,socket=/tmp/x.sock -n -s")).unwrap();
        assert_eq!(command.source, "omfs");
        assert_eq!(command.target, Path::new("/mfs"));
        assert_eq!(command.socket, Path::new("/tmp/x.sock"));
        assert!(!command.fake);
        assert!(parse(words("omfs /mfs -sfnv")).unwrap().fake);
        let typed = parse(words("-t fuse.omfs omfs /mfs")).unwrap();
        assert_eq!(typed.socket, Path::new(DEFAULT_SOCKET));
    }

    #[test]
    fn wrong_use_is_status_1_and_names_the_option() {
        for line in ["", "omfs", "omfs /mfs more", "omfs /mfs -x", "omfs /mfs -o"] {
            let error = parse(words(line)).unwrap_err();
            assert_eq!(error.exit_status(), 1, "{line}");
        }
        let error = parse(words("omfs /mfs -o blue")).unwrap_err();
        assert!(error.to_string().contains("blue"), "{error}");
    }

    #[test]
    fn without_a_daemon_nothing_is_mounted_and_the_message_says_so() {
        let mut command = parse(words("omfs /nonexistent")).unwrap();
        command.socket = "/nonexistent/mount.sock".into();
        let error = run(&command).unwrap_err();
        assert_eq!(error.exit_status(), 32);
        assert!(error.to_string().contains("omfs daemon"), "{error}");
    }

    #[test]
    fn updatedb_must_be_told_to_spare_it() {
        let crawled = |settings| is_crawled(settings, Path::new("/mfs"));
        assert!(crawled(
            "PRUNEFS=\"nfs fuse.sshfs\"\nPRUNEPATHS=\"/tmp /mfs2\"\n"
        ));
        assert!(crawled("PRUNEFS = \"nfs\"\n# PRUNEFS=\"fuse.omfs\"\n"));
        assert!(!crawled("PRUNEFS=\"nfs FUSE.OMFS sysfs\"\n"));
        assert!(!crawled("PRUNEFS = \"nfs\"\nPRUNEPATHS = \"/tmp /mfs\"\n"));
        assert!(!crawled(""));
    }

    #[test]
    fn the_helper_is_known_by_its_name() {
        assert!(is_helper_name(OsStr::new("/sbin/mount.fuse.omfs")));
        assert!(!is_helper_name(OsStr::new("/usr/bin/omfs")));
    }
}
