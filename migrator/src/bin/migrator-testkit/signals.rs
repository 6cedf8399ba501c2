//! A program that sends itself signals all the time, and counts: each has to arrive once, at the
//! thread it was sent to, in its order. What others queue is counted, too.

use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::sys::{self, Tally};

static FAILED: AtomicBool = AtomicBool::new(false);

/// Runs until number 0 is queued by others, in two threads.
pub fn run() -> Result<(), Box<dyn Error>> {
    sys::count_signals();
    let worker = thread::Builder::new().name("worker".into()).spawn(|| {
        sys::block_from_outside();
        work();
    })?;
    work();
    worker.join().map_err(|_| "a thread panicked")?;
    if FAILED.load(Ordering::Relaxed) {
        return Err("signals were lost or doubled".into());
    }
    let count = sys::FROM_OUTSIDE.load(Ordering::Relaxed);
    let sum = sys::OUTSIDE_SUM.load(Ordering::Relaxed);
    println!("all signals arrived, and {count} from outside, numbers {sum} in sum");
    Ok(())
}

fn work() {
    let mut due = Tally::default();
    while !sys::ASKED_TO_END.load(Ordering::Relaxed) && !FAILED.load(Ordering::Relaxed) {
        // At once, while nothing is blocked,
        sys::signal_self();
        sys::queue_to_self(due.queued + 1);
        due.simple += 1;
        due.queued += 1;
        compare(&due, "sent");
        // and some that wait for a while: the simple one only once.
        sys::block_counted(true);
        for _ in 0..3 {
            sys::signal_self();
            sys::queue_to_self(due.queued + 1);
            due.queued += 1;
        }
        due.simple += 1;
        std::hint::black_box(sys::hold_in_registers(due.queued, 100_000));
        sys::block_counted(false);
        compare(&due, "sent while blocked");
    }
}

fn compare(due: &Tally, what: &str) {
    let seen = sys::tally();
    if seen != *due && !FAILED.swap(true, Ordering::Relaxed) {
        eprintln!("{what}: {seen:?} instead of {due:?}");
    }
}
