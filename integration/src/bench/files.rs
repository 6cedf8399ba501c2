//! Reading and writing large files.

use anyhow::Result;

use super::probe::in_node;
use super::{BYTES, best};
use crate::lab::Lab;

#[derive(Clone, Copy, Debug)]
pub(super) enum Direction {
    Read,
    Write,
}

/// MiB/s of a file on the other node, not cached here.
pub(super) fn remote(lab: &Lab, direction: Direction) -> Result<f64> {
    let mut round = 0;
    best(
        || {
            // Each round has a file of its own, of which this node has seen nothing.
            round += 1;
            let name = format!("/tmp/bench-{round}");
            let path = format!("/mfs/n2{name}");
            if matches!(direction, Direction::Read) {
                in_node(lab, "n2", ["write", &name, &BYTES.to_string()])?;
            }
            let figure = measure(lab, &path, direction);
            lab.sh("n2", &format!("rm -f {name}"))?;
            figure
        },
        f64::max,
    )
}

/// MiB/s of a file on this node, by way of `prefix`.
pub(super) fn local(lab: &Lab, prefix: &str, direction: Direction) -> Result<f64> {
    let path = format!("{prefix}/root/bench");
    in_node(lab, "n1", ["write", "/root/bench", &BYTES.to_string()])?;
    let figure = best(|| measure(lab, &path, direction), f64::max);
    lab.sh("n1", "rm -f /root/bench")?;
    figure
}

fn measure(lab: &Lab, path: &str, direction: Direction) -> Result<f64> {
    let what = match direction {
        Direction::Read => "read",
        Direction::Write => "write",
    };
    in_node(lab, "n1", [what, path, &BYTES.to_string()])
}
