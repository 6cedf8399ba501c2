//! What is at home only: pipes and terminals.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::lab::{Job, Lab, OnDrop};

/// A program that answers each line on its pipes.
struct Talker {
    job: Job,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Talker {
    fn start(program: &mut Command) -> Self {
        let command = program.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let to = child.stdin.take();
        let from = BufReader::new(child.stdout.take().unwrap());
        Self {
            job: Job(child),
            to,
            from,
        }
    }

    fn ask(&mut self, line: &str) -> String {
        let to = self.to.as_mut().unwrap();
        writeln!(to, "{line}").unwrap();
        to.flush().unwrap();
        let mut answer = String::new();
        self.from.read_line(&mut answer).unwrap();
        answer.trim_end().to_owned()
    }
}

const SHOUT: &str = "
import os, sys
while True:
    line = sys.stdin.readline()
    if not line:
        break
    print(line.strip().upper(), os.getpid(), os.getppid(), flush=True)
sys.exit(7)
";

#[test]
fn a_conversation_over_pipes_goes_on_through_moves() {
    let mut talker = Talker::start(Command::new("python3").args(["-c", SHOUT]));
    let pid = talker.job.0.id();
    let expected = |word: &str| format!("{word} {pid} {}", std::process::id());
    assert_eq!(talker.ask("home"), expected("HOME"));
    let mut lab = Lab::new(pid);
    for round in 0..2 {
        lab.migrate();
        assert_eq!(talker.ask("away"), expected("AWAY"), "round {round}");
        assert_eq!(talker.ask("again"), expected("AGAIN"));
        lab.migrate();
        assert_eq!(talker.ask("third node"), expected("THIRD NODE"));
        lab.home();
        assert_eq!(talker.ask("back"), expected("BACK"));
    }
    lab.migrate();
    drop(talker.to.take());
    assert_eq!(talker.job.wait().code(), Some(7));
}

const PASS_ON: &str = "
import hashlib, os, random, sys
rng, digest = random.Random(5), hashlib.sha256()
while True:
    data = os.read(0, rng.choice([1, 512, 4096]))
    if not data:
        break
    digest.update(data)
    while data:
        data = data[os.write(1, data):]
sys.stderr.write(digest.hexdigest())
";

/// It is at home for each piece, and moved amid its calls. More moves by hand: OMFS_MOVES.
#[test]
fn a_job_between_two_pipes_survives_moves_amid_its_calls() {
    let moves = std::env::var("OMFS_MOVES")
        .ok()
        .and_then(|text| text.parse().ok());
    let mut command = Command::new("python3");
    command.args(["-c", PASS_ON]).stderr(Stdio::piped());
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut job = Job(piped.spawn().unwrap());
    let (mut to, mut from) = (job.0.stdin.take().unwrap(), job.0.stdout.take().unwrap());
    let over = AtomicBool::new(false);
    let (sent, got) = std::thread::scope(|scope| {
        let feeder = scope.spawn(|| {
            let mut sent = Vec::new();
            while !over.load(Relaxed) {
                let piece: Vec<u8> = (0..997_u32)
                    .map(|at| (at ^ sent.len() as u32) as u8)
                    .collect();
                to.write_all(&piece).unwrap();
                sent.extend(piece);
            }
            drop(to);
            sent
        });
        let reader = scope.spawn(|| {
            let mut got = Vec::new();
            std::io::Read::read_to_end(&mut from, &mut got).unwrap();
            got
        });
        let _over = OnDrop(&over);
        let mut lab = Lab::new(job.0.id());
        for step in 0..moves.unwrap_or(60) {
            if step % 3 == 2 {
                lab.home()
            } else {
                lab.migrate()
            }
        }
        over.store(true, Relaxed);
        (feeder.join().unwrap(), reader.join().unwrap())
    });
    assert!(sent == got, "{} bytes became {}", sent.len(), got.len());
    let status = job.wait();
    assert!(status.success(), "{status:?}");
}

#[test]
fn large_writes_arrive_whole() {
    let script = "
import sys
print('ready', flush=True)
sys.stdin.readline()
data = bytes(range(256)) * 40000
sys.stdout.buffer.write(data)
";
    let mut talker = Talker::start(Command::new("python3").args(["-c", script]));
    let mut ready = String::new();
    talker.from.read_line(&mut ready).unwrap();
    let mut lab = Lab::new(talker.job.0.id());
    lab.migrate();
    writeln!(talker.to.as_mut().unwrap()).unwrap();
    let mut got = Vec::new();
    std::io::Read::read_to_end(&mut talker.from, &mut got).unwrap();
    let whole: Vec<u8> = (0..=255).cycle().take(256 * 40000).collect();
    assert!(got == whole, "{} bytes", got.len());
    assert!(talker.job.wait().success());
}

#[test]
fn writing_to_a_closed_pipe_kills_as_at_home() {
    let mut command = Command::new("yes");
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut from = BufReader::new(child.stdout.take().unwrap());
    let mut lab = Lab::new(child.id());
    let mut job = Job(child);
    lab.migrate();
    let mut line = String::new();
    for _ in 0..40000 {
        line.clear();
        from.read_line(&mut line).unwrap();
        assert_eq!(line, "y\n");
    }
    drop(from);
    assert_eq!(job.wait().signal(), Some(libc::SIGPIPE));
}
