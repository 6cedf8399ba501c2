//! Cluster names, node names, and how both appear in certificates.

use std::fmt;
use std::str::FromStr;

use proto::ids::NodeId;
use rustls_pki_types::ServerName;

use super::error::PkiError;

/// Longest cluster name, so that `n65535.<name>.omfs` stays well inside a DNS name.
const CLUSTER_NAME_BYTES_MAX: usize = 40;
/// Longest node name.
const NODE_NAME_BYTES_MAX: usize = 63;

/// Names that mean something else below `/mfs`, or to a resolver. No node has one of them in any
/// spelling.
const RESERVED_NAMES: [&str; 8] = [
    "here",
    "home",
    "magic",
    "lastexec",
    "selected",
    "mfs",
    "omfs",
    "localhost",
];

/// A cluster's name: a DNS label in lower case.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ClusterName(String);

impl ClusterName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The DNS name that the certificate of node `id` carries, and that clients ask for.
    #[must_use]
    pub fn node_domain(&self, id: NodeId) -> String {
        format!("n{id}.{}.omfs", self.0)
    }

    /// [`node_domain`](Self::node_domain) as rustls wants it.
    ///
    /// # Errors
    /// None in practice: a valid cluster name always makes a valid DNS name.
    pub fn server_name(&self, id: NodeId) -> Result<ServerName<'static>, PkiError> {
        ServerName::try_from(self.node_domain(id))
            .map_err(|_| PkiError::BadClusterName(self.0.clone()))
    }

    /// The URI that the certificate of node `id` carries; authorisation reads this one.
    #[must_use]
    pub fn node_uri(&self, id: NodeId) -> String {
        format!("omfs://{}/{id}", self.0)
    }

    /// The node a certificate's URI names, if it is one of this cluster.
    #[must_use]
    pub fn node_of_uri(&self, uri: &str) -> Option<NodeId> {
        let (cluster, id) = uri.strip_prefix("omfs://")?.split_once('/')?;
        let id = id.parse().ok()?;
        // Compares the whole text again so that "omfs://c/007" is not another spelling of node 7.
        (cluster == self.0 && self.node_uri(id) == uri).then_some(id)
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ClusterName {
    type Err = PkiError;

    fn from_str(text: &str) -> Result<Self, PkiError> {
        let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        let fits = (1..=CLUSTER_NAME_BYTES_MAX).contains(&text.len());
        if !fits || !text.bytes().all(allowed) || text.starts_with('-') || text.ends_with('-') {
            return Err(PkiError::BadClusterName(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

/// Checks a node name: one path component below `/mfs` that cannot be mistaken for a node id, for
/// an option or for one of the names that have a meaning there.
///
/// # Errors
/// [`PkiError::BadNodeName`].
pub fn check_node_name(name: &str) -> Result<(), PkiError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let good = (1..=NODE_NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.bytes().all(|byte| byte.is_ascii_digit())
        && !name.starts_with(['.', '-'])
        && !name.ends_with('.')
        && !name.contains("..")
        && !RESERVED_NAMES
            .iter()
            .any(|word| name.eq_ignore_ascii_case(word));
    if good {
        Ok(())
    } else {
        Err(PkiError::BadNodeName(name.to_owned()))
    }
}

/// Checks a node id's range.
///
/// # Errors
/// [`PkiError::BadNodeId`].
pub fn check_node_id(id: NodeId) -> Result<(), PkiError> {
    if (1..=NodeId::MAX).contains(&id.0) {
        Ok(())
    } else {
        Err(PkiError::BadNodeId(id.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_break_a_path_or_a_certificate_are_refused() {
        for good in ["a", "lab", "rack-7", &"x".repeat(40)] {
            assert!(good.parse::<ClusterName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "Lab",
            "a.b",
            "-a",
            "a-",
            "a b",
            "ä",
            "a/b",
            &"x".repeat(41),
        ] {
            assert!(bad.parse::<ClusterName>().is_err(), "{bad:?}");
        }
        for good in ["n1", "node.example", "7a", "here2", "at-home"] {
            assert!(check_node_name(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "12",
            ".",
            "..",
            ".omfs",
            "a/b",
            "a b",
            "-r",
            "a.",
            "a..b",
            "here",
            "Home",
            "MAGIC",
            "lastexec",
            "selected",
            "mfs",
            "localhost",
            &"x".repeat(64),
        ] {
            assert!(check_node_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_uri_names_a_node_in_exactly_one_spelling() {
        let lab: ClusterName = "lab".parse().unwrap();
        assert_eq!(lab.node_of_uri(&lab.node_uri(NodeId(7))), Some(NodeId(7)));
        for bad in [
            "omfs://lab/07",
            "omfs://lab/+7",
            "omfs://lab/7/",
            "omfs://lib/7",
            "omfs://lab/0",
        ] {
            assert_eq!(lab.node_of_uri(bad), None, "{bad}");
        }
    }
}
