//! Drawing on a terminal: plain ANSI, redrawn in place; without a terminal a line now and then.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write, stderr};
use std::time::Duration;

use super::watch::Job;
use super::{DemoOptions, HOME};
use crate::lab::options::node_name;

/// How often a line is printed without a terminal.
const LINE_INTERVAL_S: u64 = 10;

#[derive(Debug)]
pub(super) struct Screen {
    quiet: bool,
    /// Lines of the picture that the next one replaces.
    drawn_lines: Cell<usize>,
    next_line_s: Cell<u64>,
}

impl Screen {
    pub(super) fn new(quiet: bool) -> Self {
        Self {
            quiet,
            drawn_lines: Cell::new(0),
            next_line_s: Cell::new(0),
        }
    }

    /// Says what happens now.
    pub(super) fn say(&self, text: &str) {
        if !self.quiet {
            eprintln!("{text}");
        }
    }

    /// Leaves the picture where it is.
    pub(super) fn forget(&self) {
        self.drawn_lines.set(0);
    }

    /// Shows who runs where.
    pub(super) fn draw(&self, options: &DemoOptions, elapsed: Duration, jobs: &[Job]) {
        if self.quiet {
            return;
        }
        let by_node = sort_by_node(jobs);
        if !stderr().is_terminal() {
            self.line(elapsed, &by_node);
            return;
        }
        let picture = picture(options, elapsed, &by_node);
        let mut text = String::new();
        if self.drawn_lines.get() > 0 {
            let _ = write!(text, "\x1b[{}A", self.drawn_lines.get());
        }
        for line in picture.lines() {
            let _ = writeln!(text, "{line}\x1b[K");
        }
        let _ = stderr().write_all(text.as_bytes());
        self.drawn_lines.set(picture.lines().count());
    }

    fn line(&self, elapsed: Duration, by_node: &BTreeMap<&str, Vec<&Job>>) {
        if elapsed.as_secs() < self.next_line_s.get() {
            return;
        }
        self.next_line_s.set(elapsed.as_secs() + LINE_INTERVAL_S);
        let count = |(node, jobs): (&&str, &Vec<&Job>)| format!("{node}:{}", jobs.len());
        let counts: Vec<String> = by_node.iter().map(count).collect();
        eprintln!("{:4} s  {}", elapsed.as_secs(), counts.join(" "));
    }
}

fn sort_by_node(jobs: &[Job]) -> BTreeMap<&str, Vec<&Job>> {
    let mut by_node: BTreeMap<&str, Vec<&Job>> = BTreeMap::new();
    for job in jobs {
        by_node.entry(&job.place).or_default().push(job);
    }
    by_node
}

/// One line for each node, with the PIDs (at home) of the jobs that run there.
fn picture(
    options: &DemoOptions,
    elapsed: Duration,
    by_node: &BTreeMap<&str, Vec<&Job>>,
) -> String {
    let running: usize = by_node.values().map(Vec::len).sum();
    let mut text = format!(
        "{:4} s  {running} of {} jobs of {HOME} running\n",
        elapsed.as_secs(),
        options.jobs
    );
    for index in 0..options.nodes {
        let name = node_name(index);
        let jobs = by_node.get(name.as_str()).map_or(&[][..], Vec::as_slice);
        let bar = "█".repeat(jobs.len());
        let pids: Vec<String> = jobs.iter().map(|job| describe(job)).collect();
        let _ = writeln!(text, "  {name:<4} {bar:<12} {}", pids.join(" "));
    }
    text
}

fn describe(job: &Job) -> String {
    match job.state.as_str() {
        "migrating" => format!("{}→", job.pid),
        _ => job.pid.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(pid: i32, place: &str, state: &str) -> Job {
        Job {
            pid,
            command: "gzip".into(),
            place: place.into(),
            state: state.into(),
            moves: 1,
        }
    }

    #[test]
    fn every_node_has_a_line_with_its_jobs() {
        let options = DemoOptions {
            nodes: 3,
            jobs: 4,
            cpu_percent: 12,
            job_s: 40,
            quiet: false,
        };
        let jobs = [
            job(7, "n2", "running"),
            job(9, "n2", "migrating"),
            job(8, "n1", "running"),
        ];
        let text = picture(&options, Duration::from_secs(5), &sort_by_node(&jobs));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(lines[0].contains("3 of 4"), "{text}");
        assert!(
            lines[2].contains("██ ") && lines[2].contains("7 9→"),
            "{text}"
        );
        assert!(lines[3].trim_end().ends_with("n3"), "{text}");
    }
}
