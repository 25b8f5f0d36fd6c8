//! Bytes of files, verified, without a mount.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use serde_json::Value;

use super::look::base;
use super::{catalog_failure, catalog_failure_of, fetch_failure, value};
use crate::block::{BLOCK_BYTES, Block, BlockRef};
use crate::catalog::{CatalogError, Kind, Row, WholeFile, links, verify_ids};
use crate::daemon::{Home, Target, subtree};
use crate::fetch::Priority;
use crate::install::{Listed, Tree, catalog_want, want_of};
use crate::manifest::Manifest;
use crate::serve::control::{
    Done, EntryItem, Failure, FailureKind, Progress, Replies, Verification,
};
use crate::source::Want;

/// Blocks of one request in flight.
const AHEAD: usize = 16;

/// A file that a target names, of an installed version.
struct FileOf {
    version: Arc<Listed>,
    tree: Arc<Tree>,
    number: u32,
    row: Row,
}

/// A tree, or a part of it, that is sent: of a listed version, or of one that is being published.
pub(super) struct Sending<'a> {
    pub(super) manifest: &'a Manifest,
    pub(super) tree: &'a Arc<Tree>,
    /// None while nobody lists it; all of it is in the store then.
    pub(super) listed: Option<&'a Listed>,
    pub(super) top: u32,
    /// Whether the catalog goes along.
    pub(super) mirror: bool,
}

impl Sending<'_> {
    fn failure(&self, error: &CatalogError) -> Failure {
        catalog_failure_of(&self.manifest.package, error)
    }

    fn want(&self, number: u32, index: u64) -> Result<Want, CatalogError> {
        let row = self.tree.row(number)?;
        let block = self.tree.block(&row, index)?;
        match self.listed {
            Some(version) => want_of(version, self.tree, number, block),
            None => Ok(Want::new(block)),
        }
    }

    /// Returns the bytes of everything that is sent.
    fn size(&self) -> Result<u64, Failure> {
        let catalog = if self.mirror {
            self.manifest.catalog.size
        } else {
            0
        };
        if self.top == 0 {
            return Ok(self.manifest.bytes + catalog);
        }
        let mut bytes = catalog;
        for found in subtree::rows(self.tree, self.top) {
            let (_, row) = found.map_err(|error| self.failure(&error))?;
            bytes += if row.kind() == Kind::File {
                row.size()
            } else {
                0
            };
        }
        Ok(bytes)
    }
}

impl Home {
    pub(super) async fn read(
        &self,
        target: &str,
        offset: u64,
        len: Option<u64>,
        replies: &Replies,
    ) -> Result<Value, Failure> {
        let file = self.file(target).await?;
        let until = len.map_or(u64::MAX, |len| offset.saturating_add(len));
        let mut parts = std::pin::pin!(self.span(&file, offset..until));
        while let Some(part) = parts.next().await {
            replies.data(part?).await?;
        }
        value(())
    }

    /// Returns the bytes `span` of a file, every one verified; fewer where the file ends before.
    ///
    /// `target` is what the command line takes: `name[@version]/path`, or a path below a mount of this home. Links inside
    /// the version are followed. Fetches what is not stored, and installs the version first if need be.
    ///
    /// # Errors
    /// [`Failure`]: no such version or file, refused by the trust policy, no source that answers.
    pub async fn read_range(&self, target: &str, span: Range<u64>) -> Result<Bytes, Failure> {
        let file = self.file(target).await?;
        let parts: Vec<Bytes> = self.span(&file, span).try_collect().await?;
        Ok(match <[Bytes; 1]>::try_from(parts) {
            Ok([part]) => part,
            Err(parts) => parts.concat().into(),
        })
    }

    async fn file(&self, target: &str) -> Result<FileOf, Failure> {
        let (target, version) = self.find(target)?;
        let tree = self.tree(&version).await?;
        let path = || String::from_utf8_lossy(&target.path).into_owned();
        let found = links::resolve(&tree, &target.path);
        match found.map_err(|error| catalog_failure(&version, &error))? {
            Some((number, row)) if row.kind() == Kind::File => Ok(FileOf {
                version,
                tree,
                number,
                row,
            }),
            Some(_) => Err(Failure::failed(format!("{:?} is a directory", path()))
                .hint("`manifs ls` lists it, `manifs fetch` copies it")),
            None => {
                let message = format!("{} has no file {:?}", version.package(), path());
                Err(Failure::new(FailureKind::NotFound, message))
            }
        }
    }

    /// Sends the bytes of a span in order, blocks fetched ahead; what lies behind the file's end is left out.
    fn span<'a>(
        &'a self,
        file: &'a FileOf,
        span: Range<u64>,
    ) -> impl Stream<Item = Result<Bytes, Failure>> + 'a {
        let span = span.start..span.end.min(file.row.size()).max(span.start);
        let blocks = if span.is_empty() {
            0..0
        } else {
            span.start / BLOCK_BYTES..span.end.div_ceil(BLOCK_BYTES)
        };
        futures::stream::iter(blocks)
            .map(move |index| async move {
                let block = self.block(
                    &file.version,
                    &file.tree,
                    file.number,
                    index,
                    Priority::Foreground,
                );
                Ok((index * BLOCK_BYTES, block.await?))
            })
            .buffered(AHEAD)
            .map_ok(move |(start, block)| {
                let within = |at: u64| {
                    let at = at.saturating_sub(start);
                    usize::try_from(at)
                        .map_or(block.bytes().len(), |at| at.min(block.bytes().len()))
                };
                block.bytes().slice(within(span.start)..within(span.end))
            })
    }

    async fn block(
        &self,
        version: &Arc<Listed>,
        tree: &Arc<Tree>,
        number: u32,
        index: u64,
        priority: Priority,
    ) -> Result<Block, Failure> {
        let failed = |error| catalog_failure(version, &error);
        let row = tree.row(number).map_err(failed)?;
        let want = tree
            .block(&row, index)
            .and_then(|block| want_of(version, tree, number, block))
            .map_err(failed)?;
        self.fetcher
            .get(want, priority)
            .await
            .map_err(|error| fetch_failure(&error))
    }

    /// Sends everything below a target: each entry, and after a file's its bytes. Blocks are fetched ahead, across
    /// files, so that many small ones are no slower than one large one.
    pub(super) async fn fetch(&self, target: &str, replies: &Replies) -> Result<Done, Failure> {
        let (target, version) = self.find(target)?;
        self.send_listed(&target, &version, false, replies).await
    }

    /// Sends a whole version, its catalog included.
    pub(super) async fn mirror(&self, target: &str, replies: &Replies) -> Result<Done, Failure> {
        let (target, version) = self.find(target)?;
        if !target.path.is_empty() {
            let message = "a mirror holds whole versions";
            return Err(Failure::new(FailureKind::Usage, message).hint("name one without a path"));
        }
        self.send_listed(&target, &version, true, replies).await
    }

    async fn send_listed(
        &self,
        target: &Target,
        version: &Arc<Listed>,
        mirror: bool,
        replies: &Replies,
    ) -> Result<Done, Failure> {
        let (tree, top, _) = self.row(target, version).await?;
        let sending = Sending {
            manifest: version.manifest(),
            tree: &tree,
            listed: Some(version),
            top,
            mirror,
        };
        self.send_tree(&sending, replies).await
    }

    pub(super) async fn send_tree(
        &self,
        sending: &Sending<'_>,
        replies: &Replies,
    ) -> Result<Done, Failure> {
        let Sending { tree, top, .. } = *sending;
        let failed = |error| sending.failure(&error);
        let row = tree.row(top).map_err(failed)?;
        let base = base(tree, top, &row).map_err(failed)?;
        let mut done = Done::default();
        replies.progress(Progress {
            step: "fetch".into(),
            done: 0,
            total: sending.size()?,
            bytes: true,
        });
        let steps = subtree::rows(tree, top).flat_map(|found| {
            let (number, blocks) = match &found {
                Ok((number, row)) => (*number, row.blocks()),
                Err(_) => (0, 0),
            };
            let blocks = (0..blocks).map(move |index| Ok((number, Some(index))));
            std::iter::once(found.map(|(number, _)| (number, None))).chain(blocks)
        });
        let mut steps = futures::stream::iter(steps)
            .map(|step| async {
                let (number, index) = step.map_err(failed)?;
                let block = match index {
                    Some(index) => {
                        let want = sending.want(number, index).map_err(failed)?;
                        let got = self.fetcher.get(want, Priority::Warm).await;
                        Some(got.map_err(|error| fetch_failure(&error))?)
                    }
                    None => None,
                };
                Ok::<_, Failure>((number, block))
            })
            .buffered(AHEAD);
        while let Some(step) = steps.next().await {
            let (number, block) = step?;
            if let Some(block) = block {
                done.bytes += block.bytes().len() as u64;
                replies.data(block.into_bytes()).await?;
                continue;
            }
            let row = tree.row(number).map_err(failed)?;
            done.files += u64::from(row.kind() == Kind::File);
            let item = self.entry_item(tree, number, &row, base, true);
            replies.item(&item.map_err(failed)?).await?;
            if sending.mirror && number == 0 {
                self.send_catalog(sending, &row, replies).await?;
            }
        }
        Ok(done)
    }

    /// Sends the catalog as a file of the tree.
    async fn send_catalog(
        &self,
        sending: &Sending<'_>,
        root: &Row,
        replies: &Replies,
    ) -> Result<(), Failure> {
        let catalog = &sending.manifest.catalog;
        let blocks = (0..).zip(&catalog.blocks).map(|(index, digest)| BlockRef {
            file: catalog.file(),
            index,
            digest: *digest,
        });
        let blocks: Vec<BlockRef> = blocks.collect();
        let get = |block: BlockRef| async move {
            let want = match sending.listed {
                Some(version) => catalog_want(version, block),
                None => Want::new(block),
            };
            let got = self.fetcher.get(want, Priority::Warm).await;
            got.map_err(|error| fetch_failure(&error))
        };
        let mut whole = WholeFile::default();
        for block in &blocks {
            let block = get(*block).await?;
            let hash = move || {
                whole.add(block.bytes());
                whole
            };
            whole = tokio::task::spawn_blocking(hash)
                .await
                .map_err(Failure::failed)?;
        }
        let item = |path: &str, kind: &str, mode| EntryItem {
            path: path.to_owned(),
            kind: kind.to_owned(),
            mode,
            mtime_ns: root.mtime_ns(),
            ..EntryItem::default()
        };
        replies.item(&item(".manifs", "directory", 0o755)).await?;
        let file = EntryItem {
            size: catalog.size,
            digest: Some(whole.digest().to_string()),
            cid: catalog.cid().to_string(),
            ..item(".manifs/catalog", "file", 0o644)
        };
        replies.item(&file).await?;
        for block in blocks {
            replies.data(get(block).await?.into_bytes()).await?;
        }
        Ok(())
    }

    /// Fetches and checks everything of a version: every block, and the id of every entry.
    pub(super) async fn verify(
        &self,
        target: &str,
        replies: &Replies,
    ) -> Result<Verification, Failure> {
        let (target, version) = self.find(target)?;
        let (tree, top, _) = self.row(&target, &version).await?;
        let checked = Arc::clone(&tree);
        let ids = tokio::task::spawn_blocking(move || verify_ids(&checked))
            .await
            .map_err(Failure::failed)?;
        ids.map_err(|error| Failure::new(FailureKind::Refused, catalog_failure(&version, &error)))?;
        let mut verification = Verification {
            package: version.package().to_string(),
            id: version.manifest_id().to_string(),
            signers: version.signers().map(|key| key.to_string()).collect(),
            ..Verification::default()
        };
        for found in subtree::rows(&tree, top) {
            let (number, row) = found.map_err(|error| catalog_failure(&version, &error))?;
            if row.kind() != Kind::File {
                continue;
            }
            let mut blocks = futures::stream::iter(0..row.blocks())
                .map(|index| self.block(&version, &tree, number, index, Priority::Warm))
                .buffered(AHEAD);
            let mut whole = WholeFile::default();
            while let Some(block) = blocks.next().await {
                let block = block?;
                // The digest of a file's only block is that of the whole.
                if row.blocks() > 1 {
                    let hash = move || {
                        whole.add(block.bytes());
                        whole
                    };
                    whole = tokio::task::spawn_blocking(hash)
                        .await
                        .map_err(Failure::failed)?;
                }
            }
            if row.blocks() > 1 {
                whole.check(&tree, &row).map_err(|error| {
                    Failure::new(FailureKind::Refused, catalog_failure(&version, &error))
                })?;
            }
            verification.files += 1;
            verification.bytes += row.size();
            replies.progress(Progress {
                step: "verify".into(),
                done: verification.bytes,
                total: version.manifest().bytes,
                bytes: true,
            });
        }
        Ok(verification)
    }
}
