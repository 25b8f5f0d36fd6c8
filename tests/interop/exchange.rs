//! Versions that go to Kubo and come back from it.

use serde_json::Value;

use crate::kubo::{Kubo, assert_same};
use crate::machine::{Home, sh};
use crate::published::{FILES_APART, Published, SHARDED, in_shards};

/// One test for the whole way, as making and removing so many files is most of what it takes.
#[test]
fn a_version_goes_to_kubo_and_comes_back() {
    let Some(mut kubo) = Kubo::new("a_version_goes_to_kubo_and_comes_back") else {
        return;
    };
    let published = Published::new();
    // Kubo, adding the directory itself, would have given it the CID that is signed.
    assert_eq!(kubo.root(published.source.path()), published.root);
    imports_and_pins(&kubo, &published);
    gets_back(&kubo, &published);
    mounts_from_kubo_alone(&mut kubo, published);
}

fn imports_and_pins(kubo: &Kubo, published: &Published) {
    let said = published.import_into(kubo);
    for (cid, said) in [&published.root, &published.catalog].into_iter().zip(&said) {
        assert!(
            said.contains(&format!("Pinned root\t{cid}\tsuccess")),
            "{said}"
        );
    }
    let pins = kubo.run(&["pin", "ls", "--type=recursive", "--quiet"]);
    let pins: Vec<&str> = pins.lines().collect();
    for cid in [&published.root, &published.catalog] {
        assert!(pins.contains(&cid.as_str()), "{cid}: {pins:?}");
    }
}

fn gets_back(kubo: &Kubo, published: &Published) {
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    kubo.run(&[
        "--offline",
        "--timeout=120s",
        "get",
        "-o",
        tree.to_str().unwrap(),
        &published.root,
    ]);
    assert_same(published.source.path(), &tree);
}

fn mounts_from_kubo_alone(kubo: &mut Kubo, published: Published) {
    let mut reader = Home::new();
    let registry = reader.path().join("copy of the registry");
    sh(
        "cp -a \"$1\" \"$2\"",
        &[&published.home.path().join("registry"), &registry],
    );
    let key = published.home.path().join("keys/default.pub.pem");
    reader.run(&["trust", "add", "acme/*", key.to_str().unwrap()]);
    // From here on nobody but Kubo has the blocks.
    let Published { source, home, .. } = published;
    drop(home);
    let gateway = kubo.serve();
    reader.config(&format!("[sources]\ngateways = [\"{gateway}\"]\n"));
    reader.run(&["registry", "add", registry.to_str().unwrap()]);
    let version = reader.mount().join("acme/tools/1.0.0");

    let listed = std::fs::read_dir(version.join("sharded")).unwrap().count();
    assert_eq!(listed, SHARDED + 3);
    // The first block of the tree that is asked for, below shards of shards.
    assert_eq!(
        std::fs::read(version.join(in_shards(9872))).unwrap(),
        b"9872"
    );
    assert_same(source.path(), &version);

    let status: Value = serde_json::from_str(&reader.run(&["status", "--json"])).unwrap();
    let sources = status["sources"].as_array().unwrap();
    assert_eq!(sources.len(), 1, "{sources:?}");
    let name = sources[0]["name"].as_str().unwrap();
    assert_eq!(name.trim_end_matches('/'), gateway.trim_end_matches('/'));
    assert!(
        sources[0]["blocks"].as_u64() > Some((SHARDED / FILES_APART) as u64),
        "{sources:?}"
    );
    assert_eq!(sources[0]["lies"].as_u64(), Some(0), "{sources:?}");
    // Every id, computed again from what came.
    reader.run(&["verify", "acme/tools@1.0.0"]);
}
