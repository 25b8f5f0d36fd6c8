//! Publishing as others see it while it is interrupted.

use std::process::Stdio;
use std::time::Instant;

use crate::machine::{Home, count, noise, sh};

#[test]
fn a_killed_publish_shows_nothing_half_and_is_made_good_by_the_next() {
    let rounds = count("kills of publish", 6, 50);
    let source = tempfile::tempdir().unwrap();
    for file in 0..300 {
        let directory = source.path().join(format!("d{}", file % 7));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join(format!("f{file}")), noise(file, 9000)).unwrap();
    }
    std::fs::write(source.path().join("large"), noise(1000, 9 << 20)).unwrap();
    let tree = source.path().to_str().unwrap();
    let mut publisher = Home::new();
    let started = Instant::now();
    publisher.publish(source.path(), "pkg", "1.0.0");
    let whole = started.elapsed();
    let url = publisher.serve();
    let mut reader = Home::new();
    reader.follow(&publisher, &url);
    let mountpoint = reader.mount();
    let shown = |version: &str| mountpoint.join("pkg").join(version).exists();
    let mut killed = 0;
    for round in 1..=rounds {
        let version = format!("1.0.{round}");
        // Another version has other content, so that there is something to ingest.
        std::fs::write(
            source.path().join("large"),
            noise(1000 + round as u64, 9 << 20),
        )
        .unwrap();
        let words = ["publish", tree, "--name", "pkg", "--version", &version];
        let mut child = publisher
            .command()
            .args(words)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let random = u32::from(noise(round as u64, 3)[0]);
        std::thread::park_timeout(whole * random / 256);
        child.kill().unwrap();
        if !child.wait().unwrap().success() {
            killed += 1;
        }
        // Whole or not at all, and the versions before it are what they were.
        let listed = publisher.run(&["list"]);
        if listed.contains(&format!("pkg@{version}")) {
            publisher.run(&["verify", &format!("pkg@{version}")]);
        }
        assert!(listed.contains("pkg@1.0.0"), "{listed}");
        publisher.run(&words);
        reader.wait_for("the version", |_| shown(&version));
        sh(
            "diff -r \"$1\" \"$2\"",
            &[source.path(), &mountpoint.join("pkg").join(&version)],
        );
    }
    assert!(killed > 0, "every publish was over before it was killed");
    println!("{killed} of {rounds} killed before they were done, within {whole:?}");
    let latest = std::fs::read_link(mountpoint.join("pkg/latest")).unwrap();
    assert_eq!(latest, std::path::Path::new(&format!("1.0.{rounds}")));
}
