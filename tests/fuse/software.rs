//! Real software, and much of it: the sources of the libraries that this very program is built from.

use std::path::PathBuf;

use crate::machine::{Home, count, sh};

/// Returns where cargo keeps the sources of libraries.
fn sources() -> PathBuf {
    #[expect(
        clippy::disallowed_methods,
        reason = "where cargo's home is, only the environment says"
    )]
    let home = std::env::var_os("CARGO_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cargo"),
        PathBuf::from,
    );
    home.join("registry/src")
}

#[test]
fn real_software_survives_the_whole_way() {
    let least = count("files of real software", 2_000, 10_000);
    let tree = tempfile::tempdir().unwrap();
    let mut files = 0;
    let mut crates: Vec<PathBuf> = std::fs::read_dir(sources())
        .unwrap()
        .flat_map(|index| std::fs::read_dir(index.unwrap().path()).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect();
    crates.sort();
    for one in &crates {
        if files >= least {
            break;
        }
        sh("cp -a \"$1\" \"$2\"", &[one, tree.path()]);
        files += sh("find \"$1\" -type f | wc -l", &[one])
            .trim()
            .parse::<usize>()
            .unwrap();
    }
    assert!(
        files >= least,
        "only {files} files in {} libraries",
        crates.len()
    );
    let mut publisher = Home::new();
    publisher.run(&["keygen"]);
    // Test keys of cryptographic libraries look like secrets, and links that leave their library are nothing to follow.
    publisher.run(&[
        "publish",
        tree.path().to_str().unwrap(),
        "--name",
        "software",
        "--version",
        "1.0.0",
        "--allow",
        "secrets",
    ]);
    let url = publisher.serve();
    let mut reader = Home::new();
    reader.follow(&publisher, &url);
    let version = reader.mount().join("software/1.0.0");
    let copy = reader.path().join("copy");
    sh(
        "cp -a \"$1\" \"$2\" && diff -r --no-dereference \"$3\" \"$2\"",
        &[&version, &copy, tree.path()],
    );
    // Directories get the newest file's time; everything else is kept, the mode as far as it says "executable".
    let look = r#"cd "$1"
        find . -type f -perm -u+x -printf '%P %s %T@ 755\n' -o -type f -printf '%P %s %T@ 644\n' \
            -o -type l -printf '%P %l\n' -o -type d -printf '%P/\n' | sort >"$2"
        find . -type f ! -perm 755 ! -perm 644 | wc -l"#;
    let (ours, theirs) = (reader.path().join("ours"), reader.path().join("theirs"));
    sh(look, &[tree.path(), &theirs]);
    assert_eq!(sh(look, &[&version, &ours]).trim(), "0", "other modes");
    sh(
        "diff \"$1\" \"$2\" | head; cmp \"$1\" \"$2\"",
        &[&theirs, &ours],
    );
}
