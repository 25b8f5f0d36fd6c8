//! `manifs.toml` in a dropped directory: what its publisher may say, and nothing else.
//!
//! It describes the version. Where it goes, who signs it and what is let through is the configuration's business, never
//! that of whoever may write to the drop directory.

use crate::manifest::{Version, VersionError};
use crate::publish::options::{About, Latest};

use super::name::Wanted;

/// The largest file that is read, in bytes.
pub(super) const INSTRUCTIONS_BYTES_MAX: u64 = 64 << 10;

/// Which part of the version grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Bump {
    /// 1.2.3 to 1.2.4.
    #[default]
    Patch,
    /// 1.2.3 to 1.3.0.
    Minor,
    /// 1.2.3 to 2.0.0.
    Major,
}

/// What a `manifs.toml` asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Instructions {
    /// The version, for an entry whose name leaves it open.
    pub version: Option<Version>,
    /// How the next version is made.
    pub bump: Bump,
    /// What becomes of `latest`.
    pub latest: Latest,
    /// For people.
    pub about: About,
}

/// What is wrong with a `manifs.toml`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InstructionError {
    /// It is no regular file, cannot be read, or is too long.
    #[error("{0}")]
    Unreadable(String),
    /// It is not TOML.
    #[error("not TOML: {0}")]
    Syntax(String),
    /// No such key.
    #[error("{0}: no such key")]
    Unknown(String),
    /// A key that only the configuration may set.
    #[error("{0}: only the configuration of the daemon says this")]
    Forbidden(String),
    /// A value of another kind.
    #[error("{key}: expected {expected}")]
    Kind {
        /// Which key.
        key: String,
        /// What would be right.
        expected: &'static str,
    },
    /// No version.
    #[error("version: {0}")]
    Version(#[from] VersionError),
    /// The name of the directory says another one.
    #[error("version: it says {said}, but the name of the directory says {named}")]
    OtherVersion {
        /// What the file says.
        said: Version,
        /// What the name says.
        named: Version,
    },
    /// A version and how to make one.
    #[error("version and next: one of them is enough")]
    Both,
    /// How to make a version, where the name says it.
    #[error("next: the name of the directory says the version already")]
    NextOfNamed,
}

impl InstructionError {
    /// Returns what to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            InstructionError::Forbidden(_) => "take it out, or publish by hand",
            InstructionError::OtherVersion { .. } | InstructionError::NextOfNamed => {
                "take it out, or name the directory NAME@next"
            }
            _ => {
                "it may say version or next, latest, description, license, homepage, keywords, publisher"
            }
        }
    }
}

/// Words that belong to the configuration or to the command line.
const FORBIDDEN: [&str; 16] = [
    "after",
    "allow",
    "directory",
    "group",
    "home",
    "http",
    "key",
    "keys",
    "mtime",
    "name",
    "names",
    "preserve",
    "registry",
    "settle",
    "to",
    "tracker",
];

const NEXT_WORDS: &str = "\"patch\", \"minor\" or \"major\"";

impl Instructions {
    /// Reads the text of a `manifs.toml` of a directory whose name says `wanted`.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(text: &str, wanted: &Wanted) -> Result<Instructions, Vec<InstructionError>> {
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            vec![InstructionError::Syntax(one_line(error.message()))]
        })?;
        let mut read = Instructions::default();
        let mut errors = Vec::new();
        for (key, value) in &table {
            if let Err(error) = read.set(key, value) {
                errors.push(error);
            }
        }
        match (&read.version, &wanted.version) {
            (Some(said), Some(named)) if said != named => {
                errors.push(InstructionError::OtherVersion {
                    said: said.clone(),
                    named: named.clone(),
                })
            }
            (_, Some(_)) if table.contains_key("next") => {
                errors.push(InstructionError::NextOfNamed)
            }
            (Some(_), None) if table.contains_key("next") => errors.push(InstructionError::Both),
            _ => {}
        }
        if errors.is_empty() {
            Ok(read)
        } else {
            Err(errors)
        }
    }

    fn set(&mut self, key: &str, value: &toml::Value) -> Result<(), InstructionError> {
        let kind = |expected| InstructionError::Kind {
            key: key.to_owned(),
            expected,
        };
        let text = || {
            value
                .as_str()
                .map(str::to_owned)
                .ok_or_else(|| kind("a text in quotes"))
        };
        match key {
            "version" => self.version = Some(text()?.parse()?),
            "next" => {
                self.bump = match value.as_str() {
                    Some("patch") => Bump::Patch,
                    Some("minor") => Bump::Minor,
                    Some("major") => Bump::Major,
                    _ => return Err(kind(NEXT_WORDS)),
                }
            }
            "latest" => {
                self.latest = match value.as_bool() {
                    Some(true) => Latest::This,
                    Some(false) => Latest::Keep,
                    None => return Err(kind("true or false")),
                }
            }
            "description" => self.about.description = Some(text()?),
            "license" => self.about.license = Some(text()?),
            "homepage" => self.about.homepage = Some(text()?),
            "publisher" => self.about.publisher = Some(text()?),
            "keywords" => {
                let words = value.as_array().ok_or_else(|| kind("a list of texts"))?;
                let words = words.iter().map(|word| word.as_str().map(str::to_owned));
                self.about.keywords = words
                    .collect::<Option<_>>()
                    .ok_or_else(|| kind("a list of texts"))?;
            }
            other if FORBIDDEN.contains(&other) => {
                return Err(InstructionError::Forbidden(other.to_owned()));
            }
            other => return Err(InstructionError::Unknown(one_line(other))),
        }
        Ok(())
    }
}

/// Keeps a text from somebody's file on one line, without anything that a terminal acts on.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|char| if char.is_control() { ' ' } else { char })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &str, text: &str) -> Result<Instructions, Vec<String>> {
        let wanted = super::super::Key::new(None, name.as_bytes())
            .wanted()
            .unwrap();
        Instructions::parse(text, &wanted)
            .map_err(|errors| errors.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn says_what_a_publisher_may_say() {
        let read = parse(
            "tool@next",
            "next = \"minor\"\nlatest = false\ndescription = \"d\"\nlicense = \"MIT\"\nhomepage = \"h\"\nkeywords = [\"a\", \"b\"]\npublisher = \"p\"\n",
        )
        .unwrap();
        assert_eq!((read.bump, read.latest), (Bump::Minor, Latest::Keep));
        assert_eq!(read.about.keywords, ["a", "b"]);
        assert_eq!(parse("tool@next", "").unwrap(), Instructions::default());
        let read = parse("tool@1.0.0", "version = \"1.0.0\"").unwrap();
        assert_eq!(read.version.unwrap().to_string(), "1.0.0");
    }

    #[test]
    fn everything_that_is_wrong_is_told_at_once() {
        let errors = parse(
            "tool@1.0.0",
            "version = \"2.0.0\"\nkey = \"k\"\nallow = [\"secrets\"]\nkeywords = [1]\nlatest = \"yes\"\nx = 1\n",
        )
        .unwrap_err();
        assert_eq!(
            errors,
            [
                "allow: only the configuration of the daemon says this",
                "key: only the configuration of the daemon says this",
                "keywords: expected a list of texts",
                "latest: expected true or false",
                "x: no such key",
                "version: it says 2.0.0, but the name of the directory says 1.0.0",
            ]
        );
        for (text, error) in [
            ("version = 1", "version: expected a text"),
            ("version = \"1\"", "version: a version is semver"),
            (
                "version = \"1.0.0\"\nnext = \"patch\"",
                "one of them is enough",
            ),
            ("next = \"big\"", "next: expected \"patch\""),
            ("= x", "not TOML"),
        ] {
            let errors = parse("tool@next", text).unwrap_err();
            assert!(errors.len() == 1 && errors[0].contains(error), "{errors:?}");
        }
        assert!(parse("tool@1.0.0", "next = \"patch\"").unwrap_err()[0].contains("already"));
    }
}
