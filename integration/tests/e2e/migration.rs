//! Moving real programs while they work.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::lab::run::output;
use integration::lab::{Lab, wait};
use libtest_mimic::Trial;

use crate::harness::{BEGIN, BEGUN, Module, Need, SOON, until, with_omfs};

const SQLITE: &[Need] = &[Need::Tool("sqlite3")];
const STRESS: &[Need] = &[Need::Tool("python3"), Need::Tool("sqlite3")];
/// How long a program may take with all its moves.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(600);
/// How often a program is moved: three times out, on to a third node, and home.
const MOVES: u32 = 9;

pub fn tests() -> Vec<Trial> {
    let mut module = Module::one_at_a_time("migration", &[], || with_omfs(3));
    for (name, needs, command) in PROGRAMS {
        module.test_with(&format!("program_{name}"), needs, move |lab| {
            moved(lab, command, (name == "gcc").then_some("cc1"))
        });
    }
    module
        .test(
            "a_job_keeps_its_pid_and_its_parent_sees_its_end",
            &[],
            identity_and_status,
        )
        .test("signals_reach_a_job_that_is_away", &[], signals)
        .test("stop_and_continue", &[], stop_and_continue)
        .test("a_write_to_a_closed_pipe", &[], closed_pipe)
        .test("keyboard_and_terminal", &[Need::Tool("script")], keyboard)
        .test("ps_tells_where_a_job_is", &[], ps_tells)
        .test(
            "what_cannot_move_says_why",
            &[Need::Tool("python3")],
            cannot_move,
        )
        .test("many_random_moves", &[Need::Tool("python3")], many_moves)
        .test("many_jobs_moved_at_random", STRESS, stress)
        .test(
            "a_file_without_a_name_moves_along",
            &[Need::Tool("python3")],
            unnamed_file,
        )
        .test(
            "a_file_at_the_number_of_a_home_descriptor_is_told_of_as_any_other",
            &[Need::Tool("python3")],
            reused_number,
        )
        .test(
            "what_is_opened_by_a_path_that_leads_home_is_homes",
            &[Need::Tool("python3")],
            led_home,
        )
        .test(
            "system_calls_answer_as_at_home",
            &[Need::Tool("python3")],
            calls,
        )
        .test("a_guest_is_local_to_its_hosts_mfs", &[], guests_view)
        .test(
            "what_was_opened_in_mfs_stays_the_same_at_home",
            &[],
            mfs_comes_home,
        );
    module.finish()
}

/// Programs that work for some seconds on /root/work: name, what they need, the command.
const PROGRAMS: [(&str, &[Need], &str); 13] = [
    ("gzip", &[], "gzip -9 -c /root/work/data"),
    (
        "bzip2",
        &[Need::Tool("bzip2")],
        "bzip2 -9 -c /root/work/data",
    ),
    (
        "xz",
        &[Need::Tool("xz")],
        "xz -4 -T2 --block-size=1MiB -c /root/work/data",
    ),
    (
        "zstd",
        &[Need::Tool("zstd")],
        "zstd -q -15 -T2 -c /root/work/data",
    ),
    (
        "sha256sum",
        &[],
        "sha256sum /root/work/data /root/work/holes",
    ),
    ("sort", &[], "sort -S 4M -T /root /root/work/lines -o $out"),
    (
        "tar",
        &[],
        "tar -cf $out --sort=name --mtime=@0 -C /usr share/locale share/doc include",
    ),
    (
        "python",
        &[Need::Tool("python3")],
        "python3 /root/work/program.py $out",
    ),
    (
        "perl",
        &[Need::Tool("perl")],
        "perl -e 'for my $i (1..30000000) { $h{$i % 1000} += $i * 7 % 13 } \
                                     print join(\",\", map { $h{$_} } sort keys %h), \"\\n\"'",
    ),
    (
        "shell",
        &[],
        "sh -c 'i=0; while [ $i -lt 4000000 ]; do i=$((i+1)); done; echo $i'",
    ),
    (
        "awk",
        &[],
        "awk 'BEGIN { for (i = 0; i < 40000000; i++) s += i % 7; print s }'",
    ),
    (
        "sqlite",
        SQLITE,
        "sqlite3 $out '.read /root/work/program.sql'",
    ),
    (
        "gcc",
        &[Need::Tool("gcc")],
        "gcc -O2 -c /root/work/program.c -o $out",
    ),
];

const PYTHON_PROGRAM: &str = include_str!("programs/program.py");
const CHAIN_PROGRAM: &str = include_str!("programs/chain.py");
const STRESS_PROGRAM: &str = include_str!("programs/stress.py");
const CALLS_PROGRAM: &str = include_str!("../../../migrator/tests/jobs/calls.py");
const SQL_PROGRAM: &str = include_str!("programs/program.sql");

/// Puts the programs' inputs on n1, once.
fn prepare(lab: &Lab) -> Result<()> {
    static ONCE: std::sync::Mutex<Option<String>> = std::sync::Mutex::new(None);
    let mut done = ONCE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if done.as_deref() == Some(lab.id()) {
        return Ok(());
    }
    lab.put(
        "n1",
        "/root/work/programs.sh",
        include_bytes!("programs.sh"),
    )?;
    lab.put("n1", "/root/work/program.py", PYTHON_PROGRAM.as_bytes())?;
    lab.put("n1", "/root/work/program.sql", SQL_PROGRAM.as_bytes())?;
    let script = "cd /root/work && \
        find /usr/bin /usr/lib -maxdepth 2 -type f -size +100k -print0 | sort -z | \
          xargs -0 cat 2>/dev/null | head -c 24000000 >data; \
        truncate -s 1200M holes; \
        i=0; while [ $i -lt 600 ]; do echo \"int f$i(int a[64], int n) { int s = $i; \
          for (int i = 0; i < n; i++) for (int j = 0; j < 64; j++) s += a[j] * i ^ (s << 3); \
          return s; }\"; i=$((i+1)); done >program.c; \
        awk 'BEGIN { s = 1; for (i = 0; i < 3000000; i++) { s = (s * 16807) % 2147483647; \
          print s, i } }' >lines";
    lab.sh("n1", script)?;
    *done = Some(lab.id().to_owned());
    Ok(())
}

/// `child`: the program's process that works, if it is not the program itself.
fn moved(lab: &Lab, command: &str, child: Option<&str>) -> Result<()> {
    prepare(lab)?;
    let moves = MOVES.to_string();
    let script = [
        "sh",
        "/root/work/programs.sh",
        moves.as_str(),
        command,
        child.unwrap_or_default(),
    ];
    let result = output(&mut lab.command("n1", script)?, PROGRAM_TIMEOUT)?;
    let said = String::from_utf8_lossy(&result.stdout);
    ensure!(
        result.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&result.stderr)
    );
    let figure = |key: &str| -> Option<u32> {
        said.split_whitespace()
            .find_map(|word| word.strip_prefix(key)?.parse().ok())
    };
    ensure!(figure("status=") == Some(0), "{said}");
    ensure!(
        figure("moves=").is_some_and(|moves| moves >= MOVES),
        "too few moves: {said}"
    );
    ensure!(figure("failed=") == Some(0), "{said}");
    Ok(())
}

/// A job: `$pid`, a shell that runs `work`, away on n2. `tail` is run after it got there.
fn away(work: &str, tail: &str) -> String {
    format!(
        "{BEGUN} sh -c '{BEGIN} {work}' & pid=$!; begun $pid
         omfs migrate $pid n2 || {{ kill -KILL $pid; exit 1; }}; {tail}"
    )
}

/// Computes, and looks for its file, until it is told to go on.
const UNTIL_GO: &str = "while [ ! -e /tmp/go.$$ ]; do :; done;";
/// Tells it.
const GO: &str = "touch /tmp/go.$pid;";
const LOOP: &str = "while :; do :; done";

fn identity_and_status(lab: &Lab) -> Result<()> {
    let work = format!("{UNTIL_GO} echo $$ $PPID; exit 42");
    let tail = format!("{GO} wait $pid; echo $? $pid $$");
    let text = lab.sh("n1", &away(&work, &tail))?;
    let words: Vec<&str> = text.split_whitespace().collect();
    let [pid_inside, parent_inside, status, pid, parent] = words[..] else {
        anyhow::bail!("{text}");
    };
    ensure!(
        status == "42" && pid_inside == pid && parent_inside == parent,
        "{text}"
    );
    Ok(())
}

fn signals(lab: &Lab) -> Result<()> {
    let work = "trap \"echo caught; : >/tmp/caught.$$\" USR1; while :; do :; done";
    let tail = "kill -USR1 $pid
        while [ ! -e /tmp/caught.$pid ]; do kill -0 $pid || exit 1; sleep 0.05; done
        kill -TERM $pid; wait $pid; echo $?";
    let text = lab.sh("n1", &away(work, tail))?;
    ensure!(text == "caught\n143\n", "{text}");
    // The tests' only guest of this name, seen before it is killed and not after.
    let work = format!(": to be killed; {LOOP}");
    let guest = "pgrep -f '[t]o be killed'";
    let tail =
        "while [ ! -e /tmp/kill-it ]; do sleep 0.05; done; kill -KILL $pid; wait $pid; echo $?";
    let mut job = lab.command("n1", ["sh", "-c", &away(&work, tail)])?;
    let job = std::thread::spawn(move || output(&mut job, SOON * 2));
    let shown = until(lab, "n2", guest);
    lab.sh("n1", "touch /tmp/kill-it")?;
    let result = job.join().map_err(|_| anyhow::anyhow!("panicked"))??;
    shown.context("there is no guest")?;
    ensure!(result.stdout.ends_with(b"137\n"), "{result:?}");
    until(lab, "n2", &format!("! {guest}")).context("the guest outlives its job")
}

fn stop_and_continue(lab: &Lab) -> Result<()> {
    // Every step adds a byte to a file, which must stand still while the job is stopped.
    let work =
        "while :; do i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done; echo >>/root/progress; done";
    let tail = "size() { stat -c %s /root/progress; }; grows() { until [ $(size) -gt $1 ]; do \
                kill -0 $pid || exit 1; sleep 0.1; done; }
        grows 0; kill -STOP $pid
        until omfs ps | grep \"^$pid \" | grep -q stopped; do sleep 0.1; done
        sleep 1; a=$(size); sleep 1; b=$(size); s=$(sed 's/.*) //; s/ .*//' /proc/$pid/stat)
        kill -CONT $pid; grows $b; kill -KILL $pid; echo $s $((b-a))";
    let text = lab.sh("n1", &away(work, tail))?;
    let said = text.trim_end();
    ensure!(
        said == "T 0" || said == "t 0",
        "its state at home, and its progress: {text}"
    );
    Ok(())
}

fn closed_pipe(lab: &Lab) -> Result<()> {
    let script = format!(
        "{BEGUN} mkfifo /tmp/fifo
        (read line; echo $line; while [ ! -e /tmp/close ]; do sleep 0.05; done) </tmp/fifo & reader=$!
        sh -c '{BEGIN} i=0; while :; do i=$((i+1)); echo line $i; done' >/tmp/fifo & pid=$!
        begun $pid; omfs migrate $pid n2 || {{ kill -KILL $pid $reader; exit 1; }}
        touch /tmp/close; wait $pid; echo $?; rm /tmp/fifo"
    );
    let text = lab.sh("n1", &script)?;
    ensure!(text == "line 1\n141\n", "{text}");
    Ok(())
}

fn keyboard(lab: &Lab) -> Result<()> {
    // A terminal in the node: the job reads a line while away, then Ctrl-C ends it.
    let program = "import subprocess,os,pty,select,time
pid,fd=pty.fork()
if pid==0: os.execvp('sh',['sh','-c',': >/tmp/begun.$$; while [ ! -e /tmp/go.$$ ]; do :; done; read l; echo got $l; while :; do :; done'])
while not os.path.exists('/tmp/begun.%d'%pid): time.sleep(0.05)
subprocess.check_call(['omfs','migrate',str(pid),'n2'],stdout=subprocess.DEVNULL)
open('/tmp/go.%d'%pid,'w').close()
os.write(fd,b'words\\n')
text=b''
while b'got words' not in text:
    assert select.select([fd],[],[],100)[0], text
    text+=os.read(fd,1000)
os.write(fd,b'\\x03')
print(os.waitstatus_to_exitcode(os.waitpid(pid,0)[1]))";
    lab.put("n1", "/tmp/keyboard.py", program.as_bytes())?;
    let text = lab.sh("n1", "python3 /tmp/keyboard.py")?;
    ensure!(text == "-2\n", "{text}");
    Ok(())
}

fn ps_tells(lab: &Lab) -> Result<()> {
    let tail = "omfs ps --json; kill -KILL $pid; echo ,$pid";
    let text = lab.sh("n1", &away(LOOP, tail))?;
    let (json, pid) = text.rsplit_once(',').context("no output")?;
    let jobs: serde_json::Value = serde_json::from_str(json)?;
    let pid: i64 = pid.trim().parse()?;
    let job = jobs
        .as_array()
        .context("no array")?
        .iter()
        .find(|job| job["pid"] == pid);
    let job = job.with_context(|| format!("{pid} is not in {json}"))?;
    ensure!(
        job["where"] == "n2" && job["home"] == "n1" && job["moves"] == 1,
        "{job}"
    );
    Ok(())
}

const SHARED: &str = "import mmap,os,time
m=mmap.mmap(-1,4096)
p=os.fork()
open('/tmp/shared','w').close()
while True: m[0]=(m[0]+1)%256";

fn cannot_move(lab: &Lab) -> Result<()> {
    lab.put("n1", "/tmp/shared.py", SHARED.as_bytes())?;
    let script = "rm -f /tmp/shared; python3 /tmp/shared.py & pid=$!
                  while [ ! -e /tmp/shared ]; do kill -0 $pid || exit 1; sleep 0.05; done
                  omfs migrate $pid n2; echo $?; kill -0 $pid && echo alive; pkill -KILL -f shared[.]py";
    let result = lab.run("n1", script)?;
    let text = String::from_utf8_lossy(&result.stdout);
    let said = String::from_utf8_lossy(&result.stderr);
    ensure!(text.starts_with("75\nalive"), "{text}{said}");
    ensure!(said.contains("shared"), "the reason: {said}");
    Ok(())
}

fn many_moves(lab: &Lab) -> Result<()> {
    lab.put("n1", "/root/chain.py", CHAIN_PROGRAM.as_bytes())?;
    let script = "cd /root; i=0; failed=0; last=home; rm -f stop moves.log; \
        rm -f chain; python3 chain.py chain stop 2>chain.log & pid=$!; \
        while [ ! -s chain ]; do kill -0 $pid || exit 1; sleep 0.05; done; \
        while [ $i -lt 200 ]; do \
          case $(($(od -An -N1 -tu1 /dev/urandom) % 2))$last in \
            0home) n=n2;; 1home) n=n3;; 0n2) n=n3;; 0n3) n=n2;; *) n=home;; esac; \
          omfs migrate $pid $n >/dev/null 2>>moves.log || failed=$((failed+1)); \
          i=$((i+1)); last=$n; \
        done; touch stop; wait $pid; echo $? $i $failed; cat chain.log; \
        python3 chain.py same stop $(wc -l <chain); cmp chain same && wc -l <chain; \
        tail -n 30 moves.log";
    let result = output(
        &mut lab.command("n1", ["sh", "-c", script])?,
        PROGRAM_TIMEOUT,
    )?;
    let text = String::from_utf8_lossy(&result.stdout);
    let said = String::from_utf8_lossy(&result.stderr);
    let rest = text.strip_prefix("0 200 0\n");
    let lines = rest.and_then(|rest| rest.trim().parse::<u32>().ok());
    ensure!(lines.is_some_and(|lines| lines > 50), "{text}{said}");
    Ok(())
}

fn stress(lab: &Lab) -> Result<()> {
    lab.put("n1", "/root/stress.py", STRESS_PROGRAM.as_bytes())?;
    let seed = std::process::id().to_string();
    let script = ["python3", "/root/stress.py", "25", seed.as_str(), "6"];
    let result = output(&mut lab.command("n1", script)?, PROGRAM_TIMEOUT)?;
    let text = String::from_utf8_lossy(&result.stdout);
    let said = String::from_utf8_lossy(&result.stderr);
    ensure!(result.status.success(), "seed {seed}: {text}{said}");
    let report: serde_json::Value = serde_json::from_str(&text)?;
    let moves = ["n2", "n3", "home"].map(|place| report["moves"][place].as_u64());
    ensure!(
        moves.into_iter().all(|moves| moves >= Some(3)),
        "too few moves: {text}"
    );
    Ok(())
}

fn calls(lab: &Lab) -> Result<()> {
    lab.put("n1", "/root/calls.py", CALLS_PROGRAM.as_bytes())?;
    let command = "python3 /root/calls.py /root/calls 'omfs migrate' n2 n3";
    let script = ["sh", "-c", command];
    let result = output(&mut lab.command("n1", script)?, PROGRAM_TIMEOUT)?;
    let text = String::from_utf8_lossy(&result.stdout);
    let said = String::from_utf8_lossy(&result.stderr);
    ensure!(result.status.success(), "{text}{said}");
    Ok(())
}

/// Opens a file when told to, removes its name, and works on it until it is told to end.
const UNNAMED: &str = "import os,random
open('/root/unnamed/begun','w').close()
while not os.path.exists('/root/unnamed/go'): pass
fd=os.open('/root/unnamed/file',os.O_RDWR|os.O_CREAT|os.O_EXCL,0o600)
os.unlink('/root/unnamed/file')
model=bytearray(100000)
os.write(fd,model)
open('/root/unnamed/opened','w').close()
while not os.path.exists('/root/unnamed/stop'):
  at,data=random.randrange(90000),random.randbytes(5000)
  os.lseek(fd,at,os.SEEK_SET)
  assert os.write(fd,data)==5000
  model[at:at+5000]=data
  assert os.pread(fd,200000,0)==bytes(model) and os.fstat(fd).st_nlink==0
  assert os.lseek(fd,0,os.SEEK_CUR)==at+5000
print('right')";

fn unnamed_file(lab: &Lab) -> Result<()> {
    lab.put("n1", "/root/unnamed/job.py", UNNAMED.as_bytes())?;
    let script = "cd /root/unnamed; python3 job.py & pid=$!; \
                while [ ! -e begun ]; do kill -0 $pid || exit 1; sleep 0.05; done; \
                omfs migrate $pid n2 || exit 1; touch go; \
                while [ ! -e opened ]; do kill -0 $pid || exit 1; sleep 0.1; done; \
                for n in n3 home n2 home; do omfs migrate $pid $n >/dev/null || echo not to $n; done; \
                touch stop; wait $pid; rm -r /root/unnamed";
    let text = lab.sh("n1", script)?;
    ensure!(
        text.ends_with("right\n") && !text.contains("not to"),
        "{text}"
    );
    Ok(())
}

/// At n2 it closes a pipe of home and opens files at its number, all uses of which are trapped.
const REUSER: &str = "import ctypes,fcntl,os
os.chdir('/root'); open('reused','w').write('content')
def numbers(s): return s.st_dev,s.st_ino
wanted,root=numbers(os.stat('reused')),numbers(os.stat('.'))
os.dup2(os.pipe()[0],5); open('ready','w').close()
while not os.path.exists('away'): pass
file,here=os.open('reused',os.O_RDWR),os.open('.',os.O_RDONLY)
libc,buffer=ctypes.CDLL(None,use_errno=True),ctypes.create_string_buffer(256)
for turn in range(50):
  os.dup2(file,5)
  assert numbers(os.fstat(5))==numbers(os.fstat(file))==wanted,(os.fstat(5),os.fstat(file),wanted)
  assert libc.statx(5,b'',0x1000,0x7ff,buffer)==0
  assert int.from_bytes(buffer[32:40],'little')==wanted[1]
  assert os.lseek(5,3,0)==3 and os.read(5,9)==b'tent' and fcntl.fcntl(5,fcntl.F_GETFL)&3==os.O_RDWR
  os.dup2(here,5)
  assert numbers(os.fstat(5))==root
  assert numbers(os.stat('reused',dir_fd=5))==wanted
  try: os.stat('absent',dir_fd=5)
  except FileNotFoundError: pass
  else: assert False
print('all as at home, on',open('/mfs/here/etc/hostname').read(),end='')
";

fn reused_number(lab: &Lab) -> Result<()> {
    lab.put("n1", "/root/reuser.py", REUSER.as_bytes())?;
    let script = "rm -f /root/away /root/ready; python3 /root/reuser.py & pid=$!
        while [ ! -e /root/ready ]; do sleep 0.1; done
        omfs migrate $pid n2 && touch /root/away; wait $pid";
    let text = lab.sh("n1", script)?;
    ensure!(text == "all as at home, on n2\n", "{text}");
    Ok(())
}

/// Opens something at a host whenever it is told to, and goes on to the next.
const OPENER: &str = "import os; os.chdir('/root/opens')
def told(path,**more):
  try: return open(os.open(path,os.O_RDONLY,**more)).readline()
  except OSError as error: return error.errno
tty,file,own=told('/dev/tty'),os.open('file',os.O_RDONLY),os.path.realpath('/proc/self')
parent='/proc/%d/comm'%os.getppid()
for target,link in (parent,'link'),('link','second'),('/dev/tty','terminal'): os.symlink(target,link)
things=[lambda: told('fifo')=='through it\\n',
  lambda: told('second')==open(parent).readline()!='',
  lambda: told('../../dev/tty')==told('terminal')==told('/dev/tty')==tty,
  lambda: told('/dev/stdin')=='a line\\n',
  lambda: told('/dev/fd/%d'%file)=='content\\n',
  lambda: told('../..'+own+'/comm')==open('/proc/self/comm').readline(),
  lambda: told('comm',dir_fd=os.open(own,os.O_RDONLY))==open('/proc/self/comm').readline()]
for number,thing in enumerate(things):
  open('ready%d'%number,'w').close()
  while not os.path.exists('go%d'%number): pass
  print(number,thing(),flush=True)
open('ready7','w').close()
";

fn led_home(lab: &Lab) -> Result<()> {
    lab.put("n1", "/root/opener.py", OPENER.as_bytes())?;
    let script = "rm -rf /root/opens; mkdir /root/opens; cd /root/opens
        echo content >file; echo a line >input; mkfifo fifo; (echo through it >fifo) & python3 /root/opener.py <input & pid=$!
        for i in 0 1 2 3 4 5 6 7; do
            while [ ! -e ready$i ]; do kill -0 $pid || exit 1; sleep 0.1; done
            [ $i = 7 ] || { omfs migrate $pid n2 && touch go$i; } || exit 1
        done; wait $pid";
    let text = lab.sh("n1", script)?;
    ensure!(text.matches(" True\n").count() == 7, "{text}");
    Ok(())
}

fn guests_view(lab: &Lab) -> Result<()> {
    // Paths mean home's files, and /mfs/here the node where it runs.
    let work = format!(
        "{UNTIL_GO} read a </etc/hostname; read b </mfs/here/etc/hostname; \
         read c </mfs/home/etc/hostname; echo $a $b $c"
    );
    let text = lab.sh("n1", &away(&work, &format!("{GO} wait $pid; echo $pid")))?;
    let (seen, pid) = text.trim_end().split_once('\n').context("no PID")?;
    ensure!(seen == "n1 n2 n1", "{text}");
    let pid: i64 = pid.parse()?;
    let gone = || {
        let jobs = lab.sh("n1", "omfs ps --json").ok()?;
        let jobs: serde_json::Value = serde_json::from_str(&jobs).ok()?;
        let mut running = jobs
            .as_array()?
            .iter()
            .filter(|job| job["state"] == "running");
        running.all(|job| job["pid"] != pid).then_some(())
    };
    wait::until(SOON, gone).context("ps still shows it running")
}

/// At n2 it opens files of n2 and of its home, and goes into a directory of n2.
const TRAVELLER: &str = ": >/root/begun; while [ ! -e /root/away ]; do :; done
    cd /mfs/here/tmp
    exec 3</mfs/here/etc/hostname 4</mfs/home/etc/hostname
    echo opened >/root/opened
    while [ ! -e /root/back ]; do :; done
    read a <&3; read b <&4; read c <marker; echo $a $b $c >/root/told";

fn mfs_comes_home(lab: &Lab) -> Result<()> {
    lab.sh("n2", "echo marker of n2 >/tmp/marker")?;
    lab.put("n1", "/root/traveller.sh", TRAVELLER.as_bytes())?;
    let start = "cd /root; rm -f away begun opened back told; \
                 setsid sh traveller.sh >/dev/null 2>&1 & echo $!; \
                 while [ ! -e begun ]; do kill -0 $! || exit 1; sleep 0.05; done";
    let pid = lab.sh("n1", start)?.trim().to_owned();
    lab.sh("n1", &format!("omfs migrate {pid} n2 && touch /root/away"))?;
    until(lab, "n1", "test -s /root/opened")?;
    lab.sh(
        "n1",
        &format!("omfs migrate {pid} home && touch /root/back"),
    )?;
    until(lab, "n1", "test -s /root/told")?;
    let text = lab.sh("n1", "cat /root/told")?;
    ensure!(text == "n2 n1 marker of n2\n", "{text}");
    Ok(())
}
