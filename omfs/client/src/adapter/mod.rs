//! The only module that knows the FUSE crate.

mod convert;
mod filesystem;
mod passthrough;
mod replies;
mod succession;
mod sys;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use fuser::{InitFlags, KernelConfig, SessionACL};
use omfs_limits::permits::{Caps, Permit, Permits};

use super::caller::Who;
use super::config::FsConfig;
use super::core::{Core, Outcome};
use super::journal::Journal;
use super::pool::Pool;
use passthrough::Modes;
pub use succession::{resume, serve_first};

/// Bytes of one read or write request: what the kernel gives at most by default.
const REQUEST_BYTES_MAX: u32 = 1 << 20;
/// Requests the kernel may have in the background (readahead, asynchronous direct I/O).
const BACKGROUND_MAX: u16 = 64;
/// Roots of emulated nodes are overlays, which are one deep themselves.
const STACK_DEPTH: u32 = 2;
/// Threads that never wait for other nodes.
const THREADS_RESERVED: usize = 2;
/// Requests that are not counted by user share one user's part; no user has this number.
const ANY_USER: u32 = u32::MAX;
const THREADS_MIN: usize = 3;
const THREADS_MAX: usize = 16;

/// What is asked of the kernel. Not asked, because the FUSE crate mishandles them in this version:
/// SETXATTR_EXT, ALLOW_IDMAP. Not asked, because nothing may be cached without leases:
/// WRITEBACK_CACHE, DO_READDIRPLUS, CACHE_SYMLINKS. POSIX_ACL would make the kernel check
/// permissions by cached attributes; ACLs work as extended attributes, checked by the owner.
/// ATOMIC_O_TRUNC would truncate a running program before the kernel finds that it must not.
const CAPABILITIES: [InitFlags; 7] = [
    InitFlags::FUSE_POSIX_LOCKS,
    InitFlags::FUSE_FLOCK_LOCKS,
    InitFlags::FUSE_DONT_MASK,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_AUTO_INVAL_DATA,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
];

/// A running filesystem session. Dropping it leaves the session running; it ends when its
/// mount is gone.
#[derive(Debug)]
pub struct Session {
    background: fuser::BackgroundSession,
    core: Arc<Core>,
}

impl Session {
    /// Whether the mount is gone and all threads have ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.background.guard.is_finished()
    }

    /// Holds back no more of what is written, and sends what is held, as far as owners answer.
    pub fn settle(&self) {
        self.core.settle_all();
    }

    /// Waits until the mount is gone.
    ///
    /// # Errors
    /// What ended the session, when it was not an unmount.
    pub fn join(self) -> io::Result<()> {
        self.background.join()
    }
}

/// Serves a filesystem on an opened `/dev/fuse` that is mounted already, and returns once the
/// handshake with the kernel is done.
///
/// # Errors
/// The descriptor is not mounted, or the kernel's FUSE is too old.
pub fn serve(fuse: OwnedFd, config: FsConfig) -> io::Result<Session> {
    let threads = threads(&config);
    let adapter = Adapter::new(&fuse, config, Journal::none())?;
    let core = Arc::clone(&adapter.core);
    let session = fuser::Session::from_fd(adapter, fuse, SessionACL::All, options(threads))?;
    start(session, core)
}

fn threads(config: &FsConfig) -> usize {
    config.threads.clamp(THREADS_MIN, THREADS_MAX)
}

/// How many of them may be in calls to other nodes, and how many for one user.
fn waiting(threads: usize) -> Caps {
    let total = threads - THREADS_RESERVED;
    let per_key = total.div_ceil(2);
    Caps { per_key, total }
}

/// All threads share one queue: requests taken from a queue of a thread's own would fail with the
/// daemon, instead of being given to the next one.
fn options(threads: usize) -> fuser::Config {
    let mut options = fuser::Config::default();
    options.n_threads = Some(threads);
    options.acl = SessionACL::All;
    options
}

fn start(session: fuser::Session<Adapter>, core: Arc<Core>) -> io::Result<Session> {
    let background = session.spawn()?;
    core.send_by_itself();
    Ok(Session { background, core })
}

/// Turns the kernel's requests into calls of [`Core`] and its outcomes into replies.
#[derive(Clone, Debug)]
struct Adapter {
    core: Arc<Core>,
    modes: Arc<Modes>,
    pool: Pool,
    /// The session's threads that are in calls to other nodes.
    waiting: Permits<u32>,
    passthrough: bool,
    /// Whether the kernel maps files of other nodes, and can be told not to.
    maps_remote: bool,
    /// For requests that have the kernel drop pages.
    invalidating: Pool,
    /// For requests whose callers wait for an owner to come back.
    patience: Pool,
}

/// Permission to handle a request on the session's own thread; local ones need none.
type Slot = Option<Permit<u32>>;

/// A defect in one operation costs its caller an EIO (the reply says so when it is dropped), and
/// not everybody the thread and in the end the mount. The hook has told of it already.
fn contain(job: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(job));
}

impl Adapter {
    fn new(fuse: &OwnedFd, config: FsConfig, journal: Journal) -> io::Result<Self> {
        Ok(Self {
            modes: Arc::new(Modes::new(fuse.try_clone()?)),
            pool: Pool::for_users(),
            waiting: Permits::new(waiting(threads(&config))),
            passthrough: config.passthrough,
            maps_remote: true,
            invalidating: Pool::for_users(),
            patience: Pool::for_users(),
            core: Arc::new(Core::new(config, journal)),
        })
    }

    fn negotiate(&mut self, kernel: &mut KernelConfig) {
        let has_passthrough = kernel.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && kernel.set_max_stack_depth(STACK_DEPTH).is_ok();
        self.passthrough &= has_passthrough;
        self.maps_remote = has_passthrough;
        for capability in CAPABILITIES {
            // A kernel that cannot be told to refuse some mappings of remote files refuses all.
            if capability == InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP && !has_passthrough {
                continue;
            }
            // What the kernel lacks it says no to; everything works without, if less well.
            let _ = kernel.add_capabilities(capability);
        }
        let _ = kernel.set_max_write(REQUEST_BYTES_MAX);
        let _ = kernel.set_max_background(BACKGROUND_MAX);
    }

    /// Local requests are handled where they arrive; those that wait for other nodes as well, to
    /// save a thread switch, as long as enough threads remain for local ones and for other users.
    fn slot(&self, uid: u32, may_wait: bool) -> Option<Slot> {
        match may_wait {
            true => self.waiting.take(uid).ok().map(Some),
            false => Some(None),
        }
    }

    fn run_at(&self, uid: u32, place: Place, job: impl FnOnce(&Core) + Send + 'static) {
        if place == Place::Invalidating {
            return run_in(&self.invalidating, uid, &self.core, job);
        }
        match self.slot(uid, place == Place::MayWait) {
            Some(_slot) => contain(|| job(&self.core)),
            None => run_in(&self.pool, uid, &self.core, job),
        }
    }

    fn place_of(&self, id: u64) -> Place {
        if self.core.is_remote(id) {
            Place::MayWait
        } else {
            Place::Here
        }
    }

    /// Handles a notice of the kernel's, which nobody waits for.
    fn note(&self, id: u64, job: impl FnOnce(&Core) + Send + 'static) {
        self.run_at(ANY_USER, self.place_of(id), job);
    }

    /// Does something with a file for a caller, who waits for the owner as long as callers are owed, and
    /// replies. Every request that is answered comes by here.
    fn ask<T>(
        &self,
        who: Who,
        id: u64,
        act: impl Fn(&Core) -> Outcome<T> + Send + 'static,
        reply: impl FnOnce(&Core, Outcome<T>) + Send + 'static,
    ) {
        self.ask_at(self.place_of(id), (who, id), act, reply);
    }

    fn ask_at<T>(
        &self,
        place: Place,
        (who, id): (Who, u64),
        act: impl Fn(&Core) -> Outcome<T> + Send + 'static,
        reply: impl FnOnce(&Core, Outcome<T>) + Send + 'static,
    ) {
        let this = self.clone();
        self.run_at(who.uid, place, move |core| {
            let outcome = act(core);
            match core.patience(who, id, &outcome) {
                None => reply(core, outcome),
                Some(until) => this.wait_for_owner((who, id), until, act, reply),
            }
        });
    }

    /// Waits on a thread that nobody else needs.
    fn wait_for_owner<T>(
        &self,
        (who, id): (Who, u64),
        until: Instant,
        act: impl Fn(&Core) -> Outcome<T> + Send + 'static,
        reply: impl FnOnce(&Core, Outcome<T>) + Send + 'static,
    ) {
        run_in(&self.patience, who.uid, &self.core, move |core| {
            reply(core, core.wait_for_owner(who, id, until, || act(core)));
        });
    }
}

/// Where a request is handled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// Where it arrives.
    Here,
    /// There, too, as long as threads remain for others: it may take long.
    MayWait,
    /// On threads of its own: it has the kernel drop pages of a file, and so waits for reads and writes of
    /// them, which the session's own threads handle.
    Invalidating,
}

fn run_in(pool: &Pool, uid: u32, core: &Arc<Core>, job: impl FnOnce(&Core) + Send + 'static) {
    let core = Arc::clone(core);
    pool.run_for(uid, move || contain(|| job(&core)));
}
