//! Mounts of a user who is not root: `fusermount3` makes them, and who may enter is up to `allow_other`.

use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output};

use crate::machine::{Home, describe, noise};

/// `nobody` on most machines; nothing here depends on its name.
const USER: u32 = 65534;
/// A third user, neither root nor the one who mounts.
const OTHER: u32 = 65533;

/// Returns what keeps this machine from running these tests.
fn missing() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("root, to become other users");
    }
    let Ok(device) = std::fs::metadata("/dev/fuse") else {
        return Some("/dev/fuse");
    };
    if device.mode() & 0o666 != 0o666 {
        return Some("/dev/fuse with mode 0666");
    }
    let configuration = std::fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    if !configuration
        .lines()
        .any(|line| line.trim() == "user_allow_other")
    {
        return Some("user_allow_other in /etc/fuse.conf");
    }
    if Command::new("fusermount3").arg("-V").output().is_err() {
        return Some("fusermount3, in the package fuse3");
    }
    None
}

/// Returns whether the tests can run; says loudly what is missing, and fails where nothing may be skipped.
fn can_run(test: &str) -> bool {
    let Some(missing) = missing() else {
        return true;
    };
    #[expect(
        clippy::disallowed_methods,
        reason = "tests have no configuration; this is how CI says that it is CI"
    )]
    let is_ci = std::env::var_os("CI").is_some();
    assert!(!is_ci, "{test} needs {missing}");
    // Not eprintln: the test harness would swallow it.
    let line = format!("SKIPPED {test}: needs {missing}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
    false
}

fn run_as(user: u32, program: &str, arguments: &[&Path]) -> Output {
    Command::new(program)
        .args(arguments)
        .current_dir("/")
        .uid(user)
        .gid(user)
        .output()
        .unwrap()
}

fn is_mounted(mountpoint: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mountpoint = mountpoint.to_str().unwrap();
    mounts
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(mountpoint))
}

/// A publisher, its tree in a place that everybody can enter, and a reader who is not root.
fn publisher_and_reader() -> (tempfile::TempDir, Home, Home) {
    let source = tempfile::Builder::new()
        .permissions(std::fs::Permissions::from_mode(0o755))
        .tempdir_in("/tmp")
        .unwrap();
    let at = |path: &str| source.path().join(path);
    std::fs::create_dir(at("d")).unwrap();
    std::fs::write(at("d/large"), noise(1, (2 << 20) + 5)).unwrap();
    std::fs::write(at("hello"), "hello\n").unwrap();
    std::fs::write(at("empty"), "").unwrap();
    symlink("../hello", at("d/link")).unwrap();
    let mut publisher = Home::new();
    publisher.publish(source.path(), "pkg", "1.0.0");
    let url = publisher.serve();
    let reader = Home::of_user(USER);
    let key = reader.path().join("publisher.pub.pem");
    std::fs::copy(publisher.path().join("keys/default.pub.pem"), &key).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    reader.run(&["trust", "add", "*", key.to_str().unwrap()]);
    reader.run(&["registry", "add", &url]);
    (source, publisher, reader)
}

#[test]
fn a_user_mounts_reads_and_unmounts_for_himself_alone() {
    if !can_run("a_user_mounts_reads_and_unmounts_for_himself_alone") {
        return;
    }
    let (source, _publisher, mut reader) = publisher_and_reader();
    let mountpoint = reader.mount();
    let version = mountpoint.join("pkg/1.0.0");
    let compared = reader
        .as_user("diff")
        .args(["-r", "--no-dereference"])
        .args([source.path(), &version])
        .output()
        .unwrap();
    assert!(compared.status.success(), "{}", describe(&compared));
    let owner = reader
        .as_user("stat")
        .args(["-c", "%u"])
        .arg(version.join("hello"))
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&owner.stdout), format!("{USER}\n"));
    // The kernel keeps everybody else out, root as well.
    for user in [OTHER, 0] {
        let refused = run_as(user, "cat", &[&version.join("hello")]);
        assert!(
            String::from_utf8_lossy(&refused.stderr).contains("Permission denied"),
            "user {user}: {}",
            describe(&refused)
        );
    }
    assert!(is_mounted(&mountpoint));
    reader.run(&["unmount", mountpoint.to_str().unwrap()]);
    assert!(!is_mounted(&mountpoint));
}

#[test]
fn a_user_lets_others_in_with_allow_other() {
    if !can_run("a_user_lets_others_in_with_allow_other") {
        return;
    }
    let (source, _publisher, mut reader) = publisher_and_reader();
    let mountpoint = reader.mount_with(&["-o", "allow_other"]);
    let version = mountpoint.join("pkg/1.0.0");
    for user in [USER, OTHER, 0] {
        let read = run_as(user, "cat", &[&version.join("d/link")]);
        assert_eq!(read.stdout, b"hello\n", "user {user}: {}", describe(&read));
        let large = run_as(
            user,
            "cmp",
            &[&source.path().join("d/large"), &version.join("d/large")],
        );
        assert!(large.status.success(), "user {user}: {}", describe(&large));
    }
    reader.run(&["unmount", mountpoint.to_str().unwrap()]);
    assert!(!is_mounted(&mountpoint));
}
