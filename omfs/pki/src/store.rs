//! `<state_dir>/pki/`: `ca.pem`, `node.pem`, `node-key.pem`, `cluster.json`, and on the CA node
//! `ca-key.pem` and `tokens.json`. Files are 0600 in a directory of 0700 and replaced as a whole;
//! `cluster.json` is written last, so a store with it is complete.

use std::path::{Path, PathBuf};

use proto::ids::NodeId;
use rcgen::KeyPair;
use serde::{Deserialize, Serialize};

use super::authority::{Authority, Validity, generate_ca, generation};
use super::error::PkiError;
use super::files;
use super::identity::{TlsIdentity, certificates};
use super::name::{ClusterName, check_node_id, check_node_name};

/// A node's certificates and keys on disk.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

/// Content of `cluster.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClusterFile {
    cluster: String,
    node_id: NodeId,
    node_name: String,
}

/// What a node is to hold after joining.
pub(super) struct Membership<'a> {
    pub cluster: &'a ClusterName,
    pub node: NodeId,
    pub node_name: &'a str,
    pub ca_pem: &'a str,
    pub node_pem: &'a str,
    pub node_key_pem: &'a str,
}

impl Store {
    /// The store of a node with this `state_dir`; nothing is touched.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self {
            dir: state_dir.join("pki"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Whether this node belongs to a cluster.
    #[must_use]
    pub fn is_member(&self) -> bool {
        self.path("cluster.json").exists()
    }

    /// Whether this node holds the cluster's CA key.
    #[must_use]
    pub fn is_authority(&self) -> bool {
        self.is_member() && self.path("ca-key.pem").exists()
    }

    pub(super) fn check_empty(&self) -> Result<(), PkiError> {
        match self.cluster_file() {
            Err(PkiError::NotJoined(_)) => Ok(()),
            Ok(file) => {
                let path = self.path("cluster.json");
                Err(PkiError::AlreadyMember {
                    cluster: file.cluster,
                    path,
                })
            }
            Err(error) => Err(error),
        }
    }

    /// Makes a new cluster whose only member and authority is this node.
    ///
    /// # Errors
    /// [`PkiError::AlreadyMember`], a bad name or id, or a file that could not be written.
    pub fn init_cluster(
        &self,
        cluster: &ClusterName,
        node: NodeId,
        node_name: &str,
    ) -> Result<TlsIdentity, PkiError> {
        check_node_id(node)?;
        check_node_name(node_name)?;
        self.check_empty()?;
        let (ca_pem, ca_key_pem) = generate_ca(cluster, Validity::standard())?;
        let key = KeyPair::generate().map_err(|error| generation(&error))?;
        let authority = self.build_authority((cluster.clone(), node), &ca_pem, &ca_key_pem)?;
        let node_pem = authority.sign_key(&key, node, node_name, Validity::standard())?;
        files::make_private_dir(&self.dir)?;
        files::replace(&self.path("ca-key.pem"), ca_key_pem.as_bytes())?;
        self.save(&Membership {
            cluster,
            node,
            node_name,
            ca_pem: &ca_pem,
            node_pem: &node_pem,
            node_key_pem: &key.serialize_pem(),
        })
    }

    pub(super) fn save(&self, member: &Membership<'_>) -> Result<TlsIdentity, PkiError> {
        let identity = TlsIdentity::new(
            member.cluster.clone(),
            member.node,
            member.ca_pem,
            member.node_pem,
            member.node_key_pem,
        )?;
        let file = ClusterFile {
            cluster: member.cluster.to_string(),
            node_id: member.node,
            node_name: member.node_name.to_owned(),
        };
        let cluster_json = serde_json::to_string_pretty(&file).unwrap_or_default();
        files::make_private_dir(&self.dir)?;
        for (name, content) in [
            ("node-key.pem", member.node_key_pem),
            ("node.pem", member.node_pem),
            ("ca.pem", member.ca_pem),
            ("cluster.json", &cluster_json),
        ] {
            files::replace(&self.path(name), content.as_bytes())?;
        }
        Ok(identity)
    }

    /// Loads this node's identity.
    ///
    /// # Errors
    /// [`PkiError::NotJoined`]; `Damaged` with the file's name; `Expired`, `Foreign` and the like
    /// when the certificates do not fit.
    pub fn load(&self) -> Result<TlsIdentity, PkiError> {
        let (cluster, file) = self.checked_cluster_file()?;
        TlsIdentity::new(
            cluster,
            file.node_id,
            &self.require("ca.pem")?,
            &self.require("node.pem")?,
            &self.require("node-key.pem")?,
        )?
        .with_revocations(&self.path("revoked"))
    }

    /// Loads the CA with its key.
    ///
    /// # Errors
    /// [`PkiError::NotAuthority`] on other nodes, otherwise as [`load`](Self::load).
    pub fn authority(&self) -> Result<Authority, PkiError> {
        let (cluster, file) = self.checked_cluster_file()?;
        let key_path = self.path("ca-key.pem");
        let key_pem = files::read(&key_path)?.ok_or(PkiError::NotAuthority(key_path))?;
        self.build_authority((cluster, file.node_id), &self.require("ca.pem")?, &key_pem)
    }

    fn build_authority(
        &self,
        who: (ClusterName, NodeId),
        ca_pem: &str,
        key_pem: &str,
    ) -> Result<Authority, PkiError> {
        let ca = certificates(ca_pem)?
            .into_iter()
            .next()
            .ok_or(PkiError::NoCertificate)?;
        Authority::from_pem(who, ca_pem, &ca, key_pem, &self.path("tokens.json"))
    }

    fn damaged(&self, name: &str, reason: impl ToString) -> PkiError {
        PkiError::Damaged {
            path: self.path(name),
            reason: reason.to_string(),
        }
    }

    fn require(&self, name: &str) -> Result<String, PkiError> {
        files::read(&self.path(name))?.ok_or_else(|| self.damaged(name, "it is missing"))
    }

    fn cluster_file(&self) -> Result<ClusterFile, PkiError> {
        let path = self.path("cluster.json");
        let text = files::read(&path)?.ok_or(PkiError::NotJoined(path))?;
        serde_json::from_str(&text).map_err(|error| self.damaged("cluster.json", error))
    }

    fn checked_cluster_file(&self) -> Result<(ClusterName, ClusterFile), PkiError> {
        let file = self.cluster_file()?;
        let damaged = |error: PkiError| self.damaged("cluster.json", error);
        check_node_id(file.node_id).map_err(damaged)?;
        check_node_name(&file.node_name).map_err(damaged)?;
        let cluster = file.cluster.parse().map_err(damaged)?;
        Ok((cluster, file))
    }
}
