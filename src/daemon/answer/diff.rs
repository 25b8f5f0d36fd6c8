//! What differs between two versions, or between a tree that would be published and the last version.

use std::fs::File;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::look::{hex_if_needed, kind_word};
use super::{catalog_failure_of, install_failure};
use crate::catalog::diff::{Difference, What, diff};
use crate::catalog::{Catalog, CatalogError, ReadAt, Row};
use crate::daemon::Home;
use crate::install::{Listed, Tree};
use crate::manifest::{PackageName, PackageVersion};
use crate::publish::Rehearsal;
use crate::serve::control::{
    DiffItem, DiffKind, DiffPreview, DiffSide, DiffSummary, Failure, Replies,
};

/// Differences that are on their way to who asked.
const AHEAD: usize = 256;

/// The most paths that a preview names.
const PREVIEW_MAX: usize = 20;

impl Home {
    /// Sends every path that differs between two targets, by their catalogs alone.
    pub(super) async fn diff(
        &self,
        from: &str,
        to: &str,
        replies: &Replies,
    ) -> Result<DiffSummary, Failure> {
        let (before, before_version) = self.side(from).await?;
        let (after, after_version) = self.side(to).await?;
        let names = (before_version.package(), after_version.package());
        let (sender, mut differences) = mpsc::channel(AHEAD);
        let work = tokio::task::spawn_blocking(move || {
            let (before, after) = (before, after);
            compare((&before.0, before.1), (&after.0, after.1), &mut |item| {
                // Nobody listens any more: then nothing is worth finding.
                sender.blocking_send(item).is_ok()
            })
        });
        while let Some(item) = differences.recv().await {
            replies.item(&item).await?;
        }
        let done = work.await.map_err(Failure::failed)?;
        let counts = done.map_err(|error| catalog_failure_of(names.0, &error))?;
        Ok(DiffSummary {
            from: names.0.to_string(),
            to: names.1.to_string(),
            ..counts
        })
    }

    async fn side(&self, target: &str) -> Result<((Arc<Tree>, Row), Arc<Listed>), Failure> {
        let (target, version) = self.find(target)?;
        let (tree, _, row) = self.row(&target, &version).await?;
        Ok(((tree, row), version))
    }

    /// Compares a tree that would be published with what `latest` leads to or, without one, the highest version.
    ///
    /// `None` when there is no version yet; an error when its catalog cannot be had.
    pub(super) async fn preview(
        &self,
        name: &PackageName,
        made: Rehearsal,
    ) -> Result<Option<DiffPreview>, Failure> {
        let last = self.listing.find(name, None);
        let Some(last) = last.or_else(|| self.listing.versions(name).pop()) else {
            return Ok(None);
        };
        let tree = self.installer.install(&last).await;
        let tree = tree.map_err(|error| install_failure(&error))?;
        let package = last.package().clone();
        let work = tokio::task::spawn_blocking(move || preview(&tree, &package, &made));
        work.await.map_err(Failure::failed)?.map(Some)
    }
}

fn preview(
    tree: &Tree,
    package: &PackageVersion,
    made: &Rehearsal,
) -> Result<DiffPreview, Failure> {
    let mut entries = Vec::new();
    let mut work = || -> Result<DiffSummary, CatalogError> {
        let after: Catalog<&File> = Catalog::open(&made.catalog, made.summary.catalog_bytes)?;
        compare((tree, tree.row(0)?), (&after, after.row(0)?), &mut |item| {
            if entries.len() < PREVIEW_MAX {
                entries.push(item);
            }
            true
        })
    };
    let counts = work().map_err(|error| catalog_failure_of(package, &error))?;
    Ok(DiffPreview {
        summary: DiffSummary {
            from: package.to_string(),
            ..counts
        },
        entries,
    })
}

/// Counts all differences and shows each to `visit`, until that says that it is enough.
fn compare<R: ReadAt, S: ReadAt>(
    before: (&Catalog<R>, Row),
    after: (&Catalog<S>, Row),
    visit: &mut dyn FnMut(DiffItem) -> bool,
) -> Result<DiffSummary, CatalogError> {
    let mut counts = DiffSummary::default();
    let mut found = diff(before, after);
    for difference in found.by_ref() {
        let item = item(&difference?);
        counts.count(item.change);
        if !visit(item) {
            break;
        }
    }
    counts.times = found.times();
    Ok(counts)
}

fn item(difference: &Difference) -> DiffItem {
    let side = |row: Row| DiffSide {
        kind: kind_word(row.kind()).to_owned(),
        mode: row.mode(),
        size: row.size(),
    };
    DiffItem {
        path_hex: hex_if_needed(&difference.path),
        path: String::from_utf8_lossy(&difference.path).into_owned(),
        change: match difference.what {
            What::Added => DiffKind::Added,
            What::Removed => DiffKind::Removed,
            What::Changed => DiffKind::Changed,
            What::Mode => DiffKind::Mode,
            What::Type => DiffKind::Type,
        },
        before: difference.before.map(side),
        after: difference.after.map(side),
    }
}
