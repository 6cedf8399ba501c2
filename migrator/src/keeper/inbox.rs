//! Everything a keeper reacts to, in one queue, next to the kernel's news about tracees.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use proto::frame::Frame;

use super::answers::Answers;
use super::peer_id::PeerId;
use crate::control::Command;

/// Most things waiting to be handled; senders wait when it is full.
const INPUTS_MAX: usize = 64;

/// One thing that arrived.
#[derive(Debug)]
pub enum Input {
    /// A frame of a peer.
    Frame(PeerId, Frame),
    /// A peer is gone or silent.
    Lost(PeerId, String),
    /// The daemon wants something.
    Command(Command, Answers),
}

/// Where [`Input`]s are put.
#[derive(Clone, Debug)]
pub struct InboxSender {
    queue: SyncSender<Input>,
    bell: Arc<EventFd>,
}

impl InboxSender {
    /// Hands something to the loop; false if the loop has ended.
    #[must_use]
    pub fn put(&self, input: Input) -> bool {
        self.queue.send(input).is_ok() && self.bell.write(1).is_ok()
    }
}

/// The receiving end, owned by the loop.
#[derive(Debug)]
pub struct Inbox {
    queue: Receiver<Input>,
    sender: InboxSender,
    children: SignalFd,
}

/// What woke the loop.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ready {
    /// Tracees or children changed state.
    pub children: bool,
    /// The further descriptor is readable.
    pub extra: bool,
}

impl Inbox {
    /// Blocks SIGCHLD in the calling thread and all it will start, and takes it over.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn new() -> io::Result<Self> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block()?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let children = SignalFd::with_flags(&mask, flags)?;
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let bell = Arc::new(EventFd::from_flags(flags)?);
        let (sender, queue) = sync_channel(INPUTS_MAX);
        let sender = InboxSender {
            queue: sender,
            bell,
        };
        Ok(Self {
            queue,
            sender,
            children,
        })
    }

    /// A sender for another thread.
    #[must_use]
    pub fn sender(&self) -> InboxSender {
        self.sender.clone()
    }

    /// Waits until something arrived, tracees changed state, `extra` is readable, or the timeout
    /// has passed.
    ///
    /// # Errors
    /// poll(2) failed.
    pub fn wait(&self, extra: Option<BorrowedFd<'_>>, timeout: Duration) -> io::Result<Ready> {
        let mut fds = vec![
            PollFd::new(self.children.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.sender.bell.as_fd(), PollFlags::POLLIN),
        ];
        if let Some(extra) = extra {
            fds.push(PollFd::new(extra, PollFlags::POLLIN));
        }
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let readable = |at: usize| fds.get(at).is_some_and(|fd| fd.any().unwrap_or(false));
        let ready = Ready {
            children: readable(0),
            extra: readable(2),
        };
        if ready.children {
            while let Ok(Some(_)) = self.children.read_signal() {}
        }
        Ok(ready)
    }

    /// The next thing that arrived, without waiting.
    #[must_use]
    pub fn take(&self) -> Option<Input> {
        let _ = self.sender.bell.read();
        match self.queue.try_recv() {
            Ok(input) => {
                // The bell was silenced for all that is queued, not only for this one.
                let _ = self.sender.bell.write(1);
                Some(input)
            }
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => None,
        }
    }

    /// The next thing that arrives before the deadline.
    ///
    /// # Errors
    /// poll(2) failed.
    pub fn next(&self, deadline: Instant) -> io::Result<Option<Input>> {
        loop {
            if let Some(input) = self.take() {
                return Ok(Some(input));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.wait(None, left)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_is_taken_in_order_and_wakes_the_loop() {
        let inbox = Inbox::new().unwrap();
        let started = Instant::now();
        let soon = started + Duration::from_millis(20);
        assert!(inbox.next(soon).unwrap().is_none());
        assert!(started.elapsed() >= Duration::from_millis(20));
        let sender = inbox.sender();
        for why in ["a", "b"] {
            assert!(sender.put(Input::Lost(PeerId(1), why.into())));
        }
        for expected in ["a", "b"] {
            let far = Instant::now() + Duration::from_secs(10);
            let Some(Input::Lost(_, why)) = inbox.next(far).unwrap() else {
                panic!("nothing arrived");
            };
            assert_eq!(why, expected);
        }
        assert!(inbox.take().is_none());
    }
}
