//! What `omfs export` has changed, kept over restarts: `<state_dir>/exports`, a line of JSON after a
//! line with its BLAKE3 hash. And the table that the export goes by now.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use omfs_authz::export::{ENTRIES_MAX, Table, components};
use omfs_cluster::control::ControlError;
use omfs_config::{Export, ExportEntry};
use omfs_export::exports::Exports;
use omfs_pki::files;
use serde::{Deserialize, Serialize};

/// Version of the file's format.
const VERSION: u32 = 1;

/// A change of what is exported.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// A new entry, in the place of one for the same path.
    Add(ExportEntry),
    /// The entry for this path goes.
    Remove(String),
    /// What the configuration file says holds again.
    Reset,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    entries: Vec<ExportEntry>,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct ExportStore {
    path: PathBuf,
    configured: Vec<ExportEntry>,
    entries: Mutex<Vec<ExportEntry>>,
    exports: Arc<Exports>,
}

impl ExportStore {
    /// What was changed last, or what is configured. While the file is damaged nothing is exported:
    /// what it has hidden must not be seen.
    #[must_use]
    pub fn open(state_dir: &Path, configured: &Export) -> Arc<Self> {
        let path = state_dir.join("exports");
        let configured = configured.entries();
        let entries = match load(&path) {
            Ok(stored) => stored.unwrap_or_else(|| configured.clone()),
            Err(reason) => {
                tracing::error!(
                    "{} is damaged ({reason}): nothing is exported before `omfs export reset`",
                    path.display()
                );
                Vec::new()
            }
        };
        let exports = Arc::new(Exports::new(table(&entries)));
        let entries = Mutex::new(entries);
        Arc::new(Self {
            path,
            configured,
            entries,
            exports,
        })
    }

    /// What the export goes by; it follows every change.
    #[must_use]
    pub fn exports(&self) -> Arc<Exports> {
        Arc::clone(&self.exports)
    }

    /// All entries.
    #[must_use]
    pub fn entries(&self) -> Vec<ExportEntry> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.clone()
    }

    /// Makes a change, for good. Writes to disk.
    ///
    /// # Errors
    /// There is no such entry, there are too many, or it could not be kept; then nothing has changed.
    pub fn change(&self, change: Change) -> Result<Vec<ExportEntry>, ControlError> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let is_reset = change == Change::Reset;
        let changed = changed(&entries, &self.configured, change)?;
        let kept = if is_reset {
            forget(&self.path)
        } else {
            save(&self.path, &changed)
        };
        kept.map_err(ControlError::Failed)?;
        self.exports.replace(table(&changed));
        entries.clone_from(&changed);
        Ok(changed)
    }
}

fn table(entries: &[ExportEntry]) -> Table {
    let rules = entries.iter().filter_map(|entry| entry.to_rule().ok());
    Table::new(rules.collect())
}

fn changed(
    entries: &[ExportEntry],
    configured: &[ExportEntry],
    change: Change,
) -> Result<Vec<ExportEntry>, ControlError> {
    let without = |path: &str| -> Result<Vec<ExportEntry>, ControlError> {
        let wanted = components(path.as_bytes()).map_err(ControlError::Refused)?;
        let other =
            |entry: &&ExportEntry| components(entry.path.as_bytes()).as_ref() != Ok(&wanted);
        Ok(entries.iter().filter(other).cloned().collect())
    };
    match change {
        Change::Reset => Ok(configured.to_vec()),
        Change::Add(entry) => {
            let mut rest = without(&entry.path)?;
            if rest.len() >= ENTRIES_MAX {
                let text = format!("there are {ENTRIES_MAX} entries already");
                return Err(ControlError::Refused(text));
            }
            rest.push(entry);
            Ok(rest)
        }
        Change::Remove(path) => {
            let rest = without(&path)?;
            if rest.len() == entries.len() {
                let text = format!("there is no entry for {path}: see `omfs export list`");
                return Err(ControlError::NotFound(text));
            }
            Ok(rest)
        }
    }
}

fn save(path: &Path, entries: &[ExportEntry]) -> Result<(), String> {
    let stored = Stored {
        version: VERSION,
        entries: entries.to_vec(),
    };
    let json = serde_json::to_string(&stored).map_err(|error| error.to_string())?;
    let text = format!("{}\n{json}\n", blake3::hash(json.as_bytes()).to_hex());
    files::replace(path, text.as_bytes()).map_err(|error| error.to_string())
}

fn forget(path: &Path) -> Result<(), String> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("{}: {error}", path.display()))
        }
        _ => Ok(()),
    }
}

fn load(path: &Path) -> Result<Option<Vec<ExportEntry>>, String> {
    let text = files::read(path).map_err(|error| error.to_string())?;
    text.map(|text| parse(&text)).transpose()
}

fn parse(text: &str) -> Result<Vec<ExportEntry>, String> {
    let (hash, json) = text.trim_end().split_once('\n').ok_or("it is cut off")?;
    if blake3::hash(json.as_bytes()).to_hex().as_str() != hash {
        return Err("its checksum is wrong".into());
    }
    let stored: Stored = serde_json::from_str(json).map_err(|error| error.to_string())?;
    if stored.version != VERSION {
        return Err(format!("version {} is not known", stored.version));
    }
    Ok(stored.entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str) -> ExportEntry {
        serde_json::from_str(&format!("{{\"path\":\"{path}\"}}")).unwrap()
    }

    fn paths(store: &ExportStore) -> Vec<String> {
        store
            .entries()
            .into_iter()
            .map(|entry| entry.path)
            .collect()
    }

    #[test]
    fn what_was_changed_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let open = || ExportStore::open(dir.path(), &Export::default());
        let store = open();
        assert_eq!(paths(&store), ["/"]);
        let version = store.exports().version();
        store.change(Change::Add(entry("/srv"))).unwrap();
        store.change(Change::Add(entry("/srv/"))).unwrap();
        store.change(Change::Remove("/".into())).unwrap();
        assert!(store.exports().version() > version);
        assert!(store.change(Change::Remove("/home".into())).is_err());
        assert_eq!(paths(&open()), ["/srv/"]);
        open().change(Change::Reset).unwrap();
        assert_eq!(paths(&open()), ["/"]);
    }

    #[test]
    fn a_damaged_file_exports_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let open = || ExportStore::open(dir.path(), &Export::default());
        open().change(Change::Add(entry("/srv"))).unwrap();
        let path = dir.path().join("exports");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("srv", "etc")).unwrap();
        assert_eq!(paths(&open()), Vec::<String>::new());
        assert_eq!(paths(&open()), Vec::<String>::new(), "and again");
        open().change(Change::Reset).unwrap();
        assert_eq!(paths(&open()), ["/"]);
    }

    #[test]
    fn the_format_stays() {
        let json = "{\"version\":1,\"entries\":[{\"path\":\"/srv\",\"nodes\":[\"n2\"],\"ro\":true,\
                    \"squash\":\"all\",\"min_id\":500}]}";
        let text = format!("{}\n{json}\n", blake3::hash(json.as_bytes()).to_hex());
        let entries = parse(&text).unwrap();
        let stored = Stored {
            version: VERSION,
            entries,
        };
        assert_eq!(serde_json::to_string(&stored).unwrap(), json);
    }
}
