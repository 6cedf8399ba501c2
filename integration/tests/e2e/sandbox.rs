//! What a home, an image or a guest names means something of home's on its host, or nothing at all.
//!
//! Every attack is a program of an ordinary user of n1 (unless it says root), with n2 as the host.

use anyhow::{Context, Result, ensure};
use integration::lab::Lab;
use libtest_mimic::Trial;

use crate::harness::{BEGIN, BEGUN, Module, Need, until, with_omfs};

const PYTHON: &[Need] = &[Need::Tool("python3"), Need::Tool("setpriv")];
/// The user of all attacks.
const USER: &str = "setpriv --reuid 1000 --regid 1000 --clear-groups";
/// Moves of one attack: half of the time a name means one thing, half of the time the other.
const TRIES: usize = 16;

pub fn tests() -> Vec<Trial> {
    let mut module = Module::one_at_a_time("sandbox", PYTHON, || {
        let mut options = with_omfs(2)?;
        options.add_to_balance("guest_memory_percent = 1\nguest_threads_max = 20\n");
        Ok(options)
    });
    for (name, race) in RACES {
        module.test_with(name, &[], move |lab| runs_the_race(lab, race));
    }
    module
        .test("homes_shared_memory_is_a_link", &[], shared_memory_link)
        .test("names_in_tmp_keep_no_guest_away", &[], names_in_tmp)
        .test(
            "a_guest_that_takes_too_much_memory_ends",
            &[],
            too_much_memory,
        )
        .test(
            "a_process_of_too_many_threads_is_refused",
            &[],
            too_many_threads,
        );
    module.finish()
}

/// Two names that are exchanged under a process while it is moved.
#[derive(Clone, Copy)]
struct Race {
    /// As root on n2: what is n2's own.
    secret: &'static str,
    /// As the user, on the node of `at`: directory `x` and what `lnk` leads to.
    names: &'static str,
    /// The node that has the names.
    node: &'static str,
    /// Python: opens what the program keeps open as `f`.
    open: &'static str,
    /// Python: prints what is there.
    look: &'static str,
}

/// Of a file of n2, and of the same size and time as the user's.
const MARK: &str = "only-on-n2";
const SECRET: &str = "install -d -m 700 /srv/secret; printf only-on-n2 >/srv/secret/file
    printf only-on-n2 >/srv/file; chmod 600 /srv/secret/file; chmod 644 /srv/file
    touch -d @1000000000 /srv/secret/file /srv/file";
const NAMES: &str = "rm -rf /tmp/race; mkdir -p /tmp/race/x; cd /tmp/race
    printf of-the-job >x/file; touch -d @1000000000 x/file";

const RACES: [(&str, Race); 4] = [
    (
        "a_file_that_becomes_the_hosts_during_a_move",
        Race {
            secret: SECRET,
            names: "ln -s /srv/secret lnk",
            node: "n1",
            open: "f=os.open('/tmp/race/x/file',os.O_RDWR)",
            look: "os.pread(f,100,0)",
        },
    ),
    (
        "a_readable_file_of_the_host_is_not_written",
        Race {
            secret: SECRET,
            names: "ln -s /srv lnk",
            node: "n1",
            open: "f=os.open('/tmp/race/x/file',os.O_RDWR)",
            look: "os.pread(f,100,0),os.pwrite(f,b'overwrote!',0),os.utime(f,(10**9,10**9))",
        },
    ),
    (
        "a_directory_that_becomes_the_hosts_root",
        Race {
            secret: SECRET,
            names: "mkdir x/root; ln -s /proc/1 lnk",
            node: "n1",
            open: "f=os.open('/tmp/race/x/root',os.O_RDONLY)",
            look: "os.access('srv/file',os.F_OK,dir_fd=f) and b'only-on-n2'",
        },
    ),
    (
        "a_file_of_the_hosts_view_that_becomes_the_hosts",
        Race {
            secret: SECRET,
            names: "ln -s ../../srv/secret lnk",
            node: "n2",
            open: "f=os.open('/mfs/n2/tmp/race/x/file',os.O_RDWR)",
            look: "os.pread(f,100,0)",
        },
    ),
];

/// Exchanges `x` and `lnk` until it is killed.
const EXCHANGE: &str = "import ctypes,time
libc=ctypes.CDLL(None)
while True:
    libc.renameat2(-100,b'/tmp/race/x',-100,b'/tmp/race/lnk',2)
    time.sleep(0.007)";

/// Opens, and answers on `/tmp/said` whenever `/tmp/ask` is there.
fn program(race: Race) -> String {
    let Race { open, look, .. } = race;
    format!(
        "import os,time\n{open}\nopen('/tmp/job.up','w').close()\n\
         while True:\n\
         \x20   if os.path.exists('/tmp/job.ask'):\n\
         \x20       try: said=repr(({look},))\n\
         \x20       except OSError as e: said=repr(e)\n\
         \x20       os.unlink('/tmp/job.ask')\n\
         \x20       with open('/tmp/job.new','w') as to: to.write(said)\n\
         \x20       os.rename('/tmp/job.new','/tmp/job.said')\n\
         \x20   sum(range(1000))\n"
    )
}

/// The attack; whatever it has started is ended with it.
struct Attack<'lab> {
    lab: &'lab Lab,
    race: Race,
    pids: Vec<(&'static str, String)>,
}

impl<'lab> Attack<'lab> {
    fn start(lab: &'lab Lab, race: Race) -> Result<Self> {
        lab.sh("n2", race.secret)?;
        let names = format!("{USER} sh -ec '{NAMES}; {}'", race.names);
        lab.sh(race.node, &names)?;
        lab.put("n1", "/srv/job.py", program(race).as_bytes())?;
        lab.put(race.node, "/srv/exchange.py", EXCHANGE.as_bytes())?;
        let mut attack = Self {
            lab,
            race,
            pids: Vec::new(),
        };
        lab.sh("n1", "rm -f /tmp/job.*")?;
        attack.spawn("n1", "/srv/job.py")?;
        until(lab, "n1", "test -e /tmp/job.up")?;
        attack.spawn(race.node, "/srv/exchange.py")?;
        Ok(attack)
    }

    fn spawn(&mut self, node: &'static str, program: &str) -> Result<()> {
        let start = format!("{USER} setsid python3 {program} >/dev/null 2>&1 </dev/null & echo $!");
        let pid = self.lab.sh(node, &start)?.trim().to_owned();
        self.pids.push((node, pid));
        Ok(())
    }

    fn job(&self) -> Result<&str> {
        let first = self.pids.first().context("no job")?;
        Ok(&first.1)
    }

    /// One move there and back; what the program saw there, if it came there.
    fn moves(&self) -> Result<Option<String>> {
        let job = self.job()?;
        let go = self
            .lab
            .run("n1", &format!("{USER} omfs migrate {job} n2"))?;
        if !go.status.success() {
            return Ok(None);
        }
        let ask = format!(
            "rm -f /tmp/job.said; {USER} sh -c ': >/tmp/job.ask'
             until [ -e /tmp/job.said ]; do kill -0 {job} || exit 1; sleep 0.02; done; cat /tmp/job.said"
        );
        let said = self.lab.sh("n1", &ask)?;
        self.lab
            .sh("n1", &format!("{USER} omfs migrate {job} home"))?;
        Ok(Some(said))
    }
}

impl Drop for Attack<'_> {
    fn drop(&mut self) {
        for (node, pid) in self.pids.iter().rev() {
            let _ = self.lab.run(node, &format!("kill -KILL {pid}"));
        }
        let _ = self.lab.run(self.race.node, "rm -rf /tmp/race /tmp/job.*");
    }
}

fn runs_the_race(lab: &Lab, race: Race) -> Result<()> {
    let attack = Attack::start(lab, race)?;
    let mut came = 0;
    for _ in 0..TRIES {
        let Some(said) = attack.moves()? else {
            continue;
        };
        came += 1;
        ensure!(!said.contains(MARK), "the guest saw {said}");
    }
    ensure!(came > 0, "it never came to n2");
    let files = lab.sh("n2", "cat /srv/secret/file /srv/file")?;
    ensure!(files == MARK.repeat(2), "n2 has {files}");
    Ok(())
}

/// Home's root says that its shared memory is `/`; it is its own, not the host's.
fn shared_memory_link(lab: &Lab) -> Result<()> {
    lab.sh("n2", "echo secret >/root/n2-private")?;
    let _restore = Restore {
        lab,
        node: "n1",
        script: "rm -f /dev/shm; mkdir -m 1777 /dev/shm",
    };
    lab.sh(
        "n1",
        "umount -l /dev/shm; rmdir /dev/shm && ln -s / /dev/shm; rm -f /tmp/begun /tmp/away",
    )?;
    let program = "import os
open('/tmp/begun','w').close()
while not os.path.exists('/tmp/away'): sum(range(1000))
print(os.path.exists('/dev/shm/root/n2-private'), open('/dev/shm/etc/hostname').read().strip())";
    lab.put("n1", "/srv/shm.py", program.as_bytes())?;
    let script = "python3 /srv/shm.py & pid=$!
        until [ -e /tmp/begun ]; do kill -0 $pid || exit 1; sleep 0.05; done
        omfs migrate $pid n2 || exit 1
        touch /tmp/away; wait $pid";
    let said = lab.sh("n1", script)?;
    ensure!(said == "False n1\n", "{said}");
    Ok(())
}

/// A user of the host makes names that a supervisor might want.
fn names_in_tmp(lab: &Lab) -> Result<()> {
    const FIRST: u32 = 50_000;
    let make = format!(
        "import os
for pid in range({FIRST},{FIRST}+12):
    for n in range(1000): os.mkdir('/tmp/omfs-guest-%d-%d'%(pid,n))"
    );
    lab.put("n2", "/srv/names.py", make.as_bytes())?;
    let _restore = Restore {
        lab,
        node: "n2",
        script: "find /tmp -maxdepth 1 -name 'omfs-guest-*' -exec rmdir {} +",
    };
    lab.sh("n2", &format!("{USER} python3 /srv/names.py"))?;
    lab.sh("n2", &format!("echo {FIRST} >/proc/sys/kernel/ns_last_pid"))?;
    let script = format!(
        "{BEGUN} {USER} sh -c '{BEGIN} while :; do :; done' & pid=$!; begun $pid
         {USER} omfs migrate $pid n2; moved=$?; kill -KILL $pid; exit $moved"
    );
    lab.sh("n1", &script).map(drop)
}

/// The host's own processes have nothing to fear from a guest that grows: the kernel ends it.
fn too_much_memory(lab: &Lab) -> Result<()> {
    let program = "import os
open('/tmp/begun','w').close()
while not os.path.exists('/tmp/away'): sum(range(1000))
held=[]
while len(held)<2048: held.append(b'x'*(1<<20))
print('has them')";
    lab.put("n1", "/srv/grows.py", program.as_bytes())?;
    let script = "rm -f /tmp/begun /tmp/away; python3 /srv/grows.py & pid=$!
        until [ -e /tmp/begun ]; do kill -0 $pid || exit 1; sleep 0.05; done
        omfs migrate $pid n2 || exit 1
        touch /tmp/away; wait $pid; echo $?";
    let said = lab.sh("n1", script)?;
    ensure!(said == "137\n", "{said}");
    lab.sh("n2", "omfs nodes").map(drop)
}

fn too_many_threads(lab: &Lab) -> Result<()> {
    let program = "import threading,time
for _ in range(30): threading.Thread(target=time.sleep,args=(1000,)).start()
open('/tmp/begun','w').close()
while True: time.sleep(1)";
    lab.put("n1", "/srv/threads.py", program.as_bytes())?;
    let script = "rm -f /tmp/begun; python3 /srv/threads.py & pid=$!
        until [ -e /tmp/begun ]; do kill -0 $pid || exit 1; sleep 0.05; done
        omfs migrate $pid n2; echo $?; kill -KILL $pid";
    let result = lab.run("n1", script)?;
    let said = String::from_utf8_lossy(&result.stderr);
    ensure!(
        result.stdout != b"0\n" && said.contains("more threads than a guest may have"),
        "{result:?}"
    );
    Ok(())
}

/// Puts a node in order again.
struct Restore<'lab> {
    lab: &'lab Lab,
    node: &'static str,
    script: &'static str,
}

impl Drop for Restore<'_> {
    fn drop(&mut self) {
        let _ = self.lab.run(self.node, self.script);
    }
}
