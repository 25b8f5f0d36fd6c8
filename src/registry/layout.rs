//! Where each file of a registry lies, below a directory or a URL alike.

use std::fmt;

use crate::manifest::{ENVELOPE_BYTES_MAX, KeyId, PackageName, PackageVersion};

use super::{KEY_BYTES_MAX, LISTING_BYTES_MAX, SUMS_BYTES_MAX};
use crate::torrent::INFO_BYTES_MAX;

/// The largest `.torrent` file, in bytes: an info dictionary, and a release index's hints.
const TORRENT_BYTES_MAX: u64 = INFO_BYTES_MAX as u64 + (1 << 20);

/// A file of a registry. Its text is the path below the root, always relative and without `..`: names, versions and
/// key ids have no other characters than those of their grammars.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// The list of names.
    Listing,
    /// The release index of a package.
    Index(PackageName),
    /// The manifest of a version.
    Manifest(PackageVersion),
    /// `SHA256SUMS` of a version.
    Sums(PackageVersion),
    /// The `.torrent` file of a version.
    Torrent(PackageVersion),
    /// A public key.
    Key(KeyId),
}

impl Place {
    /// Reads a path below the root; `None` for a path that no file of a registry has.
    ///
    /// `packages/a/b/index.json` is the index of `a/b`, since no version is called `b`.
    pub fn parse(path: &str) -> Option<Place> {
        if path == "packages.json" {
            return Some(Place::Listing);
        }
        if let Some(file) = path.strip_prefix("keys/") {
            return file.strip_suffix(".pem")?.parse().ok().map(Place::Key);
        }
        let (directory, file) = path.strip_prefix("packages/")?.rsplit_once('/')?;
        if file == "index.json" {
            return directory.parse().ok().map(Place::Index);
        }
        let (name, version) = directory.rsplit_once('/')?;
        let package = PackageVersion::new(name.parse().ok()?, version.parse().ok()?);
        match file {
            "manifest.json" => Some(Place::Manifest(package)),
            "SHA256SUMS" => Some(Place::Sums(package)),
            _ => {
                let tree = file.strip_suffix(".torrent")?;
                (tree == package.tree_name()).then_some(Place::Torrent(package))
            }
        }
    }

    /// Returns the most bytes that such a file may have.
    pub fn bytes_max(&self) -> u64 {
        match self {
            Place::Listing => LISTING_BYTES_MAX,
            Place::Index(_) | Place::Manifest(_) => ENVELOPE_BYTES_MAX as u64,
            Place::Sums(_) => SUMS_BYTES_MAX,
            Place::Torrent(_) => TORRENT_BYTES_MAX,
            Place::Key(_) => KEY_BYTES_MAX,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Listing => f.write_str("packages.json"),
            Place::Index(name) => write!(f, "packages/{name}/index.json"),
            Place::Manifest(package) => {
                write!(
                    f,
                    "packages/{}/{}/manifest.json",
                    package.name, package.version
                )
            }
            Place::Sums(package) => {
                write!(
                    f,
                    "packages/{}/{}/SHA256SUMS",
                    package.name, package.version
                )
            }
            Place::Torrent(package) => write!(
                f,
                "packages/{}/{}/{}.torrent",
                package.name,
                package.version,
                package.tree_name()
            ),
            Place::Key(key) => write!(f, "keys/{key}.pem"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_as_they_are_written() {
        let key = format!("keys/{}.pem", "ab".repeat(32));
        for path in [
            "packages.json",
            "packages/tool/index.json",
            "packages/acme/tool/index.json",
            "packages/tool/1.0.0/manifest.json",
            "packages/acme/tool/1.0.0-rc.1/manifest.json",
            "packages/acme/tool/1.0.0/SHA256SUMS",
            "packages/acme/tool/1.0.0/acme-tool-1.0.0.torrent",
            // A package may have such a name; then its directory is where another one's index would be.
            "packages/acme/index.json/index.json",
            "packages/acme/index.json/1.0.0/manifest.json",
            &key,
        ] {
            let place = Place::parse(path).unwrap_or_else(|| panic!("{path}"));
            assert_eq!(place.to_string(), path);
        }
    }

    #[test]
    fn other_paths_are_nothing() {
        for path in [
            "",
            "packages",
            "packages/",
            "packages/index.json",
            "packages//index.json",
            "packages/../index.json",
            "packages/a/../index.json",
            "packages/a/b/c/index.json",
            "packages/tool/manifest.json",
            "packages/tool/1.0/manifest.json",
            "packages/tool/1.0.0/manifest.json/",
            "packages/tool/1.0.0/other",
            "packages/tool/1.0.0/tool-1.0.1.torrent",
            "packages/Tool/1.0.0/manifest.json",
            "packages/tool/latest/manifest.json",
            "/packages/tool/index.json",
            "packages/tool\0/index.json",
            "keys/x.pem",
            "keys/../packages.json",
            "other.json",
        ] {
            assert_eq!(Place::parse(path), None, "{path}");
        }
    }
}
