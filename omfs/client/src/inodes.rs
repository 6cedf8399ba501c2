//! Which file a FUSE node id stands for, and how often the kernel and we owe its forgetting.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use proto::ids::{NodeId, Pid};
use proto::v1::{Attr, Caller, Entry as WireEntry, KnownFile};

use super::known;
use super::namespace::{View, file_id, other_file_id};

/// `S_IFMT` of `inode(7)`: the type bits of a mode.
const TYPE_MASK: u32 = 0o170_000;
const TYPE_DIRECTORY: u32 = 0o040_000;
/// The permissions of a directory whose owner cannot be asked; nothing is decided by them.
const SEARCHABLE: u32 = 0o555;

/// One file of one node, as one connection's handle names it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FileKey {
    /// The owner.
    pub node: NodeId,
    /// The connection that `handle` belongs to.
    pub epoch: u64,
    /// The owner's handle.
    pub handle: u64,
    /// Through which path it is seen: [`View::NAME`] unless it is a directory.
    pub view: View,
}

/// Lookup counts to be given back to the owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Forgotten {
    /// The owner.
    pub node: NodeId,
    /// The connection.
    pub epoch: u64,
    /// The owner's handle.
    pub handle: u64,
    /// How many entries the owner gave out for it.
    pub count: u64,
}

/// What tells that two handles mean the same file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Identity {
    /// The owner's device number.
    pub dev: u64,
    /// The owner's inode number.
    pub ino: u64,
    /// The type bits of its mode.
    pub kind: u32,
    /// When it was made, where the owner's file system tells: seconds and nanoseconds.
    pub created: Option<(i64, u32)>,
}

/// How a file is found again when the owner's handle of it is gone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Path {
    /// By its name in a directory, whose number this is.
    Name(u64, Box<[u8]>),
    /// As what a deputy holds open: the path below its directory.
    Deputy(Pid, Box<[u8]>),
}

/// Where a file was found last, and on whose behalf.
#[derive(Clone, PartialEq, Debug)]
pub struct Origin {
    /// Where.
    pub path: Path,
    /// Who asked.
    pub caller: Arc<Caller>,
}

#[derive(Debug)]
struct Inode {
    key: FileKey,
    identity: Identity,
    /// What the kernel has been told and has not forgotten.
    lookups: u64,
    /// What the owner counts for `key.handle`.
    owed: u64,
    origin: Option<Origin>,
    /// The kernel was told of it by a predecessor, too, nobody knows how often.
    inherited: bool,
}

/// How the owner of a file tells it from its others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OwnersNumbers {
    /// The owner.
    pub node: NodeId,
    /// `st_dev` at the owner.
    pub dev: u64,
    /// `st_ino` at the owner.
    pub ino: u64,
}

/// A known file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Known {
    /// Where it is.
    pub key: FileKey,
    /// The owner's device number of it.
    pub dev: u64,
}

/// A file as all connections know it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct File {
    node: NodeId,
    view: View,
    identity: Identity,
}

impl File {
    fn of(key: FileKey, identity: Identity) -> Self {
        Self {
            node: key.node,
            view: key.view,
            identity,
        }
    }
}

/// The table of real files the kernel knows.
#[derive(Debug, Default)]
pub struct InodeTable {
    by_id: HashMap<u64, Inode>,
    by_key: HashMap<FileKey, u64>,
    /// The numbers of a file: several, where it is in several places of its owner.
    by_file: HashMap<File, Vec<u64>>,
    /// Directories, by the directory that they are in and their name there.
    by_name: HashMap<(u64, Box<[u8]>), u64>,
}

/// Whether a mode is a directory's.
#[must_use]
pub fn is_directory(mode: u32) -> bool {
    mode & TYPE_MASK == TYPE_DIRECTORY
}

/// The view that counts for a file of this mode.
#[must_use]
pub fn view_of(mode: u32, view: View) -> View {
    if is_directory(mode) { view } else { View::NAME }
}

fn identity_of(attr: &Attr) -> Identity {
    Identity {
        dev: attr.dev,
        ino: attr.ino,
        kind: attr.mode & TYPE_MASK,
        created: attr.crtime.map(|time| (time.s, time.ns)),
    }
}

impl InodeTable {
    /// Records one entry that the owner gave out and the kernel is about to be told.
    ///
    /// A file that is known under a handle of an earlier connection keeps its number and is
    /// found under the new handle from now on, so that working directories survive a restart
    /// of the owner. Answers the number, and what must be forgotten at the owner.
    pub fn remember(
        &mut self,
        node: NodeId,
        epoch: u64,
        view: View,
        entry: &WireEntry,
    ) -> Option<(u64, Option<Forgotten>)> {
        let attr = entry.attr.as_ref()?;
        let view = view_of(attr.mode, view);
        let handle = entry.node;
        let key = FileKey {
            node,
            epoch,
            handle,
            view,
        };
        if let Some(&id) = self.by_key.get(&key) {
            let inode = self.by_id.get_mut(&id)?;
            inode.lookups += 1;
            inode.owed += 1;
            return Some((id, None));
        }
        Some(self.place(key, identity_of(attr)))
    }

    fn place(&mut self, key: FileKey, identity: Identity) -> (u64, Option<Forgotten>) {
        let file = File::of(key, identity);
        if let Some(found) = self.place_again(key, file) {
            return found;
        }
        let id = self.free_number(key, identity);
        let inode = Inode {
            key,
            identity,
            lookups: 1,
            owed: 1,
            origin: None,
            inherited: false,
        };
        self.by_id.insert(id, inode);
        self.by_key.insert(key, id);
        self.by_file.entry(file).or_default().push(id);
        (id, None)
    }

    /// A file that is known on an earlier connection. On the same one, another handle means another place:
    /// a bind mount at the owner, whose directories must not get the same number.
    fn place_again(&mut self, key: FileKey, file: File) -> Option<(u64, Option<Forgotten>)> {
        let numbers = self.by_file.get(&file)?;
        let is_earlier = |id: &&u64| {
            let old = self.by_id.get(id);
            old.is_some_and(|old| old.key.epoch != key.epoch)
        };
        let id = *numbers.iter().find(is_earlier)?;
        let old = self.by_id.get_mut(&id)?;
        let displaced = forgotten(old);
        self.by_key.remove(&old.key);
        old.key = key;
        old.owed = 1;
        old.lookups += 1;
        self.by_key.insert(key, id);
        Some((id, Some(displaced)))
    }

    /// The number that a file shall have, or another one if the kernel knows something else by that:
    /// for instance a file that was removed at its owner, whose inode number this one has now.
    fn free_number(&self, key: FileKey, identity: Identity) -> u64 {
        let mut id = file_id(key.view, key.node, identity.dev, identity.ino);
        while self.by_id.contains_key(&id) {
            id = other_file_id(id, key.handle);
        }
        id
    }

    /// Takes over a file that the kernel was told of by a predecessor.
    pub fn inherit(&mut self, file: &KnownFile) {
        let (key, identity, origin) = known::understand(file);
        let inode = Inode {
            key,
            identity,
            lookups: 0,
            owed: 0,
            origin: None,
            inherited: true,
        };
        self.by_id.insert(file.id, inode);
        let numbers = self.by_file.entry(File::of(key, identity)).or_default();
        numbers.push(file.id);
        self.found_at(file.id, &origin);
    }

    /// A file in the words of a journal.
    #[must_use]
    pub fn describe(&self, id: u64) -> Option<KnownFile> {
        let inode = self.by_id.get(&id)?;
        let origin = inode.origin.as_ref()?;
        Some(known::describe(id, &inode.key, &inode.identity, origin))
    }

    /// All files.
    pub fn all(&self) -> impl Iterator<Item = KnownFile> {
        self.by_id.keys().filter_map(|id| self.describe(*id))
    }

    /// Notes where a file was found; answers whether that is news.
    pub fn found_at(&mut self, id: u64, origin: &Origin) -> bool {
        let Some(inode) = self.by_id.get_mut(&id) else {
            return false;
        };
        let is_news = inode.origin.as_ref().map(|old| &old.path) != Some(&origin.path);
        if is_news {
            let old = inode.origin.replace(origin.clone());
            if is_directory(inode.identity.kind) {
                self.forget_name(id, old);
                if let Path::Name(parent, name) = &origin.path {
                    self.by_name.insert((*parent, name.clone()), id);
                }
            }
        }
        is_news
    }

    /// Another directory may have the name by now.
    fn forget_name(&mut self, id: u64, origin: Option<Origin>) {
        if let Some(Path::Name(parent, name)) = origin.map(|origin| origin.path)
            && let Entry::Occupied(entry) = self.by_name.entry((parent, name))
            && *entry.get() == id
        {
            entry.remove();
        }
    }

    /// A directory that was found under a name, which the kernel is about to be told again without
    /// its owner: number and what is known of its attributes.
    pub fn directory_again(&mut self, parent: u64, name: &[u8]) -> Option<(u64, Attr)> {
        let id = *self.by_name.get(&(parent, name.into()))?;
        let inode = self.by_id.get_mut(&id)?;
        inode.lookups += 1;
        let attr = Attr {
            ino: inode.identity.ino,
            dev: inode.identity.dev,
            mode: inode.identity.kind | SEARCHABLE,
            nlink: 1,
            ..Attr::default()
        };
        Some((id, attr))
    }

    /// Where a file was found last.
    #[must_use]
    pub fn origin(&self, id: u64) -> Option<Origin> {
        self.by_id.get(&id)?.origin.clone()
    }

    /// Takes over an entry that the owner gave out for a file that is known already, on a new
    /// connection. Answers what must be forgotten at the owner.
    ///
    /// # Errors
    /// It is another file: what was given out must be given back.
    pub fn rebind(
        &mut self,
        id: u64,
        (node, epoch): (NodeId, u64),
        entry: &WireEntry,
    ) -> Result<Option<Forgotten>, Forgotten> {
        let given = Forgotten {
            node,
            epoch,
            handle: entry.node,
            count: 1,
        };
        let inode = self.by_id.get_mut(&id).ok_or(given)?;
        if entry.attr.as_ref().map(identity_of) != Some(inode.identity) {
            return Err(given);
        }
        let key = FileKey {
            epoch,
            handle: entry.node,
            ..inode.key
        };
        if inode.key == key {
            inode.owed += 1;
            return Ok(None);
        }
        let displaced = forgotten(inode);
        let old = std::mem::replace(&mut inode.key, key);
        inode.owed = 1;
        self.by_key.remove(&old);
        self.by_key.insert(key, id);
        Ok(Some(displaced))
    }

    /// The file of a number.
    #[must_use]
    pub fn get(&self, id: u64) -> Option<Known> {
        self.by_id.get(&id).map(|inode| Known {
            key: inode.key,
            dev: inode.identity.dev,
        })
    }

    /// What the owner calls the file of a number.
    #[must_use]
    pub fn owners_numbers(&self, id: u64) -> Option<OwnersNumbers> {
        self.by_id.get(&id).map(|inode| OwnersNumbers {
            node: inode.key.node,
            dev: inode.identity.dev,
            ino: inode.identity.ino,
        })
    }

    /// The kernel forgot `count` entries; answers what the owner is to be told, if anything.
    pub fn forget(&mut self, id: u64, count: u64) -> Option<Forgotten> {
        let inode = self.by_id.get_mut(&id)?;
        // The kernel takes back all at once; it cannot be all if it is no more than our own.
        let keeps_some = inode.inherited && count <= inode.lookups;
        inode.lookups = inode.lookups.saturating_sub(count);
        if inode.lookups > 0 || keeps_some {
            return None;
        }
        let told = forgotten(inode);
        self.remove(id);
        Some(told)
    }

    fn remove(&mut self, id: u64) {
        let Some(inode) = self.by_id.remove(&id) else {
            return;
        };
        self.by_key.remove(&inode.key);
        let file = File::of(inode.key, inode.identity);
        if let Some(numbers) = self.by_file.get_mut(&file) {
            numbers.retain(|other| *other != id);
            if numbers.is_empty() {
                self.by_file.remove(&file);
            }
        }
        self.forget_name(id, inode.origin);
    }

    /// How many files the kernel knows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether the kernel knows none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }
}

fn forgotten(inode: &Inode) -> Forgotten {
    Forgotten {
        node: inode.key.node,
        epoch: inode.key.epoch,
        handle: inode.key.handle,
        count: inode.owed,
    }
}

#[cfg(test)]
mod tests;
