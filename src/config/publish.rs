//! `[publish]`: unattended publishing from a drop directory.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::units::{self, Share};
use crate::publish::drop::After;

/// The word that stands for the swarm.
const TORRENT: &str = "torrent";

/// Where a version is put before it is announced: `publish --to`, `[publish] to`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Provider {
    /// The torrent swarm: this home's daemon seeds it.
    Torrent,
    /// A directory of whole trees. It is written with a slash, so that it is never taken for the name of a network.
    Mirror(PathBuf),
}

/// Why a word says nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// A web server cannot be written.
    #[error("{0}: a mirror is written as a directory")]
    Url(String),
    /// It is not known.
    #[error("{0}: no such network")]
    Unknown(String),
}

impl ProviderError {
    /// Returns what to do about it.
    pub fn hint(&self) -> String {
        match self {
            ProviderError::Url(_) => "copy the directory to the web server".to_owned(),
            ProviderError::Unknown(word) => format!("a directory is written ./{word}"),
        }
    }
}

impl FromStr for Provider {
    type Err = ProviderError;

    fn from_str(word: &str) -> Result<Provider, ProviderError> {
        if word.contains("://") {
            return Err(ProviderError::Url(word.to_owned()));
        }
        if word.contains('/') {
            return Ok(Provider::Mirror(PathBuf::from(word)));
        }
        if word == TORRENT {
            return Ok(Provider::Torrent);
        }
        Err(ProviderError::Unknown(word.to_owned()))
    }
}

impl Serialize for Provider {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Provider::Torrent => serializer.serialize_str(TORRENT),
            Provider::Mirror(directory) => directory.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Provider {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = String::deserialize(deserializer)?;
        let wrong = |error: ProviderError| {
            D::Error::custom(format!("[publish] to: {error}: {}", error.hint()))
        };
        word.parse().map_err(wrong)
    }
}

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
    /// Where versions are put besides.
    #[serde(default)]
    pub to: Vec<Provider>,
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
        self.to.contains(&Provider::Torrent)
    }

    /// Returns the mirrors that versions are written to.
    pub fn mirrors(&self) -> Vec<PathBuf> {
        let mirror = |provider: &Provider| match provider {
            Provider::Mirror(directory) => Some(directory.clone()),
            Provider::Torrent => None,
        };
        self.to.iter().filter_map(mirror).collect()
    }

    pub(super) fn check(&self) -> Result<(), String> {
        if self.names.is_empty() {
            return Err(
                "[publish] names: say which packages may be signed, for instance [\"acme/*\"]"
                    .to_owned(),
            );
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
        for provider in &mut self.to {
            if let Provider::Mirror(directory) = provider {
                anchored(directory);
            }
        }
        // A name in keys/ has no slash in it.
        if self.key.components().count() > 1 {
            anchored(&mut self.key);
        }
    }
}
