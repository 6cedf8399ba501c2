//! The nodes that ever joined, as a file: `<state_dir>/nodes.json`.
//!
//! On the node with the CA key this is the truth about which ids and names are taken; on the
//! others it tells whom to greet after a restart.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use proto::ids::NodeId;
use serde::{Deserialize, Serialize};

use omfs_pki::{PkiError, files};

/// One node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its id, never given again.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Its control plane.
    pub control: SocketAddr,
    /// Its data plane.
    pub data: SocketAddr,
    /// Whether its daemon was ever heard of.
    pub seen: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    next_id: u32,
    nodes: Vec<Entry>,
    /// Ids of joins that did not come to an end: certificates with them may exist.
    #[serde(default)]
    spent: BTreeSet<u32>,
}

impl Content {
    fn is_free(&self, id: u32) -> bool {
        let given = self.nodes.iter().any(|node| node.id.0 == id);
        (1..=NodeId::MAX).contains(&id) && !given && !self.spent.contains(&id)
    }

    /// The one after the highest; when that has been asked for early, the lowest free one.
    fn next_free(&self) -> Option<u32> {
        let highest = self.nodes.iter().map(|node| node.id.0).max().unwrap_or(0);
        let next = self.next_id.max(highest.saturating_add(1));
        let mut candidates = std::iter::once(next).chain(1..=NodeId::MAX);
        candidates.find(|id| self.is_free(*id))
    }

    /// Takes out what an interrupted join of this name left, and gives the ids back that it had.
    fn forget_unseen(&mut self, name: &str) -> Vec<u32> {
        let unseen = |node: &Entry| node.name.eq_ignore_ascii_case(name) && !node.seen;
        let ids: Vec<u32> = self
            .nodes
            .iter()
            .filter(|node| unseen(node))
            .map(|node| node.id.0)
            .collect();
        self.nodes.retain(|node| !unseen(node));
        self.spent.extend(&ids);
        ids
    }
}

/// Why a node cannot be entered.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum RosterError {
    #[error(
        "a node named {0} belongs to the cluster already: give this one another node.name, or, if it was installed \
         anew, first run `omfs cluster remove {0}` there"
    )]
    NameTaken(String),
    #[error("node id {0} has been given away already: ask for another one, or for none")]
    IdTaken(NodeId),
    #[error("all 65535 node ids have been given away")]
    Full,
    #[error(transparent)]
    File(#[from] PkiError),
}

/// The roster in memory, written on every change.
#[derive(Debug)]
pub struct Roster {
    path: PathBuf,
    content: Content,
}

impl Roster {
    /// Reads the roster; a missing file is an empty one.
    ///
    /// # Errors
    /// The file cannot be read or is damaged.
    pub fn open(state_dir: &Path) -> Result<Self, RosterError> {
        let path = state_dir.join("nodes.json");
        let content = match files::read(&path)? {
            None => Content::default(),
            Some(text) => serde_json::from_str(&text).map_err(|error| PkiError::Damaged {
                path: path.clone(),
                reason: error.to_string(),
            })?,
        };
        Ok(Self { path, content })
    }

    /// All nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Entry] {
        &self.content.nodes
    }

    /// Gives a joining node its id, the wanted one if there is one. A node of the same name that
    /// never showed up makes room, as its join did not come to an end: only who asks for its id by
    /// number gets that again.
    ///
    /// # Errors
    /// [`RosterError`].
    pub fn admit(
        &mut self,
        wanted: Option<NodeId>,
        name: &str,
        control: SocketAddr,
        data: SocketAddr,
    ) -> Result<NodeId, RosterError> {
        let mut content = self.content.clone();
        if content
            .nodes
            .iter()
            .any(|node| node.name.eq_ignore_ascii_case(name) && node.seen)
        {
            return Err(RosterError::NameTaken(name.to_owned()));
        }
        let before = content.forget_unseen(name);
        let id = match wanted {
            Some(id) if before.contains(&id.0) || content.is_free(id.0) => id.0,
            Some(id) => return Err(RosterError::IdTaken(id)),
            None => content.next_free().ok_or(RosterError::Full)?,
        };
        content.spent.remove(&id);
        content.next_id = content.next_id.max(id.saturating_add(1));
        content.nodes.push(Entry {
            id: NodeId(id),
            name: name.to_owned(),
            control,
            data,
            seen: false,
        });
        self.replace(content)?;
        Ok(NodeId(id))
    }

    /// Enters what is known of a node.
    ///
    /// # Errors
    /// The file could not be written; memory is unchanged then.
    pub fn note(&mut self, entry: Entry) -> Result<(), RosterError> {
        let mut content = self.content.clone();
        match content.nodes.iter_mut().find(|node| node.id == entry.id) {
            Some(node) => *node = entry,
            None => content.nodes.push(entry),
        }
        if content == self.content {
            return Ok(());
        }
        self.replace(content)
    }

    /// Frees the name and the address of a removed node. Its id stays given.
    ///
    /// # Errors
    /// The file could not be written; memory is unchanged then.
    pub fn forget(&mut self, id: NodeId) -> Result<(), RosterError> {
        let mut content = self.content.clone();
        content.nodes.retain(|node| node.id != id);
        content.next_id = content.next_id.max(id.0.saturating_add(1));
        content.spent.insert(id.0);
        if content == self.content {
            return Ok(());
        }
        self.replace(content)
    }

    fn replace(&mut self, content: Content) -> Result<(), RosterError> {
        let text = serde_json::to_vec_pretty(&content).unwrap_or_default();
        files::replace(&self.path, &text)?;
        self.content = content;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    #[test]
    fn ids_are_never_given_twice_and_names_are_unique() {
        let dir = tempfile::tempdir().unwrap();
        let mut roster = Roster::open(dir.path()).unwrap();
        assert_eq!(
            roster.admit(None, "a", address(1), address(2)).unwrap(),
            NodeId(1)
        );
        // Its join was interrupted: the name is free, the id is not.
        assert_eq!(
            roster.admit(None, "a", address(1), address(2)).unwrap(),
            NodeId(2)
        );
        let seen = Entry {
            seen: true,
            ..roster.nodes()[0].clone()
        };
        roster.note(seen).unwrap();
        let mut roster = Roster::open(dir.path()).unwrap();
        assert!(matches!(
            roster.admit(None, "a", address(1), address(2)),
            Err(RosterError::NameTaken(_))
        ));
        assert_eq!(
            roster.admit(None, "b", address(1), address(2)).unwrap(),
            NodeId(3)
        );
        assert_eq!(roster.nodes().len(), 2);
    }

    #[test]
    fn a_wanted_id_is_given_if_it_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let mut roster = Roster::open(dir.path()).unwrap();
        let mut ask = |id: u32, name: &str| {
            let wanted = (id != 0).then_some(NodeId(id));
            roster
                .admit(wanted, name, address(1), address(2))
                .map(|id| id.0)
        };
        assert_eq!(ask(7, "g").unwrap(), 7);
        assert!(matches!(ask(7, "x"), Err(RosterError::IdTaken(NodeId(7)))));
        assert!(matches!(ask(65_536, "x"), Err(RosterError::IdTaken(_))));
        assert_eq!(ask(3, "c").unwrap(), 3);
        assert_eq!(ask(0, "h").unwrap(), 8);
        // An interrupted join may be tried again with the same id, by the same name only.
        assert_eq!(ask(3, "c").unwrap(), 3);
        assert_eq!(ask(0, "c").unwrap(), 9);
        assert!(matches!(ask(3, "x"), Err(RosterError::IdTaken(_))));
        assert_eq!(ask(65_535, "last").unwrap(), 65_535);
        assert_eq!(ask(0, "y").unwrap(), 1);
    }

    #[test]
    fn a_removed_nodes_name_is_free_and_its_id_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut roster = Roster::open(dir.path()).unwrap();
        let join = |roster: &mut Roster, id| {
            let id = roster.admit(id, "a", address(1), address(2))?;
            let seen = Entry {
                seen: true,
                ..roster.nodes()[0].clone()
            };
            roster.note(seen)?;
            Ok::<_, RosterError>(id)
        };
        let id = join(&mut roster, None).unwrap();
        roster.forget(id).unwrap();
        assert!(matches!(
            join(&mut roster, Some(id)),
            Err(RosterError::IdTaken(_))
        ));
        let mut roster = Roster::open(dir.path()).unwrap();
        assert_eq!(join(&mut roster, None).unwrap(), NodeId(id.0 + 1));
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("nodes.json"), "{").unwrap();
        let error = Roster::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("nodes.json"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn any_file_is_read_or_named(bytes: Vec<u8>, id: u64, name: String, address: String) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("nodes.json");
            let almost = serde_json::json!({
                "next_id": id,
                "nodes": [{
                    "id": id, "name": name, "seen": true,
                    "control": address, "data": "10.0.0.1:7781",
                }],
            });
            for text in [bytes, almost.to_string().into_bytes()] {
                std::fs::write(&path, text).unwrap();
                if let Err(error) = Roster::open(dir.path()) {
                    let said = error.to_string();
                    proptest::prop_assert!(said.contains("nodes.json"), "{said}");
                }
            }
        }
    }
}
