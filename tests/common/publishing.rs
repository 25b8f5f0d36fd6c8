//! A home that publishes: store, state, a registry directory and a key that it trusts.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use manifs::block::{BLOCK_BYTES, BlockRef, FileRef};
use manifs::catalog::Catalog;
use manifs::manifest::{
    Envelope, Manifest, PackageName, PackageVersion, PrivateKey, ReleaseIndex, Signed, TrustPolicy,
    Version,
};
use manifs::publish::{Options, Outcome, Prepared, Progress, PublishError, Publisher};
use manifs::registry::{Announcement, Directory, Moment, Registry, RegistryError};
use manifs::state::State;
use manifs::store::{self, Store, Verify};
use parking_lot::Mutex;
use tempfile::TempDir;

use super::signed::key;

/// A home in its own temporary directory.
pub(crate) struct Home {
    pub(crate) dir: TempDir,
    pub(crate) store: Arc<Store>,
    pub(crate) state: Arc<State>,
    pub(crate) publisher: Arc<Publisher>,
    pub(crate) registry: Arc<dyn Registry>,
    pub(crate) trust: Arc<TrustPolicy>,
    pub(crate) key: PrivateKey,
}

/// Makes a temporary directory in memory where that can be had: a publish syncs its whole file system, and others'
/// work on it with it.
pub(crate) fn tempdir() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

/// Trusts one key for everything.
pub(crate) fn trusting(number: u8) -> Arc<TrustPolicy> {
    let mut policy = TrustPolicy::parse("").unwrap();
    let pattern = "*".parse().unwrap();
    policy.add(&pattern, &key(number).public(), None).unwrap();
    Arc::new(policy)
}

impl Home {
    pub(crate) fn new() -> Home {
        Home::with_quota(8 << 30)
    }

    pub(crate) fn with_quota(quota: u64) -> Home {
        Home::open(tempdir(), quota)
    }

    pub(crate) fn open(dir: TempDir, quota: u64) -> Home {
        let options = store::Options {
            quota,
            verify: Verify::FirstTouch,
        };
        let store = Store::open(&dir.path().join("store"), options).unwrap();
        let state = Arc::new(State::open(&dir.path().join("state")).unwrap());
        let homes = vec![dir.path().to_path_buf()];
        Home {
            publisher: Publisher::new(Arc::clone(&store), Arc::clone(&state), homes),
            registry: Arc::new(Directory::new(dir.path().join("registry"))),
            trust: trusting(1),
            key: key(1),
            dir,
            store,
            state,
        }
    }

    /// Ends the process and starts another, as far as this can be had within one.
    pub(crate) fn restart(self) -> Home {
        let Home {
            dir,
            store,
            state,
            publisher,
            registry,
            ..
        } = self;
        let quota = store.usage().quota;
        drop((publisher, registry, store));
        assert_eq!(Arc::strong_count(&state), 1, "nothing keeps the state open");
        drop(state);
        Home::open(dir, quota)
    }

    pub(crate) async fn prepare(
        &self,
        tree: &Path,
        options: Options,
    ) -> Result<Prepared, PublishError> {
        let (registry, trust) = (Arc::clone(&self.registry), Arc::clone(&self.trust));
        let progress = Arc::new(Progress::new());
        self.publisher
            .prepare(directory(tree), options, registry, trust, progress)
            .await
    }

    pub(crate) async fn publish(
        &self,
        tree: &Path,
        options: Options,
    ) -> Result<Outcome, PublishError> {
        let (registry, trust) = (Arc::clone(&self.registry), Arc::clone(&self.trust));
        let progress = Arc::new(Progress::new());
        self.publisher
            .publish(
                directory(tree),
                options,
                registry,
                trust,
                &self.key,
                progress,
            )
            .await
    }

    pub(crate) fn registry_path(&self) -> PathBuf {
        self.dir.path().join("registry")
    }

    /// Returns the release index that this home published.
    pub(crate) fn index(&self, package: &PackageVersion) -> Option<ReleaseIndex> {
        let bytes = self.state.published().index(&package.name).unwrap()?;
        match Envelope::parse(&bytes).unwrap().unverified() {
            Signed::Index(index) => Some(index.clone()),
            Signed::Manifest(_) => panic!("a manifest in the place of an index"),
        }
    }

    /// Returns the envelope of that index.
    pub(crate) fn index_bytes(&self, package: &PackageVersion) -> Vec<u8> {
        self.state
            .published()
            .index(&package.name)
            .unwrap()
            .expect("it was published")
    }

    /// Returns a manifest that this home published.
    pub(crate) fn manifest(&self, package: &PackageVersion) -> Option<Manifest> {
        let bytes = self.state.published().manifest(package).unwrap()?;
        match Envelope::parse(&bytes).unwrap().unverified() {
            Signed::Manifest(manifest) => Some(manifest.clone()),
            Signed::Index(_) => panic!("an index in the place of a manifest"),
        }
    }

    /// Reads all of a file out of the store, every block verified.
    pub(crate) fn read(&self, file: FileRef, blocks: &[manifs::block::Digest]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (index, digest) in (0..).zip(blocks) {
            let place = BlockRef {
                file,
                index,
                digest: *digest,
            };
            bytes.extend_from_slice(self.store.load(&place).expect("it was published").bytes());
        }
        bytes
    }

    /// Returns the catalog of a manifest, out of the store.
    pub(crate) fn catalog(&self, manifest: &Manifest) -> Catalog<Vec<u8>> {
        let bytes = self.read(manifest.catalog.file(), &manifest.catalog.blocks);
        let len = bytes.len() as u64;
        Catalog::open(bytes, len).unwrap()
    }

    /// Returns the bytes of a file of a catalog, out of the store.
    pub(crate) fn content(&self, catalog: &Catalog<Vec<u8>>, path: &str) -> Vec<u8> {
        let (_, row) = catalog
            .find(path.as_bytes())
            .unwrap()
            .expect("it is in the catalog");
        let blocks = match row.size() {
            0 => Vec::new(),
            size if size <= BLOCK_BYTES => vec![row.id()],
            _ => catalog.digests(&row, 0..row.blocks()).unwrap(),
        };
        self.read(row.file(), &blocks)
    }
}

/// Opens a directory to be published.
pub(crate) fn directory(path: &Path) -> OwnedFd {
    File::open(path).unwrap().into()
}

/// Returns every file below a directory, with its bytes.
pub(crate) fn files(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut left = vec![path.to_path_buf()];
    while let Some(next) = left.pop() {
        let Ok(entries) = std::fs::read_dir(&next) else {
            continue;
        };
        for entry in entries.map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                left.push(entry);
            } else {
                found.push((entry.clone(), std::fs::read(&entry).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// How a registry fails.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// It takes nothing.
    Before,
    /// It takes everything, and the answer is lost: as if the publisher had died just then.
    After,
    /// Somebody else was faster.
    Conflict,
}

/// A registry that fails when told to.
pub(crate) struct Failing {
    inner: Arc<dyn Registry>,
    pub(crate) fault: Mutex<Fault>,
}

fn unavailable() -> RegistryError {
    RegistryError::Unavailable {
        registry: "test".to_owned(),
        reason: "told to fail".to_owned(),
        retry_after: None,
    }
}

#[async_trait]
impl Registry for Failing {
    fn name(&self) -> &str {
        self.inner.name()
    }

    async fn names(&self) -> Result<Vec<PackageName>, RegistryError> {
        self.inner.names().await
    }

    async fn index(&self, name: &PackageName) -> Result<Option<Bytes>, RegistryError> {
        self.inner.index(name).await
    }

    async fn versions(&self, name: &PackageName) -> Result<Vec<Version>, RegistryError> {
        self.inner.versions(name).await
    }

    async fn manifest(&self, package: &PackageVersion) -> Result<Option<Bytes>, RegistryError> {
        self.inner.manifest(package).await
    }

    async fn sums(&self, package: &PackageVersion) -> Result<Option<Bytes>, RegistryError> {
        self.inner.sums(package).await
    }

    async fn put(&self, announcement: Announcement) -> Result<(), RegistryError> {
        let fault = *self.fault.lock();
        match fault {
            Fault::Before => Err(unavailable()),
            Fault::Conflict => Err(RegistryError::Conflict {
                path: "index.json".to_owned(),
            }),
            Fault::After => {
                self.inner.put(announcement).await?;
                Err(unavailable())
            }
            Fault::None => self.inner.put(announcement).await,
        }
    }

    async fn changed(&self, since: Moment) -> Moment {
        self.inner.changed(since).await
    }
}

/// Puts a registry that fails before a home's own.
pub(crate) fn failing(home: &mut Home, fault: Fault) -> Arc<Failing> {
    let failing = Arc::new(Failing {
        inner: Arc::clone(&home.registry),
        fault: Mutex::new(fault),
    });
    home.registry = failing.clone();
    failing
}
