//! At which nodes this node's jobs are, for the export: what a host may ask in their name.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use proto::ids::NodeId;

/// State files are read again for what is not found at most this often.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

#[derive(Debug, Default)]
struct Table {
    /// As the state files have it.
    places: HashMap<i32, NodeId>,
    /// Where a job is being moved to: its files are opened there before it runs there.
    expected: HashMap<i32, NodeId>,
    looked: Option<Instant>,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct HostTable(Mutex<Table>);

impl HostTable {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what `places` finds. It is called under the table's lock, so that the newest
    /// finding is the last one taken over.
    pub fn update(&self, places: impl FnOnce() -> HashMap<i32, NodeId>) {
        let mut table = self.table();
        table.places = places();
    }

    /// Whether a job is at a node, or on its way there.
    pub fn is_host(&self, pid: i32, node: NodeId) -> bool {
        let table = self.table();
        let at = |places: &HashMap<i32, NodeId>| places.get(&pid) == Some(&node);
        at(&table.places) || at(&table.expected)
    }

    /// Whether it is time to look at the state files for something that was not found.
    pub fn may_look(&self) -> bool {
        let mut table = self.table();
        let may = table.looked.is_none_or(|at| at.elapsed() > LOOK_INTERVAL);
        if may {
            table.looked = Some(Instant::now());
        }
        may
    }

    /// A move begins; it is over when the answer is dropped.
    pub fn expect(self: &Arc<Self>, pid: i32, node: NodeId) -> Expected {
        self.table().expected.insert(pid, node);
        Expected {
            table: Arc::clone(self),
            pid,
        }
    }
}

/// A move under way: until this is dropped, its target counts as a host of the job.
#[derive(Debug)]
pub struct Expected {
    table: Arc<HostTable>,
    pid: i32,
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.table.table().expected.remove(&self.pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_host_from_the_beginning_of_a_move() {
        let table = Arc::new(HostTable::default());
        let (n2, n3) = (NodeId(2), NodeId(3));
        assert!(!table.is_host(7, n2));
        let moving = table.expect(7, n2);
        assert!(table.is_host(7, n2) && !table.is_host(7, n3) && !table.is_host(8, n2));
        table.update(|| HashMap::from([(7, n2)]));
        drop(moving);
        assert!(table.is_host(7, n2));
        let onward = table.expect(7, n3);
        assert!(table.is_host(7, n2) && table.is_host(7, n3));
        drop(onward);
        table.update(HashMap::new);
        assert!(!table.is_host(7, n2) && !table.is_host(7, n3));
    }

    #[test]
    fn a_flood_of_questions_does_not_read_files_each_time() {
        let table = HostTable::default();
        assert!(table.may_look());
        assert!(!table.may_look());
    }
}
