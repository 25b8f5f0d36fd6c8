//! What of a tree is published, as what, and what is refused.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use manifs::block::{BLOCK_BYTES, Digest, block_count};
use manifs::catalog::Kind;
use manifs::publish::{Options, PublishError, Reason, Refusals};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps};
use serde_json::Value;

use crate::catalog::{Item, items};
use crate::common::publishing::{Home, tempdir};
use crate::common::signed::package;
use crate::common::{self, publishing};

fn options(text: &str) -> Options {
    Options::new(package(text))
}

fn path(root: &Path, name: &[u8]) -> std::path::PathBuf {
    root.join(std::ffi::OsStr::from_bytes(name))
}

fn set_mtime(path: &Path, ns: i64) {
    let time = Timespec {
        tv_sec: ns.div_euclid(1_000_000_000),
        tv_nsec: ns.rem_euclid(1_000_000_000),
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Lays a vector's tree out on the disk, in the given order of creation.
fn lay_out(root: &Path, items: &BTreeMap<Vec<u8>, Item>, backwards: bool) {
    let mut order: Vec<_> = items.iter().collect();
    if backwards {
        order.reverse();
    }
    for (name, item) in &order {
        let path = path(root, name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match item.kind {
            Kind::Directory => fs::create_dir_all(&path).unwrap(),
            Kind::File => fs::write(&path, &item.content).unwrap(),
            Kind::Symlink => symlink(std::ffi::OsStr::from_bytes(&item.target), &path).unwrap(),
        }
    }
    // Modes and times last, the deepest first: writing into a directory changes its time.
    for (name, item) in items.iter().rev() {
        let path = path(root, name);
        if item.kind != Kind::Symlink {
            let mode = fs::Permissions::from_mode(item.mode.into());
            fs::set_permissions(&path, mode).unwrap();
        }
        set_mtime(&path, item.mtime_ns);
    }
}

fn vector_options(tree: &Value) -> Options {
    let word = |name: &str| tree[name].as_str().unwrap();
    let mut options = options(&format!("{}@{}", word("name"), word("version")));
    options.preserve = tree["preserve"] == true;
    options.mtime = tree["mtime"].as_i64();
    options.allow.case = tree["allow"]
        .as_array()
        .is_some_and(|allow| allow.iter().any(|word| word == "collisions"));
    options
}

#[tokio::test]
async fn trees_on_disk_give_exactly_the_vectors_catalogs() {
    let vectors = common::vectors("catalog.json");
    let full = common::full("publishing vectors of gigabytes or 200,000 files");
    let home = Home::new();
    let mut checked = 0;
    for tree in vectors["trees"].as_array().unwrap() {
        let slow = tree["slow"] == true || tree["id"] == "catalog-1MiB";
        if tree["disk"] == false || slow && !full {
            continue;
        }
        let id = tree["id"].as_str().unwrap();
        let expect = &tree["expect"];
        let items = items(tree);
        // Equal trees, made in another order and so with other inodes, give equal catalogs.
        for backwards in [false, true] {
            let dir = tempdir();
            let root = dir.path().join("root");
            fs::create_dir(&root).unwrap();
            lay_out(&root, &items, backwards);
            let prepared = home.prepare(&root, vector_options(tree)).await;
            let prepared = prepared.unwrap_or_else(|error| panic!("{id}: {error}"));
            let manifest = prepared.manifest.expect("it is new");
            assert_eq!(manifest.root.to_string(), expect["root"], "{id}");
            assert_eq!(manifest.files, expect["totals"]["files"], "{id}");
            assert_eq!(
                manifest.directories, expect["totals"]["directories"],
                "{id}"
            );
            assert_eq!(manifest.bytes, expect["totals"]["bytes"], "{id}");
            let torrent = manifest.torrent;
            let info_hash = torrent.map(|torrent| hex::encode(torrent.info_hash));
            assert_eq!(info_hash.as_deref(), expect["info_hash"].as_str(), "{id}");
            let piece_length = torrent.map(|torrent| torrent.piece_length);
            assert_eq!(piece_length, expect["piece_length"].as_u64(), "{id}");
            let (size, blocks) = expected_catalog(&expect["catalog"]);
            assert_eq!(manifest.catalog.size, size, "{id}");
            let blocks_are: Vec<String> = manifest
                .catalog
                .blocks
                .iter()
                .map(Digest::to_string)
                .collect();
            assert_eq!(blocks_are, blocks, "{id}");
            home.publisher.abandon(&prepared.job);
        }
        checked += 1;
    }
    assert!(checked >= 20, "{checked}");
}

fn expected_catalog(catalog: &Value) -> (u64, Vec<String>) {
    if let Some(hex) = catalog["hex"].as_str() {
        let bytes = hex::decode(hex).unwrap();
        let digests = bytes
            .chunks(BLOCK_BYTES as usize)
            .map(|block| Digest::of(block).to_string());
        return (bytes.len() as u64, digests.collect());
    }
    let size = catalog["size"].as_u64().unwrap();
    let blocks = match catalog["blocks"].as_array() {
        Some(blocks) => blocks
            .iter()
            .map(|block| block.as_str().unwrap().to_owned())
            .collect(),
        None => vec![catalog["sha256"].as_str().unwrap().to_owned()],
    };
    assert_eq!(blocks.len() as u64, block_count(size));
    (size, blocks)
}

/// Returns what is refused of a tree; nothing of it may be published.
async fn refused(home: &Home, tree: &Path, options: Options) -> Refusals {
    match home.publish(tree, options).await {
        Err(PublishError::Refused(refusals)) => {
            assert!(home.state.published().versions().unwrap().is_empty());
            assert!(publishing::files(&home.registry_path()).is_empty());
            refusals
        }
        other => panic!("not refused: {other:?}"),
    }
}

/// Returns the refused paths of one reason, the only one.
fn paths(refusals: &Refusals, reason: Reason) -> Vec<String> {
    let reasons: Vec<Reason> = refusals.groups().map(|(reason, _)| reason).collect();
    assert_eq!(reasons, [reason], "{refusals}");
    let group = refusals.group(reason).unwrap();
    group
        .shown
        .iter()
        .map(|refused| String::from_utf8_lossy(&refused.path).into_owned())
        .collect()
}

#[tokio::test]
async fn whatever_is_no_file_directory_or_symlink_is_refused() {
    let home = Home::new();
    let dir = tempdir();
    fs::create_dir(dir.path().join("d")).unwrap();
    fs::write(dir.path().join("d/fine"), "x").unwrap();
    rustix::fs::mknodat(
        CWD,
        dir.path().join("d/fifo"),
        FileType::Fifo,
        Mode::RUSR,
        0,
    )
    .unwrap();
    let refusals = refused(&home, dir.path(), options("a@1.0.0")).await;
    assert_eq!(paths(&refusals, Reason::Fifo), ["d/fifo"]);

    fs::remove_file(dir.path().join("d/fifo")).unwrap();
    let _socket = UnixListener::bind(dir.path().join("socket")).unwrap();
    let refusals = refused(&home, dir.path(), options("a@1.0.0")).await;
    assert_eq!(paths(&refusals, Reason::Socket), ["socket"]);

    fs::remove_file(dir.path().join("socket")).unwrap();
    let device = rustix::fs::makedev(1, 3);
    match rustix::fs::mknodat(
        CWD,
        dir.path().join("null"),
        FileType::CharacterDevice,
        Mode::RUSR,
        device,
    ) {
        Ok(()) => {
            let refusals = refused(&home, dir.path(), options("a@1.0.0")).await;
            assert_eq!(paths(&refusals, Reason::Device), ["null"]);
        }
        Err(_) => eprintln!("SKIPPED a device in the tree: only root makes one"),
    }
}

#[tokio::test]
async fn names_are_utf8_and_not_reserved() {
    let home = Home::new();
    let dir = tempdir();
    fs::write(path(dir.path(), b"bad\xff"), "x").unwrap();
    let refusals = refused(&home, dir.path(), options("a@1.0.0")).await;
    let group = refusals.group(Reason::Encoding).unwrap();
    assert_eq!(group.shown[0].path, b"bad\xff");
    fs::remove_file(path(dir.path(), b"bad\xff")).unwrap();

    fs::create_dir_all(dir.path().join("below/.manifs")).unwrap();
    fs::create_dir(dir.path().join(".manifs")).unwrap();
    let refusals = refused(&home, dir.path(), options("a@1.0.0")).await;
    assert_eq!(paths(&refusals, Reason::Reserved), [".manifs"]);
}

#[tokio::test]
async fn instructions_are_no_content_and_it_says_so() {
    let home = Home::new();
    let dir = tempdir();
    fs::create_dir(dir.path().join("sub")).unwrap();
    for name in ["manifs.toml", ".publish", "sub/manifs.toml", "sub/.publish"] {
        fs::write(dir.path().join(name), "x").unwrap();
    }
    let prepared = home.prepare(dir.path(), options("a@1.0.0")).await.unwrap();
    let summary = prepared.summary.unwrap();
    assert_eq!(summary.instructions, [".publish", "manifs.toml"]);
    assert_eq!(summary.files, 2);
    let catalog = home.catalog(&prepared.manifest.unwrap());
    assert!(catalog.find(b"manifs.toml").unwrap().is_none());
    assert!(catalog.find(b"sub/manifs.toml").unwrap().is_some());
}

#[tokio::test]
async fn links_that_leave_are_refused_unless_allowed() {
    let home = Home::new();
    let dir = tempdir();
    fs::create_dir_all(dir.path().join("a/b")).unwrap();
    for (name, target) in [
        ("absolute", "/etc/passwd"),
        ("above", ".."),
        ("a/b/far", "../../../x"),
        ("a/up", ".."),
        ("over-a-link", "a/up/../x"),
        ("fine", "a/up/fine2"),
        ("a/b/back", "../../a/./b"),
        ("dangling", "no/such"),
        ("loop", "loop"),
    ] {
        symlink(target, dir.path().join(name)).unwrap();
    }
    let refusals = refused(&home, dir.path(), options("a@1.0.0")).await;
    let mut found = paths(&refusals, Reason::Link);
    found.sort();
    assert_eq!(found, ["a/b/far", "above", "absolute", "over-a-link"]);
    let text = PublishError::Refused(refusals).hint().unwrap();
    assert!(text.contains("--allow links"), "{text}");

    let mut allowed = options("a@1.0.0");
    allowed.allow.links = true;
    home.publish(dir.path(), allowed).await.unwrap();
}

#[tokio::test]
async fn names_that_some_systems_take_for_one_are_refused_unless_allowed() {
    let home = Home::new();
    let dir = tempdir();
    fs::create_dir(dir.path().join("d")).unwrap();
    for name in ["README", "readme", "d/\u{e9}", "d/e\u{301}", "d/README"] {
        fs::write(dir.path().join(name), "x").unwrap();
    }
    let refusals = refused(&home, dir.path(), options("a@1.0.0")).await;
    assert_eq!(paths(&refusals, Reason::Case), ["readme", "d/\u{e9}"]);
    let text = refusals.to_string();
    assert!(text.contains("readme (like README)"), "{text}");
    let text = PublishError::Refused(refusals).hint().unwrap();
    assert!(text.contains("--allow case"), "{text}");

    let mut allowed = options("a@1.0.0");
    allowed.allow.case = true;
    home.publish(dir.path(), allowed).await.unwrap();
}

#[tokio::test]
async fn secrets_are_refused_by_name_and_by_content_all_at_once() {
    let home = Home::new();
    let dir = tempdir();
    fs::create_dir(dir.path().join("keys")).unwrap();
    let pem = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA\n-----END PRIVATE KEY-----\n";
    fs::write(dir.path().join(".env"), "TOKEN=x").unwrap();
    fs::write(dir.path().join("keys/server.txt"), pem).unwrap();
    let mut large = pem.as_bytes().to_vec();
    large.resize(3 << 20, b'\n');
    fs::write(dir.path().join("keys/large"), large).unwrap();
    fs::write(
        dir.path().join("keys/public.pem"),
        "-----BEGIN PUBLIC KEY-----\n",
    )
    .unwrap();
    let refusals = refused(&home, dir.path(), options("a@1.0.0")).await;
    let mut found = paths(&refusals, Reason::Secret);
    found.sort();
    assert_eq!(found, [".env", "keys/large", "keys/server.txt"]);
    let text = PublishError::Refused(refusals).hint().unwrap();
    assert!(text.contains("--allow secrets"), "{text}");

    let mut allowed = options("a@1.0.0");
    allowed.allow.secrets = true;
    home.publish(dir.path(), allowed).await.unwrap();
}

#[tokio::test]
async fn everything_refused_is_told_at_once_twenty_of_each_kind() {
    let home = Home::new();
    let dir = tempdir();
    for number in 0..25 {
        symlink("/etc", dir.path().join(format!("link{number:02}"))).unwrap();
    }
    fs::write(dir.path().join(".netrc"), "machine x").unwrap();
    fs::write(
        dir.path().join("id"),
        "-----BEGIN OPENSSH PRIVATE KEY-----\n",
    )
    .unwrap();
    let refusals = refused(&home, dir.path(), options("a@1.0.0")).await;
    let links = refusals.group(Reason::Link).unwrap();
    assert_eq!((links.count, links.shown.len()), (25, 20));
    assert_eq!(refusals.group(Reason::Secret).unwrap().count, 2);
    assert!(refusals.to_string().contains("and 5 more"));
}

#[tokio::test]
async fn what_cannot_be_read_or_lies_too_deep_is_refused() {
    let home = Home::new();
    let dir = tempdir();
    let mut deep = dir.path().to_path_buf();
    for _ in 0..256 {
        deep.push("d");
        fs::create_dir(&deep).unwrap();
    }
    let refusals = refused(&home, dir.path(), options("a@1.0.0")).await;
    assert_eq!(paths(&refusals, Reason::Depth).len(), 1);

    let dir = tempdir();
    let mut at = File::open(dir.path()).unwrap();
    let name = "n".repeat(255);
    for _ in 0..17 {
        rustix::fs::mkdirat(&at, &name, Mode::RWXU).unwrap();
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
        at = rustix::fs::openat(&at, &name, flags, Mode::empty())
            .unwrap()
            .into();
    }
    let refusals = refused(&home, dir.path(), options("a@1.0.0")).await;
    assert_eq!(paths(&refusals, Reason::Length).len(), 1);

    if !rustix::process::geteuid().is_root() {
        let dir = tempdir();
        fs::write(dir.path().join("locked"), "x").unwrap();
        fs::set_permissions(dir.path().join("locked"), fs::Permissions::from_mode(0o0)).unwrap();
        let refusals = refused(&home, dir.path(), options("a@1.0.0")).await;
        assert_eq!(paths(&refusals, Reason::Unreadable), ["locked"]);
    }
}

#[tokio::test]
async fn a_home_is_not_published_into_itself() {
    let above = tempdir();
    let inside = tempfile::Builder::new()
        .prefix("home")
        .tempdir_in(above.path())
        .unwrap();
    let home = Home::open(inside, 1 << 30);
    for (tree, path) in [
        (home.dir.path(), ""),
        (
            above.path(),
            home.dir.path().file_name().unwrap().to_str().unwrap(),
        ),
    ] {
        match home.publish(tree, options("a@1.0.0")).await {
            Err(PublishError::Refused(refusals)) => {
                assert_eq!(paths(&refusals, Reason::Home), [path])
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_time_that_no_catalog_holds_needs_mtime() {
    let home = Home::new();
    let dir = tempdir();
    let file = dir.path().join("far");
    fs::write(&file, "x").unwrap();
    let time = Timespec {
        tv_sec: 10_000_000_000,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, &file, &times, AtFlags::empty()).unwrap();
    if fs::metadata(&file).unwrap().mtime() != 10_000_000_000 {
        eprintln!("SKIPPED a time after 2262: this file system does not keep it");
        return;
    }
    let refusals = refused(&home, dir.path(), options("a@1.0.0")).await;
    assert_eq!(paths(&refusals, Reason::Time), ["far"]);
    let mut fixed = options("a@1.0.0");
    fixed.mtime = Some(1);
    home.publish(dir.path(), fixed).await.unwrap();

    let mut beyond = options("a@1.0.0");
    beyond.mtime = Some(i64::MAX);
    let error = home.publish(dir.path(), beyond).await.unwrap_err();
    assert!(
        matches!(error, PublishError::MtimeRange(i64::MAX)),
        "{error}"
    );
}

#[tokio::test]
async fn holes_stay_holes_and_cost_nothing() {
    let size: u64 = if common::full("a sparse file of 3 GiB") {
        3 << 30
    } else {
        200 << 20
    } + 12_345;
    let home = Home::new();
    let dir = tempdir();
    let file = File::create(dir.path().join("sparse")).unwrap();
    file.set_len(size).unwrap();
    file.write_all_at(b"begin", 0).unwrap();
    file.write_all_at(b"middle", 100 * BLOCK_BYTES - 3).unwrap();
    drop(file);
    let hollow = File::create(dir.path().join("hollow")).unwrap();
    hollow.set_len(5 * BLOCK_BYTES).unwrap();
    drop(hollow);
    // Zeros that were written out become a hole in the store.
    fs::write(dir.path().join("zeros"), vec![0; 4 << 20]).unwrap();
    let began = Instant::now();
    home.publish(dir.path(), options("a@1.0.0")).await.unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(60),
        "{:?}",
        began.elapsed()
    );
    let used = home.store.usage().used;
    assert!(
        used < 5 * BLOCK_BYTES,
        "{used} bytes for three blocks of data"
    );

    let manifest = home.manifest(&package("a@1.0.0")).unwrap();
    let catalog = home.catalog(&manifest);
    let (_, row) = catalog.find(b"sparse").unwrap().unwrap();
    assert_eq!(row.size(), size);
    let digests = catalog.digests(&row, 0..row.blocks()).unwrap();
    let zeros = Digest::of(&vec![0; BLOCK_BYTES as usize]);
    assert_eq!(digests.iter().filter(|digest| **digest != zeros).count(), 4);
    let content = home.content(&catalog, "hollow");
    assert!(content.len() == 5 << 20 && content.iter().all(|byte| *byte == 0));
    if size < 1 << 30 {
        assert_eq!(
            home.content(&catalog, "sparse"),
            fs::read(dir.path().join("sparse")).unwrap()
        );
        let whole = Digest::of(&fs::read(dir.path().join("sparse")).unwrap());
        assert_eq!(catalog.whole(&row).unwrap(), whole);
    }
}

#[tokio::test]
async fn the_bytes_hashed_are_the_bytes_stored() {
    let home = Home::new();
    let dir = tempdir();
    let block = BLOCK_BYTES as usize;
    let mut files = Vec::new();
    for size in [0, 1, block - 1, block, block + 1, 2 * block, 9 * block + 7] {
        let bytes: Vec<u8> = (0..size).map(|at| (at / 7 % 251) as u8).collect();
        let name = format!("f{size}");
        fs::write(dir.path().join(&name), &bytes).unwrap();
        files.push((name, bytes));
    }
    fs::hard_link(dir.path().join("f1"), dir.path().join("hard")).unwrap();
    files.push(("hard".to_owned(), files[1].1.clone()));
    home.publish(dir.path(), options("a@1.0.0")).await.unwrap();
    let manifest = home.manifest(&package("a@1.0.0")).unwrap();
    let catalog = home.catalog(&manifest);
    for (name, bytes) in &files {
        assert_eq!(home.content(&catalog, name), *bytes, "{name}");
        let (_, row) = catalog.find(name.as_bytes()).unwrap().unwrap();
        assert_eq!(catalog.whole(&row).unwrap(), Digest::of(bytes), "{name}");
    }
    manifs::catalog::verify_ids(&catalog).unwrap();
    let sums = home
        .registry
        .sums(&package("a@1.0.0"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(sums.split(|byte| *byte == b'\n').count(), files.len() + 1);
}

#[tokio::test]
async fn what_cannot_fit_is_refused_before_a_byte_is_stored() {
    let home = Home::with_quota(4 << 20);
    let dir = tempdir();
    let bytes: Vec<u8> = (0..5 << 20).map(|at| (at % 251) as u8).collect();
    fs::write(dir.path().join("large"), bytes).unwrap();
    match home.publish(dir.path(), options("a@1.0.0")).await {
        Err(PublishError::Quota {
            needed,
            room,
            quota,
            ..
        }) => {
            assert!(needed > 5 << 20, "{needed}");
            assert_eq!((room, quota), (4 << 20, 4 << 20));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(home.store.usage().files, 0);
    let outcome = home.publisher.dry_run(
        publishing::directory(dir.path()),
        options("a@1.0.0"),
        home.registry.clone(),
        home.trust.clone(),
        Default::default(),
    );
    let error = outcome.await.unwrap_err();
    assert!(
        matches!(error, PublishError::Quota { .. }),
        "a dry run says so too: {error}"
    );
}
