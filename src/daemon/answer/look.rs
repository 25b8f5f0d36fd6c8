//! Looking: status, packages, entries, manifests.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::{catalog_failure, value};
use crate::catalog::{Kind, Row};
use crate::daemon::{Home, subtree};
use crate::fetch::{Report, SourceReport};
use crate::install::{Listed, Tree};
use crate::manifest::PackageName;
use crate::serve::control::{
    EntryItem, Failure, FailureKind, Inspection, PackageItem, PeerStatus, Replies, Served,
    SourceStatus, Status, StoreStatus,
};
use crate::source::PeerReport;
use crate::torrent::{MetainfoHints, magnet};

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn source_status(source: SourceReport) -> SourceStatus {
    SourceStatus {
        kind: source.kind.name().to_owned(),
        blocks: source.blocks,
        bytes: source.bytes,
        missing: source.missing,
        beaten: source.beaten,
        failures: source.failures,
        lies: source.lies,
        in_flight: source.in_flight as u64,
        usual_ms: source.usual.map(milliseconds),
        resting_ms: source.resting.map(milliseconds),
        last_error: source.last_error,
        peers: source.peers.into_iter().map(peer_status).collect(),
        name: source.name,
    }
}

fn peer_status(peer: PeerReport) -> PeerStatus {
    PeerStatus {
        name: peer.name,
        client: peer.client,
        blocks: peer.blocks,
        bytes: peer.bytes,
        failures: peer.failures,
        lies: peer.lies,
        answer_ms: peer.usual.map(milliseconds),
        connected: peer.connected,
        banned: peer.banned,
        last_error: peer.last_error,
    }
}

/// Returns what each source delivered between two reports, the one that delivered most first.
pub(super) fn served(before: &Report, after: Report) -> Vec<Served> {
    let one = |source: SourceReport| {
        let old = before.sources.iter();
        let mut old = old.filter(|old| old.name == source.name && old.kind == source.kind);
        let (blocks, bytes) = old.next().map_or((0, 0), |old| (old.blocks, old.bytes));
        Served {
            kind: source.kind.name().to_owned(),
            blocks: source.blocks.saturating_sub(blocks),
            bytes: source.bytes.saturating_sub(bytes),
            usual_ms: source.usual.map(milliseconds),
            name: source.name,
        }
    };
    let mut served: Vec<Served> = after.sources.into_iter().map(one).collect();
    served.retain(|served| served.blocks > 0);
    served.sort_by_key(|served| std::cmp::Reverse(served.bytes));
    served
}

impl Home {
    pub(super) fn status(&self) -> Status {
        let usage = self.store.usage();
        let seeding = self.serving.seeding.load_full();
        let dropping = self.serving.dropping.load_full();
        let report = self.fetcher.report();
        let all = self.listing.all();
        let versions = || all.iter().flat_map(|(_, versions, _)| versions);
        Status {
            pid: if self.serving.is_running() {
                std::process::id()
            } else {
                0
            },
            version: env!("CARGO_PKG_VERSION").to_owned(),
            mounts: self.mounts.points(),
            ends_with_last_mount: self.serving.ends_with_last_mount(),
            gateway: self
                .serving
                .gateway()
                .map(|address| format!("http://{address}")),
            publish: dropping.as_ref().map(|dropping| dropping.status()),
            torrent: seeding.as_ref().map(|seeding| seeding.status()),
            problems: {
                let mut problems = self.notes.lock().clone();
                problems.extend(dropping.iter().flat_map(|dropping| dropping.problems()));
                problems.extend(seeding.iter().flat_map(|seeding| seeding.problems()));
                problems
            },
            packages: all.len() as u64,
            versions: versions().count() as u64,
            installed: versions()
                .filter(|version| self.is_installed(version))
                .count() as u64,
            store: StoreStatus {
                used: usage.used,
                quota: usage.quota,
                unevictable: usage.unevictable,
                files: usage.files,
                damaged: usage.damaged,
                failures: usage.failures,
            },
            fetched_bytes: report.fetched_bytes,
            fetched_blocks: report.fetched_blocks,
            sources: report.sources.into_iter().map(source_status).collect(),
            registries: self.registry_items(),
        }
    }

    pub(super) async fn list(
        &self,
        package: Option<&str>,
        all: bool,
        replies: &Replies,
    ) -> Result<Value, Failure> {
        let only = match package {
            Some(text) => Some(text.parse::<PackageName>().map_err(|error| {
                Failure::new(
                    FailureKind::Usage,
                    format!("{text:?} is not a package name: {error}"),
                )
            })?),
            None => None,
        };
        let wanted = |name: &PackageName| only.as_ref().is_none_or(|only| only == name);
        let mut found = false;
        for (name, versions, latest) in self
            .listing
            .all()
            .into_iter()
            .filter(|(name, ..)| wanted(name))
        {
            for version in versions {
                found = true;
                let is_latest = latest.as_ref() == Some(&version.package().version);
                replies
                    .item(&self.package_item(&name, &version, is_latest))
                    .await?;
            }
        }
        for (name, version, refusal) in self
            .listing
            .refusals()
            .into_iter()
            .filter(|(name, ..)| wanted(name))
        {
            if all || only.is_some() {
                found = true;
                let item = PackageItem {
                    name: name.to_string(),
                    version: version.map(|version| version.to_string()),
                    refused: Some(refusal.reason),
                    hint: refusal.hint,
                    ..PackageItem::default()
                };
                replies.item(&item).await?;
            }
        }
        match only {
            Some(name) if !found => Err(Failure::new(
                FailureKind::NotFound,
                format!("no package {name}"),
            )
            .hint("`manifs list --all` shows what there is, and what was refused and why")),
            _ => Ok(Value::Null),
        }
    }

    pub(super) async fn ls(
        &self,
        target: &str,
        recursive: bool,
        replies: &Replies,
    ) -> Result<Value, Failure> {
        let (target, version) = self.find(target)?;
        let (tree, top, row) = self.row(&target, &version).await?;
        let failed = |error| catalog_failure(&version, &error);
        let numbers: Box<dyn Iterator<Item = Result<(u32, Row), _>> + Send> = if recursive {
            Box::new(subtree::rows(&tree, top))
        } else if row.kind() == Kind::Directory {
            let tree = &tree;
            Box::new(
                row.children()
                    .map(move |number| Ok((number, tree.row(number)?))),
            )
        } else {
            Box::new(std::iter::once(Ok((top, row))))
        };
        let base = base(&tree, top, &row).map_err(failed)?;
        for found in numbers {
            let (number, row) = found.map_err(failed)?;
            let item = self
                .entry_item(&tree, number, &row, base, recursive)
                .map_err(failed)?;
            replies.item(&item).await?;
        }
        Ok(Value::Null)
    }

    /// Returns whether a version can be entered at once: its catalog is here, read already or not.
    fn is_installed(&self, version: &Listed) -> bool {
        version.tree().is_some() || self.store.complete(&version.manifest().catalog.file())
    }

    fn package_item(&self, name: &PackageName, version: &Arc<Listed>, latest: bool) -> PackageItem {
        PackageItem {
            installed: self.is_installed(version),
            ..package_item(name, version, latest)
        }
    }

    pub(super) fn entry_item(
        &self,
        tree: &Tree,
        number: u32,
        row: &Row,
        skip: usize,
        digest: bool,
    ) -> Result<EntryItem, crate::catalog::CatalogError> {
        let path = tree.path(number)?;
        let path = path.get(skip..).unwrap_or_default();
        let path = path.strip_prefix(b"/").unwrap_or(path);
        let target = if row.kind() == Kind::Symlink {
            Some(tree.target(row)?)
        } else {
            None
        };
        let is_file = row.kind() == Kind::File;
        Ok(EntryItem {
            path: String::from_utf8_lossy(path).into_owned(),
            path_hex: hex_if_needed(path),
            kind: kind_word(row.kind()).to_owned(),
            mode: row.mode(),
            size: row.size(),
            mtime_ns: row.mtime_ns(),
            target_hex: target.as_deref().and_then(hex_if_needed),
            target: target.map(|target| String::from_utf8_lossy(&target).into_owned()),
            digest: if is_file && digest {
                Some(tree.whole(row)?.to_string())
            } else {
                None
            },
            cid: row.cid().to_string(),
            cached: if is_file && row.size() > 0 {
                self.store.cached(&row.file())
            } else {
                0
            },
        })
    }

    pub(super) fn inspect(&self, target: &str) -> Result<Inspection, Failure> {
        let (_, version) = self.find(target)?;
        let json = |bytes: &[u8]| serde_json::from_slice(bytes).map_err(Failure::failed);
        let index = self
            .state
            .listed()
            .index(&version.package().name)
            .map_err(Failure::failed)?;
        let (tree, hints) = (version.package().tree_name(), version.hints());
        let hints = MetainfoHints {
            trackers: &hints.trackers,
            http: &hints.http,
        };
        let torrent = version.manifest().torrent;
        Ok(Inspection {
            magnet: torrent.map(|torrent| magnet(&torrent.info_hash, &tree, hints)),
            manifest: json(version.manifest().canonical())?,
            id: version.manifest_id().to_string(),
            catalog: version.manifest().catalog.cid().to_string(),
            tree,
            signers: version.signers().map(|key| key.to_string()).collect(),
            rule: version.rule(),
            index: match index {
                Some(bytes) => json(&bytes)?.get("index").cloned(),
                None => None,
            },
            installed: self.is_installed(&version),
        })
    }

    pub(super) async fn sums(&self, target: &str, replies: &Replies) -> Result<Value, Failure> {
        let (_, version) = self.find(target)?;
        let tree = self
            .installer
            .install(&version)
            .await
            .map_err(|error| super::install_failure(&error))?;
        let text = {
            let tree = Arc::clone(&tree);
            // Whatever its length: it goes out in pieces.
            tokio::task::spawn_blocking(move || {
                let mut text = Vec::new();
                crate::catalog::sums::write(&tree, &mut text).map(|()| text)
            })
        };
        let text = text
            .await
            .map_err(Failure::failed)?
            .map_err(|error| catalog_failure(&version, &error))?;
        for piece in text.chunks(1 << 20) {
            replies.data(bytes::Bytes::copy_from_slice(piece)).await?;
        }
        value(())
    }
}

/// Returns the word for what an entry is.
pub(super) fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Directory => "directory",
        Kind::Symlink => "symlink",
    }
}

/// Returns how many bytes of a path lead to what is listed: a directory, or the one that a file lies in.
pub(super) fn base(
    tree: &Tree,
    top: u32,
    row: &Row,
) -> Result<usize, crate::catalog::CatalogError> {
    let directory = if row.kind() == Kind::Directory {
        top
    } else {
        row.parent()
    };
    Ok(tree.path(directory)?.len())
}

/// Returns the hexadecimal digits of what is not UTF-8.
pub(super) fn hex_if_needed(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes)
        .is_err()
        .then(|| hex::encode(bytes))
}

fn package_item(name: &PackageName, version: &Arc<Listed>, latest: bool) -> PackageItem {
    let manifest = version.manifest();
    PackageItem {
        name: name.to_string(),
        version: Some(version.package().version.to_string()),
        latest,
        stale: version.is_stale(),
        files: manifest.files,
        bytes: manifest.bytes,
        created: Some(manifest.created.to_string()),
        description: manifest.description.clone(),
        refused: None,
        hint: None,
        ..PackageItem::default()
    }
}
