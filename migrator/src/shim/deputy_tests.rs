//! A parked process makes calls, reports signals, and ends as it is told.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use proto::ids::RequestId;
use proto::v1::{HomeCall, HomeReply};

use super::deputy::{Deputy, News};
use crate::homecall::{HomeCallError, Memory, gather::gather};
use crate::tracee::{Event, Frozen, event};

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
