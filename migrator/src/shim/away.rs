//! A job that is away: its deputy's news go to the guest, the guest's to the deputy.

use std::time::{Duration, Instant};

use proto::frame::{Frame, FrameKind};
use proto::v1::Signal;
use proto::v1::job_message::What;

use super::comeback::Wanted;
use super::deputy::{Deputy, News};
use super::sent::SentSignals;
use super::{Place, Shim};
use crate::control::RunState;
use crate::keeper::peer::message;
use crate::keeper::{Peer, PeerId};
use crate::tracee::{Event, TraceeError, event};

/// How long a process that was killed may take to end.
const END_LIMIT: Duration = Duration::from_secs(5);

/// A job at a host.
#[derive(Debug)]
pub(super) struct Away {
    pub(super) deputy: Deputy,
    pub(super) peer: Peer,
    pub(super) sent: SentSignals,
    /// Somebody wants the job elsewhere, and waits for an answer.
    pub(super) wanted: Option<Wanted>,
    /// The guest has ended; the deputy is on its way.
    pub(super) ending: bool,
}

impl Away {
    pub(super) fn new(deputy: Deputy, peer: Peer) -> Self {
        Self {
            deputy,
            peer,
            sent: SentSignals::default(),
            wanted: None,
            ending: false,
        }
    }
}

impl Away {
    /// Whether nothing is waited for that has a deadline.
    pub(super) fn is_calm(&self) -> bool {
        self.wanted.is_none() && !self.ending
    }
}

impl Shim {
    pub(super) fn on_frame(&mut self, peer: PeerId, frame: &Frame) {
        let Place::Away(away) = &mut self.place else {
            return;
        };
        if away.peer.id() != peer {
            return; // a peer of an earlier place
        }
        let handled = if frame.kind == FrameKind::Cancel {
            away.deputy
                .cancel(frame.id)
                .map_err(|error| error.to_string())
        } else {
            self.on_message(frame)
        };
        if let Err(error) = handled {
            self.lose(&error);
        }
    }

    fn on_message(&mut self, frame: &Frame) -> Result<(), String> {
        let what = message(frame).map_err(|error| error.to_string())?;
        let Place::Away(away) = &mut self.place else {
            return Ok(());
        };
        let mut news = Vec::new();
        let done: Result<(), TraceeError> = match what {
            What::HomeCall(call) if frame.kind == FrameKind::Request => {
                self.state.home_calls += 1;
                away.deputy.call(frame.id, &call, &frame.payload, &mut news)
            }
            What::Running(_) => {
                away.peer.set_moving(false);
                Ok(())
            }
            What::Stopped(stopped) => {
                self.state.state = RunState::Stopped;
                away.deputy.stop_by(stopped.signal, &mut news)
            }
            What::Continued(_) => {
                self.state.state = RunState::Running;
                away.deputy.continues()
            }
            What::ThreadGone(gone) => away.deputy.end_thread(gone.thread, &mut news),
            What::Exited(exited) => {
                away.ending = true;
                away.deputy.end_as(exited.status, &mut news)
            }
            What::Usage(usage) => {
                away.sent.taken(usage.signals_taken);
                self.state.cpu_time_ms = self.left_cpu_ms + usage.cpu_time_ms;
                self.state.memory_bytes = usage.memory_bytes;
                self.publish();
                Ok(())
            }
            What::Frozen(frozen) => {
                self.come_back(&frozen);
                Ok(())
            }
            What::Refused(refused) => {
                away.peer.set_moving(false);
                if let Some(wanted) = away.wanted.take() {
                    wanted.answers.fail(&refused.error, refused.cantmove);
                }
                self.set_state(RunState::Running, refused.error);
                Ok(())
            }
            _ => return Err("the host sent a message that makes no sense now".to_owned()),
        };
        done.map_err(|error| error.to_string())?;
        self.pass_on(news);
        Ok(())
    }

    /// Handles the deputy's state changes.
    pub(super) fn look_after_deputy(&mut self) {
        loop {
            let Place::Away(away) = &mut self.place else {
                return;
            };
            let (tid, event) = match event::poll_any() {
                Ok(Some(found)) => found,
                Ok(None) | Err(_) => break,
            };
            let mut news = Vec::new();
            if let Err(error) = away.deputy.on_event(tid, event, &mut news) {
                self.lose(&error.to_string());
                return;
            }
            self.pass_on(news);
        }
    }

    /// Sends on what the deputy has seen.
    pub(super) fn pass_on(&mut self, news: Vec<News>) {
        for one in news {
            let Place::Away(away) = &mut self.place else {
                return;
            };
            let sent = match one {
                News::Signal(seen) => {
                    let signal = Signal {
                        number: seen.info.signal(),
                        thread: if seen.to_thread { seen.tid } else { 0 },
                        info: seen.info.0.to_vec(),
                    };
                    away.sent.push(seen);
                    away.peer.tell(What::Signal(signal), &[])
                }
                News::Reply(id, reply, payload) => {
                    away.peer.reply(id, What::HomeReply(reply), &payload)
                }
                News::ThreadEnded(_) => Ok(()),
                News::Ended(end) => {
                    self.ended(end);
                    return;
                }
            };
            if sent.is_err() {
                tracing::debug!("the host is gone; the link's end tells why");
            }
        }
    }

    /// The deputy ended: because its guest did, or killed.
    fn ended(&mut self, end: Event) {
        let how = match end {
            Event::Exited(code) => format!("exited with status {code}"),
            Event::Killed { signal, .. } => format!("killed by signal {signal}"),
            Event::Stopped(_) | Event::Continued => "ended".to_owned(),
        };
        self.refuse_orders("the job has ended");
        // Dropping the peer makes the supervisor kill a guest that still runs.
        self.place = Place::Gone;
        self.set_state(RunState::Ended, how);
    }

    pub(super) fn on_lost(&mut self, peer: PeerId, why: &str) {
        let Place::Away(away) = &self.place else {
            return;
        };
        if away.peer.id() == peer && !away.ending {
            self.lose(&format!("the host is lost: {why}"));
        }
    }

    /// The guest is lost, and with it the process: the deputy has nothing to go on with.
    pub(super) fn lose(&mut self, why: &str) {
        tracing::error!(pid = self.config.pid, host = %self.state.place, why, "job lost, killing it");
        let pid = nix::unistd::Pid::from_raw(self.config.pid);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL);
        self.refuse_orders(why);
        self.await_end();
        self.place = Place::Gone;
        self.set_state(RunState::Lost, format!("killed: {why}"));
    }

    /// Something could not be done with the deputy: because it has just ended, or else it is lost.
    pub(super) fn fail(&mut self, error: &TraceeError, why: &str) {
        match error.is_death().then(|| self.await_end()).flatten() {
            Some(end) => self.ended(end),
            None => self.lose(why),
        }
    }

    /// Waits for the end of the process: the kernel lets its parent know only when its tracer has
    /// waited for all of its threads.
    fn await_end(&self) -> Option<Event> {
        let deadline = Instant::now() + END_LIMIT;
        while Instant::now() < deadline {
            match event::poll_any() {
                Ok(Some((tid, end))) if tid == self.config.pid && end.is_end() => return Some(end),
                Ok(Some(_)) => {}
                Ok(None) => std::thread::sleep(Duration::from_millis(1)),
                Err(_) => return None,
            }
        }
        None
    }
}
