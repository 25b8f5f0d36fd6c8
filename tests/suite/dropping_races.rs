//! The drop directory and what is done to an entry while it is published.

use std::fs;
use std::time::Duration;

use manifs::manifest::{Envelope, Signed};

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

#[test]
fn regression_next_goes_on_from_manifests_that_no_index_lists() {
    const LEFT: usize = 8;
    let drops = Drops::new("");
    // Somebody else with this key, who dies between the manifest and the index, again and again.
    let other = drops.home.with_same_key();
    let tree = tempfile::tempdir().unwrap();
    fs::write(tree.path().join("file"), "another").unwrap();
    for patch in 0..LEFT {
        let version = format!("0.1.{patch}");
        other.publish(tree.path(), "ok/tool", &version);
        let manifest = format!("registry/packages/ok/tool/{version}/manifest.json");
        let there = drops.home.path().join(&manifest);
        fs::create_dir_all(there.parent().unwrap()).unwrap();
        fs::copy(other.path().join(manifest), there).unwrap();
    }
    fs::write(drops.stage("tool").join("file"), "x").unwrap();
    drops.commit("tool", "ok/tool@next");
    let status = drops.ended("ok/tool@next");
    let version = format!("package   ok/tool@0.1.{LEFT}\n");
    assert!(status.contains(&version), "{status}");
}

/// Returns the versions that the registry's index lists.
fn listed(drops: &Drops) -> Vec<String> {
    let index = "registry/packages/ok/tool/index.json";
    let bytes = fs::read(drops.home.path().join(index)).unwrap();
    match Envelope::parse(&bytes).unwrap().unverified() {
        Signed::Index(index) => {
            let versions = index.versions.keys();
            versions
                .map(|version| format!("{}@{version}", index.name))
                .collect()
        }
        Signed::Manifest(_) => panic!("no index"),
    }
}

/// Signs a drop that cannot be announced, and has another publisher announce `theirs` before the next try.
fn overtaken(entry: &str, theirs: &str) -> (Drops, String) {
    let mut drops = Drops::new("");
    let packages = "registry/packages/ok";
    // Root may write anything, but no file in place of a directory.
    for version in ["1.0.0", "0.1.0"] {
        let sums = format!("{packages}/tool/{version}/SHA256SUMS/in-the-way");
        fs::create_dir_all(drops.home.path().join(sums)).unwrap();
    }
    fs::write(drops.stage("tool").join("file"), "ours").unwrap();
    drops.commit("tool", entry);
    drops.home.wait_for("it to wait", |_| {
        let status = drops.status(entry).unwrap_or_default();
        status.starts_with("waiting ")
    });
    drops.home.kill_daemon();
    let other = drops.home.with_same_key();
    let tree = tempfile::tempdir().unwrap();
    fs::write(tree.path().join("file"), "theirs").unwrap();
    other.publish(tree.path(), "ok/tool", theirs);
    let place = drops.home.path().join(packages).join("tool");
    fs::remove_dir_all(&place).unwrap();
    fs::rename(other.path().join(packages).join("tool"), &place).unwrap();
    drops.home.start_daemon();
    let status = drops.ended(entry);
    (drops, status)
}

#[test]
fn a_drop_that_was_signed_and_overtaken_is_signed_again() {
    let (drops, status) = overtaken("ok/tool@1.0.0", "1.1.0");
    assert!(status.starts_with("published "), "{status}");
    let both = ["ok/tool@1.0.0", "ok/tool@1.1.0"].map(str::to_owned);
    assert_eq!(drops.announced(), both.into());
}

#[test]
fn a_drop_whose_version_somebody_else_took_says_so_and_so_do_the_next_ones() {
    for (entry, theirs) in [("ok/tool@1.0.0", "1.0.0"), ("ok/tool@next", "0.1.0")] {
        let (drops, status) = overtaken(entry, theirs);
        assert!(drops.place.join(entry).join("file").exists());
        fs::write(drops.stage("later").join("file"), "later").unwrap();
        drops.commit("later", "ok/tool@7.0.0");
        for status in [status, drops.ended("ok/tool@7.0.0")] {
            assert!(status.starts_with("refused "), "{status}");
            let said = format!("- this home has shown ok/tool@{theirs} as ");
            assert!(status.contains(&said), "{status}");
            let todo = "  what to do: no version has two contents";
            assert!(status.contains(todo), "{status}");
        }
        let versions = [format!("ok/tool@{theirs}")];
        assert_eq!(listed(&drops), versions);
    }
}

#[test]
fn a_next_that_cannot_be_is_refused() {
    let drops = Drops::new("");
    let tree = tempfile::tempdir().unwrap();
    fs::write(tree.path().join("file"), "x").unwrap();
    let last = format!("1.0.{}", u64::MAX);
    drops.home.publish(tree.path(), "ok/tool", &last);
    fs::write(drops.stage("tool").join("file"), "y").unwrap();
    drops.commit("tool", "ok/tool@next");
    let status = drops.ended("ok/tool@next");
    assert!(status.starts_with("refused "), "{status}");
    assert!(status.contains("its number cannot grow"), "{status}");
    assert!(status.contains("what to do: name the version"), "{status}");
}

#[test]
fn a_drop_of_nothing_but_holes_is_refused_with_the_arithmetic() {
    let drops = Drops::new("\n[store]\nquota = \"64MiB\"\n");
    let tree = drops.stage("sparse");
    for (name, len) in [("one", 4_u64 << 30), ("other", 1)] {
        let file = fs::File::create(tree.join(name)).unwrap();
        file.set_len(len).unwrap();
    }
    drops.commit("sparse", "ok/sparse@1.0.0");
    let status = drops.ended("ok/sparse@1.0.0");
    assert!(status.starts_with("refused "), "{status}");
    assert!(status.contains("at most 4294967296 are taken"), "{status}");
    assert!(status.contains("take the sparse files out"), "{status}");
}
