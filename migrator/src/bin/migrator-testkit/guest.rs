//! A program that checks itself while it is moved about: registers, thread-local memory, signal
//! handling on an alternate stack, sleeps, clocks, futexes, all in threads of their own.

use std::cell::Cell;
use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::sys;

thread_local! {
    static MINE: Cell<u64> = const { Cell::new(0) };
}

static WRONG: AtomicU64 = AtomicU64::new(0);

fn expect(right: bool, what: &str) {
    if !right {
        WRONG.fetch_add(1, Ordering::Relaxed);
        eprintln!("wrong: {what}");
    }
}

/// Rounds take about 20 ms each; every one ends with a dot on standard output.
pub fn run(rounds: &str) -> Result<(), Box<dyn Error>> {
    let rounds: u64 = rounds.parse()?;
    let start = Arc::new(Barrier::new(5));
    let ball = Arc::new((Mutex::new(0_u64), Condvar::new()));
    let tasks: Vec<Box<dyn FnOnce() + Send>> = vec![
        Box::new(move || registers(rounds)),
        Box::new(move || sleeper(rounds)),
        Box::new({
            let ball = Arc::clone(&ball);
            move || player(rounds, &ball, 0)
        }),
        Box::new({
            let ball = Arc::clone(&ball);
            move || player(rounds, &ball, 1)
        }),
    ];
    let threads: Vec<_> = tasks
        .into_iter()
        .enumerate()
        .map(|(number, task)| {
            let start = Arc::clone(&start);
            let name = format!("worker-{number}");
            thread::Builder::new().name(name.clone()).spawn(move || {
                MINE.set(number as u64 + 100);
                start.wait();
                task();
                expect(MINE.get() == number as u64 + 100, "thread-local memory");
                let comm =
                    std::fs::read_to_string("/proc/thread-self/comm").unwrap_or(name.clone());
                expect(comm.trim() == name || comm == name, "thread name");
            })
        })
        .collect::<Result<_, _>>()?;
    start.wait();
    handler(rounds);
    for thread in threads {
        thread.join().map_err(|_| "a thread panicked")?;
    }
    let wrong = WRONG.load(Ordering::Relaxed);
    println!("{rounds} rounds, {wrong} wrong");
    if wrong == 0 {
        Ok(())
    } else {
        Err("something was wrong".into())
    }
}

fn registers(rounds: u64) {
    sys::block_signals();
    let end = Instant::now() + Duration::from_millis(20 * rounds);
    let mut value = 0x1234_5678_9abc_def0_u64;
    while Instant::now() < end {
        value = value.rotate_left(7).wrapping_add(1);
        expect(sys::hold_in_registers(value, 2_000_000) == 3, "registers");
        let ratio = std::hint::black_box(value as f64) / 3.0;
        expect(
            (ratio * 3.0 - value as f64).abs() <= value as f64 * 1e-15,
            "floating point",
        );
    }
}

fn sleeper(rounds: u64) {
    let mut last = Instant::now();
    for _ in 0..rounds {
        thread::sleep(Duration::from_millis(20));
        let now = Instant::now();
        expect(
            now - last >= Duration::from_millis(20),
            "a sleep was cut short",
        );
        expect(now - last < Duration::from_secs(20), "the clock jumped");
        last = now;
    }
}

fn player(rounds: u64, ball: &(Mutex<u64>, Condvar), parity: u64) {
    let (lock, changed) = ball;
    let Ok(mut count) = lock.lock() else { return };
    while *count < rounds * 20 {
        if *count % 2 == parity {
            *count += 1;
            changed.notify_all();
        } else {
            match changed.wait_timeout(count, Duration::from_secs(30)) {
                Ok((guard, timed_out)) => {
                    expect(!timed_out.timed_out(), "a futex wait timed out");
                    count = guard;
                }
                Err(_) => return,
            }
        }
    }
}

fn handler(rounds: u64) {
    sys::handle_on_own_stack();
    for round in 1..=rounds {
        sys::signal_self();
        let handled = sys::HANDLED.load(Ordering::Relaxed);
        expect(
            handled == round,
            &format!("signal {round}: {handled} handled"),
        );
        expect(sys::ASTRAY.load(Ordering::Relaxed) == 0, "alternate stack");
        let block = vec![round as u8; 300_000];
        thread::sleep(Duration::from_millis(20));
        expect(block.iter().all(|byte| *byte == round as u8), "memory");
        drop(block);
    }
}
