//! Programs with several threads.

use std::fs::File;
use std::io::Write;
use std::process::{Command, Stdio};

use super::lab::{Job, Lab, real_data, until};

#[test]
fn xz_with_two_threads_makes_the_same_file() {
    let directory = tempfile::tempdir().unwrap();
    let (input, out) = (directory.path().join("in"), directory.path().join("out"));
    real_data(&input, 6 << 20);
    let xz = |input: Stdio, out: Stdio| {
        let mut command = Command::new("xz");
        command.args(["-T2", "-2", "--block-size=1MiB", "-c"]);
        command.stdin(input).stdout(out).spawn().unwrap()
    };
    let whole = xz(File::open(&input).unwrap().into(), Stdio::piped());
    let expected = whole.wait_with_output().unwrap().stdout;
    let mut job = Job(xz(Stdio::piped(), File::create(&out).unwrap().into()));
    // However slow the machine, it does not end before its moves are done.
    let mut stdin = job.0.stdin.take().unwrap();
    let (finish, finished) = std::sync::mpsc::channel::<()>();
    let feeder = std::thread::spawn(move || {
        let data = std::fs::read(&input).unwrap();
        stdin.write_all(&data[..5 << 20]).unwrap();
        let _ = finished.recv();
        stdin.write_all(&data[5 << 20..]).unwrap();
    });
    until("its threads", || job.threads() >= 3);
    let mut lab = Lab::new(job.0.id());
    lab.migrate();
    lab.migrate();
    lab.home();
    lab.migrate();
    drop(finish);
    assert!(job.wait().success());
    feeder.join().unwrap();
    assert!(std::fs::read(&out).unwrap() == expected, "output differs");
}

#[test]
fn python_threads_locks_and_files_move_along() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("log");
    let script = "
import os, sys, threading, time
log = open(sys.argv[1], 'w')
lock = threading.Lock()
total = 0
def work(number):
    global total
    step = -1
    while not os.path.exists(sys.argv[1] + '.enough'):
        step += 1
        time.sleep(0.02)
        with lock:
            total += step
            log.write(f'{number} {step}\\n')
            log.flush()
threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
with open(sys.argv[1] + '.sum', 'w') as other:
    other.write(str(total))
sys.exit(5)
";
    let mut command = Command::new("python3");
    let child = command.args(["-c", script]).arg(&out).spawn().unwrap();
    let mut job = Job(child);
    let mut lab = Lab::new(job.0.id());
    let size = || std::fs::metadata(&out).map_or(0, |data| data.len());
    let works = || {
        let before = size();
        until("work", || size() > before);
    };
    works();
    lab.migrate();
    works();
    lab.home();
    lab.migrate();
    lab.migrate();
    works();
    std::fs::write(directory.path().join("log.enough"), "").unwrap();
    assert_eq!(job.wait().code(), Some(5));
    let lines = std::fs::read_to_string(&out).unwrap();
    let mut total = 0;
    for number in 0..4 {
        let steps = lines.lines().filter_map(|line| line.split_once(' '));
        let steps: Vec<&str> = steps
            .filter(|(who, _)| *who == number.to_string())
            .map(|(_, step)| step)
            .collect();
        let expected: Vec<String> = (0..steps.len()).map(|step| step.to_string()).collect();
        assert_eq!(steps, expected);
        total += (0..steps.len()).sum::<usize>();
    }
    let sum = std::fs::read_to_string(out.with_extension("sum")).unwrap();
    assert_eq!(sum, total.to_string());
}
