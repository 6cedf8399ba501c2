//! Moving a process within one machine: what shim and supervisor do, without a wire between.

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use migrator::capture::{CaptureError, PageStream, capture, pages};
use migrator::image::ProcessImage;
use migrator::restore::{GuestBuilder, deputy, files, guest};
use migrator::tracee::{
    Event, Frozen, Running, Stop, Stopped, Stub, TraceeError, event, options, procfs,
};

pub type TestResult<T = ()> = Result<T, Box<dyn Error>>;

pub const LIMIT: Duration = Duration::from_secs(60);
/// The longest that a program works which ends by itself, on a busy machine.
pub const WORK_LIMIT: Duration = Duration::from_secs(300);
/// Not TRACECLONE: nobody here serves threads made away; they run untraced.
const GUEST: u32 = options::TRACESYSGOOD | options::EXITKILL;

/// Held while a child is started and while descriptors are looked at: between fork and exec a child
/// shares the descriptors of other tests.
pub static QUIET: Mutex<()> = Mutex::new(());

pub fn quiet() -> MutexGuard<'static, ()> {
    QUIET.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A child that is killed when a test ends early.
pub struct Job(pub Child);

impl Job {
    /// Starts a program.
    pub fn start(command: &mut Command) -> std::io::Result<Self> {
        let _quiet = quiet();
        command.spawn().map(Self)
    }

    pub fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    /// Waits until it has made its threads: those that are made away are no thread of the deputy's,
    /// and whoever waits for them at home waits for ever.
    pub fn await_threads(&self, count: usize) -> TestResult {
        let deadline = Instant::now() + LIMIT;
        while procfs::threads(self.pid())?.len() < count {
            if Instant::now() > deadline {
                return Err(format!("less than {count} threads").into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Drop for Job {
    /// The kernel lets go of a process only when the tracer of its threads, this process, has waited
    /// for each; nobody else does when a test ends early.
    fn drop(&mut self) {
        let _ = self.0.kill();
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline && matches!(self.0.try_wait(), Ok(None)) {
            for tid in procfs::threads(self.pid()).unwrap_or_default() {
                let _ = (tid != self.pid()).then(|| event::poll_one(tid));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The process that holds the namespaces; everything inside dies with it.
struct Cage(Child, i32);

impl Cage {
    /// One machine: its clocks are right as they are.
    fn start(pid: i32) -> TestResult<Self> {
        let _quiet = quiet();
        let mut child = Command::new(env!("CARGO_BIN_EXE_migrator-testkit"))
            .args(["cage", &pid.to_string(), "0", "0", &format!("/proc/{pid}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("stdout")?).read_line(&mut line)?;
        Ok(Self(child, line.trim().parse()?))
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

pub fn capture_quietly(frozen: &mut Frozen) -> Result<ProcessImage, CaptureError> {
    let _quiet = quiet();
    capture(frozen)
}

/// A guest that is complete and has not run.
pub struct Built {
    builder: GuestBuilder,
    cage: Cage,
}

/// Builds a guest from an image, its pages from the frozen process.
pub fn build(frozen: &Frozen, image: ProcessImage) -> TestResult<Built> {
    let pid = frozen.pid();
    let cage = Cage::start(pid)?;
    let blank = Running::seize(cage.1, guest::OPTIONS)?;
    blank.interrupt()?;
    let blank = blank.wait(Instant::now() + LIMIT)?;
    let mut builder = GuestBuilder::begin(blank, image, &std::sync::Arc::default())?;
    let mut stream = PageStream::new(pid, pages::private_pages(pid, &builder.image().vmas)?);
    while let Some(batch) = stream.next_batch()? {
        builder.write_pages(batch.runs, batch.bytes)?;
    }
    builder.finish(|_| Ok(()))?;
    Ok(Built { builder, cage })
}

/// A process that is away: its deputy and its guest.
pub struct Away {
    pub deputy: Frozen,
    threads: Vec<Running>,
    stub: Stub,
    host_pid: i32,
    cage: Cage,
}

impl Away {
    /// Moves a process out.
    pub fn start(pid: i32) -> TestResult<Self> {
        let mut frozen = Frozen::freeze(pid, LIMIT)?;
        let captured = capture_quietly(&mut frozen);
        let mut image = captured?;
        for file in &mut image.files {
            file.home |= file.offset == u64::MAX;
        }
        let guest = match build(&frozen, image) {
            Ok(guest) => guest,
            Err(error) => {
                let _ = frozen.thaw();
                return Err(error);
            }
        };
        let (stub, host_pid) = (guest.builder.stub(), guest.builder.host_pid());
        frozen.take_pending_signals()?;
        deputy::forget_moved_signals(&mut frozen, guest.builder.image());
        let threads = guest.builder.run(GUEST)?;
        deputy::release_memory(&mut frozen)?;
        Ok(Self {
            deputy: frozen,
            threads,
            stub,
            host_pid,
            cage: guest.cage,
        })
    }

    /// Serves the guest's stops for a while; its end, if it came.
    pub fn serve(&mut self, time: Duration) -> TestResult<Option<Event>> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            for index in (0..self.threads.len()).rev() {
                let tid = self.threads[index].tid();
                let Some(event) = event::poll_one(tid)? else {
                    continue;
                };
                if event.is_end() && tid == self.host_pid {
                    return Ok(Some(event));
                }
                let running = self.threads.remove(index);
                if event.is_end() {
                    continue;
                }
                let stopped = running.on_event(event)?;
                let signal = match stopped.stop() {
                    Stop::SignalDelivery(signal) => signal,
                    _ => 0,
                };
                self.threads.insert(index, stopped.cont(signal)?);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(None)
    }

    fn freeze_guest(&mut self) -> TestResult<Frozen> {
        let mut all: Vec<Stopped> = Vec::new();
        for thread in self.threads.drain(..) {
            match stop(thread) {
                Ok(stopped) => all.push(stopped),
                Err(error) if error.is_death() => {}
                Err(error) => return Err(error.into()),
            }
        }
        let known = |tid: &i32| all.iter().any(|stopped| stopped.tid() == *tid);
        if let Some(tid) = procfs::threads(self.host_pid)?
            .iter()
            .find(|tid| !known(tid))
        {
            return Err(format!("thread {tid} was made away and cannot come home").into());
        }
        Ok(Frozen::adopt(self.host_pid, all, Some(self.stub))?)
    }

    /// Brings it home: the deputy is the process again.
    pub fn home(mut self) -> TestResult {
        let mut guest = self.freeze_guest()?;
        let image = capture_quietly(&mut guest)?;
        let deputy = &mut self.deputy;
        deputy::end_missing_threads(deputy, &image)?;
        deputy::rebuild_memory(deputy, &image)?;
        let host = guest.pid();
        let mut stream = PageStream::new(host, pages::private_pages(host, &image.vmas)?);
        while let Some(batch) = stream.next_batch()? {
            deputy::write_home_pages(deputy, &image, batch.runs, batch.bytes)?;
        }
        deputy::rebuild_state(deputy, &image)?;
        for file in image
            .files
            .iter()
            .filter(|file| !file.home && file.offset > 0)
        {
            if Path::new(&format!("/proc/{}/fd/{}", deputy.pid(), file.number)).exists() {
                files::seek(deputy, file.number, file.offset)?;
            }
        }
        drop(self.cage);
        drop(guest);
        self.deputy.thaw()?;
        Ok(())
    }
}

impl Away {
    /// Ends the deputy, all threads reaped: a traced thread that is not stays, and with it the
    /// process.
    pub fn end(self) -> TestResult {
        let pid = nix::unistd::Pid::from_raw(self.deputy.pid());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?;
        for thread in self.deputy.threads.iter().rev() {
            while !event::wait_one(thread.stopped.tid(), Instant::now() + LIMIT)?.is_end() {}
        }
        Ok(())
    }
}

fn stop(mut thread: Running) -> Result<Stopped, TraceeError> {
    thread.interrupt()?;
    loop {
        let stopped = thread.wait(Instant::now() + LIMIT)?;
        match stopped.stop() {
            Stop::SignalDelivery(signal) => {
                stopped.interrupt()?;
                thread = stopped.cont(signal)?;
            }
            _ => return Ok(stopped),
        }
    }
}
