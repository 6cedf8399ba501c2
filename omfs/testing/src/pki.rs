//! Clusters in temporary directories, with certificates.

use std::path::Path;
use std::time::{Duration, SystemTime};

use proto::ids::NodeId;
use rcgen::KeyPair;

use omfs_pki::authority::{Authority, Validity};
use omfs_pki::join::PendingJoin;
use omfs_pki::store::Store;
use omfs_pki::{ClusterName, PkiError, TlsIdentity, Token};

/// A cluster with its CA on node 1, and the means to add nodes.
#[derive(Debug)]
pub struct TestCluster {
    pub dir: tempfile::TempDir,
    pub name: ClusterName,
    pub authority: Authority,
    pub first: TlsIdentity,
}

impl TestCluster {
    pub fn new(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let name: ClusterName = name.parse().unwrap();
        let store = Store::new(dir.path());
        let first = store.init_cluster(&name, NodeId(1), "n1").unwrap();
        let authority = store.authority().unwrap();
        Self {
            dir,
            name,
            authority,
            first,
        }
    }

    pub fn ca_pem(&self) -> String {
        self.first.pem().ca.clone()
    }

    pub fn token(&self) -> Token {
        self.authority
            .issue_token(Duration::from_secs(60), 1)
            .unwrap()
    }

    /// Joins node `id` with its store below the cluster's directory.
    pub fn join(&self, id: u32) -> TlsIdentity {
        let store = Store::new(&self.dir.path().join(id.to_string()));
        let pending = PendingJoin::new(&store, &format!("n{id}")).unwrap();
        let pem = self
            .authority
            .sign(pending.csr_der(), NodeId(id), &format!("n{id}"))
            .unwrap();
        pending
            .finish(&store, &self.token(), NodeId(id), &self.ca_pem(), &pem)
            .unwrap()
    }

    /// For clusters in statics, which are never dropped: what is in memory is enough from here on.
    pub fn remove_files(&self) {
        std::fs::remove_dir_all(self.dir.path()).unwrap();
    }

    /// Certificate and key, in PEM, of a node whose certificate was valid in that span.
    pub fn certificate_valid(&self, id: u32, from: SystemTime, to: SystemTime) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let validity = Validity {
            not_before: from,
            not_after: to,
        };
        let pem = self
            .authority
            .sign_key(&key, NodeId(id), &format!("n{id}"), validity)
            .unwrap();
        (pem, key.serialize_pem())
    }

    /// Certificate and key of a node whose name no authority of ours would sign.
    pub fn certificate_named(&self, id: u32, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let now = SystemTime::now();
        let validity = Validity {
            not_before: now,
            not_after: now + Duration::from_secs(3600),
        };
        let pem = self
            .authority
            .sign_unchecked(&key, NodeId(id), name, validity)
            .unwrap();
        (pem, key.serialize_pem())
    }

    /// The identity that `id` would have with this certificate and key.
    pub fn identity(
        &self,
        id: u32,
        (pem, key): &(String, String),
    ) -> Result<TlsIdentity, PkiError> {
        TlsIdentity::new(self.name.clone(), NodeId(id), &self.ca_pem(), pem, key)
    }
}

/// Where the store of a state directory keeps its files.
pub fn pki_dir(state_dir: &Path) -> std::path::PathBuf {
    state_dir.join("pki")
}
