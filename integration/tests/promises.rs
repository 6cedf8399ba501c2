//! The documents name a test for each promise: it must exist.

const FILES: [(&str, &str); 17] = [
    (
        "link_tests",
        include_str!("../../omfs/dataplane/src/link_tests.rs"),
    ),
    (
        "rpc_tests",
        include_str!("../../omfs/dataplane/src/rpc_tests.rs"),
    ),
    (
        "hostile_tests",
        include_str!("../../omfs/dataplane/src/hostile_tests.rs"),
    ),
    (
        "preauth",
        include_str!("../../omfs/dataplane/src/preauth.rs"),
    ),
    ("gates", include_str!("../../omfs/node/src/daemon/gates.rs")),
    (
        "port_guard",
        include_str!("../../omfs/node/src/daemon/port_guard.rs"),
    ),
    ("frame", include_str!("../../proto/src/frame.rs")),
    ("tests", include_str!("../../omfs/pki/src/tests.rs")),
    ("token", include_str!("../../omfs/pki/src/token.rs")),
    ("files", include_str!("../../omfs/pki/src/files.rs")),
    ("name", include_str!("../../omfs/pki/src/name.rs")),
    ("jobs", include_str!("../../omfs/export/src/jobs.rs")),
    (
        "reception",
        include_str!("../../omfs/node/src/jobs/reception.rs"),
    ),
    ("security", include_str!("e2e/security.rs")),
    ("cli", include_str!("e2e/cli.rs")),
    ("operations", include_str!("e2e/operations.rs")),
    ("fuzzing", include_str!("../../proto/src/fuzzing.rs")),
];

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
    for (module, name) in protocol.into_iter().chain(security) {
        let source = FILES.iter().find(|(file, _)| *file == module);
        let forms = [format!("fn {name}("), format!(".test(\"{name}\"")];
        let found = source.is_some_and(|(_, text)| forms.iter().any(|form| text.contains(form)));
        assert!(found, "{module}::{name}");
    }
}
