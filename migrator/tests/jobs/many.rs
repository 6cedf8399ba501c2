//! One job, moved again and again.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use super::lab::{Job, Lab};

const WORK: &str = "
import hashlib, sys, threading
digest = hashlib.sha256()
done = threading.Event()
ticks = 0
def tick():
    global ticks
    while not done.wait(0.01):
        ticks += 1
thread = threading.Thread(target=tick)
thread.start()
print('ready', flush=True)
for line in sys.stdin:
    block = line.encode() * 1000
    for _ in range(50):
        digest.update(block)
    print(len(line), flush=True)
done.set()
thread.join()
print(digest.hexdigest(), flush=True)
";

/// Moves a job `count` times, home or to a fresh host, as a fixed random sequence says.
fn wander(count: u32) {
    let mut command = Command::new("python3");
    command
        .args(["-c", WORK])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut job = Job(command.spawn().unwrap());
    let mut to = job.0.stdin.take().unwrap();
    let mut from = BufReader::new(job.0.stdout.take().unwrap());
    let mut line = String::new();
    from.read_line(&mut line).unwrap();
    let mut lab = Lab::new(job.0.id());
    let mut random: u64 = 0x2545_f491_4f6c_dd1d;
    for step in 0..count {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        if random.is_multiple_of(4) {
            lab.home();
        } else {
            lab.migrate();
        }
        let text = format!("step {step} {random}\n");
        std::io::Write::write_all(&mut to, text.as_bytes()).unwrap();
        line.clear();
        from.read_line(&mut line).unwrap();
        assert_eq!(line, format!("{}\n", text.len()), "step {step}");
    }
    drop(to);
    line.clear();
    from.read_line(&mut line).unwrap();
    assert_eq!(line.trim_end().len(), 64, "{line}");
    assert!(job.wait().success());
}

#[test]
fn a_job_survives_two_hundred_moves_in_a_row() {
    wander(200);
}
