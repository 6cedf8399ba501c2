//! The supervisor's loop while its guest runs.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use proto::frame::{Frame, FrameKind};
use proto::v1::job_message::What;
use proto::v1::{Refused, Usage};

use super::SupervisorConfig;
use super::cage::Cage;
use super::guest::{Guest, Outcome};
use crate::control::{Command, Event, JobState, RunState, write_state};
use crate::keeper::peer::message;
use crate::keeper::{Answers, Inbox, Input, Peer};
use crate::tracee::{event, procfs};

/// How often the loop looks for signals to threads that wait for home.
const WATCH_EVERY: Duration = Duration::from_millis(50);
/// How often usage is told.
const USAGE_EVERY: Duration = Duration::from_secs(3);
/// How long a freeze may take; home calls have to be withdrawn first.
const FREEZE_LIMIT: Duration = Duration::from_secs(20);

/// How a guest's stay ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// The process ended here, with this wait status.
    Exited(i32),
    /// It lives elsewhere.
    Left,
    /// Home is gone: the guest is to be killed.
    Abandoned(String),
}

/// A guest and everything around it.
#[derive(Debug)]
pub(super) struct Host<'c> {
    pub(super) config: &'c SupervisorConfig,
    pub(super) inbox: &'c Inbox,
    pub(super) later: VecDeque<Input>,
    pub(super) peer: Peer,
    pub(super) guest: Guest,
    /// Kills the guest when it is dropped.
    pub(super) _cage: Cage,
    pub(super) state: JobState,
    pub(super) frozen_by: Option<Instant>,
}

impl Host<'_> {
    /// Serves the guest until it ends or leaves.
    ///
    /// # Errors
    /// The kernel's interfaces fail.
    pub(super) fn serve(&mut self) -> io::Result<End> {
        self.state.state = RunState::Running;
        let mut usage_due = Instant::now();
        loop {
            while let Some(input) = self.later.pop_front().or_else(|| self.inbox.take()) {
                if let Some(end) = self.on_input(input)? {
                    return Ok(end);
                }
            }
            if let Some(end) = self.on_events()? {
                return Ok(end);
            }
            self.guest.take_calls(&self.peer)?;
            if let Some(end) = self.freeze_if_asked()? {
                return Ok(end);
            }
            if Instant::now() >= usage_due {
                usage_due = Instant::now() + USAGE_EVERY;
                self.tell_usage();
            }
            self.wait()?;
        }
    }

    fn wait(&self) -> io::Result<()> {
        let waiting = !self.guest.calls.is_empty() || self.guest.freezing;
        let timeout = if waiting { WATCH_EVERY } else { USAGE_EVERY };
        let listener = (!self.guest.freezing).then(|| self.guest.listener.as_fd());
        self.inbox.wait(listener, timeout).map(drop)
    }

    fn on_events(&mut self) -> io::Result<Option<End>> {
        while let Ok(Some((tid, event))) = event::poll_any() {
            let outcome = self.guest.on_event(tid, event, &self.peer);
            if let Outcome::Ended(status) = outcome.map_err(io::Error::other)? {
                return Ok(Some(End::Exited(status)));
            }
        }
        let watched = self
            .guest
            .calls
            .values()
            .any(|call| call.since.elapsed() > WATCH_EVERY);
        if watched {
            self.guest.withdraw_disturbed(&self.peer);
        }
        Ok(None)
    }

    fn on_input(&mut self, input: Input) -> io::Result<Option<End>> {
        match input {
            Input::Lost(_, why) => Ok(Some(End::Abandoned(why))),
            Input::Command(command, answers) => {
                self.on_command(&command, &answers);
                Ok(None)
            }
            Input::Frame(_, frame) => self.on_frame(&frame),
        }
    }

    fn on_command(&mut self, command: &Command, answers: &Answers) {
        match command {
            Command::Status => answers.send(Event::State(self.state.clone())),
            Command::Kill => {
                let pid = nix::unistd::Pid::from_raw(self.guest.host_pid);
                match nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL) {
                    Ok(()) => answers.send(Event::Done { freeze_us: 0 }),
                    Err(error) => answers.fail(error.to_string(), false),
                }
            }
            Command::Home | Command::Migrate { .. } => {
                answers.fail("a job is moved by its home node", false);
            }
        }
    }

    fn on_frame(&mut self, frame: &Frame) -> io::Result<Option<End>> {
        match (frame.kind, message(frame)?) {
            (FrameKind::Reply, What::HomeReply(reply)) => {
                self.guest
                    .on_reply(frame.id, &reply, &frame.payload, &self.peer)?;
            }
            (FrameKind::Event, What::Signal(signal)) => self.guest.signal(&signal, &self.peer),
            (FrameKind::Event, What::Freeze(_)) => {
                self.guest.freeze(&self.peer).map_err(io::Error::other)?;
            }
            (_, other) => {
                let text = format!("unexpected message {other:?}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
        }
        Ok(None)
    }

    /// Brings a freeze that was asked for to its end: by home, or by a call that needs home.
    fn freeze_if_asked(&mut self) -> io::Result<Option<End>> {
        if !self.guest.freezing {
            return Ok(None);
        }
        let by = match self.frozen_by {
            Some(by) => by,
            None => {
                self.guest.freeze(&self.peer).map_err(io::Error::other)?;
                self.peer.set_moving(true);
                let by = Instant::now() + FREEZE_LIMIT;
                self.frozen_by = Some(by);
                by
            }
        };
        if self.guest.is_frozen() {
            self.frozen_by = None;
            return self.leave();
        }
        if Instant::now() > by {
            self.give_up_freezing()?;
        }
        Ok(None)
    }

    /// A thread hangs in the kernel: the guest goes on, and home is told.
    fn give_up_freezing(&mut self) -> io::Result<()> {
        tracing::warn!(
            pid = self.config.home_pid,
            "the guest cannot be stopped now"
        );
        self.frozen_by = None;
        self.guest.unfreeze().map_err(io::Error::other)?;
        self.peer.set_moving(false);
        let refused = Refused {
            error: "it is busy: not all of its threads can be stopped now".to_owned(),
            cantmove: true,
        };
        self.peer.tell(What::Refused(refused), &[])
    }

    /// Gives home the time to read how the guest ended before the link is cut; home cuts it, or its
    /// silence does.
    pub(super) fn linger(&self) {
        let deadline = Instant::now() + self.config.silence_max;
        while let Ok(Some(input)) = self.inbox.next(deadline) {
            if matches!(input, Input::Lost(..)) {
                return;
            }
        }
    }

    /// What the guest uses; `None` when it has just ended.
    pub(super) fn usage(&self) -> Option<Usage> {
        let stat = procfs::Stat::read(self.guest.host_pid).ok()?;
        let ticks = stat.number(14) + stat.number(15);
        Some(Usage {
            cpu_time_ms: ticks * 10, // USER_HZ is 100 on every Linux
            memory_bytes: stat.number(24) * crate::image::PAGE_BYTES,
            signals_taken: Some(self.guest.signals_taken),
        })
    }

    fn tell_usage(&mut self) {
        let Some(usage) = self.usage() else {
            return;
        };
        self.state.cpu_time_ms = usage.cpu_time_ms;
        self.state.memory_bytes = usage.memory_bytes;
        let _ = self.peer.tell(What::Usage(usage), &[]); // a broken link shows elsewhere
        self.state.home_calls = self.guest.home_calls;
        self.state.state = if self.guest.stopped {
            RunState::Stopped
        } else {
            RunState::Running
        };
        self.publish();
    }

    pub(super) fn publish(&self) {
        if let Some(path) = &self.config.state_file
            && let Err(error) = write_state(path, &self.state)
        {
            tracing::warn!(path = %path.display(), %error, "state not written");
        }
    }
}
