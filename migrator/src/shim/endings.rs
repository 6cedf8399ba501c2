//! Stops and ends of the deputy, so that its parent sees of the guest what it would see of a process
//! that had stayed.

use super::deputy::{Deputy, Doing, News, ignore_death};
use crate::tracee::{Event, RawSiginfo, Stopped, TraceeError, procfs};

/// Announces a stop of our own: a stop signal itself, when it is sent, would take with it a SIGCONT
/// that waits to be seen. By default it is ignored, and nobody else sends it to a single thread.
const CARRIER: i32 = libc::SIGURG;

impl Deputy {
    /// Makes the deputy stop as its guest has.
    ///
    /// # Errors
    /// [`TraceeError`], deaths excepted.
    pub fn stop_by(&mut self, signal: i32, news: &mut Vec<News>) -> Result<(), TraceeError> {
        if self.stands || self.stop_due.is_some() {
            return Ok(());
        }
        ignore_death(self.try_stop_by(signal, news))
    }

    fn try_stop_by(&mut self, signal: i32, news: &mut Vec<News>) -> Result<(), TraceeError> {
        let tid = self.pid;
        let mut stopped = self.stop_thread(tid, news)?;
        self.set_default(&mut stopped, signal, news)?;
        self.stop_due = Some(signal);
        send_to_thread(self.pid, tid, CARRIER)?;
        self.carrier_comes = true;
        self.pause(stopped)
    }

    /// The guest goes on: so does the deputy, which a SIGCONT has usually woken already.
    ///
    /// # Errors
    /// [`TraceeError`], deaths excepted.
    pub fn continues(&mut self) -> Result<(), TraceeError> {
        self.stop_due = None;
        if !std::mem::take(&mut self.stands) {
            return Ok(());
        }
        ignore_death(send_to_thread(self.pid, self.pid, libc::SIGCONT))
    }

    /// What a signal that this process sent is to do to the deputy: be delivered as which one, 0
    /// for none; `None` for a signal of somebody else.
    pub(super) fn effect_of_own(&mut self, info: &RawSiginfo) -> Option<i32> {
        let sender = info.0.get(16..20).and_then(|bytes| bytes.try_into().ok());
        let own = sender.map(u32::from_ne_bytes) == Some(std::process::id())
            && info.code() == libc::SI_TKILL;
        if !own {
            return None;
        }
        match info.signal() {
            CARRIER => {
                self.carrier_comes = false;
                // Seen from here no later SIGCONT is lost: it makes the stop void.
                let stop = self.stop_due.take().filter(|_| !self.continuation_waits());
                self.stands |= stop.is_some();
                Some(stop.unwrap_or(0))
            }
            libc::SIGCONT => Some(0),
            signal if self.own_signal == Some(signal) => {
                self.own_signal = None;
                Some(signal)
            }
            _ => None,
        }
    }

    /// Whether a SIGCONT waits to be seen.
    fn continuation_waits(&self) -> bool {
        let status = procfs::Status::of_thread(self.pid, self.pid).unwrap_or_default();
        let pending = status.mask("ShdPnd") | status.mask("SigPnd");
        pending & (1 << (libc::SIGCONT - 1)) != 0
    }

    /// Gives a signal its default action.
    fn set_default(
        &mut self,
        stopped: &mut Stopped,
        signal: i32,
        news: &mut Vec<News>,
    ) -> Result<(), TraceeError> {
        if signal == libc::SIGKILL || signal == libc::SIGSTOP {
            return Ok(());
        }
        let base = self.scratch(stopped, news)?;
        stopped.memory().write(base, &[0; 32])?; // SIG_DFL, no flags, no mask
        let args = [signal.cast_unsigned().into(), base, 0, 8, 0, 0];
        let call = ("rt_sigaction", libc::SYS_rt_sigaction);
        self.inject(stopped, call, args, news).map(drop)
    }

    /// Has a signal take its default effect on the deputy.
    fn default_signal(&mut self, signal: i32, news: &mut Vec<News>) -> Result<(), TraceeError> {
        let tid = self.pid;
        let mut stopped = self.stop_thread(tid, news)?;
        self.set_default(&mut stopped, signal, news)?;
        self.own_signal = Some(signal);
        send_to_thread(self.pid, tid, signal)?;
        self.pause(stopped)
    }

    /// Ends the deputy as its guest ended; the end comes as news.
    ///
    /// # Errors
    /// [`TraceeError`], deaths excepted.
    pub fn end_as(&mut self, status: i32, news: &mut Vec<News>) -> Result<(), TraceeError> {
        ignore_death(self.try_end_as(status, news))
    }

    fn try_end_as(&mut self, status: i32, news: &mut Vec<News>) -> Result<(), TraceeError> {
        match Event::decode(status) {
            Event::Exited(code) => {
                let stopped = self.stop_thread(self.pid, news)?;
                let args = [code.cast_unsigned().into(), 0, 0, 0, 0, 0];
                self.go(stopped, Doing::Ending, libc::SYS_exit_group, args)
            }
            Event::Killed { signal, .. } if signal != libc::SIGKILL => {
                let mut stopped = self.stop_thread(self.pid, news)?;
                let base = self.scratch(&mut stopped, news)?;
                stopped.memory().write(base, &[0; 16])?;
                let core = u64::from(libc::RLIMIT_CORE);
                let limit = ("setrlimit", libc::SYS_setrlimit);
                self.inject(&mut stopped, limit, [core, base, 0, 0, 0, 0], news)?;
                self.pause(stopped)?;
                self.default_signal(signal, news)
            }
            _ => send_to_thread(self.pid, self.pid, libc::SIGKILL),
        }
    }

    /// Ends one thread as its counterpart ended.
    ///
    /// # Errors
    /// [`TraceeError`], deaths excepted.
    pub fn end_thread(&mut self, tid: i32, news: &mut Vec<News>) -> Result<(), TraceeError> {
        if tid == self.pid || !self.threads.contains_key(&tid) {
            return Ok(());
        }
        let ended = self
            .stop_thread(tid, news)
            .and_then(|stopped| self.go(stopped, Doing::Ending, libc::SYS_exit, [0; 6]));
        ignore_death(ended)
    }
}

fn send_to_thread(pid: i32, tid: i32, signal: i32) -> Result<(), TraceeError> {
    crate::sys::signals::tgkill(pid, tid, signal)
        .map_err(|error| TraceeError::request("tgkill", tid, error))
}
