//! Processes that die, and moves that fail, at any moment: nothing hangs, nothing panics, and what
//! was not moved runs on unharmed.

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use migrator::capture::{CaptureError, eligibility};
use migrator::restore::RestoreError;
use migrator::tracee::{Frozen, TraceeError};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{self, Away, Job, LIMIT, TestResult, capture_quietly};

/// Kills `pid` after a while, from another thread.
fn kill_after(pid: i32, delay: Duration) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        thread::sleep(delay);
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    })
}

#[test]
fn a_process_killed_while_it_moves_is_an_error_and_nothing_else() -> TestResult {
    let (mut failures, mut successes) = (0, 0);
    for round in 0..24_u64 {
        let job = Job::start(
            Command::new("sh")
                .args(["-c", "while :; do :; done"])
                .stdout(Stdio::null()),
        )?;
        thread::sleep(Duration::from_millis(5));
        let killer = kill_after(job.pid(), Duration::from_micros(round * 2500));
        let begin = Instant::now();
        match Away::start(job.pid()) {
            Ok(away) => {
                successes += 1;
                away.end()?;
            }
            Err(_) => failures += 1,
        }
        assert!(
            begin.elapsed() < LIMIT,
            "round {round} took {:?}",
            begin.elapsed()
        );
        killer.join().map_err(|_| "killer")?;
    }
    assert!(
        failures > 0,
        "{successes} moves were all faster than the killer"
    );
    Ok(())
}

#[test]
fn a_move_that_fails_leaves_the_process_unharmed() -> TestResult {
    let program = env!("CARGO_BIN_EXE_migrator-testkit");
    let directory = tempfile::tempdir()?;
    let (output, errors) = (
        directory.path().join("output"),
        directory.path().join("errors"),
    );
    let mut job = Job::start(
        Command::new(program)
            .args(["guest-threads", "500"])
            .stdout(File::create(&output)?)
            .stderr(File::create(&errors)?),
    )?;
    thread::sleep(Duration::from_millis(50));
    for _ in 0..10 {
        let mut frozen = Frozen::freeze(job.pid(), LIMIT)?;
        let mut image = capture_quietly(&mut frozen)?;
        // A file that is not there: found only after memory has been mapped.
        for file in image.files.iter_mut().filter(|file| file.number == 1) {
            file.path = b"/no/such/file".to_vec();
            file.opened_away = true;
        }
        let built = common::build(&frozen, image);
        let error = built.err().ok_or("it was built all the same")?;
        let is_file = matches!(error.downcast_ref(), Some(RestoreError::File { .. }));
        assert!(is_file, "{error}");
        frozen.thaw()?;
        thread::sleep(Duration::from_millis(20));
    }
    let status = job.0.wait()?;
    let errors = fs::read_to_string(&errors)?;
    assert!(
        status.success() && errors.is_empty(),
        "{status:?}: {errors}"
    );
    assert_eq!(fs::read_to_string(&output)?, "500 rounds, 0 wrong\n");
    Ok(())
}

#[test]
fn an_image_of_another_processor_is_refused() -> TestResult {
    let job = Job::start(Command::new("sleep").arg("100").stdout(Stdio::null()))?;
    thread::sleep(Duration::from_millis(30));
    assert_eq!(eligibility(job.pid()), []);
    let mut frozen = Frozen::freeze(job.pid(), LIMIT)?;
    let mut image = capture_quietly(&mut frozen)?;
    if let Some(cpu) = image.cpu.as_mut() {
        cpu.flags.push("avx4096".into());
    }
    let error = common::build(&frozen, image).err().ok_or("it was built")?;
    assert!(error.to_string().contains("avx4096"), "{error}");
    frozen.thaw()?;
    Ok(())
}

#[test]
fn a_process_that_ends_is_reported_as_dead_by_capture() -> TestResult {
    let mut job = Job::start(Command::new("sleep").arg("100").stdout(Stdio::null()))?;
    thread::sleep(Duration::from_millis(30));
    let mut frozen = Frozen::freeze(job.pid(), LIMIT)?;
    job.0.kill()?;
    let stat = format!("/proc/{}/stat", job.pid());
    let deadline = Instant::now() + LIMIT;
    while !fs::read_to_string(&stat)?.contains(") Z ") {
        assert!(Instant::now() < deadline, "it does not die");
        thread::sleep(Duration::from_millis(2));
    }
    let error = capture_quietly(&mut frozen)
        .err()
        .ok_or("captured a dead process")?;
    let dead = matches!(&error, CaptureError::Tracee(error) if error.is_death());
    assert!(dead, "{error}");
    assert!(matches!(frozen.thaw(), Err(TraceeError::Died { .. })));
    Ok(())
}
