//! Warming: afterwards no source is needed, and an interruption costs nothing twice.

use std::process::Stdio;

use crate::machine::{Home, noise, sh};
use crate::proxy::Proxy;

/// Files of the tree that is warmed.
const FILES: u64 = 150;

fn published(source: &std::path::Path) -> (Home, Proxy, Home) {
    std::fs::create_dir(source.join("many")).unwrap();
    for file in 0..FILES {
        std::fs::write(source.join(format!("many/{file}")), noise(file, 200_000)).unwrap();
    }
    std::fs::write(source.join("large"), noise(9999, 5 << 20)).unwrap();
    let mut publisher = Home::new();
    publisher.publish(source, "pkg", "1.0.0");
    let proxy = Proxy::new(&publisher.serve());
    let reader = Home::new();
    reader.follow(&publisher, &proxy.url());
    reader.wait_for("the package", |home| {
        home.run(&["registry", "update"]);
        home.run(&["list"]).contains("pkg@1.0.0")
    });
    (publisher, proxy, reader)
}

#[test]
fn what_was_warmed_needs_no_source() {
    let source = tempfile::tempdir().unwrap();
    let (_publisher, proxy, mut reader) = published(source.path());
    reader.run(&["warm", "pkg"]);
    proxy.die();
    let version = reader.mount().join("pkg/1.0.0");
    sh(
        "diff -r --no-dereference \"$1\" \"$2\"",
        &[source.path(), &version],
    );
    let cached = sh(
        "getfattr --only-values -n user.manifs.cached \"$1\"",
        &[&version.join("large")],
    );
    assert_eq!(cached, "100");
}

#[test]
fn killed_while_warming_it_goes_on_where_it_was() {
    let source = tempfile::tempdir().unwrap();
    let (_publisher, proxy, reader) = published(source.path());
    let before = proxy.block_requests();
    let mut warming = reader
        .command()
        .args(["warm", "pkg"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    reader.wait_for("some blocks", |_| {
        proxy.block_requests() > before + 60 || warming.try_wait().unwrap().is_some()
    });
    warming.kill().unwrap();
    warming.wait().unwrap();
    let first = proxy.block_requests() - before;
    reader.run(&["warm", "pkg"]);
    let second = proxy.block_requests() - before - first;
    let blocks = FILES as usize + 5 + 1;
    println!("{blocks} blocks: {first} asked for before the kill, {second} after it");
    // What was in flight at the kill is asked for again.
    assert!(first + second <= blocks + 64, "{first} + {second}");
    assert!(second < blocks, "{second} of {blocks} again");
    proxy.die();
    assert_eq!(reader.run(&["warm", "pkg"]), "");
}
