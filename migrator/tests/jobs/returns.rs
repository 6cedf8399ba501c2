//! Calls that only home can make: the process goes home for them, and may leave again.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use migrator::control::{Event, RunState};

use super::lab::{Job, Lab, until};

#[test]
fn a_shell_loop_goes_home_to_fork_and_leaves_again() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let script = "i=0; while [ ! -e enough ]; do n=0; while [ $n -lt 20000 ]; do n=$((n+1)); done; \
                  /bin/echo $i $(expr $i + 1); i=$((i+1)); done";
    let mut command = Command::new("sh");
    let child = command
        .args(["-c", script])
        .current_dir(directory.path())
        .stdout(File::create(&out).unwrap());
    let mut job = Job(child.spawn().unwrap());
    let mut returns = 0;
    let mut lab = Lab::new(job.0.id());
    until("returns", || {
        assert!(job.0.try_wait().unwrap().is_none());
        if matches!(lab.try_migrate(""), Event::Done { .. }) {
            until("the return", || {
                !matches!(lab.state().state, RunState::Running | RunState::Migrating)
            });
            returns += u32::from(lab.state().returned_for.is_some());
        }
        returns >= 5
    });
    std::fs::write(directory.path().join("enough"), "").unwrap();
    assert!(job.wait().success());
    let text = std::fs::read_to_string(&out).unwrap();
    let lines = text.lines().count();
    let expected: String = (0..lines).map(|i| format!("{i} {}\n", i + 1)).collect();
    assert_eq!(text, expected);
}

#[test]
fn orders_that_cross_are_carried_out_one_after_the_other() {
    let mut job = Job(Command::new("sleep").arg("1000").spawn().unwrap());
    let mut lab = Lab::new(job.0.id());
    lab.migrate();
    for round in 1..=3 {
        let orders = (0..4).map(|_| lab.new_host("")).collect();
        for event in lab.commands_at_once(orders) {
            assert!(matches!(event, Event::Done { .. }), "{event:?}");
        }
        assert_eq!(lab.state().moves, 1 + 4 * round);
    }
    lab.home();
    assert!(job.0.try_wait().unwrap().is_none());
}

/// A job that goes home by itself all the time obeys every order all the same.
#[test]
fn a_job_on_its_way_home_takes_orders() {
    let script = "while :; do n=0; while [ $n -lt 500 ]; do n=$((n+1)); done; (:); done";
    let mut command = Command::new("sh");
    let mut job = Job(command.args(["-c", script]).spawn().unwrap());
    let mut lab = Lab::new(job.0.id());
    for _ in 0..25 {
        lab.migrate();
    }
    lab.home();
    assert!(job.0.try_wait().unwrap().is_none());
}

#[test]
fn what_was_opened_away_is_open_at_home() {
    let directory = tempfile::tempdir().unwrap();
    let script = "
import os, subprocess, sys
os.chdir(sys.argv[1])
os.umask(0o027)
print('ready', flush=True)
sys.stdin.readline()                  # leaves here
old = open('old')
log = open('log', 'a')
os.mkdir('below')
os.chdir('below')
first = old.readline()
log.write('away ' + first)
log.flush()
twin = os.dup(log.fileno())
os.lseek(old.fileno(), 2, os.SEEK_SET)
shown = subprocess.run(['pwd'], capture_output=True, text=True).stdout   # goes home here
log.write(shown)
log.flush()
os.write(twin, b'twin\\n')
log.write(os.read(old.fileno(), 3).decode() + '\\n')
log.close()
open('mode', 'w').close()
";
    std::fs::write(directory.path().join("old"), "abcdefgh\n").unwrap();
    let mut command = Command::new("python3");
    let child = command.args(["-c", script]).arg(directory.path());
    let child = child.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut job = Job(child.spawn().unwrap());
    let mut from = BufReader::new(job.0.stdout.take().unwrap());
    from.read_line(&mut String::new()).unwrap();
    let mut lab = Lab::new(job.0.id());
    lab.migrate();
    drop(job.0.stdin.take());
    assert!(job.wait().success());
    let state = lab.state();
    assert_eq!(state.moves, 2, "{state:?}");
    let place = directory.path().canonicalize().unwrap();
    let log = std::fs::read_to_string(place.join("log")).unwrap();
    let below = place.join("below");
    assert_eq!(
        log,
        format!("away abcdefgh\n{}\ntwin\ncde\n", below.display())
    );
    use std::os::unix::fs::MetadataExt;
    assert_eq!(below.join("mode").metadata().unwrap().mode() & 0o777, 0o640);
}

#[test]
fn a_call_that_home_cannot_take_back_fails_and_the_job_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let script = "
import errno, os, sys
print('ready', flush=True)
sys.stdin.readline()                  # leaves here
kept = open('kept', 'w+')
os.unlink('kept')
kept.write('content')
kept.flush()
try:
    if os.fork() == 0: os._exit(0)
    print('forked', flush=True)
except OSError as error:
    print(errno.errorcode[error.errno], flush=True)
kept.seek(0)
print(kept.read(), flush=True)
sys.stdin.readline()
";
    let mut command = Command::new("python3");
    command
        .args(["-c", script])
        .current_dir(directory.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut job = Job(command.spawn().unwrap());
    let (mut to, from) = (job.0.stdin.take().unwrap(), job.0.stdout.take().unwrap());
    let mut lines = BufReader::new(from).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    let mut lab = Lab::new(job.0.id());
    lab.migrate();
    to.write_all(b"\n").unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "EAGAIN");
    assert_eq!(lines.next().unwrap().unwrap(), "content");
    let event = lab.command(&migrator::control::Command::Home);
    assert!(matches!(event, Event::Failed { .. }), "{event:?}");
    until("it runs on", || lab.state().state == RunState::Running);
    drop(to);
    assert!(job.wait().success());
}

/// A shell puts its output aside to write into a file, and takes it back.
#[test]
fn a_shell_redirects_without_going_home() {
    let directory = tempfile::tempdir().unwrap();
    let script = "echo ready; read go; i=0; while [ $i -lt 50 ]; do i=$((i+1)); \
                  echo log $i >>log; echo out $i; done; echo done; read end";
    let mut command = Command::new("sh");
    command
        .args(["-c", script])
        .current_dir(directory.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut job = Job(command.spawn().unwrap());
    let (mut to, from) = (job.0.stdin.take().unwrap(), job.0.stdout.take().unwrap());
    let mut lines = BufReader::new(from).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), "ready");
    let mut lab = Lab::new(job.0.id());
    lab.migrate();
    to.write_all(b"go\n").unwrap();
    let out: Vec<String> = lines.by_ref().take_while(|line| line != "done").collect();
    let expected = |word: &str| (1..=50).map(|i| format!("{word} {i}")).collect::<Vec<_>>();
    assert_eq!(out, expected("out"));
    let log = std::fs::read_to_string(directory.path().join("log")).unwrap();
    assert_eq!(log.lines().collect::<Vec<_>>(), expected("log"));
    assert_eq!(
        (lab.state().state, lab.state().moves),
        (RunState::Running, 1)
    );
    lab.migrate();
    lab.home();
    drop(to);
    job.wait();
}

#[test]
fn a_nice_job_stays_nice() {
    let script = "
import os, sys
for line in sys.stdin: print(os.nice(0), flush=True)
";
    let mut command = Command::new("nice");
    command
        .args(["-n", "7", "python3", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut job = Job(command.spawn().unwrap());
    let (mut to, from) = (job.0.stdin.take().unwrap(), job.0.stdout.take().unwrap());
    let mut lines = BufReader::new(from).lines();
    let mut ask = || {
        to.write_all(b"\n").unwrap();
        lines.next().unwrap().unwrap()
    };
    assert_eq!(ask(), "7");
    let mut lab = Lab::new(job.0.id());
    lab.migrate();
    assert_eq!(ask(), "7");
    lab.home();
    assert_eq!(ask(), "7");
}
