//! Real processes moved into namespaces and back. Needs root.

mod common;
mod eligibility;
mod faults;
mod programs;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{Away, Job, TestResult, WORK_LIMIT};
use migrator::sys::signals;
use migrator::tracee::{Event, RawSiginfo};

/// Text-like bytes that gzip has work with.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x1234_5678_u32;
    let step = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 28) as u8 + b'a'
    };
    std::iter::repeat_with(step).take(bytes).collect()
}

/// Waits until a program is at work.
fn until_written(output: &Path) -> TestResult {
    let deadline = Instant::now() + WORK_LIMIT;
    while fs::metadata(output)?.len() == 0 {
        assert!(Instant::now() < deadline, "it writes nothing");
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

#[test]
fn gzip_moved_away_finishes_there_with_the_same_output() -> TestResult {
    let directory = tempfile::tempdir()?;
    let (input, output) = (
        directory.path().join("input"),
        directory.path().join("output"),
    );
    fs::write(&input, noise(14 << 20))?;
    let expected = Command::new("gzip")
        .args(["-9nc"])
        .arg(&input)
        .output()?
        .stdout;
    let mut job = Job::start(
        Command::new("gzip")
            .args(["-9nc"])
            .arg(&input)
            .stdout(File::create(&output)?),
    )?;
    until_written(&output)?;
    let pid = job.pid();
    let mut away = Away::start(pid)?;
    let command_line = fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
    assert!(command_line.starts_with("gzip\0-9nc\0"), "{command_line:?}");
    let end = away.serve(WORK_LIMIT)?;
    assert_eq!(end, Some(Event::Exited(0)));
    job.0.kill()?;
    assert!(fs::read(&output)? == expected, "output differs");
    Ok(())
}

#[test]
fn gzip_moved_out_and_home_again_many_times() -> TestResult {
    let directory = tempfile::tempdir()?;
    let (input, output) = (
        directory.path().join("input"),
        directory.path().join("output"),
    );
    // Work for longer than the moves take: it cannot be brought home amid its end.
    fs::write(&input, noise(48 << 20))?;
    let expected = Command::new("gzip")
        .args(["-9nc"])
        .arg(&input)
        .output()?
        .stdout;
    let mut job = Job::start(
        Command::new("gzip")
            .args(["-9nc"])
            .arg(&input)
            .stdout(File::create(&output)?),
    )?;
    until_written(&output)?;
    let begin = Instant::now();
    let (mut moves, mut ended_away) = (0, false);
    while moves < 20 && job.0.try_wait()?.is_none() && begin.elapsed() < WORK_LIMIT {
        let mut away = Away::start(job.pid())?;
        if let Some(end) = away.serve(Duration::from_millis(20))? {
            // It was faster than the test.
            assert_eq!(end, Event::Exited(0), "move {moves}");
            ended_away = true;
            break;
        }
        away.home()?;
        moves += 1;
        thread::sleep(Duration::from_millis(5));
    }
    assert!(moves >= 5, "{moves} moves");
    if !ended_away {
        assert!(job.0.wait()?.success());
    }
    assert!(fs::read(&output)? == expected, "output differs");
    Ok(())
}

#[test]
fn threads_moved_out_and_home_twenty_times_notice_nothing() -> TestResult {
    let program = env!("CARGO_BIN_EXE_migrator-testkit");
    let directory = tempfile::tempdir()?;
    let output = directory.path().join("output");
    let mut job = Job::start(
        Command::new(program)
            .args(["guest-threads", "600"])
            .stdin(Stdio::null())
            .stdout(File::create(&output)?)
            .stderr(File::create(directory.path().join("errors"))?),
    )?;
    job.await_threads(5)?;
    thread::sleep(Duration::from_millis(100));
    for round in 0..20 {
        let mut away = Away::start(job.pid())?;
        assert_eq!(
            away.serve(Duration::from_millis(30))?,
            None,
            "round {round}"
        );
        away.home()?;
        thread::sleep(Duration::from_millis(10));
    }
    let status = job.0.wait()?;
    let errors = fs::read_to_string(directory.path().join("errors"))?;
    assert!(
        status.success() && errors.is_empty(),
        "{status:?}: {errors}"
    );
    assert_eq!(fs::read_to_string(&output)?, "600 rounds, 0 wrong\n");
    Ok(())
}

#[test]
fn signals_sent_all_the_time_arrive_once_each() -> TestResult {
    let directory = tempfile::tempdir()?;
    let (output, errors) = (
        directory.path().join("output"),
        directory.path().join("errors"),
    );
    let mut job = Job::start(
        Command::new(env!("CARGO_BIN_EXE_migrator-testkit"))
            .arg("guest-signals")
            .stdin(Stdio::null())
            .stdout(File::create(&output)?)
            .stderr(File::create(&errors)?),
    )?;
    job.await_threads(2)?;
    thread::sleep(Duration::from_millis(50));
    for round in 0..20 {
        let mut away = Away::start(job.pid())?;
        let end = away.serve(Duration::from_millis(5))?;
        assert_eq!(end, None, "round {round}: {}", fs::read_to_string(&errors)?);
        away.home()?;
        thread::sleep(Duration::from_millis(5));
        assert_eq!(fs::read_to_string(&errors)?, "", "round {round}");
    }
    let end = RawSiginfo::queued(libc::SIGRTMIN() + 1, 0);
    signals::queue(job.pid(), None, &end)?;
    let status = job.0.wait()?;
    let errors = fs::read_to_string(&errors)?;
    assert!(status.success(), "{status:?}: {errors}");
    assert_eq!(
        fs::read_to_string(&output)?,
        "all signals arrived, and 0 from outside, numbers 0 in sum\n"
    );
    Ok(())
}
