//! Record locks and BSD locks of peers, arbitrated by this node's kernel, so that they exclude
//! native programs, too.
//!
//! A record lock belongs to an owner at the peer, not to an open file. Each owner gets an open file
//! description of its own per inode, whose "open file description locks" (fcntl(2)) behave among
//! each other as the locks of processes do. A BSD lock belongs to an open file, and so it is set on
//! the description that stands for it.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::v1::Lock;
use proto::v1::fs_reply::Result as Reply;

use super::answer::{Answer, done, reply};
use super::files::OpenFile;
use super::limits::{Counted, Limits};
use super::{Errno, ExportSession, native_locks};
use omfs_sys::file::{self, Freshness};
use omfs_sys::lock::{self, Conflict, LockKind, Range};

/// Releases by peers wake the waiters of the same file. Whether a native holder is gone, or the
/// request was withdrawn, is looked at in intervals that grow from the first to the second.
const LOOK_FIRST: Duration = Duration::from_millis(5);
const LOOK_MAX: Duration = Duration::from_millis(80);
/// Each waiter keeps a thread.
const WAITERS_PER_SESSION_MAX: usize = 256;

/// How often a lease is taken back for a lock, should the peer get another one meanwhile.
const LEASE_ATTEMPTS_MAX: usize = 8;
/// No session has this number.
const NO_SESSION: u64 = 0;

/// Why a record lock was not set.
#[derive(Debug)]
enum NotSet {
    /// Somebody has a lease on the file.
    Leased,
    Error(Errno),
}

impl From<Errno> for NotSet {
    fn from(error: Errno) -> Self {
        Self::Error(error)
    }
}

/// Device and inode number.
type Inode = (u64, u64);

/// The description that holds one owner's record locks on one inode.
#[derive(Debug)]
struct Holder {
    fd: Counted<OwnedFd>,
    is_writable: bool,
    pid: i32,
}

/// The record locks of one session.
#[derive(Debug)]
pub(super) struct Locks {
    limits: Arc<Limits>,
    released: Arc<Released>,
    holders: Mutex<HashMap<(Inode, u64), Holder>>,
    waiters: AtomicUsize,
}

impl Locks {
    pub fn new(limits: Arc<Limits>, released: Arc<Released>) -> Self {
        Self {
            limits,
            released,
            holders: Mutex::default(),
            waiters: AtomicUsize::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(Inode, u64), Holder>> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops an owner's record locks on an inode, as each close(2) of it does.
    pub fn drop_owner(&self, inode: Inode, owner: u64) {
        let dropped = self.lock().remove(&(inode, owner));
        self.close(inode, dropped);
    }

    /// Drops all record locks on an inode that the peer has closed.
    pub fn drop_inode(&self, inode: Inode) {
        let dropped: Vec<_> = self.lock().extract_if(|(of, _), _| *of == inode).collect();
        self.close(inode, dropped);
    }

    pub fn has_any(&self, inode: Inode) -> bool {
        self.lock().keys().any(|(of, _)| *of == inode)
    }

    /// Closing is what unlocks; only then waiters may look again.
    fn close<T>(&self, inode: Inode, dropped: impl IntoIterator<Item = T>) {
        let dropped: Vec<T> = dropped.into_iter().collect();
        if !dropped.is_empty() {
            drop(dropped);
            self.released.announce(inode);
        }
    }

    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.waiters.load(Ordering::Relaxed)
    }

    fn set_record(&self, open: &OpenFile, arg: &Lock, wanted: Wanted) -> Result<(), NotSet> {
        let mut holders = self.lock();
        let key = (open.inode, arg.owner);
        if wanted.kind == LockKind::Unlocked && !holders.contains_key(&key) {
            return Ok(());
        }
        let holder = match holders.remove(&key) {
            Some(holder) => holder,
            None => match self.new_holder(open, arg.pid) {
                Err(Errno(libc::EAGAIN)) => return Err(NotSet::Leased),
                holder => holder?,
            },
        };
        let (holder, result) = self.set_on(holder, open, wanted);
        holders.insert(key, holder);
        Ok(result?)
    }

    /// The description's access mode must suit the lock. It follows the file that the owner uses,
    /// and grows when the owner uses another one.
    fn set_on(
        &self,
        holder: Holder,
        open: &OpenFile,
        wanted: Wanted,
    ) -> (Holder, Result<(), Errno>) {
        let set = |holder: &Holder| lock::set_record(holder.fd.as_fd(), wanted.kind, wanted.range);
        match set(&holder) {
            Err(error) if error.raw_os_error() == Some(libc::EBADF) && !holder.is_writable => {
                match self.widen(&holder, open) {
                    Ok(wider) => {
                        // Its locks would be in the way.
                        drop(holder);
                        let result = set(&wider).map_err(Errno::from);
                        (wider, result)
                    }
                    Err(error) => (holder, Err(error)),
                }
            }
            result => (holder, result.map_err(Errno::from)),
        }
    }

    fn new_holder(&self, open: &OpenFile, pid: i32) -> Result<Holder, Errno> {
        // A description that could write although the owner cannot would break leases and keep
        // the file from being executed.
        let access = if open.is_writable {
            libc::O_RDWR
        } else {
            libc::O_RDONLY
        };
        let fd = file::reopen(open.fd(), access | libc::O_NONBLOCK)?;
        let fd = self
            .limits
            .count_opened(fd)
            .map_err(|_| Errno(libc::ENOLCK))?;
        Ok(Holder {
            fd,
            is_writable: open.is_writable,
            pid,
        })
    }

    /// One that can hold exclusive locks as well, with the same (shared) locks as `holder`.
    fn widen(&self, holder: &Holder, open: &OpenFile) -> Result<Holder, Errno> {
        if !open.is_writable {
            return Err(Errno(libc::EBADF));
        }
        let wider = self.new_holder(open, holder.pid)?;
        for range in held_ranges(&holder.fd)? {
            lock::set_record(wider.fd.as_fd(), LockKind::Shared, range)?;
        }
        Ok(wider)
    }

    fn find_conflict(&self, open: &OpenFile, arg: &Lock, wanted: Wanted) -> Result<Lock, Errno> {
        let holders = self.lock();
        let found = match holders.get(&(open.inode, arg.owner)) {
            Some(holder) => lock::find_conflict(holder.fd.as_fd(), wanted.kind, wanted.range)?,
            // Without a holder the owner has no lock that could be taken for a conflict.
            None => lock::find_conflict(open.fd(), wanted.kind, wanted.range)?,
        };
        let Some(conflict) = found else {
            return Ok(Lock {
                r#type: libc::F_UNLCK as u32,
                ..*arg
            });
        };
        let mut others = holders
            .iter()
            .filter(|((inode, owner), _)| *inode == open.inode && *owner != arg.owner);
        // The kernel does not tell which description is in the way; a single one must be it.
        let pid = match (conflict.pid, others.next(), others.next()) {
            (Some(pid), _, _) => pid,
            (None, Some((_, other)), None) => other.pid,
            _ => 0,
        };
        Ok(from_conflict(arg, &conflict, pid))
    }
}

impl ExportSession {
    pub(super) fn get_lock(&self, arg: &Lock) -> Answer {
        let open = self.files.get(arg.fh)?;
        let wanted = Wanted::of(arg)?;
        reply(Reply::Lock(self.locks.find_conflict(&open, arg, wanted)?))
    }

    pub(super) fn set_lock(&self, arg: &Lock, cancel: &AtomicBool) -> Answer {
        let open = self.files.get(arg.fh)?;
        let wanted = Wanted::of(arg)?;
        if arg.stored && wanted.kind != LockKind::Unlocked && self.is_used_natively(&open)? {
            // What the lock protects is in a mapping of the peer's, of which the native holder sees nothing.
            return Err(Errno(libc::EIO));
        }
        let set = || {
            if arg.flock {
                set_flock(&open, wanted.kind)
            } else {
                self.set_record(&open, arg, wanted)
            }
        };
        if arg.wait {
            self.locks.wait_until(open.inode, set, cancel)?
        } else {
            set()?
        }
        if wanted.kind != LockKind::Exclusive {
            // Also a lock that was exclusive before may let others in.
            self.locks.released.announce(open.inode);
        }
        done()
    }

    /// Whether programs of this node may use a file: they have locked it, or opened it for writing
    /// through their own /mfs.
    fn is_used_natively(&self, open: &OpenFile) -> Result<bool, Errno> {
        Ok(self.export.writers.has_local(open.inode) || has_native_lock(open)?)
    }

    /// A description for an owner's first lock would break the peer's own lease on the file, so that
    /// is taken back before.
    fn set_record(&self, open: &OpenFile, arg: &Lock, wanted: Wanted) -> Result<(), Errno> {
        for _ in 0..LEASE_ATTEMPTS_MAX {
            match self.locks.set_record(open, arg, wanted) {
                Err(NotSet::Leased) => self.export.leases.settle(open.inode, NO_SESSION),
                Err(NotSet::Error(error)) => return Err(error),
                Ok(()) => return Ok(()),
            }
        }
        Err(Errno(libc::EAGAIN))
    }

    /// What closing a file of the peer unlocks.
    pub(super) fn unlock_released(&self, open: &OpenFile) {
        if open.is_flocked.load(Ordering::Acquire) {
            // Others may share the description (FUSE passthrough), so that closing is not enough.
            let _ = lock::set_flock(open.fd(), LockKind::Unlocked);
            self.locks.released.announce(open.inode);
        }
        if self.locks.has_any(open.inode) && !self.files.has_open(open.inode) {
            self.locks.drop_inode(open.inode);
        }
    }
}

impl Locks {
    /// Repeats `set` until it succeeds. Releases through any session wake it at once.
    fn wait_until(
        &self,
        inode: Inode,
        set: impl Fn() -> Result<(), Errno>,
        cancel: &AtomicBool,
    ) -> Result<(), Errno> {
        let _place = Place::take(&self.waiters)?;
        let waiter = self.released.waiter(inode);
        let mut look = LOOK_FIRST;
        loop {
            let seen = waiter.event.count();
            match set() {
                Err(Errno(libc::EAGAIN)) => {}
                result => return result,
            }
            if cancel.load(Ordering::Acquire) {
                return Err(Errno(libc::EINTR));
            }
            waiter.event.wait(seen, look);
            look = (look * 2).min(LOOK_MAX);
        }
    }
}

/// Whether a program of this node has locked any part of a file.
fn has_native_lock(open: &OpenFile) -> Result<bool, Errno> {
    let (dev, ino) = open.inode;
    // Of files on overlayfs the kernel tells the device number of the directories here.
    let anchor = open.mount.anchor.as_ref();
    let directories = anchor.and_then(|anchor| file::stat(anchor.as_fd(), Freshness::Known).ok());
    let devices = [dev, directories.map_or(dev, |stat| stat.dev)];
    let mut held = native_locks::all()?.into_iter();
    Ok(held.any(|held| held.ino == ino && devices.contains(&held.dev)))
}

fn set_flock(open: &OpenFile, kind: LockKind) -> Result<(), Errno> {
    // Before the lock: a release at the same time must see it.
    if kind != LockKind::Unlocked {
        open.is_flocked.store(true, Ordering::Release);
    }
    Ok(lock::set_flock(open.fd(), kind)?)
}

/// One of the bounded number of waiters.
#[derive(Debug)]
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(waiters: &'a AtomicUsize) -> Result<Self, Errno> {
        let place = Self(waiters);
        if waiters.fetch_add(1, Ordering::Relaxed) >= WAITERS_PER_SESSION_MAX {
            return Err(Errno(libc::ENOLCK));
        }
        Ok(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Tells the waiters of all sessions that a lock on their file is gone.
#[derive(Debug, Default)]
pub(super) struct Released {
    /// Only of files that somebody waits for.
    events: Mutex<HashMap<Inode, Arc<Event>>>,
}

#[derive(Debug, Default)]
struct Event {
    count: Mutex<u64>,
    changed: Condvar,
}

/// Somebody waits for a file's locks.
#[derive(Debug)]
struct Waiter<'a> {
    released: &'a Released,
    inode: Inode,
    event: Arc<Event>,
}

impl Released {
    fn events(&self) -> MutexGuard<'_, HashMap<Inode, Arc<Event>>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiter(&self, inode: Inode) -> Waiter<'_> {
        let event = Arc::clone(self.events().entry(inode).or_default());
        Waiter {
            released: self,
            inode,
            event,
        }
    }

    pub fn announce(&self, inode: Inode) {
        if let Some(event) = self.events().get(&inode) {
            *event.lock() += 1;
            event.changed.notify_all();
        }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut events = self.released.events();
        // The map's and this one's.
        if Arc::strong_count(&self.event) <= 2 {
            events.remove(&self.inode);
        }
    }
}

impl Event {
    fn lock(&self) -> MutexGuard<'_, u64> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self) -> u64 {
        *self.lock()
    }

    fn wait(&self, seen: u64, timeout: Duration) {
        let result = self
            .changed
            .wait_timeout_while(self.lock(), timeout, |count| *count == seen);
        drop(result);
    }
}

#[derive(Clone, Copy, Debug)]
struct Wanted {
    kind: LockKind,
    range: Range,
}

impl Wanted {
    /// # Errors
    /// `EINVAL` for an unknown kind or an empty range.
    fn of(arg: &Lock) -> Result<Self, Errno> {
        let kind = match i32::try_from(arg.r#type) {
            Ok(libc::F_RDLCK) => LockKind::Shared,
            Ok(libc::F_WRLCK) => LockKind::Exclusive,
            Ok(libc::F_UNLCK) => LockKind::Unlocked,
            _ => return Err(Errno(libc::EINVAL)),
        };
        Ok(Self {
            kind,
            range: to_range(arg.start, arg.end)?,
        })
    }
}

/// From first and last byte. Any end at or beyond the largest offset means "however far".
fn to_range(start: u64, end: u64) -> Result<Range, Errno> {
    let first = super::answer::offset(start)?;
    if end < start {
        return Err(Errno(libc::EINVAL));
    }
    match i64::try_from(end) {
        Ok(last) if last < i64::MAX => Ok(Range {
            start: first,
            length: last - first + 1,
        }),
        _ => Ok(Range {
            start: first,
            length: 0,
        }),
    }
}

fn from_conflict(arg: &Lock, conflict: &Conflict, pid: i32) -> Lock {
    let kind = if conflict.kind == LockKind::Shared {
        libc::F_RDLCK
    } else {
        libc::F_WRLCK
    };
    let range = conflict.range;
    let end = if range.length == 0 {
        i64::MAX
    } else {
        range.start + range.length - 1
    };
    Lock {
        r#type: kind as u32,
        start: range.start.unsigned_abs(),
        end: end.unsigned_abs(),
        pid,
        ..*arg
    }
}

/// What a description has locked, from its `lock:` lines in proc_pid_fdinfo(5).
fn held_ranges(fd: &OwnedFd) -> Result<Vec<Range>, Errno> {
    use std::os::fd::AsRawFd;
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    Ok(text.lines().filter_map(held_range).collect())
}

/// `lock:  1: OFDLCK ADVISORY READ -1 00:2b:1234 0 EOF`
fn held_range(line: &str) -> Option<Range> {
    let mut fields = line.strip_prefix("lock:")?.split_whitespace();
    if fields.nth(1)? != "OFDLCK" {
        return None;
    }
    let start: i64 = fields.nth(4)?.parse().ok()?;
    let length = match fields.next()? {
        "EOF" => 0,
        last => last.parse::<i64>().ok()? - start + 1,
    };
    Some(Range { start, length })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_byte_is_included() {
        assert_eq!(
            to_range(2, 2),
            Ok(Range {
                start: 2,
                length: 1
            })
        );
        assert_eq!(
            to_range(0, i64::MAX as u64),
            Ok(Range {
                start: 0,
                length: 0
            })
        );
        assert_eq!(
            to_range(7, u64::MAX),
            Ok(Range {
                start: 7,
                length: 0
            })
        );
        assert_eq!(to_range(3, 2), Err(Errno(libc::EINVAL)));
        assert_eq!(to_range(u64::MAX, u64::MAX), Err(Errno(libc::EINVAL)));
    }

    #[test]
    fn only_waiters_of_the_same_file_are_woken_and_none_is_remembered() {
        let released = Released::default();
        let (one, other) = ((1, 1), (1, 2));
        let (waiter, same, elsewhere) = (
            released.waiter(one),
            released.waiter(one),
            released.waiter(other),
        );
        released.announce(one);
        released.announce((1, 3));
        let counts = [&waiter, &same, &elsewhere].map(|waiter| waiter.event.count());
        assert_eq!(counts, [1, 1, 0]);
        let begun = std::time::Instant::now();
        waiter.event.wait(0, Duration::from_secs(60));
        assert!(begun.elapsed() < Duration::from_secs(30));
        drop((waiter, elsewhere));
        assert_eq!(released.events().len(), 1);
        drop(same);
        assert!(released.events().is_empty());
    }

    #[test]
    fn fdinfo_lines_tell_ranges() {
        let line = "lock:\t1: OFDLCK ADVISORY  READ -1 00:2b:1234 5 9";
        assert_eq!(
            held_range(line),
            Some(Range {
                start: 5,
                length: 5
            })
        );
        let open_ended = "lock:\t1: OFDLCK ADVISORY  READ -1 00:2b:1234 5 EOF";
        assert_eq!(
            held_range(open_ended),
            Some(Range {
                start: 5,
                length: 0
            })
        );
        assert_eq!(
            held_range("lock:\t1: FLOCK  ADVISORY  WRITE 9 00:2b:1 0 EOF"),
            None
        );
        assert_eq!(held_range("pos:\t0"), None);
    }
}
