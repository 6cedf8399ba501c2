//! What happens when machines, links and daemons fail under a job.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::lab::run::output;
use integration::lab::{Lab, wait};
use libtest_mimic::Trial;

use crate::harness::{BEGIN, BEGUN, Module, Need, SOON, until, with_omfs};
use crate::{restart, silence};

pub fn tests() -> Vec<Trial> {
    let mut module = Module::new("faults", &[], || with_omfs(1));
    module
        .alone(
            "the_target_dies_during_a_move",
            &[Need::Tool("python3")],
            target_dies,
        )
        .alone(
            "the_link_is_cut_during_a_move",
            &[Need::Tool("python3")],
            link_cut,
        )
        .alone("the_host_dies_under_a_job", &[], host_dies)
        .alone("the_home_dies_under_a_guest", &[], home_dies)
        .alone("the_home_is_cut_off", &[], silence::home_cut_off)
        .alone("the_host_is_cut_off", &[], silence::host_cut_off)
        .alone("the_home_is_frozen", &[], silence::home_frozen)
        .alone("the_host_is_frozen", &[], silence::host_frozen)
        .alone("nodes_that_stand_still_for_long", &[], silence::long_frozen)
        .alone(
            "a_deputy_that_stands_still",
            &[Need::Tool("python3")],
            silence::deputy_frozen,
        )
        .alone("a_shim_that_hangs", &[], silence::shim_stopped)
        .alone("a_supervisor_that_hangs", &[], silence::supervisor_stopped)
        .alone("a_target_that_is_cut_off", &[], silence::target_cut_off)
        .alone(
            "users_wait_for_a_daemon_that_restarts",
            &[Need::Tool("python3")],
            restart::users_wait,
        )
        .alone(
            "users_wait_for_an_owner_that_restarts",
            &[Need::Tool("python3")],
            restart::owner_restarts,
        )
        .alone(
            "the_first_use_after_an_outage_works",
            &[],
            restart::back_after_an_outage,
        )
        .alone(
            "daemons_restart_under_a_job",
            &[Need::Tool("python3")],
            restart::daemons_restart,
        )
        .alone(
            "daemons_restart_under_a_compression",
            &[Need::Tool("gzip")],
            restart::compression,
        )
        .alone(
            "a_guest_keeps_its_mounts_while_home_is_unreachable",
            &[],
            restart::home_is_unreachable,
        )
        .alone("a_mount_without_its_keeper", &[], restart::keeper_dies)
        .alone("a_daemon_without_users_leaves_nothing", &[], restart::stops);
    module.finish()
}

/// Adds to a file, with 60 MB of memory that a slow link needs seconds for.
const COUNTER: &str = "import time
memory=bytearray(60_000_000)
for i in range(0,len(memory),64): memory[i]=i%251
n=0
while True:
    n+=1
    open('/root/count','a').write('.')
    assert memory[64*(n%900000)]==64*(n%900000)%251
    time.sleep(0.01)";

const START: &str = "setsid python3 /root/counter.py >/dev/null 2>&1 & echo $! >/root/pid";

/// A lab with links of 100 Mbit/s and the counter running on n1.
pub fn with_counter(nodes: usize) -> Result<Lab> {
    let mut options = with_omfs(nodes)?;
    options.link_mbit = Some(100);
    let lab = Lab::up(&options)?;
    lab.put("n1", "/root/counter.py", COUNTER.as_bytes())?;
    lab.sh("n1", START)?;
    until(&lab, "n1", "test -s /root/count")?;
    Ok(lab)
}

/// Waits until the counter is seen to run: its file grows.
pub fn counts(lab: &Lab) -> Result<()> {
    let size = lab.sh("n1", "stat -c %s /root/count")?;
    let grown = format!("[ $(stat -c %s /root/count) -gt {} ]", size.trim());
    until(lab, "n1", &grown)
}

fn during_a_move(lab: &Lab, delay_ms: u64, fault: impl FnOnce() -> Result<()>) -> Result<()> {
    let mut migrate = lab.command("n1", ["sh", "-c", "omfs migrate $(cat /root/pid) n2"])?;
    std::thread::scope(|scope| {
        let moving = scope.spawn(move || output(&mut migrate, SOON));
        std::thread::sleep(Duration::from_millis(delay_ms));
        fault()?;
        let result = moving.join().map_err(|_| anyhow::anyhow!("panicked"))??;
        ensure!(
            !result.status.success(),
            "the move succeeded without its target"
        );
        ensure!(!result.stderr.is_empty(), "it does not say why");
        Ok(())
    })?;
    counts(lab).context("the job does not run on at home")
}

fn target_dies() -> Result<()> {
    let lab = with_counter(2)?;
    during_a_move(&lab, 1500, || lab.kill("n2"))?;
    lab.down()
}

fn link_cut() -> Result<()> {
    let lab = with_counter(2)?;
    for delay_ms in [30, 300, 1000, 3000] {
        let random_ms = delay_ms + u64::from(rand::random::<u8>());
        during_a_move(&lab, random_ms, || lab.cut("n2"))
            .with_context(|| format!("cut after {random_ms} ms"))?;
        lab.heal("n2")?;
        until(&lab, "n1", "cat /mfs/n2/etc/hostname")?;
    }
    lab.sh("n1", "omfs migrate $(cat /root/pid) n2")?;
    counts(&lab).context("it does not run on n2")?;
    lab.down()
}

fn host_dies() -> Result<()> {
    let lab = Lab::up(&with_omfs(2)?)?;
    let script = format!(
        "{BEGUN} sh -c '{BEGIN} while :; do :; done' & pid=$!; begun $pid
         omfs migrate $pid n2 || exit 1; echo away >/root/away; wait $pid; echo $?"
    );
    let mut job = lab.command("n1", ["sh", "-c", &script])?;
    let job = std::thread::spawn(move || output(&mut job, SOON * 2));
    until(&lab, "n1", "test -e /root/away").context("it does not leave")?;
    lab.kill("n2")?;
    let result = job.join().map_err(|_| anyhow::anyhow!("panicked"))??;
    let text = String::from_utf8_lossy(&result.stdout);
    ensure!(text == "137\n", "its parent saw {text}");
    ensure!(
        lab.sh("n1", "cat /var/log/omfs.log")?.contains("n2"),
        "nothing in the log"
    );
    lab.down()
}

fn home_dies() -> Result<()> {
    let lab = Lab::up(&with_omfs(2)?)?;
    let start = format!(
        "{BEGUN} sh -c '{BEGIN} while :; do :; done' >/dev/null 2>&1 & begun $!; omfs migrate $! n2"
    );
    lab.sh("n1", &start)?;
    let guests = "ps -eo args | grep -c '[w]hile :; do :'";
    ensure!(
        lab.run("n2", guests)?.stdout == b"1\n",
        "n2 does not have it"
    );
    lab.kill("n1")?;
    let gone = || (lab.run("n2", guests).ok()?.stdout == b"0\n").then_some(());
    wait::until(SOON, gone).context("a guest without a home lives on")?;
    lab.down()
}
