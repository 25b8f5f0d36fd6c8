//! The built command, as people and scripts use it, as far as that needs no mount.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A home, and a directory around it in which commands run.
struct Home {
    around: TempDir,
    path: PathBuf,
}

/// What a command did.
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    /// Asserts that it succeeded.
    fn ok(self) -> Ran {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        self
    }

    /// Asserts that it failed with `code`, in one line and perhaps a hint, and that its words hold `what`.
    fn failed(self, code: i32, what: &str) -> Ran {
        let (out, err) = (&self.out, &self.err);
        assert_eq!(self.code, code, "{out}{err}");
        assert!(err.contains(what), "{err:?} does not tell of {what:?}");
        let last: Vec<&str> = err.lines().collect();
        let said = last.iter().position(|line| line.starts_with("manifs: "));
        let said = said.unwrap_or_else(|| panic!("{err:?} begins with nothing of ours"));
        assert!(
            last.len() - said <= 2,
            "more than an error and a hint: {err:?}"
        );
        if let Some(hint) = last.get(said + 1) {
            assert!(hint.starts_with("hint: "), "{err:?}");
        }
        self
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }
}

impl Home {
    fn new() -> Home {
        let around = tempfile::tempdir().unwrap();
        let path = around.path().join("home");
        Home { around, path }
    }

    /// A home with a key and one published version of `acme/tools`.
    fn publisher() -> Home {
        let home = Home::new();
        home.run(&["keygen"]).ok();
        home.tree("tree");
        home.publish("1.0.0").ok();
        home
    }

    fn at(&self, name: &str) -> PathBuf {
        self.around.path().join(name)
    }

    /// Makes a small tree of everything.
    fn tree(&self, name: &str) -> PathBuf {
        let tree = self.at(name);
        fs::create_dir_all(tree.join("bin")).unwrap();
        fs::create_dir_all(tree.join("a b")).unwrap();
        fs::write(tree.join("hello.txt"), "hello\n").unwrap();
        fs::write(tree.join("empty"), "").unwrap();
        fs::write(tree.join("a b/line\nfeed"), "x").unwrap();
        fs::write(tree.join("bin/tool"), "#!/bin/sh\necho tool\n").unwrap();
        fs::set_permissions(tree.join("bin/tool"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(tree.join("big"), vec![7; (2 << 20) + 5]).unwrap();
        symlink("bin/tool", tree.join("link")).unwrap();
        symlink("../link", tree.join("bin/chain")).unwrap();
        tree
    }

    fn publish(&self, version: &str) -> Ran {
        let options = ["--name", "acme/tools", "--version", version];
        self.run(&[&["publish", "tree"], &options[..]].concat())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_manifs"));
        command
            .arg("--home")
            .arg(&self.path)
            .args(arguments)
            .current_dir(self.around.path())
            .env_clear()
            .env("HOME", self.around.path())
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        ran(&mut self.command(arguments))
    }

    fn run_with(&self, variable: &str, value: &str, arguments: &[&str]) -> Ran {
        ran(self.command(arguments).env(variable, value))
    }

    fn spawn(&self, arguments: &[&str]) -> Child {
        let mut command = self.command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    fn configure(&self, text: &str) {
        fs::create_dir_all(&self.path).unwrap();
        fs::write(self.path.join("config.toml"), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path.join(name)).unwrap()
    }

    fn public_key(&self) -> String {
        self.run(&["trust", "list", "--json"]).ok().json()["rules"][0]["keys"][0]["key"]
            .as_str()
            .unwrap()
            .to_owned()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // A daemon that a failed test has left.
        let _ = self.run(&["serve", "--stop"]);
    }
}

fn ran(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

#[test]
fn what_makes_no_sense_exits_with_2() {
    let home = Home::new();
    home.tree("tree");
    home.run(&["keygen"]).ok();
    let publish = |name, version| ["publish", "tree", "--name", name, "--version", version];
    for wrong in [
        &["frob"][..],
        &["ls"],
        &["publish", "tree"],
        &["-q", "-v", "list"],
        &["mount", "tree", "-o", "nothing"],
        &["mount", "tree", "-o", "umask=9"],
        &["cat", "UPPER/x"],
        &["ls", "tools@one"],
        &["list", "A B"],
        &["keygen", "../x"],
        &["trust", "add", "A*", "default"],
        &["trust", "add", "*", "no-such-key"],
        &["registry", "add", "ftp://example.org/"],
        &["--config", "missing.toml", "list"],
        &publish("UPPER", "1.0.0"),
        &publish("a/b/c", "1.0.0"),
        &publish("tools", "1"),
        &publish("tools", "1.0.0+build"),
        &[&publish("tools", "1.0.0")[..], &["--allow", "everything"]].concat(),
        &[&publish("tools", "1.0.0")[..], &["--latest", "--no-latest"]].concat(),
        &[
            &publish("tools", "1.0.0")[..],
            &["--registry", "http://example.org"],
        ]
        .concat(),
        &[&publish("tools", "1.0.0")[..], &["--mtime", "soon"]].concat(),
        &[&publish("tools", "1.0.0")[..], &["--to", "mirror"]].concat(),
        &[&publish("tools", "1.0.0")[..], &["--to", "http://a/b"]].concat(),
        &[&publish("tools", "1.0.0")[..], &["--http", "a/b"]].concat(),
        &["fetch", "tools"],
        &["fetch", "tools", "-o", "a", "--mirror", "b"],
    ] {
        let ran = home.run(wrong);
        assert_eq!(ran.out, "", "{wrong:?}");
        ran.failed(2, "");
    }
    // Without any word, the help is the answer.
    let ran = home.run(&[]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("Usage: manifs"), "{}", ran.err);
}

#[test]
fn help_version_manual_and_completions_need_no_home() {
    let home = Home::new();
    for words in [
        &["--help"][..],
        &["--version"],
        &["publish", "--help"],
        &["man"],
    ] {
        assert!(home.run(words).ok().out.contains("manifs"), "{words:?}");
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(home.run(&["completions", shell]).ok().out.len() > 1000);
    }
    fs::create_dir(home.at("pages")).unwrap();
    home.run(&["man", "--dir", "pages"]).ok();
    assert!(home.at("pages/manifs-publish.1").exists());
    assert!(!home.path.exists());
}

#[test]
fn keygen_makes_a_private_key_once() {
    let home = Home::new();
    let line = home.run(&["keygen"]).ok().out;
    let private = home.path.join("keys/default.pem");
    assert_eq!(
        fs::metadata(&private).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert!(
        home.read("keys/default.pem")
            .starts_with("-----BEGIN PRIVATE KEY-----")
    );
    assert!(
        home.read("keys/default.pub.pem")
            .starts_with("-----BEGIN PUBLIC KEY-----")
    );
    let before = home.read("keys/default.pem");
    home.run(&["keygen"]).failed(1, "default");
    assert_eq!(home.read("keys/default.pem"), before);
    fs::remove_file(&private).unwrap();
    // The public half alone is not overwritten either.
    home.run(&["keygen"]).failed(1, "default.pub.pem");

    // Its own key is trusted by a home that trusts nobody yet; a second key changes nothing.
    home.run(&["keygen", "other"]).ok();
    let rules = home.run(&["trust", "list", "--json"]).ok().json();
    assert_eq!(rules["rules"].as_array().unwrap().len(), 1);
    assert_eq!(rules["rules"][0]["pattern"], "*");
    assert_eq!(rules["rules"][0]["keys"][0]["key"], line.trim());
}

#[test]
fn a_key_may_have_a_password() {
    let home = Home::new();
    home.tree("tree");
    fs::write(home.at("password"), "open sesame\n").unwrap();
    home.run(&["keygen", "--password-file", "password"]).ok();
    let pem = home.read("keys/default.pem");
    assert!(pem.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"));
    home.publish("1.0.0").failed(1, "password");
    let options = [
        "publish",
        "tree",
        "--name",
        "acme/tools",
        "--version",
        "1.0.0",
    ];
    home.run_with("MANIFS_PASSWORD", "wrong", &options)
        .failed(1, "password");
    home.run_with("MANIFS_PASSWORD_FILE", "nowhere", &options)
        .failed(1, "nowhere");
    home.run_with("MANIFS_PASSWORD_FILE", "password", &options)
        .ok();
    home.run_with("MANIFS_PASSWORD", "open sesame", &options)
        .ok();
    home.run(&["keygen", "again", "--password"]).failed(1, "");
    assert!(!home.path.join("keys/again.pem").exists());
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let home = Home::publisher();
    let private = home.path.join("keys/default.pem");
    fs::set_permissions(private, fs::Permissions::from_mode(0o644)).unwrap();
    home.publish("1.1.0").failed(1, "default.pem");
    home.run(&[
        "publish",
        "tree",
        "--name",
        "a",
        "--version",
        "1.0.0",
        "--key",
        "missing",
    ])
    .failed(3, "missing");
}

#[test]
fn trust_is_edited_by_pattern_and_key() {
    let home = Home::new();
    home.run(&["keygen", "one"]).ok();
    let two = home.run(&["keygen", "two"]).ok().out;
    let pem = home.path.join("keys/one.pub.pem");
    home.run(&["trust", "add", "acme/*", pem.to_str().unwrap()])
        .ok();
    home.run(&["trust", "add", "acme/*", two.trim(), "--threshold", "2"])
        .ok();
    home.run(&["trust", "add", "tools", "two"]).ok();
    let listed = home.run(&["trust", "list", "--json"]).ok().json();
    let rule = |pattern: &str| {
        let rules = listed["rules"].as_array().unwrap().clone();
        rules.into_iter().find(|rule| rule["pattern"] == pattern)
    };
    assert_eq!(rule("acme/*").unwrap()["threshold"], 2);
    assert_eq!(rule("acme/*").unwrap()["keys"].as_array().unwrap().len(), 2);
    assert_eq!(rule("tools").unwrap()["threshold"], 1);
    assert!(
        home.run(&["trust", "list"])
            .ok()
            .out
            .contains("acme/* (2 of 2)")
    );
    home.run(&["trust", "remove", "tools"]).ok();
    home.run(&["trust", "remove", "tools"]).failed(3, "tools");
    home.run(&["trust", "remove", "other/*"])
        .failed(3, "other/*");
    // Private keys are not public ones.
    let private = home.path.join("keys/one.pem");
    home.run(&["trust", "add", "x", private.to_str().unwrap()])
        .failed(2, "one.pem");

    let text = home.read("trust.toml");
    fs::write(
        home.path.join("trust.toml"),
        format!("{text}\nnonsense = 1\n"),
    )
    .unwrap();
    home.run(&["trust", "list"]).failed(1, "nonsense");
    home.run(&["list"]).failed(1, "nonsense");
}

#[test]
fn mistakes_in_the_configuration_are_named() {
    let home = Home::new();
    home.run(&["config", "check"]).ok();
    home.configure("[store]\nquota = \"1GiB\"\n\n[stroe]\nx = 1\n");
    for words in [
        &["config", "check"][..],
        &["config", "show"],
        &["list"],
        &["serve"],
    ] {
        home.run(words).failed(2, "config.toml: line 4: ");
    }
    // Keys and trust are edited all the same.
    home.run(&["keygen"]).ok();
    home.configure("[store]\nquota = \"1GiB\"\nquota = \"2GiB\"\n");
    home.run(&["config", "check"]).failed(2, "line 3");
    home.configure("[store]\nquota = \"1GiB\"\n");
    let shown = |variable, value| {
        let ran = home.run_with(variable, value, &["config", "show", "--json"]);
        ran.ok().json()["store"]["quota"].clone()
    };
    assert_eq!(shown("MANIFS_STORE_QUOTA", "32MiB"), "32MiB");
    assert_eq!(shown("MANIFS_MOUNT_INSTALL", "all"), "1GiB");
    home.run_with("MANIFS_STORE_QUOTAS", "1", &["list"])
        .failed(2, "MANIFS_STORE_QUOTAS");
    let path = home.run(&["config", "path"]).ok().out;
    assert_eq!(Path::new(path.trim()), home.path.join("config.toml"));
    fs::write(home.at("other.toml"), "[store]\nquota = \"64MiB\"\n").unwrap();
    let other = home
        .run(&["--config", "other.toml", "config", "show", "--json"])
        .ok();
    assert_eq!(other.json()["store"]["quota"], "64MiB");
    // What is shown is a configuration.
    let shown = home.run(&["config", "show"]).ok().out;
    home.configure(&shown);
    assert_eq!(home.run(&["config", "show"]).ok().out, shown);
}

#[test]
fn registries_are_added_and_taken_away() {
    let home = Home::new();
    fs::create_dir(home.at("shelf")).unwrap();
    home.run(&["registry", "add", "shelf"]).ok();
    // Nobody listens there; it is added all the same, and that is said.
    let added = home
        .run(&["registry", "add", "http://127.0.0.1:1/", "--json"])
        .ok()
        .json();
    assert_eq!(added["place"], "http://127.0.0.1:1");
    assert!(added["error"].is_string(), "{added}");
    let listed = home.run(&["registry", "list", "--json"]).ok().json();
    let places: Vec<&str> = listed["registries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["place"].as_str().unwrap())
        .collect();
    assert!(
        places.contains(&home.at("shelf").to_str().unwrap()),
        "{places:?}"
    );
    assert!(places.contains(&"http://127.0.0.1:1"));
    home.run(&["registry", "update"]).failed(5, "127.0.0.1:1");
    home.run(&["registry", "remove", "http://127.0.0.1:1/"])
        .ok();
    home.run(&["registry", "remove", "http://127.0.0.1:1/"])
        .failed(3, "127.0.0.1");
    home.run(&["registry", "remove", "shelf"]).ok();
    home.run(&["registry", "update"]).ok();
}

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
    let stream = |version: &str, bytes: &[u8]| {
        fs::write(home.at("stream"), bytes).unwrap();
        let file = fs::File::open(home.at("stream")).unwrap();
        ran(publish(version, &["--from-stdin"]).stdin(file))
    };
    let tree = home.at("tree");
    let mut tar = Command::new("tar");
    let tar = tar.args(["-c", "--format=pax", "-C"]).arg(&tree).arg(".");
    let bytes = tar.output().unwrap().stdout;
    let root = |version: &str| {
        let target = format!("acme/tools@{version}");
        let said = home.run(&["inspect", &target, "--json"]).ok().json();
        said["manifest"]["ipfs"]["root"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    stream("1.1.0", &bytes).ok();
    assert_eq!(root("1.1.0"), root("1.0.0"));
    stream("1.9.0", &bytes[..bytes.len() / 2]).failed(1, "ends too early");
    stream("1.9.0", b"").failed(1, "ends too early");
    let compressed = stream("1.9.0", b"\x1f\x8b\x08\0\0\0\0\0").failed(1, "compressed");
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

#[test]
fn a_manifest_file_is_checked_by_the_trust_policy() {
    let home = Home::publisher();
    let file = "home/registry/packages/acme/tools/1.0.0/manifest.json";
    home.run(&["verify", file]).ok();
    let inspected = home.run(&["inspect", file, "--json"]).ok().json();
    assert_eq!(inspected["kind"], "manifest");
    let text = fs::read_to_string(home.at(file)).unwrap();
    fs::write(
        home.at("changed.json"),
        text.replace(r#""files":5"#, r#""files":6"#),
    )
    .unwrap();
    home.run(&["verify", "changed.json"])
        .failed(4, "changed.json");
    fs::write(home.at("spaced.json"), format!("{text} ")).unwrap();
    home.run(&["verify", "spaced.json"])
        .failed(4, "spaced.json");
    home.run(&["trust", "remove", "*"]).ok();
    home.run(&["verify", file]).failed(4, "");
}

#[test]
fn who_is_not_trusted_is_refused_with_the_rule() {
    let publisher = Home::publisher();
    let reader = Home::new();
    let shelf = publisher.path.join("registry");
    reader
        .run(&["registry", "add", shelf.to_str().unwrap()])
        .ok();
    assert_eq!(reader.run(&["list"]).ok().out, "");
    reader
        .run(&["trust", "add", "acme/*", &publisher.public_key()])
        .ok();
    assert!(reader.run(&["list"]).ok().out.contains("acme/tools@1.0.0"));
    // Nobody has its blocks.
    reader.run(&["cat", "acme/tools/hello.txt"]).failed(5, "");
    reader
        .run(&["fetch", "acme/tools", "-o", "copy"])
        .failed(5, "");
    assert!(!reader.at("copy").exists());

    let other = Home::new();
    other.run(&["keygen"]).ok();
    other
        .run(&["registry", "add", shelf.to_str().unwrap()])
        .ok();
    assert_eq!(other.run(&["list"]).ok().out, "");
    let refused = other.run(&["list", "--all", "--json"]).ok().json();
    let reason = refused["packages"][0]["refused"].as_str().unwrap();
    assert!(!reason.is_empty());
    other
        .run(&["cat", "acme/tools/hello.txt"])
        .failed(4, "refused");
    let why = other.run(&["why", "acme/tools"]).ok().out;
    assert!(why.contains("refused") || why.contains(reason), "{why}");
}

#[test]
fn a_reader_needs_a_url_and_a_key() {
    let publisher = Home::publisher();
    publisher.configure("[gateway]\nlisten = \"127.0.0.1:0\"\n");
    publisher.run(&["status"]).failed(1, "no daemon");
    publisher.run(&["serve"]).ok();
    assert!(publisher.run(&["serve"]).ok().err.contains("already"));
    let status = publisher.run(&["status", "--json"]).ok().json();
    let url = status["gateway"].as_str().unwrap();
    let reader = Home::new();
    // The default is what people wait for.
    reader.configure("[fetch]\ndeadline = \"2s\"\n");
    reader
        .run(&["trust", "add", "*", &publisher.public_key()])
        .ok();
    reader.run(&["registry", "add", url]).ok();
    assert_eq!(
        reader.run(&["cat", "acme/tools/hello.txt"]).ok().out,
        "hello\n"
    );
    reader.run(&["fetch", "acme/tools", "-o", "copy"]).ok();
    reader.run(&["verify", "acme/tools", "copy"]).ok();

    // Through a daemon it is the same, also for a publisher.
    reader.run(&["serve"]).ok();
    let pid = reader.run(&["status", "--json"]).ok().json()["pid"].clone();
    assert!(pid.as_u64().unwrap() > 1);
    assert_eq!(
        reader
            .run(&["cat", "acme/tools/bin/chain"])
            .ok()
            .out
            .lines()
            .count(),
        2
    );
    publisher.publish("1.1.0").ok();
    assert!(publisher.run(&["list"]).ok().out.contains("1.1.0"));
    reader.run(&["pin", "acme/tools@1.0.0"]).ok();
    reader.run(&["evict", "acme/tools@1.0.0"]).ok();
    publisher.run(&["serve", "--stop"]).ok();
    assert_eq!(
        reader.run(&["cat", "acme/tools@1.0.0/hello.txt"]).ok().out,
        "hello\n"
    );
    reader.run(&["unpin", "acme/tools@1.0.0"]).ok();
    reader
        .run(&["unpin", "acme/tools@1.0.0"])
        .failed(3, "not pinned");
    reader.run(&["evict"]).ok();
    reader
        .run(&["cat", "acme/tools@1.0.0/hello.txt"])
        .failed(5, "");
    reader.run(&["serve", "--stop"]).ok();
}

#[test]
fn a_gateway_that_the_release_index_names_is_asked_where_the_filter_allows_it() {
    let publisher = Home::publisher();
    publisher.configure("[gateway]\nlisten = \"127.0.0.1:0\"\n");
    publisher.run(&["serve"]).ok();
    let status = publisher.run(&["status", "--json"]).ok().json();
    let url = status["gateway"].as_str().unwrap();
    let words = ["--name", "acme/tools", "--version", "1.1.0", "--gateway"];
    let publish = [&["publish", "tree"], &words[..]].concat();
    publisher
        .run(&[&publish[..], &["ipfs://somewhere"]].concat())
        .failed(2, "--gateway ipfs://somewhere");
    publisher.run(&[&publish[..], &[url]].concat()).ok();
    // Nothing but envelopes and a key.
    let reader = Home::new();
    let key = publisher.public_key();
    reader.run(&["trust", "add", "*", &key]).ok();
    let registry = publisher.path.join("registry");
    let add = ["registry", "add", registry.to_str().unwrap()];
    reader.run(&add).ok();
    let cat = ["cat", "acme/tools/hello.txt"];
    reader.run(&cat).failed(5, "loopback");
    reader.configure("[net]\nallow = [\"127.0.0.1\"]\n");
    assert_eq!(reader.run(&cat).ok().out, "hello\n");
    reader.run(&["fetch", "acme/tools", "-o", "copy"]).ok();
    reader.run(&["verify", "acme/tools", "copy"]).ok();
    reader.run(&["serve"]).ok();
    assert_eq!(
        reader
            .run(&["cat", "acme/tools/bin/tool"])
            .ok()
            .out
            .lines()
            .count(),
        2
    );
    let sources = reader.run(&["status", "--json"]).ok().json()["sources"].clone();
    let sources = sources.as_array().unwrap();
    assert_eq!(sources.len(), 1, "{sources:?}");
    assert_eq!(sources[0]["kind"], "gateway", "{sources:?}");
    assert_eq!(sources[0]["name"], url, "{sources:?}");
}

#[test]
fn a_daemon_in_the_foreground_ends_on_sigterm() {
    let home = Home::publisher();
    let mut child = home.spawn(&["serve", "--foreground"]);
    // Its log says when it is there.
    let mut log = child.stderr.take().unwrap();
    let (mut text, mut byte) = (String::new(), [0]);
    while !text.contains("running") && log.read(&mut byte).unwrap() > 0 {
        text.push(char::from(byte[0]));
    }
    home.run(&["status"]).ok();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
    home.run(&["status"]).failed(1, "no daemon");
}

#[test]
fn names_cannot_steer_a_terminal() {
    let home = Home::publisher();
    fs::write(home.at("tree/\u{1b}[31mred\u{202e}"), "").unwrap();
    home.publish("1.1.0").ok();
    let ls = home.run(&["ls", "acme/tools"]).ok().out;
    assert!(ls.contains(r"\u{1b}[31mred\u{202e}"), "{ls:?}");
    let json = home.run(&["ls", "--json", "acme/tools"]).ok().json();
    assert_eq!(json["entries"][0]["path"], "\u{1b}[31mred\u{202e}");
    let missing = home
        .run(&["cat", "acme/tools/\u{1b}[2Jx"])
        .failed(3, "[2Jx");
    assert!(!missing.err.contains('\u{1b}'));
}

#[test]
fn a_closed_output_is_no_error() {
    let home = Home::publisher();
    let mut child = home.spawn(&["cat", "acme/tools/big"]);
    let mut out = child.stdout.take().unwrap();
    let mut first = [0; 10];
    out.read_exact(&mut first).unwrap();
    assert_eq!(first, [7; 10]);
    drop(out);
    let mut err = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut err)
        .unwrap();
    assert_eq!((child.wait().unwrap().code(), err.as_str()), (Some(0), ""));
}

#[test]
fn quiet_says_nothing_but_results() {
    let home = Home::publisher();
    for words in [
        &["-q", "fetch", "acme/tools", "-o", "copy"][..],
        &["-q", "verify", "acme/tools", "copy"],
        &["-q", "warm", "acme/tools"],
        &["-q", "keygen", "another"],
    ] {
        assert_eq!(home.run(words).ok().err, "", "{words:?}");
    }
}

#[test]
fn commands_of_one_home_wait_for_each_other() {
    let home = Home::publisher();
    let all: Vec<Child> = (0..6)
        .map(|_| home.spawn(&["cat", "acme/tools/hello.txt"]))
        .collect();
    for child in all {
        let output = child.wait_with_output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(
            (output.stdout.as_slice(), err.as_str()),
            (&b"hello\n"[..], "")
        );
    }
}

#[test]
fn several_keys_sign_for_a_threshold() {
    let home = Home::new();
    home.tree("tree");
    for name in ["one", "two"] {
        home.run(&["keygen", name]).ok();
        home.run(&["trust", "add", "acme/*", name]).ok();
    }
    home.run(&["trust", "add", "acme/*", "two", "--threshold", "2"])
        .ok();
    let publish = [
        "publish",
        "tree",
        "--name",
        "acme/tools",
        "--version",
        "1.0.0",
    ];
    home.run(&[&publish[..], &["--key", "one", "--key", "two"]].concat())
        .ok();
    assert!(home.run(&["list"]).ok().out.contains("acme/tools@1.0.0"));
}

#[test]
fn doctor_looks_at_everything() {
    let home = Home::publisher();
    let checks = home.run(&["doctor", "--json"]).json();
    let fine = |what: &str| {
        let checks = checks["checks"].as_array().unwrap();
        checks.iter().find(|check| check["what"] == what).unwrap()["fine"].clone()
    };
    for what in ["configuration", "trust policy", "private keys", "daemon"] {
        assert_eq!(fine(what), true, "{what}");
    }
    home.configure("[nonsense]\n");
    let ran = home.run(&["doctor"]);
    assert_eq!(ran.code, 1);
    assert!(ran.out.contains("nonsense"), "{}", ran.out);
}

#[test]
fn a_home_may_lie_deep() {
    let mut home = Home::new();
    home.path = home.at(&"d".repeat(150)).join("home");
    home.run(&["serve"]).ok();
    home.run(&["status"]).ok();
    home.run(&["serve", "--stop"]).ok();
}

#[test]
fn what_is_written_elsewhere_is_told_in_the_log() {
    let home = Home::new();
    home.run(&["keygen"]).ok();
    fs::create_dir_all(home.path.join("state")).unwrap();
    fs::write(home.path.join("state/VERSION"), "manifs-state 999\n").unwrap();
    home.run(&["list"]).failed(1, "999");
    let failed = home.run(&["serve"]).failed(1, "999");
    assert!(failed.err.contains("daemon.log"), "{}", failed.err);
    let mut log = fs::File::options()
        .append(true)
        .open(home.path.join("state/daemon.log"))
        .unwrap();
    log.write_all(b"").unwrap();
}
