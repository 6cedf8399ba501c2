//! Threads that wait for locks, and the one that notices when their callers stop waiting.
//!
//! The FUSE crate answers the kernel's INTERRUPT with ENOSYS, after which a caller in a FUSE
//! request cannot even be killed until we answer. So one thread looks at the callers' pending
//! signals and withdraws their requests.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use proto::v1::FsRequest;

use super::{Outcome, Route, errno};
use crate::caller;

/// How many callers may wait for locks at once; more get `ENOLCK`.
const WAITERS_MAX: usize = 256;
/// How often callers are looked at: the latency of Ctrl-C on a blocked lock.
const LOOK_INTERVAL: Duration = Duration::from_millis(25);
const STACK_BYTES: usize = 256 << 10;

type Done = Box<dyn FnOnce(Outcome<()>) + Send>;

/// A lock request that has to wait.
#[derive(Debug)]
pub struct Waiter {
    pub(super) route: Route,
    pub(super) request: FsRequest,
    pub(super) pid: i32,
    pub(super) cancel: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Watched {
    pid: i32,
    cancel: Weak<AtomicBool>,
}

#[derive(Default)]
struct Shared {
    watched: Mutex<Vec<Watched>>,
    watcher_runs: AtomicBool,
    waiting: AtomicUsize,
}

/// All callers that wait for locks.
#[derive(Default)]
pub struct LockWaiters(Arc<Shared>);

impl fmt::Debug for LockWaiters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waiting = self.0.waiting.load(Ordering::Relaxed);
        f.debug_struct("LockWaiters")
            .field("waiting", &waiting)
            .finish()
    }
}

impl LockWaiters {
    pub fn wait(&self, waiter: Waiter, done: Done) {
        let shared = self.0.clone();
        if shared.waiting.fetch_add(1, Ordering::AcqRel) >= WAITERS_MAX {
            shared.waiting.fetch_sub(1, Ordering::AcqRel);
            done(Err(errno(libc::ENOLCK)));
            return;
        }
        shared.watch(&waiter);
        let done = Arc::new(Mutex::new(Some(done)));
        let finish = done.clone();
        let work = move || {
            let call = waiter
                .route
                .service
                .call(&waiter.request, &[], &waiter.cancel);
            shared.waiting.fetch_sub(1, Ordering::AcqRel);
            answer(&finish, call.map(drop));
        };
        let thread = thread::Builder::new()
            .name("omfs-lock".into())
            .stack_size(STACK_BYTES)
            .spawn(work);
        if thread.is_err() {
            self.0.waiting.fetch_sub(1, Ordering::AcqRel);
            answer(&done, Err(errno(libc::ENOLCK)));
        }
    }
}

fn answer(done: &Mutex<Option<Done>>, outcome: Outcome<()>) {
    let done = done.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(done) = done {
        done(outcome);
    }
}

impl Shared {
    fn watch(self: &Arc<Self>, waiter: &Waiter) {
        let watched = Watched {
            pid: waiter.pid,
            cancel: Arc::downgrade(&waiter.cancel),
        };
        let mut list = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        list.push(watched);
        if self.watcher_runs.swap(true, Ordering::AcqRel) {
            return;
        }
        let shared = self.clone();
        let watcher = thread::Builder::new()
            .name("omfs-lock-watch".into())
            .stack_size(STACK_BYTES)
            .spawn(move || shared.look());
        if watcher.is_err() {
            self.watcher_runs.store(false, Ordering::Release);
        }
    }

    /// Runs until nobody waits any more.
    fn look(&self) {
        loop {
            thread::sleep(LOOK_INTERVAL);
            let mut list = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
            list.retain(|watched| match watched.cancel.upgrade() {
                Some(cancel) => {
                    if caller::is_interrupted(watched.pid) {
                        cancel.store(true, Ordering::Release);
                    }
                    true
                }
                None => false,
            });
            if list.is_empty() {
                self.watcher_runs.store(false, Ordering::Release);
                return;
            }
        }
    }
}
