//! A bounded set of threads for requests that would otherwise keep the kernel's threads waiting.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

const THREADS_MAX: usize = 64;
const QUEUE_MAX: usize = 4096;
const IDLE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

/// Threads that come with demand and go when idle.
#[derive(Clone, Default)]
pub struct Pool(Arc<Shared>);

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
    /// Runs a job soon on another thread; on this one when the queue is full, which makes the
    /// kernel queue instead.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.0.lock();
        if state.queue.len() >= QUEUE_MAX {
            drop(state);
            job();
            return;
        }
        state.queue.push_back(Box::new(job));
        if state.idle >= state.queue.len() {
            self.0.wake.notify_one();
        } else if state.threads < THREADS_MAX {
            state.threads += 1;
            drop(state);
            self.start_thread();
        }
    }

    fn start_thread(&self) {
        let shared = self.0.clone();
        let name = thread::Builder::new().name("omfs-fs".into());
        if name.spawn(move || shared.work()).is_ok() {
            return;
        }
        let mut state = self.0.lock();
        state.threads -= 1;
        let stranded = if state.threads == 0 {
            state.queue.pop_front()
        } else {
            None
        };
        drop(state);
        if let Some(job) = stranded {
            job();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                drop(state);
                job();
                state = self.lock();
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
}
