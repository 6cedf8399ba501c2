//! One attacker does not stop a node: floods of connections and requests beside honest users.

use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use integration::lab::Lab;
use libtest_mimic::Trial;

use crate::harness::{Module, Need, until, user_sh, with_omfs};

const PYTHON: &[Need] = &[Need::Tool("python3")];
/// Far more than any limit.
const CONNECTIONS: usize = 3000;

pub fn tests() -> Vec<Trial> {
    let mut module = Module::one_at_a_time("abuse", &[], || {
        let mut options = with_omfs(3)?;
        options.add_to_balance("guests_max = 3\n");
        Ok(options)
    });
    module
        .test("guests_on_their_way_count_against_the_most", &[], guests)
        .test("silent_connections_shut_no_port", PYTHON, silent)
        .test("one_user_does_not_fill_the_admin_socket", PYTHON, admin);
    module.finish()
}

/// Jobs that are ended with their test.
const JOBS: &str =
    "for n in $(seq 12); do setsid sleep 600 >/dev/null 2>&1 </dev/null & echo $!; done";

fn guests(lab: &Lab) -> Result<()> {
    let pids = lab.sh("n1", JOBS)?;
    let pids: Vec<&str> = pids.split_whitespace().collect();
    let all = pids.join(" ");
    let moved = (|| {
        let script = format!(
            "rm -f /tmp/moved; for p in {all}; do (omfs migrate $p n2 2>/dev/null; echo $? >>/tmp/moved) & \
             done; wait; sort /tmp/moved | uniq -c"
        );
        let counts = lab.sh("n1", &script)?;
        let counts: Vec<&str> = counts.split_whitespace().collect();
        ensure!(counts == ["3", "0", "9", "75"], "all at once: {counts:?}");
        // A place that was given back is there for the next one.
        lab.sh(
            "n1",
            &format!("for p in {all}; do omfs migrate $p home; done"),
        )?;
        let first = pids.first().context("no job")?;
        until(lab, "n1", &format!("omfs migrate {first} n2"))
    })();
    lab.sh("n1", &format!("kill -9 {all}"))?;
    moved
}

/// Makes connections and holds them: `path` or `host port …`.
const HOLD: &str = "import resource,socket,sys,time
hard=resource.getrlimit(resource.RLIMIT_NOFILE)[1]; resource.setrlimit(resource.RLIMIT_NOFILE,(hard,hard))
held=[]
for n in range(int(sys.argv[1])):
    for at in sys.argv[2:]:
        try:
            if at.startswith('/'): s=socket.socket(socket.AF_UNIX); s.connect(at)
            else: s=socket.create_connection(at.split(':'),timeout=5)
            held.append(s)
        except OSError: pass
open('/tmp/held','w').write('x')
time.sleep(600)";

/// Ends with its test.
struct Attacker(Child);

impl Attacker {
    fn start(lab: &Lab, user: &str, node: &str, targets: &str) -> Result<Self> {
        lab.put(node, "/srv/hold.py", HOLD.as_bytes())?;
        lab.sh(node, "rm -f /tmp/held")?;
        let script = format!("exec python3 /srv/hold.py {CONNECTIONS} {targets}");
        let mut command = lab.command_with(&["--user", user], node, ["sh", "-c", &script])?;
        let attacker = Self(command.stdin(Stdio::null()).spawn()?);
        until(lab, node, "[ -e /tmp/held ]")?;
        Ok(attacker)
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Descriptors that a node's daemon has.
fn descriptors(lab: &Lab, node: &str) -> Result<usize> {
    let script = "ls /proc/$(pgrep -o -f '^omfs daemon')/fd | wc -l";
    Ok(lab.sh(node, script)?.trim().parse()?)
}

fn silent(lab: &Lab) -> Result<()> {
    let before = descriptors(lab, "n1")?;
    let attacker = Attacker::start(lab, "nobody", "n2", "10.77.0.1:7780 10.77.0.1:7781")?;
    let grown = descriptors(lab, "n1")?.saturating_sub(before);
    ensure!(grown < 400, "{grown} descriptors more");
    // A node that was away connects anew.
    lab.kill("n3")?;
    lab.start("n3")?;
    until(lab, "n3", "ls /mfs/n1/etc")?;
    let lines = lab.sh(
        "n1",
        "grep -c 'silent\\|refused\\|closed' /var/log/omfs.log || true",
    )?;
    ensure!(
        lines.trim().parse::<usize>()? < 30,
        "{lines} lines in the log"
    );
    drop(attacker);
    Ok(())
}

fn admin(lab: &Lab) -> Result<()> {
    let before = descriptors(lab, "n1")?;
    let attacker = Attacker::start(lab, "nobody", "n1", "/run/omfs/admin.sock")?;
    let grown = descriptors(lab, "n1")?.saturating_sub(before);
    ensure!(grown < 400, "{grown} descriptors more");
    for user in ["nobody", "daemon", "root"] {
        let status = user_sh(lab, user, "n1", "omfs status && cat /mfs/n2/etc/hostname")?;
        ensure!(status.status.success(), "{user}: {status:?}");
    }
    drop(attacker);
    Ok(())
}
