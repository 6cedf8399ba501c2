//! What is told of a move, while it is under way and at its end.

use std::sync::{Mutex, PoisonError};

use omfs_cluster::control::ControlError;
use proto::v1;

use super::Progress;
use super::keeper::Step;

/// How a move ended well.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Done {
    /// How long the process stood still, in microseconds.
    pub freeze_us: u64,
}

/// Why a process was not moved.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MoveError {
    /// It was not even tried.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The target does not take it; it runs on where it was.
    #[error("{0}")]
    Refused(String),
    /// It cannot be moved; it runs on where it was.
    #[error("{0}")]
    Cantmove(String),
    /// It was tried and went wrong.
    #[error("{0}")]
    Failed(String),
}

/// Tells the steps of one move.
#[derive(Debug)]
pub struct Reporter {
    pid: i32,
    progress: Option<Progress>,
    last: Mutex<(u64, u64)>,
}

impl Reporter {
    /// For one process.
    pub fn new(pid: i32, progress: Progress) -> Self {
        Self {
            pid,
            progress: Some(progress),
            last: Mutex::default(),
        }
    }

    /// Nobody wants to know.
    pub fn silent(pid: i32) -> Self {
        Self {
            pid,
            progress: None,
            last: Mutex::default(),
        }
    }

    /// A step; dropped when the reader is slow.
    pub fn step(&self, step: Step) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) =
            (step.done_bytes, step.total_bytes);
        if let Some(progress) = &self.progress {
            let _ = progress.try_send(v1::MigrateProgress {
                pid: self.pid,
                phase: step.phase.as_str().to_owned(),
                done_bytes: step.done_bytes,
                total_bytes: step.total_bytes,
                ..v1::MigrateProgress::default()
            });
        }
    }

    /// The last word.
    ///
    /// # Errors
    /// What could not even be tried.
    pub async fn end(&self, result: Result<Done, MoveError>) -> Result<(), ControlError> {
        let (done_bytes, total_bytes) = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let mut last = v1::MigrateProgress {
            pid: self.pid,
            done_bytes,
            total_bytes,
            ..v1::MigrateProgress::default()
        };
        match result {
            Ok(done) => {
                last.phase = "done".into();
                last.freeze_us = u32::try_from(done.freeze_us).unwrap_or(u32::MAX);
            }
            Err(MoveError::Control(error)) => return Err(error),
            Err(error) => {
                last.phase = "failed".into();
                last.cantmove = !matches!(error, MoveError::Failed(_));
                last.error = error.to_string();
            }
        }
        if let Some(progress) = &self.progress {
            let _ = progress.send(last).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use migrator::control::Phase;

    #[tokio::test]
    async fn the_last_progress_says_how_it_ended() {
        let (sender, mut steps) = tokio::sync::mpsc::channel(8);
        let reporter = Reporter::new(7, sender);
        reporter.step(Step {
            phase: Phase::Memory,
            done_bytes: 5,
            total_bytes: 9,
        });
        let cantmove = Err(MoveError::Cantmove("shared memory".into()));
        reporter.end(cantmove).await.unwrap();
        let first = steps.recv().await.unwrap();
        let last = steps.recv().await.unwrap();
        assert_eq!((first.phase.as_str(), first.done_bytes), ("memory", 5));
        assert_eq!((last.phase.as_str(), last.cantmove), ("failed", true));
        assert_eq!(last.error, "shared memory");
        let gone = ControlError::NotFound("no".into());
        assert!(reporter.end(Err(gone.into())).await.is_err());
    }
}
