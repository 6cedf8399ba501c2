//! The cgroup of this node's guests: their CPU time has a weight of its own beside the node's own
//! processes. The daemon makes it for the first guest and removes it after the last one; a guest
//! that outlives the daemon has it removed by its supervisor.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use loadbal::sensors::Roots;
use loadbal::sensors::cgroup::{Cgroup, GuestParent};
use omfs_config::WeightPercent;

/// Its directory in every hierarchy.
const NAME: &str = "omfs-guests";
/// `cpu.shares` of a process that is in no group of its own (version 1).
const OWN_SHARES: u64 = 1024;
/// What the kernel takes as `cpu.shares`.
const SHARES_MAX: u64 = 1 << 18;
/// Controllers that the group has of its own (version 2).
const CONTROLLERS: &str = "+cpu +memory";
/// One that the group does without where the node has it not.
const OPTIONAL_CONTROLLER: &str = "+pids";

/// See the module's documentation.
#[derive(Debug)]
pub struct GuestCgroup {
    parents: Vec<GuestParent>,
    weight: WeightPercent,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    guests: u64,
    warned: bool,
}

/// A guest's place in the group, from before its supervisor starts until that has ended.
#[derive(Debug)]
pub struct Place {
    group: Arc<GuestCgroup>,
    dirs: Vec<PathBuf>,
}

impl Place {
    /// The directories of the group; none where it could not be made.
    pub fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.group.state();
        state.guests = state.guests.saturating_sub(1);
        if state.guests == 0 {
            remove_unused(&self.group.dirs());
        } else {
            self.group.make(&mut state);
        }
    }
}

impl GuestCgroup {
    /// Finds where it belongs, and removes what a killed daemon left.
    pub fn find(weight: WeightPercent) -> Self {
        let parents = Cgroup::of_self(&Roots::default()).map(|own| own.guest_parents());
        let group = Self::at(parents.unwrap_or_default(), weight);
        group.remove_unused();
        group
    }

    fn at(parents: Vec<GuestParent>, weight: WeightPercent) -> Self {
        Self {
            parents,
            weight,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dirs(&self) -> Vec<PathBuf> {
        self.parents.iter().map(|one| one.dir.join(NAME)).collect()
    }

    /// Makes room for one more guest.
    pub fn expect_guest(self: &Arc<Self>) -> Place {
        let mut state = self.state();
        state.guests += 1;
        Place {
            group: Arc::clone(self),
            dirs: self.make(&mut state),
        }
    }

    /// Removes it, unless guests are in it.
    pub fn remove_unused(&self) {
        let _turn = self.state();
        remove_unused(&self.dirs());
    }

    /// Makes the directories and sets their weight for the present number of guests. What fails is
    /// logged once.
    fn make(&self, state: &mut State) -> Vec<PathBuf> {
        let mut made = Vec::new();
        for parent in &self.parents {
            match make(parent, self.weight, state.guests) {
                Ok(dir) => made.push(dir),
                Err(_) if state.warned => {}
                Err(error) => {
                    state.warned = true;
                    tracing::warn!(
                        "no cgroup for guests in {}: {error}; they compete with this node's own \
                         processes as equals",
                        parent.dir.display()
                    );
                }
            }
        }
        made
    }
}

fn make(parent: &GuestParent, weight: WeightPercent, guests: u64) -> io::Result<PathBuf> {
    let dir = parent.dir.join(NAME);
    if parent.unified {
        // Refused where processes are in the directory itself, unless it is the root.
        let control = parent.dir.join("cgroup.subtree_control");
        let _ = fs::write(&control, OPTIONAL_CONTROLLER);
        fs::write(&control, CONTROLLERS)?;
    }
    match fs::create_dir(&dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let weighed = set_weight(parent, &dir, weight, guests);
    if weighed.is_err() {
        let _ = fs::remove_dir(&dir);
    }
    weighed.map(|()| dir)
}

/// Version 1 weighs the group against single processes, version 2 against the group that the
/// node's own processes are in.
fn set_weight(
    parent: &GuestParent,
    dir: &Path,
    weight: WeightPercent,
    guests: u64,
) -> io::Result<()> {
    let percent = u64::from(weight.0);
    if parent.unified {
        return fs::write(dir.join("cpu.weight"), percent.to_string());
    }
    if !parent.dir.join("cpu.shares").exists() {
        return Ok(());
    }
    let shares = (OWN_SHARES * percent * guests.max(1) / 100).clamp(2, SHARES_MAX);
    fs::write(dir.join("cpu.shares"), shares.to_string())
}

/// Removes directories of the group that no guest is in, and those of guests whose supervisors were
/// killed.
pub fn remove_unused(dirs: &[PathBuf]) {
    for dir in dirs {
        for guest in fs::read_dir(dir).into_iter().flatten().flatten() {
            let _ = fs::remove_dir(guest.path()); // files of the kernel are no directories
        }
        // Others are in it, or it is gone: both are well.
        let _ = fs::remove_dir(dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plain files stand for the kernel's.
    fn group(root: &Path, unified: bool, percent: u32) -> Arc<GuestCgroup> {
        let parent = GuestParent {
            dir: root.to_owned(),
            unified,
        };
        Arc::new(GuestCgroup::at(vec![parent], WeightPercent(percent)))
    }

    #[test]
    fn version_1_weighs_every_guest_beside_one_process() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("cpu.shares"), "1024").unwrap();
        let group = group(root.path(), false, 50);
        let shares = || fs::read_to_string(root.path().join(NAME).join("cpu.shares")).unwrap();
        let first = group.expect_guest();
        assert_eq!(first.dirs(), [root.path().join(NAME)]);
        assert_eq!(shares(), "512");
        let second = group.expect_guest();
        assert_eq!(shares(), "1024");
        drop(first);
        assert_eq!(shares(), "512");
        // The kernel removes a group's files with it.
        fs::remove_file(root.path().join(NAME).join("cpu.shares")).unwrap();
        drop(second);
        assert!(!root.path().join(NAME).exists());
    }

    #[test]
    fn version_2_enables_controllers_and_weighs_all_guests() {
        let root = tempfile::tempdir().unwrap();
        let group = group(root.path(), true, 30);
        let places = [group.expect_guest(), group.expect_guest()];
        let read = |file: &str| fs::read_to_string(root.path().join(file)).unwrap();
        assert_eq!(read("cgroup.subtree_control"), CONTROLLERS);
        assert_eq!(read("omfs-guests/cpu.weight"), "30");
        assert_eq!(places[1].dirs(), [root.path().join(NAME)]);
    }

    #[test]
    fn where_none_can_be_made_guests_have_none() {
        let root = tempfile::tempdir().unwrap();
        let group = group(&root.path().join("missing"), true, 50);
        let place = group.expect_guest();
        assert!(place.dirs().is_empty());
        assert!(group.state().warned);
        drop(place);
        assert_eq!(group.state().guests, 0);
    }
}
