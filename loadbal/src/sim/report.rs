//! What a simulation did.

use std::time::Duration;

use proto::ids::Pid;

/// What a simulation did.
#[derive(Clone, PartialEq, Debug)]
pub struct Report {
    /// Simulated time.
    pub now: Duration,
    /// Balanced jobs on each node.
    pub jobs_per_node: Vec<usize>,
    /// Jobs on their way.
    pub in_flight: usize,
    /// When each move began.
    pub moves: Vec<Duration>,
    /// Which job ended when.
    pub finished: Vec<(Pid, Duration)>,
}

impl Report {
    /// Most and least jobs on a node.
    #[must_use]
    pub fn extremes(&self) -> (usize, usize) {
        let most = self.jobs_per_node.iter().max();
        let least = self.jobs_per_node.iter().min();
        (most.copied().unwrap_or(0), least.copied().unwrap_or(0))
    }

    /// When the last job ended.
    #[must_use]
    pub fn makespan_end(&self) -> Option<Duration> {
        self.finished.iter().map(|(_, at)| *at).max()
    }
}
