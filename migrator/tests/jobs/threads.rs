//! Programs with several threads.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use migrator::control::RunState;

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

/// Threads that wait, and a first one that ends them all as soon as it may.
const ENDS_THEM: &str = "
import os, signal, sys, threading
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
threading.stack_size(65536)
for _ in range(int(sys.argv[2])):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
print('ready', flush=True)
signal.sigwait([signal.SIGUSR1])
if sys.argv[1] == 'exec':
    os.execv('/bin/sh', ['sh', '-c', 'sleep .1; echo executed'])
os.open('/proc/self/stat', os.O_RDONLY)
os._exit(7)
";

fn ends_them(how: &str, threads: u32) -> (std::process::ExitStatus, String, Lab) {
    let mut command = Command::new("python3");
    command.args(["-c", ENDS_THEM, how, &threads.to_string()]);
    let mut job = Job(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut from = BufReader::new(job.0.stdout.take().unwrap());
    from.read_line(&mut String::new()).unwrap();
    let mut lab = Lab::new(job.0.id());
    lab.migrate();
    let pid = nix::unistd::Pid::from_raw(job.0.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::SIGUSR1).unwrap();
    let mut said = String::new();
    std::io::Read::read_to_string(&mut from, &mut said).unwrap();
    (job.wait(), said, lab)
}

/// Coming home for execve(2): the first thread that runs again ends all others.
#[test]
fn a_process_with_threads_comes_home_to_execute_another_program() {
    for threads in [1, 4, 60] {
        for _ in 0..3 {
            let (status, said, lab) = ends_them("exec", threads);
            assert!(status.success(), "{threads} threads: {status:?}");
            assert_eq!(said, "executed\n");
            assert_eq!(lab.state().state, RunState::Home, "{:?}", lab.state());
        }
    }
}

#[test]
fn a_process_with_threads_comes_home_and_ends() {
    for threads in [1, 60] {
        let (status, _, lab) = ends_them("exit", threads);
        assert_eq!(status.code(), Some(7), "{threads} threads");
        assert_eq!(lab.state().state, RunState::Home, "{:?}", lab.state());
    }
}
