//! The lab itself: what `lab` promises about nodes without omfs in them.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::lab::options::LabOptions;
use integration::lab::run::{TIMEOUT, output};
use integration::lab::{Lab, binaries, leaks, wait};
use libtest_mimic::Trial;

use crate::harness::{Module, Need, SOON, until, user_sh};

pub fn tests() -> Vec<Trial> {
    let mut module = Module::new("lab", &[], || {
        let mut options = LabOptions::new(3);
        options.cpu_percent = Some(20);
        options.mem_mib = Some(256);
        options.link_mbit = Some(100);
        Ok(options)
    });
    module
        .test("exit_status_and_signals_pass_through", &[], statuses)
        .test("signals_are_forwarded", &[], forwarded_signals)
        .test(
            "what_a_caller_ignores_is_not_handed_down",
            &[],
            ignored_signals,
        )
        .test(
            "a_terminal_of_the_nodes_own",
            &[Need::Tool("script")],
            terminal,
        )
        .test("identity_of_a_user", &[], users)
        .test("nodes_are_apart", &[], isolation)
        .test("limits_hold", &[], limits)
        .test("processes_end_and_are_reaped", &[], reaping)
        .alone("kill_and_start", &[], kill_and_start)
        .alone("cut_and_heal", &[Need::Tool("python3")], cut_and_heal)
        .alone("freeze_and_thaw", &[Need::Tool("python3")], freeze_and_thaw)
        .alone("link_rate", &[Need::Tool("python3")], link_rate)
        .alone("nothing_is_left_after_down", &[], down)
        .alone(
            "nothing_is_left_when_the_owner_is_killed",
            &[],
            owner_killed,
        )
        .alone(
            "nothing_is_left_when_the_supervisor_is_killed",
            &[],
            supervisor_killed,
        )
        .alone("remains_of_a_killed_guard_are_swept", &[], guard_killed)
        .alone("what_the_machine_lacks_is_said_first", &[], lacking)
        .alone("two_labs_at_once", &[], two_labs);
    module.finish()
}

fn statuses(lab: &Lab) -> Result<()> {
    ensure!(lab.run("n1", "exit 7")?.status.code() == Some(7));
    ensure!(lab.run("n1", "kill -KILL $$")?.status.signal() == Some(libc::SIGKILL));
    ensure!(lab.run("n1", "kill -SEGV $$")?.status.signal() == Some(libc::SIGSEGV));
    let missing = output(&mut lab.command("n1", ["no-such-program"])?, TIMEOUT)?;
    ensure!(missing.status.code() == Some(127));
    ensure!(String::from_utf8_lossy(&missing.stderr).contains("no-such-program"));
    let unknown = lab.run("n77", "true")?;
    ensure!(unknown.status.code() == Some(1));
    ensure!(String::from_utf8_lossy(&unknown.stderr).contains("n1 to n3"));
    Ok(())
}

fn forwarded_signals(lab: &Lab) -> Result<()> {
    let script = "trap 'echo usr1' USR1; trap 'echo term; exit 5' TERM; echo on; \
                  while :; do sleep 0.02; done";
    let mut child = lab
        .command("n1", ["sh", "-c", script])?
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let pid = i32::try_from(child.id())?;
    // The shell says "on" when its traps are set.
    let mut stdout = std::io::BufReader::new(child.stdout.take().context("no pipe")?);
    let mut text = String::new();
    std::io::BufRead::read_line(&mut stdout, &mut text)?;
    for signal in [nix::sys::signal::SIGUSR1, nix::sys::signal::SIGTERM] {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal)?;
        std::io::BufRead::read_line(&mut stdout, &mut text)?;
    }
    std::io::Read::read_to_string(&mut stdout, &mut text)?;
    ensure!(child.wait()?.code() == Some(5));
    ensure!(text == "on\nusr1\nterm\n", "{text}");
    Ok(())
}

fn terminal(lab: &Lab) -> Result<()> {
    let inner = "tty; stty -a | grep -o 'rows [0-9]*'; test -t 0 && echo yes; \
                 sh -c 'kill -INT $$'; echo after";
    let binary = binaries::lab()?;
    let command = format!(
        "stty rows 33 cols 90; {} --lab {} exec n1 -- sh -c \"{}\"",
        binary.display(),
        lab.id(),
        inner.replace('$', "\\$")
    );
    let mut script = Command::new("script");
    script.args(["-qec", &command, "/dev/null"]);
    let result = output(&mut script, TIMEOUT)?;
    let text = String::from_utf8_lossy(&result.stdout);
    ensure!(text.contains("/dev/pts/0"), "{text}");
    ensure!(text.contains("rows 33") && text.contains("yes"), "{text}");
    Ok(())
}

fn users(lab: &Lab) -> Result<()> {
    let result = user_sh(lab, "nobody", "n1", "id -un")?;
    ensure!(result.stdout == b"nobody\n", "{result:?}");
    ensure!(lab.sh("n1", "id -u")? == "0\n");
    Ok(())
}

fn isolation(lab: &Lab) -> Result<()> {
    ensure!(lab.sh("n2", "hostname")? == "n2\n");
    lab.sh(
        "n1",
        "echo one >/etc/only-in-n1; echo x >/dev/shm/x; echo y >/tmp/y",
    )?;
    for file in ["/etc/only-in-n1", "/dev/shm/x", "/tmp/y"] {
        ensure!(
            !lab.run("n2", &format!("test -e {file}"))?.status.success(),
            "n2 has {file}"
        );
    }
    ensure!(!std::path::Path::new("/etc/only-in-n1").exists());
    ensure_unseen(lab)?;
    ensure!(lab.sh("n1", "cat /proc/net/dev | grep -c :")? == "2\n");
    Ok(())
}

/// This very process is not seen in a node.
fn ensure_unseen(lab: &Lab) -> Result<()> {
    let program = std::env::current_exe()?;
    let name = program.file_name().context("no name")?.to_string_lossy();
    // Not the name itself: the commands that look for it have it in their own arguments.
    let (first, rest) = name.split_at(1);
    let look = format!("grep -laE '[{first}]{rest}' /proc/[0-9]*/cmdline");
    let here = Command::new("sh").args(["-c", &look]).output()?;
    ensure!(!here.stdout.is_empty(), "it does not even see itself");
    let seen = lab.run("n1", &look)?;
    ensure!(seen.stdout.is_empty(), "{seen:?}");
    Ok(())
}

/// A busy loop that ends when it has used one second of a CPU.
const ONE_SECOND: &str = "s=$(date +%s%N); (ulimit -t 1; while :; do :; done) 2>/dev/null; \
                          e=$(date +%s%N); echo $(((e-s)/1000000))";

fn limits(lab: &Lab) -> Result<()> {
    // A fifth of a CPU, however busy the machine is: five seconds or more, less than one period.
    let took_ms: u32 = lab.sh("n3", ONE_SECOND)?.trim().parse()?;
    ensure!(
        took_ms > 3500,
        "of 20 % of a CPU one second became {took_ms} ms"
    );
    let greedy = "head -c 400M /dev/zero | tail -c 390M | wc -c";
    ensure!(
        lab.run("n3", greedy)?.stdout != b"408944640\n",
        "390 MiB fitted into 256"
    );
    Ok(())
}

fn reaping(lab: &Lab) -> Result<()> {
    let orphans = "for i in 1 2 3 4 5; do (sleep 0.05 & echo $!); done";
    let orphans = lab.sh("n2", orphans)?;
    let pids: Vec<&str> = orphans.split_whitespace().collect();
    ensure!(pids.len() == 5, "{orphans}");
    let there = pids.iter().map(|pid| format!("[ ! -e /proc/{pid} ]"));
    let gone = there.collect::<Vec<_>>().join(" && ");
    until(lab, "n2", &gone).context("they are not reaped")
}

fn kill_and_start() -> Result<()> {
    let lab = Lab::up(&LabOptions::new(2))?;
    lab.sh("n2", "echo disk >/root/kept; echo memory >/run/lost")?;
    let mut sleeper = lab
        .command("n2", ["sleep", "100"])?
        .stdin(Stdio::null())
        .spawn()?;
    until(&lab, "n2", "pidof sleep").context("sleep did not start")?;
    lab.kill("n2")?;
    ensure!(sleeper.wait()?.signal() == Some(libc::SIGKILL));
    ensure!(!lab.status()?.nodes[1].running && lab.status()?.nodes[0].running);
    ensure!(lab.kill("n2").is_err(), "killed twice");
    lab.start("n2")?;
    ensure!(lab.sh("n2", "cat /root/kept; ls /run")? == "disk\n");
    ensure!(lab.start("n2").is_err(), "started twice");
    lab.down()
}

const CONNECT: &str = "python3 -c \"import socket,sys
try: socket.create_connection(('n2',9),timeout=1)
except ConnectionRefusedError: print('refused')
except OSError: print('silence')\"";

fn cut_and_heal() -> Result<()> {
    let lab = Lab::up(&LabOptions::new(2))?;
    let refused = format!("[ $({CONNECT}) = refused ]");
    until(&lab, "n1", &refused)?;
    lab.cut("n2")?;
    ensure!(lab.status()?.nodes[1].cut);
    ensure!(lab.sh("n1", CONNECT)? == "silence\n");
    lab.kill("n2")?;
    lab.start("n2")?;
    ensure!(
        lab.sh("n1", CONNECT)? == "silence\n",
        "a pulled cable stays pulled"
    );
    lab.heal("n2")?;
    until(&lab, "n1", &refused)?;
    lab.down()
}

/// Counts in a file of n2, ten times a second.
const COUNT: &str = "setsid sh -c 'while :; do echo x >>/root/count; sleep 0.1; done' \
                     >/dev/null 2>&1 </dev/null &";

fn freeze_and_thaw() -> Result<()> {
    let lab = Lab::up(&LabOptions::new(2))?;
    let footprint = lab.footprint();
    lab.sh("n2", COUNT)?;
    until(&lab, "n2", "test -s /root/count")?;
    lab.freeze("n2")?;
    let mut count = lab.command("n2", ["cat", "/root/count"])?;
    let asked = output(&mut count, Duration::from_secs(3));
    ensure!(asked.is_err(), "a frozen node answers: {asked:?}");
    let refused = format!("[ $({CONNECT}) = refused ]");
    until(&lab, "n1", &refused).context("its kernel does not answer")?;
    lab.thaw("n2")?;
    let before = lab.sh("n2", "stat -c %s /root/count")?;
    let counts = format!("[ $(stat -c %s /root/count) -gt {} ]", before.trim());
    until(&lab, "n2", &counts)?;
    lab.freeze("n1")?;
    lab.kill("n1").context("with power off")?;
    lab.freeze("n2")?;
    lab.down()?;
    let leaks = footprint.leaks()?;
    ensure!(leaks.is_empty(), "left: {leaks:?}");
    Ok(())
}

const SERVE: &str = "python3 -c \"import socket,time
s=socket.create_server(('0.0.0.0',5001)); print('up',flush=True)
c,_=s.accept(); t=time.time(); n=0
while d:=c.recv(1<<20): n+=len(d)
print(int(n*8/(time.time()-t)/1e6))\"";
/// On a busy machine it may be slower than the link, once or twice, but never faster.
const RATE_TRIES: u32 = 10;
const SEND: &str = "python3 -c \"import socket
c=socket.create_connection(('n2',5001)); c.sendall(bytes(5000000))\"";

fn link_rate() -> Result<()> {
    let mut options = LabOptions::new(2);
    options.link_mbit = Some(40);
    let lab = Lab::up(&options)?;
    let mut rates = Vec::new();
    for _ in 0..RATE_TRIES {
        let mbit = measured_rate(&lab)?;
        ensure!(mbit <= 45, "{mbit} Mbit/s over a link of 40");
        if mbit >= 25 {
            return lab.down();
        }
        rates.push(mbit);
    }
    anyhow::bail!("{rates:?} Mbit/s over a link of 40")
}

fn measured_rate(lab: &Lab) -> Result<u32> {
    let mut server = lab.command("n2", ["sh", "-c", SERVE])?;
    let server = std::thread::spawn(move || output(&mut server, TIMEOUT));
    until(lab, "n2", "grep -q ':1389 00000000:0000 0A' /proc/net/tcp").context("no server")?;
    lab.sh("n1", SEND)?;
    let printed = server
        .join()
        .map_err(|_| anyhow::anyhow!("panicked"))??
        .stdout;
    let text = String::from_utf8(printed)?;
    Ok(text.lines().nth(1).context("no figure")?.parse()?)
}

fn down() -> Result<()> {
    let lab = Lab::up(&LabOptions::new(2))?;
    let footprint = lab.footprint();
    ensure!(
        !footprint.left()?.is_empty(),
        "the leak check sees a living lab"
    );
    lab.sh("n1", "setsid sleep 1000 >/dev/null 2>&1 & echo x >/root/x")?;
    lab.down()?;
    let leaks = footprint.leaks()?;
    ensure!(leaks.is_empty(), "left: {leaks:?}");
    Ok(())
}

fn owner_killed() -> Result<()> {
    let options = LabOptions::new(1);
    let footprint = {
        let lab = Lab::up(&options)?;
        let footprint = lab.footprint();
        // Dropping closes the pipe, as the owner's death does.
        drop(lab);
        footprint
    };
    let leaks = footprint.leaks()?;
    ensure!(leaks.is_empty(), "left: {leaks:?}");
    Ok(())
}

/// The guard is the marked process whose parent is not marked.
fn guard_of(id: &str) -> Result<(nix::unistd::Pid, nix::unistd::Pid)> {
    let marked = leaks::processes(id);
    let parent = |pid: u32| -> Option<u32> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status
            .lines()
            .find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
    };
    let outermost = |pid: &&u32| parent(**pid).is_some_and(|parent| !marked.contains(&parent));
    let guard = *marked.iter().find(outermost).context("no guard")?;
    let child = |pid: &&u32| parent(**pid) == Some(guard);
    let supervisor = *marked.iter().find(child).context("no supervisor")?;
    let pid = |number: u32| i32::try_from(number).map(nix::unistd::Pid::from_raw);
    Ok((pid(guard)?, pid(supervisor)?))
}

fn supervisor_killed() -> Result<()> {
    let lab = Lab::up(&LabOptions::new(2))?;
    let footprint = lab.footprint();
    // What is frozen does not even die of its lab's end.
    lab.freeze("n2")?;
    nix::sys::signal::kill(guard_of(lab.id())?.1, nix::sys::signal::SIGKILL)?;
    let leaks = footprint.leaks()?;
    ensure!(leaks.is_empty(), "left: {leaks:?}");
    ensure!(lab.status().is_err());
    Ok(())
}

fn guard_killed() -> Result<()> {
    let lab = Lab::up(&LabOptions::new(1))?;
    let footprint = lab.footprint();
    nix::sys::signal::kill(guard_of(lab.id())?.0, nix::sys::signal::SIGKILL)?;
    let ended = || leaks::processes(lab.id()).is_empty().then_some(());
    wait::until(SOON, ended).context("its processes outlive the guard")?;
    // What has just been made is left alone, lest a lab be swept that is coming up. Another test's
    // lab may sweep this one first.
    std::thread::sleep(Duration::from_millis(2100));
    Lab::up(&LabOptions::new(1))?.down()?;
    let leaks = footprint.leaks()?;
    ensure!(leaks.is_empty(), "left: {leaks:?}");
    Ok(())
}

fn lacking() -> Result<()> {
    // Building it is not what is waited for.
    binaries::omfs()?;
    let up = format!(
        "mount --bind /dev/null /dev/fuse && exec {} --lab lacking up 1",
        binaries::lab()?.display()
    );
    let mut command = Command::new("unshare");
    command.args(["-m", "--propagation", "private", "sh", "-c", &up]);
    let result = output(&mut command, TIMEOUT)?;
    let said = String::from_utf8_lossy(&result.stderr);
    ensure!(
        result.status.code() == Some(1) && said.contains("MISSING  /dev/fuse: "),
        "{:?}: {said}",
        result.status
    );
    Ok(())
}

fn ignored_signals(lab: &Lab) -> Result<()> {
    let script = format!(
        "trap '' INT QUIT; grep SigIgn /proc/self/status; \
         exec {} --lab {} exec n1 -- grep SigIgn /proc/self/status",
        binaries::lab()?.display(),
        lab.id()
    );
    let result = output(Command::new("sh").args(["-c", &script]), TIMEOUT)?;
    let text = String::from_utf8_lossy(&result.stdout);
    // Numbers 1 to 31; the C library keeps 32 and 33 to itself.
    let ignored: Vec<u64> = text
        .lines()
        .filter_map(|line| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok())
        .map(|mask| mask & 0x7fff_ffff)
        .collect();
    ensure!(
        matches!(ignored[..], [outside, 0] if outside & 0b110 == 0b110),
        "{text}"
    );
    Ok(())
}

fn two_labs() -> Result<()> {
    let first = Lab::up(&LabOptions::new(2))?;
    let second = Lab::up(&LabOptions::new(2))?;
    first.sh("n1", "echo first >/root/which")?;
    ensure!(!second.run("n1", "cat /root/which")?.status.success());
    let mut again = LabOptions::new(1);
    again.id = first.id().into();
    let refused = Lab::up(&again).err().context("two labs of one name")?;
    ensure!(format!("{refused:#}").contains("up already"), "{refused:#}");
    ensure!(
        first.sh("n2", "cat /etc/hostname")? == "n2\n",
        "the first lab was disturbed"
    );
    Ok(())
}
