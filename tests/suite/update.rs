//! Laying a tree on top of a version gives what publishing the merged tree does.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use manifs::catalog::Kind;
use manifs::manifest::Manifest;
use manifs::publish::{Options, PublishError, Reason, Update};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::common::publishing::{Home, tempdir};
use crate::common::signed::package;

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Directory,
    File(usize, bool),
    Link(String),
}

/// A tree by path; parents come before children.
type Tree = BTreeMap<String, Node>;

fn on_disk(tree: &Tree) -> TempDir {
    let dir = tempdir();
    for (path, node) in tree {
        let full = dir.path().join(path);
        match node {
            Node::Directory => fs::create_dir(&full).unwrap(),
            Node::Link(target) => symlink(target, &full).unwrap(),
            Node::File(size, executable) => {
                let bytes: Vec<u8> = (0..*size).map(|at| ((at * 7 + size) % 251) as u8).collect();
                fs::write(&full, bytes).unwrap();
                let mode = if *executable { 0o755 } else { 0o644 };
                fs::set_permissions(&full, fs::Permissions::from_mode(mode)).unwrap();
                let time = UNIX_EPOCH + Duration::from_secs(1_600_000_000 + *size as u64);
                File::open(&full).unwrap().set_modified(time).unwrap();
            }
        }
    }
    dir
}

/// The simplest model of what an update is.
fn merged(below: &Tree, removed: &[String], above: &Tree) -> Tree {
    let within = |path: &str, of: &str| path == of || path.starts_with(&format!("{of}/"));
    let mut tree = below.clone();
    tree.retain(|path, _| !removed.iter().any(|gone| within(path, gone)));
    for (path, node) in above {
        if *node != Node::Directory || tree.get(path) != Some(&Node::Directory) {
            tree.retain(|old, _| !within(old, path));
        }
        tree.insert(path.clone(), node.clone());
    }
    tree
}

fn options(text: &str, update: Option<Update>) -> Options {
    let mut options = Options::new(package(text));
    options.update = update;
    options
}

fn update(remove: &[String]) -> Option<Update> {
    Some(Update {
        version: None,
        remove: remove.to_vec(),
        bare: false,
    })
}

/// Asserts that two versions have the same tree and the same torrent, but for its name, and that it is all there.
fn same(home: &Home, one: &Manifest, other: &Manifest) {
    assert_eq!(one.root, other.root);
    assert_eq!(one.catalog, other.catalog);
    assert_eq!(one.torrent, other.torrent);
    let catalog = home.catalog(one);
    for number in 0..catalog.rows() {
        let row = catalog.row(number).unwrap();
        if row.kind() == Kind::File {
            let path = String::from_utf8(catalog.path(number).unwrap()).unwrap();
            assert_eq!(home.content(&catalog, &path).len() as u64, row.size());
        }
    }
}

/// Publishes `below`, lays `above` on top, and compares with the merged tree, published from disk by another home.
async fn check(below: &Tree, removed: &[String], above: &Tree) {
    let (home, other) = (Home::new(), Home::new());
    home.publish(on_disk(below).path(), options("a@1.0.0", None))
        .await
        .unwrap();
    let above = (on_disk(above), above);
    home.publish(above.0.path(), options("a@1.0.1", update(removed)))
        .await
        .unwrap();
    let whole = on_disk(&merged(below, removed, above.1));
    other
        .publish(whole.path(), options("a@1.0.1", None))
        .await
        .unwrap();
    let version = package("a@1.0.1");
    let manifests = (
        home.manifest(&version).unwrap(),
        other.manifest(&version).unwrap(),
    );
    same(&home, &manifests.0, &manifests.1);
    // Once more, from a version whose pieces are known.
    let removed = Vec::new();
    home.publish(above.0.path(), options("a@1.0.2", update(&removed)))
        .await
        .unwrap();
    let third = home.manifest(&package("a@1.0.2")).unwrap();
    assert_eq!(
        third.catalog.file(),
        manifests.0.catalog.file(),
        "nothing is new"
    );
}

fn tree(items: &[(&str, Node)]) -> Tree {
    items
        .iter()
        .map(|(path, node)| ((*path).to_owned(), node.clone()))
        .collect()
}

fn below() -> Tree {
    tree(&[
        ("a", Node::Directory),
        ("a/deep", Node::Directory),
        ("a/deep/er", Node::File(100, false)),
        ("a/file", Node::File(500_000, true)),
        ("b", Node::Directory),
        ("b/large", Node::File((2 << 20) + 9, false)),
        ("b/link", Node::Link("../a/file".to_owned())),
        ("c", Node::File(0, false)),
        ("d", Node::File(700_000, false)),
        ("l", Node::Link("a".to_owned())),
    ])
}

#[tokio::test]
async fn files_replace_and_directories_merge() {
    let none: Vec<String> = Vec::new();
    let link = || Node::Link("b/large".to_owned());
    let cases = [
        vec![],
        vec![("new", Node::File(7, false))],
        vec![("c", Node::File(8, true)), ("d", Node::File(700_000, true))],
        vec![("a", Node::Directory), ("a/file", Node::File(3, false))],
        vec![
            ("a", Node::Directory),
            ("a/deep", Node::Directory),
            ("a/deep/0", link()),
        ],
        // Kinds change.
        vec![("a", Node::File(9, false))],
        vec![("a", link())],
        vec![("l", Node::Directory), ("l/x", Node::File(1 << 20, false))],
        vec![("d", Node::Directory)],
        vec![("b", Node::Directory), ("b/large", link())],
    ];
    for above in cases {
        check(&below(), &none, &tree(&above)).await;
    }
}

#[tokio::test]
async fn what_is_removed_is_gone_and_may_come_again() {
    for (removed, above) in [
        (vec!["d"], vec![]),
        (vec!["a"], vec![]),
        (vec!["a/deep", "b/large", "l"], vec![]),
        (vec!["a/deep/er"], vec![]),
        (
            vec!["a"],
            vec![("a", Node::Directory), ("a/new", Node::File(5, false))],
        ),
        (
            vec!["b/large"],
            vec![("b", Node::Directory), ("b/large", Node::Directory)],
        ),
    ] {
        let removed: Vec<String> = removed.into_iter().map(str::to_owned).collect();
        let (home, other) = (Home::new(), Home::new());
        home.publish(on_disk(&below()).path(), options("a@1.0.0", None))
            .await
            .unwrap();
        let above = tree(&above);
        let laid = on_disk(&above);
        home.publish(laid.path(), options("a@1.0.1", update(&removed)))
            .await
            .unwrap();
        let whole = on_disk(&merged(&below(), &removed, &above));
        other
            .publish(whole.path(), options("a@1.0.1", None))
            .await
            .unwrap();
        let version = package("a@1.0.1");
        same(
            &home,
            &home.manifest(&version).unwrap(),
            &other.manifest(&version).unwrap(),
        );
    }
}

#[tokio::test]
async fn the_version_beneath_is_the_latest_or_the_one_that_is_named() {
    let home = Home::new();
    let one = |name: &str| tree(&[(name, Node::File(5, false))]);
    let publish = async |name: &str, version: &str, update: Option<Update>| {
        home.publish(on_disk(&one(name)).path(), options(version, update))
            .await
    };
    let error = publish("x", "a@0.1.0", update(&[])).await.unwrap_err();
    assert!(matches!(error, PublishError::NothingBeneath(_)), "{error}");
    publish("one", "a@1.0.0", None).await.unwrap();
    publish("two", "a@2.0.0", None).await.unwrap();
    publish("pre", "a@3.0.0-rc.1", None).await.unwrap();
    let files = |version: &str| {
        let catalog = home.catalog(&home.manifest(&package(version)).unwrap());
        let paths = (1..catalog.rows()).map(|row| catalog.path(row).unwrap());
        paths
            .map(|path| String::from_utf8(path).unwrap())
            .collect::<Vec<_>>()
    };
    publish("x", "a@2.0.1", update(&[])).await.unwrap();
    assert_eq!(files("a@2.0.1"), ["two", "x"]);
    let named = |text: &str| Update {
        version: Some(text.parse().unwrap()),
        ..Update::default()
    };
    publish("x", "a@1.0.1", Some(named("1.0.0"))).await.unwrap();
    assert_eq!(files("a@1.0.1"), ["one", "x"]);
    let error = publish("x", "a@1.0.2", Some(named("9.0.0")))
        .await
        .unwrap_err();
    assert!(matches!(error, PublishError::NoVersion(_)), "{error}");
    let error = publish("x", "a@4.0.0", update(&["none".to_owned()]))
        .await
        .unwrap_err();
    assert!(
        matches!(error, PublishError::NothingThere { .. }),
        "{error}"
    );
    for path in ["", "/", "..", "two/below"] {
        let error = publish("x", "a@4.0.0", update(&[path.to_owned()]))
            .await
            .unwrap_err();
        assert!(
            matches!(error, PublishError::NothingThere { .. }),
            "{path}: {error}"
        );
    }
}

/// Never a version whose blocks nobody has.
#[tokio::test]
async fn what_stays_has_to_be_here() {
    let home = Home::new();
    home.publish(on_disk(&below()).path(), options("a@1.0.0", None))
        .await
        .unwrap();
    let manifest = home.manifest(&package("a@1.0.0")).unwrap();
    let (_, row) = home.catalog(&manifest).find(b"b/large").unwrap().unwrap();
    let gone = |file| {
        while home.store.is_protected(&file) {
            home.store.unprotect(&file);
        }
        assert!(home.store.evict(&file) > 0);
    };
    gone(row.file());
    let none = on_disk(&Tree::new());
    let refused = home
        .publish(none.path(), options("a@1.0.1", update(&[])))
        .await;
    let error = refused.unwrap_err();
    assert!(matches!(error, PublishError::NotWhole { .. }), "{error}");
    assert!(error.hint().unwrap().contains("manifs warm a@1.0.0"));
    // What goes need not be here.
    let without = update(&["b/large".to_owned()]);
    home.publish(none.path(), options("a@1.0.1", without))
        .await
        .unwrap();
    gone(home.manifest(&package("a@1.0.1")).unwrap().catalog.file());
    let refused = home
        .publish(none.path(), options("a@1.0.2", update(&[])))
        .await;
    let error = refused.unwrap_err();
    assert!(matches!(error, PublishError::NotHere(_)), "{error}");
    assert!(error.hint().unwrap().contains("manifs warm a@1.0.1"));
}

#[tokio::test]
async fn the_merged_tree_is_judged_as_a_whole() {
    let home = Home::new();
    home.publish(on_disk(&below()).path(), options("a@1.0.0", None))
        .await
        .unwrap();
    let alike = tree(&[("a", Node::Directory), ("a/FILE", Node::File(1, false))]);
    let refused = home
        .publish(on_disk(&alike).path(), options("a@1.0.1", update(&[])))
        .await;
    let Err(PublishError::Refused(refusals)) = refused else {
        panic!("published");
    };
    assert!(refusals.group(Reason::Case).is_some());
    // A link that stays leaves now, through a link that is new.
    let leaving = tree(&[("a", Node::Link("../..".to_owned()))]);
    let refused = home
        .publish(on_disk(&leaving).path(), options("a@1.0.1", update(&[])))
        .await;
    let Err(PublishError::Refused(refusals)) = refused else {
        panic!("published");
    };
    assert!(refusals.group(Reason::Link).unwrap().count > 1);
}

/// Modes and times of what stays, of the root too when nothing is laid on top.
#[tokio::test]
async fn what_stays_keeps_its_modes_and_times() {
    let home = Home::new();
    let tree = on_disk(&below());
    let root = fs::Permissions::from_mode(0o700);
    fs::set_permissions(tree.path(), root).unwrap();
    fs::set_permissions(tree.path().join("a"), fs::Permissions::from_mode(0o711)).unwrap();
    let mut exact = options("a@1.0.0", None);
    exact.preserve = true;
    home.publish(tree.path(), exact.clone()).await.unwrap();
    exact.package = package("a@1.0.1");
    exact.update = Some(Update {
        bare: true,
        ..Update::default()
    });
    let nothing = on_disk(&Tree::new());
    home.publish(nothing.path(), exact).await.unwrap();
    let manifests = ["a@1.0.0", "a@1.0.1"].map(|text| home.manifest(&package(text)).unwrap());
    assert_eq!(manifests[0].catalog, manifests[1].catalog);
}

fn trees() -> impl Strategy<Value = Tree> {
    let node = prop_oneof![
        Just(Node::Directory),
        (
            prop_oneof![0..2000_usize, Just(600_000), Just((1 << 20) + 1)],
            any::<bool>()
        )
            .prop_map(|(size, executable)| Node::File(size, executable)),
        Just(Node::Link("x".to_owned())),
    ];
    let name = prop_oneof![Just("a"), Just("b"), Just("c"), Just("d")];
    let path = proptest::collection::vec(name, 1..4).prop_map(|parts| parts.join("/"));
    proptest::collection::btree_map(path, node, 0..12).prop_map(|mut tree: Tree| {
        // Whatever lies below something else than a directory makes a directory of it.
        for path in tree.keys().cloned().collect::<Vec<_>>() {
            let mut above = Path::new(&path).parent();
            while let Some(parent) = above.filter(|parent| !parent.as_os_str().is_empty()) {
                tree.insert(parent.to_str().unwrap().to_owned(), Node::Directory);
                above = parent.parent();
            }
        }
        tree
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, ..ProptestConfig::default() })]

    /// Random trees over random trees.
    #[test]
    fn an_update_is_the_merged_tree(
        below in trees(),
        above in trees(),
        removed in proptest::collection::vec(any::<prop::sample::Index>(), 0..3),
    ) {
        let paths: Vec<&String> = below.keys().collect();
        let removed: Vec<String> = match paths.is_empty() {
            true => Vec::new(),
            false => removed.iter().map(|index| (*index.get(&paths)).clone()).collect(),
        };
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(check(&below, &removed, &above));
    }
}
