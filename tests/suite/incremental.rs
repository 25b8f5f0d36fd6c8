//! Publishing a tree that mostly equals the last version: what is read, what is not, and that it makes no difference.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use manifs::block::Digest;
use manifs::catalog::Kind;
use manifs::manifest::PackageVersion;
use manifs::publish::{Options, Progress, PublishError, Publisher, Reason, Snapshot, Summary};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::common::publishing::{Home, directory, tempdir};
use crate::common::signed::package;

/// A clock that makes everything that a test writes old enough to be told from what it writes later.
fn later() -> SystemTime {
    SystemTime::now() + Duration::from_secs(3600)
}

/// A clock for which everything that a test writes is from just now.
fn earlier() -> SystemTime {
    SystemTime::UNIX_EPOCH
}

fn home() -> Home {
    home_at(later)
}

fn home_at(clock: fn() -> SystemTime) -> Home {
    let mut home = Home::new();
    set_clock(&mut home, clock);
    home
}

fn set_clock(home: &mut Home, clock: fn() -> SystemTime) {
    let homes = vec![home.dir.path().to_path_buf()];
    let (store, state) = (Arc::clone(&home.store), Arc::clone(&home.state));
    home.publisher = Publisher::with_clock(store, state, homes, clock);
}

/// Options that make equal trees equal manifests, info hash and all.
fn options(text: &str) -> Options {
    let mut options = Options::new(package(text));
    options.mtime = Some(1_700_000_000);
    options
}

fn bytes(seed: usize, len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| ((at * 31 + seed * 7) % 251) as u8)
        .collect()
}

/// A few small files, one of several blocks, one that is empty.
fn tree() -> TempDir {
    let dir = tempdir();
    fs::create_dir_all(dir.path().join("d/e")).unwrap();
    for number in 0..20 {
        let path = dir.path().join(format!("d/small{number:02}"));
        fs::write(path, bytes(number, 100_000 + number)).unwrap();
    }
    fs::write(dir.path().join("d/e/large"), bytes(77, (3 << 20) + 5)).unwrap();
    fs::write(dir.path().join("empty"), b"").unwrap();
    dir
}

const FILES: u64 = 22;

/// Publishes a tree and returns how far it came.
async fn publish(home: &Home, tree: &Path, options: Options) -> Result<Snapshot, PublishError> {
    let (registry, trust) = (Arc::clone(&home.registry), Arc::clone(&home.trust));
    let progress = Arc::new(Progress::new());
    let (shown, publisher) = (Arc::clone(&progress), Arc::clone(&home.publisher));
    let tree = directory(tree);
    publisher
        .publish(tree, options, registry, trust, &home.key, progress)
        .await?;
    Ok(shown.now())
}

async fn dry_run(home: &Home, tree: &Path, options: Options) -> Summary {
    let (registry, trust) = (Arc::clone(&home.registry), Arc::clone(&home.trust));
    let progress = Arc::new(Progress::new());
    let publisher = Arc::clone(&home.publisher);
    publisher
        .dry_run(directory(tree), options, registry, trust, progress)
        .await
        .unwrap()
        .summary
}

/// Asserts that a tree becomes the same manifest whether everything is read or not, publishes it, and asserts that all of
/// its content is in the store. Returns how many files, and how many bytes, were read.
async fn read_of(home: &Home, tree: &Path, version: &str) -> (u64, u64) {
    let wanted = options(version);
    let mut all = wanted.clone();
    all.rehash = true;
    let all = dry_run(home, tree, all).await;
    assert_eq!(all.unread, 0, "everything is read");
    let some = dry_run(home, tree, wanted.clone()).await;
    assert_eq!(some.manifest, all.manifest, "another manifest");
    let done = publish(home, tree, wanted).await.unwrap();
    let version: PackageVersion = package(version);
    let manifest = home.manifest(&version).unwrap();
    assert_eq!(manifest.id(), all.manifest, "another manifest");
    assert!(manifest.torrent.is_some());
    holds_all(home, &version, tree);
    assert_eq!((done.files_done, done.bytes_done), (done.files, done.bytes));
    assert_eq!(done.files_known, some.unread);
    (
        done.files_done - done.files_known,
        done.bytes_done - done.bytes_known,
    )
}

/// Compares what the store holds of a version with the tree on disk, byte by byte.
fn holds_all(home: &Home, version: &PackageVersion, tree: &Path) {
    let catalog = home.catalog(&home.manifest(version).unwrap());
    for number in 0..catalog.rows() {
        if catalog.row(number).unwrap().kind() == Kind::File {
            let path = String::from_utf8(catalog.path(number).unwrap()).unwrap();
            let there = fs::read(tree.join(&path)).unwrap();
            assert!(home.content(&catalog, &path) == there, "{path}");
        }
    }
}

fn record(home: &Home) -> PathBuf {
    home.state.ingested().join("a")
}

#[tokio::test]
async fn a_tree_that_did_not_change_is_not_read_again() {
    let (home, tree) = (home(), tree());
    assert_eq!(read_of(&home, tree.path(), "a@1.0.0").await.0, FILES);
    assert_eq!(read_of(&home, tree.path(), "a@1.0.1").await, (0, 0));
    assert_eq!(read_of(&home, tree.path(), "a@1.0.2").await, (0, 0));
    let mut all = options("a@1.0.3");
    all.rehash = true;
    let done = publish(&home, tree.path(), all).await.unwrap();
    assert_eq!(done.files_known, 0);
    // Another package knows nothing of it.
    assert_eq!(read_of(&home, tree.path(), "b@1.0.0").await.0, FILES);
}

#[tokio::test]
async fn one_changed_file_costs_itself_and_the_pieces_around_it() {
    let (home, tree) = (home(), tree());
    let size = 100_003;
    read_of(&home, tree.path(), "a@1.0.0").await;
    // As long as before: nothing moves in the torrent, and the files of one piece are read.
    fs::write(tree.path().join("d/small03"), bytes(1000, size)).unwrap();
    let (files, read) = read_of(&home, tree.path(), "a@1.0.1").await;
    assert!((1..=12).contains(&files), "{files}");
    assert!(read < 13 * 100_100, "{read}");
    // Longer: what follows moves in the torrent; the large file does not.
    fs::write(tree.path().join("d/small03"), bytes(1001, size + 1)).unwrap();
    let (files, read) = read_of(&home, tree.path(), "a@1.0.2").await;
    assert!(files <= 20, "{files}");
    assert!(read < 20 * 100_100, "{read}");
    // The large one alone.
    fs::write(tree.path().join("d/e/large"), bytes(5, (3 << 20) + 5)).unwrap();
    assert_eq!(read_of(&home, tree.path(), "a@1.0.3").await.0, 1);
}

#[tokio::test]
async fn a_moved_file_or_directory_is_known() {
    let (home, tree) = (home(), tree());
    read_of(&home, tree.path(), "a@1.0.0").await;
    fs::rename(tree.path().join("d"), tree.path().join("elsewhere")).unwrap();
    assert_eq!(read_of(&home, tree.path(), "a@1.0.1").await, (0, 0));
}

/// What is done to one file so that it has to be read again.
type Change = fn(&Path);

#[tokio::test]
async fn whatever_may_have_changed_is_read() {
    let changes: [(&str, Change); 4] = [
        ("other bytes, the old size and the old time", |file| {
            let before = fs::metadata(file).unwrap();
            let open = OpenOptions::new().write(true).open(file).unwrap();
            open.write_all_at(b"other bytes", 0).unwrap();
            open.set_modified(before.modified().unwrap()).unwrap();
            let after = fs::metadata(file).unwrap();
            assert_eq!(
                (before.size(), before.mtime_nsec()),
                (after.size(), after.mtime_nsec())
            );
        }),
        ("another file of the same size and time", |file| {
            let before = fs::metadata(file).unwrap();
            let new = file.with_extension("new");
            fs::write(&new, bytes(4711, before.len() as usize)).unwrap();
            fs::rename(&new, file).unwrap();
            let open = File::open(file).unwrap();
            open.set_modified(before.modified().unwrap()).unwrap();
            assert_ne!(before.ino(), fs::metadata(file).unwrap().ino());
        }),
        ("the same bytes written again", |file| {
            let content = fs::read(file).unwrap();
            fs::write(file, content).unwrap();
        }),
        ("another mode", |file| {
            fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
        }),
    ];
    let (home, tree) = (home(), tree());
    read_of(&home, tree.path(), "a@1.0.0").await;
    let mut patch = 0;
    for (what, change) in changes {
        for file in ["d/e/large", "d/small07"] {
            change(&tree.path().join(file));
            patch += 1;
            let (files, _) = read_of(&home, tree.path(), &format!("a@1.0.{patch}")).await;
            assert!((1..=12).contains(&files), "{what}: {files}");
        }
    }
    patch += 1;
    let last = format!("a@1.0.{patch}");
    assert_eq!(read_of(&home, tree.path(), &last).await, (0, 0));
}

/// The rule of git: what changed just before the ingest may change again without being told apart.
#[tokio::test]
async fn a_file_that_is_as_new_as_its_ingest_is_read_again() {
    let tree = tree();
    let mut home = home_at(earlier);
    let done = publish(&home, tree.path(), options("a@1.0.0"))
        .await
        .unwrap();
    assert_eq!(done.files_known, 0);
    let racy = publish(&home, tree.path(), options("a@1.0.1"))
        .await
        .unwrap();
    assert_eq!(racy.files_known, 0);
    set_clock(&mut home, later);
    // What counts is the time of the ingest that read it, not of the one that does not want to.
    let racy = publish(&home, tree.path(), options("a@1.0.2"))
        .await
        .unwrap();
    assert_eq!(racy.files_known, 0);
    let known = publish(&home, tree.path(), options("a@1.0.3"))
        .await
        .unwrap();
    assert_eq!(known.files_known, FILES);
}

/// What is done to the bytes of a record.
type Damage = fn(&mut Vec<u8>);

#[tokio::test]
async fn a_record_that_cannot_be_used_costs_time_only() {
    let (home, tree) = (home(), tree());
    read_of(&home, tree.path(), "a@1.0.0").await;
    let mut patch = 0;
    let damages: [(&str, Damage); 5] = [
        ("of another format", |bytes| bytes[7] = b'2'),
        ("truncated", |bytes| bytes.truncate(bytes.len() / 2)),
        ("empty", Vec::clear),
        ("damaged", |bytes| bytes[100] ^= 1),
        ("longer", |bytes| bytes.push(0)),
    ];
    for (what, damage) in damages {
        let mut bytes = fs::read(record(&home)).unwrap();
        damage(&mut bytes);
        fs::write(record(&home), bytes).unwrap();
        patch += 1;
        let version = format!("a@1.0.{patch}");
        assert_eq!(
            read_of(&home, tree.path(), &version).await.0,
            FILES,
            "{what}"
        );
        patch += 1;
        let version = format!("a@1.0.{patch}");
        assert_eq!(read_of(&home, tree.path(), &version).await.0, 0, "{what}");
    }
    fs::remove_file(record(&home)).unwrap();
    assert_eq!(read_of(&home, tree.path(), "a@1.1.0").await.0, FILES);
    // The catalog it is of is gone.
    let manifest = home.manifest(&package("a@1.1.0")).unwrap();
    let catalog = manifest.catalog.file();
    while home.store.is_protected(&catalog) {
        home.store.unprotect(&catalog);
    }
    assert!(home.store.evict(&catalog) > 0);
    assert_eq!(read_of(&home, tree.path(), "a@1.2.0").await.0, FILES);
}

#[tokio::test]
async fn a_file_that_the_store_has_not_got_is_read() {
    let (home, tree) = (home(), tree());
    read_of(&home, tree.path(), "a@1.0.0").await;
    let catalog = home.catalog(&home.manifest(&package("a@1.0.0")).unwrap());
    for (patch, path) in (1..).zip(["d/small05", "d/e/large"]) {
        let (_, row) = catalog.find(path.as_bytes()).unwrap().unwrap();
        while home.store.is_protected(&row.file()) {
            home.store.unprotect(&row.file());
        }
        assert!(home.store.evict(&row.file()) > 0);
        let (files, read) = read_of(&home, tree.path(), &format!("a@1.0.{patch}")).await;
        assert_eq!(read, row.size(), "{path}");
        assert_eq!(files, 1, "{path}");
    }
}

#[tokio::test]
async fn what_was_never_judged_is_judged() {
    let (home, tree) = (home(), tree());
    let secret = tree.path().join("d/notes");
    fs::write(&secret, "-----BEGIN PRIVATE KEY-----\n").unwrap();
    let mut allowing = options("a@1.0.0");
    allowing.allow.secrets = true;
    publish(&home, tree.path(), allowing.clone()).await.unwrap();
    let error = publish(&home, tree.path(), options("a@1.0.1")).await;
    let Err(PublishError::Refused(refusals)) = error else {
        panic!("published");
    };
    assert!(refusals.group(Reason::Secret).is_some());
    // Who allows them again reads nothing.
    allowing.package = package("a@1.0.1");
    let done = publish(&home, tree.path(), allowing).await.unwrap();
    assert_eq!(done.files_known, FILES + 1);
}

/// A tree of which little is new fits a store that has no room for two.
#[tokio::test]
async fn what_is_stored_already_needs_no_room() {
    let (mut home, tree) = (Home::with_quota(9 << 20), tree());
    set_clock(&mut home, later);
    publish(&home, tree.path(), options("a@1.0.0"))
        .await
        .unwrap();
    fs::write(tree.path().join("d/small01"), b"new").unwrap();
    let mut all = options("a@1.0.1");
    all.rehash = true;
    let error = publish(&home, tree.path(), all).await.unwrap_err();
    assert!(matches!(error, PublishError::Quota { .. }), "{error}");
    publish(&home, tree.path(), options("a@1.0.1"))
        .await
        .unwrap();
    holds_all(&home, &package("a@1.0.1"), tree.path());
}

#[tokio::test]
async fn a_publish_that_is_given_up_changes_nothing_about_what_is_known() {
    let (home, tree) = (home(), tree());
    read_of(&home, tree.path(), "a@1.0.0").await;
    let before = fs::read(record(&home)).unwrap();
    fs::write(tree.path().join("d/small01"), b"new").unwrap();
    let prepared = home.prepare(tree.path(), options("a@1.0.1")).await.unwrap();
    home.publisher.abandon(&prepared.job);
    assert_eq!(fs::read(record(&home)).unwrap(), before);
    assert_eq!(fs::read_dir(home.state.ingested()).unwrap().count(), 1);
}

/// What may happen to a tree between two publishes.
#[derive(Clone, Debug)]
enum Edit {
    /// A file gets other bytes of the same length, and its old time.
    Disguise(usize),
    Write(usize, usize),
    Append(usize),
    Remove(usize),
    Rename(usize, usize),
    MoveDirectory,
    Link(usize, usize),
    Touch(usize),
    Evict(usize),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let file = 0..12_usize;
    let size = prop_oneof![Just(0), 1..2000_usize, Just(600_000), Just((1 << 20) + 1)];
    let edit = prop_oneof![
        file.clone().prop_map(Edit::Disguise),
        (file.clone(), size).prop_map(|(file, size)| Edit::Write(file, size)),
        file.clone().prop_map(Edit::Append),
        file.clone().prop_map(Edit::Remove),
        (file.clone(), file.clone()).prop_map(|(from, to)| Edit::Rename(from, to)),
        Just(Edit::MoveDirectory),
        (file.clone(), file.clone()).prop_map(|(from, to)| Edit::Link(from, to)),
        file.clone().prop_map(Edit::Touch),
        file.prop_map(Edit::Evict),
    ];
    proptest::collection::vec(edit, 0..4)
}

fn apply(home: &Home, root: &Path, edit: &Edit, step: usize) {
    let inner = |name: &str| root.join(name);
    let directory = if inner("one").exists() {
        inner("one")
    } else {
        inner("two")
    };
    let path = |file: usize| match file % 3 {
        0 => inner(&format!("f{file:02}")),
        _ => directory.join(format!("f{file:02}")),
    };
    match *edit {
        Edit::Disguise(file) => {
            if let Ok(before) = fs::metadata(path(file)) {
                let open = OpenOptions::new().write(true).open(path(file)).unwrap();
                let content = bytes(step + 999, before.len() as usize);
                open.write_all_at(&content, 0).unwrap();
                open.set_modified(before.modified().unwrap()).unwrap();
            }
        }
        Edit::Write(file, size) => fs::write(path(file), bytes(step + file, size)).unwrap(),
        Edit::Append(file) => {
            let open = OpenOptions::new()
                .append(true)
                .create(true)
                .open(path(file));
            std::io::Write::write_all(&mut open.unwrap(), b"more").unwrap();
        }
        Edit::Remove(file) => drop(fs::remove_file(path(file))),
        Edit::Rename(from, to) => drop(fs::rename(path(from), path(to))),
        Edit::MoveDirectory => {
            let to = if directory.ends_with("one") {
                "two"
            } else {
                "one"
            };
            fs::rename(&directory, inner(to)).unwrap();
        }
        Edit::Link(from, to) => drop(fs::hard_link(path(from), path(to))),
        Edit::Touch(file) => {
            if let Ok(open) = File::open(path(file)) {
                open.set_modified(SystemTime::UNIX_EPOCH).unwrap();
            }
        }
        Edit::Evict(file) => {
            let Ok(content) = fs::read(path(file)) else {
                return;
            };
            let file = manifs::block::FileRef {
                id: Digest::of(&content),
                size: content.len() as u64,
            };
            while home.store.is_protected(&file) {
                home.store.unprotect(&file);
            }
            home.store.evict(&file);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Whatever happens to a tree, reading only what is new gives what reading everything does.
    #[test]
    fn reading_less_makes_no_difference(rounds in proptest::collection::vec(edits(), 1..5)) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let (home, tree) = (home(), tempdir());
            fs::create_dir(tree.path().join("one")).unwrap();
            for file in 0..12 {
                let size = [0, 10, 400_000, 700_000, (1 << 20) + 3][file % 5];
                apply(&home, tree.path(), &Edit::Write(file, size), file);
            }
            read_of(&home, tree.path(), "a@1.0.0").await;
            for (round, edits) in (1..).zip(&rounds) {
                for (index, edit) in edits.iter().enumerate() {
                    apply(&home, tree.path(), edit, round * 100 + index);
                }
                let version = format!("a@1.0.{round}");
                let (files, _) = read_of(&home, tree.path(), &version).await;
                if edits.is_empty() {
                    assert_eq!(files, 0);
                }
            }
        });
    }
}
