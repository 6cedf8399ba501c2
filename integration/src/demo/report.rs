//! What came out.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::DemoOptions;
use super::watch::{ClusterRun, Course};

/// The figures of one run.
#[derive(Clone, Debug, Serialize)]
pub struct DemoReport {
    /// How many nodes.
    pub nodes: usize,
    /// How many jobs.
    pub jobs: usize,
    /// One job alone on one idle node, the mean of a run before and one after.
    pub single_s: f64,
    /// All jobs in the cluster, from the start of the first to the end of the last.
    pub cluster_s: f64,
    /// `cluster_s` / `single_s`.
    pub ratio: f64,
    /// What all jobs would take on one node.
    pub onenode_s_estimate: f64,
    /// How often jobs moved.
    pub migrations: u32,
    /// Whether every output is what gzip gives natively.
    pub identical: bool,
    /// Which outputs differ, and how.
    pub differing: Vec<String>,
    /// Which jobs did not end with status 0, and how they ended.
    pub failed: Vec<String>,
    /// What the lab left behind.
    pub leaks: usize,
    /// What was seen of each job, by its PID.
    #[serde(skip)]
    pub courses: BTreeMap<i32, Course>,
}

impl DemoReport {
    pub(super) fn new(
        options: &DemoOptions,
        single: Duration,
        run: &ClusterRun,
        differing: Vec<String>,
    ) -> Self {
        let (single_s, cluster_s) = (single.as_secs_f64(), run.elapsed.as_secs_f64());
        let rounded = |value: f64, digits: f64| (value * digits).round() / digits;
        Self {
            nodes: options.nodes,
            jobs: options.jobs,
            single_s: rounded(single_s, 100.0),
            cluster_s: rounded(cluster_s, 100.0),
            ratio: rounded(cluster_s / single_s, 1000.0),
            onenode_s_estimate: rounded(single_s * options.jobs as f64, 10.0),
            migrations: run.courses.values().map(|course| course.moves).sum(),
            identical: differing.is_empty(),
            differing,
            failed: run.failed.clone(),
            leaks: 0,
            courses: run.courses.clone(),
        }
    }

    /// A table for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = String::from("\n    job  until  ran on\n");
        for (pid, course) in &self.courses {
            let until_s = course.until.as_secs_f64();
            let places = course.places.join(" → ");
            text += &format!("  {pid:>5}  {until_s:>3.0} s  {places}\n");
        }
        let rows = [
            ("one job alone", format!("{:.1} s", self.single_s)),
            (
                "all on one node, estimated",
                format!("{:.1} s", self.onenode_s_estimate),
            ),
            ("all in the cluster", format!("{:.1} s", self.cluster_s)),
            ("cluster / one job", format!("{:.2}", self.ratio)),
            ("migrations", self.migrations.to_string()),
            (
                "outputs identical to native gzip",
                self.identical.to_string(),
            ),
            ("jobs that failed", self.failed.len().to_string()),
            ("left behind", self.leaks.to_string()),
        ];
        text.push('\n');
        for (name, value) in rows {
            text += &format!("  {name:<34} {value:>10}\n");
        }
        text
    }
}
