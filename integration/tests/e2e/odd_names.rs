//! Programs and files whose names are any bytes: what a terminal would obey, what is not UTF-8.

use anyhow::{Context, Result, ensure};
use integration::lab::Lab;
use libtest_mimic::Trial;
use serde_json::Value;

use crate::harness::{BEGIN, BEGUN, Module, Need, with_omfs};

const BASH: &[Need] = &[Need::Tool("bash")];
const BASH_FLOCK: &[Need] = &[Need::Tool("bash"), Need::Tool("flock")];
const BASH_SETPRIV: &[Need] = &[Need::Tool("bash"), Need::Tool("setpriv")];

pub fn tests() -> Vec<Trial> {
    let mut module = Module::new("odd_names", &[], || with_omfs(2));
    module
        .test("a_program_of_any_name_is_listed_and_moved", BASH, moved)
        .test("its_groups_count", BASH_SETPRIV, groups)
        .test("it_waits_for_locks", BASH_FLOCK, locks)
        .test("a_guest_of_any_name_is_its_homes", BASH, guest);
    module.finish()
}

/// Runs a script on n1; `name` tells it from those of other tests.
fn bash(lab: &Lab, name: &str, script: &str) -> Result<String> {
    let path = format!("/tmp/odd-{name}");
    lab.put("n1", &path, script.as_bytes())?;
    lab.sh("n1", &format!("bash {path}"))
}

/// Clears screens, rings bells, breaks lines, turns the writing direction, is not UTF-8.
const NAMES: [&str; 4] = [
    r"$'e\033[2Jv\033[31m'",
    r"$'li\nne 0 R'",
    r"$'\xff\xfe) R 1'",
    r"$'\u202e\x9bx\x07'",
];

fn moved(lab: &Lab) -> Result<()> {
    for name in NAMES {
        let start = format!(
            "mkdir -p /tmp/odd; cp /bin/sleep /tmp/odd/{name}\n\
             setsid /tmp/odd/{name} 600 >/dev/null 2>&1 </dev/null & echo $!\n\
             until [ /proc/$!/exe -ef /tmp/odd/{name} ]; do kill -0 $! || exit 1; sleep 0.05; done"
        );
        let text = bash(lab, "start", &start)?;
        let pid: i64 = text.trim().parse()?;
        for (target, place) in [("n2", "n2"), ("home", "n1"), ("2", "n2")] {
            lab.sh("n1", &format!("omfs migrate {pid} {target}"))?;
            let listed = lab.sh("n1", "omfs ps -a --json")?;
            let listed: Value = serde_json::from_str(&listed)?;
            let mut jobs = listed.as_array().context("no array")?.iter();
            let job = jobs.find(|job| job["pid"] == pid && job["home"] == "n1");
            let job = job.with_context(|| format!("{name} is not listed"))?;
            ensure!(job["where"] == place, "{name}: {job}");
        }
        for node in ["n1", "n2"] {
            let listed = lab.sh(node, "omfs ps -a")?;
            let active =
                |letter: char| letter.is_control() && letter != '\n' || letter == '\u{202e}';
            ensure!(!listed.contains(active), "{node}: {listed:?}");
            let line = listed
                .lines()
                .any(|line| line.starts_with(&format!("{pid} ")));
            ensure!(line, "{name} is not in {listed}");
        }
        lab.sh("n1", &format!("kill {pid}"))?;
    }
    let log = lab.run("n1", "grep -a $(printf '\\033') /var/log/omfs.log")?;
    ensure!(log.stdout.is_empty(), "in the log: {log:?}");
    Ok(())
}

fn groups(lab: &Lab) -> Result<()> {
    lab.sh(
        "n1",
        "mkdir -p /srv/odd; echo secret >/srv/odd/file; chgrp 4 /srv/odd/file; chmod 040 /srv/odd/file",
    )?;
    let read = r"cp /bin/cat $'/tmp/c\xffat'
        as() { setpriv --reuid 65534 --regid 65534 --groups $1 $'/tmp/c\xffat' /mfs/n1/srv/odd/file; }
        as 4; as 5 2>&1 || true";
    let read = bash(lab, "read", read)?;
    ensure!(read.starts_with("secret\n"), "{read}");
    ensure!(read.contains("Permission denied"), "{read}");
    Ok(())
}

fn locks(lab: &Lab) -> Result<()> {
    let wait = r"cp $(command -v flock) $'/tmp/fl\xffock'; touch /mfs/n2/tmp/odd-lock
        flock /mfs/n2/tmp/odd-lock sh -c 'echo held >/tmp/odd-held; while [ -e /tmp/odd-held ]; do sleep 0.05; done' &
        while [ ! -e /tmp/odd-held ]; do sleep 0.05; done
        (sleep 1; rm /tmp/odd-held) &
        $'/tmp/fl\xffock' /mfs/n2/tmp/odd-lock test ! -e /tmp/odd-held && echo mine";
    let got = bash(lab, "wait", wait)?;
    ensure!(got == "mine\n", "{got}");
    Ok(())
}

/// A guest that the file system did not know for one could not read its own root's files.
fn guest(lab: &Lab) -> Result<()> {
    let work = "while [ ! -e /root/odd-go ]; do :; done; read -r line </root/odd-in
        read -r host </mfs/here/etc/hostname; echo $line on $host >/root/odd-out; while :; do :; done";
    let odd = r"$'/tmp/b\xffsh'";
    let script = format!(
        "{BEGUN} cp /bin/bash {odd}; rm -f /root/odd-*; echo private >/root/odd-in; chmod 600 /root/odd-in
        setsid {odd} -c '{BEGIN} {work}' >/dev/null 2>&1 </dev/null & begun $!
        omfs migrate $! n2 && touch /root/odd-go
        for i in $(seq 1200); do [ -s /root/odd-out ] && break; sleep 0.1; done
        cat /root/odd-out; kill $!"
    );
    let read = bash(lab, "guest", &script)?;
    ensure!(read == "private on n2\n", "{read}");
    Ok(())
}
