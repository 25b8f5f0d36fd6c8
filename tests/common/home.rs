//! A home without a daemon: state, store, listing, and how versions get into it.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use manifs::block::{BLOCK_BYTES, Block, BlockRef, Digest, FileRef};
use manifs::catalog::{Kind, NewEntry, Times, Writer};
use manifs::fetch::{Fetcher, Shelf};
use manifs::install::{Installer, Listing, PageCache, Updater};
use manifs::manifest::{CatalogBlocks, Envelope, Manifest, PackageName, TrustPolicy};
use manifs::registry::{Announcement, Directory, Registry};
use manifs::serve::share::{Parts, Share};
use manifs::state::State;
use manifs::store::{Index, Options, Store, Verify};
use manifs::unixfs::file;
use tempfile::TempDir;
use tokio_util::task::TaskTracker;

use super::signed;

/// An entry of a tree, by path.
pub(crate) enum Entry {
    File(Vec<u8>),
    Symlink(&'static str),
    Directory,
}

/// A tree by path; parents that are not listed are made.
pub(crate) type Tree = BTreeMap<String, Entry>;

pub(crate) struct Home {
    pub(crate) directory: TempDir,
    pub(crate) store: Arc<Store>,
    pub(crate) index: Arc<Index>,
    pub(crate) state: Arc<State>,
    pub(crate) listing: Arc<Listing>,
    pub(crate) fetcher: Fetcher,
    pub(crate) installer: Arc<Installer>,
    pub(crate) updater: Updater,
    pub(crate) registry: Directory,
}

struct StoreShelf(Arc<Store>);

impl Shelf for StoreShelf {
    fn has(&self, block: &BlockRef) -> bool {
        self.0.has(block)
    }

    fn load(&self, block: &BlockRef) -> Option<Block> {
        self.0.load(block)
    }

    fn find(&self, _: &Digest) -> Option<BlockRef> {
        None
    }

    fn put(&self, place: &BlockRef, block: &Block) -> bool {
        self.0.put(place, block).is_ok()
    }
}

impl Home {
    pub(crate) fn new(policy: TrustPolicy) -> Home {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let options = Options {
            quota: 1 << 34,
            verify: Verify::FirstTouch,
        };
        let store = Store::open(&path.join("store"), options).unwrap();
        let index = Arc::new(Index::open(&path.join("index.redb")).unwrap());
        let state = Arc::new(State::open(&path.join("state")).unwrap());
        let numbers = Arc::clone(&state);
        let listing = Arc::new(Listing::new(move |names| {
            let (numbers, saved) = numbers.numbers().assign(names);
            saved.unwrap();
            numbers
        }));
        let fetcher = Fetcher::new(
            manifs::fetch::Options::default(),
            Arc::new(StoreShelf(Arc::clone(&store))),
            tokio::runtime::Handle::current(),
        );
        let installer = Installer::new(
            Arc::clone(&store),
            fetcher.clone(),
            Arc::new(PageCache::default()),
            TaskTracker::new(),
        );
        let updater = Updater::new(Arc::clone(&listing), Arc::clone(&state), policy);
        let registry = Directory::new(path.join("registry"));
        Home {
            directory,
            store,
            index,
            state,
            listing,
            fetcher,
            installer,
            updater,
            registry,
        }
    }

    pub(crate) fn share(&self, patterns: &[&str]) -> Arc<Share> {
        let parts = Parts {
            store: Arc::clone(&self.store),
            index: Arc::clone(&self.index),
            listing: Arc::clone(&self.listing),
            installer: Arc::clone(&self.installer),
            state: Arc::clone(&self.state),
            scratch: self.directory.path().to_path_buf(),
        };
        let patterns = patterns.iter().map(|text| text.parse().unwrap());
        Share::new(parts, patterns.collect())
    }

    /// Puts a tree into the store and announces it in the home's registry, signed by key 1.
    pub(crate) async fn publish(&self, package: &str, tree: &Tree, sequence: u64) -> Manifest {
        let manifest = self.seal(package, tree);
        let key = signed::key(1);
        let name = &manifest.package.name;
        let before = self.registry.index(name).await.unwrap();
        let mut named = vec![manifest.clone()];
        for version in self.registry.versions(name).await.unwrap() {
            let package = manifs::manifest::PackageVersion::new(name.clone(), version);
            let bytes = self.registry.manifest(&package).await.unwrap().unwrap();
            let envelope = Envelope::parse(&bytes).unwrap();
            if let manifs::manifest::Signed::Manifest(manifest) = envelope.unverified() {
                named.push(manifest.clone());
            }
        }
        named.sort_by(|one, other| one.package.cmp(&other.package));
        let named: Vec<&Manifest> = named.iter().collect();
        let index = signed::index(name.as_str(), sequence, &named);
        let announcement = Announcement {
            package: manifest.package.clone(),
            manifest: Some(signed::sign(manifest.clone(), &[&key]).bytes().clone()),
            sums: None,
            torrent: None,
            index: Some(signed::sign(index, &[&key]).bytes().clone()),
            replaces: before.map(|bytes| Digest::of(&bytes)),
            keys: Vec::new(),
        };
        self.registry.put(announcement).await.unwrap();
        manifest
    }

    pub(crate) async fn update(&self) {
        self.updater.update(&self.registry).await.unwrap();
    }

    fn keep(&self, bytes: &[u8]) -> FileRef {
        let size = bytes.len() as u64;
        let blocks: Vec<&[u8]> = bytes
            .chunks(usize::try_from(BLOCK_BYTES).unwrap())
            .collect();
        let digests = blocks.iter().map(|block| Digest::of(block));
        let file = FileRef {
            id: file::root(size, digests).digest(),
            size,
        };
        for (index, block) in (0..).zip(blocks) {
            let block = Block::seal(Bytes::copy_from_slice(block));
            let place = BlockRef {
                file,
                index,
                digest: block.digest(),
            };
            self.store.put(&place, &block).unwrap();
        }
        file
    }

    fn seal(&self, package: &str, tree: &Tree) -> Manifest {
        let mut children: BTreeMap<String, BTreeMap<String, &Entry>> = BTreeMap::new();
        for (path, entry) in tree {
            let mut at = (path.as_str(), entry);
            while let (path, entry) = at
                && !path.is_empty()
            {
                let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
                children
                    .entry(parent.to_owned())
                    .or_default()
                    .entry(name.to_owned())
                    .or_insert(entry);
                at = (parent, &Entry::Directory);
            }
        }
        let mut writer = Writer::new(self.directory.path(), 0o755, 0).unwrap();
        while let Some((row, path)) = writer.next_directory().unwrap() {
            let path = String::from_utf8(path).unwrap();
            let entries = children.remove(&path).unwrap_or_default();
            let new: Vec<NewEntry> = entries
                .iter()
                .map(|(name, entry)| NewEntry {
                    name: name.as_bytes().to_vec(),
                    kind: match entry {
                        Entry::File(_) => Kind::File,
                        Entry::Symlink(_) => Kind::Symlink,
                        Entry::Directory => Kind::Directory,
                    },
                    mode: 0o755,
                    mtime_ns: 1_700_000_000_000_000_000,
                    size: match entry {
                        Entry::File(bytes) => bytes.len() as u64,
                        _ => 0,
                    },
                    target: match entry {
                        Entry::Symlink(target) => target.as_bytes().to_vec(),
                        _ => Vec::new(),
                    },
                })
                .collect();
            let first = writer.add_children(row, &new).unwrap();
            for (row, entry) in (first..).zip(entries.values()) {
                let Entry::File(bytes) = entry else { continue };
                let file = self.keep(bytes);
                if file.size <= BLOCK_BYTES {
                    writer.set_id(row, file.id).unwrap();
                } else {
                    let blocks = bytes.chunks(usize::try_from(BLOCK_BYTES).unwrap());
                    let digests: Vec<Digest> = blocks.map(Digest::of).collect();
                    writer.set_digests(row, 0, &digests).unwrap();
                    writer.set_whole(row, Digest::of(bytes), file.id).unwrap();
                }
            }
        }
        let sealed = writer.finish(Times::Newest, &mut |_, _| Ok(())).unwrap();
        let mut catalog = vec![0; usize::try_from(sealed.len).unwrap()];
        sealed.file.read_exact_at(&mut catalog, 0).unwrap();
        self.keep(&catalog);
        let blocks = catalog.chunks(usize::try_from(BLOCK_BYTES).unwrap());
        let mut fields = signed::manifest_fields(package, "");
        fields.files = sealed.totals.files;
        fields.directories = sealed.totals.directories;
        fields.bytes = sealed.totals.bytes;
        fields.root = sealed.root;
        fields.catalog = CatalogBlocks {
            size: sealed.len,
            blocks: blocks.map(Digest::of).collect(),
        };
        Manifest::new(&fields).unwrap()
    }
}

/// A tree with one of everything, and a directory that is large enough for shards.
pub(crate) fn varied(large: usize) -> Tree {
    let mut tree = Tree::new();
    let bytes = |seed: u64, len: usize| -> Vec<u8> {
        (seed..)
            .flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
            .take(len)
            .collect()
    };
    let mib = usize::try_from(BLOCK_BYTES).unwrap();
    for (path, entry) in [
        ("empty", Entry::File(Vec::new())),
        ("small", Entry::File(b"hello\n".to_vec())),
        ("one-block", Entry::File(bytes(1, mib))),
        ("a/big", Entry::File(bytes(2, 3 * mib + 7))),
        ("a/link", Entry::Symlink("../small")),
        ("a/b/c/deep", Entry::File(bytes(3, 100))),
        ("nothing", Entry::Directory),
        ("zeros", Entry::File(vec![0; 2 * mib])),
    ] {
        tree.insert(path.to_owned(), entry);
    }
    for nth in 0..large {
        let name = format!("large/entry number {nth:06} with a name that takes some room");
        let entry = match nth % 50 {
            0 => Entry::Directory,
            1 => Entry::Symlink("../small"),
            _ => Entry::File(nth.to_string().into_bytes()),
        };
        tree.insert(name, entry);
    }
    tree
}

/// The name of a package.
pub(crate) fn name(text: &str) -> PackageName {
    text.parse().unwrap()
}
