//! Signals, stops and ends.

use std::io::{BufRead, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use migrator::tracee::RawSiginfo;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::lab::{Job, Lab, OnDrop, until};

fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id() as i32), signal).unwrap();
}

/// A program with the signals' default actions, whatever the tests' caller ignores. Its process group has
/// a parent in the same session: stop signals are void in an orphaned one.
fn program(name: &str) -> Command {
    let mut command = Command::new("env");
    command.args(["--default-signal", name]).process_group(0);
    command
}

fn python(script: &str) -> Child {
    let mut command = program("python3");
    let child = command.args(["-c", script]).stdout(Stdio::piped()).spawn();
    child.unwrap()
}

/// Output of a program that has said that it is ready.
fn output(child: &mut Child) -> BufReader<ChildStdout> {
    let mut from = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    from.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    from
}

#[test]
fn handlers_run_away_with_the_senders_description() {
    let script = "
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
def handler(number, frame):
    print('handler', number, flush=True)
signal.signal(signal.SIGUSR1, handler)
print('ready', flush=True)
while True:
    info = signal.sigtimedwait([signal.SIGUSR2], 1000)
    if info:
        print('waited', info.si_signo, flush=True)
";
    let mut job = Job(python(script));
    let mut from = output(&mut job.0);
    let mut lab = Lab::new(job.0.id());
    lab.migrate();
    let mut next = || {
        let mut line = String::new();
        from.read_line(&mut line).unwrap();
        line
    };
    for _ in 0..5 {
        send(&job.0, Signal::SIGUSR1);
        assert_eq!(next(), format!("handler {}\n", libc::SIGUSR1));
        send(&job.0, Signal::SIGUSR2);
        assert_eq!(next(), format!("waited {}\n", libc::SIGUSR2));
    }
    lab.home();
    send(&job.0, Signal::SIGUSR1);
    assert_eq!(next(), format!("handler {}\n", libc::SIGUSR1));
}

#[test]
fn signals_a_job_sends_itself_arrive_once_each() {
    let directory = tempfile::tempdir().unwrap();
    let errors = directory.path().join("errors");
    let mut command = Command::new(env!("CARGO_BIN_EXE_migrator-testkit"));
    command.arg("guest-signals").stdout(Stdio::null());
    command.stderr(std::fs::File::create(&errors).unwrap());
    let mut job = Job(command.spawn().unwrap());
    std::thread::sleep(Duration::from_millis(50));
    let said = || std::fs::read_to_string(&errors).unwrap();
    let mut lab = Lab::new(job.0.id());
    for round in 0..8 {
        lab.migrate();
        lab.migrate();
        lab.home();
        assert_eq!(said(), "", "round {round}");
    }
    lab.migrate();
    queue(&job.0, 0);
    let status = job.wait();
    assert!(status.success(), "{status:?}: {}", said());
}

/// A numbered signal for `guest-signals`; 0 ends it.
fn queue(child: &Child, number: u64) {
    let info = RawSiginfo::queued(libc::SIGRTMIN() + 1, number);
    migrator::sys::signals::queue(child.id() as i32, None, &info).unwrap();
}

#[test]
fn signals_from_outside_arrive_once_each_wherever_the_job_is() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_migrator-testkit"));
    command.arg("guest-signals").stdout(Stdio::piped());
    let mut job = Job(command.spawn().unwrap());
    std::thread::sleep(Duration::from_millis(50));
    let mut lab = Lab::new(job.0.id());
    let over = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut number = 0;
            while !over.load(Relaxed) {
                number += 1;
                queue(&job.0, number);
                std::thread::sleep(Duration::from_millis(1));
            }
            number
        });
        let _over = OnDrop(&over);
        for _ in 0..8 {
            lab.migrate();
            lab.migrate();
            lab.home();
        }
        over.store(true, Relaxed);
        sender.join().unwrap()
    });
    queue(&job.0, 0);
    let status = job.wait();
    let mut said = String::new();
    let stdout = job.0.stdout.as_mut().unwrap();
    std::io::Read::read_to_string(stdout, &mut said).unwrap();
    assert!(status.success(), "{status:?}");
    let sum: u64 = (1..=sent).sum();
    assert_eq!(
        said,
        format!("all signals arrived, and {sent} from outside, numbers {sum} in sum\n")
    );
}

#[test]
fn of_two_signals_that_wait_as_one_the_first_keeps_its_description() {
    let script = "
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print('ready', flush=True)
sys.stdin.readline()
info = signal.sigtimedwait([signal.SIGUSR1], 0)
print(info.si_code, info.si_pid, signal.sigtimedwait([signal.SIGUSR1], 0), flush=True)
";
    let mut command = Command::new("python3");
    command.args(["-c", script]).stdin(Stdio::piped());
    let mut job = Job(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut from = output(&mut job.0);
    let mut lab = Lab::new(job.0.id());
    lab.migrate();
    for _ in 0..2 {
        send(&job.0, Signal::SIGUSR1);
        std::thread::sleep(Duration::from_millis(200));
    }
    lab.home();
    drop(job.0.stdin.take());
    let mut line = String::new();
    from.read_line(&mut line).unwrap();
    let sender = std::process::id();
    assert_eq!(line, format!("{} {sender} None\n", libc::SI_USER));
}

#[test]
fn deadly_signals_give_the_same_wait_status() {
    for signal in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGHUP] {
        let mut job = Job(program("sleep").arg("1000").spawn().unwrap());
        job.until_asleep();
        let mut lab = Lab::new(job.0.id());
        lab.migrate();
        send(&job.0, signal);
        assert_eq!(job.wait().signal(), Some(signal as i32));
        // The guest goes with it.
        assert!(super::lab::wait(lab.last_host()).success());
    }
}

#[test]
fn a_crash_away_is_a_crash_at_home() {
    let script = "
import os, signal, sys
print('ready', flush=True)
sys.stdin.readline()
os.kill(os.getpid(), signal.SIGSEGV)
";
    let mut command = Command::new("python3");
    command
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut job = Job(command.spawn().unwrap());
    let _from = output(&mut job.0);
    let mut lab = Lab::new(job.0.id());
    lab.migrate();
    drop(job.0.stdin.take());
    assert_eq!(job.wait().signal(), Some(libc::SIGSEGV));
}

#[test]
fn a_sleep_is_not_disturbed_by_signals_that_are_ignored() {
    const SLEEP: Duration = Duration::from_secs(8);
    let begun = Instant::now();
    let seconds = SLEEP.as_secs().to_string();
    let mut job = Job(Command::new("sleep").arg(seconds).spawn().unwrap());
    job.until_asleep();
    let mut lab = Lab::new(job.0.id());
    lab.migrate();
    for _ in 0..10 {
        send(&job.0, Signal::SIGCHLD);
        send(&job.0, Signal::SIGWINCH);
        std::thread::sleep(SLEEP / 20);
    }
    let signalled = Instant::now();
    assert!(job.wait().success());
    assert!(begun.elapsed() >= SLEEP, "{:?}", begun.elapsed());
    // One that a signal makes begin anew sleeps for all of its time after the last.
    let after = signalled.elapsed();
    assert!(after < SLEEP * 9 / 10, "{after:?} after the last signal");
}

#[test]
fn stop_and_continue_are_seen_by_the_parent() {
    let script = "
import time
print('ready', flush=True)
while True:
    time.sleep(0.02)
    print('tick', flush=True)
";
    let mut job = Job(python(script));
    let pid = Pid::from_raw(job.0.id() as i32);
    let mut from = output(&mut job.0);
    let mut lab = Lab::new(job.0.id());
    lab.migrate();
    let flags = WaitPidFlag::WUNTRACED | WaitPidFlag::WCONTINUED | WaitPidFlag::WNOHANG;
    for signal in [Signal::SIGSTOP, Signal::SIGTSTP] {
        send(&job.0, signal);
        let mut seen = WaitStatus::StillAlive;
        until("the stop", || {
            seen = waitpid(pid, Some(flags)).unwrap();
            seen != WaitStatus::StillAlive
        });
        assert_eq!(seen, WaitStatus::Stopped(pid, signal));
        until("the state", || {
            lab.state().state == migrator::control::RunState::Stopped
        });
        send(&job.0, Signal::SIGCONT);
        until("the continuation", || {
            waitpid(pid, Some(flags)).unwrap() == WaitStatus::Continued(pid)
        });
        let mut line = String::new();
        for _ in 0..20 {
            from.read_line(&mut line).unwrap();
        }
    }
    lab.home();
    send(&job.0, Signal::SIGTERM);
    assert_eq!(job.wait().signal(), Some(libc::SIGTERM));
}

/// A job that goes home by itself all the time, and is sent away again all the time, stands still
/// while it is stopped, and only then.
#[test]
fn a_stop_holds_a_job_that_is_always_on_the_move() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("progress");
    std::fs::write(&file, "").unwrap();
    let script = "while :; do echo x >>progress; (:); done";
    let mut command = Command::new("sh");
    command.args(["-c", script]).current_dir(directory.path());
    let job = Job(command.stdout(Stdio::piped()).spawn().unwrap());
    let pid = Pid::from_raw(job.0.id() as i32);
    let (moves, over) = (AtomicU32::new(0), AtomicBool::new(false));
    let flags = WaitPidFlag::WUNTRACED | WaitPidFlag::WNOHANG;
    let size = || std::fs::metadata(&file).unwrap().len();
    std::thread::scope(|scope| {
        let _over = OnDrop(&over);
        scope.spawn(|| {
            let mut lab = Lab::new(job.0.id());
            while !over.load(Relaxed) {
                lab.migrate();
                moves.fetch_add(1, Relaxed);
            }
            lab.home();
        });
        for round in 0..10 {
            let mut seen = WaitStatus::StillAlive;
            let mut look = || {
                seen = waitpid(pid, Some(flags)).unwrap();
                let lives = matches!(seen, WaitStatus::StillAlive | WaitStatus::Stopped(..));
                assert!(lives, "{seen:?}, {round}");
                seen != WaitStatus::StillAlive
            };
            while look() {}
            send(&job.0, Signal::SIGSTOP);
            until("the stop", &mut look);
            let (stopped_at, moved) = (size(), moves.load(Relaxed));
            until("moves", || moves.load(Relaxed) >= moved + 3);
            assert_eq!(size(), stopped_at, "it works while it is stopped, {round}");
            send(&job.0, Signal::SIGCONT);
            until("progress", || {
                look();
                size() > stopped_at
            });
        }
    });
}

/// Who has sent it and what with it: to whom waits for a signal, too.
#[test]
fn a_wait_for_a_signal_away_tells_who_has_sent_it() {
    let script = "
import signal
signals = [signal.SIGUSR1, signal.SIGRTMIN + 2]
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
print('ready', flush=True)
while True:
    info = signal.sigwaitinfo(signals)
    print(info.si_signo, info.si_code, info.si_pid, info.si_uid, flush=True)
";
    let mut job = Job(python(script));
    let mut from = output(&mut job.0);
    let mut lab = Lab::new(job.0.id());
    let (me, uid) = (std::process::id(), nix::unistd::getuid());
    let mut info = RawSiginfo::queued(libc::SIGRTMIN() + 2, 4711);
    info.0[16..20].copy_from_slice(&me.to_ne_bytes());
    info.0[20..24].copy_from_slice(&uid.as_raw().to_ne_bytes());
    let mut next = || {
        let mut line = String::new();
        from.read_line(&mut line).unwrap();
        line
    };
    let kill = format!("{} {} {me} {uid}\n", libc::SIGUSR1, libc::SI_USER);
    let queued = format!("{} {} {me} {uid}\n", libc::SIGRTMIN() + 2, libc::SI_QUEUE);
    for round in 0..4 {
        send(&job.0, Signal::SIGUSR1);
        assert_eq!(next(), kill, "{round}");
        migrator::sys::signals::queue(job.0.id() as i32, None, &info).unwrap();
        assert_eq!(next(), queued, "{round}");
        if round == 3 {
            lab.home()
        } else {
            lab.migrate()
        }
    }
    send(&job.0, Signal::SIGUSR1);
    assert_eq!(next(), kill);
}

/// Threads that each wait for their own signals of one number, from timers that name the thread
/// (SIGEV_THREAD_ID), as the C library makes them for SIGEV_THREAD.
const TIMERS: &str = "
import ctypes, signal, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
number = signal.SIGRTMIN + 3
signal.pthread_sigmask(signal.SIG_BLOCK, [number])
class Event(ctypes.Structure):
    _fields_ = [('value', ctypes.c_void_p), ('signo', ctypes.c_int), ('notify', ctypes.c_int), ('tid', ctypes.c_int),
                ('pad', ctypes.c_int * 11)]
class Times(ctypes.Structure): _fields_ = [(name, ctypes.c_long) for name in 'abcd']
counts = [0, 0, 0]
def expect(at):
    timer = ctypes.c_int()
    event = Event(at, number, 4, threading.get_native_id())
    assert libc.syscall(222, 1, ctypes.byref(event), ctypes.byref(timer)) == 0
    each = Times(0, 7000000, 0, 7000000)
    assert libc.syscall(223, timer, 0, ctypes.byref(each), None) == 0
    info = ctypes.create_string_buffer(128)
    wanted = ctypes.c_ulong(1 << (number - 1))
    while True:
        if libc.syscall(128, ctypes.byref(wanted), info, None, 8) != number: continue
        code, value = int.from_bytes(info[8:12], 'little', signed=True), int.from_bytes(info[24:32], 'little')
        if (code, value) != (-2, at): print('thread', at, 'got', code, value, flush=True)
        counts[at] += 1
for at in range(3): threading.Thread(target=expect, args=(at,), daemon=True).start()
print('ready', flush=True)
for line in sys.stdin: print(*counts, flush=True)
";

#[test]
fn timers_of_threads_reach_their_threads_wherever_the_job_is() {
    let mut command = Command::new("python3");
    command.args(["-c", TIMERS]).stdin(Stdio::piped());
    let mut job = Job(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut from = output(&mut job.0);
    let mut to = job.0.stdin.take().unwrap();
    let mut counts = || -> Vec<u64> {
        std::io::Write::write_all(&mut to, b"\n").unwrap();
        let mut line = String::new();
        from.read_line(&mut line).unwrap();
        let numbers = line.split_whitespace().map(str::parse);
        numbers
            .collect::<Result<_, _>>()
            .unwrap_or_else(|_| panic!("{line}"))
    };
    let mut all_go_on = |at: &str| {
        let before = counts();
        until(at, || {
            let now = counts();
            now.iter()
                .zip(&before)
                .all(|(now, before)| *now > before + 3)
        });
    };
    all_go_on("timers at home");
    let mut lab = Lab::new(job.0.id());
    for _ in 0..3 {
        lab.migrate();
        all_go_on("timers away");
        lab.migrate();
        all_go_on("timers at a third node");
        lab.home();
        all_go_on("timers at home again");
    }
}
