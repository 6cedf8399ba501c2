//! From a host to home, or through home to a third node.
//!
//! The process is frozen at its host until it is told that it lives elsewhere (`Taken`) or has to
//! go on (`Resume`). The deputy's descriptors are brought into step first, in either case, so that
//! the next place finds them by identity.

use std::time::{Duration, Instant};

use proto::v1::job_message::What;
use proto::v1::{Frozen as FrozenMessage, Go, ProcessImage, Resume, Taken};

use super::away::Away;
use super::depart::{cantmove, park_threads, progress};
use super::deputy::{Deputy, News};
use super::sent::SentSignals;
use super::{Place, Shim, Target, files};
use crate::capture::{identity, process};
use crate::control::{Command, Phase, RunState};
use crate::keeper::transfer::{Ear, MoveError, runs_of, send_image};
use crate::keeper::{Answers, Input, Peer};
use crate::restore::deputy::{rebuild_memory, rebuild_state, write_home_pages};
use crate::tracee::{Frozen, TraceeError};

/// How long the host may take to send everything.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(600);

/// Somebody who asked for the job, and what for.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Home, or to another node.
    pub(super) order: Command,
    pub(super) answers: Answers,
}

/// A job whose guest stands still at its host.
struct Between {
    frozen: Frozen,
    host: Peer,
    sent: SentSignals,
    /// All of it has arrived.
    complete: bool,
}

impl Between {
    /// The signals that crossed the image on its way are still to come.
    fn catch_up(&mut self) {
        self.frozen.signals.splice(0..0, self.sent.rest());
    }
}

impl Shim {
    /// The guest stands still and its image follows.
    pub(super) fn come_back(&mut self, message: &FrozenMessage) {
        let Place::Away(mut away) = std::mem::replace(&mut self.place, Place::Gone) else {
            return;
        };
        let wanted = away.wanted.take();
        away.peer.set_moving(true);
        let Away {
            deputy,
            peer,
            mut sent,
            ..
        } = *away;
        sent.taken(message.signals_taken);
        let frozen = match unpark(deputy) {
            Ok(frozen) => frozen,
            Err(error) => {
                let why = format!("the deputy cannot be entered: {error}");
                self.fail(&error, &why);
                if let Some(wanted) = wanted {
                    wanted.answers.fail(why, false);
                }
                return;
            }
        };
        let between = Between {
            frozen,
            host: peer,
            sent,
            complete: false,
        };
        let nobody = || Answers::channel().0;
        let returning_for = message.returning_for.as_str();
        match wanted {
            None => {
                // Where a failure leaves it is in the state file.
                let _ = self.go_home(between, &nobody(), returning_for);
            }
            Some(Wanted { order, answers }) => match Target::of(&order) {
                Some(_) if !returning_for.is_empty() => {
                    // The call that only home can make comes first; then it leaves from there.
                    match self.go_home(between, &nobody(), returning_for) {
                        Ok(()) => self.later.push_front(Input::Command(order, answers)),
                        Err(error) => answers.fail(error.to_string(), error.is_cantmove()),
                    }
                }
                Some(target) => {
                    let begun = Instant::now();
                    let moved = self.go_on_to(between, &target, &answers);
                    answers.moved(moved, begun);
                }
                None => {
                    let begun = Instant::now();
                    let moved = self.go_home(between, &answers, returning_for);
                    answers.moved(moved, begun);
                }
            },
        }
    }

    fn go_home(
        &mut self,
        mut between: Between,
        answers: &Answers,
        returning_for: &str,
    ) -> Result<(), MoveError> {
        match self.receive_home(&mut between, answers) {
            Ok(()) => {}
            Err(error) => return self.stay(between, error),
        }
        between.catch_up();
        if let Err(error) = between.frozen.thaw() {
            let why = format!("the process cannot go on at home: {error}");
            self.fail(&error, &why);
            return Err(MoveError::process(&error));
        }
        // The process lives here; whether the host hears of it does not matter any more.
        let _ = between.host.tell(What::Taken(Taken {}), &[]);
        self.note_move(self.config.here.clone());
        self.state.memory_bytes = 0;
        let why = (!returning_for.is_empty()).then(|| returning_for.to_owned());
        let note = why
            .as_ref()
            .map_or(String::new(), |call| format!("came home for {call}"));
        self.state.returned_for = why;
        self.place = Place::Home;
        self.set_state(RunState::Home, note);
        Ok(())
    }

    fn receive_home(&mut self, between: &mut Between, answers: &Answers) -> Result<(), MoveError> {
        let deadline = Instant::now() + ARRIVAL_LIMIT;
        let mut ear = Ear::new(&self.inbox, &mut self.later);
        let image = ear.image(&between.host, deadline)?;
        let frozen = &mut between.frozen;
        files::reconcile(frozen, &image)?;
        rebuild_memory(frozen, &image).map_err(|error| MoveError::process(&error))?;
        let mut bytes = 0;
        loop {
            match ear.next(&between.host, "memory", deadline)? {
                (What::Pages(pages), frame) => {
                    let runs = runs_of(&pages, &frame.payload)?;
                    write_home_pages(frozen, &image, &runs, &frame.payload)
                        .map_err(|error| MoveError::process(&error))?;
                    bytes += frame.payload.len() as u64;
                    progress(answers, Phase::Memory, bytes, bytes);
                }
                (What::PagesDone(_), _) => break,
                _ => return Err(MoveError::Unexpected("memory")),
            }
        }
        between.complete = true;
        progress(answers, Phase::Build, bytes, bytes);
        rebuild_state(frozen, &image).map_err(|error| MoveError::process(&error))
    }

    fn go_on_to(
        &mut self,
        mut between: Between,
        target: &Target,
        answers: &Answers,
    ) -> Result<(), MoveError> {
        let expected = target.expected.as_ref();
        let checked = identity::check_frozen(&mut between.frozen, expected).map_err(cantmove);
        let moved = checked.and_then(|()| self.relay(&mut between, target, answers));
        let peer = match moved {
            Ok(moved) => moved,
            Err(error) => return self.stay(between, error),
        };
        let _ = between.host.tell(What::Taken(Taken {}), &[]); // its guest is discarded either way
        between.catch_up();
        match park_again(&mut between.frozen) {
            Ok((deputy, news)) => {
                let away = Away::new(deputy, peer);
                self.place = Place::Away(Box::new(away));
                self.note_move(target.node.clone());
                self.set_state(RunState::Running, "");
                self.pass_on(news);
                Ok(())
            }
            Err(error) => {
                let why = format!("the deputy could not be parked: {error}");
                self.fail(&error, &why);
                Err(MoveError::process(&error))
            }
        }
    }

    /// Everything up to and including the new host's `Go`.
    fn relay(
        &mut self,
        between: &mut Between,
        target: &Target,
        answers: &Answers,
    ) -> Result<Peer, MoveError> {
        let deadline = Instant::now() + ARRIVAL_LIMIT;
        let mut image = {
            let mut ear = Ear::new(&self.inbox, &mut self.later);
            ear.image(&between.host, deadline)?
        };
        files::reconcile(&mut between.frozen, &image)?;
        for file in &mut image.files {
            file.opened_away = false;
        }
        image.hostname = process::hostname();
        let peer = self.connect(target)?;
        send_image(&peer, &image)?;
        let mut ear = Ear::new(&self.inbox, &mut self.later);
        let mut bytes = 0;
        loop {
            let (what, frame) = ear.next(&between.host, "memory", deadline)?;
            between.complete = matches!(what, What::PagesDone(_));
            peer.relay(&frame)?;
            match what {
                What::Pages(_) => {
                    bytes += frame.payload.len() as u64;
                    progress(answers, Phase::Memory, bytes, bytes);
                }
                What::PagesDone(_) => break,
                _ => return Err(MoveError::Unexpected("memory")),
            }
        }
        progress(answers, Phase::Build, bytes, bytes);
        self.await_built(&peer)?;
        peer.tell(What::Go(Go {}), &[])?;
        Ok(peer)
    }

    /// Has the guest go on at its host, which may be sending still, or have given up by itself.
    fn resume(&mut self, between: &Between, error: &MoveError) -> Result<(), MoveError> {
        let gave_up = |error: &MoveError| matches!(error, MoveError::Refused { .. });
        let deadline = Instant::now() + ARRIVAL_LIMIT;
        let mut ear = Ear::new(&self.inbox, &mut self.later);
        let mut complete = between.complete;
        if !complete && gave_up(error) {
            return Ok(());
        }
        while !complete {
            match ear.next(&between.host, "the rest of the process", deadline) {
                Ok((what, _)) => complete = matches!(what, What::PagesDone(_)),
                Err(error) if gave_up(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(between.host.tell(What::Resume(Resume {}), &[])?)
    }

    /// The move failed and the guest goes on where it was.
    fn stay(&mut self, mut between: Between, error: MoveError) -> Result<(), MoveError> {
        let resumed = self.resume(&between, &error);
        let parked = park_again(&mut between.frozen);
        match (resumed, parked) {
            (Ok(()), Ok((deputy, news))) => {
                between.host.set_moving(false);
                let mut away = Away::new(deputy, between.host);
                away.sent = between.sent;
                self.place = Place::Away(Box::new(away));
                self.set_state(RunState::Running, error.to_string());
                self.pass_on(news);
            }
            (resumed, parked) => {
                let why = format!("{error}; {:?}; {:?}", resumed.err(), parked.err());
                self.lose(&why);
            }
        }
        Err(error)
    }
}

/// The deputy's threads, stopped; signals that came meanwhile go to whoever runs next.
fn unpark(deputy: Deputy) -> Result<Frozen, TraceeError> {
    let (pid, stub) = (deputy.pid(), deputy.stub());
    let mut news = Vec::new();
    let stopped = deputy.unpark(&mut news)?;
    let mut frozen = Frozen::adopt(pid, stopped, Some(stub))?;
    for one in news {
        if let News::Signal(seen) = one {
            frozen.signals.push(seen);
        }
    }
    Ok(frozen)
}

/// Parks a deputy whose guest runs elsewhere still; what it has seen meanwhile is to be passed on.
fn park_again(frozen: &mut Frozen) -> Result<(Deputy, Vec<News>), TraceeError> {
    park_threads(frozen, &ProcessImage::default())
}
