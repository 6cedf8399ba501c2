//! What a call has told the guest of a file: corrected, or asked for again at home.
//!
//! Most of what a guest asks about is a file of home that it sees here. So stat(2) and its kin run
//! here, and only what they said tells whether the path led elsewhere: to what is not there, or is
//! no file of home. Then home is asked, and the thread waits at the end of its call.

use std::time::Instant;

use proto::v1::HomeReply;
use proto::v1::job_message::What;

use super::calls::{CallInProgress, Then};
use super::decide::Trapped;
use super::guest::{Guest, Whereabouts};
use super::named;
use super::opens::{self, Look};
use crate::homecall::gather::gather;
use crate::keeper::Peer;
use crate::numbers;
use crate::sys::ptrace::RawSiginfo;
use crate::sys::regs::{NO_SYSCALL, Regs};
use crate::syscalls::filter::ARCH_X86_64;
use crate::tracee::inject::{SYSCALL_BYTES, is_restart_code};
use crate::tracee::{Memory, Running, Stopped, TraceeError};

impl Guest {
    /// A thread stands at the end of a call that tells of a file.
    pub(super) fn on_result(
        &mut self,
        stopped: Stopped,
        peer: &Peer,
    ) -> Result<Whereabouts, TraceeError> {
        let regs = stopped.regs()?;
        if regs.syscall_number() == Some(libc::SYS_rt_sigtimedwait) {
            self.describe_signal(&regs, &stopped.memory())?;
            return Ok(Whereabouts::Running(self.go_on(stopped, 0)?));
        }
        let is_homes = self.numbers.correct_result(&regs, &stopped.memory())?;
        if !is_homes && self.ask_again(stopped.tid(), &regs, peer) {
            return Ok(Whereabouts::Asking(stopped));
        }
        Ok(Whereabouts::Running(self.go_on(stopped, 0)?))
    }

    /// A thread has waited for a signal: one that was forwarded gets its description back.
    fn describe_signal(&mut self, regs: &Regs, memory: &Memory) -> Result<(), TraceeError> {
        let waited = regs.rax.cast_signed() > 0;
        let (place, mut token) = (regs.rsi, RawSiginfo::queued(0, 0));
        if !waited || place == 0 {
            return Ok(());
        }
        let described = match memory.read(place, &mut token.0) {
            Ok(()) => self.forwarded.take(&token),
            Err(error) => return not_dead(error),
        };
        match described {
            Some(info) => memory.write(place, &info.0).or_else(not_dead),
            None => Ok(()),
        }
    }

    /// Asks home in place of a call that was made here, if it named what is home's.
    fn ask_again(&mut self, tid: i32, regs: &Regs, peer: &Peer) -> bool {
        let Some((call, look)) = in_doubt(regs) else {
            return false;
        };
        let Some(id) = self.threads.get(&tid).map(|thread| thread.id) else {
            return false;
        };
        let memory = Memory::of(tid);
        let ids = self.thread_ids();
        let view = self.view(&ids);
        if !opens::leads_home(&call, look, view, &memory) {
            return false;
        }
        let (made, renamed) = view.as_home_makes_it(&call, &memory);
        let Ok(gathered) = gather(id, made.number, made.args, &renamed) else {
            return false;
        };
        // A broken link shows elsewhere.
        let Ok(request) = peer.request(What::HomeCall(gathered.call.clone()), &gathered.payload)
        else {
            return false;
        };
        self.home_calls += 1;
        if let Some(thread) = self.threads.get_mut(&tid) {
            thread.call = Some(request);
        }
        let call = CallInProgress {
            tid,
            notification: None,
            gathered,
            then: Then::Answer,
            trapped: call,
            done: 0,
            since: Instant::now(),
            withdrawn: false,
        };
        self.calls.insert(request, call);
        true
    }

    /// Home has said what a call would have told there.
    pub(super) fn told(&mut self, call: &CallInProgress, reply: &HomeReply, payload: &[u8]) {
        let Some(thread) = self.threads.get_mut(&call.tid) else {
            return; // it was killed
        };
        let at = std::mem::replace(&mut thread.at, Whereabouts::Elsewhere);
        let Whereabouts::Asking(stopped) = at else {
            thread.at = at;
            return;
        };
        // One that dies meanwhile is reported by waitpid(2) in its own time.
        if let Ok(running) = self.end_call(stopped, call, reply, payload)
            && let Some(thread) = self.threads.get_mut(&call.tid)
        {
            thread.at = Whereabouts::Running(running);
        }
    }

    fn end_call(
        &self,
        stopped: Stopped,
        call: &CallInProgress,
        reply: &HomeReply,
        payload: &[u8],
    ) -> Result<Running, TraceeError> {
        let mut regs = stopped.regs()?;
        if reply.interrupted {
            // As if it had not been made yet.
            regs.rip = regs.rip.wrapping_sub(SYSCALL_BYTES);
            regs.rax = regs.orig_rax;
        } else {
            let scattered = call.gathered.scatter(reply, payload, &stopped.memory());
            let fault = -i64::from(libc::EFAULT);
            let result = scattered.map_or(fault, |()| reply.result);
            regs.rax = result.cast_unsigned();
        }
        regs.orig_rax = NO_SYSCALL;
        stopped.set_regs(&regs)?;
        self.go_on(stopped, 0)
    }
}

/// Memory that another thread has unmapped meanwhile is no error of ours.
fn not_dead(error: TraceeError) -> Result<(), TraceeError> {
    if error.is_death() { Err(error) } else { Ok(()) }
}

/// A call that named files and has failed, or told of what may be no file of home's.
fn in_doubt(regs: &Regs) -> Option<(Trapped, Look)> {
    let number = u32::try_from(regs.syscall_number()?).ok()?;
    let lost = [libc::ENOENT, libc::ENOTDIR, libc::EACCES, libc::ELOOP];
    let look = match regs.rax.cast_signed() {
        // stat(2) has told of another file system.
        0 if numbers::tells_numbers(number) => Look::Links,
        result if lost.map(|errno| -i64::from(errno)).contains(&result) => Look::LinksOfLost,
        result if result == -i64::from(libc::EFAULT) || is_restart_code(regs.rax) => return None,
        _ => Look::Text,
    };
    let call = Trapped {
        number,
        arch: ARCH_X86_64,
        args: regs.args(),
    };
    named::names(number).then_some((call, look))
}
