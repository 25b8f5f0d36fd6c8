//! Daemons of one home or of two, and the commands that ask them.

use std::fs;
use std::io::{Read as _, Write as _};
use std::process::Child;

use super::Home;

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
