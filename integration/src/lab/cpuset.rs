//! Which CPU a node runs on (`cpuset(7)`).
//!
//! A share of a CPU up to a whole one is a machine with one CPU: were its processes on several,
//! one of them would use up the share while another, of higher priority, waits for its CPU.

use std::fs;
use std::path::Path;

use anyhow::Result;

use super::cgroup::{Hierarchy, write};

const CPUS: &str = "cpuset.cpus";
/// What version 1 demands in a group before a process can enter it.
const V1_FILES: [&str; 2] = [CPUS, "cpuset.mems"];

/// Gives the group of the node with this index (from 0) its CPU: nodes take turns.
///
/// # Errors
/// The kernel's, with the file's name.
pub(super) fn set(
    hierarchy: &Hierarchy,
    dir: &Path,
    index: usize,
    cpu_percent: Option<u32>,
) -> Result<()> {
    if !hierarchy.controllers.iter().any(|name| name == "cpuset") {
        return Ok(());
    }
    if !hierarchy.unified {
        inherit(&hierarchy.mount, dir)?;
    }
    let all = fs::read_to_string(hierarchy.mount.join(if hierarchy.unified {
        "cpuset.cpus.effective"
    } else {
        CPUS
    }))?;
    let cpus = parse(&all);
    if cpus.is_empty() || cpu_percent.is_none_or(|percent| percent > 100) {
        return Ok(());
    }
    write(&dir.join(CPUS), &cpus[index % cpus.len()].to_string())
}

/// Fills the groups on the way from the root to `dir` with what the one above each has.
fn inherit(root: &Path, dir: &Path) -> Result<()> {
    let mut path = root.to_owned();
    for part in dir.strip_prefix(root)?.components() {
        let above = path.clone();
        path.push(part);
        for file in V1_FILES {
            if fs::read_to_string(path.join(file))?.trim().is_empty() {
                let value = fs::read_to_string(above.join(file))?;
                write(&path.join(file), value.trim())?;
            }
        }
    }
    Ok(())
}

/// Reads a list like `0-3,8`.
fn parse(list: &str) -> Vec<usize> {
    let ranges = list.trim().split(',').filter_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<usize>().ok()?..=last.parse().ok()?)
    });
    ranges.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_read() {
        assert_eq!(parse("0-2,8\n"), [0, 1, 2, 8]);
        assert_eq!(parse("5"), [5]);
        assert!(parse("").is_empty());
    }

    #[test]
    fn groups_of_version_1_take_over_what_is_above() {
        let root = tempfile::tempdir().unwrap();
        let node = root.path().join("omfs-lab/x/n2");
        fs::create_dir_all(&node).unwrap();
        let hierarchy = Hierarchy {
            mount: root.path().to_owned(),
            controllers: vec!["cpuset".into()],
            unified: false,
        };
        for dir in node.ancestors().take(4) {
            let (cpus, mems) = if dir == root.path() {
                ("0-1\n", "0\n")
            } else {
                ("\n", "\n")
            };
            fs::write(dir.join(CPUS), cpus).unwrap();
            fs::write(dir.join("cpuset.mems"), mems).unwrap();
        }
        set(&hierarchy, &node, 1, Some(12)).unwrap();
        let read = |file: &str| fs::read_to_string(node.join(file)).unwrap();
        assert_eq!(
            (read(CPUS).as_str(), read("cpuset.mems").as_str()),
            ("1", "0")
        );
        assert_eq!(
            fs::read_to_string(node.parent().unwrap().join(CPUS)).unwrap(),
            "0-1"
        );
    }
}
