//! The signals that wait for a frozen process: taken out of the kernel's queues, and put into them.

use crate::sys::ptrace::RawSiginfo;

use super::freeze::ROUNDS_MAX;
use super::{Frozen, SignalSeen, TraceeError};

impl Frozen {
    /// Puts signals that were taken back into the queues they came from.
    ///
    /// # Errors
    /// [`TraceeError`].
    pub fn requeue_signals(&mut self) -> Result<(), TraceeError> {
        for _ in 0..ROUNDS_MAX {
            if self.signals.is_empty() {
                break;
            }
            for seen in without_void(std::mem::take(&mut self.signals)) {
                let index = self
                    .threads
                    .iter()
                    .position(|t| t.stopped.tid() == seen.tid);
                match index {
                    // A signal goes with the thread it was sent to.
                    None if seen.to_thread => {}
                    _ => self.queue_signal(index.unwrap_or(0), &seen.info, seen.to_thread)?,
                }
            }
        }
        Ok(())
    }

    /// Takes all signals that wait in the queues, to `signals`; [`Self::thaw`] and [`Self::run`] put
    /// them back.
    ///
    /// # Errors
    /// [`TraceeError`]; what has been taken by then is in `signals`.
    pub fn take_pending_signals(&mut self) -> Result<(), TraceeError> {
        for index in 0..self.threads.len() {
            self.take_queue(index, true)?;
        }
        // A thread takes those of the process when it has none of its own.
        self.take_queue(0, false)
    }

    fn take_queue(&mut self, index: usize, to_thread: bool) -> Result<(), TraceeError> {
        let Some(thread) = self.threads.get(index) else {
            return Ok(());
        };
        let tid = thread.stopped.tid();
        for info in thread.stopped.pending_signals(!to_thread)? {
            let signal = info.signal();
            if signal == libc::SIGKILL || signal == libc::SIGSTOP {
                continue;
            }
            let scratch = self.stub()?.scratch;
            let mut words = (1_u64 << (signal - 1)).to_ne_bytes().to_vec();
            words.extend_from_slice(&[0; 16]); // do not wait
            self.leader()?.stopped.memory().write(scratch, &words)?;
            let args = [scratch, 0, scratch + 8, 8, 0, 0];
            let call = ("rt_sigtimedwait", libc::SYS_rt_sigtimedwait);
            match self.call(index, call, args) {
                // It was void meanwhile: SIGCONT and stop signals cancel each other.
                Err(TraceeError::Call { .. }) => {}
                taken => {
                    taken?;
                    self.signals.push(SignalSeen {
                        tid,
                        info,
                        to_thread,
                    });
                }
            }
        }
        Ok(())
    }

    /// Queues a signal to thread `index` itself or to the process. The kernel lets only the
    /// receiver itself claim an arbitrary origin, so the call is injected.
    ///
    /// # Errors
    /// [`TraceeError`].
    pub fn queue_signal(
        &mut self,
        index: usize,
        info: &RawSiginfo,
        to_thread: bool,
    ) -> Result<(), TraceeError> {
        match info.signal() {
            libc::SIGSTOP => {
                self.stops = true;
                return Ok(());
            }
            libc::SIGCONT => self.stops = false,
            _ => {}
        }
        let stub = self.stub()?;
        let index = if to_thread { index } else { 0 };
        let own_pid = self.call(0, ("getpid", libc::SYS_getpid), [0; 6])?;
        let own_tid = self.call(index, ("gettid", libc::SYS_gettid), [0; 6])?;
        self.leader()?
            .stopped
            .memory()
            .write(stub.scratch, &info.0)?;
        let signal = info.signal() as u64;
        if to_thread {
            let args = [own_pid, own_tid, signal, stub.scratch, 0, 0];
            self.call(
                index,
                ("rt_tgsigqueueinfo", libc::SYS_rt_tgsigqueueinfo),
                args,
            )?;
        } else {
            let args = [own_pid, signal, stub.scratch, 0, 0, 0];
            self.call(0, ("rt_sigqueueinfo", libc::SYS_rt_sigqueueinfo), args)?;
        }
        Ok(())
    }
}

/// In the kernel's queues a stop makes void the SIGCONT that waits, and among signals taken from them
/// nobody has done so.
fn without_void(mut signals: Vec<SignalSeen>) -> Vec<SignalSeen> {
    let is = |wanted: i32| move |seen: &SignalSeen| seen.info.signal() == wanted;
    let last_stop = signals.iter().rposition(is(libc::SIGSTOP)).unwrap_or(0);
    let later = signals.split_off(last_stop);
    signals.retain(|seen| !is(libc::SIGCONT)(seen));
    signals.extend(later);
    signals
}

#[cfg(test)]
mod tests {
    use super::*;

    fn without(signals: &[i32]) -> Vec<i32> {
        let seen = |signal: &i32| SignalSeen::at_delivery(1, RawSiginfo::queued(*signal, 0));
        let all = without_void(signals.iter().map(seen).collect());
        all.iter().map(|seen| seen.info.signal()).collect()
    }

    #[test]
    fn a_stop_makes_earlier_continuations_void() {
        let (stop, cont, other) = (libc::SIGSTOP, libc::SIGCONT, libc::SIGUSR1);
        assert_eq!(without(&[cont, other, stop]), [other, stop]);
        assert_eq!(without(&[stop, cont, other]), [stop, cont, other]);
        assert_eq!(without(&[cont, stop, cont]), [stop, cont]);
        assert_eq!(without(&[cont, other]), [cont, other]);
        assert_eq!(without(&[]), [0; 0]);
    }
}
