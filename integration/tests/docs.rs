//! The documents speak of files and tests: all of them exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Directories of the workspace's members, and others that documents speak of.
const TOP: [&str; 8] = [
    "proto",
    "loadbal",
    "migrator",
    "omfs",
    "integration",
    "fuzz",
    "docs",
    ".ci",
];
/// Names with at least this many underscores are tests' names; there are no others so long.
const UNDERSCORES_OF_A_TEST: usize = 4;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Everything below the workspace's own directories: paths relative to its root.
fn tree() -> BTreeSet<String> {
    fn walk(root: &Path, at: &str, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(root.join(at)).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            let path = format!("{at}/{name}");
            if entry.file_type().unwrap().is_dir() && name != "target" {
                walk(root, &path, found);
            }
            found.insert(path);
        }
    }
    let mut found = BTreeSet::new();
    for top in TOP {
        found.insert(top.to_owned());
        walk(&root(), top, &mut found);
    }
    found
}

/// The documents, by name.
fn documents() -> Vec<(String, String)> {
    let mut files = vec![root().join("README.md")];
    let docs = fs::read_dir(root().join("docs")).unwrap();
    files.extend(docs.map(|entry| entry.unwrap().path()));
    let read = |path: PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        (name, fs::read_to_string(path).unwrap())
    };
    files.into_iter().map(read).collect()
}

/// What stands between two equal marks on one line.
fn marked(text: &str, mark: char) -> Vec<&str> {
    let of_line = |line| str::split(line, mark).skip(1).step_by(2);
    text.lines().flat_map(of_line).collect()
}

/// `a/{b,c}.rs` is `a/b.rs` and `a/c.rs`.
fn alternatives(path: &str) -> Vec<String> {
    let Some((before, rest)) = path.split_once('{') else {
        return vec![path.to_owned()];
    };
    let (inner, after) = rest.split_once('}').unwrap_or((rest, ""));
    inner
        .split(',')
        .map(|one| format!("{before}{one}{after}"))
        .collect()
}

/// Whether a marked text is meant as a path of this workspace.
fn is_path(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./*{},".contains(c);
    if !text.chars().all(plain) || text.starts_with('/') {
        return false;
    }
    let below_top = TOP
        .iter()
        .any(|top| text.starts_with(top) && text[top.len()..].starts_with('/'));
    below_top || text.ends_with(".rs") || text.ends_with(".proto")
}

/// Whether a path exists, from the root or, when its beginning is left out, anywhere.
fn exists(tree: &BTreeSet<String>, path: &str) -> bool {
    let path = path.trim_end_matches('/');
    if let Some((dir, name)) = path.rsplit_once('/')
        && let Some(ending) = name.strip_prefix('*')
    {
        return tree
            .iter()
            .any(|one| one.starts_with(&format!("{dir}/")) && one.ends_with(ending));
    }
    tree.contains(path) || tree.iter().any(|one| one.ends_with(&format!("/{path}")))
}

#[test]
fn every_path_in_the_documents_exists() {
    let tree = tree();
    let mut checked = 0;
    for (document, text) in documents() {
        for path in marked(&text, '`').into_iter().filter(|text| is_path(text)) {
            for path in alternatives(path) {
                assert!(exists(&tree, &path), "{document}: there is no {path}");
                checked += 1;
            }
        }
    }
    assert!(checked > 60, "only {checked} paths were found");
}

#[test]
fn every_link_in_the_documents_leads_somewhere() {
    for (document, text) in documents() {
        let base = root().join(if document == "README.md" { "" } else { "docs" });
        for target in text.split("](").skip(1) {
            let target = target.split([')', '#']).next().unwrap_or_default();
            let known = target.is_empty() || target.contains("://") || base.join(target).exists();
            assert!(known, "{document}: the link to {target} leads nowhere");
        }
    }
}

/// Tests that a document names: `module::test`, or the long names that only tests have.
fn tests_named(text: &str) -> Vec<String> {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == ':';
    let mut names = Vec::new();
    for mark in ['`', '*'] {
        for name in marked(text, mark).into_iter().flat_map(|t| t.split(", ")) {
            let test = name.rsplit("::").next().unwrap_or_default();
            if name.chars().all(word) && test.matches('_').count() >= UNDERSCORES_OF_A_TEST {
                names.push(name.to_owned());
            }
        }
    }
    names
}

/// Whether a source file defines the test, as a function or in a list of end-to-end tests, and is,
/// or has, the modules before it.
fn defines(path: &str, source: &str, name: &str) -> bool {
    let (modules, test) = name.rsplit_once("::").unwrap_or(("", name));
    let has_test =
        source.contains(&format!("fn {test}(")) || source.contains(&format!("\"{test}\""));
    let is_module = |module: &str| {
        path.split(['/', '.']).any(|part| part == module)
            || source.contains(&format!("mod {module} "))
            || source.contains(&format!("Module::new(\"{module}\""))
    };
    let mut modules = modules.split("::").filter(|module| !module.is_empty());
    has_test && modules.all(is_module)
}

#[test]
fn every_test_in_the_documents_exists() {
    let mut sources = Vec::new();
    for path in tree().into_iter().filter(|path| path.ends_with(".rs")) {
        sources.push((fs::read_to_string(root().join(&path)).unwrap(), path));
    }
    sources.retain(|(_, path)| path != "integration/tests/docs.rs");
    let mut checked = 0;
    for (document, text) in documents() {
        for name in tests_named(&text) {
            let mut sources = sources.iter();
            let found = sources.any(|(source, path)| defines(path, source, &name));
            assert!(found, "{document}: there is no test {name}");
            checked += 1;
        }
    }
    assert!(checked > 50, "only {checked} tests were found");
}

/// What the checks above are made of does see what is wrong.
#[test]
fn a_wrong_path_or_test_is_seen() {
    let tree = BTreeSet::from(["omfs/service/src/lease.rs".to_owned()]);
    assert!(exists(&tree, "omfs/service/src/lease.rs"));
    assert!(exists(&tree, "src/lease.rs"));
    assert!(exists(&tree, "omfs/service/src/*.rs"));
    assert!(!exists(&tree, "ease.rs"));
    assert!(!exists(&tree, "omfs/service/src/leases.rs"));
    assert!(is_path("core/{again,unsent}.rs") && !is_path("/etc/omfs/omfs.toml"));
    assert_eq!(alternatives("a/{b,c}.rs"), ["a/b.rs", "a/c.rs"]);
    let text = "kept (*jobs::what_is_it_of_a*), `a_b_c_d_e`, not `st_ino` and `mem_free_bytes`";
    assert_eq!(tests_named(text), ["a_b_c_d_e", "jobs::what_is_it_of_a"]);
    let source = "#[test]\nfn what_is_it_of_a() {}";
    assert!(defines("omfs/src/jobs.rs", source, "jobs::what_is_it_of_a"));
    assert!(!defines("omfs/src/job.rs", source, "jobs::what_is_it_of_a"));
    assert!(!defines("omfs/src/jobs.rs", source, "jobs::what_is_it_of"));
}
