//! Where the nodes of a session are in this node's tree: what decides how they are exported.
//!
//! A place is a path by which a peer has come, not an inode: rules belong to paths, as an
//! administrator writes them, whatever directory is there now.

use std::sync::{Arc, Mutex, PoisonError};

use omfs_authz::export::{Access, DEPTH_MAX, NodeRef, Table};

use super::exports::Exports;

/// A directory by its path.
#[derive(Debug)]
pub(super) struct Place {
    parent: Option<Arc<Place>>,
    name: Box<[u8]>,
    depth: usize,
    /// Reached as a file of this deputy, not by a path.
    deputy: Option<i32>,
    /// What the peer may do here, by which version of the table.
    found: Mutex<Option<(u64, Access)>>,
}

impl Place {
    /// The root of the machine.
    pub fn root() -> Arc<Self> {
        Arc::new(Self {
            parent: None,
            name: Box::default(),
            depth: 0,
            deputy: None,
            found: Mutex::default(),
        })
    }

    /// Where the files of a deputy are: rules for paths do not reach it.
    pub fn of_deputy(pid: i32) -> Arc<Self> {
        Arc::new(Self {
            parent: None,
            name: Box::default(),
            depth: 0,
            deputy: Some(pid),
            found: Mutex::default(),
        })
    }

    /// The deputy whose files are here.
    pub fn deputy(&self) -> Option<i32> {
        self.deputy
    }

    /// The place of a path.
    pub fn at(path: &[Vec<u8>]) -> Arc<Self> {
        path.iter()
            .fold(Self::root(), |place, name| place.below(name))
    }

    /// A directory in this one. No rule is for what is deeper than any entry can be, so that chains
    /// of places have a bounded length.
    pub fn below(self: &Arc<Self>, name: &[u8]) -> Arc<Self> {
        if self.depth > DEPTH_MAX || name == b"." {
            return Arc::clone(self);
        }
        Arc::new(Self {
            parent: Some(Arc::clone(self)),
            name: name.into(),
            depth: self.depth + 1,
            deputy: self.deputy,
            found: Mutex::default(),
        })
    }

    /// What a peer may do here.
    pub fn access(&self, exports: &Exports, peer: NodeRef<'_>) -> Access {
        let version = exports.version();
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, access)) = *found
            && at == version
        {
            return access;
        }
        let access = exports.table().access(&self.components(None), peer);
        *found = Some((version, access));
        access
    }

    /// What a peer may do with a name here that may not be there.
    pub fn access_to(&self, table: &Table, name: &[u8], peer: NodeRef<'_>) -> Access {
        table.access(&self.components(Some(name)), peer)
    }

    /// Whether a rule is for this name or for something below it.
    pub fn is_mentioned(&self, table: &Table, name: &[u8]) -> bool {
        table.mentions(&self.components(Some(name)))
    }

    fn components<'a>(&'a self, name: Option<&'a [u8]>) -> Vec<&'a [u8]> {
        let above = std::iter::successors(Some(self), |place| place.parent.as_deref());
        let mut all: Vec<&[u8]> = name
            .into_iter()
            .chain(above.map(|place| &*place.name))
            .collect();
        all.pop(); // the root has no name
        all.reverse();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_knows_its_path_and_is_never_too_deep() {
        let home = Place::at(&[b"home".to_vec(), b"ann".to_vec()]);
        assert_eq!(home.components(None), [&b"home"[..], b"ann"]);
        assert_eq!(home.components(Some(b"x")), [&b"home"[..], b"ann", b"x"]);
        assert_eq!(home.below(b".").components(None), [&b"home"[..], b"ann"]);
        let deep = (0..1000).fold(home, |place, _| place.below(b"deep"));
        assert_eq!(deep.depth, DEPTH_MAX + 1);
    }
}
