//! The command line and the cluster behind it.

use anyhow::{Context, Result, ensure};
use integration::lab::{Lab, wait};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::harness::{Module, Need, SOON, user_sh, with_omfs};

const PYTHON: &[Need] = &[Need::Tool("python3")];

pub fn tests() -> Vec<Trial> {
    let mut module = Module::new("cli", &[], || {
        let mut options = with_omfs(3)?;
        // What is tested here does not need files.
        options.mount = false;
        Ok(options)
    });
    module
        .test("nodes_are_listed_everywhere", &[], nodes)
        .test("ps_is_a_json_array", &[], ps)
        .test("status_names_the_cluster", &[], status)
        .test("mistakes_are_explained", &[], mistakes)
        .test("other_peoples_processes_are_left_alone", &[], other_people)
        .test("the_machine_is_checked", &[], check)
        .test("wrong_configuration_is_refused_by_name", &[], configuration)
        .test("wrong_tokens_get_nothing", &[], tokens)
        .test("garbage_on_every_port", PYTHON, garbage)
        .alone("a_dead_node_is_noticed_and_comes_back", &[], membership);
    crate::mounting::add(&mut module);
    crate::hostile::add(&mut module);
    crate::commands::add(&mut module);
    module.finish()
}

fn json(lab: &Lab, node: &str, command: &str) -> Result<Value> {
    let text = lab.sh(node, command)?;
    serde_json::from_str(&text).with_context(|| format!("{command}: {text}"))
}

/// The names of all nodes that `node` lists in one of these states.
fn listed(lab: &Lab, node: &str, states: &[&str]) -> Result<Vec<String>> {
    let nodes = json(lab, node, "omfs nodes --json")?;
    let nodes = nodes.as_array().context("no array")?;
    let there = nodes.iter().filter(|one| {
        one.get("state")
            .and_then(Value::as_str)
            .is_some_and(|state| states.contains(&state))
    });
    let mut names: Vec<String> = there
        .filter_map(|one| Some(one.get("name")?.as_str()?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

fn nodes(lab: &Lab) -> Result<()> {
    for node in ["n1", "n2", "n3"] {
        let all = || {
            listed(lab, node, &["self", "alive"])
                .ok()
                .filter(|names| names.len() == 3)
        };
        let names = wait::until(SOON, all).context("not all are alive")?;
        ensure!(names == ["n1", "n2", "n3"], "{names:?}");
    }
    ensure!(
        lab.sh("n2", "omfs nodes")?.contains("10.77.0.3"),
        "a table for people"
    );
    Ok(())
}

fn ps(lab: &Lab) -> Result<()> {
    let start = "omfs run sleep 600 >/dev/null 2>&1 & echo $!";
    let pid: i64 = lab.sh("n1", start)?.trim().parse()?;
    let listed = || {
        let jobs = json(lab, "n1", "omfs ps -a --json").ok()?;
        let jobs = jobs.as_array()?.clone();
        jobs.iter().any(|job| job["pid"] == pid).then_some(jobs)
    };
    let jobs = wait::until(SOON, listed).context("it is not listed")?;
    lab.sh("n1", &format!("kill {pid}"))?;
    for key in [
        "pid", "command", "home", "where", "state", "moves", "cantmove",
    ] {
        ensure!(
            jobs.iter().all(|job| job.get(key).is_some()),
            "a job without {key}"
        );
    }
    Ok(())
}

fn status(lab: &Lab) -> Result<()> {
    let status = json(lab, "n1", "omfs status --json")?;
    ensure!(
        status.get("cluster").and_then(Value::as_str) == Some("lab"),
        "{status}"
    );
    Ok(())
}

/// Runs a command that must fail, and gives its exit status and what it said.
fn failure(lab: &Lab, command: &str) -> Result<(i32, String)> {
    let result = lab.run("n1", command)?;
    let said = String::from_utf8_lossy(&result.stderr).into_owned();
    ensure!(!result.status.success(), "{command} succeeded");
    ensure!(!said.contains("panicked"), "{command}: {said}");
    Ok((result.status.code().context("killed")?, said))
}

fn mistakes(lab: &Lab) -> Result<()> {
    let (_, said) = failure(lab, "omfs migrate 999999 n2")?;
    ensure!(said.contains("999999"), "{said}");
    let (_, said) = failure(
        lab,
        "sleep 99 >/dev/null 2>&1 & omfs migrate $! no-such-node",
    )?;
    ensure!(said.contains("no-such-node"), "{said}");
    let (_, said) = failure(lab, "omfs migrate 1 n2")?;
    ensure!(!said.is_empty());
    let (status, said) = failure(lab, "omfs fly")?;
    ensure!(status == 2 && said.contains("fly"), "{said}");
    let (_, said) = failure(lab, "omfs cluster init again")?;
    ensure!(!said.is_empty());
    Ok(())
}

fn other_people(lab: &Lab) -> Result<()> {
    lab.sh(
        "n1",
        "sleep 600 >/dev/null 2>&1 & echo $! >/tmp/roots-sleep; chmod 644 /tmp/roots-sleep",
    )?;
    let script = "omfs migrate $(cat /tmp/roots-sleep) n2";
    let result = user_sh(lab, "nobody", "n1", script)?;
    ensure!(result.status.code() == Some(77), "{result:?}");
    lab.sh("n1", "kill $(cat /tmp/roots-sleep)").map(drop)
}

fn check(lab: &Lab) -> Result<()> {
    lab.sh("n1", "omfs check").map(drop)
}

fn configuration(lab: &Lab) -> Result<()> {
    lab.sh(
        "n1",
        "printf '[network]\\ncontrol_prot = 1\\n' >/tmp/wrong.toml",
    )?;
    let (status, said) = failure(lab, "omfs --config /tmp/wrong.toml status")?;
    ensure!(
        status == 2 && said.contains("control_prot"),
        "{status} {said}"
    );
    Ok(())
}

fn tokens(lab: &Lab) -> Result<()> {
    let elsewhere = "cd /tmp && printf '[node]\\nname = \"intruder\"\\nstate_dir = \"/tmp/i\"\\n\
                     run_dir = \"/tmp/ir\"\\n' >intruder.toml && \
                     omfs --config /tmp/intruder.toml cluster join 10.77.0.1";
    let (_, said) = failure(lab, &format!("{elsewhere} --token nonsense"))?;
    ensure!(said.contains("token"), "{said}");
    // A good token with one character changed.
    let script = format!(
        "omfs cluster token | sed 's/^\\(.*\\)\\(.\\)\\(....\\)$/\\1@\\3/; s/@/x/' >/tmp/changed-token; \
         {elsewhere} --token-file /tmp/changed-token"
    );
    let (_, said) = failure(lab, &script)?;
    ensure!(!said.is_empty());
    ensure!(
        !listed(lab, "n1", &["self", "alive", "dead", "suspect"])?.contains(&"intruder".into())
    );
    Ok(())
}

const GARBAGE: &str = "import socket,random
random.seed(7)
for port in (7780,7781):
    for size in (1,3,16,100,5000,200000):
        for start in (b'',b'\\x16\\x03\\x01',b'GET / HTTP/1.1\\r\\n',b'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n'):
            s=socket.create_connection(('n2',port),timeout=5)
            try: s.sendall(start+random.randbytes(size)); s.settimeout(0.05); s.recv(100)
            except OSError: pass
            s.close()";

fn garbage(lab: &Lab) -> Result<()> {
    lab.put("n3", "/tmp/garbage.py", GARBAGE.as_bytes())?;
    lab.sh("n3", "python3 /tmp/garbage.py")?;
    lab.sh("n2", "omfs status")?;
    ensure!(
        !lab.sh("n2", "cat /var/log/omfs.log")?.contains("panicked"),
        "a panic on n2"
    );
    Ok(())
}

fn membership() -> Result<()> {
    let mut options = with_omfs(3)?;
    options.mount = false;
    let lab = Lab::up(&options)?;
    let alive = |count: usize| {
        move |lab: &Lab| {
            let names = listed(lab, "n1", &["self", "alive"]).ok()?;
            (names.len() == count).then_some(())
        }
    };
    let until = |count| {
        let condition = alive(count);
        wait::until(SOON, || condition(&lab))
            .with_context(|| format!("n1 does not see {count} nodes alive"))
    };
    until(3)?;
    lab.sh("n3", "omfs lstay && omfs block && omfs unblock")?;
    lab.kill("n3")?;
    until(2)?;
    lab.start("n3")?;
    until(3)?;
    let status = json(&lab, "n3", "omfs status --json")?;
    let policy = &status["policy"];
    ensure!(
        policy["lstay"] == true && policy["block"] == false,
        "a power cut changed what is allowed: {policy}"
    );
    lab.cut("n2")?;
    until(2)?;
    lab.heal("n2")?;
    until(3)?;
    lab.down()
}
