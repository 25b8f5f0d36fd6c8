//! Whether Kubo, adding a directory itself, gives it the CID that manifs signs.

use std::path::Path;

use serde_json::Value;

use crate::kubo::Kubo;
use crate::machine::Home;

/// Makes a directory whose node, were it not in shards, would have 256 KiB if `last` is 105.
///
/// Such a node has 4 bytes and its links: with names of 200 bytes 246 each (36 of CID, 10 of framing and size), with a
/// name of 105 bytes 150 (one less, as that length fits into one byte). 4 + 1065 * 246 + 150 = 262,144.
fn directory_at_the_threshold(at: &Path, last: usize) {
    std::fs::create_dir(at).unwrap();
    let names = (0..1065).map(|nth| format!("{nth:0200}"));
    for name in names.chain(["x".repeat(last)]) {
        std::fs::write(at.join(name), "").unwrap();
    }
}

#[test]
fn kubo_agrees_when_a_directory_goes_into_shards() {
    let Some(kubo) = Kubo::new("kubo_agrees_when_a_directory_goes_into_shards") else {
        return;
    };
    let source = tempfile::tempdir().unwrap();
    let at = |name: &str| source.path().join(name);
    std::fs::create_dir(at("empty")).unwrap();
    for last in 104..=106 {
        directory_at_the_threshold(&at(&format!("last-{last}")), last);
    }
    let home = Home::new();
    for entry in std::fs::read_dir(source.path()).unwrap() {
        let path = entry.unwrap().path();
        let prepared = home.run(&[
            "publish",
            path.to_str().unwrap(),
            "--name",
            "pkg",
            "--version",
            "1.0.0",
            "--dry-run",
            "--json",
        ]);
        let prepared: Value = serde_json::from_str(&prepared).unwrap();
        assert_eq!(
            prepared["root"].as_str(),
            Some(kubo.root(&path).as_str()),
            "{}",
            path.display()
        );
    }
}
