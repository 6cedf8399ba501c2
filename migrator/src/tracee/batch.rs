//! Many system calls of one tracee in one go.
//!
//! [`Stopped::inject`] costs two stops for each call, and each time the tracee has to be given a
//! CPU: on a busy node that is what a move waits for. Here a loop in the stub takes the calls from
//! a table in scratch memory, writes the results down, and runs into a trap after the last.

use std::time::Instant;

use super::event::{self, Event, Stop};
use super::freeze::ALL_SIGNALS;
use super::inject::{SignalSeen, Stub, checked};
use super::{CALL_DEADLINE, Frozen, Stopped, TraceeError, procfs};
use crate::sys::regs::Regs;

/// Where the loop lies in the stub's page.
const LOOP_OFFSET: u64 = 16;
/// The loop: r12 is the table's next entry, r13 its end.
pub(super) const LOOP: [u8; 51] = [
    0x49, 0x8b, 0x04, 0x24, // next: mov rax, [r12]
    0x49, 0x8b, 0x7c, 0x24, 0x08, // mov rdi, [r12 + 8]
    0x49, 0x8b, 0x74, 0x24, 0x10, // mov rsi, [r12 + 16]
    0x49, 0x8b, 0x54, 0x24, 0x18, // mov rdx, [r12 + 24]
    0x4d, 0x8b, 0x54, 0x24, 0x20, // mov r10, [r12 + 32]
    0x4d, 0x8b, 0x44, 0x24, 0x28, // mov r8, [r12 + 40]
    0x4d, 0x8b, 0x4c, 0x24, 0x30, // mov r9, [r12 + 48]
    0x0f, 0x05, // syscall
    0x49, 0x89, 0x44, 0x24, 0x38, // mov [r12 + 56], rax
    0x49, 0x83, 0xc4, 0x40, // add r12, 64
    0x4d, 0x39, 0xec, // cmp r12, r13
    0x72, 0xce, // jb next
    0xcc, // int3
];
/// One entry of the table: number, six arguments, result.
const ENTRY_WORDS: usize = 8;
/// Most calls of one round; the table is at the end of the scratch memory.
const CALLS_MAX: usize = 32;
const TABLE_BYTES: u64 = (CALLS_MAX * ENTRY_WORDS * size_of::<u64>()) as u64;
const SIGTRAP_BIT: u64 = 1 << (libc::SIGTRAP - 1);
/// Signals by which the kernel says that an instruction cannot be executed.
const FAULTS: [i32; 4] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE];

/// A system call that returns soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its name, for errors.
    pub name: &'static str,
    /// Its number.
    pub number: i64,
    /// Its arguments.
    pub args: [u64; 6],
}

impl Call {
    /// A call with its name and number as [`Frozen::call`] takes them.
    #[must_use]
    pub fn new((name, number): (&'static str, i64), args: [u64; 6]) -> Self {
        Self { name, number, args }
    }

    fn entry(&self) -> impl Iterator<Item = u8> + use<> {
        let number = std::iter::once(self.number.cast_unsigned());
        let words = number.chain(self.args).chain(std::iter::once(0));
        words.flat_map(u64::to_ne_bytes)
    }
}

impl Stub {
    /// What is written to the beginning of a stub's page.
    pub(super) fn code_bytes(call: u64) -> Vec<u8> {
        let mut code = call.to_ne_bytes().to_vec();
        code.resize(LOOP_OFFSET as usize, 0xcc);
        code.extend_from_slice(&LOOP);
        code
    }

    fn table(&self) -> u64 {
        self.scratch + self.scratch_bytes - TABLE_BYTES
    }

    fn behind_loop(&self) -> u64 {
        self.code + LOOP_OFFSET + LOOP.len() as u64
    }
}

impl Stopped {
    /// Executes up to [`CALLS_MAX`] calls, whatever each answers; raw results in their order. All
    /// signals are blocked afterwards but SIGTRAP, which must not be ignored.
    fn inject_round(
        &mut self,
        stub: &Stub,
        calls: &[Call],
        signals: &mut Vec<SignalSeen>,
    ) -> Result<Vec<i64>, TraceeError> {
        let table = stub.table();
        let entries: Vec<u8> = calls.iter().flat_map(Call::entry).collect();
        self.memory().write(table, &entries)?;
        self.set_sigmask(ALL_SIGNALS & !SIGTRAP_BIT)?;
        let mut regs = self.regs()?.for_call(stub.code + LOOP_OFFSET, 0, [0; 6]);
        regs.rsp = stub.scratch;
        regs.r12 = table;
        regs.r13 = table + entries.len() as u64;
        self.set_regs(&regs)?;
        self.run_into_trap(stub.behind_loop(), signals)?;
        let answered = self.memory().read_words(table, calls.len() * ENTRY_WORDS)?;
        let results = answered.chunks(ENTRY_WORDS).filter_map(<[u64]>::last);
        Ok(results.map(|result| result.cast_signed()).collect())
    }

    fn run_into_trap(
        &mut self,
        behind: u64,
        signals: &mut Vec<SignalSeen>,
    ) -> Result<(), TraceeError> {
        let tid = self.tid();
        let deadline = Instant::now() + CALL_DEADLINE;
        loop {
            self.ask("PTRACE_CONT", |tid| crate::sys::ptrace::cont(tid, 0))?;
            let event = match event::wait_one(tid, deadline) {
                Err(TraceeError::Timeout { .. }) => return self.break_off().map(drop),
                other => other?,
            };
            let Event::Stopped(stop) = event else {
                return Err(TraceeError::Died { tid });
            };
            self.note_stop(stop);
            let Stop::SignalDelivery(signal) = stop else {
                if stop == Stop::Exiting {
                    return Err(TraceeError::Died { tid });
                }
                continue;
            };
            let info = self.siginfo()?;
            if signal == libc::SIGTRAP && self.regs()?.rip == behind {
                // One that waited in the thread's own queue already takes the trap's place.
                if !Stub::is_own_trap(&info) {
                    signals.push(SignalSeen::at_delivery(tid, info));
                }
                return Ok(());
            }
            if FAULTS.contains(&signal) && info.code() > 0 {
                let what = format!("signal {signal} amid injected calls");
                return Err(TraceeError::Unexpected { tid, what });
            }
            signals.push(SignalSeen::at_delivery(tid, info));
        }
    }
}

impl Frozen {
    /// Puts what system calls point to at the beginning of the scratch memory; answers the address.
    ///
    /// # Errors
    /// `Unexpected` when it is more than [`Self::calls`] leaves alone, [`TraceeError`].
    pub fn put_arguments(&mut self, bytes: &[u8]) -> Result<u64, TraceeError> {
        let stub = self.stub()?;
        if stub.scratch + bytes.len() as u64 > stub.table() {
            return Err(TraceeError::Unexpected {
                tid: self.pid(),
                what: format!("{} bytes of arguments", bytes.len()),
            });
        }
        let memory = self.leader()?.stopped.memory();
        memory.write(stub.scratch, bytes)?;
        Ok(stub.scratch)
    }

    /// Executes system calls in thread `index` (0 is the leader), one after the other, with all
    /// signals blocked and no signal stack in use; raw results in their order, whatever each is.
    /// What they point to is put into scratch memory by [`Self::put_arguments`].
    ///
    /// # Errors
    /// [`TraceeError`]; how many of the calls were made is not known then.
    pub fn calls(&mut self, index: usize, calls: &[Call]) -> Result<Vec<i64>, TraceeError> {
        let stub = self.stub()?;
        let pid = self.pid();
        let one_by_one = self.ignores_trap()?;
        let thread = self
            .threads
            .get_mut(index)
            .ok_or(TraceeError::Died { tid: pid })?;
        let mut results = Vec::with_capacity(calls.len());
        for round in calls.chunks(CALLS_MAX) {
            if !one_by_one && round.len() > 1 {
                let done = thread
                    .stopped
                    .inject_round(&stub, round, &mut self.signals)?;
                results.extend(done);
                continue;
            }
            thread.stopped.set_sigmask(ALL_SIGNALS)?;
            let regs = thread.stopped.regs()?;
            let rsp = stub.scratch;
            thread.stopped.set_regs(&Regs { rsp, ..regs })?;
            for call in round {
                let signals = &mut self.signals;
                let done = thread
                    .stopped
                    .inject(&stub, call.number, call.args, signals);
                results.push(done?);
            }
        }
        Ok(results)
    }

    /// As [`Self::calls`], of calls that must succeed.
    ///
    /// # Errors
    /// `Call` for the first that failed; those after it were made all the same.
    pub fn calls_checked(&mut self, index: usize, calls: &[Call]) -> Result<Vec<u64>, TraceeError> {
        let results = self.calls(index, calls)?;
        let pairs = calls.iter().zip(results);
        pairs.map(|(call, raw)| checked(call.name, raw)).collect()
    }

    /// The kernel resets the action of a trap that is ignored (force_sig_info_to_task() of
    /// kernel/signal.c), which a program would notice.
    fn ignores_trap(&mut self) -> Result<bool, TraceeError> {
        if let Some(known) = self.trap_ignored {
            return Ok(known);
        }
        let pid = self.pid();
        let status = procfs::Status::read(pid).map_err(|error| procfs::failed(pid, error))?;
        let ignored = status.mask("SigIgn") & SIGTRAP_BIT != 0;
        self.trap_ignored = Some(ignored);
        Ok(ignored)
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;
    use std::io::{BufRead, BufReader, Write};
    use std::process::ChildStdout;
    use std::time::Duration;

    use super::super::tests::Guest;
    use super::*;

    type TestResult = Result<(), Box<dyn Error>>;

    const LIMIT: Duration = Duration::from_secs(20);
    const GETPID: (&str, i64) = ("getpid", libc::SYS_getpid);
    const CLOSE: (&str, i64) = ("close", libc::SYS_close);
    const NOT_OPEN: [u64; 6] = [9999, 0, 0, 0, 0, 0];

    /// Runs a shell script until it has said something.
    fn start(script: &str) -> Result<(Guest, BufReader<ChildStdout>), Box<dyn Error>> {
        let mut guest = Guest::start("sh", &["-c", script])?;
        let mut output = BufReader::new(guest.0.stdout.take().ok_or("stdout")?);
        output.read_line(&mut String::new())?;
        Ok((guest, output))
    }

    /// More than fit into one round, every third of which fails.
    fn many() -> Vec<Call> {
        let one = |at: usize| match at % 3 {
            2 => Call::new(CLOSE, NOT_OPEN),
            _ => Call::new(GETPID, [0; 6]),
        };
        (0..CALLS_MAX * 2 + 7).map(one).collect()
    }

    fn check_many(frozen: &mut Frozen) -> TestResult {
        let (calls, pid) = (many(), i64::from(frozen.pid()));
        let results = frozen.calls(0, &calls)?;
        assert_eq!(results.len(), calls.len());
        for (call, result) in calls.iter().zip(results) {
            let expected = if call.name == "close" {
                -i64::from(libc::EBADF)
            } else {
                pid
            };
            assert_eq!(result, expected);
        }
        let failed = frozen.calls_checked(0, &calls);
        assert!(matches!(
            failed,
            Err(TraceeError::Call { call: "close", .. })
        ));
        Ok(())
    }

    fn signals(mask: &str, pid: i32) -> Result<u64, Box<dyn Error>> {
        Ok(procfs::Status::read(pid)?.mask(mask))
    }

    #[test]
    fn results_come_in_order_and_the_program_goes_on() -> TestResult {
        let (mut guest, mut output) = start("echo ready; cat")?;
        for _ in 0..5 {
            let mut frozen = Frozen::freeze(guest.pid(), LIMIT)?;
            check_many(&mut frozen)?;
            frozen.thaw()?;
        }
        guest.0.stdin.take().ok_or("stdin")?.write_all(b"here\n")?;
        let mut said = String::new();
        output.read_line(&mut said)?;
        assert_eq!(said, "here\n");
        Ok(())
    }

    #[test]
    fn a_program_that_ignores_traps_goes_on_doing_so() -> TestResult {
        let (guest, _output) = start("trap '' TRAP; echo ready; read line")?;
        let mut frozen = Frozen::freeze(guest.pid(), LIMIT)?;
        check_many(&mut frozen)?;
        frozen.thaw()?;
        assert_ne!(signals("SigIgn", guest.pid())? & SIGTRAP_BIT, 0);
        Ok(())
    }

    #[test]
    fn signals_that_come_meanwhile_are_delivered_afterwards() -> TestResult {
        let directory = tempfile::tempdir()?;
        let done = directory.path().join("done");
        let script = format!(
            "trap 'echo trap' TRAP; trap 'echo usr' USR1; echo ready; \
             while ! [ -e {} ]; do sleep 0.01; done; echo end",
            done.display()
        );
        let (guest, output) = start(&script)?;
        let pid = nix::unistd::Pid::from_raw(guest.pid());
        let mut frozen = Frozen::freeze(guest.pid(), LIMIT)?;
        frozen.stub()?;
        for signal in [nix::sys::signal::SIGTRAP, nix::sys::signal::SIGUSR1] {
            nix::sys::signal::kill(pid, signal)?;
        }
        check_many(&mut frozen)?;
        assert_eq!(frozen.signals.len(), 1, "SIGTRAP alone is let through");
        frozen.thaw()?;
        std::fs::write(done, "")?;
        let mut said: Vec<String> = output.lines().collect::<Result<_, _>>()?;
        said.sort();
        assert_eq!(said, ["end", "trap", "usr"]);
        Ok(())
    }

    #[test]
    fn a_program_that_is_killed_meanwhile_is_an_ordinary_answer() -> TestResult {
        let (mut guest, _output) = start("echo ready; read line")?;
        let mut frozen = Frozen::freeze(guest.pid(), LIMIT)?;
        frozen.stub()?;
        guest.0.kill()?;
        assert!(
            frozen
                .calls(0, &many())
                .is_err_and(|error| error.is_death())
        );
        Ok(())
    }
}
