//! Package names, versions, and the ids of what is signed. Everything here is parsed once, at the edge, and
//! refused rather than repaired: a [`PackageName`] is safe as a path below a mount, a registry or a mirror.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::block::{Digest, DigestSyntax};

/// The longest part of a package name, in bytes.
pub const NAME_PART_BYTES_MAX: usize = 64;

/// The longest version, in bytes.
pub const VERSION_BYTES_MAX: usize = 64;

/// Words that mean something else at the place of a name: `MOUNT/publish`, `MOUNT/<name>/latest`.
const RESERVED: [&str; 2] = ["latest", "publish"];

/// Why a text is not a package name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A part does not match the grammar.
    #[error(
        "a part of a package name is a lower-case letter, then letters and digits, with single '.', '_' or '-' between"
    )]
    Syntax,
    /// More than `scope/name`.
    #[error("a package name has one part, or two with a slash between")]
    Parts,
    /// A part is too long.
    #[error("a part of a package name has at most {NAME_PART_BYTES_MAX} bytes")]
    Length,
    /// A part is a word with another meaning.
    #[error("'{0}' is reserved and cannot be a part of a package name")]
    Reserved(String),
}

/// The name of a package: `part` or `scope/part`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackageName(String);

impl PackageName {
    /// Returns the name as text, with a slash after the scope.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the scope, for a name of two parts.
    pub fn scope(&self) -> Option<&str> {
        self.0.split_once('/').map(|(scope, _)| scope)
    }

    /// Returns the one or two parts.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// Returns the first part: the directory directly below the mount, a package or a scope.
    pub fn first(&self) -> &str {
        self.0.split('/').next().unwrap_or(&self.0)
    }
}

/// Checks one part of a name, for instance a scope.
///
/// # Errors
/// [`NameError`] as for a whole name.
pub fn check_part(part: &str) -> Result<(), NameError> {
    if part.len() > NAME_PART_BYTES_MAX {
        return Err(NameError::Length);
    }
    let mut previous = b'.';
    for (at, byte) in part.bytes().enumerate() {
        let fits = match byte {
            b'a'..=b'z' => true,
            b'0'..=b'9' => at > 0,
            b'.' | b'_' | b'-' => previous.is_ascii_alphanumeric(),
            _ => false,
        };
        if !fits {
            return Err(NameError::Syntax);
        }
        previous = byte;
    }
    // Also refuses the empty part, for which `previous` is still the dot it began with.
    if !previous.is_ascii_alphanumeric() {
        return Err(NameError::Syntax);
    }
    if RESERVED.contains(&part) {
        return Err(NameError::Reserved(part.to_owned()));
    }
    Ok(())
}

impl FromStr for PackageName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.bytes().filter(|&byte| byte == b'/').count() > 1 {
            return Err(NameError::Parts);
        }
        text.split('/').try_for_each(check_part)?;
        Ok(PackageName(text.to_owned()))
    }
}

/// Why a text is not a version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    /// Not canonical semver.
    #[error("a version is semver such as 1.2.3 or 1.2.3-rc.1 with numbers below 2^64")]
    Syntax,
    /// It has build metadata.
    #[error("a version has no build metadata ('+...')")]
    Build,
    /// It is too long.
    #[error("a version has at most {VERSION_BYTES_MAX} bytes")]
    Length,
}

/// A version: canonical semver without build metadata, ordered by semver's precedence.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Version {
    parsed: semver::Version,
    text: String,
}

impl Version {
    /// Returns the version as text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns major, minor and patch.
    pub fn numbers(&self) -> [u64; 3] {
        [self.parsed.major, self.parsed.minor, self.parsed.patch]
    }

    /// Returns whether it is a pre-release, which `latest` never follows by itself.
    pub fn is_prerelease(&self) -> bool {
        !self.parsed.pre.is_empty()
    }
}

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        if text.len() > VERSION_BYTES_MAX {
            return Err(VersionError::Length);
        }
        let parsed = semver::Version::parse(text).map_err(|_| VersionError::Syntax)?;
        if !parsed.build.is_empty() {
            return Err(VersionError::Build);
        }
        let too_big = |part: &str| {
            part.bytes().all(|byte| byte.is_ascii_digit()) && part.parse::<u64>().is_err()
        };
        if !parsed.pre.is_empty() && parsed.pre.split('.').any(too_big)
            || parsed.to_string() != text
        {
            return Err(VersionError::Syntax);
        }
        Ok(Version {
            parsed,
            text: text.to_owned(),
        })
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        self.parsed.cmp(&other.parsed)
    }
}

/// A package and one version of it, written `name@version`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackageVersion {
    /// The package.
    pub name: PackageName,
    /// The version.
    pub version: Version,
}

impl PackageVersion {
    /// Puts the two together.
    pub fn new(name: PackageName, version: Version) -> Self {
        PackageVersion { name, version }
    }

    /// Returns the name of the tree on a mirror and in a torrent: `<name with / as ->-<version>`.
    pub fn tree_name(&self) -> String {
        format!("{}-{}", self.name.as_str().replace('/', "-"), self.version)
    }
}

/// Why a text is not `name@version`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PackageVersionError {
    /// There is no `@`.
    #[error("a package version is written name@version")]
    Syntax,
    /// The part before `@` is no package name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The part after `@` is no version.
    #[error(transparent)]
    Version(#[from] VersionError),
}

impl FromStr for PackageVersion {
    type Err = PackageVersionError;

    fn from_str(text: &str) -> Result<Self, PackageVersionError> {
        let (name, version) = text.split_once('@').ok_or(PackageVersionError::Syntax)?;
        Ok(PackageVersion {
            name: name.parse()?,
            version: version.parse()?,
        })
    }
}

impl fmt::Display for PackageVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.version)
    }
}

/// The SHA-256 of a manifest's JCS bytes: adding a signature does not change it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ManifestId(pub Digest);

/// The SHA-256 of a release index's JCS bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IndexId(pub Digest);

/// The SHA-256 of a raw public key, always recomputed from the key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(pub Digest);

impl fmt::Display for PackageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

macro_rules! as_text {
    ($($type:ty),*) => {$(
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

as_text!(PackageName, Version, PackageVersion);

macro_rules! ids {
    ($($type:ident),*) => {$(
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $type {
            type Err = DigestSyntax;

            fn from_str(text: &str) -> Result<Self, DigestSyntax> {
                text.parse().map($type)
            }
        }
    )*};
}

ids!(ManifestId, IndexId, KeyId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_around_the_limits() {
        let longest = "a".repeat(NAME_PART_BYTES_MAX);
        assert!(longest.parse::<PackageName>().is_ok());
        assert!(
            format!("{longest}/{longest}")
                .parse::<PackageName>()
                .is_ok()
        );
        assert_eq!(
            format!("{longest}a").parse::<PackageName>(),
            Err(NameError::Length)
        );
        let longest = format!("1.0.0-{}", "a".repeat(VERSION_BYTES_MAX - 6));
        assert!(longest.parse::<Version>().is_ok());
        assert_eq!(
            format!("{longest}a").parse::<Version>(),
            Err(VersionError::Length)
        );
    }

    #[test]
    fn numbers_of_versions_are_below_2_to_the_64() {
        for text in ["18446744073709551615.0.0", "1.0.0-18446744073709551615"] {
            assert!(text.parse::<Version>().is_ok(), "{text}");
        }
        for text in ["18446744073709551616.0.0", "1.0.0-18446744073709551616"] {
            assert_eq!(text.parse::<Version>(), Err(VersionError::Syntax), "{text}");
        }
    }

    #[test]
    fn versions_are_ordered_by_precedence() {
        let ordered = [
            "1.0.0-alpha",
            "1.0.0-alpha.1",
            "1.0.0-alpha.beta",
            "1.0.0-beta.2",
            "1.0.0-beta.11",
            "1.0.0-rc.1",
            "1.0.0",
            "1.2.0",
            "1.10.0",
        ];
        let parsed: Vec<Version> = ordered.iter().map(|text| text.parse().unwrap()).collect();
        assert!(parsed.is_sorted());
    }

    #[test]
    fn each_refusal_has_its_reason() {
        let error = |text: &str| text.parse::<PackageName>().unwrap_err();
        assert_eq!(error("a/b/c"), NameError::Parts);
        assert_eq!(error("a/latest"), NameError::Reserved("latest".into()));
        assert_eq!(error("../x"), NameError::Syntax);
        assert_eq!("1.0.0+b".parse::<Version>(), Err(VersionError::Build));
        assert_eq!(
            "a-1.0.0".parse::<PackageVersion>(),
            Err(PackageVersionError::Syntax)
        );
    }

    #[test]
    fn a_tree_is_named_after_package_and_version() {
        let package: PackageVersion = "acme/tool@1.2.3-rc.1".parse().unwrap();
        assert_eq!(package.tree_name(), "acme-tool-1.2.3-rc.1");
        assert_eq!(package.to_string(), "acme/tool@1.2.3-rc.1");
        assert_eq!(package.name.scope(), Some("acme"));
        assert_eq!(package.name.parts().collect::<Vec<_>>(), ["acme", "tool"]);
        assert_eq!(package.name.first(), "acme");
    }
}
