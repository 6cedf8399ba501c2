//! Whose processes may be moved, and what others see of them (docs/security.md).
//!
//! Each attempt has a control that succeeds: the same order for an ordinary program, or by root.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::lab::options::{ROOT_JOBS, node_name};
use integration::lab::{Lab, wait};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::harness::{Module, Need, SOON, until, user_sh, with_omfs};

const PYTHON: &[Need] = &[Need::Tool("python3")];
const NODES: usize = 3;
/// An ordinary user of all nodes.
const USER: &str = "ann";
const UID: u32 = 4711;

pub fn tests() -> Vec<Trial> {
    let mut module = Module::new("processes", PYTHON, || with_omfs(NODES));
    for (name, program, reason) in PRIVILEGED {
        module.test_with(name, &[], move |lab| {
            stays_but_for_root(lab, program, reason)
        });
    }
    module
        .test("an_ordinary_users_job_moves_and_comes_home", &[], ordinary)
        .test(
            "a_program_executed_during_the_order_stays",
            &[],
            executed_during_the_order,
        )
        .test("others_see_only_that_a_process_is_there", &[], others_see)
        .test("nobody_keeps_anothers_process_in_place", &[], foreign_locks)
        .alone(
            "only_ordinary_users_jobs_move_by_themselves",
            &[],
            by_itself,
        );
    module.finish()
}

/// A process, started by `ann` unless it says otherwise, and what `omfs migrate` tells `ann`.
const PRIVILEGED: [(&str, Start, &str); 6] = [
    (
        "a_set_user_id_program_stays",
        Start::User("/usr/bin/suid-yes"),
        "privileged",
    ),
    (
        "a_set_group_id_program_stays",
        Start::User("/usr/bin/sgid-yes"),
        "privileged",
    ),
    (
        "a_program_with_a_file_capability_stays",
        Start::User("/usr/bin/cap-yes"),
        "privileged",
    ),
    (
        "a_set_user_id_program_that_became_root_stays",
        Start::User("/usr/bin/suid-python -c 'import os; os.setresuid(0,0,0)\nwhile True: pass'"),
        "belongs to user 0",
    ),
    (
        "a_program_that_is_not_dumpable_stays",
        Start::User(
            "python3 -c 'import ctypes; ctypes.CDLL(None).prctl(4,0,0,0,0)\nwhile True: pass'",
        ),
        "privileged",
    ),
    (
        "a_daemon_that_acts_for_a_user_stays",
        Start::Root("python3 -c 'import os; os.setegid(4711); os.seteuid(4711)\nwhile True: pass'"),
        "belongs to user 0",
    ),
];

#[derive(Clone, Copy)]
enum Start {
    User(&'static str),
    Root(&'static str),
}

/// Makes the user and the privileged programs; may be called by several tests at once.
fn prepare(lab: &Lab) -> Result<()> {
    for index in 0..NODES {
        let script = format!(
            "exec 9>/tmp/prepare.lock; flock 9; [ -e /tmp/prepared ] && exit
             echo '{USER}:x:{UID}:{UID}::/tmp:/bin/sh' >>/etc/passwd; echo '{USER}:x:{UID}:' >>/etc/group
             cd /usr/bin; for kind in suid sgid cap; do cp yes $kind-yes; done
             cp -L $(command -v python3) suid-python
             chmod 4755 suid-yes suid-python; chmod 2755 sgid-yes
             python3 -c 'import os,struct
os.setxattr(\"cap-yes\",\"security.capability\",struct.pack(\"<5I\",0x02000001,1<<13,0,0,0))'
             : >/tmp/prepared"
        );
        lab.sh(&node_name(index), &script)?;
    }
    Ok(())
}

/// A process of n1 that ends with this value.
struct Process<'lab> {
    lab: &'lab Lab,
    pid: i32,
}

impl<'lab> Process<'lab> {
    /// Starts a program; it is there when `ready`, a shell test of `$pid`, succeeds.
    fn start(lab: &'lab Lab, user: &str, program: &str, ready: &str) -> Result<Self> {
        let script = format!("setsid {program} >/dev/null 2>&1 </dev/null & echo $!");
        let started = user_sh(lab, user, "n1", &script)?;
        let pid = String::from_utf8_lossy(&started.stdout).trim().parse();
        let process = Self {
            lab,
            pid: pid.with_context(|| format!("{started:?}"))?,
        };
        until(lab, "n1", &format!("pid={}; {ready}", process.pid))?;
        Ok(process)
    }

    /// The exit status and the words of `omfs migrate`.
    fn migrate(&self, user: &str, target: &str) -> Result<(i32, String)> {
        let order = format!("omfs migrate {} {target}", self.pid);
        let result = user_sh(self.lab, user, "n1", &order)?;
        let said = String::from_utf8_lossy(&result.stderr).into_owned();
        Ok((result.status.code().context("killed")?, said))
    }

    fn place(&self) -> Result<String> {
        let listed = listed(self.lab, "n1", "root")?;
        let own = listed.iter().find(|one| one["pid"] == self.pid);
        let place = own.with_context(|| format!("no process {}", self.pid))?;
        Ok(place["where"].as_str().unwrap_or_default().to_owned())
    }
}

impl Drop for Process<'_> {
    fn drop(&mut self) {
        let _ = self.lab.run("n1", &format!("kill -KILL {}", self.pid));
    }
}

/// What `omfs ps -a` shows of n1's processes.
fn listed(lab: &Lab, node: &str, user: &str) -> Result<Vec<Value>> {
    let result = user_sh(lab, user, node, "omfs ps -a --json")?;
    let all: Vec<Value> = serde_json::from_slice(&result.stdout)?;
    let of_n1 = all.into_iter().filter(|one| one["home"] == "n1");
    Ok(of_n1.collect())
}

/// It has executed its program.
const RUNNING: &str = "grep -qa -e yes -e python /proc/$pid/cmdline";

fn stays_but_for_root(lab: &Lab, start: Start, reason: &str) -> Result<()> {
    prepare(lab)?;
    let privileged = "grep -q -e '^Uid:.*[[:space:]]0[[:space:]]' -e '^Gid:.*[[:space:]]0[[:space:]]' \
                      -e '^CapPrm:.*[1-9a-f]' /proc/$pid/status || [ $(stat -c %u /proc/$pid/stat) = 0 ]";
    let process = match start {
        Start::User(program) => Process::start(lab, USER, program, privileged)?,
        Start::Root(program) => {
            let ready = format!("grep -q '^Uid:.*{UID}' /proc/$pid/status");
            Process::start(lab, "root", program, &ready)?
        }
    };
    let (status, said) = process.migrate(USER, "n2")?;
    ensure!(status == 75 || status == 77, "{status}: {said}");
    ensure!(said.contains(reason), "{said}");
    ensure!(process.place()? == "n1", "it is on {}", process.place()?);
    // Nothing else keeps it: root may move it, there and home.
    let (status, said) = process.migrate("root", "n2")?;
    ensure!(status == 0 && process.place()? == "n2", "{said}");
    // It stays the same away: neither home nor to another node at the user's word.
    let (status, said) = process.migrate(USER, "n3")?;
    ensure!(status != 0 && process.place()? == "n2", "{said}");
    let (status, said) = process.migrate("root", "home")?;
    ensure!(status == 0 && process.place()? == "n1", "{said}");
    Ok(())
}

fn ordinary(lab: &Lab) -> Result<()> {
    prepare(lab)?;
    let process = Process::start(lab, USER, "yes", RUNNING)?;
    for target in ["n2", "n3", "home"] {
        let (status, said) = process.migrate(USER, target)?;
        ensure!(status == 0, "to {target}: {said}");
        let place = if target == "home" { "n1" } else { target };
        ensure!(process.place()? == place, "{}", process.place()?);
    }
    let (status, said) = process.migrate("nobody", "n2")?;
    ensure!(status == 77, "{status}: {said}");
    Ok(())
}

/// A program of `ann` executes a set-user-ID program DELAY ms after it has seen the file GO. The
/// order is given when the file is made.
const ATTEMPT: &str = r#"
import os,subprocess,sys,time
program,uid='/usr/bin/suid-yes',os.getuid()
def ids(pid):
    with open(f'/proc/{pid}/status') as f:
        return next(line.split()[1:] for line in f if line.startswith('Uid:'))
def place(pid):
    import json
    out=subprocess.run(['omfs','ps','--json'],capture_output=True).stdout
    return next((p['where'] for p in json.loads(out) if p['pid']==pid and p['home']=='n1'),'n1')
def attempt(delay):
    go=f'/tmp/go-{os.getpid()}-{time.monotonic_ns()}'
    pid=os.fork()
    if pid==0:
        while not os.path.exists(go): pass
        end=time.time()+delay
        while time.time()<end: pass
        null=os.open('/dev/null',os.O_WRONLY); os.dup2(null,1)
        os.execv(program,[program])
    open(go,'w').close()
    order=subprocess.run(['omfs','migrate',str(pid),'n2'],capture_output=True,text=True)
    until=time.time()+30
    def executed():
        try: return 'suid-yes' in open(f'/proc/{pid}/comm').read()
        except OSError: return False
    while not executed() and time.time()<until: time.sleep(0.01)
    where=place(pid)
    stolen=where!='n1' and any(int(one)!=uid for one in ids(pid))
    os.kill(pid,9) if not stolen else None
    if not stolen: os.waitpid(pid,0)
    os.unlink(go)
    return order.returncode,order.stderr.strip(),stolen
low,high,between=0.0,0.4,0
for round in range(int(sys.argv[1])):
    delay=(low+high)/2
    status,said,stolen=attempt(delay)
    print(f'{delay*1000:.1f} ms: {status} {said}',file=sys.stderr)
    if stolen: print('moved a set-user-ID program'); break
    if 'while it was being moved' in said:
        between+=1
        if between>=5: print('safe'); break
    elif status==0: high=delay        # it had left before it executed the program
    else: low=delay                   # it had executed it before it was looked at
    if high-low<0.001: low,high=max(0,low-0.02),high+0.03
else: print(f'only {between} programs were executed in between')
"#;

fn executed_during_the_order(lab: &Lab) -> Result<()> {
    prepare(lab)?;
    lab.put("n1", "/tmp/executes.py", ATTEMPT.as_bytes())?;
    let result = user_sh(lab, USER, "n1", "python3 /tmp/executes.py 100")?;
    let _ = lab.run("n1", "pkill -KILL -x suid-yes");
    let said = String::from_utf8_lossy(&result.stderr);
    ensure!(result.stdout == b"safe\n", "{result:?}\n{said}");
    Ok(())
}

/// A process whose shared memory is a file of its user's own.
const SHARES: &str = "python3 -c 'import mmap
f=open(\"FILE\",\"w+b\"); f.truncate(4096); m=mmap.mmap(f.fileno(),4096)
while True: pass'";

fn others_see(lab: &Lab) -> Result<()> {
    prepare(lab)?;
    let shares = |user: &str, file: &str| {
        let ready = format!("grep -q {file} /proc/$pid/maps");
        let program = format!("omfs run --stay {}", SHARES.replace("FILE", file));
        Process::start(lab, user, &program, &ready)
    };
    let roots = shares("root", "/root/very-secret-ledger.db")?;
    let own = shares(USER, "/tmp/anns-own-ledger.db")?;
    // The controls: there is something to be seen, and its user and root do see it.
    let reasons = |node: &str, user: &str, process: &Process<'_>| -> Result<String> {
        // Whether it is marked is known a while after it was started.
        let shown = wait::until(SOON, || {
            let mut listed = listed(lab, node, user).ok()?.into_iter();
            listed.find(|one| one["pid"] == process.pid)
        });
        let shown = shown.with_context(|| format!("{user} on {node}: no {}", process.pid))?;
        let command = shown["command"].as_str().unwrap_or_default();
        ensure!(command.contains("python"), "{shown}");
        Ok(shown.to_string())
    };
    ensure!(reasons("n1", "root", &roots)?.contains("very-secret-ledger"));
    ensure!(reasons("n1", "root", &own)?.contains("anns-own-ledger"));
    ensure!(reasons("n1", USER, &own)?.contains("anns-own-ledger"));
    ensure!(reasons("n2", USER, &own)?.contains("anns-own-ledger"));
    for (node, user) in [("n1", USER), ("n1", "nobody"), ("n2", USER), ("n2", "root")] {
        let shown = reasons(node, user, &roots)?;
        ensure!(
            !shown.contains("ledger") && !shown.contains("shared"),
            "{user} on {node}: {shown}"
        );
    }
    let shown = reasons("n2", "nobody", &own)?;
    ensure!(!shown.contains("ledger"), "{shown}");
    // Nobody learns where in memory.
    for user in ["root", USER] {
        let all = listed(lab, "n1", user)?;
        ensure!(
            all.iter()
                .all(|one| !one["cantmove"].to_string().contains("0x"))
        );
    }
    Ok(())
}

fn foreign_locks(lab: &Lab) -> Result<()> {
    prepare(lab)?;
    let suid = Process::start(lab, USER, "/usr/bin/suid-yes", RUNNING)?;
    let own = Process::start(lab, USER, "yes", RUNNING)?;
    let lock = |user: &str, process: &Process<'_>| -> Result<Option<i32>> {
        let result = user_sh(lab, user, "n1", &format!("omfs lock {}", process.pid))?;
        Ok(result.status.code())
    };
    ensure!(lock(USER, &own)? == Some(0));
    ensure!(lock("nobody", &own)? == Some(77));
    ensure!(lock(USER, &suid)? != Some(0), "locked a privileged process");
    Ok(())
}

/// A job that uses a CPU; it ends with this value.
struct Busy(Child);

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn busy(lab: &Lab, user: &str, program: &str) -> Result<Busy> {
    let script = format!("exec omfs run {program} >/dev/null");
    let mut command = lab.command_with(&["--user", user], "n1", ["sh", "-c", &script])?;
    let command = command.stdin(Stdio::null()).stdout(Stdio::null());
    Ok(Busy(command.spawn()?))
}

/// How long nothing else leaves after the ordinary jobs have: the balancer decides each 0.5 s.
const NOTHING_ELSE: Duration = Duration::from_secs(20);

fn by_itself() -> Result<()> {
    let mut options = with_omfs(NODES)?;
    options.cpu_percent = Some(20);
    // As installed: without `balance.root_jobs`.
    options.config = options.config.replace(ROOT_JOBS, "");
    let lab = Lab::up(&options)?;
    prepare(&lab)?;
    let _jobs = [
        busy(&lab, "root", "yes")?,
        busy(&lab, "root", "yes")?,
        busy(&lab, USER, "/usr/bin/suid-yes")?,
        busy(&lab, USER, "/usr/bin/cap-yes")?,
        busy(&lab, USER, "/usr/bin/suid-yes")?,
        busy(&lab, USER, "yes")?,
        busy(&lab, USER, "yes")?,
        busy(&lab, USER, "yes")?,
    ];
    let away = || -> Result<Vec<(String, u64)>> {
        let all = listed(&lab, "n1", "root")?;
        let away = all.iter().filter(|one| one["where"] != "n1");
        let named = away.map(|one| {
            let command = one["command"].as_str().unwrap_or_default().to_owned();
            (command, one["uid"].as_u64().unwrap_or_default())
        });
        Ok(named.collect())
    };
    let ordinary = |one: &(String, u64)| *one == ("yes".to_owned(), u64::from(UID));
    let left = || {
        away()
            .ok()
            .filter(|all| all.iter().filter(|one| ordinary(one)).count() >= 2)
    };
    wait::until(SOON, left).with_context(|| format!("away: {:?}", away()))?;
    let until = Instant::now() + NOTHING_ELSE;
    while Instant::now() < until {
        let away = away()?;
        ensure!(away.iter().all(ordinary), "{away:?}");
        std::thread::sleep(Duration::from_millis(300));
    }
    // Root's order counts.
    let roots = lab.sh("n1", "pgrep -x -u root yes | head -n 1")?;
    lab.sh("n1", &format!("omfs migrate {} n2", roots.trim()))?;
    Ok(())
}
