//! From home to a host: freeze, image, pages, built, go.
//!
//! Until `Go` is sent the process is only frozen, and every failure lets it run on. From then on
//! the guest is the process.

use std::time::{Duration, Instant};

use proto::v1::job_message::What;
use proto::v1::{Go, JobHello, ProcessImage};

use super::away::Away;
use super::deputy::{Deputy, News};
use super::{Place, Shim, Target};
use crate::capture::{CantMove, CaptureError, PageStream, capture, eligibility, identity, pages};
use crate::control::{Event, Phase, RunState, write_state};
use crate::image::places;
pub use crate::keeper::protocol::PROTOCOL_VERSION;
use crate::keeper::transfer::{Ear, MoveError, send_image, send_pages};
use crate::keeper::{Answers, Peer};
use crate::restore::deputy::{forget_moved_signals, release_memory};
use crate::tracee::{Frozen, TraceeError, options};

/// How long stopping all threads may take.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);
/// How long a target's reason for closing the link is waited for.
const REASON_LIMIT: Duration = Duration::from_secs(1);
/// How long the target may take to build the guest after the last page.
pub(super) const BUILD_LIMIT: Duration = Duration::from_secs(60);

impl Shim {
    /// Moves the job from home to a host and answers.
    pub(super) fn depart(&mut self, target: &Target, answers: &Answers) {
        self.state.cantmove.clear();
        self.set_state(RunState::Migrating, "");
        match self.try_depart(target, answers) {
            Ok(freeze) => {
                answers.done(freeze);
            }
            Err(error) => {
                let (text, cantmove) = (error.to_string(), error.is_cantmove());
                if cantmove {
                    self.state.cantmove = vec![text.clone()];
                }
                if matches!(self.place, Place::Home) {
                    self.set_state(RunState::Home, text.clone());
                }
                answers.fail(text, cantmove);
            }
        }
    }

    fn try_depart(&mut self, target: &Target, answers: &Answers) -> Result<Duration, MoveError> {
        progress(answers, Phase::Prepare, 0, 0);
        // First of all: when it is closed, whatever the reason, the target expects nobody any more.
        let peer = self.connect(target)?;
        self.check_state_file()?;
        // Before its reasons are told: they are only its user's to know.
        identity::check(self.config.pid, target.expected.as_ref()).map_err(cantmove)?;
        let reasons = eligibility(self.config.pid);
        if !reasons.is_empty() {
            let all: Vec<String> = reasons.iter().map(ToString::to_string).collect();
            self.state.cantmove = all.clone();
            return Err(MoveError::Process {
                error: all.join("; "),
                cantmove: true,
            });
        }
        progress(answers, Phase::Freeze, 0, 0);
        let begun = Instant::now();
        let mut frozen =
            Frozen::freeze(self.config.pid, FREEZE_LIMIT).map_err(|error| tracee(&error))?;
        let expected = target.expected.as_ref();
        let checked = identity::check_frozen(&mut frozen, expected).map_err(cantmove);
        match checked.and_then(|()| self.send_and_commit(&peer, &mut frozen, answers)) {
            Ok(image) => {
                self.park(frozen, peer, target, &image);
                let freeze = begun.elapsed();
                Ok(freeze)
            }
            Err(error) => {
                if let Err(thaw) = frozen.thaw() {
                    tracing::error!(pid = self.config.pid, %thaw, "thawing after a failed move");
                }
                Err(self.reason(&peer, error))
            }
        }
    }

    /// A target that refuses closes the link, maybe while we send; what it said may have come.
    fn reason(&mut self, peer: &Peer, error: MoveError) -> MoveError {
        if !matches!(error, MoveError::Link(_)) {
            return error;
        }
        let deadline = Instant::now() + REASON_LIMIT;
        let mut ear = Ear::new(&self.inbox, &mut self.later);
        match ear.next(peer, "the reason", deadline) {
            Err(refused @ MoveError::Refused { .. }) => refused,
            _ => error,
        }
    }

    /// A job whose place cannot be written down must not leave: nobody would know where it is.
    fn check_state_file(&self) -> Result<(), MoveError> {
        let Some(path) = &self.config.state_file else {
            return Ok(());
        };
        write_state(path, &self.state).map_err(|error| MoveError::Process {
            error: format!("its place cannot be kept in {}: {error}", path.display()),
            cantmove: true,
        })
    }

    /// Connects to a target and introduces the job.
    pub(super) fn connect(&mut self, target: &Target) -> Result<Peer, MoveError> {
        let link = self.connector.connect(&target.address, &target.token)?;
        let (id, silence_max) = (self.new_peer_id(), self.config.silence_max);
        let peer = Peer::start(id, link, &self.inbox.sender(), silence_max)?;
        let hello = JobHello {
            version: PROTOCOL_VERSION,
            pid: self.config.pid,
            command: self.state.command.clone(),
            uid: self.state.uid,
            home: self.config.here.clone(),
            moves: self.state.moves + 1,
            start_ticks: self.state.start_ticks,
            ..JobHello::default()
        };
        peer.tell(What::Hello(hello), &[])?;
        Ok(peer)
    }

    /// Everything up to and including the commit point.
    fn send_and_commit(
        &mut self,
        peer: &Peer,
        frozen: &mut Frozen,
        answers: &Answers,
    ) -> Result<ProcessImage, MoveError> {
        let mut image = capture(frozen).map_err(|error| capture_error(&error))?;
        places::name_here(&mut image, &self.config.here);
        places::mark_nameless(&mut image);
        send_image(peer, &image)?;
        let runs =
            pages::private_pages(frozen.pid(), &image.vmas).map_err(|error| tracee(&error))?;
        let mut stream = PageStream::new(frozen.pid(), runs);
        let total = stream.remaining_bytes();
        send_pages(peer, &mut stream, |done| {
            progress(answers, Phase::Memory, done, total);
        })?;
        progress(answers, Phase::Build, total, total);
        self.await_built(peer)?;
        for thread in &frozen.threads {
            let fatal = options::TRACESYSGOOD | options::EXITKILL;
            thread
                .stopped
                .set_options(fatal)
                .map_err(|error| tracee(&error))?;
        }
        // Before `Go`: a signal that comes when its like has moved along, and may have been handled
        // there already, must not be taken for one that still waits here.
        frozen
            .take_pending_signals()
            .map_err(|error| tracee(&error))?;
        progress(answers, Phase::Commit, total, total);
        peer.tell(What::Go(Go {}), &[])?;
        Ok(image)
    }

    pub(super) fn await_built(&mut self, peer: &Peer) -> Result<(), MoveError> {
        let deadline = Instant::now() + BUILD_LIMIT;
        let mut ear = Ear::new(&self.inbox, &mut self.later);
        let pick = |what| matches!(what, What::Built(_)).then_some(());
        ear.expect(peer, "the guest to be built", deadline, pick)?;
        Ok(())
    }

    /// The process has left: what remains becomes the deputy. Nothing can be undone any more, so
    /// what goes wrong here ends the job.
    fn park(&mut self, mut frozen: Frozen, peer: Peer, target: &Target, image: &ProcessImage) {
        self.note_move(target.node.clone());
        let deputy = park_threads(&mut frozen, image);
        match deputy {
            Ok((deputy, news)) => {
                let away = Away::new(deputy, peer);
                self.place = Place::Away(Box::new(away));
                self.set_state(RunState::Running, "");
                self.pass_on(news);
            }
            Err(error) => {
                let why = format!("the deputy could not be parked: {error}");
                self.fail(&error, &why);
            }
        }
    }
}

/// Parks the threads of a process whose guest was built from `image`; signals that are not in it
/// are news.
pub(super) fn park_threads(
    frozen: &mut Frozen,
    image: &ProcessImage,
) -> Result<(Deputy, Vec<News>), TraceeError> {
    release_memory(frozen)?;
    let stub = frozen.stub()?;
    forget_moved_signals(frozen, image);
    let news = frozen.signals.drain(..).map(News::Signal).collect();
    let threads = std::mem::take(&mut frozen.threads);
    let stopped = threads.into_iter().map(|thread| thread.stopped).collect();
    let deputy = Deputy::park(frozen.pid(), stopped, stub)?;
    Ok((deputy, news))
}

pub(super) fn progress(answers: &Answers, phase: Phase, done_bytes: u64, total_bytes: u64) {
    answers.send(Event::Progress {
        phase,
        done_bytes,
        total_bytes,
    });
}

/// A tracee that does not let itself be held is left as it was.
pub(super) fn tracee(error: &TraceeError) -> MoveError {
    MoveError::Process {
        error: error.to_string(),
        cantmove: !error.is_death(),
    }
}

pub(super) fn cantmove(reason: CantMove) -> MoveError {
    MoveError::Process {
        error: reason.to_string(),
        cantmove: true,
    }
}

fn capture_error(error: &CaptureError) -> MoveError {
    MoveError::Process {
        error: error.to_string(),
        cantmove: !matches!(error, CaptureError::Tracee(inner) if inner.is_death()),
    }
}
