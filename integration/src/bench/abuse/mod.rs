//! What one attacker costs everybody else: attacks on availability beside an honest user.
//!
//! Every attack is bounded in time and number, stops by itself, and happens inside a lab's nodes.

pub(super) mod attacks;
pub(super) mod honest;

use std::time::Duration;

use anyhow::{Result, ensure};
use serde::Serialize;

use super::probe::in_node;
use crate::lab::options::LabOptions;
use crate::lab::{Lab, binaries};

/// How long an honest user is measured, in seconds.
const HONEST_S: u64 = 5;
/// How long an attack lasts, in seconds: it begins before and ends after the honest user.
const ATTACK_S: u64 = 8;
/// The attack is under way after this time.
const ONSET: Duration = Duration::from_millis(1500);
/// Ports that supervisors use, so that strangers find them: the last table of a lab's configuration
/// is `[network]`.
const CONFIG: &str = "guest_ports = \"7800-7807\"\n";

/// One attack.
struct Case {
    name: &'static str,
    /// Where the attacker is, and what he does there.
    attacker: &'static str,
    attack: [&'static str; 2],
    /// Where the honest user is, and what he does there.
    user: &'static str,
    honest: &'static [[&'static str; 2]],
}

const FILES: [&str; 2] = ["files", "/mfs/n2/tmp"];
const STATUS: [&str; 2] = ["status", ""];

const CASES: [Case; 9] = [
    Case {
        name: "admin socket, connections",
        attacker: "n1",
        attack: ["admin-connections", ""],
        user: "n1",
        honest: &[FILES, STATUS],
    },
    Case {
        name: "admin socket, loops of ps -a",
        attacker: "n1",
        attack: ["ps", ""],
        user: "n1",
        honest: &[FILES, STATUS],
    },
    Case {
        name: "control port, TLS without certificate",
        attacker: "n3",
        attack: ["tls-connections", "n1"],
        user: "n1",
        honest: &[FILES, STATUS],
    },
    Case {
        name: "data port, silent connections",
        attacker: "n3",
        attack: ["silent-connections", "n2"],
        user: "n1",
        honest: &[FILES, ["connect", "2"]],
    },
    Case {
        name: "prepared guests that never come",
        attacker: "n3",
        attack: ["prepare", "2"],
        user: "n1",
        honest: &[FILES, ["move", "n2"]],
    },
    Case {
        name: "supervisors' ports, half a handshake",
        attacker: "n2",
        attack: ["half-handshakes", "n2"],
        user: "n1",
        honest: &[["move", "n2"]],
    },
    Case {
        name: "journal, open and close",
        attacker: "n1",
        attack: ["open-close", "/mfs/n2/etc/hostname"],
        user: "n1",
        honest: &[FILES, STATUS],
    },
    Case {
        name: "moves of huge processes",
        attacker: "n1",
        attack: ["huge-moves", "n2"],
        user: "n1",
        honest: &[FILES, STATUS],
    },
    Case {
        name: "denied unlinks",
        attacker: "n3",
        attack: ["unlink", "/mfs/n2/usr"],
        user: "n1",
        honest: &[FILES, ["files", "/mfs/here/tmp"]],
    },
];

/// What an attack cost an honest user at one thing that he did.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// The attack.
    pub attack: &'static str,
    /// What the attacker did, per second.
    pub per_s: f64,
    /// What the honest user did.
    pub honest: String,
    /// His 99th percentile before, in milliseconds,
    pub before_ms: f64,
    /// and during the attack.
    pub during_ms: f64,
    /// `during_ms` ÷ `before_ms`.
    pub ratio: f64,
    /// Nodes that were declared dead meanwhile, though they lived.
    pub false_deaths: u32,
    /// Why it could not be measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Measures all attacks, or those whose names contain `only`, in a lab of three nodes.
///
/// # Errors
/// The lab does not work. What cannot be measured is said in its figure.
pub fn run(only: &str, say: &dyn Fn(&str)) -> Result<Vec<Figure>> {
    let mut options = LabOptions::new(3);
    options.omfs_binary = Some(binaries::omfs()?);
    options.config += CONFIG;
    let lab = Lab::up(&options)?;
    let mut figures = Vec::new();
    for case in CASES.iter().filter(|case| case.name.contains(only)) {
        for honest in case.honest {
            say(&format!("{}: {}", case.name, honest.join(" ")));
            figures.push(figure(&lab, case, *honest));
        }
    }
    ensure!(!figures.is_empty(), "no attack's name contains {only:?}");
    lab.down()?;
    Ok(figures)
}

fn figure(lab: &Lab, case: &Case, honest: [&str; 2]) -> Figure {
    let measured = measure(lab, case, honest);
    let error = measured.as_ref().err().map(|error| format!("{error:#}"));
    let Measured {
        per_s,
        before_ms,
        during_ms,
        false_deaths,
    } = measured.unwrap_or_default();
    let rounded = |value: f64| (value * 100.0).round() / 100.0;
    Figure {
        attack: case.name,
        per_s: rounded(per_s),
        honest: honest.join(" ").trim().to_owned(),
        before_ms: rounded(before_ms),
        during_ms: rounded(during_ms),
        ratio: rounded(during_ms / before_ms.max(0.001)),
        false_deaths,
        error,
    }
}

#[derive(Default)]
struct Measured {
    per_s: f64,
    before_ms: f64,
    during_ms: f64,
    false_deaths: u32,
}

fn measure(lab: &Lab, case: &Case, [kind, target]: [&str; 2]) -> Result<Measured> {
    let honest = || {
        let seconds = HONEST_S.to_string();
        in_node(lab, case.user, ["honest", kind, target, &seconds])
    };
    let before_ms = honest()?;
    let deaths = deaths(lab)?;
    let (per_s, during_ms) = std::thread::scope(|scope| {
        let attack = scope.spawn(|| {
            let [attack, target] = case.attack;
            let seconds = ATTACK_S.to_string();
            in_node(lab, case.attacker, ["attack", attack, target, &seconds])
        });
        std::thread::sleep(ONSET);
        let during = honest();
        let per_s = attack.join().unwrap_or_else(|_| anyhow::bail!("panicked"));
        anyhow::Ok((per_s?, during?))
    })?;
    Ok(Measured {
        per_s,
        before_ms,
        during_ms,
        false_deaths: self::deaths(lab)?.saturating_sub(deaths),
    })
}

/// How often some node has declared another one dead.
fn deaths(lab: &Lab) -> Result<u32> {
    let count = |node: &str| -> Result<u32> {
        let script = "grep -c 'node .* is dead' /var/log/omfs.log || true";
        Ok(lab.sh(node, script)?.trim().parse()?)
    };
    Ok(count("n1")? + count("n2")? + count("n3")?)
}

/// A table for people.
#[must_use]
pub fn table(figures: &[Figure]) -> String {
    let mut text = format!(
        "{:<38} {:>9}  {:<20} {:>9} {:>9} {:>7} {:>7}\n",
        "", "per s", "honest user, p99", "before ms", "during ms", "ratio", "deaths"
    );
    for one in figures {
        text += &match &one.error {
            Some(error) => format!("{:<38} {:<20} {error}\n", one.attack, one.honest),
            None => format!(
                "{:<38} {:>9.0}  {:<20} {:>9.2} {:>9.2} {:>7.2} {:>7}\n",
                one.attack,
                one.per_s,
                one.honest,
                one.before_ms,
                one.during_ms,
                one.ratio,
                one.false_deaths
            ),
        };
    }
    text
}
