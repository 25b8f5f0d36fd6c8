//! What an admin does with the store: warm, pin, unpin, evict.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::StreamExt;

use super::look::served;
use super::{catalog_failure, fetch_failure, install_failure};
use crate::block::FileRef;
use crate::catalog::Kind;
use crate::daemon::{Home, Target, subtree};
use crate::fetch::Priority;
use crate::install::{Listed, Tree, want_of};
use crate::serve::control::{Done, Failure, FailureKind, Progress, Replies};
use crate::state::Pin;

/// Blocks in flight while warming.
const AHEAD: usize = 48;

impl Home {
    /// Fetches what is not here yet, and makes it durable. What was fetched before an interruption is not fetched again.
    pub(super) async fn warm(
        &self,
        targets: &[String],
        replies: &Replies,
    ) -> Result<Done, Failure> {
        let mut done = Done::default();
        let before = self.fetcher.report();
        for text in targets {
            let (target, version) = self.find(text)?;
            let (tree, top, _) = self.row(&target, &version).await?;
            self.warm_one(&version, &tree, top, replies, &mut done)
                .await?;
        }
        let store = Arc::clone(&self.store);
        let synced = tokio::task::spawn_blocking(move || store.sync())
            .await
            .map_err(Failure::failed)?;
        synced.map_err(|error| Failure::failed(&error))?;
        done.sources = served(&before, self.fetcher.report());
        Ok(done)
    }

    async fn warm_one(
        &self,
        version: &Arc<Listed>,
        tree: &Arc<Tree>,
        top: u32,
        replies: &Replies,
        done: &mut Done,
    ) -> Result<(), Failure> {
        let failed = |error| catalog_failure(version, &error);
        let total = version.manifest().bytes;
        let wants = subtree::rows(tree, top).flat_map(|found| {
            let (number, row) = match found {
                Ok(found) => found,
                Err(error) => return vec![Err(error)],
            };
            (0..row.blocks())
                .map(|index| Ok((number, tree.block(&row, index)?, index == 0)))
                .collect()
        });
        let one = |found: Result<_, _>| async move {
            let (number, block, first) = found.map_err(failed)?;
            let len = u64::from(crate::block::BlockRef::len(&block));
            // Present is enough: what is damaged is fetched again when it is read.
            if self.store.has(&block) {
                return Ok((len, 0, first));
            }
            let want = want_of(version, tree, number, block).map_err(failed)?;
            self.fetcher
                .get(want, Priority::Warm)
                .await
                .map_err(|error| fetch_failure(&error))?;
            if self.store.has(&block) {
                return Ok((len, len, first));
            }
            Err(
                Failure::failed(format!("{} does not fit the store", version.package()))
                    .hint("raise [store] quota, unpin something, or free space on its disk"),
            )
        };
        let mut fetches = futures::stream::iter(wants)
            .map(one)
            .buffer_unordered(AHEAD);
        while let Some(fetched) = fetches.next().await {
            let (bytes, moved, first) = fetched?;
            done.files += u64::from(first);
            done.bytes += bytes;
            done.moved += moved;
            replies.progress(Progress {
                step: "warm".into(),
                done: done.bytes,
                total,
                bytes: true,
            });
        }
        Ok(())
    }

    pub(super) async fn pin(&self, targets: &[String]) -> Result<Done, Failure> {
        let mut done = Done::default();
        for text in targets {
            let (target, version) = self.find(text)?;
            let files = self.files(&target, &version).await?;
            if self
                .state
                .pins()
                .add(pin_of(&target))
                .map_err(Failure::failed)?
            {
                files.iter().for_each(|file| self.store.protect(file));
            }
            done.files += files.len() as u64;
            done.bytes += files.iter().map(|file| file.size).sum::<u64>();
        }
        Ok(done)
    }

    pub(super) async fn unpin(&self, targets: &[String]) -> Result<Done, Failure> {
        let mut done = Done::default();
        for text in targets {
            let target = self.target(text)?;
            if !self
                .state
                .pins()
                .remove(&pin_of(&target))
                .map_err(Failure::failed)?
            {
                return Err(Failure::new(
                    FailureKind::NotFound,
                    format!("{text} is not pinned"),
                ));
            }
            // One that is listed no more has no files to let go.
            if let Ok(version) = target.find(&self.listing) {
                let files = self.files(&target, &version).await?;
                files.iter().for_each(|file| self.store.unprotect(file));
                done.files += files.len() as u64;
            }
        }
        Ok(done)
    }

    pub(super) async fn evict(&self, targets: &[String]) -> Result<Done, Failure> {
        let mut done = Done::default();
        let mut files = BTreeSet::new();
        let mut all: Vec<(Target, Arc<Listed>)> = Vec::new();
        if targets.is_empty() {
            for (name, versions, _) in self.listing.all() {
                all.extend(
                    versions
                        .into_iter()
                        .filter(|version| version.tree().is_some())
                        .map(|version| {
                            let of = Some(version.package().version.clone());
                            (
                                Target {
                                    name: name.clone(),
                                    version: of,
                                    path: Vec::new(),
                                },
                                version,
                            )
                        }),
                );
            }
        }
        for text in targets {
            all.push(self.find(text)?);
        }
        for (target, version) in all {
            for file in self.files(&target, &version).await? {
                files.insert((file.id, file.size));
            }
        }
        // What was read a moment ago may still be on its way into the store.
        self.fetcher.written().await;
        for (id, size) in files {
            let file = FileRef { id, size };
            done.kept += u64::from(self.store.is_protected(&file));
            let freed = self.store.evict(&file);
            done.files += u64::from(freed > 0);
            done.bytes += freed;
            done.moved += freed;
        }
        // What is evicted must not be answered from memory either.
        self.fetcher.forget();
        Ok(done)
    }

    /// Returns the files that a target means, each once, empty ones left out.
    async fn files(&self, target: &Target, version: &Arc<Listed>) -> Result<Vec<FileRef>, Failure> {
        let (tree, top, _) = self.row(target, version).await?;
        let mut files = BTreeSet::new();
        for found in subtree::rows(&tree, top) {
            let (_, row) = found.map_err(|error| catalog_failure(version, &error))?;
            if row.kind() == Kind::File && row.size() > 0 {
                files.insert((row.file().id, row.size()));
            }
        }
        Ok(files
            .into_iter()
            .map(|(id, size)| FileRef { id, size })
            .collect())
    }

    /// Protects what is pinned, as far as its catalog is here.
    pub(in crate::daemon) fn protect_pins(self: &Arc<Self>) {
        let pins = self.state.pins().list();
        if pins.is_empty() {
            return;
        }
        let home = Arc::clone(self);
        self.tasks.spawn(async move {
            for pin in pins {
                let path = pin.path.clone().unwrap_or_default().into_bytes();
                let target = Target {
                    name: pin.name.clone(),
                    version: pin.version.clone(),
                    path,
                };
                let Ok(version) = target.find(&home.listing) else {
                    continue;
                };
                if !home.store.complete(&version.manifest().catalog.file()) {
                    continue;
                }
                match home.files(&target, &version).await {
                    Ok(files) => files.iter().for_each(|file| home.store.protect(file)),
                    Err(failure) => tracing::warn!(%pin, %failure, "not protected from eviction"),
                }
            }
        });
    }
}

fn pin_of(target: &Target) -> Pin {
    Pin {
        name: target.name.clone(),
        version: target.version.clone(),
        path: if target.path.is_empty() {
            None
        } else {
            Some(String::from_utf8_lossy(&target.path).into_owned())
        },
    }
}

/// Lets an installation's failure be a pin's.
impl From<crate::install::InstallError> for Failure {
    fn from(error: crate::install::InstallError) -> Self {
        install_failure(&error)
    }
}
