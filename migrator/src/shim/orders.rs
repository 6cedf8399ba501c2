//! What the daemon wants of a job. An order that comes while the job is being moved waits for the
//! end of that move, and is carried out from wherever the job is then.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use proto::v1::Freeze;
use proto::v1::job_message::What;

use super::comeback::Wanted;
use super::{Place, Shim, Target};
use crate::control::{Command, Event, RunState};
use crate::keeper::{Answers, Input};
use crate::sys::pidfd;

/// How long an order waits for the end of a move that is under way.
const PATIENCE: Duration = Duration::from_secs(10);

/// An order that waits for its turn.
#[derive(Debug)]
pub(super) struct Postponed {
    until: Instant,
    order: Command,
    answers: Answers,
}

impl Shim {
    pub(super) fn on_command(&mut self, command: Command, answers: Answers) {
        match (command, &self.place) {
            (Command::Status, _) => answers.send(Event::State(self.state.clone())),
            (_, Place::Gone) => answers.fail("the job has ended", false),
            (Command::Kill, _) => self.kill(&answers),
            (order, Place::Away(_)) => self.ask_back(order, answers),
            (order, Place::Home) => match Target::of(&order) {
                Some(target) => {
                    self.dismissed = false;
                    self.depart(&target, &answers);
                }
                None => {
                    answers.send(Event::Done { freeze_us: 0 });
                    self.dismissed = true;
                }
            },
        }
    }

    fn kill(&self, answers: &Answers) {
        match pidfd::send_signal(self.pidfd.as_fd(), libc::SIGKILL) {
            Ok(()) => answers.send(Event::Done { freeze_us: 0 }),
            Err(error) => answers.fail(error.to_string(), false),
        }
    }

    /// Asks the guest to come back, home or on its way to a third node.
    fn ask_back(&mut self, order: Command, answers: Answers) {
        let Place::Away(away) = &mut self.place else {
            return answers.fail("the job is not away", false);
        };
        if away.ending {
            return answers.fail("the job has ended", false);
        }
        if away.wanted.is_some() {
            let until = Instant::now() + PATIENCE;
            self.postponed.push_back(Postponed {
                until,
                order,
                answers,
            });
            return;
        }
        let asked = away.peer.tell(What::Freeze(Freeze {}), &[]);
        match asked {
            Ok(()) => {
                away.peer.set_moving(true);
                away.wanted = Some(Wanted { order, answers });
                self.set_state(RunState::Migrating, "");
            }
            Err(error) => answers.fail(error.to_string(), false),
        }
    }

    /// Lets postponed orders have their turn when no move is under way any more.
    pub(super) fn take_up_postponed(&mut self) {
        let moving = matches!(&self.place, Place::Away(away) if away.wanted.is_some());
        if !moving {
            let all = self.postponed.drain(..);
            let inputs = all.map(|one| Input::Command(one.order, one.answers));
            self.later.extend(inputs);
            return;
        }
        while let Some(first) = self.postponed.front()
            && first.until <= Instant::now()
            && let Some(late) = self.postponed.pop_front()
        {
            late.answers
                .fail("another move of the job does not end", false);
        }
    }

    /// The job is gone: so are all orders about it.
    pub(super) fn refuse_orders(&mut self, why: &str) {
        if let Place::Away(away) = &mut self.place
            && let Some(wanted) = away.wanted.take()
        {
            wanted.answers.fail(why, false);
        }
        for one in self.postponed.drain(..) {
            one.answers.fail(why, false);
        }
    }
}
