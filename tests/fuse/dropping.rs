//! The drop directory, as people use it: through a mount, with the tools they have.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::machine::{Home, describe, noise, sh};

/// A home with a key and a drop directory, its daemon, and a mount.
fn dropping(settings: &str) -> (Home, PathBuf) {
    let mut home = Home::new();
    home.run(&["keygen"]);
    home.config(&format!(
        "[publish]\nnames = [\"tool\", \"acme/*\"]\n{settings}"
    ));
    home.start_daemon();
    let mountpoint = home.mount_empty();
    (home, mountpoint)
}

/// A tree with some of everything.
fn source(seed: u64) -> tempfile::TempDir {
    let source = tempfile::tempdir().unwrap();
    let path = source.path();
    std::fs::create_dir_all(path.join("a/b")).unwrap();
    std::fs::write(path.join("a/b/file"), noise(seed, 5000)).unwrap();
    std::fs::write(path.join("large"), noise(seed + 1, 3 << 20)).unwrap();
    std::fs::write(path.join("empty"), b"").unwrap();
    std::os::unix::fs::symlink("a/b/file", path.join("link")).unwrap();
    source
}

fn status(mountpoint: &Path, entry: &str) -> String {
    let path = mountpoint.join("publish").join(format!("{entry}.status"));
    std::fs::read_to_string(path).unwrap_or_default()
}

fn wait_status(home: &Home, mountpoint: &Path, entry: &str, word: &str) -> String {
    home.wait_for(&format!("{entry} to be {word}"), |_| {
        status(mountpoint, entry).starts_with(&format!("{word} "))
    });
    status(mountpoint, entry)
}

fn equal(source: &Path, version: &Path) {
    sh(
        "diff -r --no-dereference -x .git \"$1\" \"$2\"",
        &[source, version],
    );
}

/// Ways of putting the tree `$1` into the directory `$2`, which is not there yet.
const PUTTING: [(&str, &str); 6] = [
    ("cp", "cp -a \"$1\" \"$2\""),
    ("rsync", "rsync -a \"$1\"/ \"$2\""),
    ("tar", "mkdir \"$2\"; tar -C \"$1\" -c . | tar -C \"$2\" -x"),
    (
        "git",
        "git -C \"$1\" -c init.defaultBranch=main init -q; git -C \"$1\" add .; \
        git -C \"$1\" -c user.name=n -c user.email=e commit -qm m; git clone -q \"$1\" \"$2\"",
    ),
    (
        "unzip",
        "z=$(mktemp -u).zip; (cd \"$1\"; zip -qry \"$z\" .); unzip -q \"$z\" -d \"$2\"; rm \"$z\"",
    ),
    (
        "sed",
        "cp -a \"$1\" \"$2\"; cp \"$1\"/a/b/file \"$2\"/a/b/.file.swp; mv \"$2\"/a/b/.file.swp \"$2\"/a/b/file",
    ),
];

#[test]
fn whatever_puts_it_there_and_however_it_is_committed_it_becomes_one_version() {
    let (home, mountpoint) = dropping("settle = \"3s\"\n");
    let publish = mountpoint.join("publish");
    let listed = std::fs::read_dir(&mountpoint).unwrap();
    let names: Vec<_> = listed.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["publish"]);
    assert_eq!(
        std::fs::read_link(&publish).unwrap(),
        home.path().join("publish")
    );
    let mut expected = Vec::new();
    for (major, (tool, put)) in (1..).zip(PUTTING) {
        if Command::new(tool).arg("--help").output().is_err() {
            eprintln!("SKIPPED {tool}: it is not installed");
            continue;
        }
        for (minor, commit) in (0..).zip(["rename", "mark", "command", "quiet"]) {
            let source = source(100 * major + minor);
            let entry = format!("tool@{major}.{minor}.0");
            let hidden = publish.join(format!(".{entry}"));
            let place = publish.join(&entry);
            if commit == "rename" {
                sh(put, &[source.path(), &hidden]);
                std::fs::rename(&hidden, &place).unwrap();
            } else {
                sh(put, &[source.path(), &place]);
            }
            match commit {
                "mark" => std::fs::write(place.join(".publish"), b"").unwrap(),
                "command" => {
                    let said = home.run(&["publish", "--commit", place.to_str().unwrap()]);
                    assert!(said.contains(&format!("published {entry} to")), "{said}");
                }
                _ => {}
            }
            expected.push((entry, source));
        }
    }
    for (entry, source) in &expected {
        let said = wait_status(&home, &mountpoint, entry, "published");
        assert!(said.contains(&format!("package   {entry}\n")), "{said}");
        let version = mountpoint.join(entry.replace('@', "/"));
        home.wait_for("the version", |_| version.exists());
        equal(source.path(), &version);
        home.wait_for("the directory to be cleared away", |_| {
            !publish.join(entry).exists()
        });
    }
    let versions = std::fs::read_dir(mountpoint.join("tool")).unwrap().count();
    assert_eq!(versions, expected.len() + 1, "one each, and latest");
}

#[test]
fn a_slow_copy_is_never_published_half() {
    let (home, mountpoint) = dropping("settle = \"4s\"\n");
    let place = mountpoint.join("publish/tool@1.0.0");
    let source = tempfile::tempdir().unwrap();
    std::fs::create_dir(&place).unwrap();
    for nth in 0..10 {
        for directory in [source.path(), &place] {
            std::fs::write(directory.join(format!("f{nth}")), noise(nth, 1000)).unwrap();
        }
        // The pause is what is tested: it is shorter than `settle`.
        std::thread::park_timeout(Duration::from_millis(700));
    }
    // And one that is only held open, for longer than `settle`.
    let open = std::fs::OpenOptions::new()
        .append(true)
        .open(place.join("f9"))
        .unwrap();
    std::thread::park_timeout(Duration::from_secs(6));
    assert!(status(&mountpoint, "tool@1.0.0").starts_with("arriving "));
    drop(open);
    wait_status(&home, &mountpoint, "tool@1.0.0", "published");
    home.wait_for("the version", |_| mountpoint.join("tool/1.0.0").exists());
    equal(source.path(), &mountpoint.join("tool/1.0.0"));
}

#[test]
fn a_refusal_says_everything_and_is_tried_again() {
    let (home, mountpoint) = dropping("settle = \"0s\"\n");
    let publish = mountpoint.join("publish");
    let source = source(1);
    let place = publish.join("tool@1.0.0");
    sh(
        "cp -a \"$1\" \"$2\"; mkfifo \"$2\"/fifo; echo x > \"$2\"/.env; ln -s /etc \"$2\"/out",
        &[source.path(), &place],
    );
    std::fs::write(place.join("manifs.toml"), "key = \"k\"\ndescription = 1\n").unwrap();
    let (code, said) = home.fail(&["publish", "--commit", "tool@1.0.0"]);
    assert_eq!(code, 4, "{said}");
    let said = wait_status(&home, &mountpoint, "tool@1.0.0", "refused");
    for reason in [
        "- fifo: a FIFO",
        "- .env (environment file): likely a secret",
        "- out (-> /etc): a symlink that leaves the package",
        "- manifs.toml: key: only the configuration of the daemon says this",
        "- manifs.toml: description: expected a text in quotes",
    ] {
        assert!(said.contains(reason), "{reason}\n{said}");
    }
    assert!(home.run(&["status"]).contains("tool@1.0.0 refused: "));
    sh(
        "rm \"$1\"/fifo \"$1\"/.env \"$1\"/out \"$1\"/manifs.toml; touch \"$1\"/.publish",
        &[&place],
    );
    wait_status(&home, &mountpoint, "tool@1.0.0", "published");
    // Names that say nothing, or what the daemon does not sign.
    for (name, reason) in [
        ("tool", "its name says no version"),
        ("tool@1", "no version that there can be"),
        ("other@1.0.0", "this daemon does not sign other"),
        ("tool@1.0.0", "exists already as"),
    ] {
        let place = publish.join(name);
        std::fs::create_dir(&place).unwrap();
        std::fs::write(place.join("file"), name).unwrap();
        std::fs::write(place.join(".publish"), "").unwrap();
        let said = wait_status(&home, &mountpoint, name, "refused");
        assert!(said.contains(reason), "{reason}\n{said}");
        assert!(place.join("file").exists());
    }
    // Whoever takes it away takes the refusal along.
    std::fs::remove_dir_all(publish.join("other@1.0.0")).unwrap();
    home.wait_for("the status to go", |_| {
        status(&mountpoint, "other@1.0.0").is_empty()
    });
    let (code, said) = home.fail(&["publish", "--commit", "none@1.0.0"]);
    assert_eq!(code, 3, "{said}");
    let (code, said) = home.fail(&["publish", "--commit", source.path().to_str().unwrap()]);
    assert_eq!(code, 2, "{said}");
}

#[test]
fn the_next_version_is_chosen_and_the_same_again_is_none() {
    let (home, mountpoint) = dropping("settle = \"0s\"\n");
    let place = mountpoint.join("publish/acme/tool@next");
    let drop = |content: &str, instructions: &str| {
        std::fs::create_dir(&place).unwrap();
        let file = place.join("file");
        std::fs::write(&file, content).unwrap();
        let file = std::fs::File::open(file).unwrap();
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
        std::fs::write(place.join("manifs.toml"), instructions).unwrap();
        let said = home.run(&["publish", "--commit", "--json", place.to_str().unwrap()]);
        home.wait_for("the directory to go", |_| !place.exists());
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        let package = said["package"].as_str().unwrap().to_owned();
        (package, said["unchanged"].as_bool().unwrap())
    };
    assert_eq!(drop("1", ""), ("acme/tool@0.1.0".to_owned(), false));
    assert_eq!(drop("2", ""), ("acme/tool@0.1.1".to_owned(), false));
    assert_eq!(drop("2", ""), ("acme/tool@0.1.1".to_owned(), true));
    assert_eq!(
        drop("3", "next = \"minor\""),
        ("acme/tool@0.2.0".to_owned(), false)
    );
    assert_eq!(
        drop("4", "version = \"3.0.0\""),
        ("acme/tool@3.0.0".to_owned(), false)
    );
    assert_eq!(
        drop("5", "next = \"major\"\nlatest = false"),
        ("acme/tool@4.0.0".to_owned(), false)
    );
    let latest = std::fs::read_link(mountpoint.join("acme/tool/latest")).unwrap();
    assert_eq!(latest, Path::new("3.0.0"));
}

#[test]
fn what_was_dropped_while_the_daemon_was_down_is_found_and_what_is_kept_is_left_alone() {
    let (mut home, mountpoint) = dropping("settle = \"1s\"\nafter = \"keep\"\n");
    let publish = home.path().join("publish");
    let source = source(1);
    sh(
        "cp -a \"$1\" \"$2\"",
        &[source.path(), &publish.join("tool@1.0.0")],
    );
    wait_status(&home, &mountpoint, "tool@1.0.0", "published");
    home.run(&["unmount", mountpoint.to_str().unwrap()]);
    home.kill_daemon();
    let kept = std::fs::read(publish.join("tool@1.0.0.status")).unwrap();
    sh(
        "cp -a \"$1\" \"$2\"",
        &[source.path(), &publish.join("tool@2.0.0")],
    );
    home.start_daemon();
    let path = publish.join("tool@2.0.0.status");
    home.wait_for("the second version", |_| {
        std::fs::read_to_string(&path).is_ok_and(|text| text.starts_with("published "))
    });
    assert_eq!(
        std::fs::read(publish.join("tool@1.0.0.status")).unwrap(),
        kept
    );
    assert!(publish.join("tool@1.0.0/large").is_file());
}

#[test]
fn a_registry_that_cannot_be_written_is_waited_for() {
    let (home, mountpoint) =
        dropping("settle = \"1s\"\nafter = \"move\"\nregistry = \"there/registry\"\n");
    let publish = home.path().join("publish");
    std::fs::write(home.path().join("there"), "in the way").unwrap();
    let source = source(1);
    sh(
        "cp -a \"$1\" \"$2\"",
        &[source.path(), &publish.join("tool@1.0.0")],
    );
    wait_status(&home, &mountpoint, "tool@1.0.0", "waiting");
    assert!(publish.join("tool@1.0.0/large").is_file());
    std::fs::remove_file(home.path().join("there")).unwrap();
    let said = wait_status(&home, &mountpoint, "tool@1.0.0", "published");
    assert!(said.contains("there/registry"), "{said}");
    home.wait_for("the directory to be moved", |_| {
        !publish.join("tool@1.0.0").exists()
    });
    equal(source.path(), &publish.join(".published/tool@1.0.0"));
}

#[test]
fn a_version_is_readable_soon_after_it_is_announced() {
    let (home, mountpoint) = dropping("settle = \"0s\"\n");
    let source = source(1);
    sh(
        "cp -a \"$1\" \"$2\"",
        &[source.path(), &mountpoint.join("publish/tool@1.0.0")],
    );
    home.run(&["publish", "--commit", "tool@1.0.0"]);
    let announced = Instant::now();
    home.wait_for("the version", |_| {
        mountpoint.join("tool/1.0.0/large").exists()
    });
    println!("readable after {:?}", announced.elapsed());
    assert!(
        announced.elapsed() < Duration::from_secs(2),
        "{:?}",
        announced.elapsed()
    );
}

#[test]
fn a_daemon_without_its_key_does_not_start() {
    let home = Home::new();
    home.config("[publish]\nnames = [\"*\"]\nkey = \"absent\"\n");
    let output = home
        .command()
        .args(["serve", "--foreground"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{}", describe(&output));
    assert!(
        said.contains("[publish] key: ") && said.contains("absent.pem"),
        "{said}"
    );
}

#[test]
fn members_of_a_group_publish_what_is_theirs_and_nothing_else() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    use std::os::unix::process::CommandExt as _;
    const NOBODY: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED members_of_a_group_publish_what_is_theirs_and_nothing_else: needs root");
        return;
    }
    let around = tempfile::tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(around.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let publish = around.path().join("drop");
    let settings = format!(
        "settle = \"0s\"\ngroup = \"nogroup\"\ndirectory = {:?}\n",
        publish.to_str().unwrap()
    );
    let (home, mountpoint) = dropping(&settings);
    let as_nobody = |script: &str| {
        let output = Command::new("bash")
            .args(["-euc", script])
            .current_dir(&publish)
            .uid(NOBODY)
            .gid(NOBODY)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", describe(&output));
    };
    as_nobody("mkdir -p tool@1.0.0/d; echo mine > tool@1.0.0/d/file; touch tool@1.0.0/.publish");
    let said = wait_status(&home, &mountpoint, "tool@1.0.0", "published");
    assert!(said.contains("tool@1.0.0"), "{said}");
    assert_eq!(
        std::fs::metadata(publish.join("tool@1.0.0.status"))
            .unwrap()
            .uid(),
        NOBODY
    );
    // Into a scope, too, which nobody has to make first.
    as_nobody(
        "mkdir acme/tool@1.0.0; echo mine > acme/tool@1.0.0/file; touch acme/tool@1.0.0/.publish",
    );
    wait_status(&home, &mountpoint, "acme/tool@1.0.0", "published");
    let place = publish.join("acme/tool@1.0.0");
    home.wait_for("the directory to go", |_| !place.exists());
    // A hard link to a file of somebody else, and a mount, are not what its owner may give away.
    std::fs::write(publish.join(".secret"), "root's own").unwrap();
    as_nobody("mkdir tool@1.0.1; echo mine > tool@1.0.1/file");
    std::fs::hard_link(publish.join(".secret"), publish.join("tool@1.0.1/stolen")).unwrap();
    as_nobody("touch tool@1.0.1/.publish");
    let said = wait_status(&home, &mountpoint, "tool@1.0.1", "refused");
    assert!(
        said.contains("- stolen: not owned by the owner of the directory"),
        "{said}"
    );
    assert_eq!(
        std::fs::read_to_string(publish.join(".secret")).unwrap(),
        "root's own"
    );
}
