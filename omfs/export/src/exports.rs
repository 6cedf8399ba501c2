//! The table of what is exported, as it is now.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use omfs_authz::export::{Entry, Nodes, Rules, Squash, Table};

/// A table that can be replaced while requests are served by it: the next request goes by the new one.
#[derive(Debug)]
pub struct Exports {
    table: RwLock<Arc<Table>>,
    version: AtomicU64,
}

impl Exports {
    /// Begins with a table.
    #[must_use]
    pub fn new(table: Table) -> Self {
        Self {
            table: RwLock::new(Arc::new(table)),
            version: AtomicU64::new(1),
        }
    }

    /// Everything, to all nodes, with the same rules.
    #[must_use]
    pub fn everything(rules: Rules) -> Self {
        Self::new(Table::new(vec![Entry {
            path: Vec::new(),
            nodes: Nodes::All,
            rules,
        }]))
    }

    /// Everything, with root of other nodes as root: for tests, and for whoever exports to himself.
    #[must_use]
    pub fn unsquashed() -> Self {
        Self::everything(Rules {
            squash: Squash::None,
            ..Rules::default()
        })
    }

    /// The table.
    #[must_use]
    pub fn table(&self) -> Arc<Table> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&table)
    }

    /// Changes with every replacement.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Puts another table in its place.
    pub fn replace(&self, table: Table) {
        let mut place = self.table.write().unwrap_or_else(PoisonError::into_inner);
        *place = Arc::new(table);
        // Whoever sees the new version gets the new table: it waits for this lock.
        self.version.fetch_add(1, Ordering::Release);
    }
}
