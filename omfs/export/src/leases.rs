//! Leases that peers hold on this node's files.
//!
//! A lease is a kernel lease on the peer's open file description: whoever opens the file in a way
//! that the lease forbids waits in open(2), and the kernel tells the watcher, which asks the peer
//! for it. A peer that does not give it back in time has stopped trusting its leases by then, because
//! it has heard nothing of us; one that writes is fenced besides (docs/leases.md).

use std::collections::HashMap;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::files::OpenFile;
use omfs_service::lease::{FENCE_AFTER, LeasePeer, TRUST_IS_OVER_AFTER};
use omfs_sys::lease::{self, LeaseKind, Told};

/// Leases of all peers together.
const LEASES_MAX: usize = 16_384;
/// How often all leases are looked at, should the kernel's word have been lost.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a new watcher may take to say its number.
const WATCHER_DEADLINE: Duration = Duration::from_secs(5);

/// Who writes behind holds back at most a small part of this. With less room on the file system every
/// write goes to the disk at once, so that ENOSPC is told of the very write that does not fit.
const ROOM_MIN_BYTES: u64 = 64 << 20;

/// Whose lease: the session's number and the peer's own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct LeaseId {
    pub session: u64,
    pub lease: u64,
}

#[derive(Debug)]
struct Held {
    file: Arc<OpenFile>,
    kind: LeaseKind,
    peer: Weak<dyn LeasePeer>,
    recalled: bool,
}

#[derive(Debug, Default)]
struct State {
    held: HashMap<LeaseId, Held>,
    /// How many of them are write leases.
    writers: usize,
    /// The description a lease is on, by the descriptor's number, which is its own while it is open.
    by_fd: HashMap<RawFd, LeaseId>,
    /// The thread that the kernel tells.
    watcher: Option<i32>,
}

/// All leases of an export.
#[derive(Debug, Default)]
pub(super) struct Leases {
    state: Mutex<State>,
    /// Whether there may be write leases: looked at without the lock.
    has_writers: AtomicBool,
    /// Signalled when a lease ends.
    ended: Condvar,
}

impl State {
    fn remove(&mut self, id: LeaseId) -> Option<Held> {
        let held = self.held.remove(&id)?;
        self.by_fd.remove(&held.file.fd().as_raw_fd());
        self.writers -= usize::from(held.kind == LeaseKind::Write);
        lease::give_up(held.file.fd());
        Some(held)
    }
}

impl Leases {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a lease for a peer; false when the file is in use otherwise, or cannot have one.
    pub fn grant(
        self: &Arc<Self>,
        id: LeaseId,
        kind: LeaseKind,
        file: &Arc<OpenFile>,
        peer: &Weak<dyn LeasePeer>,
    ) -> bool {
        if !file.is_regular || file.mount.is_synthetic || file.mount.is_remote {
            return false;
        }
        if kind == LeaseKind::Write && !has_room(file) {
            return false;
        }
        let fd = file.fd().as_raw_fd();
        let mut state = self.lock();
        let Some(watcher) = self.watcher(&mut state) else {
            return false;
        };
        let is_new = !state.by_fd.contains_key(&fd) && !state.held.contains_key(&id);
        if !is_new || state.held.len() >= LEASES_MAX {
            return false;
        }
        // With the lock held: the watcher may be told of a break before this returns.
        if lease::take(file.fd(), kind, watcher).is_err() {
            return false;
        }
        let held = Held {
            file: Arc::clone(file),
            kind,
            peer: Weak::clone(peer),
            recalled: false,
        };
        state.by_fd.insert(fd, id);
        if kind == LeaseKind::Write {
            state.writers += 1;
            self.has_writers.store(true, Ordering::Release);
        }
        state.held.insert(id, held);
        true
    }

    /// Whether anybody has a file open for writing. `reader`: a description of it that is not used otherwise.
    pub fn is_open_for_writing(self: &Arc<Self>, reader: BorrowedFd<'_>) -> bool {
        let watcher = self.watcher(&mut self.lock());
        let Some(watcher) = watcher else {
            return false;
        };
        match lease::take(reader, LeaseKind::Read, watcher) {
            Ok(()) => {
                lease::give_up(reader);
                false
            }
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        }
    }

    /// After a write: takes the file's write lease back when the file system gets full.
    pub fn mind_room(self: &Arc<Self>, file: &OpenFile) {
        if !self.has_writers() || has_room(file) {
            return;
        }
        let mut state = self.lock();
        let id = state.by_fd.get(&file.fd().as_raw_fd()).copied();
        if let Some(id) = id {
            self.recall_now(&mut state, id);
        }
    }

    /// The watcher's number; starts it when this is the first lease.
    fn watcher(self: &Arc<Self>, state: &mut State) -> Option<i32> {
        if state.watcher.is_none() {
            let leases = Arc::downgrade(self);
            let (tell, told) = mpsc::sync_channel(1);
            let watch = move || {
                if let Ok(number) = lease::become_watcher()
                    && tell.send(number).is_ok()
                {
                    watch(&leases);
                }
            };
            let started = thread::Builder::new()
                .name("export-leases".into())
                .spawn(watch);
            started.ok()?;
            state.watcher = told.recv_timeout(WATCHER_DEADLINE).ok();
        }
        state.watcher
    }

    /// A peer gives a lease back, or says that it never knew of it.
    pub fn returned(&self, id: LeaseId) {
        let ended = self.lock().remove(id);
        drop(ended);
        self.ended.notify_all();
    }

    /// A peer closes a file, and keeps nothing of it.
    pub fn closed(&self, file: &OpenFile) {
        let mut state = self.lock();
        let Some(&id) = state.by_fd.get(&file.fd().as_raw_fd()) else {
            return;
        };
        let ended = state.remove(id);
        drop(state);
        drop(ended);
        self.ended.notify_all();
    }

    /// A session has ended. Its peer may not know that yet, so its leases last until it must.
    pub fn session_ended(self: &Arc<Self>, session: u64) {
        let mut state = self.lock();
        let mut orphans = Vec::new();
        for (id, held) in &mut state.held {
            if id.session == session {
                held.recalled = true;
                orphans.push(*id);
            }
        }
        drop(state);
        if orphans.is_empty() {
            return;
        }
        let leases = Arc::clone(self);
        let expire = move || {
            thread::sleep(TRUST_IS_OVER_AFTER);
            orphans.into_iter().for_each(|id| leases.returned(id));
        };
        // Without a thread they last until the export ends, or until somebody wants one of them.
        let _ = thread::Builder::new()
            .name("export-orphans".into())
            .spawn(expire);
    }

    /// Whether any peer may hold back what it has written.
    pub fn has_writers(&self) -> bool {
        self.has_writers.load(Ordering::Acquire)
    }

    /// Waits until no other session holds back what it has written to an inode.
    pub fn settle(self: &Arc<Self>, inode: (u64, u64), except_session: u64) {
        let until = Instant::now() + 2 * FENCE_AFTER;
        let mut state = self.lock();
        if state.writers == 0 {
            self.has_writers.store(false, Ordering::Release);
        }
        loop {
            let writers: Vec<LeaseId> = {
                let all = state.held.iter();
                let of_inode = |(id, held): &(&LeaseId, &Held)| {
                    held.kind == LeaseKind::Write
                        && held.file.inode == inode
                        && id.session != except_session
                };
                all.filter(of_inode).map(|(id, _)| *id).collect()
            };
            let left = until.checked_duration_since(Instant::now());
            let (false, Some(left)) = (writers.is_empty(), left) else {
                return;
            };
            for id in writers {
                self.recall_now(&mut state, id);
            }
            let waited = self.ended.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn broken(self: &Arc<Self>, fd: RawFd) {
        let mut state = self.lock();
        let Some(&id) = state.by_fd.get(&fd) else {
            return;
        };
        self.recall(&mut state, id);
    }

    /// Looks for leases that somebody waits for.
    fn look(self: &Arc<Self>) {
        let mut state = self.lock();
        let ids: Vec<LeaseId> = state.held.keys().copied().collect();
        for id in ids {
            self.recall(&mut state, id);
        }
    }

    /// Asks for a lease back that somebody waits for, on a thread of its own, since the peer may
    /// be slow.
    fn recall(self: &Arc<Self>, state: &mut State, id: LeaseId) {
        let Some(held) = state.held.get_mut(&id) else {
            return;
        };
        if lease::is_whole(held.file.fd(), held.kind) {
            return;
        }
        self.recall_now(state, id);
    }

    fn recall_now(self: &Arc<Self>, state: &mut State, id: LeaseId) {
        let Some(held) = state.held.get_mut(&id).filter(|held| !held.recalled) else {
            return;
        };
        held.recalled = true;
        let (leases, peer, kind) = (Arc::clone(self), Weak::clone(&held.peer), held.kind);
        let started = thread::Builder::new()
            .name("export-recall".into())
            .spawn(move || leases.take_back(id, kind, &peer));
        // The next look tries again.
        held.recalled = started.is_ok();
    }

    /// Waits until a peer has given a lease back. One that only reads must have stopped to trust it
    /// after a while. One that writes is fenced: nothing that it still sends may arrive later.
    fn take_back(&self, id: LeaseId, kind: LeaseKind, peer: &Weak<dyn LeasePeer>) {
        let peer = peer.upgrade();
        if let Some(peer) = &peer
            && peer.recall(id.lease).is_err()
        {
            peer.fence();
        }
        let patience = match kind {
            LeaseKind::Read => TRUST_IS_OVER_AFTER,
            LeaseKind::Write => FENCE_AFTER,
        };
        let until = Instant::now() + patience;
        let mut state = self.lock();
        while state.held.contains_key(&id) {
            let Some(left) = until.checked_duration_since(Instant::now()) else {
                tracing::info!(?id, "a lease was not given back in time");
                if let (LeaseKind::Write, Some(peer)) = (kind, &peer) {
                    peer.fence();
                }
                let ended = state.remove(id);
                drop(state);
                drop(ended);
                self.ended.notify_all();
                return;
            };
            let waited = self.ended.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn has_room(file: &OpenFile) -> bool {
    let room = nix::sys::statvfs::fstatvfs(file.fd());
    room.is_ok_and(|room| {
        room.blocks_available().saturating_mul(room.fragment_size()) >= ROOM_MIN_BYTES
    })
}

/// The watcher's life, which ends with the export.
fn watch(leases: &Weak<Leases>) {
    loop {
        let told = lease::wait(LOOK_INTERVAL);
        let Some(leases) = leases.upgrade() else {
            return;
        };
        match told {
            Told::Broken(fd) => leases.broken(fd),
            Told::Some | Told::Nothing => leases.look(),
        }
    }
}
