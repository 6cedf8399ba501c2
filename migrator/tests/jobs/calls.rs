//! System calls of all sorts answer away as they do at home.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use migrator::control::{Command as Order, RunState};

use super::lab::{Job, Lab};

const PROGRAM: &str = include_str!("calls.py");

/// The directory of home's is the test's own.
#[test]
fn system_calls_answer_as_at_home() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("calls");
    let mut command = Command::new("python3");
    command
        .args(["-c", PROGRAM])
        .arg(&place)
        .args(["-", "away"]);
    if let Ok(only) = std::env::var("OMFS_CALLS") {
        command.arg("--").args(only.split(' '));
    }
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut program = Job(piped.spawn().unwrap());
    let mut to = program.0.stdin.take().unwrap();
    let from = program.0.stdout.take().unwrap();
    let (mut lab, mut said) = (None, String::new());
    for line in BufReader::new(from).lines().map(Result::unwrap) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["move", pid, place] => {
                let lab = lab.get_or_insert_with(|| Lab::new(pid.parse().unwrap()));
                move_to(lab, place);
                to.write_all(b"\n").unwrap();
            }
            _ => said += &(line + "\n"),
        }
    }
    assert!(program.wait().success(), "{said}");
    assert!(said.ends_with("checks, 0 differences\n"), "{said}");
}

/// A job that went home for a call is there already.
fn move_to(lab: &mut Lab, place: &str) {
    if place != "home" {
        lab.migrate();
    } else if lab.path("shim.json").exists() && lab.state().state == RunState::Running {
        lab.command(&Order::Home);
    }
}
