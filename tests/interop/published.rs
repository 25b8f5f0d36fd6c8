//! A tree with one of everything, published by a home that serves it.

use std::fs::{create_dir, create_dir_all, write};
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::kubo::Kubo;
use crate::machine::{Home, noise};

/// Entries of the directory that is in shards, many of them in shards of shards.
pub(crate) const SHARDED: usize = 10_000;

/// One of so many of them is a file with bytes: removing such a file takes milliseconds on some disks, and each is there
/// five times in the end.
pub(crate) const FILES_APART: usize = 16;

/// A published version and what Kubo has to know to fetch it.
pub(crate) struct Published {
    pub(crate) source: TempDir,
    pub(crate) home: Home,
    pub(crate) root: String,
    pub(crate) catalog: String,
    url: String,
}

impl Published {
    /// Publishes `acme/tools@1.0.0` and serves it.
    pub(crate) fn new() -> Published {
        let source = tempfile::tempdir().unwrap();
        tree(source.path());
        let mut home = Home::new();
        home.publish(source.path(), "acme/tools", "1.0.0");
        let inspection = home.run(&["inspect", "acme/tools@1.0.0", "--json"]);
        let inspection: Value = serde_json::from_str(&inspection).unwrap();
        let cid = |value: &Value| value.as_str().unwrap().to_owned();
        assert!(
            inspection["manifest"]["catalog"]["blocks"]
                .as_array()
                .unwrap()
                .len()
                > 1
        );
        let root = cid(&inspection["manifest"]["ipfs"]["root"]);
        let url = home.serve();
        // The daemon answers before it has looked at everything that it has to share.
        home.wait_for("the version to be shared", |_| {
            let mut curl = std::process::Command::new("curl");
            curl.args(["-sf", "--max-time", "10", "--output", "/dev/null"])
                .arg(format!("{url}/ipfs/{root}?format=raw"));
            curl.status().is_ok_and(|status| status.success())
        });
        Published {
            root,
            catalog: cid(&inspection["catalog"]),
            source,
            home,
            url,
        }
    }

    /// Lets Kubo import the tree and the catalog; returns what it said of both.
    pub(crate) fn import_into(&self, kubo: &Kubo) -> [String; 2] {
        [&self.root, &self.catalog]
            .map(|cid| kubo.import(&format!("{}/ipfs/{cid}?format=car", self.url)))
    }
}

/// Returns the path of an entry, so long that the catalog has several blocks.
pub(crate) fn in_shards(nth: usize) -> String {
    format!("sharded/{nth} is the number of an entry in a directory that is in shards")
}

/// Makes the tree.
fn tree(at: &Path) {
    const MIB: usize = 1 << 20;
    create_dir_all(at.join("bin/deep/er")).unwrap();
    create_dir(at.join("nothing here")).unwrap();
    create_dir(at.join(".hidden directory")).unwrap();
    create_dir(at.join("sharded")).unwrap();
    for (path, bytes) in [
        ("hello.txt", b"hello world\n".to_vec()),
        ("empty", Vec::new()),
        (".hidden", b"dot files count\n".to_vec()),
        (".hidden directory/.hidden", Vec::new()),
        ("name with spaces, \u{e9} and \u{1f980}", b"x".to_vec()),
        ("bin/deep/er/one-byte", vec![0]),
        ("bin/block-less-one", noise(1, MIB - 1)),
        ("bin/block", noise(2, MIB)),
        ("bin/block-and-one", noise(3, MIB + 1)),
        ("bin/deep/large", noise(4, (5 * MIB) + 4711)),
        ("bin/deep/zeros", vec![0; 3 * MIB]),
    ] {
        write(at.join(path), bytes).unwrap();
    }
    for (target, path) in [
        ("hello.txt", "link"),
        ("../hello.txt", "bin/up"),
        ("deep", "bin/to-directory"),
        ("no such file", "dangling"),
    ] {
        symlink(target, at.join(path)).unwrap();
    }
    for nth in 0..SHARDED {
        let path = at.join(in_shards(nth));
        match nth % FILES_APART {
            0 => write(path, nth.to_string()).unwrap(),
            1..8 => write(path, "").unwrap(),
            _ => symlink("large", path).unwrap(),
        }
    }
    write(at.join("sharded/large"), noise(5, MIB + 77)).unwrap();
    create_dir(at.join("sharded/directory")).unwrap();
    write(at.join("sharded/directory/file"), "below a shard\n").unwrap();
    symlink("large", at.join("sharded/link")).unwrap();
}
