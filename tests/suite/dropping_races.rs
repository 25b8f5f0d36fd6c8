//! The drop directory and what is done to an entry while it is published.

use std::fs;
use std::time::Duration;

use crate::dropping_stress::Drops;

/// How many directories a tree gets at most while it is published.
const MADE_MAX: usize = 50_000;

#[test]
fn regression_a_tree_that_grows_while_it_is_read_is_not_signed() {
    let drops = Drops::new("");
    let tree = drops.stage("growing");
    fs::create_dir(tree.join("deep")).unwrap();
    fs::write(tree.join("file"), "x").unwrap();
    drops.commit("growing", "ok/growing@1.0.0");
    let entry = drops.place.join("ok/growing@1.0.0");
    // In a directory that no file is read from, so that only a look at all of it tells.
    for made in 0..MADE_MAX {
        let status = drops.status("ok/growing@1.0.0").unwrap_or_default();
        if status.starts_with("refused ") || status.starts_with("published ") {
            break;
        }
        fs::create_dir(entry.join("deep").join(made.to_string())).unwrap();
        std::thread::park_timeout(Duration::from_millis(1));
    }
    let status = drops.ended("ok/growing@1.0.0");
    assert!(status.starts_with("refused "), "{status}");
    assert!(status.contains("changed while it was"), "{status}");
    assert!(drops.announced().is_empty());
    // When it is at rest, it is a version.
    fs::write(entry.join(".publish"), "").unwrap();
    drops.home.wait_for("the version", |_| {
        drops.announced().contains("ok/growing@1.0.0")
    });
}
