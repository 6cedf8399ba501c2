//! Strangers, forged papers and full disks.

use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result, ensure};
use integration::lab::Lab;

use crate::harness::{Module, Need, until};

const CERTIFICATES: &[Need] = &[Need::Tool("python3"), Need::Tool("openssl")];

/// Adds the tests; the lab's nodes run omfs without mounts.
pub fn add(module: &mut Module) {
    module
        .test("expired_and_foreign_tokens", &[], tokens)
        .test("who_guesses_tokens_waits_and_nobody_else", &[], guessing)
        .test("expired_and_foreign_certificates", CERTIFICATES, papers)
        .test("a_full_state_disk", &[], full_disk);
}

/// A second configuration of a node: everything apart from the real one's and from other second ones.
fn second(lab: &Lab, node: &str, name: &str) -> Result<String> {
    static PORT: AtomicU16 = AtomicU16::new(7790);
    let control = PORT.fetch_add(2, Ordering::Relaxed);
    let data = control + 1;
    let path = format!("/srv/{name}.toml");
    let text = format!(
        "[node]\nname = \"{name}\"\nstate_dir = \"/srv/{name}/state\"\nrun_dir = \"/srv/{name}/run\"\n\
         [network]\ncontrol_port = {control}\ndata_port = {data}\n"
    );
    lab.put(node, &path, text.as_bytes())?;
    lab.sh(node, &format!("mkdir -p /srv/{name}/run"))?;
    Ok(format!("omfs --config {path}"))
}

fn refused(lab: &Lab, node: &str, command: &str, status: i32, reason: &str) -> Result<()> {
    let result = lab.run(node, command)?;
    let said = String::from_utf8_lossy(&result.stderr);
    ensure!(
        result.status.code() == Some(status) && said.contains(reason),
        "{command}: {:?}: {said}",
        result.status
    );
    ensure!(!said.contains("panicked"), "{said}");
    Ok(())
}

fn tokens(lab: &Lab) -> Result<()> {
    let omfs = second(lab, "n2", "newcomer")?;
    let join = |token: &str| {
        let token = token.trim();
        format!("echo {token} | {omfs} cluster join 10.77.0.1 --token -")
    };
    let token = lab.sh("n1", "omfs cluster token --valid 1s; sleep 2.1")?;
    refused(lab, "n2", &join(&token), 77, "expired")?;
    let foreign = second(lab, "n2", "foreign-authority")?;
    let token = lab.sh(
        "n2",
        &format!("{foreign} cluster init lab >/dev/null && {foreign} cluster token"),
    )?;
    refused(lab, "n2", &join(&token), 77, "another cluster")?;
    // What failed leaves nothing behind: a good token still works.
    let token = lab.sh("n1", "omfs cluster token")?;
    let with_id = |id| format!("{} --id {id}", join(&token));
    refused(lab, "n2", &with_id(3), 1, "node id 3")?;
    lab.sh("n2", &with_id(77))?;
    let third = second(lab, "n2", "second-newcomer")?;
    let again = join(&token).replace(&omfs, &third);
    refused(lab, "n2", &again, 77, "has been used")?;
    withdrawn(lab, &third)
}

/// The id of the token that is listed with so many uses.
fn token_id(lab: &Lab, uses: u64) -> Result<String> {
    let text = lab.sh("n1", "omfs cluster tokens --json")?;
    let tokens: Vec<serde_json::Value> = serde_json::from_str(&text)?;
    let mut ids = tokens
        .iter()
        .filter(|token| token["uses"].as_u64() == Some(uses));
    let id = ids.next().and_then(|token| token["id"].as_str());
    Ok(id.context("no such token")?.to_owned())
}

/// A token that is listed and withdrawn, without its secret being shown.
fn withdrawn(lab: &Lab, omfs: &str) -> Result<()> {
    let token = lab.sh("n1", "omfs cluster token --uses 5 --valid 10m")?;
    let listed = lab.sh("n1", "omfs cluster tokens")?;
    ensure!(!listed.contains(token.trim()), "{listed}");
    let id = token_id(lab, 5)?;
    lab.sh(
        "n1",
        &format!("omfs cluster token --withdraw {}", id.trim()),
    )?;
    let join = format!(
        "echo {} | {omfs} cluster join 10.77.0.1 --token -",
        token.trim()
    );
    refused(lab, "n2", &join, 77, "withdrawn")
}

/// Guessing tokens costs the one who guesses: others join meanwhile.
fn guessing(lab: &Lab) -> Result<()> {
    let guesser = second(lab, "n3", "guesser")?;
    let honest = second(lab, "n1", "honest")?;
    // A token that is known no longer is as wrong as one that never was.
    let token = lab.sh("n1", "omfs cluster token --uses 9")?;
    let id = token_id(lab, 9)?;
    lab.sh(
        "n1",
        &format!("omfs cluster token --withdraw {}", id.trim()),
    )?;
    let guesses = format!(
        "cd /tmp; echo {} >wrong; for i in $(seq 20); do \
         {guesser} cluster join 10.77.0.1 --token-file wrong & done 2>&1; wait",
        token.trim()
    );
    let said = lab.sh("n3", &guesses)?;
    ensure!(said.contains("withdrawn"), "{said}");
    ensure!(
        said.contains("too many wrong tokens from 10.77.0.3"),
        "{said}"
    );
    let token = lab.sh("n1", "omfs cluster token")?;
    let join = format!(
        "echo {} | {honest} cluster join 10.77.0.1 --token -",
        token.trim()
    );
    lab.sh("n1", &join).map(drop)
}

/// Says what becomes of a client with these papers, at the control port and the data port of n2. The
/// latter says nothing to whom it lets in: that is listened to for QUIET seconds.
const CLIENT: &str = "import socket,ssl,sys
quiet=float(sys.argv.pop(1))
for port,alpn in ((7780,['h2']),(7781,None)):
    c=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT); c.check_hostname=False; c.verify_mode=ssl.CERT_NONE
    if len(sys.argv)>1: c.load_cert_chain(sys.argv[1],sys.argv[2])
    if alpn: c.set_alpn_protocols(alpn)
    try:
        s=c.wrap_socket(socket.create_connection(('n2',port),timeout=60)); s.settimeout(60 if alpn else quiet)
        print('data' if s.recv(100) else 'closed')
    except ssl.SSLError as e: print(e.reason)
    except TimeoutError: print('silence')";

/// Whoever has the CA's key can make papers of any kind.
const FORGE: &str = "set -e; cd /srv; P=/var/lib/omfs/pki
printf 'subjectAltName=DNS:n1.lab.omfs,URI:omfs://lab/1\\n' >papers.ext
openssl ecparam -name prime256v1 -genkey -noout -out papers.key
openssl req -new -key papers.key -subj /CN=n1 -out papers.csr
sign() { openssl x509 -req -in papers.csr -CA $1/ca.pem -CAkey $1/ca-key.pem -set_serial 7 -days $2 \
         -extfile papers.ext -out $3 2>/dev/null; }
sign $P 10 good.pem; sign $P -1 expired.pem
omfs --config /srv/forger.toml cluster init lab >/dev/null
sign /srv/forger/state/pki 10 foreign.pem";

fn papers(lab: &Lab) -> Result<()> {
    second(lab, "n1", "forger")?;
    lab.put("n1", "/srv/client.py", CLIENT.as_bytes())?;
    lab.sh("n1", FORGE)?;
    let show = |papers: &str| lab.sh("n1", &format!("cd /srv; python3 client.py {papers}"));
    let good = show("2 good.pem papers.key")?;
    ensure!(good == "data\nsilence\n", "good papers: {good}");
    let expired = show("60 expired.pem papers.key")?;
    ensure!(
        expired.matches("CERTIFICATE_EXPIRED").count() == 2,
        "expired papers: {expired}"
    );
    let foreign = show("60 foreign.pem papers.key")?;
    let (control, data) = foreign.trim().split_once('\n').context("two lines")?;
    for said in [control, data] {
        ensure!(
            said.contains("UNKNOWN_CA")
                || said.contains("BAD_CERTIFICATE")
                || said.contains("DECRYPT_ERROR"),
            "foreign papers: {foreign}"
        );
    }
    let none = show("60")?;
    ensure!(
        none.starts_with("data\n") && none.contains("CERTIFICATE_REQUIRED"),
        "without papers only the service Join is there: {none}"
    );
    Ok(())
}

fn full_disk(lab: &Lab) -> Result<()> {
    let omfs = second(lab, "n3", "full")?;
    let small = "mkdir -p /srv/full/state && mount -t tmpfs -o size=4m small /srv/full/state";
    lab.sh("n3", small)?;
    let fill = "cat /dev/zero >/srv/full/state/rest 2>/dev/null";
    lab.run("n3", fill)?;
    refused(
        lab,
        "n3",
        &format!("{omfs} cluster init full"),
        1,
        "No space left",
    )?;
    lab.sh("n3", "rm /srv/full/state/rest")?;
    lab.sh("n3", &format!("{omfs} cluster init full"))?;
    lab.sh(
        "n3",
        &format!("setsid {omfs} daemon >/srv/full.log 2>&1 </dev/null & echo $! >/srv/full.pid"),
    )?;
    until(lab, "n3", &format!("{omfs} status"))?;
    lab.run("n3", fill)?;
    refused(lab, "n3", &format!("{omfs} stay"), 1, "No space left")?;
    refused(
        lab,
        "n3",
        &format!("{omfs} cluster token"),
        1,
        "No space left",
    )?;
    lab.sh("n3", &format!("{omfs} status && {omfs} nodes && {omfs} ps"))?;
    lab.sh("n3", "rm /srv/full/state/rest")?;
    lab.sh("n3", &format!("{omfs} nostay && {omfs} cluster token"))?;
    lab.sh(
        "n3",
        "! grep panicked /srv/full.log && kill $(cat /srv/full.pid)",
    )
    .map(drop)
}
