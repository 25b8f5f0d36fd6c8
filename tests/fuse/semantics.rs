//! Runs the examples of `docs/semantics.md`, word for word.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use crate::machine::Home;

/// Returns the commands and what each prints, from the fenced `console` blocks of a page.
fn examples(page: &str) -> Vec<(String, String)> {
    let mut examples: Vec<(String, String)> = Vec::new();
    let mut inside = false;
    for line in page.lines() {
        match (inside, line) {
            (false, "```console") => inside = true,
            (true, "```") => inside = false,
            (true, line) => match (line.strip_prefix("$ "), examples.last_mut()) {
                (Some(command), _) => examples.push((command.to_owned(), String::new())),
                (None, Some((_, output))) => *output += &format!("{line}\n"),
                (None, None) => panic!("output without a command: {line}"),
            },
            (false, _) => {}
        }
    }
    examples
}

#[test]
fn the_documented_examples_hold() {
    let page = include_str!("../../docs/semantics.md");
    let examples = examples(page);
    assert!(examples.len() > 10, "the page lost its examples");
    let mut publisher = Home::new();
    let source = tempfile::tempdir().unwrap();
    std::fs::create_dir(source.path().join("bin")).unwrap();
    std::fs::write(source.path().join("bin/hello"), "#!/bin/sh\necho hello\n").unwrap();
    std::fs::set_permissions(
        source.path().join("bin/hello"),
        std::fs::Permissions::from_mode(0o755),
    )
    .unwrap();
    symlink("data.txt", source.path().join("link")).unwrap();
    for (version, data) in [("1.0.0", "one\n"), ("1.1.0", "two\n")] {
        std::fs::write(source.path().join("data.txt"), data).unwrap();
        publisher.publish(source.path(), "acme/tools", version);
    }
    let url = publisher.serve();
    let mut reader = Home::new();
    reader.follow(&publisher, &url);
    let mountpoint = reader.mount();
    let directory = tempfile::tempdir().unwrap();
    symlink(&mountpoint, directory.path().join("mnt")).unwrap();
    for (command, want) in examples {
        let output = Command::new("bash")
            .args(["-c", &command])
            .current_dir(directory.path())
            .output()
            .unwrap();
        let got = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert_eq!(got, want, "$ {command}");
    }
}
