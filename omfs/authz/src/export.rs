//! What a node exports to other nodes, to which of them, and with which ids their users act.

use crate::guest::Ids;

/// `nobody` and `nogroup`.
pub const NOBODY: u32 = 65_534;
/// Ids below are the system's own (`UID_MIN` of login.defs(5)).
pub const MIN_ID: u32 = 1000;
/// Components of an exported path. Directories deeper than that have the rules of those above.
pub const DEPTH_MAX: usize = 64;
/// Entries of a table.
pub const ENTRIES_MAX: usize = 256;

/// Whose ids become nobody's, as with `root_squash` and `all_squash` of exports(5).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Squash {
    /// Nobody's: root of another node is root here.
    None,
    /// Root's.
    Root,
    /// Those of root and of the system's own users and groups.
    #[default]
    System,
    /// Everybody's.
    All,
}

/// How a directory is exported.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules {
    /// Whose ids become nobody's.
    pub squash: Squash,
    /// Ids below are the system's.
    pub min_id: u32,
    /// Nothing can be changed.
    pub read_only: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            squash: Squash::default(),
            min_id: MIN_ID,
            read_only: false,
        }
    }
}

/// What the owner's user database says of a user.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum User {
    /// passwd(5) and group(5) have him.
    Known {
        /// Primary group.
        gid: u32,
        /// All groups, the primary one may be among them.
        groups: Vec<u32>,
    },
    /// There is no such user.
    Unknown {
        /// Whether there is a group with the number that he claims.
        group_exists: bool,
    },
}

impl Rules {
    fn squashes_user(&self, uid: u32) -> bool {
        match self.squash {
            Squash::None => false,
            Squash::Root => uid == 0,
            Squash::System => uid < self.min_id,
            Squash::All => true,
        }
    }

    /// Whether a user has to be looked up to know with which ids he acts.
    #[must_use]
    pub fn needs_user(&self, uid: u32) -> bool {
        self.squash != Squash::None && uid != NOBODY && !self.squashes_user(uid)
    }

    /// The ids with which a user of another node acts here. Of his claim only the user counts, and
    /// of his groups those that the owner knows him to be in. A system group counts only where it is
    /// the primary one of an ordinary user: some distributions have all users in one. Where root is
    /// root, every claim is granted: root could take any ids himself.
    #[must_use]
    pub fn ids_of_stranger(&self, claimed: &Ids, user: &User) -> Ids {
        let (uid, gid) = (claimed.uid, claimed.gid);
        if self.squash == Squash::None {
            return claimed.clone();
        }
        if uid == NOBODY || self.squashes_user(uid) {
            return nobody();
        }
        let (primary, groups) = match user {
            User::Known { gid, groups } => (*gid, groups.as_slice()),
            User::Unknown { group_exists: true } => (NOBODY, [].as_slice()),
            User::Unknown { .. } => (gid, [].as_slice()),
        };
        let is_known = matches!(user, User::Known { .. });
        let allowed = |group: u32| {
            let is_own = is_known && group == primary && group != 0;
            !self.squashes_user(group) || is_own
        };
        let claimed = if gid == primary || groups.contains(&gid) {
            gid
        } else {
            primary
        };
        Ids {
            uid,
            gid: Some(claimed).filter(|gid| allowed(*gid)).unwrap_or(NOBODY),
            groups: groups.iter().copied().filter(|gid| allowed(*gid)).collect(),
        }
    }
}

fn nobody() -> Ids {
    Ids {
        uid: NOBODY,
        gid: NOBODY,
        groups: Vec::new(),
    }
}

/// Kinds of file systems without a device that hold what users have stored.
const STORING: [&str; 23] = [
    "9p",
    "afs",
    "aufs",
    "bcachefs",
    "beegfs",
    "ceph",
    "cifs",
    "coda",
    "ecryptfs",
    "fuse",
    "gpfs",
    "hugetlbfs",
    "lustre",
    "nfs",
    "nfs4",
    "orangefs",
    "overlay",
    "ramfs",
    "smb3",
    "tmpfs",
    "ubifs",
    "virtiofs",
    "zfs",
];

/// Whether a file system holds what users have stored, and is no view into a kernel. One on a device
/// does. Without a device (`nodev` in `/proc/filesystems`) it must be one that is known to: procfs,
/// sysfs, cgroups, devices, tracing and whatever future kernels bring are not exported.
#[must_use]
pub fn holds_user_data(kind: &str, is_on_device: bool) -> bool {
    let is_fuse = kind.starts_with("fuse.");
    !kind.is_empty() && (is_on_device || is_fuse || STORING.contains(&kind))
}

/// To which nodes an entry applies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Nodes {
    /// To all of them.
    All,
    /// To these, by name or by id in decimal; none at all hides the directory.
    Some(Vec<String>),
}

/// A node that asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeRef<'a> {
    /// From its certificate.
    pub id: u32,
    /// Empty if it is not known.
    pub name: &'a str,
}

impl Nodes {
    /// Whether a node is among them.
    #[must_use]
    pub fn contain(&self, node: NodeRef<'_>) -> bool {
        match self {
            Self::All => true,
            Self::Some(some) => some
                .iter()
                .any(|one| *one == node.name || one.parse() == Ok(node.id)),
        }
    }
}

/// One exported directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The components of its path; none for the root.
    pub path: Vec<Vec<u8>>,
    /// To whom.
    pub nodes: Nodes,
    /// How.
    pub rules: Rules,
}

/// What a node may do at a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Whatever its users may, with these rules.
    Exported(Rules),
    /// Only go through: something below is exported.
    Passage,
    /// Nothing: it is not there.
    Hidden,
}

/// All entries of a node. Where several apply, the one with the most specific path decides, and of
/// those with the same path the first that names the node; if none of them does, nothing is exported.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Table {
    entries: Vec<Entry>,
}

impl Table {
    /// The table of these entries.
    #[must_use]
    pub fn new(entries: Vec<Entry>) -> Self {
        Self { entries }
    }

    /// What a node may do at a path.
    #[must_use]
    pub fn access<C: AsRef<[u8]>>(&self, path: &[C], node: NodeRef<'_>) -> Access {
        let above = self
            .entries
            .iter()
            .filter(|entry| begins(path, &entry.path));
        let longest = above.map(|entry| entry.path.len()).max();
        let deciding = self
            .entries
            .iter()
            .filter(|entry| Some(entry.path.len()) == longest && begins(path, &entry.path));
        let mut granting = deciding.filter(|entry| entry.nodes.contain(node));
        if let Some(entry) = granting.next() {
            return Access::Exported(entry.rules);
        }
        let leads_on = self.entries.iter().any(|entry| {
            entry.path.len() > path.len() && begins(&entry.path, path) && entry.nodes.contain(node)
        });
        if leads_on {
            Access::Passage
        } else {
            Access::Hidden
        }
    }

    /// Whether an entry is for this path or for one below it: such a name stays where it is.
    #[must_use]
    pub fn mentions<C: AsRef<[u8]>>(&self, path: &[C]) -> bool {
        self.entries.iter().any(|entry| begins(&entry.path, path))
    }
}

fn begins<A: AsRef<[u8]>, B: AsRef<[u8]>>(path: &[A], start: &[B]) -> bool {
    let pairs = path.iter().zip(start);
    start.len() <= path.len() && pairs.into_iter().all(|(a, b)| a.as_ref() == b.as_ref())
}

/// The components of an absolute path, for [`Entry::path`].
///
/// # Errors
/// What is wrong with it.
pub fn components(path: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let text = || String::from_utf8_lossy(path).into_owned();
    let Some(rest) = path.strip_prefix(b"/") else {
        return Err(format!("{:?} must be an absolute path", text()));
    };
    let parts = rest.split(|byte| *byte == b'/');
    let parts: Vec<Vec<u8>> = parts
        .filter(|part| !part.is_empty() && *part != b".")
        .map(<[u8]>::to_vec)
        .collect();
    if parts.iter().any(|part| part == b"..") {
        return Err(format!("{:?} must not contain \"..\"", text()));
    }
    if parts.len() > DEPTH_MAX {
        return Err(format!("{:?} has more than {DEPTH_MAX} components", text()));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests;
