//! A parked process makes calls, reports signals, and ends as it is told.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use proto::ids::RequestId;
use proto::v1::{HomeCall, HomeReply};

use super::deputy::{Deputy, News};
use crate::homecall::{HomeCallError, Memory, gather::gather};
use crate::tracee::{Event, Frozen, Running, Stop, Stopped, event};

type TestResult = Result<(), Box<dyn std::error::Error>>;
const LIMIT: Duration = Duration::from_secs(60);

/// A guest's memory in which nothing can be read.
struct Nothing;

impl Memory for Nothing {
    fn read(&self, _address: u64, _into: &mut [u8]) -> Result<(), HomeCallError> {
        Err(HomeCallError::Fault)
    }
    fn write(&self, _address: u64, _bytes: &[u8]) -> Result<(), HomeCallError> {
        Err(HomeCallError::Fault)
    }
}

struct Parked {
    child: Child,
    deputy: Deputy,
    news: Vec<News>,
}

impl Parked {
    fn new() -> Result<Self, Box<dyn std::error::Error>> {
        let mut command = Command::new("sleep");
        let child = command.arg("1000").stdin(Stdio::piped()).spawn()?;
        let pid = i32::try_from(child.id())?;
        let mut frozen = Frozen::freeze(pid, LIMIT)?;
        let stub = frozen.stub()?;
        let threads = frozen
            .threads
            .drain(..)
            .map(|thread| thread.stopped)
            .collect();
        let deputy = Deputy::park(pid, threads, stub)?;
        Ok(Self {
            child,
            deputy,
            news: Vec::new(),
        })
    }

    fn call(&mut self, request: u64, number: i64, args: [u64; 6]) -> TestResult {
        let gathered = gather(self.deputy.pid(), u32::try_from(number)?, args, &Nothing)?;
        let HomeCall { .. } = gathered.call;
        let id = RequestId(request);
        self.deputy
            .call(id, &gathered.call, &gathered.payload, &mut self.news)?;
        Ok(())
    }

    /// The next piece of news.
    fn next(&mut self) -> Result<News, Box<dyn std::error::Error>> {
        let deadline = Instant::now() + LIMIT;
        while self.news.is_empty() {
            let pid = self.deputy.pid();
            let event = event::wait_one(pid, deadline)?;
            self.deputy.on_event(pid, event, &mut self.news)?;
        }
        Ok(self.news.remove(0))
    }

    fn reply(&mut self) -> Result<(u64, HomeReply, Vec<u8>), Box<dyn std::error::Error>> {
        match self.next()? {
            News::Reply(id, reply, payload) => Ok((id.0, reply, payload)),
            other => Err(format!("{other:?} instead of a reply").into()),
        }
    }

    fn send(&self, signal: nix::sys::signal::Signal) -> TestResult {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.deputy.pid()), signal)?;
        Ok(())
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn calls_are_made_by_the_deputy_itself() -> TestResult {
    let mut parked = Parked::new()?;
    for request in 1..20 {
        parked.call(request, libc::SYS_getppid, [0; 6])?;
        let (id, reply, _) = parked.reply()?;
        assert_eq!((id, reply.result), (request, i64::from(std::process::id())));
    }
    Ok(())
}

#[test]
fn what_a_host_may_not_ask_for_is_refused() -> TestResult {
    let mut parked = Parked::new()?;
    let pid = parked.deputy.pid();
    for (thread, number) in [(pid, libc::SYS_execve), (pid + 1, libc::SYS_getppid)] {
        let call = HomeCall {
            thread,
            number: u32::try_from(number)?,
            args: vec![0; 6],
            buffers: Vec::new(),
        };
        parked
            .deputy
            .call(RequestId(1), &call, &[], &mut parked.news)?;
        let (_, reply, _) = parked.reply()?;
        assert_eq!(reply.result, -i64::from(libc::ENOSYS));
    }
    Ok(())
}

#[test]
fn a_call_that_blocks_ends_with_its_data() -> TestResult {
    let mut parked = Parked::new()?;
    parked.call(1, libc::SYS_read, [0, 0x1000, 100, 0, 0, 0])?;
    assert!(parked.news.is_empty());
    parked
        .child
        .stdin
        .as_mut()
        .ok_or("stdin")?
        .write_all(b"line\n")?;
    let (id, reply, payload) = parked.reply()?;
    assert_eq!((id, reply.result, reply.lengths), (1, 5, vec![5]));
    assert_eq!(payload, b"line\n");
    Ok(())
}

#[test]
fn a_signal_is_told_before_the_call_that_it_interrupts() -> TestResult {
    let mut parked = Parked::new()?;
    parked.call(1, libc::SYS_read, [0, 0x1000, 100, 0, 0, 0])?;
    parked.send(nix::sys::signal::Signal::SIGTERM)?;
    let News::Signal(seen) = parked.next()? else {
        return Err("no signal".into());
    };
    assert_eq!(seen.info.signal(), libc::SIGTERM);
    let (_, reply, _) = parked.reply()?;
    assert!(
        reply.interrupted && (-516..=-512).contains(&reply.result),
        "{reply:?}"
    );
    // And it is free for the next one.
    parked.call(2, libc::SYS_getppid, [0; 6])?;
    assert_eq!(parked.reply()?.0, 2);
    Ok(())
}

#[test]
fn a_call_can_be_withdrawn() -> TestResult {
    let mut parked = Parked::new()?;
    parked.call(1, libc::SYS_read, [0, 0x1000, 100, 0, 0, 0])?;
    std::thread::sleep(Duration::from_millis(20));
    parked.deputy.cancel(RequestId(1))?;
    let (id, reply, _) = parked.reply()?;
    assert!(id == 1 && reply.interrupted);
    parked.deputy.cancel(RequestId(1))?; // too late, and harmless
    Ok(())
}

/// Also when it is just about to end, in any of the steps that this takes.
#[test]
fn a_call_that_is_withdrawn_as_it_ends_leaves_nothing_behind() -> TestResult {
    let mut parked = Parked::new()?;
    for request in 0..20_000 {
        parked.call(request, libc::SYS_getppid, [0; 6])?;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_nanos(request % 400 * 100) {}
        parked.deputy.cancel(RequestId(request))?;
        let (id, reply, _) = parked.reply()?;
        assert_eq!(id, request);
        assert!(reply.interrupted || reply.result == i64::from(std::process::id()));
    }
    Ok(())
}

impl Parked {
    /// Unparks the deputy, looks at its threads, and parks it again.
    fn unpark(&mut self) -> Result<Vec<String>, Box<dyn std::error::Error>> {
        let (pid, stub) = (self.deputy.pid(), self.deputy.stub());
        let empty = Deputy::park(pid, Vec::new(), stub)?;
        let deputy = std::mem::replace(&mut self.deputy, empty);
        let stopped = deputy.unpark(&mut self.news)?;
        let mut left = Vec::new();
        for thread in &stopped {
            left.extend(thread.pending_signals(false)?);
        }
        self.deputy = Deputy::park(pid, stopped, stub)?;
        Ok(left.iter().map(|info| format!("{info:?}")).collect())
    }

    /// A call whose trap has happened when an interrupt came: its signal waits behind that.
    fn interrupted_at_its_trap(&mut self) -> Result<Stopped, Box<dyn std::error::Error>> {
        const TRAP_BIT: u64 = 1 << (libc::SIGTRAP - 1);
        let (pid, deadline) = (self.deputy.pid(), Instant::now() + LIMIT);
        self.call(1, libc::SYS_getppid, [0; 6])?;
        let stopped = Running::assume(pid).wait(deadline)?;
        assert_eq!(stopped.stop(), Stop::SignalDelivery(libc::SIGTRAP));
        // A signal that is blocked when it is to be delivered goes back into its queue.
        stopped.set_sigmask(TRAP_BIT)?;
        stopped.interrupt()?;
        let stopped = stopped.cont(libc::SIGTRAP)?.wait(deadline)?;
        assert_eq!(stopped.stop(), Stop::Interrupted);
        assert!(stopped.stub_trap_is_pending()?);
        stopped.set_sigmask(0)?;
        Ok(stopped)
    }
}

/// The program at home would die of it.
#[test]
fn no_trap_of_a_call_is_left_to_the_process_that_comes_home() -> TestResult {
    let mut parked = Parked::new()?;
    let stopped = parked.interrupted_at_its_trap()?;
    // As soon as it gets a CPU: it is parked, and the interrupt of the return comes first.
    stopped.interrupt()?;
    let _parked = stopped.start_call(&parked.deputy.stub(), libc::SYS_pause, [0; 6])?;
    assert_eq!(parked.unpark()?, [""; 0]);
    assert!(!parked.news.iter().any(|one| matches!(one, News::Signal(_))));
    Ok(())
}

#[test]
fn a_trap_behind_an_interrupt_ends_its_call_once() -> TestResult {
    let mut parked = Parked::new()?;
    let _interrupted = parked.interrupted_at_its_trap()?;
    let (pid, event) = (parked.deputy.pid(), Event::Stopped(Stop::Interrupted));
    parked.deputy.on_event(pid, event, &mut parked.news)?;
    assert!(parked.news.is_empty(), "{:?}", parked.news);
    let (id, reply, _) = parked.reply()?;
    assert_eq!((id, reply.result), (1, i64::from(std::process::id())));
    assert_eq!(parked.unpark()?, [""; 0]);
    Ok(())
}

#[test]
fn a_return_amid_a_call_leaves_no_trap_behind() -> TestResult {
    let mut parked = Parked::new()?;
    for request in 0..5_000 {
        parked.call(request, libc::SYS_getppid, [0; 6])?;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_nanos(request % 400 * 100) {}
        parked.deputy.cancel(RequestId(request))?;
        assert_eq!(parked.unpark()?, [""; 0], "{request}");
        let replies = |one: &News| matches!(one, News::Reply(id, ..) if id.0 == request);
        assert_eq!(parked.news.len(), 1, "{:?}", parked.news);
        assert!(parked.news.drain(..).all(|one| replies(&one)));
    }
    Ok(())
}

#[test]
fn signals_to_a_parked_process_are_taken_and_told() -> TestResult {
    let mut parked = Parked::new()?;
    for signal in [
        nix::sys::signal::Signal::SIGUSR1,
        nix::sys::signal::Signal::SIGCHLD,
    ] {
        parked.send(signal)?;
        let News::Signal(seen) = parked.next()? else {
            return Err("no signal".into());
        };
        assert_eq!(seen.info.signal(), signal as i32);
    }
    Ok(())
}

#[test]
fn the_deputy_ends_as_its_guest_did() -> TestResult {
    for (status, expected) in [
        (7 << 8, Event::Exited(7)),
        (
            libc::SIGTERM,
            Event::Killed {
                signal: libc::SIGTERM,
                core: false,
            },
        ),
        (
            libc::SIGSEGV | 0x80,
            Event::Killed {
                signal: libc::SIGSEGV,
                core: false,
            },
        ),
        (
            libc::SIGKILL,
            Event::Killed {
                signal: libc::SIGKILL,
                core: false,
            },
        ),
    ] {
        let mut parked = Parked::new()?;
        parked.deputy.end_as(status, &mut parked.news)?;
        let News::Ended(end) = parked.next()? else {
            return Err("no end".into());
        };
        assert_eq!(end, expected);
    }
    Ok(())
}
