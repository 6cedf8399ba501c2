//! What each operation does: finds the owner of the file, asks it, keeps the numbers.
//! Knows nothing of FUSE; all calls may block for as long as the owner's deadline.

mod again;
mod ahead;
mod attrs;
mod behind;
mod change;
mod dirs;
mod files;
mod heritage;
mod holding;
mod identity;
#[cfg(test)]
mod lease_tests;
mod locks;
mod lookup;
mod opens;
mod outages;
mod special;
mod synthetic;
#[cfg(test)]
mod tests;
mod unsent;
mod waiters;

use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use proto::ids::NodeId;
use proto::v1::fs_reply::Result as Answer;
use proto::v1::fs_request::Op;
use proto::v1::{Attr, Caller, Entry, Forget, ForgetOne, FsRequest, Time};

use super::caller::{self, Who};
use super::config::FsConfig;
use super::inodes::{Forgotten, InodeTable, Known, Origin, Path};
use super::journal::Journal;
use super::namespace::{Synthetic, View};
use super::pool::Pool;
use omfs_service::{Errno, FileService, FsAnswer};

pub use attrs::XattrAnswer;
pub use change::NewName;
pub use dirs::DirItem;
pub use files::{Opened, Stretch};
use holding::Holding;
pub use locks::LockRequest;
use opens::Opens;
pub use outages::UNSURE;
use outages::{Outages, is_repeatable};
use waiters::LockWaiters;

/// The handle of an export's root, by contract (fs.proto).
const ROOT_HANDLE: u64 = 1;
/// The epoch of this node's own export, which lives as long as the session.
const LOCAL_EPOCH: u64 = 0;
/// Never set: for operations that cannot be withdrawn.
static NEVER: AtomicBool = AtomicBool::new(false);

pub type Outcome<T> = Result<T, Errno>;

/// An error of this module's own making.
pub const fn errno(number: i32) -> Errno {
    Errno(number)
}

/// A connection to the owner of a file.
#[derive(Clone, Debug)]
pub struct Route {
    node: NodeId,
    epoch: u64,
    service: Arc<dyn FileService>,
}

/// A real file: its owner and the owner's handle of it.
#[derive(Clone, Debug)]
struct FilePlace {
    route: Route,
    handle: u64,
    view: View,
    dev: u64,
}

/// What a node id stands for.
#[derive(Debug)]
enum Place {
    Synthetic(Synthetic),
    File(FilePlace),
}

/// A file that was looked up: its number and attributes.
#[derive(Clone, Debug)]
pub struct Found {
    /// The number the kernel shall use.
    pub id: u64,
    /// Its attributes; `attr.ino` is the owner's, not `id`.
    pub attr: Attr,
}

/// The operations of one filesystem session.
#[derive(Debug)]
pub struct Core {
    config: FsConfig,
    inodes: Mutex<InodeTable>,
    opens: Opens,
    /// Fetches what is read ahead.
    pool: Pool,
    /// Sends what is written behind.
    behind_pool: Pool,
    /// What is known of all that is written behind.
    holding: Arc<Holding>,
    /// Bytes kept by all that read ahead.
    kept_bytes: Arc<AtomicUsize>,
    journal: Journal,
    /// The caller of the last lookup: mostly the next one's, too.
    last_caller: Mutex<Arc<Caller>>,
    waiters: LockWaiters,
    outages: Outages,
    started: Time,
}

fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let since = since.unwrap_or_default();
    Time {
        s: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        ns: since.subsec_nanos(),
    }
}

impl Core {
    pub fn new(config: FsConfig, journal: Journal) -> Self {
        Self {
            config,
            journal,
            inodes: Mutex::default(),
            opens: Opens::default(),
            pool: Pool::default(),
            behind_pool: Pool::default(),
            holding: Arc::default(),
            kept_bytes: Arc::default(),
            last_caller: Mutex::default(),
            waiters: LockWaiters::default(),
            outages: Outages::default(),
            started: now(),
        }
    }

    fn inodes(&self) -> MutexGuard<'_, InodeTable> {
        self.inodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn myself(&self) -> NodeId {
        self.config.peers.myself()
    }

    /// Whether operations on this number need another node.
    pub fn is_remote(&self, id: u64) -> bool {
        self.owner(id).is_some_and(|owner| owner != self.myself())
    }

    /// The home node of a caller: its own for a guest, this one otherwise.
    fn home_of(&self, who: Who) -> NodeId {
        let guest = self.config.guests.guest(who.pid);
        guest.map_or_else(|| self.myself(), |guest| guest.home)
    }

    fn route(&self, node: NodeId) -> Outcome<Route> {
        if node == self.myself() {
            return Ok(Route {
                node,
                epoch: LOCAL_EPOCH,
                service: self.config.local.clone(),
            });
        }
        if self.config.peers.by_id(node).is_none() {
            return Err(errno(libc::ENOENT));
        }
        // A node that answers is not down, whatever is said of it.
        let session = self.config.remote.session(node)?;
        Ok(Route {
            node,
            epoch: session.epoch,
            service: session.service,
        })
    }

    /// Whether a connection is another than its node's present one.
    fn is_gone(&self, route: &Route) -> bool {
        let present = self.route(route.node);
        present.is_ok_and(|present| present.epoch != route.epoch)
    }

    fn place(&self, id: u64) -> Outcome<Place> {
        match Synthetic::of(id) {
            Some(Synthetic::NodeRoot(view, node)) => Ok(Place::File(FilePlace {
                route: self.route(node)?,
                handle: ROOT_HANDLE,
                view,
                dev: 0,
            })),
            Some(other) => Ok(Place::Synthetic(other)),
            None => self.file_place(id).map(Place::File),
        }
    }

    fn file_place(&self, id: u64) -> Outcome<FilePlace> {
        let Some(Known { key, dev }) = self.inodes().get(id) else {
            return Err(errno(libc::ESTALE));
        };
        let route = self.route(key.node)?;
        if route.epoch != key.epoch {
            return self.find_again(id);
        }
        Ok(FilePlace {
            route,
            handle: key.handle,
            view: key.view,
            dev,
        })
    }

    /// A place that must be a real file; synthetic ones refuse with `refusal`.
    fn real(&self, id: u64, refusal: i32) -> Outcome<FilePlace> {
        match self.place(id)? {
            Place::File(place) => Ok(place),
            Place::Synthetic(_) => Err(errno(refusal)),
        }
    }

    fn caller(&self, who: Who, owner: NodeId) -> Caller {
        let groups = if who.uid == 0 {
            Vec::new()
        } else {
            caller::groups(who.pid)
        };
        Caller {
            groups,
            ..self.caller_without_groups(who, owner)
        }
    }

    /// For operations on open files, where permission was checked at open.
    fn caller_without_groups(&self, who: Who, owner: NodeId) -> Caller {
        let guest = self.config.guests.guest(who.pid);
        let is_foreign = guest.is_some_and(|guest| guest.home != owner);
        let guest = guest.filter(|guest| guest.home == owner);
        Caller {
            uid: who.uid,
            gid: who.gid,
            groups: Vec::new(),
            pid: if guest.is_some() {
                caller::pid_at_home(who.pid)
            } else {
                who.pid
            },
            umask: 0,
            from_home_guest: guest.is_some(),
            guest_pid: guest.map_or(0, |guest| guest.pid.0),
            foreign_guest: is_foreign,
        }
    }

    fn ask(&self, route: &Route, caller: Caller, op: Op) -> Outcome<FsAnswer> {
        self.ask_with(route, caller, op, &[])
    }

    fn ask_with(&self, route: &Route, caller: Caller, op: Op, payload: &[u8]) -> Outcome<FsAnswer> {
        let is_repeatable = is_repeatable(&op);
        let request = FsRequest {
            caller: Some(caller),
            op: Some(op),
        };
        match route.service.call(&request, payload, &NEVER) {
            Err(Errno(libc::EHOSTDOWN)) if !is_repeatable => Err(errno(UNSURE)),
            answer => answer,
        }
    }

    /// Takes over an entry that the owner answered: from here on its count is ours to give back.
    fn remember(&self, route: &Route, view: View, entry: Entry, origin: &Origin) -> Outcome<Found> {
        let placed = {
            let mut inodes = self.inodes();
            let placed = inodes.remember(route.node, route.epoch, view, &entry);
            if let Some((id, _)) = placed
                && inodes.found_at(id, origin)
            {
                self.note_known(&inodes, id);
            }
            placed
        };
        let Some((id, displaced)) = placed else {
            let given = Forgotten {
                node: route.node,
                epoch: route.epoch,
                handle: entry.node,
                count: 1,
            };
            self.give_back(given);
            return Err(errno(libc::EIO));
        };
        if let Some(old) = displaced {
            self.give_back(old);
        }
        let attr = entry.attr.ok_or(errno(libc::EIO))?;
        Ok(Found { id, attr })
    }

    /// Where something was found, in few bytes.
    fn origin(&self, caller: Caller, path: Path) -> Origin {
        let caller = self.keep(caller);
        Origin { path, caller }
    }

    fn keep(&self, caller: Caller) -> Arc<Caller> {
        let mut last = self
            .last_caller
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if **last != caller {
            *last = Arc::new(caller);
        }
        Arc::clone(&last)
    }

    /// The kernel forgot `count` lookups of a number.
    pub fn forget(&self, id: u64, count: u64) {
        let told = {
            let mut inodes = self.inodes();
            let told = inodes.forget(id, count);
            if told.is_some() && self.journal.forgotten(id).0 {
                self.journal.rewrite_if_due(inodes.all());
            }
            told
        };
        if let Some(forgotten) = told {
            self.give_back(forgotten);
        }
    }

    fn give_back(&self, forgotten: Forgotten) {
        let Ok(route) = self.route(forgotten.node) else {
            return;
        };
        if route.epoch != forgotten.epoch {
            return;
        }
        let nodes = vec![ForgetOne {
            node: forgotten.handle,
            count: forgotten.count,
        }];
        let op = Op::Forget(Forget { nodes });
        // A lost forget costs the owner one handle until the connection ends; nothing to do.
        let _ = self.ask(&route, Caller::default(), op);
    }
}

fn entry_of(answer: FsAnswer) -> Outcome<Entry> {
    match answer.reply.result {
        Some(Answer::Entry(entry)) => Ok(entry),
        _ => Err(errno(libc::EPROTO)),
    }
}

fn attr_of(answer: FsAnswer) -> Outcome<Attr> {
    match answer.reply.result {
        Some(Answer::Attr(attr)) => Ok(attr),
        _ => Err(errno(libc::EPROTO)),
    }
}

fn count_of(answer: &FsAnswer) -> Outcome<u64> {
    match &answer.reply.result {
        Some(Answer::Count(count)) => Ok(count.value),
        _ => Err(errno(libc::EPROTO)),
    }
}
