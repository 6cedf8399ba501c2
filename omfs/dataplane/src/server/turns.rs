//! Whose turn it is to read a connection.
//!
//! The thread that read a request executes it. Meanwhile another one should read, but waking it
//! costs more than a short request does. So the source is *parked* when nothing else is known to
//! be coming: whoever is free first takes it, mostly the same thread again. A thread that stays
//! away too long is noticed by [`Turns::rescue`].

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::super::reader::TlsSource;

/// Threads that read and execute. When all are busy nothing more is read: the back-pressure.
pub(super) const THREADS_MAX: usize = 16;
/// A parked source is given to another thread after so long.
const RESCUE_AFTER: Duration = Duration::from_millis(5);

/// The turns of one connection's threads.
pub(super) struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// `None` while a thread reads.
    source: Option<TlsSource>,
    parked_since: Option<Instant>,
    /// Threads that take turns.
    threads: usize,
    /// Those of them that wait for a turn.
    spare: usize,
    /// Threads that only wait for a lock on a peer's behalf.
    aside: usize,
    closed: bool,
}

/// What became of a source that was passed on.
pub(super) enum Passed {
    /// A waiting thread takes it.
    On,
    /// The caller is to start a thread, which is counted already.
    ToNewThread,
    /// There are threads enough, and all are busy.
    Back(TlsSource),
}

impl Turns {
    /// With the connection's first thread, whose turn it is.
    pub(super) fn new(source: TlsSource) -> Self {
        let state = State {
            source: Some(source),
            parked_since: None,
            threads: 1,
            spare: 0,
            aside: 0,
            closed: false,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn; `None` when this thread should end: the connection is closed, or there was
    /// no turn for `spare_for`.
    pub(super) fn next(&self, spare_for: Option<Duration>) -> Option<TlsSource> {
        const FOREVER: Duration = Duration::from_secs(3600);
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(source) = state.source.take() {
                state.parked_since = None;
                return Some(source);
            }
            state.spare += 1;
            let waited = self
                .changed
                .wait_timeout(state, spare_for.unwrap_or(FOREVER));
            let (woken, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.spare -= 1;
            if timeout.timed_out() && spare_for.is_some() && state.source.is_none() {
                return None;
            }
        }
    }

    /// Puts the source down for whoever is free first, and wakes nobody.
    pub(super) fn park(&self, source: TlsSource) {
        let mut state = self.lock();
        state.source = Some(source);
        state.parked_since = Some(Instant::now());
    }

    /// Gives the source to another thread now.
    pub(super) fn pass_on(&self, source: TlsSource) -> Passed {
        let mut state = self.lock();
        if state.spare == 0 && state.threads >= THREADS_MAX {
            return Passed::Back(source);
        }
        state.source = Some(source);
        self.find_reader(state)
    }

    /// Finds a reader for a source that has been parked for too long; true when the caller is to
    /// start a thread, which is counted already.
    pub(super) fn rescue(&self) -> bool {
        let mut state = self.lock();
        let overdue = state
            .parked_since
            .is_some_and(|since| since.elapsed() >= RESCUE_AFTER);
        if !overdue || state.closed || state.spare == 0 && state.threads >= THREADS_MAX {
            return false;
        }
        state.parked_since = None;
        matches!(self.find_reader(state), Passed::ToNewThread)
    }

    fn find_reader(&self, mut state: MutexGuard<'_, State>) -> Passed {
        if state.spare > 0 {
            drop(state);
            self.changed.notify_one();
            return Passed::On;
        }
        state.threads += 1;
        Passed::ToNewThread
    }

    /// Undoes [`Passed::ToNewThread`] when no thread could be started; gives the source back unless
    /// somebody has taken it.
    pub(super) fn no_new_thread(&self) -> Option<TlsSource> {
        let mut state = self.lock();
        state.threads -= 1;
        state.source.take()
    }

    /// A thread that took turns ends.
    pub(super) fn leave(&self) {
        self.lock().threads -= 1;
        self.changed.notify_all();
    }

    /// A thread that waits for a lock begins (or ends, when `begins` is false).
    pub(super) fn aside(&self, begins: bool) {
        let mut state = self.lock();
        if begins {
            state.aside += 1;
        } else {
            state.aside -= 1;
            self.changed.notify_all();
        }
    }

    /// Ends all waiting for turns.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Waits until every thread has left; the connection is closed.
    pub(super) fn wait_for_threads(&self) {
        let mut state = self.lock();
        while state.threads + state.aside > 0 {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}
