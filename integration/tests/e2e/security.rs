//! A guest can reach nothing on its host, and a node nothing of jobs that are not there.

use anyhow::{Context, Result, ensure};
use integration::lab::Lab;
use libtest_mimic::Trial;

use crate::harness::{Module, Need, with_omfs};

const PYTHON: &[Need] = &[Need::Tool("python3")];

pub fn tests() -> Vec<Trial> {
    let mut module = Module::one_at_a_time("security", &[], || with_omfs(3));
    for (name, attempt) in ATTEMPTS {
        module.test_with(name, PYTHON, move |lab| tries(lab, name, attempt));
    }
    module.test(
        "only_the_host_gets_a_jobs_files",
        &[],
        only_the_host_gets_a_jobs_files,
    );
    module.finish()
}

/// What a guest on n2 tries; each prints "safe" when it did not get what is n2's.
const ATTEMPTS: [(&str, &str); 10] = [
    ("files_in_mfs", "
def tries(path):
    try: return open(path).read()
    except OSError: return ''
paths=['/mfs/here/root/host-secret','/mfs/n2/root/host-secret','/mfs/here/proc/1/environ','/mfs/.omfs/deputy/n2/1/root/root/host-secret',
       '/mfs/.omfs/deputy/n2/1/exe','/mfs/here/dev/fuse','/mfs/n2/dev/kmsg']
found=[p for p in paths if tries(p)]
assert open('/mfs/here/etc/hostname').read()=='n2\\n'
print(found or 'safe')"),
    ("files", "print('safe' if not os.path.exists('/root/host-secret') else open('/root/host-secret').read())"),
    ("etc", "print('safe' if open('/etc/hostname').read()=='n1\\n' else 'host etc')"),
    ("proc", "c=[open('/proc/'+p+'/cmdline').read() for p in os.listdir('/proc') if p.isdigit() and os.path.exists('/proc/'+p)]
print('safe' if not any('98765' in x for x in c) else c)"),
    ("signals", "
try: os.kill(host_pid,9)
except OSError: pass
print('safe')"),
    ("network", "
s=socket.socket(); s.settimeout(2)
try: s.connect(('127.0.0.1',9876)); print('connected to the host')
except OSError: print('safe')"),
    ("unix_sockets", "
s=socket.socket(socket.AF_UNIX)
try: s.connect('/tmp/host.sock'); print('connected to the host')
except OSError: print('safe')
s=socket.socket(socket.AF_UNIX)
try: s.connect('\\0host-abstract'); print('connected to the host')
except OSError: pass"),
    ("ptrace", "
libc=ctypes.CDLL(None,use_errno=True)
print('attached' if libc.ptrace(16,host_pid,0,0)==0 and os.path.exists('/root/host-secret') else 'safe')"),
    ("mount", "
libc=ctypes.CDLL(None,use_errno=True)
libc.mount(b'none',b'/mnt',b'tmpfs',0,None); print('safe')"),
    ("names", "
libc=ctypes.CDLL(None,use_errno=True)
libc.sethostname(b'taken',5)
libc.sethostname(b'n1',2); print('safe')"),
];

const HOST_SIDE: &str = "import socket,time
t=socket.create_server(('127.0.0.1',9876))
u=socket.socket(socket.AF_UNIX); u.bind('/tmp/host.sock'); u.listen()
a=socket.socket(socket.AF_UNIX); a.bind('\\0host-abstract'); a.listen()
time.sleep(98765)";

/// Runs until it is away, then makes the attempt.
fn program(attempt: &str, host_pid: &str) -> String {
    format!(
        "import os,time,socket,ctypes\nhost_pid={host_pid}\n\
         while not os.path.exists('/root/away'): sum(range(1000))\n{attempt}\n"
    )
}

fn tries(lab: &Lab, name: &str, attempt: &str) -> Result<()> {
    lab.put("n2", "/tmp/host.py", HOST_SIDE.as_bytes())?;
    let start = "echo secret >/root/host-secret; rm -f /tmp/host.sock; \
                 setsid python3 /tmp/host.py 98765 >/dev/null 2>&1 & echo $!";
    let host_pid = lab.sh("n2", start)?.trim().to_owned();
    let file = format!("/root/attempt-{name}.py");
    lab.put("n1", &file, program(attempt, &host_pid).as_bytes())?;
    let script = format!(
        "rm -f /root/away; python3 {file} & pid=$!; sleep 0.5; omfs migrate $pid n2 || exit 1; \
         touch /root/away; wait $pid"
    );
    let said = lab.sh("n1", &script)?;
    ensure!(said == "safe\n", "{said}");
    let intact = format!("kill -0 {host_pid} && hostname && ! grep -q ' /mnt ' /proc/mounts");
    let hostname = lab.sh("n2", &intact).context("the host was changed")?;
    ensure!(hostname == "n2\n", "{hostname}");
    lab.sh(
        "n2",
        &format!("kill -KILL {host_pid}; rm -f /tmp/host.sock"),
    )
    .map(drop)
}

/// A job of n1 with a file that is open, and a process of n1 that is no job.
const TWO_PROCESSES: &str = "echo content >/root/open; rm -f /root/pids; \
    setsid sh -c 'while :; do :; done' </root/open >/dev/null 2>&1 & job=$!; \
    setsid sleep 1000 </root/open >/dev/null 2>&1 & other=$!; \
    omfs migrate $job n2 >/dev/null && echo $job $other";

fn only_the_host_gets_a_jobs_files(lab: &Lab) -> Result<()> {
    let pids = lab.sh("n1", TWO_PROCESSES)?;
    let (job, other) = pids.trim().split_once(' ').context("no PIDs")?;
    let file = |pid: &str| format!("cat /mfs/.omfs/deputy/n1/{pid}/fd/0");
    ensure!(
        lab.sh("n2", &file(job))? == "content\n",
        "not even at its host"
    );
    for (node, pid) in [("n3", job), ("n2", other), ("n3", other)] {
        refused(lab, node, &file(pid))?;
    }
    let log = lab.sh("n1", "cat /var/log/omfs.log")?;
    ensure!(
        log.contains(&format!("process {job} is not there")),
        "{log}"
    );
    lab.sh("n1", &format!("omfs migrate {job} home"))?;
    refused(lab, "n2", &file(job)).context("after it went home")?;
    lab.sh("n1", &format!("kill -KILL {job} {other}")).map(drop)
}

fn refused(lab: &Lab, node: &str, script: &str) -> Result<()> {
    let result = lab.run(node, script)?;
    let said = String::from_utf8_lossy(&result.stderr);
    ensure!(
        !result.status.success() && said.contains("Operation not permitted"),
        "{script} on {node}: {said}"
    );
    Ok(())
}
