//! What a caller of another node may ask for at all, before any permission of a file counts.

use std::sync::Arc;

use omfs_authz::export::{Access, NodeRef as Asking, Rules};
use proto::v1::fs_request::Op;

use super::mounts::Mount;
use super::nodes::NodeRef;
use super::places::Place;
use super::{Errno, ExportSession};

/// What an operation acts on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    Node(u64),
    File(u64),
}

/// What an operation does with it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Deed {
    /// Asks what a directory is, or what is in it.
    Looks,
    /// Anything that changes nothing.
    Uses,
    Changes,
}

/// An operation, as far as it matters here.
struct Wish<'a> {
    deed: Deed,
    at: [Option<At>; 2],
    /// Names that are made, removed or moved, with their directories.
    names: [Option<(u64, &'a [u8])>; 2],
}

impl<'a> Wish<'a> {
    fn new(deed: Deed, at: At) -> Self {
        Self {
            deed,
            at: [Some(at), None],
            names: [None, None],
        }
    }

    fn and(mut self, at: At) -> Self {
        self.at[1] = Some(at);
        self
    }

    /// A change of a name.
    fn name(parent: u64, name: &'a [u8]) -> Self {
        let mut wish = Self::new(Deed::Changes, At::Node(parent));
        wish.names[0] = Some((parent, name));
        wish
    }

    fn and_name(mut self, parent: u64, name: &'a [u8]) -> Self {
        self.names[1] = Some((parent, name));
        self.and(At::Node(parent))
    }

    /// `None` for what needs no place: what acts on an inode that was opened before, and what belongs
    /// to a job.
    fn of(op: &'a Op) -> Option<Self> {
        use Deed::{Changes, Looks, Uses};
        let when = |changes: bool, other: Deed| if changes { Changes } else { other };
        Some(match op {
            Op::Lookup(arg) => Self::new(Looks, At::Node(arg.parent)),
            Op::GetAttr(arg) => Self::new(Looks, arg.fh.map_or(At::Node(arg.node), At::File)),
            Op::OpenDir(arg) | Op::StatFs(arg) => Self::new(Looks, At::Node(arg.node)),
            Op::ReadDir(arg) => Self::new(Looks, At::File(arg.fh)),
            Op::Access(arg) => {
                let deed = when(arg.mask & libc::W_OK as u32 != 0, Looks);
                Self::new(deed, At::Node(arg.node))
            }
            Op::ReadLink(arg) => Self::new(Uses, At::Node(arg.node)),
            Op::GetXattr(arg) => Self::new(Uses, At::Node(arg.node)),
            Op::ListXattr(arg) => Self::new(Uses, At::Node(arg.node)),
            Op::Open(arg) => Self::new(when(writes(arg.flags), Uses), At::Node(arg.node)),
            Op::Read(arg) => Self::new(Uses, At::File(arg.fh)),
            Op::Lseek(arg) => Self::new(Uses, At::File(arg.fh)),
            Op::GetLock(arg) | Op::SetLock(arg) => Self::new(Uses, At::File(arg.fh)),
            Op::Write(arg) => Self::new(Changes, At::File(arg.fh)),
            Op::Fallocate(arg) => Self::new(Changes, At::File(arg.fh)),
            Op::CopyFileRange(arg) => {
                Self::new(Changes, At::File(arg.fh_out)).and(At::File(arg.fh_in))
            }
            Op::SetAttr(arg) => Self::new(Changes, At::Node(arg.node)),
            Op::SetXattr(arg) => Self::new(Changes, At::Node(arg.node)),
            Op::RemoveXattr(arg) => Self::new(Changes, At::Node(arg.node)),
            Op::MkNod(arg) => Self::name(arg.parent, &arg.name),
            Op::MkDir(arg) => Self::name(arg.parent, &arg.name),
            Op::Symlink(arg) => Self::name(arg.parent, &arg.name),
            Op::Create(arg) => Self::name(arg.parent, &arg.name),
            Op::Unlink(arg) | Op::RmDir(arg) => Self::name(arg.node, &arg.name),
            Op::Link(arg) => Self::name(arg.new_parent, &arg.new_name).and(At::Node(arg.node)),
            Op::Rename(arg) => {
                Self::name(arg.parent, &arg.name).and_name(arg.new_parent, &arg.new_name)
            }
            Op::DeputyFile(_)
            | Op::Forget(_)
            | Op::Flush(_)
            | Op::Release(_)
            | Op::ReleaseDir(_)
            | Op::Fsync(_)
            | Op::FsyncDir(_) => return None,
        })
    }
}

fn writes(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0
}

impl ExportSession {
    /// The rules by which a stranger's operation is carried out.
    ///
    /// # Errors
    /// `EACCES` for what is not exported to the peer, or is a view into this kernel; `EROFS` where
    /// nothing may be changed; `EXDEV` for two places with different rules; `EBUSY` for a name that
    /// a rule is for.
    pub(super) fn admit(&self, op: &Op) -> Result<Rules, Errno> {
        let Some(wish) = Wish::of(op) else {
            return Ok(Rules::default());
        };
        let mut rules = None;
        for at in wish.at.into_iter().flatten() {
            let found = self.rules_at(at, wish.deed)?;
            if *rules.get_or_insert(found) != found {
                return Err(Errno(libc::EXDEV));
            }
        }
        for (parent, name) in wish.names.into_iter().flatten() {
            let place = self.nodes.get(parent)?.place;
            if place.is_mentioned(&self.export.exports.table(), name) {
                return Err(Errno(libc::EBUSY));
            }
        }
        Ok(rules.unwrap_or_default())
    }

    fn rules_at(&self, at: At, deed: Deed) -> Result<Rules, Errno> {
        let (place, mount, is_directory) = match at {
            At::Node(id) => {
                let node = self.nodes.get(id)?;
                let is_directory = node.kind == libc::S_IFDIR;
                (node.place, node.mount, is_directory)
            }
            At::File(fh) => {
                let open = self.files.get(fh)?;
                let (place, mount) = (Arc::clone(&open.place), Arc::clone(&open.mount));
                (place, mount, open.is_directory)
            }
        };
        let looks = deed == Deed::Looks && is_directory;
        if !mount.holds_user_data && !looks {
            return Err(Errno(libc::EACCES));
        }
        match self.access_at(&place)? {
            Access::Exported(rules) if rules.read_only && deed == Deed::Changes => {
                Err(Errno(libc::EROFS))
            }
            Access::Exported(rules) => Ok(rules),
            Access::Passage if looks => Ok(Rules::default()),
            Access::Passage | Access::Hidden => Err(Errno(libc::EACCES)),
        }
    }

    fn access_at(&self, place: &Place) -> Result<Access, Errno> {
        if let Some(pid) = place.deputy() {
            self.export.jobs.check(&self.peer, pid, "its files")?;
            return Ok(Access::Exported(Rules::default()));
        }
        Ok(place.access(&self.export.exports, self.asking()))
    }

    fn asking(&self) -> Asking<'_> {
        Asking {
            id: self.peer.node.0,
            name: &self.peer_name,
        }
    }

    /// Whether a stranger sees a name of a directory.
    pub(super) fn shows(&self, place: &Place, mount: &Mount, name: &[u8]) -> bool {
        if matches!(name, b"." | b"..") {
            return true;
        }
        mount.holds_user_data && self.may_enter(place, name)
    }

    fn may_enter(&self, place: &Place, name: &[u8]) -> bool {
        let table = self.export.exports.table();
        place.deputy().is_some() || place.access_to(&table, name, self.asking()) != Access::Hidden
    }

    /// Whether a stranger may look up a name at all.
    ///
    /// # Errors
    /// `ENOENT`: it is not exported, and nothing below it.
    pub(super) fn check_name(&self, parent: &NodeRef, name: &[u8]) -> Result<(), Errno> {
        if name == b"." || self.may_enter(&parent.place, name) {
            return Ok(());
        }
        Err(Errno(libc::ENOENT))
    }
}

/// Whether a stranger may be told of what a name leads to. Of a view into this kernel he sees the
/// topmost directory, empty: something may be mounted on it, or exported below.
///
/// # Errors
/// `ENOENT`.
pub(super) fn check_found(mount: &Mount, near: &Mount, kind: u32) -> Result<(), Errno> {
    let is_topmost = mount.id != near.id && kind == libc::S_IFDIR;
    if mount.holds_user_data || is_topmost {
        return Ok(());
    }
    Err(Errno(libc::ENOENT))
}
