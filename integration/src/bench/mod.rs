//! Measurements as ratios: each figure of omfs against what the same link, disk or machine does
//! without it, in one run, so that they hold on any machine.

pub mod abuse;
mod files;
mod moves;
pub mod probe;
mod tcp;

use anyhow::Result;
use serde::Serialize;

use crate::lab::options::LabOptions;
use crate::lab::{Lab, binaries};

/// How much is read, written or moved.
const BYTES: u64 = 256 << 20;
/// How often each is measured; the best counts, since other things disturb only for the worse.
const ROUNDS: usize = 3;

/// One comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What was compared.
    pub name: &'static str,
    /// omfs, in `unit`.
    pub omfs: f64,
    /// The yardstick, in `unit`.
    pub plain: f64,
    /// What both are measured in.
    pub unit: &'static str,
    /// How much better (above 1) or worse omfs is.
    pub ratio: f64,
    /// Why it could not be measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Measures everything in a lab of two nodes.
///
/// # Errors
/// The lab, or raw TCP in it, does not work. What omfs cannot do is said in its figure.
pub fn run(say: &dyn Fn(&str)) -> Result<Vec<Figure>> {
    let mut options = LabOptions::new(2);
    options.omfs_binary = Some(binaries::omfs()?);
    let lab = Lab::up(&options)?;
    say("raw TCP between two nodes");
    let tcp = tcp::measure(&lab)?;
    let mut figures = Vec::new();
    let files = [
        ("read /mfs/<other>, against TCP", files::Direction::Read),
        ("write /mfs/<other>, against TCP", files::Direction::Write),
    ];
    for (name, direction) in files {
        say(name);
        figures.push(faster(
            name,
            files::remote(&lab, direction),
            Ok(tcp.mib_per_s),
        ));
    }
    let here = [
        ("read /mfs/here, against native", files::Direction::Read),
        ("write /mfs/here, against native", files::Direction::Write),
    ];
    for (name, direction) in here {
        say(name);
        let omfs = files::local(&lab, "/mfs/here", direction);
        figures.push(faster(name, omfs, files::local(&lab, "", direction)));
    }
    let name = "home call, against a TCP round trip";
    say(name);
    figures.push(shorter(
        name,
        "µs",
        moves::home_call_us(&lab),
        tcp.round_trip_us,
    ));
    let name = "moving 256 MiB, against a TCP copy";
    say(name);
    let moved = moves::move_ms(&lab);
    let copy_ms = 1000.0 * (BYTES >> 20) as f64 / tcp.mib_per_s;
    let total = moved.as_ref().map(|moved| moved.total_ms);
    figures.push(shorter(name, "ms", total.map_err(copy_error), copy_ms));
    let freeze = moved.as_ref().map(|moved| moved.freeze_ms);
    let name = "freeze of it, against a TCP copy";
    figures.push(shorter(name, "ms", freeze.map_err(copy_error), copy_ms));
    lab.down()?;
    Ok(figures)
}

fn copy_error(error: &anyhow::Error) -> anyhow::Error {
    anyhow::anyhow!("{error:#}")
}

/// Throughput: more is better.
fn faster(name: &'static str, omfs: Result<f64>, plain: Result<f64>) -> Figure {
    figure(name, "MiB/s", omfs, plain, |omfs, plain| omfs / plain)
}

/// Time: less is better.
fn shorter(name: &'static str, unit: &'static str, omfs: Result<f64>, plain: f64) -> Figure {
    figure(name, unit, omfs, Ok(plain), |omfs, plain| plain / omfs)
}

fn figure(
    name: &'static str,
    unit: &'static str,
    omfs: Result<f64>,
    plain: Result<f64>,
    ratio: fn(f64, f64) -> f64,
) -> Figure {
    let both = omfs.and_then(|omfs| Ok((omfs, plain?)));
    let error = both.as_ref().err().map(|error| format!("{error:#}"));
    let (omfs, plain) = both.unwrap_or((0.0, 0.0));
    let ratio = if error.is_none() {
        ratio(omfs, plain)
    } else {
        0.0
    };
    let rounded = |value: f64| (value * 1000.0).round() / 1000.0;
    Figure {
        name,
        omfs: rounded(omfs),
        plain: rounded(plain),
        unit,
        ratio: rounded(ratio),
        error,
    }
}

/// A table for people.
#[must_use]
pub fn table(figures: &[Figure]) -> String {
    let mut text = format!("{:<40} {:>10} {:>10}        ratio\n", "", "omfs", "plain");
    for figure in figures {
        text += &match &figure.error {
            Some(error) => format!("{:<40} {error}\n", figure.name),
            None => format!(
                "{:<40} {:>10.1} {:>10.1} {:<5} {:>7.3}\n",
                figure.name, figure.omfs, figure.plain, figure.unit, figure.ratio
            ),
        };
    }
    text
}

/// The best of some rounds; the first error ends them.
fn best(mut round: impl FnMut() -> Result<f64>, better: fn(f64, f64) -> f64) -> Result<f64> {
    let first = round()?;
    (1..ROUNDS).try_fold(first, |best, _| Ok(better(best, round()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_above_one_are_good_whatever_is_measured() {
        assert!(faster("x", Ok(200.0), Ok(100.0)).ratio > 1.9);
        assert!(shorter("x", "ms", Ok(200.0), 100.0).ratio < 0.6);
    }

    #[test]
    fn what_cannot_be_measured_says_why() {
        let figure = faster("x", Err(anyhow::anyhow!("no disk")), Ok(1.0));
        assert_eq!(figure.error.as_deref(), Some("no disk"));
        assert!(table(&[figure]).contains("no disk"));
    }
}
