//! The yardstick: raw TCP between the two nodes.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};

use super::probe::{self, in_node};
use super::{BYTES, best};
use crate::lab::{Lab, wait};

/// What the link does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tcp {
    pub(super) mib_per_s: f64,
    pub(super) round_trip_us: f64,
}

pub(super) fn measure(lab: &Lab) -> Result<Tcp> {
    let mut server = lab
        .command("n2", probe::command(["serve"]))?
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    let figure = |what: &str| in_node(lab, "n1", ["tcp", what, "n2", &BYTES.to_string()]);
    let listening = || figure("rtt").ok();
    let measured = wait::until(Duration::from_secs(10), listening)
        .context("no answer by TCP")
        .and_then(|_| {
            Ok(Tcp {
                mib_per_s: best(|| figure("copy"), f64::max)?,
                round_trip_us: best(|| figure("rtt"), f64::min)?,
            })
        });
    server.kill()?;
    server.wait()?;
    measured
}
