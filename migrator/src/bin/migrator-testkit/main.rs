//! Programs that the migrator's tests need as processes of their own.
//!
//! * `cage PID MONOTONIC_NS BOOTTIME_NS DIRECTORY` — namespaces with one blank child of that PID, which
//!   has the directory open; says its id out here and waits for the end of its standard input.
//! * `guest-threads ROUNDS` — a program that checks itself while it is moved about.
//! * `guest-signals` — a program that counts the signals it sends itself, and those
//!   that others queue to it.

#![deny(unsafe_code)]

mod cage;
mod guest;
mod signals;
mod sys;

use std::error::Error;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done: Result<(), Box<dyn Error>> = match words.as_slice() {
        ["cage", pid, monotonic_ns, boottime_ns, deputy] => {
            cage::run(pid, monotonic_ns, boottime_ns, deputy)
        }
        ["guest-threads", rounds] => guest::run(rounds),
        ["guest-signals"] => signals::run(),
        _ => Err(
            "usage: cage PID MONOTONIC_NS BOOTTIME_NS DIRECTORY | guest-threads ROUNDS | \
                  guest-signals"
                .into(),
        ),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("migrator-testkit: {error}");
            ExitCode::FAILURE
        }
    }
}
