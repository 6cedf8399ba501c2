//! The crates point one way, as docs/architecture.md draws them, and unsafe code has few places.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use toml::Table;

/// Every crate by its folder, the crates of this workspace that it may use, and those that only
/// its tests, examples and benchmarks may use besides.
const ARROWS: [(&str, &[&str], &[&str]); 17] = [
    ("proto", &[], &[]),
    ("loadbal", &["proto"], &[]),
    ("omfs/authz", &[], &[]),
    ("omfs/limits", &[], &[]),
    ("omfs/sys", &[], &[]),
    ("migrator", &["proto", "omfs-sys"], &[]),
    ("omfs/service", &["proto"], &[]),
    ("omfs/pki", &["proto"], &["omfs-testing"]),
    ("omfs/config", &["omfs-pki"], &[]),
    ("omfs/check", &["omfs-sys"], &[]),
    ("omfs/testing", &["proto", "omfs-pki", "omfs-service"], &[]),
    (
        "omfs/dataplane",
        &["proto", "omfs-pki", "omfs-service"],
        &["omfs-testing"],
    ),
    ("omfs/export", &["proto", "omfs-service", "omfs-sys"], &[]),
    (
        "omfs/client",
        &["proto", "omfs-service", "omfs-sys"],
        &["omfs-dataplane", "omfs-export", "omfs-testing"],
    ),
    (
        "omfs/cluster",
        &["proto", "omfs-config", "omfs-pki", "omfs-service"],
        &["omfs-testing"],
    ),
    (
        "omfs/node",
        &[
            "proto",
            "loadbal",
            "migrator",
            "omfs-client",
            "omfs-cluster",
            "omfs-config",
            "omfs-dataplane",
            "omfs-export",
            "omfs-pki",
            "omfs-service",
            "omfs-sys",
        ],
        &["omfs-testing"],
    ),
    (
        "omfs",
        &[
            "proto",
            "omfs-check",
            "omfs-client",
            "omfs-cluster",
            "omfs-config",
            "omfs-node",
            "omfs-pki",
        ],
        &[],
    ),
];

/// Pure, and below everything: whoever decides or counts may use them.
const FOR_ALL: [&str; 2] = ["omfs-authz", "omfs-limits"];

/// Where unsafe code may stand.
const UNSAFE: [&str; 5] = [
    "omfs/sys/src/",
    // Calls the FUSE crate, of which nothing else may know.
    "omfs/client/src/adapter/sys.rs",
    "migrator/src/sys/",
    "migrator/src/bin/migrator-testkit/",
    "integration/src/sys/",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn manifest(folder: &str) -> Table {
    let path = root().join(folder).join("Cargo.toml");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{folder}: {error}"));
    text.parse().unwrap()
}

/// The workspace's crates by package name, with their folders.
fn members() -> BTreeMap<String, String> {
    let workspace = manifest("");
    let list = workspace["workspace"]["members"].as_array().unwrap();
    let folders = list
        .iter()
        .map(|member| member.as_str().unwrap().to_owned());
    let name = |folder: &str| {
        manifest(folder)["package"]["name"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    folders.map(|folder| (name(&folder), folder)).collect()
}

/// The crates of this workspace that a section of a manifest names.
fn used<'a>(
    manifest: &'a Table,
    section: &str,
    members: &BTreeMap<String, String>,
) -> Vec<&'a str> {
    let table = manifest.get(section).and_then(|section| section.as_table());
    let names = table.into_iter().flat_map(Table::keys);
    let names = names.map(String::as_str);
    names.filter(|name| members.contains_key(*name)).collect()
}

#[test]
fn crates_use_only_what_is_below_them() {
    let members = members();
    for (name, folder) in &members {
        if folder == "integration" {
            continue;
        }
        let (_, arrows, of_tests) = ARROWS
            .iter()
            .find(|(of, _, _)| of == folder)
            .unwrap_or_else(|| panic!("{folder} has no place among the crates"));
        let manifest = manifest(folder);
        for one in used(&manifest, "dependencies", &members) {
            let allowed = arrows.contains(&one) || FOR_ALL.contains(&one);
            assert!(allowed, "{name} must not use {one}");
        }
        for one in used(&manifest, "dev-dependencies", &members) {
            let mut allowed = arrows.iter().chain(*of_tests).chain(&FOR_ALL);
            assert!(allowed.any(|name| *name == one), "tests of {name}: {one}");
        }
        for other in ["build-dependencies", "target"] {
            assert!(
                used(&manifest, other, &members).is_empty(),
                "{name}: {other}"
            );
        }
    }
}

/// The table above has no circle, and nothing that is gone.
#[test]
fn the_arrows_point_one_way() {
    let members = members();
    let mut below: BTreeSet<&str> = FOR_ALL.into();
    for (folder, arrows, _) in ARROWS {
        let name = members.iter().find(|(_, at)| *at == folder);
        let (name, _) = name.unwrap_or_else(|| panic!("there is no {folder}"));
        for one in arrows {
            assert!(below.contains(one), "{name} stands before {one}");
        }
        below.insert(name);
    }
}

fn sources(at: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(at).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

/// Whether a line of code, not of words, has an unsafe block, function or implementation.
fn is_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let mut words = code.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.any(|word| word == "unsafe") && !code.contains('"')
}

#[test]
fn unsafe_code_is_where_it_may_be() {
    let mut seen = 0;
    for folder in members().values() {
        let mut files = Vec::new();
        sources(&root().join(folder).join("src"), &mut files);
        for file in files {
            let path = file
                .strip_prefix(root())
                .unwrap()
                .to_string_lossy()
                .into_owned();
            let text = fs::read_to_string(&file).unwrap();
            let count = text.lines().filter(|line| is_unsafe(line)).count();
            let may = UNSAFE.iter().any(|start| path.starts_with(start));
            assert!(may || count == 0, "unsafe code in {path}");
            seen += count;
        }
    }
    assert!(seen > 50, "only {seen} unsafe lines were found");
}

#[test]
fn unsafe_code_is_told_from_words() {
    assert!(is_unsafe("    let x = unsafe { f() };") && is_unsafe("unsafe fn f() {"));
    assert!(!is_unsafe("#![forbid(unsafe_code)]") && !is_unsafe("// an unsafe thing"));
}
