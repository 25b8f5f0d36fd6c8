//! From a directory or a stream to a version, and back to a directory.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use super::{Home, ran};

#[test]
fn a_package_is_published_looked_at_and_copied() {
    let home = Home::publisher();
    let listed = home.run(&["list", "--json"]).ok().json();
    let item = &listed["packages"][0];
    assert_eq!(
        (
            &item["name"],
            &item["version"],
            &item["latest"],
            &item["installed"]
        ),
        (
            &"acme/tools".into(),
            &"1.0.0".into(),
            &true.into(),
            &true.into()
        )
    );
    assert_eq!(item["files"], 5);

    let ls = home.run(&["ls", "acme/tools"]).ok().out;
    let names: Vec<&str> = ls.lines().collect();
    assert_eq!(names, ["a b", "big", "bin", "empty", "hello.txt", "link"]);
    let deep = home.run(&["ls", "-R", "acme/tools@latest"]).ok().out;
    assert!(deep.lines().any(|line| line == r"a b/line\nfeed"), "{deep}");
    let entries = home
        .run(&["ls", "-R", "--json", "acme/tools@1.0.0/a b"])
        .ok()
        .json();
    assert_eq!(entries["entries"][1]["path"], "line\nfeed");
    let long = home.run(&["ls", "-l", "acme/tools/bin"]).ok().out;
    assert!(long.contains("-rwxr-xr-x"), "{long}");

    for target in ["acme/tools/hello.txt", "acme/tools@1.0.0/hello.txt"] {
        assert_eq!(home.run(&["cat", target]).ok().out, "hello\n");
    }
    let part = ["cat", "acme/tools/hello.txt", "--offset", "1", "--len", "3"];
    assert_eq!(home.run(&part).ok().out, "ell");
    for link in [
        "acme/tools/link",
        "acme/tools/bin/chain",
        "acme/tools/bin/../link",
    ] {
        assert!(
            home.run(&["cat", link]).ok().out.contains("echo tool"),
            "{link}"
        );
    }
    home.run(&["cat", "acme/tools/bin"])
        .failed(1, "is a directory");
    for missing in [
        "acme/tools/nosuch",
        "acme/tools/../x",
        "acme/tools@2.0.0/hello.txt",
        "other/x",
    ] {
        home.run(&["cat", missing]).failed(3, "");
    }
    home.run(&["list", "nothing"]).failed(3, "nothing");

    home.run(&["fetch", "acme/tools", "-o", "copy"]).ok();
    let same = Command::new("diff")
        .args(["-r", "--no-dereference", "tree", "copy"])
        .current_dir(home.around.path())
        .status();
    assert!(same.unwrap().success());
    assert_eq!(
        fs::metadata(home.at("copy/hello.txt"))
            .unwrap()
            .modified()
            .unwrap(),
        fs::metadata(home.at("tree/hello.txt"))
            .unwrap()
            .modified()
            .unwrap()
    );
    home.run(&["fetch", "acme/tools", "-o", "copy"])
        .failed(1, "exists");
    home.run(&["fetch", "acme/tools/bin/tool", "-o", "one"])
        .ok();
    assert_eq!(fs::read_dir(home.at("one")).unwrap().count(), 1);
    home.run(&["fetch", "acme/tools", "-o", "no/such/place"])
        .failed(1, "no/such");

    home.run(&["verify", "acme/tools"]).ok();
    home.run(&["verify", "acme/tools", "copy"]).ok();
    fs::write(home.at("copy/hello.txt"), "HELLO\n").unwrap();
    fs::write(home.at("copy/extra"), "").unwrap();
    fs::remove_file(home.at("copy/link")).unwrap();
    let differs = home
        .run(&["verify", "acme/tools", "copy", "--json"])
        .failed(4, "3");
    assert_eq!(differs.json()["differences"].as_array().unwrap().len(), 3);

    let inspected = home.run(&["inspect", "acme/tools", "--json"]).ok().json();
    assert_eq!(inspected["manifest"]["files"], 5);
    let magnet = inspected["magnet"].as_str().unwrap();
    assert!(magnet.starts_with("magnet:?xt=urn:btih:"), "{magnet}");
    assert!(magnet.contains("&dn=acme-tools-"), "{magnet}");
    let sums = home.run(&["inspect", "--sums", "acme/tools"]).ok().out;
    assert!(sums.contains("  hello.txt\n"), "{sums}");
    let warmed = home.run(&["warm", "acme/tools", "--json"]).ok().json();
    assert_eq!(warmed["moved"], 0);
    assert!(
        home.run(&["why", "acme/tools/hello.txt"])
            .ok()
            .out
            .contains("trusted")
    );
}

#[test]
fn a_tar_stream_is_published_and_a_version_updated() {
    let home = Home::publisher();
    let publish = |version: &str, words: &[&str]| {
        let named = ["publish", "--name", "acme/tools", "--version", version];
        home.command(&[&named[..], words].concat())
    };
    let update = |version: &str, words: &[&str]| ran(&mut publish(version, words));
    let stream = |version: &str, bytes: &[u8], words: &[&str]| {
        fs::write(home.at("stream"), bytes).unwrap();
        let file = fs::File::open(home.at("stream")).unwrap();
        ran(publish(version, &[&["--from-stdin"], words].concat()).stdin(file))
    };
    let tar = |name: &str| {
        let mut tar = Command::new("tar");
        let tar = tar.args(["-c", "--format=pax", "-C"]);
        tar.arg(home.at(name)).arg(".").output().unwrap().stdout
    };
    let bytes = tar("tree");
    let root = |version: &str| {
        let target = format!("acme/tools@{version}");
        let said = home.run(&["inspect", &target, "--json"]).ok().json();
        said["manifest"]["ipfs"]["root"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    stream("1.1.0", &bytes, &[]).ok();
    assert_eq!(root("1.1.0"), root("1.0.0"));
    stream("1.9.0", &bytes[..bytes.len() / 2], &[]).failed(1, "ends too early");
    stream("1.9.0", b"", &[]).failed(1, "ends too early");
    let compressed = stream("1.9.0", b"\x1f\x8b\x08\0\0\0\0\0", &[]).failed(1, "compressed");
    assert!(compressed.err.contains("gzip -dc FILE | manifs publish"));

    fs::create_dir(home.at("patch")).unwrap();
    fs::write(home.at("patch/new"), "new").unwrap();
    update("1.2.0", &["patch", "--update"]).ok();
    let listed = home.run(&["ls", "-R", "acme/tools@1.2.0"]).ok().out;
    assert!(
        listed.contains("new") && listed.contains("bin/tool"),
        "{listed}"
    );
    update(
        "1.2.1",
        &["--update=1.2.0", "--remove", "bin", "--remove", "link"],
    )
    .ok();
    let listed = home.run(&["ls", "-R", "acme/tools@1.2.1"]).ok().out;
    assert!(
        listed.contains("new") && !listed.contains("tool"),
        "{listed}"
    );
    // The stream takes the directory's place.
    let words = ["--update=1.0.0", "--remove", "bin", "--remove", "link"];
    stream("1.2.2", &tar("patch"), &words).ok();
    assert_eq!(root("1.2.2"), root("1.2.1"));
    stream("1.9.0", &tar("patch"), &["--update", "--remove", "bin"]).failed(3, "has no \"bin\"");
    assert!(!home.run(&["list", "--all"]).ok().out.contains("1.9.0"));

    update("1.9.0", &["--update", "--remove", "bin"]).failed(3, "has no \"bin\"");
    update("1.9.0", &["patch", "--update=7.0.0"]).failed(3, "7.0.0");
    update("1.9.0", &["patch", "--update=seven"]).failed(2, "cannot be a version");
    for words in [
        &[][..],
        &["--remove", "bin"],
        &["--update"],
        &["patch", "--from-stdin"],
    ] {
        assert_eq!(update("1.9.0", words).code, 2, "{words:?}");
    }
}

#[test]
fn a_version_never_changes_and_a_dry_run_changes_nothing() {
    let home = Home::publisher();
    let before = fs::read(home.path.join("registry/packages/acme/tools/index.json")).unwrap();
    let again = home.publish("1.0.0").ok();
    assert!(again.out.contains("nothing changed"), "{}", again.out);
    fs::write(home.at("tree/hello.txt"), "other\n").unwrap();
    home.publish("1.0.0").failed(4, "1.0.0");
    let dry = [
        "publish",
        "tree",
        "--name",
        "acme/tools",
        "--version",
        "1.1.0",
        "--dry-run",
        "--json",
    ];
    assert_eq!(home.run(&dry).ok().json()["unchanged"], false);
    assert!(
        !home
            .path
            .join("registry/packages/acme/tools/1.1.0")
            .exists()
    );
    let after = fs::read(home.path.join("registry/packages/acme/tools/index.json")).unwrap();
    assert_eq!(before, after);
    home.run(&[&dry[..6], &["--no-latest"]].concat()).ok();
    assert_eq!(
        home.run(&["cat", "acme/tools/hello.txt"]).ok().out,
        "hello\n"
    );
    assert_eq!(
        home.run(&["cat", "acme/tools@1.1.0/hello.txt"]).ok().out,
        "other\n"
    );
}

/// As a publish that was killed between writing the mirror and the announcement leaves it.
#[test]
fn a_mirror_of_a_version_that_was_never_announced_is_gone_on_from_or_named() {
    let killed = Home::new();
    killed.run(&["keygen"]).ok();
    killed.tree("tree");
    let mirror = format!("{}/", killed.at("mirror").display());
    let words = ["--name", "acme/tools", "--version", "1.0.0", "--mtime", "7"];
    let publish = [&["publish", "tree"], &words[..], &["--to", &mirror]].concat();
    killed.run(&publish).ok();

    // The same tree again: what is there is the right one.
    let again = Home::new();
    again.run(&["keygen"]).ok();
    again.tree("tree");
    let said = again.run(&publish).ok();
    assert!((said.out + &said.err).contains("there already"));
    assert!(again.run(&["list"]).ok().out.contains("1.0.0"));

    // Another tree: refused before anything is announced, with what to do.
    let changed = Home::new();
    changed.run(&["keygen"]).ok();
    fs::write(changed.tree("tree").join("hello.txt"), "changed").unwrap();
    let refused = changed.run(&publish);
    let refused = refused.failed(1, "exists, and is not the tree that was signed");
    assert!(refused.err.contains("move it away"));
    assert!(!changed.run(&["list", "--all"]).ok().out.contains("acme"));
    assert!(!changed.path.join("registry/packages").exists());
    fs::remove_dir_all(killed.at("mirror/acme-tools-1.0.0")).unwrap();
    changed.run(&publish).ok();
}

#[test]
fn refusals_to_publish_name_the_way_out() {
    let home = Home::publisher();
    symlink("/etc/passwd", home.at("tree/out")).unwrap();
    home.publish("1.1.0").failed(4, "--allow links");
    fs::remove_file(home.at("tree/out")).unwrap();
    fs::write(home.at("tree/.env"), "TOKEN=x").unwrap();
    home.publish("1.1.0").failed(4, "--allow secrets");
    home.run(&["publish", "missing", "--name", "x", "--version", "1.0.0"])
        .failed(1, "missing");
    home.run(&[
        "publish",
        "tree/hello.txt",
        "--name",
        "x",
        "--version",
        "1.0.0",
    ])
    .failed(1, "hello.txt");
}
