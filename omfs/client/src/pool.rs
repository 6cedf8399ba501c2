//! A bounded set of threads for requests that would otherwise keep the kernel's threads waiting.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use omfs_limits::fair_queue::{FairQueue, Shares};

const THREADS_MAX: usize = 64;
const QUEUE_MAX: usize = 4096;
const IDLE: Duration = Duration::from_secs(10);
/// Threads and places in the queue for one user, so that nobody takes all of them.
const USER_SHARES: Shares = Shares {
    running_per_key: THREADS_MAX * 3 / 8,
    waiting_per_key: QUEUE_MAX / 4,
    waiting: QUEUE_MAX,
};
/// The session's own work has no users.
const OWN_SHARES: Shares = Shares {
    running_per_key: THREADS_MAX,
    waiting_per_key: QUEUE_MAX,
    waiting: QUEUE_MAX,
};

type Job = Box<dyn FnOnce() + Send>;

/// Whose a job is: a user's, or the session's own.
pub type Owner = Option<u32>;

struct State {
    queue: FairQueue<Owner, Job>,
    threads: usize,
    idle: usize,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

/// Threads that come with demand and go when idle.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

impl Default for Pool {
    fn default() -> Self {
        Self::new(OWN_SHARES)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.lock();
        f.debug_struct("Pool")
            .field("threads", &state.threads)
            .field("queued", &state.queue.len())
            .finish()
    }
}

impl Pool {
    fn new(shares: Shares) -> Self {
        let state = State {
            queue: FairQueue::new(shares),
            threads: 0,
            idle: 0,
        };
        Self(Arc::new(Shared {
            state: Mutex::new(state),
            wake: Condvar::new(),
        }))
    }

    /// One in which each user has a share of the threads and of the queue.
    pub fn for_users() -> Self {
        Self::new(USER_SHARES)
    }

    /// Runs a job soon on another thread; on this one when the queue is full, which makes the
    /// kernel queue instead.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        if let Err(job) = self.push(None, Box::new(job)) {
            job();
        }
    }

    /// Runs a user's job soon on another thread. A job of a user whose share of the queue is full is
    /// dropped, which answers its request with an error.
    pub fn run_for(&self, uid: u32, job: impl FnOnce() + Send + 'static) {
        if self.push(Some(uid), Box::new(job)).is_err() {
            tracing::debug!(uid, "too many requests of one user");
        }
    }

    fn push(&self, owner: Owner, job: Job) -> Result<(), Job> {
        let mut state = self.0.lock();
        state.queue.push(owner, job)?;
        if state.idle >= state.queue.ready() {
            self.0.wake.notify_one();
        } else if state.threads < THREADS_MAX {
            // It counts as idle until it has begun, or more would be started for the same job.
            state.threads += 1;
            state.idle += 1;
            drop(state);
            self.start_thread();
        }
        Ok(())
    }

    fn start_thread(&self) {
        let shared = self.0.clone();
        let name = thread::Builder::new().name("omfs-fs".into());
        if name.spawn(move || shared.work()).is_ok() {
            return;
        }
        let mut state = self.0.lock();
        state.threads -= 1;
        state.idle -= 1;
        let stranded = if state.threads == 0 {
            state.queue.pop()
        } else {
            None
        };
        drop(state);
        if let Some((owner, job)) = stranded {
            job();
            self.0.lock().queue.done(&owner);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.lock();
        state.idle -= 1;
        loop {
            if let Some((owner, job)) = state.queue.pop() {
                drop(state);
                // A defect costs its own caller, not the pool a thread.
                let _ = catch_unwind(AssertUnwindSafe(job));
                state = self.lock();
                state.queue.done(&owner);
                continue;
            }
            state.idle += 1;
            let waited = self.wake.wait_timeout(state, IDLE);
            let (next, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = next;
            state.idle -= 1;
            if timeout.timed_out() && state.queue.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn jobs_run_beside_one_that_blocks() {
        let pool = Pool::default();
        let (unblock, blocked) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        pool.run(move || assert!(blocked.recv().is_err()));
        for number in 0..100 {
            let tell = tell.clone();
            pool.run(move || tell.send(number).unwrap());
        }
        let wait = Duration::from_secs(10);
        let mut seen: Vec<i32> = (0..100).map(|_| told.recv_timeout(wait).unwrap()).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..100).collect::<Vec<_>>());
        drop(unblock);
    }

    #[test]
    fn no_more_threads_than_the_limit() {
        let pool = Pool::default();
        let (unblock, blocked) = mpsc::channel::<()>();
        let blocked = Arc::new(Mutex::new(blocked));
        for _ in 0..THREADS_MAX + 20 {
            let blocked = blocked.clone();
            pool.run(move || assert!(blocked.lock().unwrap().recv().is_err()));
        }
        assert_eq!(pool.0.lock().threads, THREADS_MAX);
        drop(unblock);
    }

    #[test]
    fn one_user_cannot_take_all_threads_or_all_of_the_queue() {
        let pool = Pool::for_users();
        let (unblock, blocked) = mpsc::channel::<()>();
        let blocked = Arc::new(Mutex::new(blocked));
        let dropped = Arc::new(());
        for _ in 0..2 * QUEUE_MAX {
            let (blocked, held) = (blocked.clone(), dropped.clone());
            pool.run_for(1000, move || {
                let _held = held;
                assert!(blocked.lock().unwrap().recv().is_err());
            });
        }
        assert!(pool.0.lock().threads <= USER_SHARES.running_per_key);
        let most = USER_SHARES.running_per_key + USER_SHARES.waiting_per_key;
        assert!(
            Arc::strong_count(&dropped) <= most + 1,
            "the rest is refused"
        );
        let (tell, told) = mpsc::channel();
        pool.run_for(1001, move || tell.send(()).unwrap());
        told.recv_timeout(Duration::from_secs(20)).unwrap();
        drop(unblock);
    }

    #[test]
    fn a_job_that_panics_costs_no_thread() {
        let pool = Pool::default();
        let (tell, told) = mpsc::channel();
        for number in 0..200 {
            let tell = tell.clone();
            pool.run(move || {
                tell.send(number).unwrap();
                assert!(number % 2 == 0, "a defect");
            });
        }
        let wait = Duration::from_secs(20);
        assert_eq!(
            (0..200).filter(|_| told.recv_timeout(wait).is_ok()).count(),
            200
        );
        pool.run(move || tell.send(0).unwrap());
        told.recv_timeout(wait).unwrap();
    }
}
