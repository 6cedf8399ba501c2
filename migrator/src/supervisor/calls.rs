//! Trapped calls of the guest: decided, sent home, answered.

use std::os::fd::AsFd;
use std::time::Instant;

use proto::ids::RequestId;
use proto::v1::HomeReply;
use proto::v1::job_message::What;

use super::decide::{self, NewNumber, Trapped, Verdict};
use super::guest::Guest;
use super::opens::{self, Look, View};
use super::waits::{self, Wait};
use super::{paths, returns};
use crate::homecall::HomeCallError;
use crate::homecall::gather::{Gathered, gather};
use crate::keeper::Peer;
use crate::sys::seccomp::{Answer, Notification, NotificationId};
use crate::syscalls::{self, Class};
use crate::tracee::{Memory, procfs};

/// -ERESTARTSYS and -ERESTARTNOHAND, which only kernels and tracers see.
const ERESTARTSYS: i32 = 512;
const ERESTARTNOHAND: i32 = 514;
const ERESTART_RESTARTBLOCK: i64 = -516;

/// A call that the deputy is carrying out.
#[derive(Debug)]
pub(super) struct CallInProgress {
    pub(super) tid: i32,
    /// `None`: its thread stands at the end of the call, which it has made in vain.
    pub(super) notification: Option<NotificationId>,
    pub(super) gathered: Gathered,
    pub(super) then: Then,
    /// The call as the guest made it, and how much of it is done: a large write goes in pieces.
    pub(super) trapped: Trapped,
    pub(super) done: u64,
    pub(super) since: Instant,
    pub(super) withdrawn: bool,
}

/// What follows on success.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Then {
    Answer,
    Continue,
    /// The descriptor is gone at home whatever close(2) said.
    ForgetAndContinue(i32),
    /// This number is another of a home descriptor's.
    NoteAndContinue(i32),
}

impl Guest {
    /// Takes all calls that are trapped now.
    ///
    /// # Errors
    /// The link or the listener is broken.
    pub(super) fn take_calls(&mut self, peer: &Peer) -> std::io::Result<()> {
        while !self.freezing && self.listener.is_ready() {
            let Some(notification) = self.listener.receive()? else {
                continue;
            };
            self.on_call(&notification, peer)?;
        }
        Ok(())
    }

    fn on_call(&mut self, notification: &Notification, peer: &Peer) -> std::io::Result<()> {
        let trapped = Trapped {
            number: notification.number,
            arch: notification.arch,
            args: notification.args,
        };
        let wait = Wait::begun(&trapped, Instant::now());
        if let Some(thread) = self.threads.get_mut(&notification.thread) {
            thread.wait = wait;
        }
        let ids = self.thread_ids();
        let known = decide::Guest {
            fds: &self.fds,
            threads: &ids,
        };
        let memory = Memory::of(notification.thread);
        let look = look_at(trapped.number);
        match decide::decide(&trapped, known, &memory) {
            Verdict::Continue if opens::leads_home(&trapped, look, self.view(&ids), &memory) => {
                match syscalls::trapped_class(trapped.number) {
                    Class::Home => self.send_home(notification, &trapped, Then::Answer, peer),
                    _ => self.go_home(notification),
                }
            }
            Verdict::Continue => {
                self.correct_later(notification);
                self.answer(notification.id, Answer::Continue)
            }
            Verdict::Fail(errno) => self.answer(notification.id, Answer::Error(errno)),
            Verdict::Return => self.go_home(notification),
            Verdict::Home => self.send_home(notification, &trapped, Then::Answer, peer),
            Verdict::HomeThenContinue => {
                self.send_home(notification, &trapped, Then::Continue, peer)
            }
            Verdict::CloseAtHomeThenContinue(fd) => {
                let close = Trapped {
                    number: u32::try_from(libc::SYS_close).unwrap_or(0),
                    args: [u64::from(fd.cast_unsigned()), 0, 0, 0, 0, 0],
                    ..trapped
                };
                let then = Then::ForgetAndContinue(fd);
                self.send_home(notification, &close, then, peer)
            }
            Verdict::Duplicate {
                from,
                to,
                close_on_exec,
            } => match self.new_number(to) {
                Some(to) => {
                    let flags = if close_on_exec { libc::O_CLOEXEC } else { 0 };
                    let [from, new, flags] =
                        [from, to, flags].map(|arg| u64::from(arg.cast_unsigned()));
                    let dup3 = Trapped {
                        number: u32::try_from(libc::SYS_dup3).unwrap_or(0),
                        args: [from, new, flags, 0, 0, 0],
                        ..trapped
                    };
                    self.send_home(notification, &dup3, Then::NoteAndContinue(to), peer)
                }
                None => self.go_home(notification),
            },
        }
    }

    /// What it sees; `ids` are its threads'.
    pub(super) fn view<'g>(&'g self, ids: &'g [i32]) -> View<'g> {
        View {
            guest: decide::Guest {
                fds: &self.fds,
                threads: ids,
            },
            host_pid: self.host_pid,
            root: self.root.as_fd(),
        }
    }

    /// The number that a duplicate of a home descriptor will get here; `None` if it cannot be
    /// told, or its uses would not be trapped.
    fn new_number(&self, to: NewNumber) -> Option<i32> {
        let number = match to {
            NewNumber::At(number) => number,
            // Other threads might take it first.
            NewNumber::From(_) if self.threads.len() != 1 => return None,
            NewNumber::From(least) => {
                let taken = procfs::descriptors(self.host_pid).ok()?;
                (least.max(0)..).find(|number| !taken.contains(number))?
            }
        };
        self.fds.is_trapped(number).then_some(number)
    }

    /// A file here has a number that the filter traps: what is told of it is corrected as for others.
    /// The thread stops as soon as the call is done.
    fn correct_later(&mut self, notification: &Notification) {
        if !self.numbers.differ() || !syscalls::is_corrected(notification.number) {
            return;
        }
        let tid = notification.thread;
        if let Some(thread) = self.threads.get_mut(&tid) {
            thread.result_due = true;
            self.interrupt(tid);
        }
    }

    fn answer(&self, id: NotificationId, answer: Answer) -> std::io::Result<()> {
        self.listener.answer(id, answer).map(drop)
    }

    /// The call restarts at home: it is as if it had been interrupted before it began.
    fn go_home(&mut self, notification: &Notification) -> std::io::Result<()> {
        if !self.returns.may_be_tried() {
            let (call, errno) = (syscalls::name(notification.number), errno_for(notification));
            tracing::warn!(
                pid = self.pid,
                call,
                errno,
                "cannot go home, so the call fails"
            );
            return self.answer(notification.id, Answer::Error(errno));
        }
        self.wants_home = Some(syscalls::name(notification.number));
        self.interrupt(notification.thread);
        self.answer(notification.id, Answer::Error(ERESTARTSYS))?;
        // From here on threads are held where they stop; this one's stop is under way.
        self.freezing = true;
        Ok(())
    }

    fn send_home(
        &mut self,
        notification: &Notification,
        call: &Trapped,
        then: Then,
        peer: &Peer,
    ) -> std::io::Result<()> {
        let tid = notification.thread;
        let Some(id) = self.threads.get(&tid).map(|thread| thread.id) else {
            return self.answer(notification.id, Answer::Error(libc::ESRCH));
        };
        let (ids, memory) = (self.thread_ids(), Memory::of(tid));
        let (made, memory) = self.view(&ids).as_home_makes_it(call, &memory);
        let gathered = match gather(id, made.number, made.args, &memory) {
            Ok(gathered) => gathered,
            Err(HomeCallError::NotDescribed) => return self.go_home(notification),
            Err(HomeCallError::Fault) => {
                return self.answer(notification.id, Answer::Error(libc::EFAULT));
            }
            Err(HomeCallError::Invalid) => {
                return self.answer(notification.id, Answer::Error(libc::EINVAL));
            }
        };
        let message = What::HomeCall(gathered.call.clone());
        let request = peer.request(message, &gathered.payload)?;
        self.home_calls += 1;
        if let Some(thread) = self.threads.get_mut(&tid) {
            thread.call = Some(request);
        }
        let call = CallInProgress {
            tid,
            notification: Some(notification.id),
            gathered,
            then,
            trapped: *call,
            done: 0,
            since: Instant::now(),
            withdrawn: false,
        };
        self.calls.insert(request, call);
        Ok(())
    }

    /// Ends a call with home's answer.
    ///
    /// # Errors
    /// The listener is broken.
    pub(super) fn on_reply(
        &mut self,
        request: RequestId,
        reply: &HomeReply,
        payload: &[u8],
        peer: &Peer,
    ) -> std::io::Result<()> {
        let Some(call) = self.calls.remove(&request) else {
            return Ok(());
        };
        tracing::trace!(
            thread = call.tid,
            call = %syscalls::name(call.gathered.call.number),
            args = ?call.gathered.call.args,
            result = reply.result,
            interrupted = reply.interrupted,
            "home call"
        );
        if let Some(thread) = self.threads.get_mut(&call.tid) {
            thread.call = None;
        }
        let Some(notification) = call.notification else {
            self.told(&call, reply, payload);
            return Ok(());
        };
        if reply.interrupted && call.done > 0 {
            // As write(2) itself does when it is interrupted after some bytes.
            return self.answer(notification, Answer::Value(call.written(0)));
        }
        if reply.interrupted {
            // The restart code must not reach user space: the thread has to pass through its
            // kernel's signal handling, which an interrupt makes sure of.
            let _ = waits::write_rest(&call.trapped, call.since.elapsed(), &Memory::of(call.tid));
            self.interrupt(call.tid);
            let code = match reply.result {
                ERESTART_RESTARTBLOCK => ERESTARTNOHAND,
                code @ -515..=-512 => i32::try_from(-code).unwrap_or(ERESTARTSYS),
                _ => ERESTARTSYS,
            };
            return self.answer(notification, Answer::Error(code));
        }
        if !self.listener.is_valid(notification) {
            return Ok(()); // its thread was killed
        }
        let call = match self.next_piece(call, reply.result, peer)? {
            Some(call) => call,
            None => return Ok(()),
        };
        let scattered = call.gathered.scatter(reply, payload, &Memory::of(call.tid));
        let failed = reply.result < 0;
        let answer = match call.then {
            Then::ForgetAndContinue(fd) => {
                self.fds.forget(u64::from(fd.cast_unsigned()));
                Answer::Continue
            }
            Then::NoteAndContinue(fd) if !failed => {
                self.fds.duplicated(fd);
                Answer::Continue
            }
            Then::Continue if !failed => Answer::Continue,
            _ if scattered.is_err() => Answer::Error(libc::EFAULT),
            _ if call.done > 0 => Answer::Value(call.written(reply.result)),
            _ if failed => Answer::Error(i32::try_from(-reply.result).unwrap_or(libc::EIO)),
            _ => Answer::Value(reply.result),
        };
        self.answer(notification, answer)
    }

    /// Sends the next piece of a large write; gives the call back if there is none.
    fn next_piece(
        &mut self,
        mut call: CallInProgress,
        result: i64,
        peer: &Peer,
    ) -> std::io::Result<Option<CallInProgress>> {
        let [fd, start, count, ..] = call.trapped.args;
        let sent = call.gathered.call.args.get(2).copied().unwrap_or(0);
        let whole = u64::try_from(result).ok() == Some(sent);
        let write = i64::from(call.trapped.number) == libc::SYS_write;
        if !write || !whole || call.withdrawn || call.done + sent >= count {
            return Ok(Some(call));
        }
        let done = call.done + sent;
        let args = [fd, start.wrapping_add(done), count - done, 0, 0, 0];
        let thread = call.gathered.call.thread;
        let Ok(next) = gather(thread, call.trapped.number, args, &Memory::of(call.tid)) else {
            return Ok(Some(call)); // a short write up to where memory ends
        };
        let request = peer.request(What::HomeCall(next.call.clone()), &next.payload)?;
        call.gathered = next;
        call.done = done;
        if let Some(thread) = self.threads.get_mut(&call.tid) {
            thread.call = Some(request);
        }
        self.calls.insert(request, call);
        Ok(None)
    }
}

/// What changes a name is looked at but briefly.
fn look_at(number: u32) -> Look {
    if paths::opens(number) || syscalls::is_corrected(number) {
        Look::Links
    } else {
        Look::Text
    }
}

fn errno_for(notification: &Notification) -> i32 {
    returns::errno_for(i64::from(notification.number))
}

impl CallInProgress {
    /// The result of a write of which earlier pieces are done.
    fn written(&self, result: i64) -> i64 {
        i64::try_from(self.done).unwrap_or(i64::MAX) + result.max(0)
    }
}
