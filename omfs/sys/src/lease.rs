//! File leases (fcntl(2) "Leases") and the signals that tell of their breaking.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

/// What a lease forbids to others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LeaseKind {
    /// Opening for writing, truncating (`F_RDLCK`).
    Read,
    /// Opening (`F_WRLCK`).
    Write,
}

/// `F_SETSIG`, `F_GETSIG` and `F_SETOWN_EX` of fcntl(2), which the libc crate does not know.
const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;
const F_SETOWN_EX: i32 = 15;
const F_OWNER_TID: i32 = 0;

/// `struct f_owner_ex` of fcntl(2).
#[repr(C)]
struct OwnerEx {
    kind: i32,
    pid: i32,
}
const _: () = assert!(size_of::<OwnerEx>() == 8);

/// The signal that tells of a break: a queued one, which carries the descriptor.
fn break_signal() -> i32 {
    libc::SIGRTMIN() + 7
}

/// Takes a lease on the open file description behind `fd`, of whose breaking the thread `watcher`
/// (gettid(2)) is told.
///
/// # Errors
/// `EAGAIN` when the file is open in a way that the lease would forbid; others of fcntl(2).
pub fn take(fd: BorrowedFd<'_>, kind: LeaseKind, watcher: i32) -> io::Result<()> {
    let owner = OwnerEx {
        kind: F_OWNER_TID,
        pid: watcher,
    };
    let kind = match kind {
        LeaseKind::Read => libc::F_RDLCK,
        LeaseKind::Write => libc::F_WRLCK,
    };
    // SAFETY: the kernel only reads `owner`, which lives through the call. nix lacks these three.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), F_SETOWN_EX, &raw const owner) })?;
    // SAFETY: integers only.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), F_SETSIG, break_signal()) })?;
    // SAFETY: integers only.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETLEASE, kind) })
}

/// Gives a lease up; whoever waits for that goes on. Harmless without a lease.
pub fn give_up(fd: BorrowedFd<'_>) {
    // The description may not be ours alone: it is left as it was.
    let nobody = OwnerEx {
        kind: F_OWNER_TID,
        pid: 0,
    };
    // SAFETY: integers, and `nobody`, which the kernel only reads. The only error is that there is
    // no lease.
    unsafe {
        libc::fcntl(fd.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK);
        libc::fcntl(fd.as_raw_fd(), F_SETSIG, 0);
        libc::fcntl(fd.as_raw_fd(), F_SETOWN_EX, &raw const nobody);
    }
}

/// Gives a lease up that an earlier process of this program took on a description that has outlived
/// it, because other processes have it, too. Nobody would ever hear of its breaking.
pub fn give_up_orphan(fd: BorrowedFd<'_>) {
    // SAFETY: integers only.
    let signal = unsafe { libc::fcntl(fd.as_raw_fd(), F_GETSIG) };
    if signal == break_signal() {
        give_up(fd);
    }
}

/// Whether a lease of this kind is held and nobody waits for it.
#[must_use]
pub fn is_whole(fd: BorrowedFd<'_>, kind: LeaseKind) -> bool {
    // SAFETY: integers only.
    let left = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETLEASE) };
    left == match kind {
        LeaseKind::Read => libc::F_RDLCK,
        LeaseKind::Write => libc::F_WRLCK,
    }
}

/// What [`wait`] was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Told {
    /// The lease on this descriptor is being broken; it may be closed by now.
    Broken(RawFd),
    /// Some lease is being broken: the queue of signals was full.
    Some,
    /// None, in all the time.
    Nothing,
}

/// The signals of broken leases.
fn signals() -> libc::sigset_t {
    // SAFETY: sigset_t is plain integers; the calls initialise it and set two bits.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, break_signal());
        libc::sigaddset(&raw mut set, libc::SIGIO);
        set
    }
}

/// Makes the calling thread one that can [`wait`]; returns its number for [`take`].
///
/// # Errors
/// Those of pthread_sigmask(3).
pub fn become_watcher() -> io::Result<i32> {
    let set = signals();
    // SAFETY: `set` lives through the call, and nothing is asked back. nix knows no queued signals.
    let error =
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    // SAFETY: no arguments.
    Ok(unsafe { libc::gettid() })
}

/// The part of `siginfo_t` that sigaction(2) fills in for SIGIO and F_SETSIG.
#[repr(C)]
struct PollInfo {
    signal: i32,
    errno: i32,
    code: i32,
    padding: i32,
    band: i64,
    fd: i32,
    rest: [i32; 25],
}
const _: () = assert!(size_of::<PollInfo>() == size_of::<libc::siginfo_t>());

/// Waits for a lease to be broken, on a thread that is a watcher.
#[must_use]
pub fn wait(timeout: Duration) -> Told {
    let set = signals();
    let timeout = libc::timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    };
    // SAFETY: plain integers, for which zero is a value.
    let mut info: PollInfo = unsafe { std::mem::zeroed() };
    // SAFETY: all three live through the call; `info` has the size of siginfo_t (asserted above).
    let signal = unsafe {
        libc::sigtimedwait(
            &raw const set,
            (&raw mut info).cast::<libc::siginfo_t>(),
            &raw const timeout,
        )
    };
    match signal {
        signal if signal == break_signal() => Told::Broken(info.fd),
        libc::SIGIO => Told::Some,
        _ => Told::Nothing,
    }
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::sync::mpsc;

    #[test]
    fn an_opener_for_writing_waits_until_the_lease_is_given_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "x").unwrap();
        let watcher = become_watcher().unwrap();
        let held = File::open(&path).unwrap();
        take(held.as_fd(), LeaseKind::Read, watcher).unwrap();
        assert!(is_whole(held.as_fd(), LeaseKind::Read));
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || tell.send(File::create(path).is_ok()));
        let broken = wait(Duration::from_secs(10));
        assert_eq!(broken, Told::Broken(held.as_raw_fd()));
        assert!(!is_whole(held.as_fd(), LeaseKind::Read));
        assert!(told.try_recv().is_err());
        give_up(held.as_fd());
        assert_eq!(told.recv_timeout(Duration::from_secs(10)), Ok(true));
    }

    #[test]
    fn only_leases_of_this_program_are_orphans() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "x").unwrap();
        let reader = File::open(&path).unwrap();
        let watcher = become_watcher().unwrap();
        take(reader.as_fd(), LeaseKind::Read, watcher).unwrap();
        give_up_orphan(reader.as_fd());
        assert!(!is_whole(reader.as_fd(), LeaseKind::Read));
        // SAFETY: integers only.
        check(unsafe { libc::fcntl(reader.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) }).unwrap();
        give_up_orphan(reader.as_fd());
        assert!(is_whole(reader.as_fd(), LeaseKind::Read));
    }

    #[test]
    fn a_file_that_is_open_for_writing_has_no_lease() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let reader = File::open(file.path()).unwrap();
        let watcher = become_watcher().unwrap();
        let error = take(reader.as_fd(), LeaseKind::Read, watcher).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EAGAIN));
    }
}
