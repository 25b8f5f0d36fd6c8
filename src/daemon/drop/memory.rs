//! What the next process is to know of entries: which are done, and which were about to become a version.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use super::Dropping;
use crate::durable;
use crate::manifest::Version;
use crate::publish::drop::{Fingerprint, Key, Remembered, Seen};
use crate::serve::control::Failure;

/// The most entries that are remembered.
const REMEMBERED_MAX: usize = 10_000;

/// Reads what an earlier process wrote down. Blocking.
///
/// # Errors
/// [`Failure`]
pub(super) fn read(path: &Path) -> Result<BTreeMap<String, Remembered>, Failure> {
    let remembered = durable::read_json(path)
        .map_err(|error| Failure::failed(format!("{}: {error}", path.display())))?;
    Ok(remembered.unwrap_or_default())
}

impl Dropping {
    /// Writes down for the next process what an entry looks like that is done, or that `becomes` a version now.
    pub(super) async fn remember(
        self: &Arc<Self>,
        key: &Key,
        fingerprint: Fingerprint,
        becomes: Option<Version>,
    ) {
        let entry = Remembered {
            fingerprint,
            mark: self.board.lock().mark(key),
            becomes,
        };
        let key = key.to_string();
        {
            let mut remembered = self.remembered.lock();
            let known = remembered.get(&key);
            if known == Some(&entry) || (known.is_none() && remembered.len() >= REMEMBERED_MAX) {
                return;
            }
            remembered.insert(key, entry);
        }
        self.save_remembered().await;
    }

    /// Forgets what was written down of an entry.
    pub(super) async fn unremember(self: &Arc<Self>, key: &Key) {
        let known = self.remembered.lock().remove(&key.to_string());
        if known.is_some() {
            self.save_remembered().await;
        }
    }

    /// Returns the version that an entry was about to become when it looked like this.
    pub(super) fn becomes(&self, key: &Key, fingerprint: Fingerprint) -> Option<Version> {
        let remembered = self.remembered.lock();
        let known = remembered.get(&key.to_string())?;
        let becomes = known.becomes.as_ref();
        becomes
            .filter(|_| known.fingerprint == fingerprint)
            .cloned()
    }

    /// Forgets what went away while no daemon ran. What was published keeps its status.
    pub(super) async fn forget_missing(self: &Arc<Self>, there: &[(Key, Seen)]) {
        let there: HashSet<String> = there.iter().map(|(key, _)| key.to_string()).collect();
        let missing: Vec<String> = {
            let mut remembered = self.remembered.lock();
            let missing = remembered.keys().filter(|key| !there.contains(*key));
            let missing = missing.cloned().collect();
            remembered.retain(|key, _| there.contains(key));
            missing
        };
        if missing.is_empty() {
            return;
        }
        self.save_remembered().await;
        let dropping = Arc::clone(self);
        let removed = tokio::task::spawn_blocking(move || {
            let keys = missing
                .iter()
                .filter_map(|key| Key::from_path(key.as_bytes()));
            for key in keys {
                let _turn = dropping.writing.lock();
                let written = dropping.place.status(&key);
                if written.is_some_and(|written| !written.report.word.is_version()) {
                    dropping.place.remove_status(&key);
                }
            }
        });
        let _ = removed.await;
    }

    async fn save_remembered(self: &Arc<Self>) {
        let dropping = Arc::clone(self);
        let saved = tokio::task::spawn_blocking(move || {
            // Held while it is written, so that an older one never comes last.
            let remembered = dropping.remembered.lock();
            durable::write_json(&dropping.remembered_path, &*remembered)
        });
        if let Ok(Err(error)) = saved.await {
            tracing::warn!(%error, "what is done in the drop directory is looked at again after a restart");
        }
    }
}
