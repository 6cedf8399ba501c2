//! A wait ends in time also when its process is moved meanwhile.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::lab::{Job, Lab};

/// Waits for three seconds in calls that say so in different ways.
const WAITER: &str = "
import ctypes, select, sys, time
libc = ctypes.CDLL(None)
class Time(ctypes.Structure): _fields_ = [('seconds', ctypes.c_long), ('part', ctypes.c_long)]
class Poll(ctypes.Structure): _fields_ = [('fd', ctypes.c_int), ('events', ctypes.c_short), ('revents', ctypes.c_short)]
input = Poll(0, 1, 0)
epoll = select.epoll()
epoll.register(0, 1)
event, none = ctypes.create_string_buffer(12), ctypes.c_void_p(None)
def bits(): return ctypes.create_string_buffer(b'\\1', 128)
waits = {
  'poll at home': lambda: libc.poll(ctypes.byref(input), 1, 3000),
  'poll': lambda: libc.poll(None, 0, 3000),
  'epoll_wait': lambda: libc.epoll_wait(epoll.fileno(), event, 1, 3000),
  'select at home': lambda: libc.syscall(23, 1, bits(), none, none, ctypes.byref(Time(3, 0))),
  'select': lambda: libc.syscall(23, 0, none, none, none, ctypes.byref(Time(3, 0))),
  'pselect6': lambda: libc.syscall(270, 1, bits(), none, none, ctypes.byref(Time(3, 0)), none),
  'ppoll': lambda: libc.syscall(271, ctypes.byref(input), 1, ctypes.byref(Time(3, 0)), none, 8),
}
for name in sys.argv[1:]:
  print('begins', flush=True)
  sys.stdin.readline()
  begun = time.monotonic()
  result = waits[name]()
  print(name, result, time.monotonic() - begun, flush=True)
  sys.stdin.readline()
";

/// One wait of three seconds that goes on elsewhere after two; answers how long it took.
fn waited(name: &str) -> f64 {
    let mut command = Command::new("python3");
    let piped = command
        .args(["-c", WAITER, name])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut job = Job(piped.spawn().unwrap());
    let (mut to, from) = (job.0.stdin.take().unwrap(), job.0.stdout.take().unwrap());
    let mut lines = BufReader::new(from).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), "begins");
    let mut lab = Lab::new(job.0.id());
    lab.migrate();
    to.write_all(b"\n").unwrap();
    std::thread::sleep(Duration::from_secs(2));
    lab.migrate();
    let line = lines.next().unwrap();
    let words: Vec<&str> = line.rsplitn(3, ' ').collect();
    assert_eq!((words[1], words[2]), ("0", name), "{line}");
    to.write_all(b"\n").unwrap();
    drop(to);
    job.wait();
    words[0].parse().unwrap()
}

#[test]
fn a_wait_that_is_moved_ends_in_time() {
    let names = [
        "poll at home",
        "poll",
        "epoll_wait",
        "select at home",
        "select",
        "pselect6",
        "ppoll",
    ];
    let all: Vec<_> = names
        .map(|name| std::thread::spawn(move || (name, waited(name))))
        .into_iter()
        .map(|one| one.join().unwrap())
        .collect();
    for (name, seconds) in all {
        // One that began anew would take five seconds and what the move took.
        assert!((2.99..5.0).contains(&seconds), "{name}: {seconds}");
    }
}
