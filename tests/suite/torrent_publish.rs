//! Torrents of what is published: hashed in the same pass, written beside the manifest, marked for seeding.

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use librqbit_core::torrent_metainfo::torrent_from_bytes;
use manifs::block::{BLOCK_BYTES, BlockRef};
use manifs::catalog::Kind;
use manifs::fetch::Priority;
use manifs::install::want_of;
use manifs::manifest::{Manifest, PackageVersion, TrustPolicy};
use manifs::publish::{Options, PublishError};
use manifs::source::{BlockSource, SourceError, SourceKind, Spill, Torrent, Want};
use manifs::torrent::{Info, Layout, NotOffered, block_at, rebuild};
use parking_lot::Mutex;
use tempfile::TempDir;

use crate::common::home;
use crate::common::publishing::{Home, files, tempdir, trusting};
use crate::common::signed::package;

const TRACKERS: [&str; 2] = ["http://127.0.0.1:6969/announce", "udp://127.0.0.1:6969"];

fn options(text: &str, seed: bool) -> Options {
    let mut options = Options::new(package(text));
    options.seed = seed;
    options.mtime = Some(1_700_000_000);
    options.hints.trackers = Some(TRACKERS.map(str::to_owned).to_vec());
    options.hints.http = Some(vec!["https://example.org/mirror".to_owned()]);
    options
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}

/// Files around every boundary, many small ones, a hole, links, a program.
fn tree() -> TempDir {
    let dir = tempdir();
    let root = dir.path();
    fs::create_dir_all(root.join("small/deep")).unwrap();
    for (number, len) in [0, 1, 1_048_575, 1_048_576, 1_048_577, 2_097_152, 5_000_000]
        .iter()
        .enumerate()
    {
        fs::write(root.join(format!("f{number}")), bytes(number as u64, *len)).unwrap();
    }
    for number in 0..300_u64 {
        let len = (number * 7919 % 20_011) as usize;
        let directory = if number % 3 == 0 {
            "small"
        } else {
            "small/deep"
        };
        fs::write(
            root.join(directory).join(format!("n{number}")),
            bytes(number, len),
        )
        .unwrap();
    }
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(9 << 20).unwrap();
    sparse
        .write_all_at(b"not all of it", (4 << 20) + 100)
        .unwrap();
    fs::set_permissions(root.join("f1"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("../f2", root.join("small/link")).unwrap();
    dir
}

/// Makes the info dictionary of a version again, from what is stored.
fn again(home: &Home, manifest: &Manifest) -> Info {
    let catalog = home.catalog(manifest);
    let layout = Arc::new(Layout::of(&catalog).unwrap());
    let name = manifest.package.tree_name();
    rebuild(
        &name,
        &catalog,
        &manifest.catalog,
        &layout,
        &mut |block: &BlockRef| home.store.load(block).ok_or(io::ErrorKind::NotFound.into()),
    )
    .unwrap()
}

fn torrent_file(home: &Home, version: &PackageVersion) -> PathBuf {
    home.registry_path().join(format!(
        "packages/{}/{}/{}.torrent",
        version.name,
        version.version,
        version.tree_name()
    ))
}

#[tokio::test]
async fn a_seeded_version_has_a_torrent_beside_its_manifest() {
    let (home, tree) = (Home::new(), tree());
    let version = package("acme/tool@1.0.0-rc.1");
    home.publish(tree.path(), options("acme/tool@1.0.0-rc.1", true))
        .await
        .unwrap();
    let manifest = home.manifest(&version).unwrap();
    let named = manifest.torrent.unwrap();
    let info = again(&home, &manifest);
    assert_eq!(hex::encode(info.hash()), hex::encode(named.info_hash));
    assert_eq!(named.piece_length, 1 << 20);
    assert_eq!(home.state.seeding().list(), std::slice::from_ref(&version));
    assert_eq!(
        home.state.seeding().info(&named.info_hash).unwrap(),
        Some(info.clone())
    );

    let written = fs::read(torrent_file(&home, &version)).unwrap();
    let parsed = torrent_from_bytes(&written).unwrap();
    assert_eq!(parsed.info_hash.0, named.info_hash);
    assert_eq!(parsed.announce.unwrap().as_ref(), TRACKERS[0].as_bytes());
    let tiers: Vec<Vec<&[u8]>> = parsed
        .announce_list
        .iter()
        .map(|tier| tier.iter().map(AsRef::as_ref).collect())
        .collect();
    assert_eq!(tiers, TRACKERS.map(|tracker| vec![tracker.as_bytes()]));
    let url = b"8:url-listl27:https://example.org/mirror/ee";
    assert!(
        written.ends_with(url),
        "{:?}",
        String::from_utf8_lossy(&written[written.len() - 60..])
    );
    // What is parsed and written again is the same: it was canonical.
    let info_bytes: &[u8] = parsed.info.raw_bytes.as_ref();
    assert_eq!(info_bytes, &info.bytes()[..]);

    // Equal trees under one name and version give equal info hashes, in any home.
    let other = Home::new();
    other
        .publish(tree.path(), options("acme/tool@1.0.0-rc.1", false))
        .await
        .unwrap();
    assert_eq!(other.manifest(&version).unwrap().torrent, Some(named));
    assert!(!torrent_file(&other, &version).exists());
    assert!(other.state.seeding().list().is_empty());
    // Asked for later, when nothing else is new.
    let outcome = other
        .publish(tree.path(), options("acme/tool@1.0.0-rc.1", true))
        .await
        .unwrap();
    assert!(!outcome.changed);
    assert_eq!(fs::read(torrent_file(&other, &version)).unwrap(), written);
    // And it outlives the process.
    let other = other.restart();
    assert_eq!(other.state.seeding().list(), [version]);
}

#[tokio::test]
async fn what_cannot_be_a_torrent_is_published_without_one_unless_it_is_to_be_seeded() {
    let home = Home::new();
    let dir = tempdir();
    fs::write(dir.path().join("file"), "text").unwrap();
    symlink("../outside", dir.path().join("leaves")).unwrap();
    let wanted = |seed| {
        let mut options = options("tool@1.0.0", seed);
        options.allow.links = true;
        options
    };
    match home.publish(dir.path(), wanted(true)).await {
        Err(error @ PublishError::NoTorrent(NotOffered::Link { row: 2 })) => {
            assert!(error.hint().is_some());
        }
        other => panic!("{other:?}"),
    }
    assert!(files(&home.registry_path()).is_empty());
    home.publish(dir.path(), wanted(false)).await.unwrap();
    assert_eq!(home.manifest(&package("tool@1.0.0")).unwrap().torrent, None);
    // It exists now, and still has none.
    assert!(home.publish(dir.path(), wanted(true)).await.is_err());
    assert!(home.state.seeding().list().is_empty());
}

#[tokio::test]
async fn a_refused_tree_leaves_nobody_waiting_for_its_pieces() {
    let (home, tree) = (Home::new(), tree());
    fs::write(tree.path().join("small/.env"), "SECRET=1").unwrap();
    match home.publish(tree.path(), options("tool@1.0.0", true)).await {
        Err(PublishError::Refused(_)) => {}
        other => panic!("{other:?}"),
    }
}

/// A swarm of which only the torrent's bytes are known: no digest, no path.
struct Swarm {
    bytes: Vec<u8>,
    asked: Mutex<Vec<Arc<Torrent>>>,
}

#[async_trait]
impl BlockSource for Swarm {
    fn name(&self) -> &str {
        "swarm"
    }

    fn kind(&self) -> SourceKind {
        SourceKind::Torrent
    }

    async fn fetch(&self, want: &Want, _: &Spill) -> Result<Bytes, SourceError> {
        let place = want.torrent.as_ref();
        let place = place.ok_or_else(|| SourceError::not_found("no place in a torrent"))?;
        self.asked.lock().push(Arc::clone(&place.torrent));
        let start = place.offset as usize;
        let bytes = &self.bytes[start..start + want.block.len() as usize];
        Ok(Bytes::copy_from_slice(bytes))
    }
}

/// Returns all bytes of a version's torrent, out of the store.
fn all_bytes(home: &Home, manifest: &Manifest) -> Vec<u8> {
    let catalog = home.catalog(manifest);
    let layout = Layout::of(&catalog).unwrap();
    let mut bytes = vec![0; layout.bytes() as usize];
    for span in layout.spans(0..layout.bytes()) {
        for at in span.bytes.clone().step_by(BLOCK_BYTES as usize) {
            let here = layout.spans(at..span.bytes.end).next().unwrap();
            if let Some((block, within)) =
                block_at(&catalog, &manifest.catalog, here.place).unwrap()
            {
                assert_eq!(within, 0);
                let block = home.store.load(&block).unwrap();
                let start = at as usize;
                bytes[start..start + block.bytes().len()].copy_from_slice(block.bytes());
            }
        }
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_finds_every_block_by_its_place_in_the_torrent_alone() {
    let (home, tree) = (Home::new(), tree());
    home.publish(tree.path(), options("acme/tool@1.0.0", true))
        .await
        .unwrap();
    let version = package("acme/tool@1.0.0");
    let manifest = home.manifest(&version).unwrap();

    let reader = home::Home::new(TrustPolicy::clone(&trusting(1)));
    let swarm = Arc::new(Swarm {
        bytes: all_bytes(&home, &manifest),
        asked: Mutex::default(),
    });
    reader
        .fetcher
        .set_sources(vec![Arc::clone(&swarm) as Arc<dyn BlockSource>]);
    reader.updater.update(&*home.registry).await.unwrap();
    let listed = reader.listing.find(&version.name, None).unwrap();
    let installed = reader.installer.install(&listed).await.unwrap();
    {
        let asked = swarm.asked.lock();
        assert!(!asked.is_empty());
        for torrent in asked.iter() {
            // The layout is not known before the catalog is.
            assert_eq!(torrent.bytes, None);
            assert_eq!(torrent.info_hash, manifest.torrent.unwrap().info_hash);
            assert_eq!(torrent.piece_bytes, 1 << 20);
            assert_eq!(torrent.trackers, TRACKERS);
        }
    }
    swarm.asked.lock().clear();
    for number in 0..installed.rows() {
        let row = installed.row(number).unwrap();
        if row.kind() != Kind::File {
            continue;
        }
        for index in 0..row.blocks() {
            let block = installed.block(&row, index).unwrap();
            let want = want_of(&listed, &installed, number, block).unwrap();
            reader
                .fetcher
                .get(want, Priority::Foreground)
                .await
                .unwrap();
        }
    }
    let asked = swarm.asked.lock();
    assert!(asked.len() > 100, "{}", asked.len());
    let bytes = Some(swarm.bytes.len() as u64);
    assert!(asked.iter().all(|torrent| torrent.bytes == bytes));
    // One object for all, so that it can be told by its address.
    assert!(asked.iter().all(|torrent| Arc::ptr_eq(torrent, &asked[0])));
}
