//! What changes under a living mount: new versions, `latest`, withdrawn ones; and who may read what.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::machine::{Home, describe, noise, sh};

#[test]
fn a_new_version_appears_within_seconds_and_the_old_one_goes_on() {
    let source = tempfile::tempdir().unwrap();
    std::fs::write(source.path().join("data"), "one").unwrap();
    let mut publisher = Home::new();
    publisher.publish(source.path(), "pkg", "1.0.0");
    let url = publisher.serve();
    let mut reader = Home::new();
    reader.follow(&publisher, &url);
    let package = reader.mount().join("pkg");
    let names = || sh("ls \"$1\"", &[&package]);
    assert_eq!(names(), "1.0.0\nlatest\n");
    // A job with its working directory in the old version.
    let mut job = Command::new("bash")
        .args(["-euc", "read -r go; cat data; ls", "bash"])
        .current_dir(package.join("1.0.0"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let before = std::fs::symlink_metadata(package.join("latest"))
        .unwrap()
        .ino();
    std::fs::write(source.path().join("data"), "two").unwrap();
    publisher.publish(source.path(), "pkg", "1.1.0");
    let published = Instant::now();
    reader.wait_for("the new version", |_| names() == "1.0.0\n1.1.0\nlatest\n");
    println!("the new version was listed after {:?}", published.elapsed());
    assert!(
        published.elapsed() < Duration::from_secs(10),
        "{:?}",
        published.elapsed()
    );
    assert_eq!(
        std::fs::read_to_string(package.join("latest/data")).unwrap(),
        "two"
    );
    assert_ne!(
        std::fs::symlink_metadata(package.join("latest"))
            .unwrap()
            .ino(),
        before
    );
    std::io::Write::write_all(&mut job.stdin.take().unwrap(), b"go\n").unwrap();
    let output = job.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", describe(&output));
    assert_eq!(output.stdout, b"onedata\n");
}

#[test]
fn who_trusts_a_publisher_sees_its_packages_at_once() {
    let source = tempfile::tempdir().unwrap();
    std::fs::write(source.path().join("file"), "content").unwrap();
    let mut publisher = Home::new();
    publisher.publish(source.path(), "pkg", "1.0.0");
    let url = publisher.serve();
    let mut reader = Home::new();
    publisher.wait_for("the package", |_| {
        sh(
            "curl -sf \"$1\"/packages.json",
            &[std::path::Path::new(&url)],
        )
        .contains("1.0.0")
    });
    reader.run(&["registry", "add", &url]);
    let mountpoint = reader.mount_empty();
    assert_eq!(sh("ls \"$1\"", &[&mountpoint]), "");
    let key = publisher.path().join("keys/default.pub.pem");
    reader.run(&["trust", "add", "pkg", key.to_str().unwrap()]);
    assert_eq!(sh("ls \"$1\"", &[&mountpoint]), "pkg\n");
    // A path relative to here names what the mount shows there.
    let output = reader
        .command()
        .current_dir(&mountpoint)
        .args(["why", "pkg/1.0.0/file"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        said.contains("pkg@1.0.0 is trusted by the rule for pkg"),
        "{said}"
    );
    // Pinned files are kept, and it says so.
    reader.run(&["warm", "pkg"]);
    reader.run(&["pin", "pkg"]);
    let evict = || {
        let done = reader.run(&["evict", "pkg", "--json"]);
        let done: serde_json::Value = serde_json::from_str(&done).unwrap();
        (done["files"].as_u64(), done["kept"].as_u64())
    };
    assert_eq!(evict(), (Some(0), Some(1)));
    reader.run(&["unpin", "pkg"]);
    assert_eq!(evict(), (Some(1), Some(0)));
}

#[test]
fn installed_by_hand_only() {
    let source = tempfile::tempdir().unwrap();
    std::fs::write(source.path().join("file"), "content").unwrap();
    let mut publisher = Home::new();
    publisher.publish(source.path(), "pkg", "1.0.0");
    let url = publisher.serve();
    let mut reader = Home::new();
    reader.config("[mount]\ninstall = \"manual\"\n");
    reader.follow(&publisher, &url);
    let version = reader.mount().join("pkg/1.0.0");
    // Seen, but not entered.
    assert!(std::fs::metadata(&version).unwrap().is_dir());
    let refused = std::fs::read(version.join("file")).unwrap_err();
    assert_eq!(
        refused.raw_os_error(),
        Some(rustix::io::Errno::NODATA.raw_os_error())
    );
    let why = reader.run(&["why", version.to_str().unwrap()]);
    assert!(
        why.contains("manual") && why.contains("manifs ls pkg@1.0.0"),
        "{why}"
    );
    assert_eq!(reader.run(&["ls", "pkg@1.0.0"]), "file\n");
    assert_eq!(std::fs::read(version.join("file")).unwrap(), b"content");
}

#[test]
fn permissions_are_the_catalogs() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED permissions_are_the_catalogs: needs root, to become nobody");
        return;
    }
    let source = tempfile::tempdir().unwrap();
    for (name, mode) in [("secret", 0o600), ("shared", 0o644), ("tool", 0o4755)] {
        let path = source.path().join(name);
        std::fs::write(&path, name).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut publisher = Home::new();
    publisher.run(&["keygen"]);
    publisher.run(&[
        "publish",
        source.path().to_str().unwrap(),
        "--name",
        "pkg",
        "--version",
        "1.0.0",
        "--preserve",
    ]);
    let url = publisher.serve();
    let mut reader = Home::new();
    reader.follow(&publisher, &url);
    sh("chmod 755 \"$1\"", &[reader.path()]);
    let version = reader.mount_with(&["-o", "allow_other"]).join("pkg/1.0.0");
    let as_nobody = |name: &str| {
        use std::os::unix::process::CommandExt;
        Command::new("cat")
            .arg(version.join(name))
            .uid(65534)
            .gid(65534)
            .output()
            .unwrap()
    };
    assert_eq!(as_nobody("shared").stdout, b"shared");
    let refused = as_nobody("secret");
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("Permission denied"),
        "{}",
        describe(&refused)
    );
    assert_eq!(std::fs::read(version.join("secret")).unwrap(), b"secret");
    assert_eq!(
        std::fs::metadata(version.join("tool")).unwrap().mode() & 0o7777,
        0o755,
        "no setuid bit survives publishing"
    );
    let written = std::fs::write(version.join("new"), "x").unwrap_err();
    assert_eq!(
        written.raw_os_error(),
        Some(rustix::io::Errno::ROFS.raw_os_error())
    );
}

#[test]
fn a_withdrawn_version_vanishes_and_what_is_open_stays_readable() {
    use std::io::Read as _;

    let source = tempfile::tempdir().unwrap();
    let large = noise(7, 5 << 20);
    std::fs::write(source.path().join("large"), &large).unwrap();
    let mut publisher = Home::new();
    publisher.publish(source.path(), "pkg", "1.0.0");
    std::fs::write(source.path().join("data"), "two").unwrap();
    publisher.publish(source.path(), "pkg", "1.1.0");
    let url = publisher.serve();
    let mut reader = Home::new();
    reader.follow(&publisher, &url);
    let package = reader.mount().join("pkg");
    let names = || sh("ls \"$1\"", &[&package]);
    assert_eq!(names(), "1.0.0\n1.1.0\nlatest\n");
    let version = package.join("1.1.0");
    let mut open = std::fs::File::open(version.join("large")).unwrap();
    let mut bytes = vec![0; 10];
    open.read_exact(&mut bytes).unwrap();
    // A job with its working directory in it.
    let mut job = Command::new("bash")
        .args(["-uc", "cat data; read -r go; cat new; ls; exit 0", "bash"])
        .current_dir(&version)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let said = publisher.run(&["withdraw", "pkg@1.1.0", "--reason", "it eats cats"]);
    assert!(said.contains("latest leads to 1.0.0"), "{said}");
    let withdrawn = Instant::now();
    reader.wait_for("it to vanish", |_| names() == "1.0.0\nlatest\n");
    println!("it vanished after {:?}", withdrawn.elapsed());
    assert!(withdrawn.elapsed() < Duration::from_secs(10));
    let latest = std::fs::read_link(package.join("latest")).unwrap();
    assert_eq!(latest, std::path::Path::new("1.0.0"));
    let gone = std::fs::metadata(&version).unwrap_err();
    assert_eq!(gone.kind(), std::io::ErrorKind::NotFound);
    open.read_to_end(&mut bytes).unwrap();
    assert!(bytes == large, "what is open is read to its end");
    std::io::Write::write_all(&mut job.stdin.take().unwrap(), b"go\n").unwrap();
    let output = job.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", describe(&output));
    assert!(output.stdout.starts_with(b"two"), "{}", describe(&output));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("Stale file handle"), "{said}");
    let path = version.join("large");
    for words in [&["why", path.to_str().unwrap()][..], &["list", "--all"]] {
        let said = reader.run(words);
        assert!(
            said.contains("withdrawn by its publisher: it eats cats"),
            "{said}"
        );
    }
    // The publisher's own home says so, too, and it stays withdrawn after a restart.
    publisher.kill_daemon();
    publisher.serve();
    let said = publisher.run(&["list", "--all"]);
    assert!(said.contains("refused: pkg@1.1.0 is withdrawn"), "{said}");
}
