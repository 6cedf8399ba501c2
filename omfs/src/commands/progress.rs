//! Progress bars of moves, one per process.

use std::collections::HashMap;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use proto::v1::MigrateProgress;

/// Bars for any number of processes; nothing when nobody watches.
pub struct Bars {
    watched: bool,
    multi: MultiProgress,
    bars: HashMap<i32, ProgressBar>,
}

impl Bars {
    /// No bar yet.
    pub fn new(watched: bool) -> Self {
        Self {
            watched,
            multi: MultiProgress::new(),
            bars: HashMap::new(),
        }
    }

    /// Draws a step.
    pub fn show(&mut self, progress: &MigrateProgress) {
        if !self.watched {
            return;
        }
        let bar = self.bars.entry(progress.pid).or_insert_with(|| {
            let bar = self.multi.add(ProgressBar::no_length());
            bar.set_style(style());
            bar.set_prefix(progress.pid.to_string());
            bar
        });
        match progress.phase.as_str() {
            "done" | "failed" => bar.finish_and_clear(),
            phase => {
                bar.set_message(phase.to_owned());
                if progress.total_bytes > 0 {
                    bar.set_length(progress.total_bytes);
                    bar.set_position(progress.done_bytes);
                }
            }
        }
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix:>8} {msg:8} [{bar:30}] {bytes}/{total_bytes}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}
