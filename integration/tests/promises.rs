//! The documents name a test for each promise: it must exist.

use std::fs;
use std::path::{Path, PathBuf};

/// The workspace's crates.
const CRATES: [&str; 5] = ["proto", "loadbal", "migrator", "omfs", "integration"];

/// All source files below a directory.
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

/// Whether a file is the module of that name, or in its directory.
fn is_in(path: &Path, module: &str) -> bool {
    path.file_stem().is_some_and(|stem| stem == module)
        || path.components().any(|part| part.as_os_str() == module)
}

/// Whether a source has a test of that name: a function, or the first argument of a call or of a table's row.
fn is_test(source: &str, name: &str) -> bool {
    let quoted = format!("\"{name}\"");
    let is_first = |(at, _)| source[..at].trim_end().ends_with('(');
    source.contains(&format!("fn {name}(")) || source.match_indices(&quoted).any(is_first)
}

/// The tests a document names, as `*module::name*`.
fn named(document: &str) -> Vec<(&str, &str)> {
    let marked = document.split('*').skip(1).step_by(2);
    let paths = marked.filter_map(|mark| mark.rsplit_once("::"));
    paths
        .map(|(path, name)| (path.rsplit("::").next().unwrap_or(path), name))
        .collect()
}

#[test]
fn every_test_that_the_documents_name_exists() {
    let protocol = named(include_str!("../../docs/protocol-data.md"));
    let security = named(include_str!("../../docs/security.md"));
    assert!(
        protocol.len() > 25 && security.len() > 10,
        "{} {}",
        protocol.len(),
        security.len()
    );
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    for one in CRATES {
        sources(&root.join(one), &mut files);
    }
    for (module, name) in protocol.into_iter().chain(security) {
        let mut of_module = files.iter().filter(|path| is_in(path, module));
        let found = of_module.any(|path| {
            let text = fs::read_to_string(path).unwrap();
            is_test(&text, name)
        });
        assert!(found, "{module}::{name}");
    }
}
