//! Why something is, or is not, as one expects.

use std::sync::Arc;

use super::look::source_status;
use crate::catalog::{Kind, links};
use crate::config::Install;
use crate::daemon::{Home, Target};
use crate::install::{Listed, Tree, want_of};
use crate::serve::control::Why;

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
        let Ok(want) = want else { return };
        let asked = self.fetcher.report_for(&want);
        if asked.is_empty() {
            why.lines.push("there is nobody to ask for the rest".into());
        }
        for source in asked.into_iter().map(source_status) {
            why.lines
                .push(format!("it can be asked for: {}", source.sentence()));
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
