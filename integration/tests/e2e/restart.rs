//! Daemons end and come back under those who use what they serve.

use anyhow::{Context, Result, ensure};
use integration::lab::{Lab, wait};

use crate::faults::{counts, with_counter};
use crate::harness::{SOON, until, with_omfs};

/// Commands that end a node's daemon in the middle of everything, and in order.
pub const CRASH: &str = "pkill -KILL -xf 'omfs daemon'";
const STOP: &str = "pkill -TERM -xf 'omfs daemon'";
const GONE: &str =
    "for i in $(seq 600); do pgrep -xf 'omfs daemon' >/dev/null || break; sleep 0.1; done";
pub const START: &str = "setsid omfs daemon >>/var/log/omfs.log 2>&1 </dev/null &";

/// Ends a node's daemon, does something, and starts it again.
fn restart_daemon(lab: &Lab, node: &str, end: &str, meanwhile: &str) -> Result<()> {
    lab.sh(
        node,
        &format!("cd /; {end}; {meanwhile} {GONE}; sleep 1; {START}"),
    )?;
    until(lab, node, "omfs status")
}

/// What a file of n1 says, once it says something.
fn told(lab: &Lab, name: &str) -> Result<String> {
    let said = || {
        let text = lab.sh("n1", &format!("cat /root/{name}")).ok()?;
        (!text.is_empty()).then_some(text)
    };
    wait::until(SOON, said).with_context(|| format!("no {name}"))
}

/// Holds files of another node and of its own, and a directory, while daemons come and go.
const HOLDER: &str = "mkdir -p /mfs/n2/tmp/d; echo inside >/mfs/n2/tmp/d/h
    echo remote >/mfs/n2/tmp/f; echo local >/root/g
    exec 3</mfs/n2/tmp/f 4</mfs/here/root/g 5>>/mfs/n2/tmp/log 6>>/mfs/n1/root/log
    cd /mfs/n2/tmp/d
    echo before | tee -a /dev/fd/6 >&5
    echo ready >/root/ready
    while [ ! -e /root/go ]; do sleep 0.1; done
    read a <&3; read b <&4; read c <h
    echo after | tee -a /dev/fd/6 >&5
    echo $a $b $c $(cat /mfs/n2/tmp/log /root/log) >/root/told";

/// Maps a file of another node, of which it touches one page before and all others afterwards.
const MAPPER: &str = "import mmap,os,time
size=1<<20
open('/mfs/n2/tmp/m','wb').write(bytes(i%251 for i in range(size)))
memory=mmap.mmap(os.open('/mfs/n2/tmp/m',os.O_RDONLY),size,mmap.MAP_SHARED,mmap.PROT_READ)
assert memory[5]==5
open('/root/mapped','w').write('mapped')
while not os.path.exists('/root/go'): time.sleep(0.1)
same=all(memory[i]==i%251 for i in range(0,size,997))
open('/root/seen','w').write(str(same))";

pub fn users_wait() -> Result<()> {
    let lab = Lab::up(&with_omfs(2)?)?;
    lab.put("n1", "/root/holder.sh", HOLDER.as_bytes())?;
    lab.put("n1", "/root/mapper.py", MAPPER.as_bytes())?;
    let start = "cd /; setsid sh /root/holder.sh >/root/holder.log 2>&1 </dev/null &
        setsid python3 /root/mapper.py >/root/mapper.log 2>&1 </dev/null &";
    lab.sh("n1", start)?;
    told(&lab, "ready")?;
    told(&lab, "mapped")?;
    let user = "setsid sh -c 'cat /mfs/n2/tmp/f >/root/waited 2>&1' &";
    restart_daemon(&lab, "n1", CRASH, user)?;
    let waited = told(&lab, "waited")?;
    ensure!(waited == "remote\n", "who came meanwhile got {waited}");
    restart_daemon(&lab, "n2", CRASH, "")?;
    restart_daemon(&lab, "n1", STOP, "")?;
    restart_daemon(&lab, "n2", STOP, "")?;
    until(&lab, "n1", "cat /mfs/n2/tmp/f")?;
    lab.sh("n1", "touch /root/go")?;
    let text = told(&lab, "told")
        .with_context(|| lab.sh("n1", "cat /root/holder.log").unwrap_or_default())?;
    ensure!(
        text == "remote local inside before after before after\n",
        "{text}"
    );
    let seen = told(&lab, "seen")
        .with_context(|| lab.sh("n1", "cat /root/mapper.log").unwrap_or_default())?;
    ensure!(seen == "True", "the mapping says {seen}");
    lab.down()
}

/// Uses a file of another node all the time, and says what failed.
const USER: &str = "import os,time
n=0; problems=set()
open('/root/ready','w').write('ready')
while not os.path.exists('/root/go'):
    try:
        fd=os.open('/mfs/n2/tmp/used',os.O_RDWR); os.pread(fd,10,0); os.pwrite(fd,b'x',n%10); os.close(fd)
        os.stat('/mfs/n2/tmp/used'); os.listdir('/mfs/n2/tmp/used.d'); n+=1
    except OSError as e: problems.add(str(e))
    time.sleep(.01)
open('/root/told','w').write(str(sorted(problems)) if problems else 'none' if n>2 else 'few')";

/// Users of another node do not notice that its daemon restarts, and find it at once when it has been
/// away for longer.
pub fn owner_restarts() -> Result<()> {
    let lab = Lab::up(&with_omfs(2)?)?;
    // Machines that are busy take longer than users shall wait.
    let wait = "printf '\\n[mount]\\nowner_wait_ms = 60000\\n' >>/etc/omfs/omfs.toml";
    lab.sh("n1", wait)?;
    restart_daemon(&lab, "n1", CRASH, "")?;
    lab.sh("n2", "umask 0; echo text >/tmp/used; mkdir /tmp/used.d")?;
    lab.put("n1", "/root/user.py", USER.as_bytes())?;
    let start = "cd /; setsid python3 /root/user.py >/root/user.log 2>&1 </dev/null &";
    lab.sh("n1", start)?;
    told(&lab, "ready")?;
    for end in [CRASH, STOP] {
        restart_daemon(&lab, "n2", end, "")?;
        until(&lab, "n1", "cat /mfs/n2/tmp/used")?;
    }
    lab.sh("n1", "touch /root/go")?;
    let problems = told(&lab, "told")?;
    ensure!(problems == "none", "users were told {problems}");
    lab.down()
}

/// The first use after an outage that somebody met.
pub fn back_after_an_outage() -> Result<()> {
    let lab = Lab::up(&with_omfs(2)?)?;
    lab.sh("n1", "cat /mfs/n2/etc/hostname")?;
    lab.cut("n2")?;
    until(
        &lab,
        "n1",
        "cat /mfs/n2/etc/hostname 2>&1 | grep 'Host is down'",
    )?;
    lab.heal("n2")?;
    until(&lab, "n1", "omfs nodes | grep -w n2 | grep -w alive")?;
    let name = lab.sh("n1", "cat /mfs/n2/etc/hostname")?;
    ensure!(name == "n2\n", "{name}");
    lab.down()
}

pub fn daemons_restart() -> Result<()> {
    let lab = with_counter(2)?;
    lab.sh("n1", "omfs migrate $(cat /root/pid) n2")?;
    for (node, end) in [
        ("n2", CRASH),
        ("n1", CRASH),
        ("n2", STOP),
        ("n1", STOP),
        ("n2", CRASH),
    ] {
        restart_daemon(&lab, node, end, "")?;
        let what = format!("after {end} on {node}");
        counts(&lab).with_context(|| format!("the job does not run on {what}"))?;
        until(&lab, "n1", "omfs ps --json | grep '\"n2\"'")
            .with_context(|| format!("it is not listed at n2 {what}"))?;
    }
    lab.sh("n1", "omfs migrate $(cat /root/pid) home")?;
    counts(&lab).context("the job does not run on at home")?;
    lab.sh("n1", "omfs migrate $(cat /root/pid) n2")?;
    counts(&lab).context("the job does not run away from home again")?;
    lab.down()
}

const GUEST_MOUNTS: &str = "cut -d' ' -f1-3 /proc/$(pgrep -x sleep)/mounts";

/// A lookup that fails makes the kernel take mounts away, also other namespaces': somebody at the
/// host looks at home's directories while home cannot be reached.
pub fn home_is_unreachable() -> Result<()> {
    let lab = Lab::up(&with_omfs(2)?)?;
    let start = "setsid sleep 1000 >/dev/null 2>&1 </dev/null & \
        echo $! >/root/pid; until [ $(cat /proc/$!/comm) = sleep ]; do sleep 0.05; done; \
        omfs migrate $! n2";
    lab.sh("n1", start)?;
    let before = lab.sh("n2", GUEST_MOUNTS)?;
    ensure!(before.contains("proc /proc proc"), "{before}");
    ensure!(before.contains("omfs /dev/shm fuse.omfs"), "{before}");
    lab.sh("n2", "ls /mfs/n1/proc /mfs/n1/dev >/dev/null")?;
    lab.sh("n1", &format!("cd /; {CRASH}; {GONE}"))?;
    for name in ["proc/1", "dev/null", "etc/hostname"] {
        let seen = lab.run("n2", &format!("stat /mfs/n1/{name}"))?;
        ensure!(!seen.status.success(), "home still answers");
    }
    let after = lab.sh("n2", GUEST_MOUNTS)?;
    ensure!(after == before, "a guest with {before} has {after}");
    lab.sh("n1", START)?;
    until(&lab, "n2", "cat /mfs/n1/etc/hostname").context("home does not come back")?;
    let after = lab.sh("n2", GUEST_MOUNTS)?;
    ensure!(after == before, "a guest with {before} has {after}");
    lab.sh("n1", "kill -KILL $(cat /root/pid)")?;
    lab.down()
}

const MAKE: &str =
    "head -c 60000000 /dev/urandom | base64 >/root/data; gzip -9 -c /root/data >/root/expected";
const COMPRESS: &str = "rm -f /root/status /root/out
    setsid sh -c 'gzip -9 -c /root/data >/root/out 2>/root/err & echo $! >/root/pid
        wait $!; echo $? >/root/status' >/dev/null 2>&1 </dev/null &
    while ! [ -s /root/out ]; do sleep 0.05; done
    omfs migrate $(cat /root/pid) n2
    size=$(stat -c %s /root/out)
    for i in $(seq 200); do [ $(stat -c %s /root/out) = $size ] || break; sleep 0.05; done
    ! [ -e /root/status ]";

/// What it writes is written behind: none of it may be lost with a daemon.
pub fn compression() -> Result<()> {
    let lab = Lab::up(&with_omfs(2)?)?;
    lab.sh("n1", MAKE)?;
    for (node, end) in [("n2", CRASH), ("n1", CRASH), ("n2", STOP), ("n1", STOP)] {
        let what = format!("{end} on {node}");
        until(&lab, "n1", "cat /mfs/n2/etc/hostname").context("n2 is not there")?;
        lab.sh("n1", COMPRESS)
            .with_context(|| format!("it did not leave before {what}"))?;
        restart_daemon(&lab, node, end, "")?;
        let status = told(&lab, "status").with_context(|| format!("it hangs after {what}"))?;
        let said = lab.sh("n1", "cat /root/err")?;
        ensure!(status == "0\n", "{what}: {status} {said}");
        lab.sh("n1", "cmp /root/out /root/expected")
            .with_context(|| what.clone())?;
    }
    lab.down()
}

/// A lab's nodes are mounted by mount(8); here the first one's daemon does it by itself.
fn with_own_mount(nodes: usize) -> Result<Lab> {
    let lab = Lab::up(&with_omfs(nodes)?)?;
    let own = "printf '\\n[mount]\\npoints = [\"/mfs\"]\\n' >>/etc/omfs/omfs.toml; umount /mfs";
    lab.sh("n1", &format!("cd /; {own}; {CRASH}; {GONE}; {START}"))?;
    mounted(&lab)?;
    Ok(lab)
}

fn mounted(lab: &Lab) -> Result<()> {
    until(lab, "n1", "cat /mfs/n1/etc/hostname").context("/mfs is not mounted")
}

pub fn keeper_dies() -> Result<()> {
    let lab = with_own_mount(1)?;
    lab.sh("n1", "pkill -KILL -xf 'omfs fuse-keeper'")?;
    lab.sh("n1", "cat /mfs/n1/etc/hostname")
        .context("its death alone harms somebody")?;
    restart_daemon(&lab, "n1", CRASH, "")?;
    mounted(&lab).context("after both died")?;
    lab.sh("n1", "pgrep -xf 'omfs fuse-keeper'")
        .context("there is no new keeper")?;
    restart_daemon(&lab, "n1", CRASH, "")?;
    mounted(&lab)?;
    lab.down()
}

/// A daemon that is told to end, and one that dies after its mount was taken away.
pub fn stops() -> Result<()> {
    let lab = with_own_mount(1)?;
    for end in [STOP.to_owned(), format!("umount /mfs; {CRASH}")] {
        lab.sh("n1", &format!("cd /; {end}; {GONE}"))?;
        let nothing = "! pgrep -xf 'omfs fuse-keeper' && ! grep fuse.omfs /proc/mounts";
        until(&lab, "n1", nothing).with_context(|| format!("something is left after {end}"))?;
        lab.sh("n1", START)?;
        mounted(&lab)?;
    }
    lab.down()
}
