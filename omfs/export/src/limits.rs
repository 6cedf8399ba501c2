//! Bounds on what peers can make this node hold.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::Errno;

/// Largest read, write, readdir or xattr answer, in bytes.
pub(super) const TRANSFER_BYTES_MAX: usize = 1 << 20;
/// Largest piece of one copy_file_range, in bytes, so that no request takes long.
pub(super) const COPY_BYTES_MAX: u64 = 64 << 20;

/// How much all sessions of an export together, and each alone, may hold.
#[derive(Debug)]
pub(super) struct Limits {
    /// Nodes take memory only, some 200 bytes each.
    pub nodes_per_session_max: usize,
    /// Descriptors kept for speed.
    pub cached_per_session_max: usize,
    cached: Arc<Budget>,
    pinned: Arc<Budget>,
    opened: Arc<Budget>,
}

impl Limits {
    /// Shares the process' descriptor limit (raised as far as it may be): half for open files,
    /// a quarter for inodes that need one, an eighth for speed; the rest is for everything else.
    pub fn from_process() -> Self {
        let descriptors = raise_descriptor_limit();
        Self::new(descriptors / 2, descriptors / 4, descriptors / 8)
    }

    pub fn new(opened: usize, pinned: usize, cached: usize) -> Self {
        Self {
            nodes_per_session_max: 1 << 21,
            cached_per_session_max: (cached / 2).max(1),
            cached: Arc::new(Budget::new(cached)),
            pinned: Arc::new(Budget::new(pinned)),
            opened: Arc::new(Budget::new(opened)),
        }
    }

    /// Open files, pinned and cached descriptors.
    #[cfg(test)]
    pub fn in_use(&self) -> [usize; 3] {
        [&self.opened, &self.pinned, &self.cached].map(|budget| budget.used.load(Ordering::Relaxed))
    }

    pub fn has_room_for_cached(&self) -> bool {
        self.cached.has_room()
    }

    pub fn count_cached<T>(&self, value: T) -> Result<Counted<T>, Errno> {
        self.cached.count(value)
    }

    pub fn count_pinned<T>(&self, value: T) -> Result<Counted<T>, Errno> {
        self.pinned.count(value)
    }

    pub fn count_opened<T>(&self, value: T) -> Result<Counted<T>, Errno> {
        self.opened.count(value)
    }
}

/// The soft limit of `RLIMIT_NOFILE` is often 1,024 for the sake of select(2).
fn raise_descriptor_limit() -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return 1024;
    };
    let raised = setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
    usize::try_from(if raised { hard } else { soft })
        .unwrap_or(1024)
        .min(1 << 20)
}

#[derive(Debug)]
struct Budget {
    max: usize,
    used: AtomicUsize,
}

impl Budget {
    fn new(max: usize) -> Self {
        Self {
            max,
            used: AtomicUsize::new(0),
        }
    }

    fn has_room(&self) -> bool {
        self.used.load(Ordering::Relaxed) < self.max
    }

    fn count<T>(self: &Arc<Self>, value: T) -> Result<Counted<T>, Errno> {
        if self.used.fetch_add(1, Ordering::Relaxed) >= self.max {
            self.used.fetch_sub(1, Ordering::Relaxed);
            return Err(Errno(libc::ENFILE));
        }
        Ok(Counted {
            value,
            budget: Some(Arc::clone(self)),
        })
    }
}

/// A value that counts against a budget while it lives.
#[derive(Debug)]
pub(super) struct Counted<T> {
    value: T,
    budget: Option<Arc<Budget>>,
}

impl<T> Counted<T> {
    /// One that no budget counts.
    pub fn free(value: T) -> Self {
        Self {
            value,
            budget: None,
        }
    }
}

impl<T> Deref for Counted<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> Drop for Counted<T> {
    fn drop(&mut self) {
        if let Some(budget) = &self.budget {
            budget.used.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_given_back() {
        let limits = Limits::new(2, 1, 1);
        let first = limits.count_opened(1).expect("first");
        let _second = limits.count_opened(2).expect("second");
        assert_eq!(limits.count_opened(3).err(), Some(Errno(libc::ENFILE)));
        drop(first);
        assert!(limits.count_opened(3).is_ok());
    }
}
