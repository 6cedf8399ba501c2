//! The guest leaves: its image and pages go home, and it is discarded when home has taken it.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use proto::v1::job_message::What;
use proto::v1::{Frozen as FrozenMessage, ProcessImage, Refused};

use super::fds::FdKind;
use super::guest::{Guest, Thread, Whereabouts};
use super::host::{End, Host};
use crate::capture::{PageStream, capture, pages};
use crate::image::{FileImage, FileKind, places};
use crate::keeper::transfer::{Ear, MoveError, send_image, send_pages};
use crate::restore::GuestBuilder;
use crate::sys::pidfd;
use crate::sys::ptrace::RawSiginfo;
use crate::tracee::procfs::{self, Maps};
use crate::tracee::{Frozen, Running, SignalSeen, Stopped, TraceeError, options};

/// How long home may take to take the process after the last page, if its end or its silence does not
/// end the link before.
const TAKE_LIMIT: Duration = Duration::from_secs(3600);
/// Options of a guest's threads.
pub(super) const GUEST_OPTIONS: u32 =
    options::TRACESYSGOOD | options::TRACESECCOMP | options::EXITKILL;

impl Host<'_> {
    /// Sends the frozen guest home and waits for what becomes of it.
    pub(super) fn leave(&mut self) -> io::Result<Option<End>> {
        let returning_for = self.guest.wants_home.take().unwrap_or_default();
        let by_itself = !returning_for.is_empty();
        let frozen = FrozenMessage {
            returning_for,
            signals_taken: Some(self.guest.signals_taken),
        };
        if let Some(usage) = self.usage() {
            self.peer.tell(What::Usage(usage), &[])?; // what it used here counts to the last
        }
        self.peer.tell(What::Frozen(frozen), &[])?;
        let mut frozen = self.guest.take_frozen().map_err(io::Error::other)?;
        let end = match self.send(&mut frozen) {
            Ok(()) => self.verdict(frozen),
            Err(MoveError::Link(error)) => Ok(Some(End::Abandoned(error.to_string()))),
            Err(error) => {
                let refused = Refused {
                    error: error.to_string(),
                    cantmove: error.is_cantmove(),
                };
                self.peer.tell(What::Refused(refused), &[])?;
                self.resume(frozen)
            }
        }?;
        if end.is_none() && by_itself {
            self.guest.returns.failed();
        }
        Ok(end)
    }

    /// Waits for what becomes of the process. From when home has all of it, the guest may go on
    /// only if home says so: else it might run twice.
    fn verdict(&mut self, frozen: Frozen) -> io::Result<Option<End>> {
        let deadline = Instant::now() + TAKE_LIMIT;
        loop {
            let mut ear = Ear::new(self.inbox, &mut self.later);
            match ear.next(&self.peer, "home to take the process", deadline) {
                Ok((What::Taken(_), _)) => return Ok(Some(End::Left)),
                Ok((What::Resume(_), _)) => return self.resume(frozen),
                Ok((What::Signal(signal), _)) => self.guest.signal(&signal, &self.peer),
                // Home's wish crossed the guest's own on the way.
                Ok((What::Freeze(_) | What::HomeReply(_), _)) => {}
                Ok(_) => {
                    let error = MoveError::Unexpected("home to take the process");
                    return Ok(Some(End::Abandoned(error.to_string())));
                }
                Err(error) => return Ok(Some(End::Abandoned(error.to_string()))),
            }
        }
    }

    fn resume(&mut self, frozen: Frozen) -> io::Result<Option<End>> {
        self.peer.set_moving(false);
        self.guest.run_on(frozen).map_err(io::Error::other)?;
        Ok(None)
    }

    fn send(&mut self, frozen: &mut Frozen) -> Result<(), MoveError> {
        let mut image = capture(frozen).map_err(|error| MoveError::process(&error))?;
        self.guest.correct(&mut image);
        places::name_here(&mut image, &self.config.here);
        places::name_home(&mut image, &self.config.home);
        places::mark_nameless(&mut image);
        push_written(frozen.pid(), &image.files)?;
        send_image(&self.peer, &image)?;
        let runs = pages::private_pages(frozen.pid(), &image.vmas)
            .map_err(|error| MoveError::process(&error))?;
        send_pages(&self.peer, &mut PageStream::new(frozen.pid(), runs), |_| {})?;
        Ok(())
    }
}

/// Makes the host send home what it may still hold back of files the guest has written: whoever
/// has the process next must find it, through descriptors that are open already. close(2) of any
/// descriptor does that, and waits for no disk.
fn push_written(pid: i32, files: &[FileImage]) -> Result<(), MoveError> {
    let failed = |error: &dyn std::fmt::Display| MoveError::process(&error.to_string());
    let written = files.iter().filter(|file| {
        let reads_only = file.flags & libc::O_ACCMODE as u32 == libc::O_RDONLY as u32;
        file.kind() == FileKind::Regular && !file.home && !reads_only && file.same_as == 0
    });
    let mut process = None;
    for file in written {
        if process.is_none() {
            process = Some(pidfd::open(pid).map_err(|error| failed(&error))?);
        }
        if let Some(process) = &process {
            let twin = pidfd::get_fd(process.as_fd(), file.number);
            let twin = twin.map_err(|error| failed(&error))?;
            nix::unistd::close(twin).map_err(|error| failed(&error))?;
        }
    }
    Ok(())
}

impl Guest {
    /// All threads, held, as a frozen process that may be entered past the filter.
    fn take_frozen(&mut self) -> Result<Frozen, TraceeError> {
        let leader = self.host_pid;
        let mut held: Vec<Stopped> = Vec::new();
        for thread in self.threads.values_mut() {
            let at = std::mem::replace(&mut thread.at, Whereabouts::Elsewhere);
            if let Whereabouts::Held(stopped) = at {
                stopped.set_options(GUEST_OPTIONS | options::SUSPEND_SECCOMP)?;
                held.push(stopped);
            }
        }
        let mut signals = Vec::new();
        let mut held = self.out_of_vdso(held, &mut signals)?;
        held.sort_by_key(|stopped| stopped.tid() != leader);
        let mut frozen = Frozen::adopt(leader, held, self.stub)?;
        frozen.signals = signals;
        Ok(frozen)
    }

    /// No thread stays amid a function of the vdso: those that tell the time read a page that only
    /// processes in a time namespace have, and home's process would get SIGBUS.
    fn out_of_vdso(
        &self,
        held: Vec<Stopped>,
        signals: &mut Vec<SignalSeen>,
    ) -> Result<Vec<Stopped>, TraceeError> {
        let maps =
            Maps::read(self.host_pid).map_err(|error| procfs::failed(self.host_pid, error))?;
        let Some(vdso) = maps.named("[vdso]") else {
            return Ok(held);
        };
        let code = vdso.start..vdso.end;
        held.into_iter()
            .map(|stopped| stopped.step_out_of(&code, signals))
            .collect()
    }

    /// Puts into an image what only the supervisor knows.
    fn correct(&self, image: &mut ProcessImage) {
        let pending = image
            .threads
            .iter_mut()
            .map(|thread| &mut thread.pending_signals);
        for list in pending.chain([&mut image.pending_signals]) {
            for bytes in list {
                if let Ok(info) = RawSiginfo::try_from(&bytes[..]) {
                    *bytes = self.forwarded.translate(&info).0.to_vec();
                }
            }
        }
        let mapped = image.vmas.iter_mut().filter_map(|vma| vma.file.as_mut());
        let open = image.files.iter_mut().filter_map(|file| file.id.as_mut());
        let others = [image.cwd_id.as_mut(), image.exe_id.as_mut()];
        for id in mapped.chain(open).chain(others.into_iter().flatten()) {
            self.numbers.translate(id);
        }
        let now = Instant::now();
        for thread in &mut image.threads {
            let known = self.threads.get(&thread.host_tid);
            if let Some(wait) = known.and_then(|known| known.wait) {
                wait.shorten(thread, now);
            }
        }
        for file in &mut image.files {
            let kind = self.fds.kind(u64::from(file.number.cast_unsigned()));
            file.home = kind == FdKind::Home;
            file.opened_away = kind == FdKind::Local;
        }
    }

    /// Lets a guest run that was built here.
    pub(super) fn begin(&mut self, builder: GuestBuilder) -> Result<(), TraceeError> {
        let ids: Vec<i32> = builder
            .image()
            .threads
            .iter()
            .map(|thread| thread.tid)
            .collect();
        let running = builder.run(GUEST_OPTIONS)?;
        for (running, id) in running.into_iter().zip(ids) {
            let thread = Thread {
                id,
                at: Whereabouts::Elsewhere,
                call: None,
                result_due: false,
                wait: None,
            };
            self.threads.insert(running.tid(), thread);
            self.goes_on(running);
        }
        Ok(())
    }

    /// Lets a frozen guest run on.
    fn run_on(&mut self, frozen: Frozen) -> Result<(), TraceeError> {
        self.freezing = false;
        for running in frozen.run(GUEST_OPTIONS)? {
            self.goes_on(running);
        }
        Ok(())
    }

    fn goes_on(&mut self, running: Running) {
        if let Some(thread) = self.threads.get_mut(&running.tid()) {
            thread.call = None;
            thread.at = Whereabouts::Running(running);
        }
    }
}
