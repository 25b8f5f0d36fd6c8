//! Why something is, or is not, as one expects.

use std::sync::Arc;

use super::look::source_status;
use crate::block::BlockRef;
use crate::catalog::{Kind, links};
use crate::config::Install;
use crate::daemon::{Home, Target};
use crate::install::{Listed, Tree, catalog_want, want_of};
use crate::serve::control::Why;
use crate::source::{SourceKind, Want};

/// Peers of a swarm that are named one by one; `status --json` has all.
const PEERS_SHOWN: usize = 8;

impl Home {
    pub(super) async fn why(&self, text: &str) -> Why {
        let target = match self.target(text) {
            Ok(target) => target,
            Err(failure) => {
                return Why {
                    lines: vec![failure.message],
                    hint: failure.hint,
                };
            }
        };
        let mut why = Why::default();
        let refusals = self.listing.refusals();
        for (name, version, refusal) in refusals.iter().filter(|(name, ..)| *name == target.name) {
            if version.is_some() && target.version.is_some() && *version != target.version {
                continue;
            }
            let at = version
                .as_ref()
                .map(|version| format!("@{version}"))
                .unwrap_or_default();
            why.lines
                .push(format!("{name}{at} is refused: {}", refusal.reason));
            why.hint = why.hint.or_else(|| refusal.hint.clone());
        }
        match target.find(&self.listing) {
            Ok(version) => self.why_version(&target, &version, &mut why).await,
            Err(error) if why.lines.is_empty() => {
                let failure = crate::daemon::target_failure(&error);
                why.lines.push(failure.message);
                if self.updater.policy().rule_for(&target.name).is_none() {
                    why.lines.push(format!(
                        "no trust rule matches {}, so it is not even looked for",
                        target.name
                    ));
                    why.hint = Some(format!(
                        "if you have its publisher's key: manifs trust add '{}' KEY",
                        target.name
                    ));
                } else {
                    why.hint = failure.hint;
                }
            }
            Err(_) => {}
        }
        why
    }

    /// Says who would be asked for a file, and how each has done so far.
    fn why_sources(&self, version: &Listed, tree: &Tree, number: u32, why: &mut Why) {
        let block = tree.row(number).and_then(|row| tree.block(&row, 0));
        let want = block.and_then(|block| want_of(version, tree, number, block));
        if let Ok(want) = want {
            self.why_asked(&want, why);
        }
    }

    /// Says who would be asked for a block, and of a swarm which peers are known.
    fn why_asked(&self, want: &Want, why: &mut Why) {
        let asked = self.fetcher.report_for(want);
        if asked.is_empty() {
            why.lines.push("there is nobody to ask for the rest".into());
        }
        for source in asked {
            let is_swarm = source.kind == SourceKind::Torrent;
            let source = source_status(source);
            why.lines
                .push(format!("it can be asked for: {}", source.sentence()));
            if is_swarm && source.peers.is_empty() {
                why.lines
                    .push("  no peer of its torrent is known yet".into());
            }
            let shown = source.peers.iter().take(PEERS_SHOWN);
            why.lines
                .extend(shown.map(|peer| format!("  peer {}", peer.sentence())));
            if let Some(more @ 1..) = source.peers.len().checked_sub(PEERS_SHOWN) {
                why.lines.push(format!("  and {more} peers more"));
            }
        }
    }

    async fn why_version(&self, target: &Target, version: &Arc<Listed>, why: &mut Why) {
        let signers = version
            .signers()
            .map(|key| key.to_string())
            .collect::<Vec<_>>()
            .join(", ");
        why.lines.push(format!(
            "{} is trusted by the rule for {}: signed by {signers}",
            version.package(),
            version.rule()
        ));
        if version.is_stale() {
            why.lines.push("its release index is expired or too old: what is installed stays readable, nothing new is installed".into());
        }
        let Some(tree) = version.tree() else {
            let catalog = version.manifest().catalog.file();
            let here = self.store.complete(&catalog);
            let by_hand = self.config.load().mount.install == Install::Manual;
            why.lines.push(format!(
                "its catalog of {} bytes is {}",
                catalog.size,
                if here {
                    "here, and checked when it is entered"
                } else if by_hand {
                    "not here, and [mount] install = \"manual\": entering it says ENODATA"
                } else {
                    "fetched when it is entered"
                }
            ));
            if by_hand && !here {
                let package = version.package();
                why.hint = Some(format!(
                    "`manifs ls {package}` or `manifs warm {package}` installs it"
                ));
            }
            if let Some(error) = version
                .manifest()
                .catalog
                .blocks
                .iter()
                .find_map(|digest| self.fetcher.last_failure(digest))
            {
                why.lines.push(format!("the last try failed: {error}"));
            }
            if !here && let Some(digest) = version.manifest().catalog.blocks.first() {
                let block = BlockRef {
                    file: catalog,
                    index: 0,
                    digest: *digest,
                };
                self.why_asked(&catalog_want(version, block), why);
            }
            return;
        };
        let found = match tree.find(&target.path) {
            Ok(Some(found)) => found,
            Ok(None) => {
                why.lines.push(format!(
                    "it has no {:?}",
                    String::from_utf8_lossy(&target.path)
                ));
                return;
            }
            Err(error) => {
                why.lines
                    .push(format!("its catalog cannot be read: {error}"));
                return;
            }
        };
        let (number, row) = found;
        match row.kind() {
            Kind::Directory => why
                .lines
                .push("it is installed: its metadata needs no network".into()),
            Kind::Symlink => {
                if !version.links_may_leave() && links::leaves(&*tree, number).unwrap_or(false) {
                    why.lines.push(
                        "the link leaves its version, so following it is refused (EACCES)".into(),
                    );
                    why.hint = Some("the trust rule of the package may say links = \"any\"".into());
                }
            }
            Kind::File => {
                let cached = if row.size() == 0 {
                    0
                } else {
                    self.store.cached(&row.file())
                };
                why.lines
                    .push(format!("{cached} of {} bytes are in the store", row.size()));
                let blocks = (0..row.blocks()).filter_map(|index| tree.block(&row, index).ok());
                let failure = blocks
                    .take(65_536)
                    .find_map(|block| self.fetcher.last_failure(&block.digest));
                if let Some(failure) = failure {
                    why.lines.push(format!("the last read failed: {failure}"));
                }
                if cached < row.size() {
                    self.why_sources(version, &tree, number, why);
                }
            }
        }
    }
}
