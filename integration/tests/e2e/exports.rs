//! What a node gives to the others: to the ids of a guest's deputy, to users, to nobody.

use anyhow::{Result, ensure};
use integration::lab::{Lab, binaries};
use libtest_mimic::Trial;

use crate::harness::{BEGIN, BEGUN, Module, Need, with_omfs};

const TOOLS: &[Need] = &[Need::Tool("setpriv")];

pub fn tests() -> Vec<Trial> {
    let mut module = Module::one_at_a_time("exports", TOOLS, || with_omfs(3));
    module
        .test("a_host_has_only_the_ids_of_its_guest", &[], ids_of_a_guest)
        .test("groups_are_the_owners_word", &[], groups)
        .test("system_ids_of_other_nodes_are_nobodys", &[], system_ids)
        .test("kernel_file_systems_are_not_exported", &[], kernel_views)
        .alone("entries_limit_what_other_nodes_see", TOOLS, entries)
        .test("a_host_of_roots_job_has_root", &[], ids_of_roots_guest)
        .test(
            "a_job_keeps_files_that_its_user_could_not_open",
            &[],
            kept_files,
        );
    module.finish()
}

/// A user of every node: her id is ordinary, and so is her group.
const ANN: &str = "grep -q ^ann: /etc/passwd || {
    echo 'ann:x:4711:4711::/home/ann:/bin/sh' >>/etc/passwd; echo 'ann:x:4711:' >>/etc/group
    echo 'team:x:4800:ann' >>/etc/group; }; mkdir -p /home/ann; chown 4711:4711 /home/ann;";
/// Runs what follows as her.
const AS_ANN: &str = "setpriv --reuid 4711 --regid 4711 --init-groups";

/// What a member asks of n1, from n2.
fn member(lab: &Lab, claim: &str, command: &str) -> Result<Result<String, String>> {
    const PROGRAM: &str = "/srv/member";
    if !lab
        .run("n2", &format!("test -x {PROGRAM}"))?
        .status
        .success()
    {
        // Two tests may do this at once.
        let copy = format!("{PROGRAM}.{}", claim.replace([' ', ':'], "-"));
        lab.put("n2", &copy, &std::fs::read(binaries::member()?)?)?;
        lab.sh("n2", &format!("chmod 755 {copy}; mv {copy} {PROGRAM}"))?;
    }
    let result = lab.run("n2", &format!("{PROGRAM} {claim} {command}"))?;
    let said = String::from_utf8_lossy(&result.stderr).into_owned();
    ensure!(!said.contains("panicked"), "{said}");
    match result.status.code() {
        Some(0) => Ok(Ok(String::from_utf8_lossy(&result.stdout).into_owned())),
        Some(1) => Ok(Err(said)),
        _ => anyhow::bail!("{claim} {command}: {:?}: {said}", result.status),
    }
}

fn gets(lab: &Lab, claim: &str, command: &str, wanted: &str) -> Result<()> {
    let answer = member(lab, claim, command)?;
    ensure!(
        answer.as_deref() == Ok(wanted),
        "{claim} {command}: {answer:?}"
    );
    Ok(())
}

fn denied(lab: &Lab, claim: &str, command: &str, reason: &str) -> Result<()> {
    let answer = member(lab, claim, command)?;
    let said = answer.as_ref().err();
    ensure!(
        said.is_some_and(|said| said.contains(reason)),
        "{claim} {command}: {answer:?}"
    );
    Ok(())
}

/// A job of n1 that runs on n2.
struct Away<'lab> {
    lab: &'lab Lab,
    pid: String,
}

impl<'lab> Away<'lab> {
    fn start(lab: &'lab Lab, run_as: &str, program: &str) -> Result<Self> {
        let script = format!(
            "{BEGUN} setsid {run_as} sh -c '{BEGIN} {program}' >/dev/null 2>&1 & job=$!
             echo $job; begun $job"
        );
        let pid = lab.sh("n1", &script)?.trim().to_owned();
        let job = Self { lab, pid };
        job.migrate("n2")?;
        Ok(job)
    }

    fn migrate(&self, to: &str) -> Result<()> {
        self.lab
            .sh("n1", &format!("omfs migrate {} {to}", self.pid))
            .map(drop)
    }
}

impl Drop for Away<'_> {
    fn drop(&mut self) {
        let _ = self.lab.run("n1", &format!("kill -KILL {}", self.pid));
    }
}

const BUSY: &str = "while :; do :; done";

fn ids_of_a_guest(lab: &Lab) -> Result<()> {
    let prepare = format!(
        "{ANN} cd /home/ann; echo hers >hers; chown 4711:4711 hers; chmod 600 hers
         echo roots >roots; chmod 600 roots; echo teams >teams; chgrp 4800 teams; chmod 640 teams
         echo shadows >shadows; chgrp 42 shadows; chmod 640 shadows"
    );
    lab.sh("n1", &prepare)?;
    let job = Away::start(lab, AS_ANN, BUSY)?;
    let guest = format!("--guest {}", job.pid);
    let as_ids = |ids: &str| format!("{guest} --ids {ids}");
    gets(lab, &as_ids("4711:4711"), "read /home/ann/hers", "hers\n")?;
    gets(
        lab,
        &as_ids("4711:4711:4800"),
        "read /home/ann/teams",
        "teams\n",
    )?;
    for file in ["roots", "shadows"] {
        let read = format!("read /home/ann/{file}");
        denied(lab, &as_ids("4711:4711"), &read, "Permission denied")?;
        // Nobody of that name: what builds guests asks so, and is her.
        denied(lab, &as_ids("0:0"), &read, "Permission denied")?;
        denied(lab, &as_ids("0:42:42"), &read, "Permission denied")?;
        denied(lab, &as_ids("4711:42"), &read, "Operation not permitted")?;
        denied(
            lab,
            &as_ids("4711:4711:42"),
            &read,
            "Operation not permitted",
        )?;
        denied(
            lab,
            &as_ids("65534:65534"),
            &read,
            "Operation not permitted",
        )?;
    }
    let create = "create /usr/bin/pwned 4755 </dev/null";
    denied(lab, &as_ids("0:0"), create, "Permission denied")?;
    denied(
        lab,
        "--guest 1 --ids 0:0",
        "read /home/ann/hers",
        "Operation not permitted",
    )?;
    let log = lab.sh("n1", "cat /var/log/omfs.log")?;
    ensure!(
        log.contains(&format!("process {} has other ids", job.pid)),
        "{log}"
    );
    job.migrate("home")?;
    denied(
        lab,
        &as_ids("4711:4711"),
        "read /home/ann/hers",
        "Operation not permitted",
    )
}

fn ids_of_roots_guest(lab: &Lab) -> Result<()> {
    lab.sh("n1", "echo private >/root/private; chmod 600 /root/private")?;
    denied(lab, "--ids 0:0", "read /root/private", "Permission denied")?;
    let job = Away::start(lab, "", BUSY)?;
    let claim = format!("--guest {} --ids 0:0", job.pid);
    gets(lab, &claim, "read /root/private", "private\n")
}

/// Root opened them, before the program became a user's: the guest has them as its deputy has.
fn kept_files(lab: &Lab) -> Result<()> {
    let prepare = format!(
        "{ANN} mkdir -p -m 700 /root/deep; echo first >/root/deep/in; chmod 600 /root/deep/in"
    );
    lab.sh("n1", &prepare)?;
    let copy = "until [ -e /tmp/kept.go ]; do :; done; cat; pwd";
    let run_as = format!("{AS_ANN} </root/deep/in");
    let script = format!(
        "{BEGUN} rm -f /tmp/kept.go; cd /root/deep
         setsid {run_as} sh -c '{BEGIN} {copy}' >/root/deep/out 2>&1 & job=$!
         begun $job; omfs migrate $job n2 && touch /tmp/kept.go && wait $job; cat /root/deep/out"
    );
    let said = lab.sh("n1", &script)?;
    ensure!(said == "first\n/root/deep\n", "{said}");
    Ok(())
}

fn groups(lab: &Lab) -> Result<()> {
    let prepare = format!(
        "{ANN} mkdir -p /srv/groups; cd /srv/groups
         for group in 42 4800 4711; do echo of-$group >$group; chgrp $group $group; chmod 640 $group; done
         mkdir -m 777 all"
    );
    lab.sh("n1", &prepare)?;
    for ids in [
        "65534:42",
        "65534:65534:42",
        "4711:42",
        "4711:4711:42",
        "5000:42",
    ] {
        let claim = format!("--ids {ids}");
        denied(lab, &claim, "read /srv/groups/42", "Permission denied")?;
    }
    let ann = "--ids 4711:4711";
    gets(lab, ann, "read /srv/groups/4800", "of-4800\n")?;
    gets(lab, ann, "read /srv/groups/4711", "of-4711\n")?;
    for (ids, reason) in [("4712:4711", "4711"), ("4712:4712:4800", "4800")] {
        let read = format!("read /srv/groups/{reason}");
        denied(lab, &format!("--ids {ids}"), &read, "Permission denied")?;
    }
    // newgrp(1) works, and nobody makes files of a group that is not his.
    gets(
        lab,
        "--ids 4711:4800",
        "create /srv/groups/all/a 644 </dev/null",
        "",
    )?;
    gets(
        lab,
        "--ids 4711:42",
        "create /srv/groups/all/b 644 </dev/null",
        "",
    )?;
    let made = lab.sh("n1", "stat -c %u:%g /srv/groups/all/a /srv/groups/all/b")?;
    ensure!(made == "4711:4800\n4711:4711\n", "{made}");
    denied(
        lab,
        ann,
        "chgrp /srv/groups/all/a 42",
        "Operation not permitted",
    )
}

fn system_ids(lab: &Lab) -> Result<()> {
    let prepare = "mkdir -p -m 777 /srv/ids; cd /srv/ids; for user in 0 1 999; do
        echo of-$user >$user; chown $user:$user $user; chmod 600 $user; done";
    lab.sh("n1", prepare)?;
    for user in [0, 1, 999] {
        let claim = format!("--ids {user}:{user}");
        denied(
            lab,
            &claim,
            &format!("read /srv/ids/{user}"),
            "Permission denied",
        )?;
        let create = format!("create /srv/ids/by-{user} 644 </dev/null");
        gets(lab, &claim, &create, "")?;
    }
    let made = lab.sh(
        "n1",
        "stat -c %u:%g /srv/ids/by-0 /srv/ids/by-1 /srv/ids/by-999",
    )?;
    ensure!(made == "65534:65534\n".repeat(3), "{made}");
    Ok(())
}

fn kernel_views(lab: &Lab) -> Result<()> {
    let start = format!("{ANN} setsid {AS_ANN} sleep 1000 >/dev/null 2>&1 & echo $!");
    let pid = lab.sh("n1", &start)?;
    let pid = pid.trim();
    for file in [
        format!("{pid}/mem"),
        format!("{pid}/environ"),
        "self/status".into(),
    ] {
        let read = format!("read /proc/{file}");
        denied(lab, "--ids 4711:4711", &read, "No such file or directory")?;
    }
    denied(
        lab,
        "--ids 0:0",
        "read /sys/kernel/notes",
        "No such file or directory",
    )?;
    for node in ["n2", "n3"] {
        let listed = lab.sh(
            node,
            "ls -A /mfs/n1/proc /mfs/n1/sys /mfs/n1/sys/fs/cgroup 2>&1 || true",
        )?;
        ensure!(
            listed.contains("/mfs/n1/proc:\n\n/mfs/n1/sys:\n"),
            "{listed}"
        );
        ensure!(!listed.contains("kernel"), "{listed}");
    }
    // Each node's own users have their own, by any way; and shared memory is no view of a kernel.
    lab.sh(
        "n1",
        "echo shared >/dev/shm/exported; chmod 644 /dev/shm/exported",
    )?;
    let own = lab.sh("n1", "cat /mfs/here/proc/self/comm /mfs/n1/proc/self/comm")?;
    ensure!(own == "cat\ncat\n", "{own}");
    gets(lab, "--ids 4711:4711", "read /dev/shm/exported", "shared\n")?;
    lab.sh("n1", &format!("kill -KILL {pid}")).map(drop)
}

fn entries() -> Result<()> {
    let lab = Lab::up(&with_omfs(3)?)?;
    let prepare = format!(
        "{ANN} mkdir -p /srv/team/sub /srv/secret/public; chmod 777 /srv/team /srv/secret/public
         for dir in team secret secret/public; do echo of-$dir >/srv/$dir/file; done"
    );
    lab.sh("n1", &prepare)?;
    let ann = "--ids 4711:4711";
    let read = |dir: &str| format!("read /srv/{dir}/file");
    gets(&lab, ann, &read("secret"), "of-secret\n")?;
    lab.sh(
        "n1",
        "omfs export add /srv/secret --nodes= && omfs export add /srv/secret/public",
    )?;
    denied(&lab, ann, &read("secret"), "No such file")?;
    gets(&lab, ann, &read("secret/public"), "of-secret/public\n")?;
    gets(&lab, ann, "list /srv/secret | sort", ".\n..\npublic\n")?;
    for moved in ["secret", "secret/public"] {
        let rename = format!("rename /srv/{moved} /srv/team/moved");
        denied(&lab, ann, &rename, "")?;
        lab.sh("n1", &format!("test -d /srv/{moved}"))?;
    }
    lab.sh("n1", "omfs export add /srv/team --nodes n3,2 --ro")?;
    gets(&lab, ann, &read("team"), "of-team\n")?;
    let create = "create /srv/team/new 644 </dev/null";
    denied(&lab, ann, create, "Read-only file system")?;
    lab.sh("n1", "omfs export add /srv/team --nodes n3 --ro")?;
    denied(&lab, ann, &read("team"), "No such file")?;
    ensure!(lab.sh("n3", "cat /mfs/n1/srv/team/file")? == "of-team\n");
    // Only one directory, with the way to it; the node's own users see what they always saw.
    lab.sh("n1", "omfs export add / --nodes=")?;
    gets(&lab, ann, "list / | sort", ".\n..\nsrv\n")?;
    gets(&lab, ann, &read("secret/public"), "of-secret/public\n")?;
    denied(&lab, ann, "read /etc/hostname", "No such file")?;
    let own = lab.sh("n1", "cat /mfs/n1/etc/hostname /mfs/here/srv/secret/file")?;
    ensure!(own == "n1\nof-secret\n", "{own}");
    // Its guests do, too.
    let job = Away::start(&lab, AS_ANN, BUSY)?;
    let guest = format!("--guest {} {ann}", job.pid);
    gets(&lab, &guest, &read("secret"), "of-secret\n")?;
    drop(job);
    let listed = lab.sh("n1", "omfs export list; omfs --json export list")?;
    ensure!(
        listed.contains("/srv/team") && listed.contains("\"ro\": true"),
        "{listed}"
    );
    let refused = lab.run("n1", &format!("{AS_ANN} omfs export remove /"))?;
    ensure!(refused.status.code() == Some(77), "{refused:?}");
    lab.sh("n1", "omfs export reset")?;
    gets(&lab, ann, &read("secret"), "of-secret\n")?;
    lab.down()
}
