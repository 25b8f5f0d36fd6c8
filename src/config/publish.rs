//! `[publish]`: unattended publishing from a drop directory.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::units::{self, Share};
use crate::publish::drop::After;

/// The word of `[publish] to` that stands for the swarm.
const TORRENT: &str = "torrent";

/// `[publish]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PublishSection {
    /// The drop directory, if not at its usual place.
    #[serde(default)]
    pub directory: Option<PathBuf>,
    /// The key that signs: a file, or a name in `keys/`.
    #[serde(default = "key")]
    pub key: PathBuf,
    /// Patterns of packages that are signed.
    pub names: Vec<Share>,
    /// The registry, if not the home's own.
    #[serde(default)]
    pub registry: Option<PathBuf>,
    /// Where versions are put besides: `torrent`.
    #[serde(default)]
    pub to: Vec<String>,
    /// How long a directory has to be quiet; zero: it is never published for that.
    #[serde(default = "settle", with = "units::duration")]
    pub settle: Duration,
    /// What becomes of what was published.
    #[serde(default)]
    pub after: After,
    /// A group that may drop directories.
    #[serde(default)]
    pub group: Option<String>,
}

fn key() -> PathBuf {
    PathBuf::from("default")
}

fn settle() -> Duration {
    Duration::from_secs(60)
}

impl PublishSection {
    /// Returns whether versions are seeded.
    pub fn seeds(&self) -> bool {
        self.to.iter().any(|word| word == TORRENT)
    }

    pub(super) fn check(&self) -> Result<(), String> {
        if self.names.is_empty() {
            return Err(
                "[publish] names: say which packages may be signed, for instance [\"acme/*\"]"
                    .to_owned(),
            );
        }
        if let Some(word) = self.to.iter().find(|word| *word != TORRENT) {
            return Err(format!(
                "[publish] to: {word:?} is not \"torrent\", the only network so far; write mirrors with `manifs fetch --mirror`"
            ));
        }
        let url = |place: &PathBuf| place.to_string_lossy().contains("://");
        if self.registry.as_ref().is_some_and(url) {
            return Err(
                "[publish] registry: one on a web server can only be read; name a directory"
                    .to_owned(),
            );
        }
        Ok(())
    }

    /// Lets relative paths begin where `anchored` says.
    pub(super) fn anchor(&mut self, anchored: impl Fn(&mut PathBuf)) {
        self.directory.iter_mut().for_each(&anchored);
        self.registry.iter_mut().for_each(&anchored);
        // A name in keys/ has no slash in it.
        if self.key.components().count() > 1 {
            anchored(&mut self.key);
        }
    }
}
