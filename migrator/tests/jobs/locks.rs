//! Locks are the deputy's: no move may drop them.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use super::lab::{Job, Lab, until};

/// Locks a file at home; away it opens that again, so that a lower number is free, and maps it.
const HOLDER: &str = "
import fcntl, mmap, os, sys
def told(): print('ready', flush=True); sys.stdin.readline()
lock = os.open('db', os.O_RDWR)
fcntl.lockf(lock, fcntl.LOCK_EX)
told()
lower = os.open('other', os.O_RDONLY)
again = os.open('db', os.O_RDONLY)
mapped = mmap.mmap(again, 4, mmap.MAP_PRIVATE, mmap.PROT_READ)
os.close(lower)
told()
assert mapped[:] == os.pread(again, 4, 0) == os.pread(lock, 4, 0) == b'data'
told()
fcntl.lockf(lock, fcntl.LOCK_UN)
told()
";

/// Waits for the lock, and says when it has it.
const RIVAL: &str = "
import fcntl, os
file = os.open('db', os.O_RDWR)
open('waits', 'w').close()
fcntl.lockf(file, fcntl.LOCK_EX)
open('got', 'w').close()
";

#[test]
fn a_lock_is_held_through_all_moves() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::write(at("db"), "data").unwrap();
    std::fs::write(at("other"), "else").unwrap();
    let start = |script: &str| {
        let mut command = Command::new("python3");
        command.args(["-c", script]).current_dir(directory.path());
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Job(piped.spawn().unwrap())
    };
    let mut job = start(HOLDER);
    let (mut to, from) = (job.0.stdin.take().unwrap(), job.0.stdout.take().unwrap());
    let mut lines = BufReader::new(from).lines();
    let mut ready = || assert_eq!(lines.next().unwrap().unwrap(), "ready");
    ready();
    let mut rival = start(RIVAL);
    until("the rival", || at("waits").exists());
    let mut lab = Lab::new(job.0.id());
    for step in 0..3 {
        lab.migrate();
        if step == 0 {
            to.write_all(b"\n").unwrap();
            ready();
        }
        lab.migrate();
        lab.home();
        assert!(!at("got").exists(), "lost in round {step}");
    }
    for _ in 0..2 {
        to.write_all(b"\n").unwrap();
        ready();
    }
    until("the rival's lock", || at("got").exists());
    assert!(rival.wait().success());
    drop(to);
    assert!(job.wait().success());
}
