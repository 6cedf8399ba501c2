//! Files whose owner's handle is gone, because the owner's daemon or this one was restarted, or the
//! connection broke: found again where they were found first, if they are still the same.
//!
//! What cannot be brought back: locks, which the owner dropped with the connection, and files that
//! have no name any more. Those are `ESTALE`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use proto::ids::NodeId;
use proto::v1::fs_reply::Result as Answer;
use proto::v1::fs_request::Op;
use proto::v1::{
    Caller, DeputyFile, Lookup, NodeArg, Open as OpenArg, Opened as OpenedAgain, Release,
};

use super::behind::WriteBehind;
use super::files::owner_flags;
use super::opens::{Open, OpenDir, OpenFile};
use super::{Core, FilePlace, Outcome, Place, ROOT_HANDLE, Route, entry_of, errno};
use crate::inodes::Path;
use crate::namespace::{self, Synthetic};
use omfs_service::{Errno, FsAnswer};

/// Directories above a file that are looked up again for it.
const DEPTH_MAX: usize = 128;
/// Guests that are asked for in the place of one that has ended.
const STAND_INS_MAX: usize = 8;

impl Core {
    /// The node that has a file.
    pub(super) fn owner(&self, id: u64) -> Option<NodeId> {
        match Synthetic::of(id) {
            Some(what) => what.owner(),
            None => Some(self.inodes().get(id)?.key.node),
        }
    }

    /// The present handle of a file that was known under another one.
    pub(super) fn find_again(&self, id: u64) -> Outcome<FilePlace> {
        self.find_again_below(id, DEPTH_MAX)
    }

    fn find_again_below(&self, id: u64, depth: usize) -> Outcome<FilePlace> {
        if let Some(Synthetic::NodeRoot(view, node)) = Synthetic::of(id) {
            return Ok(FilePlace {
                route: self.route(node)?,
                handle: ROOT_HANDLE,
                view,
                dev: 0,
            });
        }
        let stale = errno(libc::ESTALE);
        let (known, origin) = {
            let inodes = self.inodes();
            (inodes.get(id).ok_or(stale)?, inodes.origin(id))
        };
        let route = self.route(known.key.node)?;
        let place = |handle| FilePlace {
            route: route.clone(),
            handle,
            view: known.key.view,
            dev: known.dev,
        };
        if route.epoch == known.key.epoch {
            return Ok(place(known.key.handle));
        }
        let origin = origin.ok_or(stale)?;
        let op = match origin.path {
            Path::Name(parent, name) => {
                let above = depth.checked_sub(1).ok_or(stale)?;
                Op::Lookup(Lookup {
                    parent: self.find_again_below(parent, above)?.handle,
                    name: name.into(),
                })
            }
            Path::Deputy(pid, path) => Op::DeputyFile(DeputyFile {
                pid: pid.0,
                what: namespace::deputy_what(&path),
            }),
        };
        let answer = self.ask_as(&route, &origin.caller, op);
        let answer = answer.inspect_err(|error| tracing::info!(id, "not found again: {error}"));
        let entry = entry_of(answer.map_err(lost)?)?;
        let rebound = self.inodes().rebind(id, (route.node, route.epoch), &entry);
        match rebound {
            Ok(displaced) => {
                displaced.into_iter().for_each(|old| self.give_back(old));
                Ok(place(entry.node))
            }
            Err(other) => {
                tracing::info!(id, "another file is there now");
                self.give_back(other);
                Err(stale)
            }
        }
    }

    /// An open file on its owner's present connection: opened again if it was opened on another.
    /// What was held back on that is sent on this one.
    pub(super) fn current(&self, fh: u64, open: Arc<OpenFile>) -> Outcome<Arc<OpenFile>> {
        if !self.is_gone(&open.route) {
            return Ok(open);
        }
        let _turn = open
            .reopening
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match self.opens.file(fh) {
            Some(now) if Arc::ptr_eq(&now, &open) => {}
            Some(now) => return Ok(now), // another thread was faster
            None => return Err(errno(libc::EBADF)),
        }
        if open.was_locked.load(Ordering::Relaxed) {
            return Err(errno(libc::ESTALE));
        }
        let (place, opened) = self.reopened(&open).inspect_err(|error| {
            tracing::info!(fh, id = open.id, "an open file is not found again: {error}");
        })?;
        let again = self.successor(&open, place, opened);
        let replaced = self.opens.replace(fh, Open::File(Arc::clone(&again)));
        let is_closed = replaced.is_none();
        if let Some(behind) = &again.behind {
            // What goes wrong is told to whoever uses it next.
            let _ = behind.settle();
            if is_closed {
                behind.end();
            }
        }
        if is_closed {
            return Err(errno(libc::EBADF));
        }
        Ok(again)
    }

    fn reopened(&self, open: &OpenFile) -> Outcome<(FilePlace, u64)> {
        let place = self.file_place(open.id)?;
        let op = Op::Open(OpenArg {
            node: place.handle,
            flags: owner_flags(open.flags) & !(libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC),
        });
        let opened = self.open_again(&place, &open.opener, op)?;
        if opened.unmappable && open.was_stored.load(Ordering::Relaxed) {
            // Others may have mapped it meanwhile: what this node has mapped must not be used any more.
            let release = Op::Release(Release {
                fh: opened.fh,
                flock_owner: None,
            });
            let _ = self.ask(&place.route, Caller::default(), release);
            return Err(errno(libc::ESTALE));
        }
        Ok((place, opened.fh))
    }

    fn successor(&self, open: &OpenFile, place: FilePlace, fh: u64) -> Arc<OpenFile> {
        let held = open.behind.as_ref().and_then(|behind| behind.hand_over());
        let leased = open.writable && place.route.service.lease_client().is_some();
        let writes_behind = leased || held.is_some();
        Arc::new_cyclic(|weak| OpenFile {
            ahead: self.reads_ahead(&place.route, open.flags),
            behind: writes_behind.then(|| WriteBehind::new(weak.clone(), &self.holding, held)),
            route: place.route,
            handle: place.handle,
            fh,
            id: open.id,
            flags: open.flags,
            opener: Arc::clone(&open.opener),
            writable: open.writable,
            was_locked: AtomicBool::new(false),
            was_mapped: AtomicBool::new(open.was_mapped.load(Ordering::Relaxed)),
            was_stored: AtomicBool::new(open.was_stored.load(Ordering::Relaxed)),
            lock_owners: Mutex::default(),
            reopening: Mutex::default(),
        })
    }

    /// The same for a directory. Offsets in it are the owner's file system's, and last.
    pub(super) fn current_dir(&self, fh: u64, dir: Arc<OpenDir>) -> Outcome<Arc<OpenDir>> {
        if !self.is_gone(&dir.route) {
            return Ok(dir);
        }
        let Place::File(place) = self.place(dir.id)? else {
            return Err(errno(libc::ESTALE));
        };
        let op = Op::OpenDir(NodeArg { node: place.handle });
        let opened = self.open_again(&place, &dir.opener, op)?;
        let again = Arc::new(OpenDir {
            route: place.route,
            fh: opened.fh,
            id: dir.id,
            opener: Arc::clone(&dir.opener),
            view: dir.view,
            dev: dir.dev,
            buffer: Mutex::default(),
        });
        let replaced = self.opens.replace(fh, Open::Dir(Arc::clone(&again)));
        replaced.map(|()| again).ok_or(errno(libc::EBADF))
    }

    /// Asks on behalf of somebody who may have been a guest that has ended since: owners believe only
    /// in guests that are here. Then another guest of the same home will do, since what was found or
    /// opened for one of them is used by all.
    fn ask_as(&self, route: &Route, caller: &Caller, op: Op) -> Outcome<FsAnswer> {
        let mut here = Vec::new();
        if caller.from_home_guest {
            here = self.config.guests.guests_of(route.node);
            here.sort_by_key(|guest| guest.0 != caller.guest_pid);
        }
        let mut answer = Err(errno(libc::EPERM));
        let known = here.iter().map(|guest| guest.0).take(STAND_INS_MAX);
        for guest_pid in known.chain(here.is_empty().then_some(caller.guest_pid)) {
            let caller = in_the_name_of(guest_pid, caller);
            answer = self.ask(route, caller, op.clone());
            if !matches!(answer, Err(Errno(libc::EPERM))) {
                break;
            }
        }
        answer
    }

    fn open_again(&self, place: &FilePlace, opener: &Caller, op: Op) -> Outcome<OpenedAgain> {
        let answer = self.ask_as(&place.route, opener, op);
        let answer = answer.inspect_err(|error| tracing::info!("not opened again: {error}"));
        let answer = answer.map_err(lost)?;
        match answer.reply.result {
            Some(Answer::Opened(opened)) => Ok(opened),
            _ => Err(errno(libc::EPROTO)),
        }
    }
}

/// The same caller, or a guest that stands in for it: as uid 0 that acts with its own ids at home.
fn in_the_name_of(guest_pid: i32, caller: &Caller) -> Caller {
    if guest_pid == caller.guest_pid {
        return caller.clone();
    }
    Caller {
        uid: 0,
        gid: 0,
        groups: Vec::new(),
        guest_pid,
        ..caller.clone()
    }
}

/// What is not there any more, or not for the one who had it, is not found again.
fn lost(error: Errno) -> Errno {
    match error.0 {
        libc::ENOENT | libc::ENOTDIR | libc::EACCES | libc::EPERM | libc::EISDIR => {
            errno(libc::ESTALE)
        }
        _ => error,
    }
}
