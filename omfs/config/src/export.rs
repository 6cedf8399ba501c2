//! `[[export.entry]]`: directories with rules of their own.

use omfs_authz::export::{Entry, MIN_ID, Nodes, Rules, Squash, components};
use serde::{Deserialize, Serialize};

use crate::Export;

/// Stands for every node in [`ExportEntry::nodes`].
const ALL_NODES: &str = "*";
/// Nodes that one entry names.
const NODES_MAX: usize = 256;

/// One directory, as the configuration file and `omfs export` have it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "Fields")]
pub struct ExportEntry {
    /// Where it is.
    pub path: String,
    /// Names or ids of nodes, or `*`; none hides it from all.
    pub nodes: Vec<String>,
    /// Nothing can be changed.
    pub ro: bool,
    /// Whose ids become nobody's.
    pub squash: ExportSquash,
    /// Ids below are the system's.
    pub min_id: u32,
}

/// Whose ids become nobody's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExportSquash {
    /// Nobody's.
    None,
    /// Root's.
    Root,
    /// Root's, and those below `min_id`.
    #[default]
    System,
    /// Everybody's.
    All,
}

/// An entry before it was looked at.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    path: String,
    #[serde(default = "all_nodes")]
    nodes: Vec<String>,
    #[serde(default)]
    ro: bool,
    #[serde(default)]
    squash: ExportSquash,
    #[serde(default = "min_id")]
    min_id: u32,
}

fn all_nodes() -> Vec<String> {
    vec![ALL_NODES.to_owned()]
}

fn min_id() -> u32 {
    MIN_ID
}

impl TryFrom<Fields> for ExportEntry {
    type Error = String;

    fn try_from(fields: Fields) -> Result<Self, String> {
        components(fields.path.as_bytes())?;
        if fields.nodes.len() > NODES_MAX {
            return Err(format!("more than {NODES_MAX} nodes"));
        }
        Ok(Self {
            path: fields.path,
            nodes: fields.nodes,
            ro: fields.ro,
            squash: fields.squash,
            min_id: fields.min_id,
        })
    }
}

impl ExportSquash {
    const WORDS: [(&str, Self); 4] = [
        ("none", Self::None),
        ("root", Self::Root),
        ("system", Self::System),
        ("all", Self::All),
    ];

    /// As it is written.
    #[must_use]
    pub fn word(self) -> &'static str {
        let found = Self::WORDS.iter().find(|(_, squash)| *squash == self);
        found.map_or("system", |(word, _)| word)
    }

    fn of(word: &str) -> Option<Self> {
        let found = Self::WORDS.iter().find(|(known, _)| *known == word);
        found.map(|(_, squash)| *squash)
    }
}

impl ExportEntry {
    /// An entry of what a person has written.
    ///
    /// # Errors
    /// What of it is impossible.
    pub fn checked(
        path: String,
        nodes: Vec<String>,
        ro: bool,
        squash: &str,
        min_id: u32,
    ) -> Result<Self, String> {
        let words = "none, root, system or all";
        let squash = ExportSquash::of(squash).ok_or(format!("{squash:?} is not {words}"))?;
        Self::try_from(Fields {
            path,
            nodes,
            ro,
            squash,
            min_id,
        })
    }

    /// The entry as decisions are made with.
    ///
    /// # Errors
    /// The path is none.
    pub fn to_rule(&self) -> Result<Entry, String> {
        let nodes = if self.nodes.iter().any(|node| node == ALL_NODES) {
            Nodes::All
        } else {
            Nodes::Some(self.nodes.clone())
        };
        let squash = match self.squash {
            ExportSquash::None => Squash::None,
            ExportSquash::Root => Squash::Root,
            ExportSquash::System => Squash::System,
            ExportSquash::All => Squash::All,
        };
        Ok(Entry {
            path: components(self.path.as_bytes())?,
            nodes,
            rules: Rules {
                squash,
                min_id: self.min_id,
                read_only: self.ro,
            },
        })
    }
}

impl Export {
    /// All entries: the root's, unless one is given for its path, and the others.
    #[must_use]
    pub fn entries(&self) -> Vec<ExportEntry> {
        let root = ExportEntry {
            path: self.root.to_string_lossy().into_owned(),
            nodes: all_nodes(),
            ro: false,
            squash: if self.root_squash {
                ExportSquash::System
            } else {
                ExportSquash::None
            },
            min_id: self.min_id,
        };
        let same =
            |one: &ExportEntry| components(one.path.as_bytes()) == components(root.path.as_bytes());
        let is_given = self.entry.iter().any(same);
        let roots = (!is_given).then_some(root);
        roots
            .into_iter()
            .chain(self.entry.iter().cloned())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn export(text: &str) -> Export {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn without_entries_the_root_is_exported_to_all() {
        let entries = export("root = \"/srv\"\nmin_id = 500").entries();
        let [only] = entries.as_slice() else {
            panic!("{entries:?}");
        };
        assert_eq!((only.path.as_str(), only.min_id), ("/srv", 500));
        let rule = only.to_rule().unwrap();
        assert_eq!(rule.nodes, Nodes::All);
        assert_eq!(rule.rules.squash, Squash::System);
    }

    #[test]
    fn an_entry_for_the_root_takes_its_place() {
        let text = "[[entry]]\npath = \"/\"\nro = true\n[[entry]]\npath = \"/a\"\nnodes = []";
        let entries = export(text).entries();
        assert_eq!(entries.len(), 2);
        assert!(entries[0].ro);
        assert_eq!(entries[1].to_rule().unwrap().nodes, Nodes::Some(vec![]));
    }

    #[test]
    fn impossible_entries_are_refused() {
        for wrong in [
            "path = \"a\"",
            "path = \"/a/..\"",
            "ro = true",
            "path = \"/a\"\nsquash = \"some\"",
            "path = \"/a\"\nread_only = true",
        ] {
            let text = format!("[[entry]]\n{wrong}");
            assert!(toml::from_str::<Export>(&text).is_err(), "{wrong}");
        }
    }
}
