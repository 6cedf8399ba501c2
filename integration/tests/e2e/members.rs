//! Who is in the cluster, and who says so: names, members that lie.

use anyhow::{Context, Result, ensure};
use integration::lab::{Lab, binaries};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::harness::{Module, until, with_omfs};
use crate::restart::{CRASH, START};

pub fn tests() -> Vec<Trial> {
    let mut module = Module::one_at_a_time("members", &[], || {
        let mut options = with_omfs(3)?;
        options.mount = false;
        Ok(options)
    });
    module
        .test("a_member_speaks_for_itself_only", &[], forged)
        .test("reserved_names_are_refused", &[], reserved)
        .alone(
            "a_reinstalled_machine_comes_back_under_its_name",
            &[],
            reinstalled,
        )
        .alone("a_removed_node_is_refused_by_all", &[], removed);
    module.finish()
}

/// Name and state of each node, as `node` sees them.
fn listed(lab: &Lab, node: &str) -> Result<Vec<(String, String)>> {
    let text = lab.sh(node, "omfs nodes --json")?;
    let nodes: Vec<Value> = serde_json::from_str(&text)?;
    let text = |one: &Value, key: &str| Some(one.get(key)?.as_str()?.to_owned());
    let pairs = nodes
        .iter()
        .map(|one| Some((text(one, "name")?, text(one, "state")?)));
    pairs.collect::<Option<_>>().context("no name or no state")
}

/// n2 tells n3 that it is n1, that n1 is dead for ever, and of a node that is not there.
fn forged(lab: &Lab) -> Result<()> {
    until(lab, "n3", "[ $(omfs nodes | grep -c alive) = 2 ]")?;
    // A node does not see every directory of this machine.
    lab.put("n2", "/srv/lab", &std::fs::read(binaries::lab()?)?)?;
    let lie = "chmod 755 /srv/lab; /srv/lab forge-gossip 3 10.77.0.3:7780 1 n1";
    let mut seen = Vec::new();
    std::thread::scope(|scope| {
        let liar = scope.spawn(|| lab.sh("n2", lie));
        while !liar.is_finished() {
            seen.push(listed(lab, "n3")?);
        }
        liar.join().map_err(|_| anyhow::anyhow!("panicked"))?
    })?;
    seen.push(listed(lab, "n3")?);
    for nodes in seen {
        let names: Vec<_> = nodes.iter().map(|(name, _)| name.as_str()).collect();
        ensure!(names == ["n1", "n2", "n3"], "names: {names:?}");
        ensure!(nodes[0].1 != "dead", "n1 was killed by words: {nodes:?}");
    }
    // n2's own daemon has been displaced by the liar, under the same certificate.
    lab.sh("n2", &format!("cd /; {CRASH}; sleep 1; {START}"))?;
    until(lab, "n3", "[ $(omfs nodes | grep -c alive) = 2 ]")
}

fn reserved(lab: &Lab) -> Result<()> {
    let token = lab.sh("n1", "omfs cluster token")?;
    for name in [
        "here", "Home", "magic", "lastexec", "selected", "17", ".x", "mfs",
    ] {
        let join = format!(
            "printf '[node]\\nname = \"{name}\"\\nstate_dir = \"/srv/r\"\\n[network]\\ncontrol_port = 7790\\n' >/srv/r.toml; \
             echo {} | omfs --config /srv/r.toml cluster join 10.77.0.1 --token -",
            token.trim()
        );
        let result = lab.run("n2", &join)?;
        let said = String::from_utf8_lossy(&result.stderr).into_owned();
        ensure!(
            !result.status.success() && said.contains("no node name"),
            "{name}: {:?} {said}",
            result.status
        );
    }
    Ok(())
}

/// All that a node knew is lost; after its removal it joins under its old name and address.
fn reinstalled() -> Result<()> {
    let lab = Lab::up(&with_omfs(3)?)?;
    until(&lab, "n3", "[ $(omfs nodes | grep -c alive) = 2 ]")?;
    lab.sh("n3", "cat /mfs/n2/etc/hostname")?;
    let wipe =
        "cd /; pkill -KILL -f '^omfs '; sleep 1; umount -l /mfs; rm -rf /var/lib/omfs /run/omfs";
    lab.sh("n2", wipe)?;
    let join = |lab: &Lab| -> Result<std::process::Output> {
        let token = lab.sh("n1", "omfs cluster token")?;
        let join = format!(
            "echo {} | omfs cluster join 10.77.0.1 --token -",
            token.trim()
        );
        lab.run("n2", &join)
    };
    let refused = join(&lab)?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(said.contains("omfs cluster remove n2"), "{said}");
    lab.sh("n1", "omfs cluster remove n2")?;
    let joined = join(&lab)?;
    ensure!(joined.status.success(), "{joined:?}");
    lab.sh("n2", START)?;
    for node in ["n1", "n3"] {
        until(&lab, node, "[ $(omfs nodes | grep -c alive) = 2 ]")?;
        let nodes: Vec<_> = listed(&lab, node)?
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        ensure!(nodes.len() == 3, "{node}: {nodes:?}");
        ensure!(
            nodes.iter().filter(|name| *name == "n2").count() == 1,
            "{nodes:?}"
        );
        until(&lab, node, "[ $(cat /mfs/n2/etc/hostname) = n2 ]")?;
    }
    lab.down()
}

/// A removed node gets nothing from anybody, not even from one that was away when it was removed.
fn removed() -> Result<()> {
    let mut options = with_omfs(3)?;
    options.mount = false;
    let lab = Lab::up(&options)?;
    until(&lab, "n3", "[ $(omfs nodes | grep -c alive) = 2 ]")?;
    lab.sh("n3", &format!("cd /; {CRASH}"))?;
    lab.sh("n1", "omfs cluster remove 2")?;
    lab.sh("n3", START)?;
    for node in ["n1", "n3"] {
        until(&lab, node, "omfs status")?;
        let gone = "! omfs nodes | grep -w n2";
        until(&lab, node, gone)?;
        lab.sh(node, &format!("sleep 3; {gone}"))?;
    }
    // It still holds its certificate, and sees the others vanish.
    until(&lab, "n2", "[ $(omfs nodes | grep -c dead) = 2 ]")?;
    lab.down()
}
