//! A guest can reach nothing on its host, and a node nothing of jobs that are not there.

use anyhow::{Context, Result, ensure};
use integration::lab::Lab;
use libtest_mimic::Trial;

use crate::harness::{BEGIN, BEGUN, Module, Need, until, with_omfs};

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
    try: return os.read(os.open(path,os.O_RDONLY|os.O_NONBLOCK),1)
    except OSError: return b''
paths=['/mfs/here'+secret,'/mfs/n2'+secret,'/mfs/here/proc/1/environ','/mfs/.omfs/deputy/n2/1/root'+secret,
       '/mfs/.omfs/deputy/n2/1/exe','/mfs/here/dev/fuse','/mfs/n2/dev/kmsg']
found=[p for p in paths if tries(p)]
assert open('/mfs/here/etc/hostname').read()=='n2\\n'
print(found or 'safe')"),
    ("files", "print('safe' if not os.path.exists(secret) else open(secret).read())"),
    ("etc", "print('safe' if open('/etc/hostname').read()=='n1\\n' else 'host etc')"),
    ("proc", "
c=[open('/proc/'+p+'/cmdline').read() for p in os.listdir('/proc') if p.isdigit() and os.path.exists('/proc/'+p)]
print('safe' if not any(mark in x for x in c) else c)"),
    ("signals", "
try: os.kill(host_pid,9); print('killed somebody')
except ProcessLookupError: print('safe')"),
    ("network", "
s=socket.socket(); s.settimeout(2)
try: s.connect(('127.0.0.1',port)); print('connected to the host')
except OSError: print('safe')"),
    ("unix_sockets", "
reached=[]
for address in ('/tmp/'+mark,'\\0'+mark):
    s=socket.socket(socket.AF_UNIX)
    try: s.connect(address); reached.append(address)
    except OSError: pass
print(reached or 'safe')"),
    ("ptrace", "
libc=ctypes.CDLL(None,use_errno=True)
print('attached' if libc.ptrace(16,host_pid,0,0)==0 else 'safe')"),
    ("mount", "
libc=ctypes.CDLL(None,use_errno=True)
libc.mount(b'none',b'/mnt',b'tmpfs',0,None); print('safe')"),
    ("names", "
libc=ctypes.CDLL(None,use_errno=True)
libc.sethostname(b'taken',5); print('safe')"),
];

/// What there is on n2 to be got; it says when all of it is there.
const HOST_SIDE: &str = "import socket,sys,time
mark,port=sys.argv[1],int(sys.argv[2])
t=socket.create_server(('127.0.0.1',port))
u=socket.socket(socket.AF_UNIX); u.bind('/tmp/'+mark); u.listen()
a=socket.socket(socket.AF_UNIX); a.bind('\\0'+mark); a.listen()
open('/tmp/'+mark+'.up','w').close()
time.sleep(1000)";

/// PIDs of what n2 has to itself begin here. A guest's kill(2) means the processes of its home n1,
/// which has no such numbers: it has given out only far smaller ones.
const HOST_PIDS: u32 = 20_000;
const HOME_PIDS_MAX: u32 = 10_000;

/// n2's own process for one attempt. Whatever the attempt has done is undone with it.
struct HostSide<'lab> {
    lab: &'lab Lab,
    mark: String,
    port: usize,
    pid: u32,
}

impl<'lab> HostSide<'lab> {
    fn start(lab: &'lab Lab, name: &str) -> Result<Self> {
        let index = ATTEMPTS.iter().position(|(other, _)| *other == name);
        let port = 9800 + index.context("no such attempt")?;
        let mark = format!("of-the-host-{name}");
        let last = lab.sh("n1", "cat /proc/sys/kernel/ns_last_pid")?;
        ensure!(
            last.trim().parse::<u32>()? < HOME_PIDS_MAX,
            "n1 is at {last}"
        );
        lab.put("n2", "/tmp/host.py", HOST_SIDE.as_bytes())?;
        let start = format!(
            "echo secret >/root/{mark}; rm -f /tmp/{mark} /tmp/{mark}.up
             echo {HOST_PIDS} >/proc/sys/kernel/ns_last_pid
             setsid python3 /tmp/host.py {mark} {port} >/dev/null 2>&1 </dev/null & echo $!"
        );
        let pid = lab.sh("n2", &start)?.trim().parse()?;
        let side = Self {
            lab,
            mark,
            port,
            pid,
        };
        ensure!(pid > HOST_PIDS, "n2 gives out {pid} next");
        until(lab, "n2", &format!("test -e /tmp/{}.up", side.mark))?;
        Ok(side)
    }

    /// The attempt, made when the file `go` is there; `begun` is told when it is waited for.
    fn program(&self, attempt: &str) -> String {
        let Self {
            mark, port, pid, ..
        } = self;
        format!(
            "import os,sys,socket,ctypes\nhost_pid,port,mark={pid},{port},'{mark}'\n\
             secret='/root/'+mark\nopen(sys.argv[1],'w').close()\n\
             while not os.path.exists(sys.argv[2]): sum(range(1000))\n{attempt}\n"
        )
    }

    /// Whether n2 is as it was.
    fn is_intact(&self) -> Result<bool> {
        let intact = format!(
            "kill -0 {} && [ $(hostname) = n2 ] && ! grep -q ' /mnt ' /proc/mounts",
            self.pid
        );
        Ok(self.lab.run("n2", &intact)?.status.success())
    }
}

impl Drop for HostSide<'_> {
    fn drop(&mut self) {
        let Self { mark, pid, .. } = self;
        let undo = |name: &str| {
            format!("pkill -KILL -f 'attempt[.]py'; umount -l /mnt 2>/dev/null; hostname {name}")
        };
        let _ = self.lab.run("n1", &undo("n1"));
        let gone = format!(
            "kill -KILL {pid}; rm -f /root/{mark} /tmp/{mark}*; {}",
            undo("n2")
        );
        let _ = self.lab.run("n2", &gone);
    }
}

fn tries(lab: &Lab, name: &str, attempt: &str) -> Result<()> {
    let host = HostSide::start(lab, name)?;
    let program = host.program(attempt);
    lab.put("n1", "/root/attempt.py", program.as_bytes())?;
    let script =
        "rm -f /root/begun /root/away; python3 /root/attempt.py /root/begun /root/away & pid=$!
        until [ -e /root/begun ]; do kill -0 $pid || exit 1; sleep 0.05; done
        omfs migrate $pid n2 || exit 1
        touch /root/away; wait $pid";
    let said = lab.sh("n1", script)?;
    ensure!(said == "safe\n", "{said}");
    ensure!(host.is_intact()?, "the host was changed");
    // On n2 itself the same program does get it, or changes n2.
    lab.put("n2", "/root/attempt.py", program.as_bytes())?;
    let got = lab.sh("n2", "python3 /root/attempt.py /dev/null /dev/null")?;
    ensure!(
        got != "safe\n" || !host.is_intact()?,
        "there was nothing to be got"
    );
    Ok(())
}

/// A job of n1 with a file that is open, and a process of n1 that is no job.
struct TwoProcesses<'lab> {
    lab: &'lab Lab,
    job: String,
    other: String,
}

impl<'lab> TwoProcesses<'lab> {
    fn start(lab: &'lab Lab) -> Result<Self> {
        let script = format!(
            "{BEGUN} echo content >/root/open
             setsid sh -c '{BEGIN} while :; do :; done' </root/open >/dev/null 2>&1 & job=$!
             setsid sleep 1000 </root/open >/dev/null 2>&1 & echo $job $!; begun $job"
        );
        let pids = lab.sh("n1", &script)?;
        let (job, other) = pids.trim().split_once(' ').context("no PIDs")?;
        Ok(Self {
            lab,
            job: job.into(),
            other: other.into(),
        })
    }
}

impl Drop for TwoProcesses<'_> {
    fn drop(&mut self) {
        let kill = format!("kill -KILL {} {}", self.job, self.other);
        let _ = self.lab.run("n1", &kill);
    }
}

fn only_the_host_gets_a_jobs_files(lab: &Lab) -> Result<()> {
    let two = TwoProcesses::start(lab)?;
    let TwoProcesses { job, other, .. } = &two;
    lab.sh("n1", &format!("omfs migrate {job} n2"))?;
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
    refused(lab, "n2", &file(job)).context("after it went home")
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
