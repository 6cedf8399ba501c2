//! Whatever fails before the commit point leaves the job running at home.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use migrator::control::{self, Event, ExpectedProcess, RunState};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::lab::{Job, Lab, until, wait};

const COUNT: &str = "
import sys, time
for step in range(int(sys.argv[1])):
    time.sleep(0.01)
    sys.stdout.write(f'{step}\\n')
    sys.stdout.flush()
";

fn counter(steps: u32) -> Child {
    let mut command = Command::new("python3");
    command.args(["-c", COUNT, &steps.to_string()]);
    command.stdout(Stdio::piped()).spawn().unwrap()
}

/// Counts until a file is there, however slow the machine is.
const COUNT_UNTIL: &str = "
import os, sys, time
step = 0
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
    sys.stdout.write(f'{step}\\n')
    sys.stdout.flush()
    step += 1
";

fn counter_until(file: &std::path::Path) -> Child {
    let mut command = Command::new("python3");
    command.args(["-c", COUNT_UNTIL]).arg(file);
    command.stdout(Stdio::piped()).spawn().unwrap()
}

/// A counter that counts, and what it says.
struct Counting {
    job: Job,
    from: BufReader<std::process::ChildStdout>,
    text: String,
    enough: tempfile::TempPath,
}

impl Counting {
    fn start() -> Self {
        let file = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        std::fs::remove_file(&file).unwrap();
        let mut job = Job(counter_until(&file));
        let mut from = BufReader::new(job.0.stdout.take().unwrap());
        let mut text = String::new();
        from.read_line(&mut text).unwrap();
        Self {
            job,
            from,
            text,
            enough: file,
        }
    }

    /// It has counted all the time and left nothing out.
    fn finish(mut self) {
        std::fs::write(&self.enough, "").unwrap();
        std::io::Read::read_to_string(&mut self.from, &mut self.text).unwrap();
        let steps = self.text.lines().count();
        let expected: String = (0..steps).map(|step| format!("{step}\n")).collect();
        assert_eq!(self.text, expected);
        assert!(self.job.wait().success());
    }
}

#[test]
fn a_link_cut_at_any_byte_before_go_leaves_the_job_at_home() {
    let counting = Counting::start();
    let mut lab = Lab::new(counting.job.0.id());
    let mut cut = 40;
    for _ in 0..24 {
        let event = lab.try_migrate(&format!("cut:{cut}"));
        let Event::Failed { .. } = event else {
            panic!("{event:?} after {cut} bytes");
        };
        assert_eq!(lab.state().state, RunState::Home);
        eprintln!("cut after {cut}: {event:?}");
        wait(lab.last_host());
        cut = cut * 7 / 5 + 13;
    }
    counting.finish();
}

#[test]
fn a_host_that_dies_while_it_builds_leaves_the_job_at_home() {
    let counting = Counting::start();
    let mut lab = Lab::new(counting.job.0.id());
    let event = lab.try_migrate_to("/nonexistent/socket");
    assert!(matches!(event, Event::Failed { .. }), "{event:?}");
    counting.finish();
}

/// An order that means a process of the same PID, or the same process with other rights.
const MISTAKEN: [fn(&mut Option<ExpectedProcess>); 4] = [
    |expected| *expected = None,
    |expected| expected.as_mut().unwrap().process.start_ticks += 1,
    |expected| expected.as_mut().unwrap().credentials.uids[2] ^= 1,
    |expected| expected.as_mut().unwrap().credentials.capabilities ^= 1,
];

fn mistake(lab: &mut Lab, change: fn(&mut Option<ExpectedProcess>)) {
    let mut order = lab.new_host("");
    if let control::Command::Migrate { expected, .. } = &mut order {
        change(expected);
    }
    let event = lab.command(&order);
    let Event::Failed { error, cantmove } = &event else {
        panic!("{event:?}");
    };
    assert!(*cantmove && error.starts_with("changed: "), "{event:?}");
    let _ = lab.last_host().kill();
}

#[test]
fn an_order_for_another_process_moves_nothing() {
    let counting = Counting::start();
    let mut lab = Lab::new(counting.job.0.id());
    for change in MISTAKEN {
        mistake(&mut lab, change);
        assert_eq!(lab.state().place, "home");
    }
    lab.migrate();
    let place = lab.state().place;
    assert_ne!(place, "home");
    for change in MISTAKEN {
        mistake(&mut lab, change);
        assert_eq!(lab.state().place, place);
    }
    lab.home();
    counting.finish();
}

#[test]
fn a_host_that_dies_ends_the_job_and_says_so() {
    let mut job = Job(Command::new("sleep").arg("1000").spawn().unwrap());
    job.until_asleep();
    let mut lab = Lab::new(job.0.id());
    lab.migrate();
    lab.last_host().kill().unwrap();
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(job.wait().signal(), Some(libc::SIGKILL));
    until("the note", || lab.state().state == RunState::Lost);
    assert!(lab.state().note.contains("host"), "{}", lab.state().note);
}

/// As on a machine that is so busy that they do not get a CPU for seconds.
#[test]
fn keepers_that_stand_still_for_seconds_do_not_end_the_job() {
    let mut counting = Counting::start();
    let mut lab = Lab::new(counting.job.0.id());
    lab.migrate();
    let shim = lab.state().keeper_pid;
    let host = i32::try_from(lab.last_host().id()).unwrap();
    for keepers in [&[shim][..], &[shim, host]] {
        let send = |signal| {
            for pid in keepers {
                kill(Pid::from_raw(*pid), signal).unwrap();
            }
        };
        send(Signal::SIGSTOP);
        std::thread::sleep(Duration::from_secs(7));
        send(Signal::SIGCONT);
        for _ in 0..20 {
            let Counting { from, text, .. } = &mut counting;
            from.read_line(text).unwrap();
        }
    }
    assert_eq!(lab.state().state, RunState::Running);
    lab.home();
    counting.finish();
}

#[test]
fn a_job_that_cannot_move_is_left_alone() {
    // Shared writable memory.
    let script = "
import mmap, sys
shared = mmap.mmap(-1, 4096)
print('ready', flush=True)
sys.stdin.readline()
shared[0] = 1
";
    let mut command = Command::new("python3");
    command.args(["-c", script]).stdin(Stdio::piped());
    let mut job = Job(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut from = BufReader::new(job.0.stdout.take().unwrap());
    from.read_line(&mut String::new()).unwrap();
    let mut lab = Lab::new(job.0.id());
    let event = lab.try_migrate("");
    assert!(
        matches!(event, Event::Failed { cantmove: true, .. }),
        "{event:?}"
    );
    assert!(!lab.state().cantmove.is_empty());
    drop(job.0.stdin.take());
    assert!(job.wait().success());
}

/// Where a cut may fall: below `failed` no move succeeded yet, from `done` on one did.
struct Bounds {
    failed: u64,
    done: u64,
}

impl Bounds {
    /// Half of the cuts fall around the commit point, where home calls begin.
    fn choose(&self, random: u64) -> u64 {
        const HOME_CALLS_BYTES: u64 = 4000;
        let around = self.done - self.failed + HOME_CALLS_BYTES;
        match random % 2 {
            0 => self.failed + (random / 2) % around,
            _ => (random / 2) % (self.done + HOME_CALLS_BYTES),
        }
    }
}

#[test]
fn a_link_cut_at_a_random_byte_loses_nothing() {
    const STEPS: u32 = 30;
    // More by hand.
    let rounds = std::env::var("OMFS_CUTS")
        .ok()
        .and_then(|text| text.parse().ok());
    let expected: String = (0..STEPS).map(|step| format!("{step}\n")).collect();
    let seed = u64::from(std::process::id()) ^ 0x9e37_79b9_7f4a_7c15;
    let mut random = seed;
    // Twice what an image of this program has.
    let mut bounds = Bounds {
        failed: 0,
        done: 32 << 20,
    };
    let (mut at_home, mut lost) = (0, 0);
    for round in 0..rounds.unwrap_or(8) {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        // One at least comes before the image is over.
        let cut = match round {
            0 => 5000,
            _ => bounds.choose(random >> 16),
        };
        let (event, text, status) = cut_after(cut, STEPS);
        let seen = format!("cut after {cut} (seed {seed}): {event:?}, {status}, wrote {text:?}");
        match event {
            Event::Failed { .. } => {
                bounds.failed = bounds.failed.max(cut.min(bounds.done));
                at_home += 1;
                assert!(status.success() && text == expected, "{seen}");
            }
            _ => {
                bounds.done = bounds.done.min(cut.max(bounds.failed));
                lost += u32::from(!status.success());
                use std::os::unix::process::ExitStatusExt;
                let killed = status.signal() == Some(libc::SIGKILL);
                assert!(status.success() || killed, "{seen}");
                assert!(expected.starts_with(&text), "{seen}");
                assert!(killed || text == expected, "{seen}");
            }
        }
    }
    eprintln!("{at_home} stayed at home, {lost} were lost with their host");
    assert!(at_home > 0);
}

/// Moves a counter over a link that breaks; gives what the move said, and what the counter wrote.
fn cut_after(cut: u64, steps: u32) -> (Event, String, std::process::ExitStatus) {
    let mut job = Job(counter(steps));
    let mut from = BufReader::new(job.0.stdout.take().unwrap());
    let mut text = String::new();
    // It has begun.
    from.read_line(&mut text).unwrap();
    let mut lab = Lab::new(job.0.id());
    let event = lab.try_migrate(&format!("cut:{cut}"));
    std::io::Read::read_to_string(&mut from, &mut text).unwrap();
    let status = job.wait();
    (event, text, status)
}
