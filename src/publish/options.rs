//! What a publish is asked to do. Serialisable, since it may come over a socket from the process that signs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::manifest::{IndexFields, PackageVersion, Timestamp, Version};

/// What is published although it is refused otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Allow {
    /// Symlinks that leave the package.
    pub links: bool,
    /// Names that differ only in case or Unicode normalisation.
    pub case: bool,
    /// What is likely a secret.
    pub secrets: bool,
}

/// A word that is none of `links`, `case` and `secrets`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' cannot be allowed: it is links, case or secrets")]
pub struct AllowSyntax(String);

impl Allow {
    /// Adds what a word of `--allow` stands for.
    ///
    /// # Errors
    /// [`AllowSyntax`]
    pub fn add(&mut self, word: &str) -> Result<(), AllowSyntax> {
        match word {
            "links" => self.links = true,
            "case" => self.case = true,
            "secrets" => self.secrets = true,
            other => return Err(AllowSyntax(other.to_owned())),
        }
        Ok(())
    }
}

/// What becomes of `latest`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Latest {
    /// It follows the highest version that is no pre-release.
    #[default]
    Highest,
    /// It becomes this version, whatever its number (`--latest`).
    This,
    /// It stays what it is (`--no-latest`).
    Keep,
}

/// What a manifest says for people. None of it is identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct About {
    /// Free text.
    pub description: Option<String>,
    /// Free text, by custom an SPDX expression.
    pub license: Option<String>,
    /// Free text, by custom a URL.
    pub homepage: Option<String>,
    /// Words to search for.
    pub keywords: Vec<String>,
    /// Free text.
    pub publisher: Option<String>,
    /// A JSON object, free form, in canonical form.
    pub provenance: Option<String>,
}

/// Where else a package may be had from, as its release index says. `None` keeps what the index before said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hints {
    /// URLs of mirrors.
    pub http: Option<Vec<String>>,
    /// URLs of IPFS gateways.
    pub gateways: Option<Vec<String>>,
    /// URLs of BitTorrent trackers.
    pub trackers: Option<Vec<String>>,
}

impl Hints {
    /// Returns whether an index says all of them already.
    pub(super) fn hold(&self, index: &IndexFields) -> bool {
        [
            (&self.http, &index.http),
            (&self.gateways, &index.gateways),
            (&self.trackers, &index.trackers),
        ]
        .into_iter()
        .all(|(hint, there)| hint.as_ref().is_none_or(|hint| hint == there))
    }
}

/// What holds of every path of a tree that somebody else put where it is published from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guard {
    /// Whose everything has to be; `None` lets anybody's pass.
    pub owner: Option<u32>,
}

/// Which version a tree is laid on top of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Update {
    /// Which one; `None` for the one that `latest` leads to, or else the highest.
    pub version: Option<Version>,
    /// Paths of it that go.
    pub remove: Vec<String>,
    /// There is no tree, but for an empty directory that means nothing.
    pub bare: bool,
}

/// What a publish is asked to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Package and version.
    pub package: PackageVersion,
    /// What is not refused.
    #[serde(default)]
    pub allow: Allow,
    /// Refuse what lies on another mount than the directory itself, or belongs to others.
    #[serde(default)]
    pub guard: Option<Guard>,
    /// Keep permission bits and the times of directories and symlinks.
    #[serde(default)]
    pub preserve: bool,
    /// The time of everything, in whole seconds since 1970: `--mtime` or `SOURCE_DATE_EPOCH`. Wins over `preserve`.
    #[serde(default)]
    pub mtime: Option<i64>,
    /// What becomes of `latest`.
    #[serde(default)]
    pub latest: Latest,
    /// When the release index goes stale.
    #[serde(default)]
    pub expires: Option<Timestamp>,
    /// Write a `.torrent` file beside the manifest, and seed the version from this home (`--to torrent`).
    #[serde(default)]
    pub seed: bool,
    /// Read every file, also those that the last version has (`--rehash`).
    #[serde(default)]
    pub rehash: bool,
    /// Lay the tree on top of a version (`--update`).
    #[serde(default)]
    pub update: Option<Update>,
    /// The tree goes away afterwards: what its files are on disk need not be remembered.
    #[serde(default)]
    pub passing: bool,
    /// For people.
    #[serde(default)]
    pub about: About,
    /// For readers.
    #[serde(default)]
    pub hints: Hints,
}

impl Options {
    /// Asks for the defaults.
    pub fn new(package: PackageVersion) -> Options {
        Options {
            package,
            allow: Allow::default(),
            guard: None,
            preserve: false,
            mtime: None,
            latest: Latest::default(),
            expires: None,
            seed: false,
            rehash: false,
            update: None,
            passing: false,
            about: About::default(),
            hints: Hints::default(),
        }
    }
}

/// The id of a job: names its file in the journal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(String);

/// Not 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a job id is 16 lower-case hexadecimal digits")]
pub struct JobIdSyntax;

impl JobId {
    /// Makes one that nobody has.
    pub(crate) fn random() -> JobId {
        JobId(format!("{:016x}", rand::random::<u64>()))
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for JobId {
    type Err = JobIdSyntax;

    fn from_str(text: &str) -> Result<JobId, JobIdSyntax> {
        let digits = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == 16 && text.bytes().all(digits) {
            Ok(JobId(text.to_owned()))
        } else {
            Err(JobIdSyntax)
        }
    }
}

impl TryFrom<String> for JobId {
    type Error = JobIdSyntax;

    fn try_from(text: String) -> Result<JobId, JobIdSyntax> {
        text.parse()
    }
}

impl From<JobId> for String {
    fn from(job: JobId) -> String {
        job.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_go_over_a_socket_unchanged() {
        let mut options = Options::new("acme/tool@1.2.3".parse().unwrap());
        options.allow.add("links").unwrap();
        options.mtime = Some(-1);
        options.latest = Latest::Keep;
        options.about.keywords = vec!["a".to_owned()];
        options.hints.http = Some(Vec::new());
        let text = serde_json::to_string(&options).unwrap();
        assert_eq!(serde_json::from_str::<Options>(&text).unwrap(), options);
        let short: Options = serde_json::from_str(r#"{"package":"a@1.0.0"}"#).unwrap();
        assert_eq!(short, Options::new("a@1.0.0".parse().unwrap()));
        assert!(options.allow.add("devices").is_err());
    }

    #[test]
    fn a_job_id_never_leaves_the_journal() {
        let job = JobId::random();
        assert_eq!(job.to_string().parse(), Ok(job));
        for text in [
            "",
            "../../etc/passwd0",
            "0123456789ABCDEF",
            "0123456789abcde",
        ] {
            assert!(text.parse::<JobId>().is_err(), "{text}");
        }
    }
}
