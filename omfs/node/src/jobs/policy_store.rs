//! The admin's switches, kept over restarts: `<state_dir>/policy`, a line of JSON after a line with
//! its BLAKE3 hash.

use std::path::{Path, PathBuf};

use loadbal::balancer::Policy;
use omfs_pki::{PkiError, files};
use serde::{Deserialize, Serialize};

/// The file of one node.
#[derive(Clone, Debug)]
pub struct PolicyStore {
    path: PathBuf,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Switches {
    stay: bool,
    lstay: bool,
    block: bool,
    quiet: bool,
}

impl PolicyStore {
    /// In a node's state directory.
    pub fn new(state_dir: &Path) -> Self {
        Self {
            path: state_dir.join("policy"),
        }
    }

    /// What was switched last; `None` if nothing ever was. A damaged file is put aside, with a
    /// warning: the configuration file's word holds then.
    pub fn load(&self) -> Option<Policy> {
        let read = files::read(&self.path).map_err(|error| error.to_string());
        match read.and_then(|text| text.map(|text| parse(&text)).transpose()) {
            Ok(policy) => policy,
            Err(reason) => {
                let aside = self.path.with_extension("damaged");
                tracing::warn!(
                    "{} is damaged ({reason}): what is allowed is as configured; it is now {}",
                    self.path.display(),
                    aside.display()
                );
                let _ = std::fs::rename(&self.path, aside);
                None
            }
        }
    }

    /// Keeps it. Writes to disk.
    ///
    /// # Errors
    /// The file cannot be written; the old content is still there.
    pub fn save(&self, policy: Policy) -> Result<(), PkiError> {
        let switches = Switches {
            stay: policy.stay,
            lstay: policy.local_stay,
            block: policy.block,
            quiet: policy.quiet,
        };
        let json = serde_json::to_string(&switches).unwrap_or_default();
        let text = format!("{}\n{json}\n", blake3::hash(json.as_bytes()).to_hex());
        files::replace(&self.path, text.as_bytes())
    }
}

fn parse(text: &str) -> Result<Policy, String> {
    let (hash, json) = text.trim_end().split_once('\n').ok_or("it is cut off")?;
    if blake3::hash(json.as_bytes()).to_hex().as_str() != hash {
        return Err("its checksum is wrong".into());
    }
    let switches: Switches = serde_json::from_str(json).map_err(|error| error.to_string())?;
    Ok(Policy {
        stay: switches.stay,
        local_stay: switches.lstay,
        block: switches.block,
        quiet: switches.quiet,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_switched_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = PolicyStore::new(dir.path());
        assert_eq!(store.load(), None);
        let policy = Policy {
            local_stay: true,
            block: true,
            ..Policy::default()
        };
        store.save(policy).unwrap();
        assert_eq!(store.load(), Some(policy));
        store.save(Policy::default()).unwrap();
        assert_eq!(store.load(), Some(Policy::default()));
    }

    #[test]
    fn every_damage_is_noticed_and_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let store = PolicyStore::new(dir.path());
        store.save(Policy::default()).unwrap();
        let good = std::fs::read(&store.path).unwrap();
        for at in 0..good.len() - 1 {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&store.path, &bad).unwrap();
            assert_eq!(store.load(), None, "byte {at}");
            assert!(!store.path.exists());
        }
        std::fs::write(&store.path, &good[..good.len() / 2]).unwrap();
        assert_eq!(store.load(), None);
        assert!(dir.path().join("policy.damaged").exists());
    }
}
