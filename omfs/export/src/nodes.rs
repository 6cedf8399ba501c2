//! The inodes one session has looked up.
//!
//! A node is found again by a file handle where the file system has them, so that any number of
//! nodes needs few descriptors; a bounded set of `O_PATH` descriptors is kept for those used last.
//! Elsewhere (procfs, overlayfs without `nfs_export`), and for inodes that have no name any more,
//! the node keeps its descriptor as long as the peer knows it.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::Errno;
use super::deputy::Grant;
use super::limits::{Counted, Limits};
use super::mounts::Mount;
use super::places::Place;
use omfs_sys::file::{self, Freshness, Stat};
use omfs_sys::handle::FileHandle;

/// The node of the export's root.
pub(super) const ROOT: u64 = 1;

/// Names an inode for as long as it exists. The mount belongs to it: the same directory seen
/// through two mounts has different things mounted inside.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Key {
    mount: u64,
    dev: u64,
    ino: u64,
}

impl Key {
    fn of(stat: &Stat) -> Self {
        Self {
            mount: stat.mount,
            dev: stat.dev,
            ino: stat.ino,
        }
    }
}

#[derive(Debug)]
struct Node {
    key: Key,
    kind: u32,
    lookups: u64,
    mount: Arc<Mount>,
    /// Its own of a directory, its directory's of anything else; as it was found last.
    place: Arc<Place>,
    handle: Option<FileHandle>,
    /// Held until the node is forgotten.
    pinned: Option<Counted<Arc<OwnedFd>>>,
    /// Held until it has not been used for a while.
    cached: Option<Counted<Arc<OwnedFd>>>,
    /// Finds a descriptor that somebody holds, an open file for example.
    last: Weak<OwnedFd>,
    used_recently: bool,
    /// What a deputy that holds it open may do with it.
    grant: Option<Grant>,
}

/// A node with a descriptor to act on.
#[derive(Clone, Debug)]
pub(super) struct NodeRef {
    pub id: u64,
    /// `O_PATH`, or an open file of the same inode.
    pub fd: Arc<OwnedFd>,
    /// The type bits of `st_mode`.
    pub kind: u32,
    pub mount: Arc<Mount>,
    pub place: Arc<Place>,
}

#[derive(Debug, Default)]
struct Inner {
    newest: u64,
    nodes: HashMap<u64, Node>,
    by_key: HashMap<Key, u64>,
    /// Nodes with `cached` set, oldest first; some are gone or have lost it since.
    clock: VecDeque<u64>,
    cached: usize,
}

/// All nodes of a session.
#[derive(Debug)]
pub(super) struct Nodes {
    limits: Arc<Limits>,
    inner: Mutex<Inner>,
}

impl Nodes {
    /// A table that knows the root only.
    pub fn new(
        limits: Arc<Limits>,
        (root, stat): (Arc<OwnedFd>, &Stat),
        mount: Arc<Mount>,
        place: Arc<Place>,
    ) -> Self {
        let node = Node {
            key: Key::of(stat),
            kind: stat.mode & libc::S_IFMT,
            lookups: 1,
            mount,
            place,
            handle: None,
            last: Arc::downgrade(&root),
            pinned: Some(Counted::free(root)),
            cached: None,
            used_recently: false,
            grant: None,
        };
        let mut inner = Inner {
            newest: ROOT,
            ..Inner::default()
        };
        inner.by_key.insert(node.key, ROOT);
        inner.nodes.insert(ROOT, node);
        Self {
            limits,
            inner: Mutex::new(inner),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A descriptor for a node. Must be called with this process' own identity.
    ///
    /// # Errors
    /// `ESTALE` for a node that was not given out, or whose inode was deleted behind our back.
    pub fn get(&self, id: u64) -> Result<NodeRef, Errno> {
        let mut inner = self.lock();
        let node = inner.nodes.get_mut(&id).ok_or(Errno(libc::ESTALE))?;
        node.used_recently = true;
        let (kind, mount, place) = (node.kind, Arc::clone(&node.mount), Arc::clone(&node.place));
        if let Some(fd) = node.last.upgrade() {
            return Ok(NodeRef {
                id,
                fd,
                kind,
                mount,
                place,
            });
        }
        let handle = node.handle.clone().ok_or(Errno(libc::ESTALE))?;
        drop(inner);
        let anchor = mount.anchor.as_ref().ok_or(Errno(libc::ESTALE))?;
        let fd = Arc::new(handle.open_path(anchor.as_fd())?);
        self.lock().cache(&self.limits, id, &fd);
        Ok(NodeRef {
            id,
            fd,
            kind,
            mount,
            place,
        })
    }

    /// Gives out a node for the inode behind `fd`, or one more count of the node it already has.
    ///
    /// # Errors
    /// `ENFILE` when the session has as many nodes, or the export as many pinned descriptors, as
    /// it may.
    pub fn enter(
        &self,
        fd: &Arc<OwnedFd>,
        stat: &Stat,
        (mount, place): (&Arc<Mount>, &Arc<Place>),
        keep: Keep,
    ) -> Result<u64, Errno> {
        let key = Key::of(stat);
        if let Some(id) = self.enter_held(key, place) {
            return Ok(id);
        }
        let handle = mount
            .anchor
            .as_ref()
            .and_then(|_| FileHandle::of(fd.as_fd()).ok());
        let mut inner = self.lock();
        if let Some(id) = inner.find(key, handle.as_ref()) {
            inner.count_lookup(id, fd, handle, place);
            if keep == Keep::Cached {
                inner.cache(&self.limits, id, fd);
            }
            return Ok(id);
        }
        if inner.nodes.len() >= self.limits.nodes_per_session_max {
            return Err(Errno(libc::ENFILE));
        }
        let must_pin = handle.is_none() || stat.nlink == 0 || keep == Keep::Pinned;
        let pinned = if must_pin {
            Some(self.limits.count_pinned(Arc::clone(fd))?)
        } else {
            None
        };
        let node = Node {
            key,
            kind: stat.mode & libc::S_IFMT,
            lookups: 1,
            mount: Arc::clone(mount),
            place: Arc::clone(place),
            handle,
            pinned,
            cached: None,
            last: Arc::downgrade(fd),
            used_recently: false,
            grant: None,
        };
        let id = inner.add(node);
        if !must_pin && keep == Keep::Cached {
            inner.cache(&self.limits, id, fd);
        }
        Ok(id)
    }

    /// One more count for a node whose inode is held by a descriptor: then its number cannot have
    /// been taken over by another, and no handle is needed to tell.
    fn enter_held(&self, key: Key, place: &Arc<Place>) -> Option<u64> {
        let mut inner = self.lock();
        let id = *inner.by_key.get(&key)?;
        let node = inner.nodes.get_mut(&id)?;
        if node.last.strong_count() == 0 {
            return None;
        }
        node.lookups += 1;
        node.used_recently = true;
        node.place = Arc::clone(place);
        Some(id)
    }

    /// Makes sure that the inode of a node the peer knows lives on without a name; answers the node
    /// if it was not sure before. Must be called with this process' own identity.
    pub fn pin(&self, stat: &Stat) -> Option<u64> {
        let id = self.lock().by_key.get(&Key::of(stat)).copied()?;
        let node = self.get(id).ok()?;
        let mut inner = self.lock();
        let entry = inner.nodes.get_mut(&node.id)?;
        if entry.pinned.is_some() {
            return None;
        }
        // At the bound the node is lost with its last name, as on any NFS server.
        entry.pinned = self.limits.count_pinned(Arc::clone(&node.fd)).ok();
        entry.last = Arc::downgrade(&node.fd);
        entry.pinned.is_some().then_some(id)
    }

    /// Takes a pin back from a node that still has its name, and so can be found by its handle.
    pub fn unpin(&self, id: u64) {
        let mut inner = self.lock();
        let node = inner.nodes.get_mut(&id);
        let pin = node
            .filter(|node| node.handle.is_some())
            .and_then(|node| node.pinned.take());
        drop(inner);
        drop(pin);
    }

    /// Notes what a deputy may do with a node that it holds open.
    pub fn grant(&self, id: u64, grant: Grant) {
        if let Some(node) = self.lock().nodes.get_mut(&id) {
            node.grant = Some(grant);
        }
    }

    /// What was noted so.
    pub fn granted(&self, id: u64) -> Option<Grant> {
        self.lock().nodes.get(&id)?.grant
    }

    /// Takes back `count` of the times a node was given out. The root is never forgotten.
    pub fn forget(&self, id: u64, count: u64) {
        if id == ROOT {
            return;
        }
        let mut inner = self.lock();
        let Some(node) = inner.nodes.get_mut(&id) else {
            return;
        };
        node.lookups = node.lookups.saturating_sub(count);
        if node.lookups > 0 {
            return;
        }
        let removed = inner.remove(id);
        // The last descriptor of a large deleted file takes its time to close.
        drop(inner);
        drop(removed);
    }

    /// Closes cached descriptors that were not used since the last call, so that a file deleted
    /// natively gives its space back and an idle mount can be unmounted.
    pub fn sweep(&self) {
        let mut inner = self.lock();
        let ids: Vec<u64> = inner.clock.drain(..).collect();
        for id in ids {
            let Some(node) = inner.nodes.get_mut(&id) else {
                continue;
            };
            if std::mem::take(&mut node.used_recently) && node.cached.is_some() {
                inner.clock.push_back(id);
            } else if node.cached.take().is_some() {
                inner.cached -= 1;
            }
        }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.lock().nodes.len()
    }

    #[cfg(test)]
    pub fn cached(&self) -> usize {
        self.lock().cached
    }
}

/// What becomes of the descriptor an inode was entered with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Keep {
    /// Kept for a while: it is likely to be used next.
    Cached,
    /// Closed where the inode can be found again.
    Nothing,
    /// Kept until the node is forgotten.
    Pinned,
}

impl Inner {
    /// The node of an inode, unless its number has been taken over by a younger inode.
    fn find(&mut self, key: Key, handle: Option<&FileHandle>) -> Option<u64> {
        let id = *self.by_key.get(&key)?;
        let node = self.nodes.get(&id)?;
        let is_held = node.last.strong_count() > 0;
        if is_held || node.handle.as_ref() == handle || same_inode_still(node) {
            return Some(id);
        }
        self.by_key.remove(&key);
        None
    }

    fn count_lookup(
        &mut self,
        id: u64,
        fd: &Arc<OwnedFd>,
        handle: Option<FileHandle>,
        place: &Arc<Place>,
    ) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        node.lookups += 1;
        node.used_recently = true;
        node.place = Arc::clone(place);
        // overlayfs renames its handles when it copies a directory up.
        if handle.is_some() && node.handle != handle {
            node.handle = handle;
        }
        if node.last.strong_count() == 0 {
            node.last = Arc::downgrade(fd);
        }
    }

    fn add(&mut self, node: Node) -> u64 {
        self.newest += 1;
        self.by_key.insert(node.key, self.newest);
        self.nodes.insert(self.newest, node);
        self.newest
    }

    fn remove(&mut self, id: u64) -> Option<Node> {
        let node = self.nodes.remove(&id)?;
        if node.cached.is_some() {
            self.cached -= 1;
        }
        if self.by_key.get(&node.key) == Some(&id) {
            self.by_key.remove(&node.key);
        }
        Some(node)
    }

    fn cache(&mut self, limits: &Arc<Limits>, id: u64, fd: &Arc<OwnedFd>) {
        self.make_room(limits);
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        if node.last.strong_count() == 0 {
            node.last = Arc::downgrade(fd);
        }
        if node.pinned.is_some() || node.cached.is_some() {
            return;
        }
        let Ok(counted) = limits.count_cached(Arc::clone(fd)) else {
            return;
        };
        node.last = Arc::downgrade(fd);
        node.cached = Some(counted);
        self.cached += 1;
        self.clock.push_back(id);
    }

    /// Second-chance eviction: a node used since its last turn gets another one.
    fn make_room(&mut self, limits: &Limits) {
        if self.clock.len() > 2 * limits.cached_per_session_max {
            let nodes = &self.nodes;
            self.clock
                .retain(|id| nodes.get(id).is_some_and(|node| node.cached.is_some()));
        }
        // Two rounds at most: the first clears the marks.
        for _ in 0..2 * self.clock.len() {
            if self.cached < limits.cached_per_session_max && limits.has_room_for_cached() {
                return;
            }
            let Some(id) = self.clock.pop_front() else {
                return;
            };
            let Some(node) = self.nodes.get_mut(&id) else {
                continue;
            };
            if std::mem::take(&mut node.used_recently) {
                self.clock.push_back(id);
            } else if node.cached.take().is_some() {
                self.cached -= 1;
            }
        }
    }
}

/// Whether the inode of a node whose handle looks different is still the one with its number.
fn same_inode_still(node: &Node) -> bool {
    let (Some(handle), Some(anchor)) = (&node.handle, &node.mount.anchor) else {
        return false;
    };
    let Ok(fd) = handle.open_path(anchor.as_fd()) else {
        return false;
    };
    file::stat(fd.as_fd(), Freshness::Known).is_ok_and(|stat| Key::of(&stat) == node.key)
}
