//! Gets a version's whole catalog into the store and validates it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt, Shared};
use tokio_util::task::TaskTracker;

use super::tree::{catalog_file, catalog_want, torrent_layout};
use super::{Listed, PageCache, StoredCatalog, Tree};
use crate::block::BlockRef;
use crate::catalog::{self, Catalog, CatalogError, Totals};
use crate::fetch::{FetchError, Fetcher, Priority};
use crate::manifest::{Manifest, PackageVersion};
use crate::store::{Store, StoreError};

/// Blocks of one catalog in flight at a time.
const BLOCKS_IN_FLIGHT: usize = 8;

/// Why a version is not installed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum InstallError {
    /// A block of the catalog could not be had.
    #[error("installing {package}: {source}")]
    Fetch {
        /// The version.
        package: PackageVersion,
        /// What the sources said.
        source: FetchError,
    },
    /// The catalog's bytes are the signed ones, and they break the format.
    #[error("installing {package}: its catalog is not valid: {source}")]
    Catalog {
        /// The version.
        package: PackageVersion,
        /// The rule it breaks.
        source: Arc<CatalogError>,
    },
    /// The catalog cannot be kept, so it cannot be read by position.
    #[error("installing {package}: its catalog cannot be stored: {source}")]
    Store {
        /// The version.
        package: PackageVersion,
        /// What the store said.
        source: Arc<StoreError>,
    },
    /// Its release index is expired or too old, so nothing new is installed on its word.
    #[error("{package} is not installed: its release index is stale")]
    Stale {
        /// The version.
        package: PackageVersion,
    },
    /// Nobody installed it by hand, and entering is not to.
    #[error("{package} is not installed, and entering a version does not install it")]
    NotByHand {
        /// The version.
        package: PackageVersion,
    },
    /// The daemon is shutting down.
    #[error("stopped")]
    Stopped,
}

pub(super) type Installing = Shared<BoxFuture<'static, Result<Arc<Tree>, InstallError>>>;

/// Installs versions, each by one task however many wait for it.
pub struct Installer {
    store: Arc<Store>,
    fetcher: Fetcher,
    pages: Arc<PageCache>,
    tasks: TaskTracker,
    /// Whether only who asks for it by name has something installed.
    by_hand: AtomicBool,
}

impl Installer {
    /// Makes an installer whose tasks `tasks` owns.
    pub fn new(
        store: Arc<Store>,
        fetcher: Fetcher,
        pages: Arc<PageCache>,
        tasks: TaskTracker,
    ) -> Arc<Installer> {
        Arc::new(Installer {
            store,
            fetcher,
            pages,
            tasks,
            by_hand: AtomicBool::new(false),
        })
    }

    /// Says whether entering a version installs it, or only who asks for it by name.
    pub fn set_by_hand(&self, by_hand: bool) {
        self.by_hand.store(by_hand, Ordering::Relaxed);
    }

    /// As [`Installer::install`], for who walks into a version; a catalog that is stored needs no installing.
    ///
    /// # Errors
    /// [`InstallError`]
    pub async fn enter(self: &Arc<Self>, version: &Arc<Listed>) -> Result<Arc<Tree>, InstallError> {
        if self.by_hand.load(Ordering::Relaxed)
            && version.tree().is_none()
            && !self.store.complete(&catalog_file(version.manifest()))
        {
            return Err(InstallError::NotByHand {
                package: version.package().clone(),
            });
        }
        self.install(version).await
    }

    /// Returns the tree of `version`, fetching and validating its catalog first if need be.
    ///
    /// Dropping the future does not stop the installation: it is a task of its own.
    ///
    /// # Errors
    /// [`InstallError`]; the next call tries again.
    pub async fn install(
        self: &Arc<Self>,
        version: &Arc<Listed>,
    ) -> Result<Arc<Tree>, InstallError> {
        if let Some(tree) = version.tree() {
            return Ok(tree);
        }
        let installing = {
            let mut slot = version.installing.lock();
            match slot
                .as_ref()
                .filter(|installing| installing.peek().is_none())
            {
                Some(installing) => installing.clone(),
                None => {
                    let (installer, version) = (Arc::clone(self), Arc::clone(version));
                    let task = self
                        .tasks
                        .spawn(async move { installer.run(&version).await });
                    let installing =
                        async move { task.await.unwrap_or(Err(InstallError::Stopped)) }
                            .boxed()
                            .shared();
                    *slot = Some(installing.clone());
                    installing
                }
            }
        };
        installing.await
    }

    /// Opens the catalog of a version that this home has made and nobody lists yet. Blocking.
    ///
    /// # Errors
    /// [`CatalogError`] when it is not whole in the store.
    pub fn open_own(&self, manifest: &Manifest) -> Result<Tree, CatalogError> {
        let reader = StoredCatalog::new(Arc::clone(&self.store), Arc::clone(&self.pages), manifest);
        for block in (0..).map_while(|index| reader.block(index)) {
            // Sets its mark; a missing one is found when it is read.
            self.store.load(&block);
        }
        Catalog::open(reader, manifest.catalog.size)
    }

    /// Fetches one block of an installed catalog again: evicted by hand, or damaged on disk.
    ///
    /// # Errors
    /// [`InstallError::Fetch`] when no source has it.
    pub async fn heal(&self, version: &Arc<Listed>, block: u64) -> Result<(), InstallError> {
        let Some(tree) = version.tree() else {
            return Ok(());
        };
        let Some(block) = tree.reader().block(block) else {
            return Ok(());
        };
        self.bring(version, block, Priority::Foreground).await
    }

    async fn run(&self, version: &Arc<Listed>) -> Result<Arc<Tree>, InstallError> {
        let package = version.package();
        let reader = StoredCatalog::new(
            Arc::clone(&self.store),
            Arc::clone(&self.pages),
            version.manifest(),
        );
        let file = reader.file();
        // A freeze shuts nobody out of what was installed before.
        if version.is_stale() && !self.store.complete(&file) {
            return Err(InstallError::Stale {
                package: package.clone(),
            });
        }
        // Before the first block, so that the second does not push it out.
        self.store.protect(&file);
        let outcome = self.fill_and_validate(version, reader).await;
        match outcome {
            Ok(tree) => {
                let tree = Arc::new(tree);
                version.set_tree(Arc::clone(&tree));
                tracing::info!(%package, rows = tree.rows(), "installed");
                Ok(tree)
            }
            Err(error) => {
                self.store.unprotect(&file);
                tracing::warn!(%package, %error, "not installed");
                Err(error)
            }
        }
    }

    async fn fill_and_validate(
        &self,
        version: &Arc<Listed>,
        reader: StoredCatalog,
    ) -> Result<Tree, InstallError> {
        let package = version.package();
        let blocks = (0..).map_while(|index| reader.block(index));
        let mut fetches = futures::stream::iter(blocks)
            .map(|block| self.bring(version, block, Priority::Foreground))
            .buffer_unordered(BLOCKS_IN_FLIGHT);
        while let Some(fetched) = fetches.next().await {
            fetched?;
        }
        drop(fetches);
        let manifest = version.manifest();
        let (len, root) = (manifest.catalog.size, manifest.root);
        let totals = Totals {
            files: manifest.files,
            directories: manifest.directories,
            bytes: manifest.bytes,
        };
        let validate = move || {
            catalog::validate(&reader, len, &totals, root)?;
            let tree = Catalog::open(reader, len)?;
            // Here, where it may take its time: later a read would wait for it, on a thread of the mount.
            torrent_layout(&tree)?;
            Ok(tree)
        };
        let validated = tokio::task::spawn_blocking(validate)
            .await
            .map_err(|_| InstallError::Stopped)?;
        validated.map_err(|source| InstallError::Catalog {
            package: package.clone(),
            source: Arc::new(source),
        })
    }

    /// Makes sure that a block of a catalog is in the store and verified.
    async fn bring(
        &self,
        version: &Listed,
        block: BlockRef,
        priority: Priority,
    ) -> Result<(), InstallError> {
        let package = || version.package().clone();
        let fetched = self
            .fetcher
            .get(catalog_want(version, block), priority)
            .await;
        let fetched = fetched.map_err(|source| InstallError::Fetch {
            package: package(),
            source,
        })?;
        let store = Arc::clone(&self.store);
        // The fetcher stores what it fetches, but a block from its memory tier may have been evicted since, and a full
        // disk is no error for it; here it is one.
        let stored = tokio::task::spawn_blocking(move || {
            if store.verified(&block) {
                Ok(())
            } else {
                store.put(&block, &fetched)
            }
        });
        let stored = stored.await.map_err(|_| InstallError::Stopped)?;
        // Catalogs are read page by page from the store; whole blocks would only push out those that files need.
        self.fetcher.release(&block);
        stored.map_err(|source| InstallError::Store {
            package: package(),
            source: Arc::new(source),
        })
    }
}
