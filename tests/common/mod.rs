//! What tests of every theme share.

pub(crate) mod content;
pub(crate) mod home;
pub(crate) mod hostile;
pub(crate) mod peer;
pub(crate) mod publishing;
pub(crate) mod signed;
pub(crate) mod trees;

use std::io::Write as _;
use std::path::PathBuf;

/// Returns whether tests that take long are to run too; says so where anybody sees it when they are not.
pub(crate) fn full(what: &str) -> bool {
    #[expect(
        clippy::disallowed_methods,
        reason = "tests have no configuration; this is their one switch"
    )]
    let full = std::env::var_os("MANIFS_TEST_FULL").is_some_and(|value| value == "1");
    if !full {
        // Not eprintln: the test harness would swallow it.
        let line = format!("SKIPPED {what}: runs with MANIFS_TEST_FULL=1\n");
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
    full
}

/// Returns a file below `tests/data`.
pub(crate) fn data(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(path)
}

/// Reads a JSON file below `tests/data/vectors`.
pub(crate) fn vectors(name: &str) -> serde_json::Value {
    let path = data("vectors").join(name);
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).expect("vectors are JSON")
}
