//! Which of the guest's descriptors home knows.
//!
//! The guest's filter was made from this table when the guest was built and cannot change; the
//! table does, and is what decides about a trapped call.

use std::collections::{BTreeMap, BTreeSet};

use crate::syscalls::filter::FilterInput;

/// What home has under a descriptor's number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FdKind {
    /// The open file is at home only; the guest has a placeholder.
    Home,
    /// A file that is open at home and at the host.
    Shared,
    /// Opened at the host since the guest came; home has nothing under this number.
    Local,
}

/// Numbers that the filter always traps, so that a home descriptor can be duplicated there: where
/// shells keep what they redirect. A file that is opened there here is slower for it.
const SPARE: std::ops::RangeInclusive<i32> = 10..=13;

/// The guest's descriptors that home knows; all others are [`FdKind::Local`].
#[derive(Clone, Default, Debug)]
pub struct FdTable {
    known: BTreeMap<i32, FdKind>,
    /// Numbers of which the filter traps every use.
    trapped: BTreeSet<i32>,
}

impl FdTable {
    /// A table of descriptors by kind.
    #[must_use]
    pub fn new(entries: impl IntoIterator<Item = (i32, FdKind)>) -> Self {
        let known = |(_, kind): &(i32, FdKind)| *kind != FdKind::Local;
        let known: BTreeMap<i32, FdKind> = entries.into_iter().filter(known).collect();
        let at_home = known.iter().filter(|(_, kind)| **kind == FdKind::Home);
        let spare = SPARE.filter(|fd| !known.contains_key(fd));
        let trapped = at_home.map(|(fd, _)| *fd).chain(spare).collect();
        Self { known, trapped }
    }

    /// What home has under this number; an argument's upper half means nothing.
    #[must_use]
    pub fn kind(&self, argument: u64) -> FdKind {
        self.known
            .get(&fd_argument(argument))
            .copied()
            .unwrap_or(FdKind::Local)
    }

    /// The guest closed it, here and at home.
    pub fn forget(&mut self, argument: u64) {
        self.known.remove(&fd_argument(argument));
    }

    /// Whether a home descriptor may have this number: its uses are trapped.
    #[must_use]
    pub fn is_trapped(&self, fd: i32) -> bool {
        self.trapped.contains(&fd)
    }

    /// A home descriptor was duplicated to this number, here and at home.
    pub fn duplicated(&mut self, fd: i32) {
        self.known.insert(fd, FdKind::Home);
    }

    /// Whether home knows any descriptor from `first` to `last`, both included.
    #[must_use]
    pub fn any_between(&self, first: u64, last: u64) -> bool {
        let first = u32::try_from(first & 0xffff_ffff).unwrap_or(0);
        let last = u32::try_from(last & 0xffff_ffff).unwrap_or(0);
        let inside = |fd: &i32| (first..=last).contains(&fd.cast_unsigned());
        self.known.keys().any(inside)
    }

    /// What the filter has to know.
    #[must_use]
    pub fn filter_input(&self, pid: i32) -> FilterInput {
        let shared = |(_, kind): &(&i32, &FdKind)| **kind == FdKind::Shared;
        let numbers = self.known.iter().filter(shared);
        FilterInput {
            pid,
            home_fds: self.trapped.iter().map(|fd| fd.cast_unsigned()).collect(),
            shared_fds: numbers.map(|(fd, _)| fd.cast_unsigned()).collect(),
        }
    }
}

/// A descriptor argument: an `int`, whatever the register's upper half holds.
#[must_use]
pub fn fd_argument(argument: u64) -> i32 {
    u32::try_from(argument & 0xffff_ffff)
        .unwrap_or(0)
        .cast_signed()
}
