//! Promised times on machines that do other things, too.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How late this machine is with waking somebody up while it is watched, all in all: a promise of
/// so many seconds is kept by a busy machine so much later.
#[derive(Debug)]
pub struct Lateness {
    over: Arc<AtomicBool>,
    watching: thread::JoinHandle<Duration>,
}

impl Lateness {
    const STEP: Duration = Duration::from_millis(10);

    pub fn watch() -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        let watching = thread::spawn(move || {
            let mut late = Duration::ZERO;
            while !told.load(Ordering::Relaxed) {
                let began = Instant::now();
                thread::sleep(Self::STEP);
                late += began.elapsed() - Self::STEP;
            }
            late
        });
        Self { over, watching }
    }

    /// Ends the watch.
    pub fn total(self) -> Duration {
        self.over.store(true, Ordering::Relaxed);
        self.watching.join().unwrap()
    }
}
