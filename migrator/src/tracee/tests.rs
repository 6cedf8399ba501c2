//! Freezing real programs. Needs root (or at least ptrace of own children, which tests have).

use std::error::Error;
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::*;

type TestResult = Result<(), Box<dyn Error>>;

const LIMIT: Duration = Duration::from_secs(60);

/// A child that is killed when a test ends early.
pub(super) struct Guest(pub(super) Child);

impl Guest {
    pub(super) fn start(program: &str, args: &[&str]) -> std::io::Result<Self> {
        let mut command = Command::new(program);
        command
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        command.spawn().map(Self)
    }

    pub(super) fn pid(&self) -> i32 {
        self.0.id() as i32
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x1234_5678_u32;
    let step = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 28) as u8 + b'a'
    };
    std::iter::repeat_with(step).take(bytes).collect()
}

#[test]
fn gzip_frozen_fifty_times_computes_the_same() -> TestResult {
    let directory = tempfile::tempdir()?;
    let input = directory.path().join("input");
    std::fs::write(&input, noise(6 << 20))?;
    let input = input.to_str().ok_or("path")?;
    let expected = Command::new("gzip").args(["-9nc", input]).output()?.stdout;
    let guest = Guest::start("gzip", &["-9nc", input])?;
    let pid = guest.pid();
    let tracer = thread::spawn(move || -> Result<u32, TraceeError> {
        let mut frozen_times = 0;
        for _ in 0..50 {
            let mut frozen = match Frozen::freeze(pid, LIMIT) {
                Err(error) if error.is_death() => break,
                other => other?,
            };
            let answer = frozen.call(0, ("getpid", libc::SYS_getpid), [0; 6])?;
            assert_eq!(answer, pid as u64);
            frozen.thaw()?;
            frozen_times += 1;
            thread::sleep(Duration::from_millis(3));
        }
        Ok(frozen_times)
    });
    let mut guest = guest;
    let mut output = Vec::new();
    std::io::Read::read_to_end(guest.0.stdout.as_mut().ok_or("stdout")?, &mut output)?;
    let times = tracer.join().map_err(|_| "tracer panicked")??;
    assert!(guest.0.wait()?.success());
    assert!(times > 10, "only {times} freezes happened");
    assert_eq!(output, expected);
    Ok(())
}

#[test]
fn a_blocked_call_survives_injection() -> TestResult {
    let mut guest = Guest::start("cat", &[])?;
    until_asleep(guest.pid(), Instant::now() + LIMIT)?;
    for round in 0..10 {
        let mut frozen = Frozen::freeze(guest.pid(), LIMIT)?;
        let stub = frozen.stub()?;
        assert!(procfs::Maps::read(guest.pid())?.at(stub.code).is_some());
        let error = frozen.call(0, ("close", libc::SYS_close), [9999, 0, 0, 0, 0, 0]);
        assert!(
            matches!(error, Err(TraceeError::Call { .. })),
            "round {round}"
        );
        frozen.thaw()?;
        assert!(procfs::Maps::read(guest.pid())?.at(stub.code).is_none());
    }
    let mut stdin = guest.0.stdin.take().ok_or("stdin")?;
    stdin.write_all(b"still here\n")?;
    drop(stdin);
    let mut output = String::new();
    std::io::Read::read_to_string(guest.0.stdout.as_mut().ok_or("stdout")?, &mut output)?;
    assert_eq!(output, "still here\n");
    Ok(())
}

#[test]
fn sleep_frozen_neither_fails_nor_starts_over() -> TestResult {
    const SLEEP: Duration = Duration::from_secs(6);
    let begin = Instant::now();
    let mut guest = Guest::start("sleep", &["6"])?;
    thread::sleep(SLEEP / 2);
    let mut frozen = Frozen::freeze(guest.pid(), LIMIT)?;
    frozen.call(0, ("getpid", libc::SYS_getpid), [0; 6])?;
    frozen.thaw()?;
    let thawed = Instant::now();
    assert!(guest.0.wait()?.success());
    assert!(begin.elapsed() >= SLEEP, "{:?}", begin.elapsed());
    // One that starts over sleeps for all of its time from here on.
    assert!(thawed.elapsed() < SLEEP * 9 / 10, "{:?}", thawed.elapsed());
    Ok(())
}

/// Waits until a process sleeps in a system call: before that a signal finds the call not begun.
fn until_asleep(pid: i32, deadline: Instant) -> TestResult {
    let stat = format!("/proc/{pid}/stat");
    while !std::fs::read_to_string(&stat)?.contains(") S ") {
        if Instant::now() > deadline {
            return Err("it does not sleep".into());
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

#[test]
fn a_call_that_blocks_can_be_interrupted_and_finished() -> TestResult {
    let guest = Guest::start("sleep", &["1000"])?;
    until_asleep(guest.pid(), Instant::now() + LIMIT)?;
    let mut frozen = Frozen::freeze(guest.pid(), LIMIT)?;
    let stub = frozen.stub()?;
    let thread = frozen.threads.remove(0).stopped;
    thread.set_sigmask(0)?;
    let deadline = Instant::now() + LIMIT;
    let running = thread.start_call(&stub, libc::SYS_pause, [0; 6])?;
    assert!(event::poll_one(guest.pid())?.is_none());
    until_asleep(guest.pid(), deadline)?;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(guest.pid()),
        nix::sys::signal::SIGUSR1,
    )?;
    let stopped = running.wait(deadline)?;
    let CallStop::Signal { seen, call } = stopped.finish_call(&stub)? else {
        return Err("no signal".into());
    };
    assert_eq!(
        (seen.info.signal(), call),
        (libc::SIGUSR1, CallState::Interrupted)
    );
    let running = stopped.start_call(&stub, libc::SYS_getppid, [0; 6])?;
    let stopped = running.wait(deadline)?;
    assert_eq!(
        stopped.finish_call(&stub)?,
        CallStop::Done(i64::from(std::process::id()))
    );
    Ok(())
}

#[test]
fn death_is_an_ordinary_answer() -> TestResult {
    let mut guest = Guest::start("sleep", &["100"])?;
    let mut frozen = Frozen::freeze(guest.pid(), LIMIT)?;
    guest.0.kill()?;
    let answer = frozen.call(0, ("getpid", libc::SYS_getpid), [0; 6]);
    assert!(answer.is_err_and(|error| error.is_death()));
    assert!(frozen.thaw().is_err_and(|error| error.is_death()));
    let gone = Frozen::freeze(i32::MAX, LIMIT);
    assert!(gone.is_err_and(|error| error.is_death()));
    Ok(())
}

#[test]
fn signals_sent_while_frozen_arrive_after_thaw() -> TestResult {
    let script = "trap 'echo got' USR1; until read x; do :; done";
    let mut guest = Guest::start("sh", &["-c", script])?;
    until_asleep(guest.pid(), Instant::now() + LIMIT)?;
    let mut frozen = Frozen::freeze(guest.pid(), LIMIT)?;
    frozen.call(0, ("getpid", libc::SYS_getpid), [0; 6])?;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(guest.pid()),
        nix::sys::signal::SIGUSR1,
    )?;
    frozen.call(0, ("getpid", libc::SYS_getpid), [0; 6])?;
    frozen.thaw()?;
    thread::sleep(Duration::from_millis(100));
    let mut stdin = guest.0.stdin.take().ok_or("stdin")?;
    stdin.write_all(b"x\n")?;
    drop(stdin);
    let mut output = String::new();
    std::io::Read::read_to_string(guest.0.stdout.as_mut().ok_or("stdout")?, &mut output)?;
    assert_eq!(output, "got\n");
    Ok(())
}
