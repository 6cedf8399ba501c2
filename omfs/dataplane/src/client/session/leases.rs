//! The keeper of a connection's leases: a thread that listens when no request is waiting, and gives
//! recalled leases up.
//!
//! Whoever waits for a reply reads the socket, so recalls are mostly read by such a thread. It only
//! notes them: giving up may take long. The keeper looks at the socket when nobody has for a while;
//! it never competes for a reply with the thread that waits for it.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use prost::Message;
use proto::frame::FrameKind;
use proto::ids::RequestId;
use proto::link::{FrameSink, Outgoing};
use proto::v1::FsEvent;
use proto::v1::fs_event::What;

use super::super::super::reader::{Idle, TlsSource};
use super::{FsSession, death_by};
use omfs_service::lease::{Duty, LeaseBook, LeaseClient, LeaseHolder};

/// How long the keeper leaves the socket to a thread that is reading.
const NAP: Duration = Duration::from_millis(10);
/// How long the keeper listens before it looks whether there is anything else to do.
const LISTEN_MS: u16 = 250;
/// Leases that are given up at the same time.
const GIVING_UP_MAX: usize = 16;

/// Gives recalled leases up side by side, so that one slow file does not let the time of all others run
/// out.
#[derive(Debug, Default)]
struct GivingUp {
    under_way: Arc<AtomicUsize>,
}

impl GivingUp {
    fn start(&self, session: &Weak<FsSession>, lease: u64, holder: Option<Arc<dyn LeaseHolder>>) {
        let is_free = self.under_way.fetch_add(1, Ordering::AcqRel) < GIVING_UP_MAX;
        let done = Arc::clone(&self.under_way);
        if let Some(holder) = holder.clone().filter(|_| is_free) {
            let session = Weak::clone(session);
            let job = move || {
                give_up(&session, lease, Some(holder));
                done.fetch_sub(1, Ordering::AcqRel);
            };
            let name = thread::Builder::new().name("omfs-give-up".into());
            if name.spawn(job).is_ok() {
                return;
            }
        }
        give_up(session, lease, holder);
        self.under_way.fetch_sub(1, Ordering::AcqRel);
    }
}

fn give_up(session: &Weak<FsSession>, lease: u64, holder: Option<Arc<dyn LeaseHolder>>) {
    if let Some(holder) = holder {
        holder.give_up();
    }
    if let Some(session) = session.upgrade() {
        session.tell(What::Returned(lease));
    }
}

fn keep(session: &Weak<FsSession>, socket: &TcpStream, book: &LeaseBook) {
    let giving_up = GivingUp::default();
    loop {
        match book.next_duty() {
            Duty::End => return,
            Duty::GiveUp(lease, holder) => giving_up.start(session, lease, holder),
            Duty::Listen => {
                let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
                if !matches!(poll(&mut fds, PollTimeout::from(LISTEN_MS)), Ok(1..)) {
                    continue;
                }
                let Some(session) = session.upgrade() else {
                    return;
                };
                if !session.listen() {
                    book.nap(NAP);
                }
            }
        }
    }
}

impl FsSession {
    /// Tells the peer something that is not answered.
    fn tell(&self, what: What) {
        let header = FsEvent { what: Some(what) }.encode_to_vec();
        let out = Outgoing {
            kind: FrameKind::Event,
            id: RequestId(0),
            status: 0,
            header: &header,
            payload: &[],
        };
        if let Err(error) = self.sink.send(out) {
            self.fail(death_by(&error));
        }
    }

    /// Reads what has come, unless another thread is reading; false then.
    fn listen(&self) -> bool {
        let Some(mut source) = self.lock().source.take() else {
            return false;
        };
        match self.read_what_came(&mut source) {
            Ok(()) => self.hand_over(source),
            Err(error) => self.fail(death_by(&error)),
        }
        true
    }

    pub(super) fn read_what_came(&self, source: &mut TlsSource) -> io::Result<()> {
        while let Some(frame) = source.recv_until(&mut |_| Ok(Idle::Leave))? {
            match frame.kind {
                FrameKind::Reply => self.lock().deliver(frame),
                FrameKind::Event => self.take_event(&frame),
                FrameKind::Pong => {}
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
            if !source.has_more() {
                break;
            }
        }
        Ok(())
    }
}

impl LeaseClient for FsSession {
    fn register(&self, holder: Weak<dyn LeaseHolder>) -> Option<u64> {
        self.keeper.call_once(|| {
            let (session, socket, book) = (
                Weak::clone(&self.me),
                Arc::clone(&self.socket),
                Arc::clone(&self.leases),
            );
            let keep = move || keep(&session, &socket, &book);
            let started = thread::Builder::new()
                .name("omfs-leases".into())
                .spawn(keep);
            if started.is_err() {
                // Without a keeper there are no leases on this connection.
                self.leases.end();
            }
        });
        self.leases.register(holder)
    }

    fn unregister(&self, lease: u64) {
        self.leases.unregister(lease);
    }

    fn give_back(&self, lease: u64) {
        self.leases.unregister(lease);
        self.tell(What::Returned(lease));
    }

    fn is_trusted(&self) -> bool {
        self.leases.is_trusted()
    }
}
