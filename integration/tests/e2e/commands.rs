//! Every command of `omfs`: what it prints is JSON when that is asked for, and its exit status is
//! the documented one, with words that help.

use anyhow::{Context, Result, ensure};
use integration::lab::Lab;
use serde_json::Value;

use crate::harness::{Module, Need, user_sh};

const PYTHON: &[Need] = &[Need::Tool("python3")];

/// Adds the tests; the lab's nodes run omfs without mounts.
pub fn add(module: &mut Module) {
    module
        .test("everything_that_prints_knows_json", &[], json)
        .test("exit_statuses_are_the_documented_ones", &[], statuses)
        .test("what_a_machine_lacks_is_named", &[], check)
        .test("garbage_on_the_daemons_sockets", PYTHON, garbage);
}

/// Commands that print, and a key of what they print (of its first element, if it is an array).
const PRINTING: &[(&str, &str)] = &[
    ("nodes", "state"),
    ("ps", ""),
    ("ps -a", "cantmove"),
    ("top", "processes"),
    ("status", "policy"),
    ("check", "remedy"),
    ("block", "policy"),
    ("unblock", "policy"),
    ("stay", "policy"),
    ("nostay", "policy"),
    ("lstay", "policy"),
    ("nolstay", "policy"),
    ("quiet", "policy"),
    ("noquiet", "policy"),
    ("bring", ""),
    ("nolstay", "policy"),
    ("expel", ""),
    ("unblock", "policy"),
    ("lock $SLEEP", "locked"),
    ("unlock $SLEEP", "locked"),
    ("migrate $SLEEP home", "freeze_us"),
    ("cluster token", "token"),
    ("cluster tokens", "expires_unix_s"),
    ("--config /srv/json.toml cluster init json", "cluster"),
    (
        "--config /srv/json2.toml cluster join 10.77.0.1 --token-file /srv/token",
        "id",
    ),
];

fn json(lab: &Lab) -> Result<()> {
    for name in ["json", "json2"] {
        let text = format!(
            "[node]\nname = \"{name}\"\nstate_dir = \"/srv/{name}\"\nrun_dir = \"/srv/{name}\"\n\
             [network]\ncontrol_port = 7792\ndata_port = 7793\n"
        );
        lab.put("n1", &format!("/srv/{name}.toml"), text.as_bytes())?;
    }
    lab.sh("n1", "omfs cluster token >/srv/token")?;
    let sleep = lab.sh(
        "n1",
        "setsid sleep 600 >/dev/null 2>&1 </dev/null & echo $!",
    )?;
    for (command, key) in PRINTING {
        let command = command.replace("$SLEEP", sleep.trim());
        // Before the command and after it.
        for line in [
            format!("omfs {command} --json"),
            format!("omfs --json {command}"),
        ] {
            if command.contains("cluster") && line.starts_with("omfs --json") {
                continue; // joins once only
            }
            let text = lab.sh("n1", &line)?;
            let parsed: Value =
                serde_json::from_str(&text).with_context(|| format!("{line}: {text}"))?;
            let first = parsed.as_array().map_or(Some(&parsed), |list| list.first());
            let has_key = first.is_some_and(|first| first.get(key).is_some());
            ensure!(key.is_empty() || has_key, "{line}: no {key} in {text}");
        }
    }
    lab.sh("n1", &format!("kill {}", sleep.trim())).map(drop)
}

/// Command lines that must fail: the status, and words of what is said.
const FAILURES: &[(&str, i32, &[&str])] = &[
    ("omfs", 2, &["Usage"]),
    ("omfs fly", 2, &["fly"]),
    ("omfs nodes --frobnicate", 2, &["--frobnicate"]),
    ("omfs migrate", 2, &["PID"]),
    ("omfs migrate x n2", 2, &["'x'"]),
    ("omfs migrate 0 n2", 2, &["0"]),
    ("omfs migrate 99999999999 n2", 2, &["99999999999"]),
    (
        "omfs migrate 4000000 n2",
        1,
        &["no process 4000000", "hint: ", "omfs ps -a"],
    ),
    (
        "sleep 99 >/dev/null 2>&1 & omfs migrate $! nowhere",
        1,
        &["no node nowhere", "hint: `omfs nodes`"],
    ),
    (
        "sleep 99 >/dev/null 2>&1 & omfs migrate $! 999",
        1,
        &["no node 999"],
    ),
    (
        "omfs migrate 1 n2",
        75,
        &["cannot leave", "hint: it runs on"],
    ),
    (
        "sleep 9 & omfs migrate $! n2",
        75,
        &["omfs is not mounted on /mfs there", "hint: it runs on"],
    ),
    ("omfs migrate $$ /mfs", 1, &["no node /mfs"]),
    ("omfs lock 4000000", 1, &["no process 4000000", "hint: "]),
    (
        "omfs --config /no/such.toml nodes",
        2,
        &["/no/such.toml", "hint: "],
    ),
    (
        "printf '[node]\\nname = \"x\"\\nrun_dir = \"/srv/none\"\\nstate_dir = \"/srv/none\"\\n' >/srv/none.toml; \
         omfs --config /srv/none.toml nodes",
        69,
        &["/srv/none/admin.sock", "hint: start it"],
    ),
    (
        "omfs --config /srv/none.toml run --on n2 true",
        69,
        &["admin.sock", "hint: start it"],
    ),
    ("omfs daemon", 1, &["another omfs daemon", "hint: "]),
    ("omfs top </dev/null", 2, &["terminal", "hint: "]),
    (
        "omfs manpages /etc/passwd/man1",
        1,
        &["/etc/passwd/man1: Not a directory"],
    ),
    ("omfs cluster init lab", 1, &["already belongs", "hint: "]),
    ("omfs cluster init 'No Name'", 2, &["No Name"]),
    ("omfs cluster join n1 --token x", 2, &["argument", "hint: "]),
    (
        "omfs cluster join n1 </dev/null",
        2,
        &["no token", "hint: "],
    ),
    (
        "echo x | omfs cluster join n1 --token -",
        2,
        &["join token", "hint: "],
    ),
    ("omfs cluster token --valid 1", 2, &["no time"]),
    ("omfs cluster token --withdraw 1", 1, &["no join token"]),
    (
        "omfs cluster token | omfs --config /srv/none.toml cluster join no.such.host --token -",
        69,
        &["no.such.host", "hint: "],
    ),
    (
        "omfs cluster token | omfs --config /srv/none.toml cluster join 10.77.0.2:9 --token -",
        69,
        &["10.77.0.2:9", "hint: "],
    ),
    (
        "omfs cluster token | omfs --config /srv/none.toml cluster join n2 --token -",
        1,
        &["error: "],
    ),
    ("omfs run", 2, &["COMMAND"]),
    ("omfs run --home --stay true", 2, &["cannot be used with"]),
    ("omfs run --on nowhere true", 1, &["nowhere", "hint: "]),
    ("omfs run /no/such/program", 127, &["/no/such/program"]),
    ("omfs run /etc/passwd", 126, &["/etc/passwd"]),
    ("SHELL=/no/such/shell omfs shell", 127, &["/no/such/shell"]),
    ("omfs run sh -c 'exit 9'", 9, &[]),
    ("omfs mount-helper", 1, &["omfs"]),
];

/// What only root may do.
const FORBIDDEN: &[&str] = &[
    "omfs migrate $(cat /srv/roots-sleep) n2",
    "omfs migrate 1 n2",
    "omfs lock $(cat /srv/roots-sleep)",
    "omfs unlock $(cat /srv/roots-sleep)",
    "omfs bring",
    "omfs expel",
    "omfs block",
    "omfs unblock",
    "omfs stay",
    "omfs nostay",
    "omfs lstay",
    "omfs nolstay",
    "omfs quiet",
    "omfs noquiet",
    "omfs cluster token",
    "omfs cluster tokens",
    "omfs cluster token --withdraw 1",
    "omfs daemon",
];

fn statuses(lab: &Lab) -> Result<()> {
    for (command, status, words) in FAILURES {
        let result = lab.run("n1", command)?;
        let said = String::from_utf8_lossy(&result.stderr);
        ensure!(
            result.status.code() == Some(*status),
            "{command}: {:?}: {said}",
            result.status
        );
        for word in *words {
            ensure!(said.contains(word), "{command}: no {word:?} in: {said}");
        }
        ensure!(!said.contains("panicked"), "{command}: {said}");
    }
    lab.sh(
        "n1",
        "setsid sleep 600 >/dev/null 2>&1 </dev/null & echo $! >/srv/roots-sleep",
    )?;
    for command in FORBIDDEN {
        let result = user_sh(lab, "nobody", "n1", command)?;
        let said = String::from_utf8_lossy(&result.stderr);
        ensure!(
            result.status.code() == Some(77) && said.contains("hint: "),
            "{command} by nobody: {:?}: {said}",
            result.status
        );
    }
    for command in ["omfs nodes", "omfs ps -a", "omfs status", "omfs top --json"] {
        let result = user_sh(lab, "nobody", "n1", command)?;
        ensure!(result.status.success(), "{command} by nobody: {result:?}");
    }
    let shell = user_sh(
        lab,
        "nobody",
        "n1",
        "unset SHELL; omfs shell -c 'echo of $0'",
    )?;
    let login = lab.sh("n1", "getent passwd nobody | cut -d: -f7")?;
    ensure!(!shell.stdout.starts_with(b"of") == login.contains("nologin"));
    let status = lab.sh("n1", "omfs status")?;
    ensure!(status.contains("processes come and go"), "{status}");
    lab.sh("n1", "kill $(cat /srv/roots-sleep)").map(drop)
}

/// What is taken from a namespace of its own, and the line that `omfs check` says then.
const TAKEN: &[(&str, &str)] = &[
    (
        "mount --bind /dev/null /dev/fuse",
        "MISSING  /dev/fuse: it is something else",
    ),
    (
        "mount -t tmpfs none /dev",
        "MISSING  /dev/fuse: No such file",
    ),
    (
        "grep -o \" [^ ]* cgroup2* \" /proc/mounts | cut -d\" \" -f2 | tac | xargs -n1 umount -l",
        "MISSING  cgroup CPU controller: ",
    ),
    (
        "umount -l /proc",
        "MISSING  kernel 6.7: the kernel's version cannot be read",
    ),
];

fn check(lab: &Lab) -> Result<()> {
    lab.sh("n1", "omfs check")?;
    for (take, line) in TAKEN {
        let script = format!("unshare -m sh -c '({take}) 2>&1; exec omfs check'");
        let result = lab.run("n1", &script)?;
        let said = String::from_utf8_lossy(&result.stdout);
        ensure!(
            result.status.code() == Some(1) && said.lines().any(|one| one.starts_with(line)),
            "after {take}: {:?}: {said}",
            result.status
        );
    }
    let result = user_sh(lab, "nobody", "n1", "omfs check; echo $?")?;
    let said = String::from_utf8_lossy(&result.stdout);
    ensure!(
        said.starts_with("MISSING  root: you are not root") && said.ends_with("\n1\n"),
        "{said}"
    );
    Ok(())
}

/// Garbage, silence, and more connections than anybody needs, while a user asks something.
const GARBAGE: &str = "import socket,random,subprocess
random.seed(11)
kept=[]
for path in ('/run/omfs/admin.sock','/run/omfs/mount.sock'):
    for size in (1,3,17,100,9000,300000):
        for start in (b'',b'\\0',b'GET / HTTP/1.1\\r\\n\\r\\n',b'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n'):
            s=socket.socket(socket.AF_UNIX); s.settimeout(0.2); s.connect(path)
            try: s.sendall(start+random.randbytes(size)); s.recv(100)
            except OSError: pass
            s.close()
    for i in range(100):
        s=socket.socket(socket.AF_UNIX); s.settimeout(1)
        try: s.connect(path)
        except OSError: continue
        kept.append(s)
print(subprocess.run(['omfs','status'],timeout=120,capture_output=True,text=True))";

fn garbage(lab: &Lab) -> Result<()> {
    lab.put("n2", "/tmp/sockets.py", GARBAGE.as_bytes())?;
    let said = lab.sh("n2", "python3 /tmp/sockets.py")?;
    ensure!(said.contains("returncode=0"), "{said}");
    lab.sh("n2", "omfs status && ! grep panicked /var/log/omfs.log")
        .map(drop)
}
