//! Nodes that were removed from the cluster: their certificates are worthless, whatever they say.
//!
//! A revocation is signed by the CA and never taken back, so the lists of two nodes are merged by
//! keeping both. `revoked` in the store is text: `omfs-revocations 1`, the BLAKE3 hash of the rest,
//! and a line per node: id, seconds since 1970, signature in hex.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use proto::ids::NodeId;
use rustls_pki_types::CertificateDer;

use super::error::PkiError;
use super::files;
use super::name::{ClusterName, check_node_id};
use super::token::{from_hex, to_hex};

const MAGIC: &str = "omfs-revocations 1";
/// What tells these signatures from all others of the CA's key.
const CONTEXT: &[u8] = b"omfs revocation 1\0";
/// Nodes that can be removed; the file stays below the store's limit for files.
const REVOCATIONS_MAX: usize = 4096;
/// An ECDSA signature of P-256 has at most 72 bytes.
const SIGNATURE_BYTES_MAX: usize = 80;

/// One removed node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Revocation {
    /// The node, whose id is never given again.
    pub node: NodeId,
    /// When it was removed, in seconds since 1970.
    pub at_s: u64,
    /// The CA's signature.
    pub signature: Vec<u8>,
}

/// What the CA signs.
pub(super) fn message(cluster: &ClusterName, node: NodeId, at_s: u64) -> Vec<u8> {
    let name = cluster.as_str().as_bytes();
    let mut bytes = CONTEXT.to_vec();
    bytes.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
    bytes.extend_from_slice(name);
    bytes.extend_from_slice(&node.0.to_be_bytes());
    bytes.extend_from_slice(&at_s.to_be_bytes());
    bytes
}

/// The removed nodes that this node knows of. Clones share one list.
#[derive(Clone)]
pub struct Revocations(Arc<Shared>);

struct Shared {
    cluster: ClusterName,
    ca: CertificateDer<'static>,
    path: Option<PathBuf>,
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    of: BTreeMap<NodeId, Revocation>,
    /// When the file that was read last had been written: shims and supervisors look at it, too.
    written: Option<SystemTime>,
}

impl std::fmt::Debug for Revocations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Revocations")
    }
}

impl Revocations {
    /// An empty list that is kept in memory only.
    pub(super) fn empty(cluster: ClusterName, ca: CertificateDer<'static>) -> Self {
        Self(Arc::new(Shared {
            cluster,
            ca,
            path: None,
            state: RwLock::default(),
        }))
    }

    /// The same cluster's list, kept in `path`; the file need not exist.
    ///
    /// # Errors
    /// It is damaged, or cannot be read.
    pub(super) fn stored(&self, path: &Path) -> Result<Self, PkiError> {
        let list = Self(Arc::new(Shared {
            cluster: self.0.cluster.clone(),
            ca: self.0.ca.clone(),
            path: Some(path.to_owned()),
            state: RwLock::default(),
        }));
        list.refresh()?;
        Ok(list)
    }

    /// Whether a node has been removed.
    #[must_use]
    pub fn contains(&self, node: NodeId) -> bool {
        // What cannot be read was read when this program began.
        let _ = self.refresh();
        let state = self.0.state.read().unwrap_or_else(PoisonError::into_inner);
        state.of.contains_key(&node)
    }

    /// All removed nodes.
    #[must_use]
    pub fn list(&self) -> Vec<Revocation> {
        let state = self.0.state.read().unwrap_or_else(PoisonError::into_inner);
        state.of.values().cloned().collect()
    }

    /// Adds revocations, and stores them; returns the nodes that were not known as removed. What the
    /// CA has not signed is left out.
    ///
    /// # Errors
    /// The file could not be replaced; then memory is unchanged.
    pub fn add(&self, told: &[Revocation]) -> Result<Vec<NodeId>, PkiError> {
        let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
        let mut of = state.of.clone();
        let mut added = Vec::new();
        for one in told.iter().take(REVOCATIONS_MAX) {
            if of.len() >= REVOCATIONS_MAX || of.contains_key(&one.node) || !self.is_signed(one) {
                continue;
            }
            added.push(one.node);
            of.insert(one.node, one.clone());
        }
        if added.is_empty() {
            return Ok(added);
        }
        if let Some(path) = &self.0.path {
            files::replace(path, to_text(&of).as_bytes())?;
            state.written = written(path);
        }
        state.of = of;
        Ok(added)
    }

    fn is_signed(&self, one: &Revocation) -> bool {
        let message = message(&self.0.cluster, one.node, one.at_s);
        let algorithm = webpki::ring::ECDSA_P256_SHA256;
        let verified = webpki::EndEntityCert::try_from(&self.0.ca)
            .and_then(|ca| ca.verify_signature(algorithm, &message, &one.signature));
        check_node_id(one.node).is_ok() && verified.is_ok()
    }

    /// Reads the file if another process has replaced it.
    fn refresh(&self) -> Result<(), PkiError> {
        let Some(path) = &self.0.path else {
            return Ok(());
        };
        let now = written(path);
        let state = self.0.state.read().unwrap_or_else(PoisonError::into_inner);
        let known = state.written;
        drop(state);
        if now == known {
            return Ok(());
        }
        let Some(text) = files::read(path)? else {
            return Ok(());
        };
        let read = from_text(&text).ok_or_else(|| PkiError::Damaged {
            path: path.clone(),
            reason: "it is no list of removed nodes".into(),
        })?;
        let signed = read.into_iter().filter(|one| self.is_signed(one));
        let of: Vec<_> = signed.map(|one| (one.node, one)).collect();
        let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
        state.of.extend(of);
        state.written = now;
        Ok(())
    }
}

fn written(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path)
        .and_then(|found| found.modified())
        .ok()
}

fn to_text(of: &BTreeMap<NodeId, Revocation>) -> String {
    let mut lines = String::new();
    for one in of.values() {
        let _ = writeln!(
            lines,
            "{} {} {}",
            one.node,
            one.at_s,
            to_hex(&one.signature)
        );
    }
    let hash = blake3::hash(lines.as_bytes());
    format!("{MAGIC}\n{}\n{lines}", hash.to_hex())
}

fn from_text(text: &str) -> Option<Vec<Revocation>> {
    let rest = text.strip_prefix(MAGIC)?.strip_prefix('\n')?;
    let (hash, lines) = rest.split_once('\n')?;
    if blake3::Hash::from_hex(hash).ok()? != blake3::hash(lines.as_bytes()) {
        return None;
    }
    let parse = |line: &str| {
        let mut words = line.split(' ');
        let node = NodeId(words.next()?.parse().ok()?);
        let at_s = words.next()?.parse().ok()?;
        let signature = from_hex(words.next()?)?;
        let fits = signature.len() <= SIGNATURE_BYTES_MAX && words.next().is_none();
        fits.then_some(Revocation {
            node,
            at_s,
            signature,
        })
    };
    lines.lines().take(REVOCATIONS_MAX).map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::TestCluster;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_what_the_ca_has_signed_counts() {
        let (lab, other) = (TestCluster::new("lab"), TestCluster::new("lab"));
        let list = lab.first.revocations();
        let good = lab.authority.revoke(NodeId(7)).unwrap();
        let foreign = other.authority.revoke(NodeId(8)).unwrap();
        let renamed = Revocation {
            node: NodeId(9),
            ..good.clone()
        };
        let told = [foreign, renamed, good.clone(), good];
        assert_eq!(list.add(&told).unwrap(), [NodeId(7)]);
        assert!(list.contains(NodeId(7)) && !list.contains(NodeId(9)));
        assert!(list.add(&told).unwrap().is_empty());
    }

    #[test]
    fn a_removed_node_is_refused_by_its_certificate() {
        let lab = TestCluster::new("lab");
        let node = lab.join(7);
        let chain = super::super::identity::certificates(&node.pem().certificate_chain).unwrap();
        assert!(lab.first.peer(Some(&chain)).is_ok());
        let revocation = lab.authority.revoke(NodeId(7)).unwrap();
        lab.first.revocations().add(&[revocation]).unwrap();
        let refused = lab.first.peer(Some(&chain));
        assert!(matches!(refused, Err(PkiError::Removed(NodeId(7)))));
    }

    #[test]
    fn the_list_is_stored_shared_and_checked() {
        let lab = TestCluster::new("lab");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("revoked");
        let stored = || lab.first.revocations().stored(&path);
        let (one, another) = (stored().unwrap(), stored().unwrap());
        let revocation = lab.authority.revoke(NodeId(7)).unwrap();
        one.add(&[revocation]).unwrap();
        // Another process of this node sees it without being told.
        assert!(another.contains(NodeId(7)));
        assert_eq!(stored().unwrap().list(), one.list());
        let text = std::fs::read_to_string(&path).unwrap();
        for (from, to) in [("omfs", "ofms"), (" 1\n", " 2\n"), ("\n7 ", "\n8 ")] {
            std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
            assert!(matches!(stored(), Err(PkiError::Damaged { .. })), "{from}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_list_or_none(text: String) {
            let _ = from_text(&text);
            let lines = format!("{text}\n");
            let hash = blake3::hash(lines.as_bytes()).to_hex();
            let _ = from_text(&format!("{MAGIC}\n{hash}\n{lines}"));
        }
    }
}
