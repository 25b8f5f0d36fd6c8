//! A torrent that its publisher crafted: every piece is right by the info dictionary, and none by the signed digests.
//!
//! BitTorrent's own check passes, so that any other program would keep and hand on such bytes. Here they are worth
//! nothing: not stored, not served, an error where there is nobody else, and no hindrance where there is.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use manifs::block::{BLOCK_BYTES, BlockRef, Digest};
use manifs::catalog::Kind;
use manifs::fetch::Priority;
use manifs::install::{Listed, Tree, want_of};
use manifs::manifest::{Manifest, ManifestFields, PackageVersion, TorrentRef, TrustPolicy};
use manifs::net::{AddressFilter, Client};
use manifs::publish::Options;
use manifs::registry::{Announcement, Registry as _};
use manifs::source::torrent::{Patience, Settings, Swarms};
use manifs::source::{BlockSource, SourceError, SourceKind, Spill, Want};
use manifs::torrent::{Info, Layout, Outline, Place};
use sha1::{Digest as _, Sha1};

use crate::common::home;
use crate::common::peer::{Conduct, Held, Peer};
use crate::common::publishing::{Home, files, tempdir, trusting};
use crate::common::signed::{index, key, package, sign};

const VERSION: &str = "acme/tool@1.0.0";

/// What fills every file of the crafted torrent, and is nowhere in the signed tree.
const POISON: u8 = b'P';

/// The signed version, and a torrent with its catalog, its layout and other bytes, which its manifest names.
struct Crafted {
    manifest: Manifest,
    torrent: Held,
    /// What the signed digests stand for.
    right: HashMap<Digest, Bytes>,
}

async fn craft() -> Crafted {
    let (home, source) = (Home::new(), tempdir());
    let version = package(VERSION);
    for (name, len) in [("small", 1000), ("smaller", 77), ("large", 2_500_000)] {
        let bytes: Vec<u8> = (0..len).map(|at: u32| (at % 79) as u8).collect();
        std::fs::write(source.path().join(name), bytes).unwrap();
    }
    let options = Options::new(version.clone());
    home.publish(source.path(), options).await.unwrap();
    let honest = home.manifest(&version).unwrap();
    let catalog = home.catalog(&honest);
    let layout = Layout::of(&catalog).unwrap();
    let signed = home.read(honest.catalog.file(), &honest.catalog.blocks);
    let mut bytes = vec![0; layout.bytes() as usize];
    for span in layout.spans(0..layout.bytes()) {
        let range = span.bytes.start as usize..span.bytes.end as usize;
        match span.place {
            Place::Catalog { .. } => bytes[range.clone()].copy_from_slice(&signed[range]),
            Place::File { .. } => bytes[range].fill(POISON),
            Place::Padding => {}
        }
    }
    let pieces = bytes.chunks(layout.piece_bytes() as usize);
    let hashes: Vec<[u8; 20]> = pieces.map(|piece| Sha1::digest(piece).into()).collect();
    let outline = Outline::new(&version.tree_name(), &catalog, &layout).unwrap();
    let info = outline.finish(&hashes).unwrap();
    // Honest as far as BitTorrent goes: the dictionary has this hash, and the pieces have its hashes.
    assert!(Info::verify(info.bytes().clone(), &info.hash()).is_ok());
    let mut fields = ManifestFields::clone(&honest);
    fields.torrent = Some(TorrentRef {
        info_hash: info.hash(),
        piece_length: layout.piece_bytes(),
    });
    let mut right = HashMap::new();
    for name in ["small", "smaller", "large"] {
        for block in home.content(&catalog, name).chunks(BLOCK_BYTES as usize) {
            right.insert(Digest::of(block), Bytes::copy_from_slice(block));
        }
    }
    Crafted {
        manifest: Manifest::new(&fields).unwrap(),
        torrent: Held {
            info_hash: info.hash(),
            piece_bytes: layout.piece_bytes() as u32,
            bytes: bytes.into(),
        },
        right,
    }
}

/// A reader that has nothing but the signed envelopes.
async fn reader(crafted: &Crafted) -> home::Home {
    let reader = home::Home::new(TrustPolicy::clone(&trusting(1)));
    let key = key(1);
    let index = index("acme/tool", 1, &[&crafted.manifest]);
    let announcement = Announcement {
        package: package(VERSION),
        manifest: Some(sign(crafted.manifest.clone(), &[&key]).bytes().clone()),
        sums: None,
        torrent: None,
        index: Some(sign(index, &[&key]).bytes().clone()),
        replaces: None,
        keys: Vec::new(),
    };
    reader.registry.put(announcement).await.unwrap();
    reader.update().await;
    reader
}

fn swarms(peers: &[Peer]) -> Arc<Swarms> {
    let settings = Settings {
        client: Client::new(manifs::net::Options {
            filter: AddressFilter::new(vec!["127.0.0.1".parse().unwrap()]),
            ..Default::default()
        }),
        peers: peers.iter().map(|peer| peer.address.to_string()).collect(),
        finder: None,
    };
    Swarms::new(settings, Patience::default())
}

/// Enters the version, whose catalog the crafted torrent has.
async fn enter(reader: &home::Home) -> (Arc<Listed>, Arc<Tree>) {
    let version: PackageVersion = package(VERSION);
    let listed = reader.listing.find(&version.name, None).unwrap();
    let tree = reader.installer.install(&listed).await.unwrap();
    (listed, tree)
}

/// Returns every block of every file, and what to ask for to get it.
fn wants(listed: &Listed, tree: &Tree) -> Vec<(BlockRef, Want)> {
    let mut wants = Vec::new();
    for number in 0..tree.rows() {
        let row = tree.row(number).unwrap();
        if row.kind() == Kind::File {
            for index in 0..row.blocks() {
                let block = tree.block(&row, index).unwrap();
                wants.push((block, want_of(listed, tree, number, block).unwrap()));
            }
        }
    }
    wants
}

fn assert_nothing_of_it_is_kept(reader: &home::Home) {
    for (path, bytes) in files(&reader.directory.path().join("store")) {
        let poisoned = bytes.windows(64).any(|window| window == [POISON; 64]);
        assert!(!poisoned, "{} holds bytes of the lie", path.display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn right_pieces_of_a_crafted_torrent_are_neither_believed_nor_kept() {
    let crafted = craft().await;
    let peers = [Peer::start(&crafted.torrent, Conduct::Honest).await];
    let swarms = swarms(&peers);
    let reader = reader(&crafted).await;
    let source = Arc::clone(&swarms) as Arc<dyn BlockSource>;
    reader.fetcher.set_sources(vec![source]);
    let (listed, tree) = enter(&reader).await;
    let wants = wants(&listed, &tree);
    assert_eq!(wants.len(), 5);
    for (block, want) in wants {
        let error = reader
            .fetcher
            .get(want, Priority::Foreground)
            .await
            .unwrap_err();
        assert!(!error.to_string().is_empty());
        assert!(!reader.store.has(&block) && reader.store.load(&block).is_none());
        assert!(reader.fetcher.at_hand(&block).is_none());
    }
    assert!(peers[0].served() > 0, "it was asked");
    let reports = swarms.peers();
    assert_eq!(reports.len(), 1);
    assert!(
        reports[0].lies >= 2 && reports[0].banned,
        "whoever sends it is struck: {reports:?}"
    );
    reader.fetcher.close().await;
    swarms.close().await;
    // What is served, by gateway or as a seed, comes out of the store.
    assert_nothing_of_it_is_kept(&reader);
}

/// Has the signed bytes.
struct Honest(HashMap<Digest, Bytes>);

#[async_trait]
impl BlockSource for Honest {
    fn name(&self) -> &str {
        "honest"
    }

    fn kind(&self) -> SourceKind {
        SourceKind::Gateway
    }

    async fn fetch(&self, want: &Want, _: &Spill) -> Result<Bytes, SourceError> {
        let found = self.0.get(&want.block.digest).cloned();
        found.ok_or_else(|| SourceError::not_found("not of the tree"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_source_serves_what_a_crafted_torrent_cannot() {
    let crafted = craft().await;
    // Two of them, who agree with each other.
    let peers = [
        Peer::start(&crafted.torrent, Conduct::Honest).await,
        Peer::start(&crafted.torrent, Conduct::Honest).await,
    ];
    let swarms = swarms(&peers);
    let reader = reader(&crafted).await;
    let swarm = Arc::clone(&swarms) as Arc<dyn BlockSource>;
    reader.fetcher.set_sources(vec![Arc::clone(&swarm)]);
    // The catalog comes from the swarm, which is therefore known to be quick and right.
    let (listed, tree) = enter(&reader).await;
    let honest = Arc::new(Honest(crafted.right.clone()));
    reader.fetcher.set_sources(vec![swarm, honest]);
    for (block, want) in wants(&listed, &tree) {
        let got = reader.fetcher.get(want, Priority::Warm).await.unwrap();
        assert_eq!(got.bytes(), &crafted.right[&block.digest]);
        assert!(reader.store.load(&block).is_some());
    }
    reader.fetcher.close().await;
    swarms.close().await;
    assert_nothing_of_it_is_kept(&reader);
}
