//! Keys, and whose signatures count.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::Home;

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
