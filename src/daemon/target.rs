//! What people name: `PKG[@VERSION][/PATH]`, or a path below a mount.

use std::path::Path;
use std::sync::Arc;

use crate::install::{LATEST, Listed, Listing};
use crate::manifest::{PackageName, PackageVersion, Version};
use crate::serve::control::{Failure, FailureKind};

/// A package, maybe a version of it, maybe a path within.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The package.
    pub name: PackageName,
    /// The version; none: what `latest` leads to.
    pub version: Option<Version>,
    /// The path below the version, without slashes at its ends; empty: all of it.
    pub path: Vec<u8>,
}

/// Why a target names nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// It is not of the form.
    #[error("{0:?} is not a package: expected NAME, NAME@VERSION, or either with /PATH")]
    Syntax(String),
    /// The mount shows no version there.
    #[error("{0:?} is above the versions: name a version")]
    AboveVersions(String),
    /// No trusted package of that name.
    #[error("no package {0}")]
    NoPackage(PackageName),
    /// The package has no such version, or no `latest`.
    #[error("no version {version} of {name}")]
    NoVersion {
        /// The package.
        name: PackageName,
        /// The version, or `latest`.
        version: String,
    },
}

impl Target {
    /// Reads a target. `mounts` are the mount points: an absolute path below one of them names what it shows there.
    ///
    /// `one/two` is the package `one/two` if `known` says so, else the path `two` in the package `one`.
    ///
    /// # Errors
    /// [`TargetError::Syntax`], [`TargetError::AboveVersions`].
    pub fn parse(
        text: &str,
        mounts: &[&Path],
        known: impl Fn(&PackageName) -> bool,
    ) -> Result<Target, TargetError> {
        if let Some(below) = mounts
            .iter()
            .find_map(|mount| Path::new(text).strip_prefix(mount).ok())
        {
            return Target::below_mount(text, &below.to_string_lossy(), known);
        }
        let syntax = || TargetError::Syntax(text.to_owned());
        // An absolute path that no mount of this home holds.
        if text.starts_with('/') {
            return Err(syntax());
        }
        let (name, rest) = match text.split_once('@') {
            Some((name, rest)) => (
                name.parse::<PackageName>().map_err(|_| syntax())?,
                Some(rest),
            ),
            None => (
                PackageName::try_from_prefix(text, &known).ok_or_else(syntax)?,
                None,
            ),
        };
        let (version, path) = match rest {
            Some(rest) => rest
                .split_once('/')
                .map_or((Some(rest), ""), |(version, path)| (Some(version), path)),
            None => (None, text[name.as_str().len()..].trim_start_matches('/')),
        };
        let version = match version {
            None | Some(LATEST) => None,
            Some(version) => Some(version.parse().map_err(|_| syntax())?),
        };
        Ok(Target {
            name,
            version,
            path: path.trim_matches('/').as_bytes().to_vec(),
        })
    }

    fn below_mount(
        text: &str,
        below: &str,
        known: impl Fn(&PackageName) -> bool,
    ) -> Result<Target, TargetError> {
        let above = || TargetError::AboveVersions(text.to_owned());
        let name = PackageName::try_from_prefix(below, &known).ok_or_else(above)?;
        let rest = below[name.as_str().len()..].trim_start_matches('/');
        let (version, path) = rest.split_once('/').unwrap_or((rest, ""));
        let version = match version {
            "" => return Err(above()),
            LATEST => None,
            version => Some(version.parse().map_err(|_| above())?),
        };
        Ok(Target {
            name,
            version,
            path: path.trim_matches('/').as_bytes().to_vec(),
        })
    }

    /// Finds the version that is meant.
    ///
    /// # Errors
    /// [`TargetError::NoPackage`], [`TargetError::NoVersion`].
    pub fn find(&self, listing: &Listing) -> Result<Arc<Listed>, TargetError> {
        if let Some(version) = listing.find(&self.name, self.version.as_ref()) {
            return Ok(version);
        }
        if listing.versions(&self.name).is_empty() {
            return Err(TargetError::NoPackage(self.name.clone()));
        }
        let version = self
            .version
            .as_ref()
            .map_or_else(|| LATEST.to_owned(), ToString::to_string);
        Err(TargetError::NoVersion {
            name: self.name.clone(),
            version,
        })
    }
}

/// Reads a package's name and version, as a person typed them.
pub(crate) fn package_version(name: &str, version: &str) -> Result<PackageVersion, Failure> {
    let usage = |message: String| Failure::new(FailureKind::Usage, message);
    let name: PackageName = name
        .parse()
        .map_err(|error| usage(format!("{name:?} cannot be a package name: {error}")))?;
    let version: Version = version
        .parse()
        .map_err(|error| usage(format!("{version:?} cannot be a version: {error}")))?;
    Ok(PackageVersion::new(name, version))
}

impl PackageName {
    /// Takes the package name off the front of a path: two parts if `known` says that this is a package, else one.
    fn try_from_prefix(path: &str, known: &impl Fn(&PackageName) -> bool) -> Option<PackageName> {
        let mut parts = path.splitn(3, '/').filter(|part| !part.is_empty());
        let first = parts.next()?;
        let scoped = parts
            .next()
            .and_then(|second| format!("{first}/{second}").parse::<PackageName>().ok());
        match scoped {
            Some(scoped) if known(&scoped) => Some(scoped),
            scoped => {
                let plain = first.parse::<PackageName>().ok();
                // Neither is known: two parts are more likely a scoped name that is not there than a path.
                plain
                    .filter(|name| known(name))
                    .or(scoped)
                    .or_else(|| first.parse().ok())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<(String, Option<String>, String), TargetError> {
        let known = |name: &PackageName| ["plain", "acme/tools"].contains(&name.as_str());
        let target = Target::parse(text, &[Path::new("/mnt/p")], known)?;
        let path = String::from_utf8(target.path).unwrap();
        Ok((
            target.name.to_string(),
            target.version.map(|version| version.to_string()),
            path,
        ))
    }

    fn is(
        name: &str,
        version: Option<&str>,
        path: &str,
    ) -> Result<(String, Option<String>, String), TargetError> {
        Ok((name.into(), version.map(Into::into), path.into()))
    }

    #[test]
    fn targets_are_packages_versions_and_paths() {
        assert_eq!(parse("plain"), is("plain", None, ""));
        assert_eq!(parse("plain/bin/x"), is("plain", None, "bin/x"));
        assert_eq!(parse("acme/tools"), is("acme/tools", None, ""));
        assert_eq!(parse("acme/tools/bin/"), is("acme/tools", None, "bin"));
        assert_eq!(
            parse("acme/tools@1.0.0/bin"),
            is("acme/tools", Some("1.0.0"), "bin")
        );
        assert_eq!(parse("acme/tools@latest"), is("acme/tools", None, ""));
        assert_eq!(parse("other/thing"), is("other/thing", None, ""));
        assert_eq!(
            parse("plain@1.0.0-rc.1"),
            is("plain", Some("1.0.0-rc.1"), "")
        );
        assert_eq!(
            parse("/mnt/p/acme/tools/1.0.0/a b"),
            is("acme/tools", Some("1.0.0"), "a b")
        );
        assert_eq!(parse("/mnt/p/plain/latest"), is("plain", None, ""));
        for above in ["/mnt/p", "/mnt/p/plain", "/mnt/p/plain/nonsense"] {
            assert_eq!(parse(above), Err(TargetError::AboveVersions(above.into())));
        }
        for bad in ["", "Plain", "plain@", "plain@1", "@1.0.0", "/elsewhere"] {
            assert_eq!(parse(bad), Err(TargetError::Syntax(bad.into())), "{bad}");
        }
    }
}
