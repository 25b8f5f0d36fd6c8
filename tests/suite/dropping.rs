//! The drop directory without a mount: mirrors, what has to be waited for, and what is known after a restart.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use crate::machine::{Home, noise};

/// A home whose daemon publishes what is dropped and committed.
struct Drops {
    home: Home,
    place: PathBuf,
}

impl Drops {
    fn new(more: &str) -> Drops {
        let home = Home::new();
        home.run(&["keygen"]);
        let mut settings = String::new();
        for (key, default) in [("names", "[\"*\"]"), ("settle", "\"0s\"")] {
            if !more.contains(key) {
                settings += &format!("{key} = {default}\n");
            }
        }
        home.config(&format!("[publish]\n{settings}{more}"));
        let place = home.path().join("publish");
        let mut drops = Drops { home, place };
        drops.home.start_daemon();
        drops
    }

    /// Drops a tree with some of everything, and commits it.
    fn drop_tree(&self, entry: &str) -> PathBuf {
        let path = self.place.join(entry);
        tree(&path);
        fs::write(path.join(".publish"), b"").unwrap();
        path
    }

    /// Waits until the status of an entry begins with a word, and returns it.
    fn wait_status(&self, entry: &str, word: &str) -> String {
        let path = self.place.join(format!("{entry}.status"));
        let read = || fs::read_to_string(&path).unwrap_or_default();
        let begin = format!("{word} ");
        self.home.wait_for(&format!("{entry} to be {word}"), |_| {
            read().starts_with(&begin)
        });
        read()
    }

    /// Waits until an entry has come to an end, and returns its status.
    fn ended(&self, entry: &str) -> String {
        let path = self.place.join(format!("{entry}.status"));
        let mut status = String::new();
        self.home
            .wait_for(&format!("{entry} to come to an end"), |_| {
                status = fs::read_to_string(&path).unwrap_or_default();
                let word = status.split(' ').next().unwrap_or_default();
                ["published", "unchanged", "refused"].contains(&word)
            });
        status
    }

    fn restart(&mut self) {
        self.home.kill_daemon();
        self.home.start_daemon();
    }

    /// Returns whether anything of a package is in the registry.
    fn is_announced(&self, name: &str) -> bool {
        let path = format!("registry/packages/{name}/index.json");
        self.home.path().join(path).exists()
    }
}

fn tree(path: &Path) {
    fs::create_dir_all(path.join("a/b")).unwrap();
    fs::write(path.join("a/b/file"), noise(1, 5000)).unwrap();
    fs::write(path.join("large"), noise(2, (2 << 20) + 7)).unwrap();
    fs::write(path.join("empty"), b"").unwrap();
    fs::write(path.join("a/run"), b"#!/bin/sh\n").unwrap();
    fs::set_permissions(path.join("a/run"), fs::Permissions::from_mode(0o700)).unwrap();
    symlink("a/b/file", path.join("link")).unwrap();
    symlink("nowhere", path.join("a/dangling")).unwrap();
}

/// Everything below a directory: its path, mode, time and content.
fn everything(path: &Path) -> Vec<(String, u32, i64, Vec<u8>)> {
    let mut found = Vec::new();
    let mut waiting = vec![path.to_owned()];
    while let Some(at) = waiting.pop() {
        let stat = at.symlink_metadata().unwrap();
        let content = if stat.is_symlink() {
            let target = fs::read_link(&at).unwrap();
            target.into_os_string().into_encoded_bytes()
        } else if stat.is_dir() {
            let inside = fs::read_dir(&at).unwrap();
            waiting.extend(inside.map(|entry| entry.unwrap().path()));
            Vec::new()
        } else {
            fs::read(&at).unwrap()
        };
        let name = at.strip_prefix(path).unwrap().display().to_string();
        found.push((name, stat.mode(), stat.mtime_nsec(), content));
    }
    found.sort();
    found
}

/// Returns the names in a directory.
fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).unwrap();
    let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
    let mut names: Vec<_> = entries.map(|entry| name(entry.unwrap())).collect();
    names.sort();
    names
}

#[test]
fn what_is_dropped_is_written_into_mirrors_as_a_command_writes_it() {
    let drops = Drops::new("to = [\"mirror/\", \"torrent\"]\nafter = \"keep\"\n");
    let home = drops.home.path();
    let mirror = home.join("mirror");
    fs::create_dir(&mirror).unwrap();
    let left = mirror.join(".manifs-fetch-killed");
    fs::create_dir(&left).unwrap();
    let source = drops.drop_tree("acme/tool@1.0.0");
    let status = drops.wait_status("acme/tool@1.0.0", "published");
    let place = mirror.join("acme-tool-1.0.0");
    let line = format!("mirror    {}\n", place.display());
    assert!(status.contains(&line), "{status}");
    assert_eq!(names(&mirror), ["acme-tool-1.0.0"]);
    // By a command, from the daemon's store.
    let other = home.join("other");
    let other = other.to_str().unwrap();
    drops
        .home
        .run(&["fetch", "acme/tool@1.0.0", "--mirror", other]);
    let written = everything(&place);
    assert_eq!(
        written,
        everything(&Path::new(other).join("acme-tool-1.0.0"))
    );
    assert!(place.join(".manifs/catalog").is_file());
    // And what was dropped, except for what manifs puts there and takes away.
    let plain = |path: &Path| -> Vec<(String, Vec<u8>)> {
        let all = everything(path).into_iter();
        let all = all.map(|(name, _, _, content)| (name, content));
        all.filter(|(name, _)| !name.starts_with(".manifs") && name != ".publish")
            .collect()
    };
    assert_eq!(plain(&place), plain(&source));
    let mode = |name: &str| place.join(name).metadata().unwrap().mode() & 0o7777;
    assert_eq!((mode("a/run"), mode("large")), (0o755, 0o644));
}

#[test]
fn a_mirror_that_cannot_be_written_is_waited_for_also_by_the_next_daemon() {
    let mut drops = Drops::new("to = [\"mirror/\"]\n");
    let mirror = drops.home.path().join("mirror");
    drops.drop_tree("tool@1.0.0");
    let status = drops.wait_status("tool@1.0.0", "waiting");
    let reason = format!("the mirror {}/ cannot be written: ", mirror.display());
    assert!(status.contains(&reason), "{status}");
    assert!(!mirror.exists(), "it may be a disk that is not mounted");
    // Whatever is in the way.
    fs::write(&mirror, b"in the way").unwrap();
    drops.restart();
    drops.home.wait_for("the reason", |home| {
        home.run(&["status"]).contains("not a directory")
    });
    drops.wait_status("tool@1.0.0", "waiting");
    assert!(!drops.is_announced("tool"));
    // Another tree of that name is not touched.
    fs::remove_file(&mirror).unwrap();
    let place = mirror.join("tool-1.0.0");
    fs::create_dir_all(&place).unwrap();
    fs::write(place.join("file"), b"another one").unwrap();
    drops.home.wait_for("the other reason", |home| {
        home.run(&["status"]).contains("move it away")
    });
    assert!(!drops.is_announced("tool"));
    assert_eq!(fs::read(place.join("file")).unwrap(), b"another one");
    // Nobody commits it once more.
    fs::rename(&place, mirror.join("moved")).unwrap();
    drops.wait_status("tool@1.0.0", "published");
    assert!(drops.is_announced("tool"));
    assert!(place.join(".manifs/catalog").is_file());
    assert_eq!(names(&mirror), ["moved", "tool-1.0.0"]);
}

#[test]
fn what_was_signed_is_announced_when_the_registry_can_be_written_again() {
    let drops = Drops::new("");
    let home = &drops.home;
    // Root may write anything, but no file in place of a directory.
    let version = home.path().join("registry/packages/tool/1.0.0");
    let in_the_way = version.join("SHA256SUMS/in-the-way");
    fs::create_dir_all(&in_the_way).unwrap();
    let source = tempfile::tempdir().unwrap();
    tree(source.path());
    let (code, said) = home.fail(&[
        "publish",
        source.path().to_str().unwrap(),
        "--name",
        "tool",
        "--version",
        "1.0.0",
    ]);
    assert_eq!(code, 1, "{said}");
    // It says why, once, and goes on trying.
    let why = "what is signed is not announced";
    home.wait_for("the log", |home| home.logs().contains(why));
    assert!(!drops.is_announced("tool"));
    fs::remove_dir_all(version.join("SHA256SUMS")).unwrap();
    home.wait_for("the announcement", |_| drops.is_announced("tool"));
    let journal = home.path().join("state/journal");
    home.wait_for("the journal to be empty", |_| names(&journal).is_empty());
    home.wait_for("the log", |home| home.logs().contains("is announced now"));
    assert_eq!(home.logs().matches(why).count(), 1, "{}", home.logs());
    home.run(&["verify", "tool@1.0.0", source.path().to_str().unwrap()]);
}

#[test]
fn what_was_signed_and_announced_only_by_a_later_try_is_published() {
    let drops = Drops::new("");
    let version = drops.home.path().join("registry/packages/tool/1.0.0");
    fs::create_dir_all(version.join("SHA256SUMS/in-the-way")).unwrap();
    drops.drop_tree("tool@1.0.0");
    drops.wait_status("tool@1.0.0", "waiting");
    fs::remove_dir_all(version.join("SHA256SUMS")).unwrap();
    let status = drops.ended("tool@1.0.0");
    assert!(status.starts_with("published "), "{status}");
    assert!(status.contains("package   tool@1.0.0\n"), "{status}");
    assert!(!status.contains("nothing was signed"), "{status}");
    assert!(drops.is_announced("tool"));
    // The same tree once more is another matter.
    drops.home.wait_for("it to be cleared away", |_| {
        !drops.place.join("tool@1.0.0").exists()
    });
    fs::remove_file(drops.place.join("tool@1.0.0.status")).unwrap();
    let copy = drops.home.path().join("copy");
    let copy = copy.to_str().unwrap();
    drops.home.run(&["fetch", "tool@1.0.0", "-o", copy]);
    fs::rename(copy, drops.place.join("tool@1.0.0")).unwrap();
    fs::write(drops.place.join("tool@1.0.0/.publish"), b"").unwrap();
    let status = drops.ended("tool@1.0.0");
    assert!(status.starts_with("unchanged "), "{status}");
}

#[test]
fn what_was_renamed_in_while_no_daemon_ran_is_published_when_it_is_quiet() {
    let mut drops = Drops::new("settle = \"1s\"\n");
    drops.home.kill_daemon();
    let hidden = drops.place.join(".tool@1.0.0");
    tree(&hidden);
    fs::rename(hidden, drops.place.join("tool@1.0.0")).unwrap();
    drops.home.start_daemon();
    let status = drops.ended("tool@1.0.0");
    assert!(status.starts_with("published "), "{status}");
}

#[test]
fn the_scopes_that_are_published_are_there_to_be_dropped_into() {
    let mut drops =
        Drops::new("names = [\"acme/*\", \"acme/tool\", \"other/tool\", \"plain\", \"way/*\"]\n");
    assert_eq!(names(&drops.place), ["acme", "other", "way"]);
    let mode = |scope: &str| drops.place.join(scope).metadata().unwrap().mode() & 0o7777;
    assert_eq!((mode("acme"), mode("other")), (0o700, 0o700));
    // One that was taken away is made again; what is in the way of one is told of, and nothing else is held up.
    drops.home.kill_daemon();
    fs::remove_dir(drops.place.join("way")).unwrap();
    fs::write(drops.place.join("way"), b"").unwrap();
    drops.home.start_daemon();
    fs::remove_dir(drops.place.join("acme")).unwrap();
    drops
        .home
        .wait_for("the scope", |_| drops.place.join("acme").is_dir());
    let status = drops.wait_status("way", "refused");
    assert!(status.contains("it is not a directory"), "{status}");
    drops.drop_tree("acme/tool@1.0.0");
    drops.wait_status("acme/tool@1.0.0", "published");
    let said = drops.home.run(&["status", "--json"]);
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["problems"], serde_json::json!([]), "{said}");
}

#[test]
fn what_was_refused_and_committed_once_more_stays_committed() {
    let mut drops = Drops::new("");
    let bad = drops.place.join("tool@1.0.0");
    tree(&bad);
    fs::write(bad.join(".env"), b"TOKEN=1\n").unwrap();
    fs::write(bad.join(".publish"), b"").unwrap();
    drops.wait_status("tool@1.0.0", "refused");
    drops.home.kill_daemon();
    // As a daemon leaves it that dies over `manifs publish --commit`.
    let status = drops.place.join("tool@1.0.0.status");
    fs::write(&status, "committed 2026-01-01T00:00:00Z\n").unwrap();
    drops.home.start_daemon();
    drops.wait_status("tool@1.0.0", "refused");
    // And one that went away meanwhile takes along whatever was not yet true of it.
    drops.home.kill_daemon();
    fs::write(&status, "committed 2026-01-01T00:00:00Z\n").unwrap();
    fs::remove_dir_all(bad).unwrap();
    drops.home.start_daemon();
    drops
        .home
        .wait_for("the status to go", |_| !status.exists());
}

#[test]
fn what_is_done_is_in_the_status_after_a_restart() {
    let mut drops = Drops::new("after = \"keep\"\n");
    drops.drop_tree("tool@1.0.0");
    drops.wait_status("tool@1.0.0", "published");
    for name in ["bad@1.0.0", "worse@1.0.0"] {
        let bad = drops.place.join(name);
        fs::create_dir(&bad).unwrap();
        fs::write(bad.join(".env"), b"TOKEN=1\n").unwrap();
        fs::write(bad.join(".publish"), b"").unwrap();
        drops.wait_status(name, "refused");
    }
    let entries = |home: &Home| {
        let said = home.run(&["status", "--json"]);
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        said["publish"]["entries"].clone()
    };
    let before = entries(&drops.home);
    assert_eq!(before.as_array().unwrap().len(), 3, "{before}");
    drops.restart();
    drops
        .home
        .wait_for("the same entries", |home| entries(home) == before);
    // What goes away while no daemon runs takes its refusal along.
    drops.home.kill_daemon();
    fs::remove_dir_all(drops.place.join("bad@1.0.0")).unwrap();
    drops.home.start_daemon();
    let status = |name: &str| drops.place.join(format!("{name}.status"));
    drops
        .home
        .wait_for("the status to go", |_| !status("bad@1.0.0").exists());
    drops.home.wait_for("the others", |home| {
        entries(home).as_array().unwrap().len() == 2
    });
    assert!(status("tool@1.0.0").exists() && status("worse@1.0.0").exists());
}
