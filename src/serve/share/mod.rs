//! What a home shares: the versions that its configuration names, and what was published in it.
//!
//! [`Share`] finds nodes by digest for the gateway. The index of the store says in which shared version a digest
//! occurs and as what; a block then comes from the store, verified, and an inner node or a directory is built again from
//! the version's catalog. So nothing is kept twice, and what no shared version has is not found, whatever else the store
//! holds. Envelopes come from what is listed, as received: only what passed the trust policy is handed on.
//!
//! A version is offered once its nodes are in the index ([`Share::refresh`]), so that nobody is told of a version whose
//! blocks are then not found.

mod rebuild;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::block::{BlockRef, Digest};
use crate::catalog::CatalogError;
use crate::install::{
    CATALOG_ROW, IndexingError, Installer, Listed, Listing, Tree, catalog_file, index_version,
};
use crate::manifest::{PackageName, PackageVersion, Pattern};
use crate::registry::{self, Directory, Moment, Place, Registry, RegistryError};
use crate::state::State;
use crate::store::{Index, IndexError, NodeKind, NodeRef, ReadOutcome, Store, Wait};

use super::gateway::{Shared, SharedError};
use crate::registry::changes::Cursor;

use rebuild::Rebuilder;

/// The parts of a home that sharing reads.
pub struct Parts {
    /// Holds the blocks.
    pub store: Arc<Store>,
    /// Says where a digest occurs.
    pub index: Arc<Index>,
    /// Says which versions are trusted.
    pub listing: Arc<Listing>,
    /// Opens their catalogs.
    pub installer: Arc<Installer>,
    /// Holds the envelopes, and says what was published here.
    pub state: Arc<State>,
    /// Where large directories are kept while they are being sent; files in it have no names.
    pub scratch: PathBuf,
}

/// Which packages are shared.
struct Rules {
    patterns: Vec<Pattern>,
    own: HashSet<PackageVersion>,
}

impl Rules {
    fn version(&self, package: &PackageVersion) -> bool {
        self.patterns
            .iter()
            .any(|pattern| pattern.matches(&package.name))
            || self.own.contains(package)
    }

    fn package(&self, name: &PackageName) -> bool {
        self.patterns.iter().any(|pattern| pattern.matches(name))
            || self.own.iter().any(|package| package.name == *name)
    }
}

/// What a home shares.
pub struct Share {
    parts: Parts,
    rules: ArcSwap<Rules>,
    /// The slots of versions whose nodes are in the index.
    ready: RwLock<HashSet<u32>>,
    rebuilder: Rebuilder,
    envelopes: Directory,
    /// A number of this run, so that a cursor of an earlier one is no cursor of this.
    life: u64,
    count: watch::Sender<u64>,
    listed: Arc<Notify>,
    /// `packages.json` as it was at that count.
    names: Mutex<Option<(u64, Bytes)>>,
    refreshing: tokio::sync::Mutex<()>,
}

impl Share {
    /// Shares the packages that `patterns` match and what was published here. Nothing is offered before
    /// [`Share::refresh`] or [`Share::run`].
    pub fn new(parts: Parts, patterns: Vec<Pattern>) -> Arc<Share> {
        let listed = Arc::new(Notify::new());
        follow(&parts.listing, Arc::downgrade(&listed));
        Arc::new(Share {
            rules: ArcSwap::from_pointee(Rules {
                patterns,
                own: HashSet::new(),
            }),
            ready: RwLock::default(),
            rebuilder: Rebuilder::new(parts.scratch.clone()),
            envelopes: Directory::new(parts.state.listed().dir()),
            life: rand::random(),
            count: watch::Sender::new(1),
            listed,
            names: Mutex::new(None),
            refreshing: tokio::sync::Mutex::new(()),
            parts,
        })
    }

    /// Shares other packages from now on.
    pub async fn set_patterns(self: &Arc<Self>, patterns: Vec<Pattern>) {
        self.rules.rcu(|rules| Rules {
            patterns: patterns.clone(),
            own: rules.own.clone(),
        });
        self.refresh().await;
        self.bump();
    }

    /// Returns whether a version is shared, be it offered yet or not.
    pub fn is_shared(&self, package: &PackageVersion) -> bool {
        self.rules.load().version(package)
    }

    /// Follows what is listed, and offers what is shared of it, until `shutdown`.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.follow() => {}
        }
    }

    async fn follow(self: &Arc<Self>) {
        let mut moment = Moment::default();
        loop {
            let changed = tokio::select! {
                () = self.listed.notified() => true,
                now = self.envelopes.changed(moment) => {
                    let changed = now != moment;
                    moment = now;
                    changed
                }
            };
            self.refresh().await;
            if changed {
                self.bump();
            }
        }
    }

    /// Brings the index up to date: puts the nodes of each shared version whose catalog is here into it.
    ///
    /// A version that cannot be opened is passed over and tried again the next time.
    pub async fn refresh(self: &Arc<Self>) {
        let _turn = self.refreshing.lock().await;
        let share = Arc::clone(self);
        let candidates = blocking(move || {
            share.refresh_own();
            Ok(share.candidates())
        });
        let mut news = false;
        for listed in candidates.await.unwrap_or_default() {
            match self.make_ready(&listed).await {
                Ok(()) => news = true,
                Err(error) => {
                    tracing::warn!(package = %listed.package(), %error, "not shared yet");
                }
            }
        }
        if news {
            self.bump();
        }
    }

    /// Returns the versions that could be offered and are not yet. Blocking.
    fn candidates(&self) -> Vec<Arc<Listed>> {
        let all = self.parts.listing.all();
        all.into_iter()
            .flat_map(|(_, versions, _)| versions)
            .filter(|listed| {
                self.is_shared(listed.package()) && !self.is_ready(listed) && self.is_here(listed)
            })
            .collect()
    }

    fn refresh_own(&self) {
        match self.parts.state.published().versions() {
            Ok(own) => {
                let own: HashSet<_> = own.into_iter().collect();
                if self.rules.load().own != own {
                    self.rules.rcu(|rules| Rules {
                        patterns: rules.patterns.clone(),
                        own: own.clone(),
                    });
                }
            }
            Err(error) => tracing::warn!(%error, "what was published here cannot be listed"),
        }
    }

    /// Puts a version whose catalog is here into the index, if it is not there already.
    async fn make_ready(&self, listed: &Arc<Listed>) -> Result<(), SharedError> {
        let id = listed.manifest_id().0;
        if self.parts.index.version(listed.slot())? != Some(id) {
            let tree = self.tree(listed).await?;
            let (index, version) = (Arc::clone(&self.parts.index), Arc::clone(listed));
            blocking(move || {
                let manifest = version.manifest();
                Ok(index_version(&index, version.slot(), manifest, &tree)?)
            })
            .await?;
        }
        self.ready.write().insert(listed.slot());
        Ok(())
    }

    fn is_ready(&self, listed: &Listed) -> bool {
        self.ready.read().contains(&listed.slot())
    }

    fn is_here(&self, listed: &Listed) -> bool {
        let file = catalog_file(listed.manifest());
        self.parts.store.complete(&file)
    }

    /// Opens the catalog of a version if it is here. Nothing is fetched for others.
    async fn tree(&self, listed: &Arc<Listed>) -> Result<Arc<Tree>, SharedError> {
        if let Some(tree) = listed.tree() {
            return Ok(tree);
        }
        if !self.is_here(listed) {
            return Err(SharedError::Absent);
        }
        let installed = self.parts.installer.install(listed).await;
        installed.map_err(|error| SharedError::Failed(error.to_string()))
    }

    fn bump(&self) {
        self.count.send_modify(|count| *count += 1);
    }

    /// Returns the places of a digest in versions that are shared and trusted.
    fn places(&self, digest: &Digest) -> Result<Vec<(NodeRef, Arc<Listed>)>, SharedError> {
        let found = self.parts.index.find(digest)?;
        let rules = self.rules.load();
        let places = found.into_iter().filter_map(|place| {
            let listed = self.parts.listing.by_slot(place.slot)?;
            (!listed.is_gone() && rules.version(listed.package())).then_some((place, listed))
        });
        Ok(places.collect())
    }

    /// Returns the block that a place means.
    async fn block(
        &self,
        digest: Digest,
        row: u32,
        index: u64,
        listed: &Arc<Listed>,
    ) -> Result<BlockRef, SharedError> {
        let file = if row == CATALOG_ROW {
            catalog_file(listed.manifest())
        } else {
            self.tree(listed).await?.row(row)?.file()
        };
        Ok(BlockRef {
            file,
            index,
            digest,
        })
    }

    /// Reads a block from the store, or finds that it is not there.
    async fn read(&self, block: BlockRef) -> Result<Bytes, SharedError> {
        if block.is_empty() {
            // No file has an empty block but the empty file, which is its own digest.
            let empty = block.digest == Digest::EMPTY;
            return if empty {
                Ok(Bytes::new())
            } else {
                Err(SharedError::Absent)
            };
        }
        let store = &self.parts.store;
        let mut bytes = vec![0; block.len() as usize];
        // Most blocks that are asked for are in the page cache; then no other thread is needed.
        if store.read_verified(&block, 0, &mut bytes, Wait::No) == ReadOutcome::Done {
            return Ok(bytes.into());
        }
        let store = Arc::clone(store);
        let read = blocking(move || {
            if store.read_verified(&block, 0, &mut bytes, Wait::Yes) == ReadOutcome::Done {
                return Ok(Some(bytes.into()));
            }
            Ok(store.load(&block).map(crate::block::Block::into_bytes))
        });
        read.await?.ok_or(SharedError::Absent)
    }

    async fn node_at(
        &self,
        digest: Digest,
        place: NodeRef,
        listed: Arc<Listed>,
    ) -> Result<Bytes, SharedError> {
        match place.what {
            NodeKind::Block { index } => {
                let block = self.block(digest, place.row, index, &listed).await?;
                self.read(block).await
            }
            NodeKind::Node(node) => {
                if let Some(bytes) = self.rebuilder.known(&digest) {
                    return Ok(bytes);
                }
                let tree = self.tree(&listed).await?;
                let index = Arc::clone(&self.parts.index);
                let rebuilder = self.rebuilder.clone();
                blocking(move || rebuilder.rebuild(&index, &listed, &tree, place.row, node, digest))
                    .await
            }
        }
    }

    /// Returns whether a manifest may be handed out: shared, trusted, and found if it is asked for its blocks.
    fn is_offered(&self, listed: &Listed) -> bool {
        if !self.is_shared(listed.package()) {
            return false;
        }
        if self.is_ready(listed) || !self.is_here(listed) {
            return true;
        }
        // Installed since the last look: `run` is to look now.
        self.listed.notify_one();
        false
    }

    async fn names(&self) -> Result<Bytes, SharedError> {
        let count = *self.count.borrow();
        if let Some((at, bytes)) = &*self.names.lock()
            && *at == count
        {
            return Ok(bytes.clone());
        }
        let mut listing = registry::Listing::default();
        for name in self.envelopes.names().await? {
            if !self.rules.load().package(&name) {
                continue;
            }
            // Also without any version: whoever has one listed must learn that it was withdrawn.
            listing.insert(&name, None);
            for listed in self.parts.listing.versions(&name) {
                if self.is_offered(&listed) {
                    listing.insert(&name, Some(&listed.package().version));
                }
            }
        }
        let bytes = Bytes::from(listing.to_string());
        *self.names.lock() = Some((count, bytes.clone()));
        Ok(bytes)
    }
}

/// Wakes `listed` whenever the listing changes, on a thread that ends with either of them.
pub(super) fn follow(listing: &Listing, listed: Weak<Notify>) {
    let changes = listing.changes();
    let following = move || {
        while changes.recv().is_ok() {
            while changes.try_recv().is_ok() {}
            match listed.upgrade() {
                Some(listed) => listed.notify_one(),
                None => break,
            }
        }
    };
    let started = std::thread::Builder::new()
        .name("manifs-share".to_owned())
        .spawn(following);
    if let Err(error) = started {
        tracing::error!(%error, "what is newly listed is shared late");
    }
}

async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> Result<T, SharedError> + Send + 'static,
) -> Result<T, SharedError> {
    let done = tokio::task::spawn_blocking(job).await;
    done.unwrap_or_else(|error| Err(SharedError::Failed(error.to_string())))
}

#[async_trait]
impl Shared for Share {
    async fn node(&self, digest: Digest) -> Result<Option<Bytes>, SharedError> {
        let mut outcome = Ok(None);
        for (place, listed) in self.places(&digest)? {
            match self.node_at(digest, place, listed).await {
                Ok(bytes) => return Ok(Some(bytes)),
                Err(error) => outcome = Err(error),
            }
        }
        outcome
    }

    async fn node_len(&self, digest: Digest) -> Result<Option<u64>, SharedError> {
        for (place, listed) in self.places(&digest)? {
            let NodeKind::Block { index } = place.what else {
                continue;
            };
            let block = self.block(digest, place.row, index, &listed).await?;
            if block.is_empty() || self.parts.store.has(&block) {
                return Ok(Some(u64::from(block.len())));
            }
        }
        let node = self.node(digest).await?;
        Ok(node.map(|bytes| bytes.len() as u64))
    }

    async fn file(&self, place: &Place) -> Result<Option<Bytes>, SharedError> {
        match place {
            Place::Listing => self.names().await.map(Some),
            Place::Index(name) if self.rules.load().package(name) => {
                Ok(self.envelopes.index(name).await?)
            }
            Place::Manifest(package) => {
                let listed = self
                    .parts
                    .listing
                    .find(&package.name, Some(&package.version));
                match listed {
                    Some(listed) if self.is_offered(&listed) => {
                        Ok(self.envelopes.manifest(package).await?)
                    }
                    _ => Ok(None),
                }
            }
            Place::Index(_) | Place::Sums(_) | Place::Torrent(_) | Place::Key(_) => Ok(None),
        }
    }

    async fn changed(&self, since: Option<&Cursor>) -> Cursor {
        let mut count = self.count.subscribe();
        loop {
            let now = Cursor::new(self.life, *count.borrow_and_update());
            if since != Some(&now) || count.changed().await.is_err() {
                return now;
            }
        }
    }
}

impl From<IndexError> for SharedError {
    fn from(error: IndexError) -> Self {
        SharedError::Failed(error.to_string())
    }
}

impl From<IndexingError> for SharedError {
    fn from(error: IndexingError) -> Self {
        match error {
            IndexingError::Catalog(error) => error.into(),
            IndexingError::Index(error) => error.into(),
        }
    }
}

impl From<std::io::Error> for SharedError {
    fn from(error: std::io::Error) -> Self {
        SharedError::Failed(error.to_string())
    }
}

impl From<RegistryError> for SharedError {
    fn from(error: RegistryError) -> Self {
        SharedError::Failed(error.to_string())
    }
}

impl From<CatalogError> for SharedError {
    fn from(error: CatalogError) -> Self {
        match error.missing_block() {
            // A block of the catalog was evicted by hand or damaged; it comes back when somebody enters the version.
            Some(_) => SharedError::Absent,
            None => SharedError::Failed(error.to_string()),
        }
    }
}
