//! Programs of all kinds, moved out while they work, finishing away with the same output.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use migrator::capture::eligibility;
use migrator::tracee::Event;

use crate::common::{Away, Job, TestResult, WORK_LIMIT};
use crate::noise;

/// How often a program is started that ends before it could be moved: the machine is busy.
const TRIES: u32 = 20;

/// Starts `script` in a directory with a file `input`, moves it after a while, and compares what it
/// wrote with what it writes unmoved. A program that this machine does not have is skipped aloud.
fn moved_like_unmoved(program: &str, args: &[&str], after_ms: u64) -> TestResult {
    let directory = tempfile::tempdir()?;
    fs::write(directory.path().join("input"), noise(6 << 20))?;
    if Command::new(program).arg("--version").output().is_err() {
        eprintln!("skipped: no {program} on this machine");
        return Ok(());
    }
    let expected = directory.path().join("expected");
    assert!(
        command(program, args, directory.path(), &expected)?
            .status()?
            .success()
    );
    let output = directory.path().join("output");
    let mut moved = None;
    for _ in 0..TRIES {
        let mut job = Job::start(&mut command(program, args, directory.path(), &output)?)?;
        std::thread::sleep(Duration::from_millis(after_ms));
        match eligible(job.pid(), program).and_then(|()| Away::start(job.pid())) {
            Ok(away) => {
                moved = Some((job, away));
                break;
            }
            Err(error) if job.0.try_wait()?.is_none() => return Err(error),
            Err(_) => {}
        }
    }
    let (_job, mut away) = moved.ok_or("it was always faster than the test")?;
    assert_eq!(away.serve(WORK_LIMIT)?, Some(Event::Exited(0)), "{program}");
    away.end()?;
    assert!(
        fs::read(&output)? == fs::read(&expected)?,
        "{program}: output differs"
    );
    Ok(())
}

fn eligible(pid: i32, program: &str) -> TestResult {
    match &eligibility(pid)[..] {
        [] => Ok(()),
        reasons => Err(format!("{program}: {reasons:?}").into()),
    }
}

fn command(program: &str, args: &[&str], directory: &Path, output: &Path) -> TestResult<Command> {
    let mut command = Command::new(program);
    command
        .args(args)
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(File::create(output)?);
    Ok(command)
}

#[test]
fn bzip2() -> TestResult {
    moved_like_unmoved("bzip2", &["-c", "input"], 200)
}

#[test]
fn xz_with_threads() -> TestResult {
    moved_like_unmoved(
        "xz",
        &["-T2", "-1", "-c", "--block-size=256KiB", "input"],
        150,
    )
}

#[test]
fn zstd_with_threads() -> TestResult {
    moved_like_unmoved("zstd", &["-T2", "-9", "-c", "input"], 100)
}

#[test]
fn sort_with_temporary_files() -> TestResult {
    moved_like_unmoved(
        "sort",
        &[
            "-S",
            "2M",
            "-T",
            ".",
            "--parallel=2",
            "/proc/self/cwd/input",
        ],
        5,
    )
}

#[test]
fn perl_with_hashes_and_files() -> TestResult {
    let program = "open F, '<', 'input'; my %h;
        for (1..20) { seek(F, 0, 0); while (read(F, my $b, 64)) { $h{$b}++ if $i++ % 3 == 0 } }
        my $t = 0; for my $k (sort keys %h) { $t = ($t * 31 + ord($k) * $h{$k}) % 1000003 } print qq($t\\n);";
    moved_like_unmoved("perl", &["-e", program], 60)
}

#[test]
fn python_with_threads_signals_and_sleep() -> TestResult {
    let program = "
import hashlib, signal, threading, time
seen = []
signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
def work(out, number):
    digest = hashlib.sha256()
    for _ in range(30):
        with open('input', 'rb') as file:
            digest.update(file.read(200000 + number))
        time.sleep(0.02)
    out[number] = digest.hexdigest()
out = {}
threads = [threading.Thread(target=work, args=(out, n)) for n in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
print(sorted(out.items()))
";
    // Not by a wrapper script that would be moved instead.
    let which = Command::new("python3")
        .args(["-c", "import sys; print(sys.executable)"])
        .output();
    let path = which.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    moved_like_unmoved(&path.unwrap_or("python3".into()), &["-c", program], 300)
}

#[test]
fn a_shell_loop_of_builtins() -> TestResult {
    let program =
        "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo $i; read x < input; echo ${#x}";
    moved_like_unmoved("sh", &["-c", program], 100)
}

#[test]
fn awk_counting() -> TestResult {
    let program = "BEGIN { for (i = 0; i < 4000000; i++) { s = (s * 31 + i) % 1000003; h[s % 5000]++ } print s, length(h) }";
    moved_like_unmoved("awk", &[program], 100)
}
