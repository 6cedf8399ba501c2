//! What a command is answered.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::error::MoveError;
use crate::control::Event;

/// Where the events of one command go. Dropping it without a final event closes the connection:
/// the command was not taken up, and may be given to another keeper.
#[derive(Debug)]
pub struct Answers(Sender<Event>);

impl Answers {
    /// A pair without a socket.
    #[must_use]
    pub fn channel() -> (Self, Receiver<Event>) {
        let (sender, receiver) = channel();
        (Self(sender), receiver)
    }

    /// Sends an event; a daemon that has gone away is no error.
    pub fn send(&self, event: Event) {
        let _ = self.0.send(event);
    }

    /// Ends the command well; the job stood still for so long.
    pub fn done(&self, freeze: Duration) {
        let freeze_us = u64::try_from(freeze.as_micros()).unwrap_or(u64::MAX);
        self.send(Event::Done { freeze_us });
    }

    /// Ends the command as a move that began then has ended.
    pub fn moved(&self, moved: Result<(), MoveError>, begun: Instant) {
        match moved {
            Ok(()) => self.done(begun.elapsed()),
            Err(error) => self.fail(error.to_string(), error.is_cantmove()),
        }
    }

    /// Ends the command with an error.
    pub fn fail(&self, error: impl Into<String>, cantmove: bool) {
        self.send(Event::Failed {
            error: error.into(),
            cantmove,
        });
    }
}
