//! What users and admins tell jobs and nodes to do: placing, locking, blocking, expelling, bringing.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::lab::run::output;
use integration::lab::{Lab, wait};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::harness::{BEGIN, BEGUN, Module, Need, SOON, user_sh, with_omfs};
use crate::restart;

const PYTHON: &[Need] = &[Need::Tool("python3")];
/// The balancer would have decided three times over.
const A_WHILE: Duration = Duration::from_secs(10);

pub fn tests() -> Vec<Trial> {
    let mut module = Module::one_at_a_time("operations", &[], || {
        let mut options = with_omfs(3)?;
        options.cpu_percent = Some(20);
        options
            .config
            .push_str("guest_ports = \"7800-7803\"\n[export]\nroot_squash = false\n");
        Ok(options)
    });
    module
        .test("run_on_runs_there_and_ends_as_the_program", &[], run_on)
        .test("run_home_and_run_stay", &[], run_home_and_stay)
        .test("a_job_placed_by_hand_stays_there", &[], placed_by_hand)
        .test("stay_and_lstay_hold_jobs_back", &[], stay)
        .test("a_blocked_node_takes_no_guests", &[], block)
        .test("expel_returns_when_all_guests_have_left", &[], expel)
        .test("bring_returns_when_all_jobs_are_home", &[], bring)
        .test("guests_have_a_cgroup_of_their_own", &[], cgroup)
        .test("moves_and_cpu_time_are_counted", &[], counted)
        .test(
            "full_run_directories_lose_no_job",
            &[],
            full_run_directories,
        )
        .test("garbage_on_a_supervisors_port", PYTHON, garbage);
    module.finish()
}

/// A shell's script without an end.
const BUSY: &str = "while :; do :; done";

fn json(lab: &Lab, node: &str, command: &str) -> Result<Value> {
    let text = lab.sh(node, command)?;
    serde_json::from_str(&text).with_context(|| format!("{command}: {text}"))
}

/// A process started on n1, which ends with this value.
struct Job<'lab> {
    lab: &'lab Lab,
    pid: i64,
}

impl<'lab> Job<'lab> {
    /// `omfs run` and its options, or nothing.
    fn start(lab: &'lab Lab, run: &str) -> Result<Self> {
        let script = format!(
            "{BEGUN} setsid {run} sh -c '{BEGIN} {BUSY}' >/dev/null 2>&1 </dev/null & echo $!; begun $!"
        );
        let pid = lab.sh("n1", &script)?.trim().parse()?;
        Ok(Self { lab, pid })
    }

    fn described(&self, key: &str) -> Result<Value> {
        let jobs = json(self.lab, "n1", "omfs ps -a --json")?;
        let mut jobs = jobs.as_array().context("no array")?.iter();
        let job = jobs.find(|job| job["pid"] == self.pid && job["home"] == "n1");
        Ok(job.with_context(|| format!("no job {}", self.pid))?[key].clone())
    }

    fn place(&self) -> Result<String> {
        Ok(self.described("where")?.as_str().context("no text")?.into())
    }

    fn wait_for_place(&self, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let there = || self.place().ok().filter(|place| wanted(place));
        wait::until(SOON, there).with_context(|| format!("{} is on {:?}", self.pid, self.place()))
    }

    /// Looks again and again whether it is where it was.
    fn stays(&self, place: &str, limit: Duration) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < limit {
            let now = self.place()?;
            ensure!(now == place, "{} went from {place} to {now}", self.pid);
            std::thread::sleep(Duration::from_millis(300));
        }
        Ok(())
    }

    fn migrate(&self, target: &str) -> Result<()> {
        let script = format!("omfs migrate {} {target}", self.pid);
        self.lab.sh("n1", &script).map(drop)
    }
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        let _ = self.lab.run("n1", &format!("kill -KILL {}", self.pid));
    }
}

/// The exit status and the words of a command that must fail.
fn failure(lab: &Lab, node: &str, command: &str) -> Result<(i32, String)> {
    let result = lab.run(node, command)?;
    let said = String::from_utf8_lossy(&result.stderr).into_owned();
    ensure!(!result.status.success(), "{command} succeeded");
    Ok((result.status.code().context("killed")?, said))
}

fn cgroup(lab: &Lab) -> Result<()> {
    const GROUPS: &str = "find /sys/fs/cgroup -type d -name omfs-guests";
    let shares = "cat $(find /sys/fs/cgroup -path '*/omfs-guests/cpu.shares' \
                  -o -path '*/omfs-guests/cpu.weight')";
    let gone = || lab.sh("n2", GROUPS).ok().filter(String::is_empty);
    // The supervisors of other tests' guests may be ending still.
    wait::until(SOON, gone).context("there is one without guests")?;
    let jobs = [Job::start(lab, "")?, Job::start(lab, "")?];
    for job in &jobs {
        job.migrate("n2")?;
    }
    let members = lab.sh(
        "n2",
        &format!("for one in $({GROUPS}); do cat $one/*/cgroup.procs | wc -l; done"),
    )?;
    ensure!(
        !members.is_empty() && members.lines().all(|count| count.trim() == "2"),
        "guests in each group: {members}"
    );
    // Beside processes of their own each counts half (1), all together half (2).
    let weight = lab.sh("n2", shares)?;
    ensure!(["1024\n", "50\n"].contains(&weight.as_str()), "{weight}");
    jobs[0].migrate("home")?;
    // It outlives the daemon with its guests, and the last one's end ends it.
    lab.sh("n2", restart::CRASH)?;
    ensure!(!lab.sh("n2", GROUPS)?.is_empty(), "a guest is in it");
    lab.sh("n1", &format!("kill -KILL {}", jobs[1].pid))?;
    let left = wait::until(SOON, gone).is_none();
    lab.sh("n2", restart::START)?;
    wait::until(SOON, || lab.sh("n2", "omfs nodes").ok()).context("no daemon")?;
    ensure!(!left, "the supervisor of the last guest left the group");
    wait::until(SOON, || jobs[0].migrate("n2").ok()).context("it does not move")?;
    jobs[0].migrate("home")?;
    wait::until(SOON, gone).context("the daemon left the group")?;
    Ok(())
}

fn run_on(lab: &Lab) -> Result<()> {
    let program = "while [ ! -e /root/on-go ]; do :; done; hostname >/root/on-host; exit 7";
    let script = format!(
        "rm -f /root/on-go; omfs run --on n2 sh -c '{program}' & echo $! >/root/on-pid; wait $!; echo $?"
    );
    let mut job = lab.command("n1", ["sh", "-c", &script])?;
    let job = std::thread::spawn(move || output(&mut job, SOON * 2));
    let pid = wait::until(SOON, || {
        lab.sh("n1", "cat /root/on-pid").ok()?.trim().parse().ok()
    });
    let running = Job {
        lab,
        pid: pid.context("it did not start")?,
    };
    running.wait_for_place(|place| place == "n2")?;
    lab.sh("n1", "touch /root/on-go")?;
    let result = job.join().map_err(|_| anyhow::anyhow!("panicked"))??;
    ensure!(result.stdout == b"7\n", "{result:?}");
    ensure!(
        lab.sh("n1", "cat /root/on-host")? == "n1\n",
        "it left its home's name"
    );
    let (status, said) = failure(lab, "n1", "omfs run --on nowhere true")?;
    ensure!(status == 1 && said.contains("nowhere"), "{status} {said}");
    let (status, said) = failure(lab, "n1", "omfs run --on n2 /no/such/program")?;
    ensure!(
        status == 127 && said.contains("/no/such/program"),
        "{status} {said}"
    );
    let ended = lab.sh("n1", "omfs run sh -c 'kill -TERM $$'; echo $?")?;
    ensure!(ended == "143\n", "it ends as its program: {ended}");
    Ok(())
}

fn run_home_and_stay(lab: &Lab) -> Result<()> {
    let home = Job::start(lab, "omfs run --home")?;
    let stay = Job::start(lab, "omfs run --stay")?;
    let other = Job::start(lab, "")?;
    // Three on a fifth of a CPU, and two idle nodes: who may leave does.
    for job in [&home, &stay, &other] {
        job.stays("n1", A_WHILE / 3)?;
    }
    let (status, said) = failure(lab, "n1", &format!("omfs migrate {} n2", home.pid))?;
    ensure!(
        status == 75 && said.contains("stay at home"),
        "{status} {said}"
    );
    ensure!(
        home.described("cantmove")?
            .as_array()
            .is_some_and(|why| !why.is_empty())
    );
    stay.migrate("n2")?;
    ensure!(stay.place()? == "n2");
    stay.migrate("home")?;
    ensure!(stay.place()? == "n1");
    let result = user_sh(lab, "nobody", "n1", &format!("omfs lock {}", stay.pid))?;
    ensure!(result.status.code() == Some(77), "{result:?}");
    Ok(())
}

fn placed_by_hand(lab: &Lab) -> Result<()> {
    let first = Job::start(lab, "omfs run")?;
    let second = Job::start(lab, "omfs run")?;
    for job in [&first, &second] {
        job.migrate("n2")?;
    }
    ensure!(first.described("locked")? == true);
    // n3 is idle.
    first.stays("n2", A_WHILE)?;
    second.stays("n2", Duration::ZERO)?;
    lab.sh("n1", &format!("omfs unlock {}", first.pid))?;
    first.wait_for_place(|place| place != "n2")?;
    second.stays("n2", Duration::ZERO)?;
    // Home is a place, too.
    second.migrate("home")?;
    let _local = Job::start(lab, "")?;
    second.stays("n1", A_WHILE)?;
    lab.sh("n1", &format!("omfs unlock {}", second.pid))?;
    second.wait_for_place(|place| place != "n1")?;
    Ok(())
}

fn stay(lab: &Lab) -> Result<()> {
    for (hold, release) in [("stay", "nostay"), ("lstay", "nolstay")] {
        lab.sh("n1", &format!("omfs {hold}"))?;
        let status = json(lab, "n1", "omfs status --json")?;
        ensure!(status["policy"][hold] == true, "{status}");
        let job = Job::start(lab, "omfs run")?;
        let _local = Job::start(lab, "")?;
        job.stays("n1", A_WHILE)?;
        lab.sh("n1", &format!("omfs {release}"))?;
        job.wait_for_place(|place| place != "n1")?;
    }
    let result = user_sh(lab, "nobody", "n1", "omfs stay")?;
    ensure!(result.status.code() == Some(77), "{result:?}");
    Ok(())
}

fn block(lab: &Lab) -> Result<()> {
    let job = Job::start(lab, "")?;
    lab.sh("n2", "omfs block")?;
    let (status, said) = failure(lab, "n1", &format!("omfs migrate {} n2", job.pid))?;
    ensure!(status == 75 && said.contains("n2"), "{status} {said}");
    job.stays("n1", Duration::ZERO)?;
    lab.sh("n2", "omfs unblock")?;
    job.migrate("2")?;
    job.stays("n2", Duration::ZERO)
}

fn guests(lab: &Lab, node: &str) -> Result<usize> {
    let all = json(lab, node, "omfs ps --json")?;
    let all = all.as_array().context("no array")?;
    Ok(all.iter().filter(|one| one["note"] == "guest").count())
}

fn expel(lab: &Lab) -> Result<()> {
    let jobs = [Job::start(lab, "")?, Job::start(lab, "")?];
    for job in &jobs {
        job.migrate("n2")?;
    }
    ensure!(guests(lab, "n2")? == 2);
    let done = json(lab, "n2", "omfs expel --json")?;
    ensure!(
        done.as_array().is_some_and(|done| done.len() == 2),
        "{done}"
    );
    ensure!(guests(lab, "n2")? == 0, "it returned too early");
    for job in &jobs {
        job.wait_for_place(|place| place == "n1")?;
    }
    let status = json(lab, "n2", "omfs unblock --json")?;
    ensure!(status["policy"]["block"] == false, "{status}");
    Ok(())
}

fn bring(lab: &Lab) -> Result<()> {
    let jobs = [Job::start(lab, "")?, Job::start(lab, "")?];
    jobs[0].migrate("n2")?;
    jobs[1].migrate("n3")?;
    lab.sh("n1", "omfs bring")?;
    for job in &jobs {
        ensure!(job.place()? == "n1", "it returned too early");
    }
    let status = json(lab, "n1", "omfs status --json")?;
    ensure!(status["policy"]["lstay"] == true, "{status}");
    lab.sh("n1", "omfs nolstay").map(drop)
}

/// What a job has used anywhere is summed up at home; a host knows how often its guest has moved.
fn counted(lab: &Lab) -> Result<()> {
    let job = Job::start(lab, "")?;
    let used = |job: &Job<'_>| Ok::<_, anyhow::Error>(job.described("cpu_time_ms")?.as_u64());
    let mut before = Some(0);
    for (moves, target) in [(1, "n2"), (2, "n3"), (3, "home"), (4, "n2"), (5, "home")] {
        job.migrate(target)?;
        ensure!(
            job.described("moves")? == moves,
            "{}",
            job.described("moves")?
        );
        if target != "home" {
            let guests = json(lab, target, "omfs ps --json")?;
            let guests = guests.as_array().context("no array")?;
            let mut guests = guests.iter().filter(|one| one["note"] == "guest");
            let guest = guests
                .find(|one| one["pid"] == job.pid)
                .context("no guest")?;
            ensure!(guest["moves"] == moves, "on {target}: {guest}");
        }
        // A second of its own at every place; what it had is never lost.
        let more = || {
            used(&job)
                .ok()
                .filter(|now| *now >= before.map(|ms| ms + 1000))
        };
        let now = wait::until(SOON, more).with_context(|| {
            format!("after {moves} moves: {:?} after {before:?} ms", used(&job))
        })?;
        before = now;
    }
    Ok(())
}

fn full_run_directories(lab: &Lab) -> Result<()> {
    let job = Job::start(lab, "")?;
    let fill = |dir: &str| {
        format!(
            "mount -t tmpfs -o size=64k full /run/omfs/{dir} && \
             ! cat /dev/zero >/run/omfs/{dir}/fill 2>/dev/null"
        )
    };
    let refused = |node: &str| -> Result<()> {
        let (status, said) = failure(lab, "n1", &format!("omfs migrate {} n2", job.pid))?;
        ensure!(
            status == 75 && said.contains("No space left") && said.contains("hint: "),
            "{node} is full: {status} {said}"
        );
        job.stays("n1", Duration::ZERO)
    };
    lab.sh("n2", &fill("guests"))?;
    let full = refused("n2");
    lab.sh("n2", "umount -l /run/omfs/guests")?;
    full?;
    lab.sh("n1", &fill("jobs"))?;
    let moved = (|| {
        refused("n1")?;
        lab.sh("n1", "rm /run/omfs/jobs/fill")?;
        job.migrate("n2")?;
        // Full while it is away: it is still known where it is.
        lab.sh("n1", "! cat /dev/zero >/run/omfs/jobs/fill 2>/dev/null")?;
        job.migrate("n3")?;
        job.stays("n3", Duration::from_secs(3))?;
        job.migrate("home")?;
        job.stays("n1", Duration::ZERO)
    })();
    lab.sh("n1", "umount -l /run/omfs/jobs")?;
    moved?;
    lab.sh("n1", &format!("kill -0 {}", job.pid)).map(drop)
}

/// Keeps every port that a supervisor may listen on full of strangers.
const STRANGERS: &str = "import socket,random,os
while not os.path.exists('/tmp/strangers-stop'):
    for port in range(7800,7804):
        try:
            s=socket.create_connection(('n2',port),timeout=1)
            open('/tmp/strangers-met','a').write('x')
            s.sendall(random.randbytes(random.choice((1,5,300,70000)))); s.close()
        except OSError: pass";

fn garbage(lab: &Lab) -> Result<()> {
    lab.put("n3", "/tmp/strangers.py", STRANGERS.as_bytes())?;
    let mut strangers = lab
        .unlimited_command("n3", ["python3", "/tmp/strangers.py"])?
        .stdout(Stdio::null())
        .spawn()?;
    let met = || {
        let met = lab.run("n3", "stat -c %s /tmp/strangers-met").ok()?;
        String::from_utf8_lossy(&met.stdout)
            .trim()
            .parse::<u32>()
            .ok()
    };
    let job = Job::start(lab, "")?;
    let start = Instant::now();
    let moved = (|| {
        // Until some of them came before the guest.
        while met().is_none_or(|met| met < 5) {
            ensure!(start.elapsed() < SOON, "no stranger ever met a supervisor");
            job.migrate("n2")?;
            job.migrate("home")?;
        }
        Ok(())
    })();
    lab.sh("n3", "touch /tmp/strangers-stop")?;
    strangers.wait()?;
    moved?;
    job.migrate("n2")?;
    ensure!(!lab.sh("n2", "cat /var/log/omfs.log")?.contains("panicked"));
    Ok(())
}
