//! The configuration, the registries, and what `doctor` says of both.

use std::fs;
use std::path::Path;

use super::Home;

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
