//! The `.torrent` file of a publish, and the mirror beside it, as libtorrent understands them.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use serde_json::Value;

use crate::clients::{LibTorrent, What, installed};
use crate::machine::{Home, noise};

fn tree(root: &Path) {
    fs::create_dir_all(root.join("d/empty")).unwrap();
    for (name, len) in [
        ("empty-file", 0),
        ("small", 10),
        ("almost", (1 << 20) - 1),
        ("block", 1 << 20),
        ("more", (1 << 20) + 1),
        ("d/large", 5 << 20),
        ("d/program", 70_000),
    ] {
        fs::write(root.join(name), noise(len as u64, len)).unwrap();
    }
    for number in 0..200 {
        let name = root.join(format!("d/n{number}"));
        fs::write(name, noise(number as u64, number * 97)).unwrap();
    }
    let executable = fs::Permissions::from_mode(0o755);
    fs::set_permissions(root.join("d/program"), executable).unwrap();
    symlink("../small", root.join("d/link")).unwrap();
}

/// libtorrent hashes the mirror's files by our layout and finds every piece right: nothing is downloaded, as it knows no
/// peer. So its reading of the info dictionary is ours, padding and links included.
#[test]
fn libtorrent_finds_the_mirror_complete_by_the_torrent_file() {
    if !installed("libtorrent_finds_the_mirror_complete_by_the_torrent_file") {
        return;
    }
    let home = Home::new();
    let around = tempfile::tempdir().unwrap();
    let (source, mirror) = (around.path().join("tree"), around.path().join("mirror"));
    tree(&source);
    home.run(&["keygen"]);
    home.run(&[
        "publish",
        source.to_str().unwrap(),
        "--name",
        "acme/tool",
        "--version",
        "1.0.0",
        "--to",
        "torrent",
        "--to",
        &format!("{}/", mirror.display()),
    ]);
    let registry = home.path().join("registry/packages/acme/tool/1.0.0");
    let file = registry.join("acme-tool-1.0.0.torrent");
    LibTorrent::start(What::File(&file), &mirror, &[]).wait();

    let inspected = home.run(&["inspect", "acme/tool", "--json"]);
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    let hash = inspected["manifest"]["torrent"]["info_hash"].as_str();
    let link = format!("magnet:?xt=urn:btih:{}&dn=acme-tool-1.0.0", hash.unwrap());
    assert_eq!(inspected["magnet"], link);
}
