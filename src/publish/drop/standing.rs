//! Which version comes next: what `@next` means.

use std::sync::Arc;

use super::instructions::Bump;
use crate::manifest::{Manifest, PackageName, PackageVersion, TrustPolicy, Version};
use crate::publish::known::known;
use crate::publish::{PublishError, Publisher};
use crate::registry::Registry;

/// The version of a package that has none yet.
const FIRST: &str = "0.1.0";

/// How many versions are passed over that are taken and that no release index lists; each is asked for.
const TAKEN_MAX: u32 = 1000;

/// How a package stands before a version is added: its highest version, whether released or not, withdrawn or not.
#[derive(Debug, Clone)]
pub struct Standing {
    highest: Option<(Version, Option<Manifest>)>,
    /// One that is taken, though no release index lists it: its publisher died, or has not come to it.
    taken: Option<Version>,
}

/// Why `@next` means no version.
#[derive(Debug, thiserror::Error)]
#[error("no version comes after {highest}: its number cannot grow")]
pub struct NoNext {
    highest: Version,
}

impl NoNext {
    /// Returns what to do about it.
    pub fn hint(&self) -> &'static str {
        "name the version, in the directory's name or in manifs.toml"
    }
}

impl Standing {
    /// Asks this home and the registry.
    ///
    /// # Errors
    /// [`PublishError`], as publishing would.
    pub async fn of(
        publisher: &Publisher,
        name: &PackageName,
        registry: &Arc<dyn Registry>,
        trust: &TrustPolicy,
    ) -> Result<Standing, PublishError> {
        let first = PackageVersion::new(name.clone(), first());
        let known_index = known(&first, &publisher.state, trust, registry)
            .await?
            .index;
        let highest = known_index.and_then(|index| index.versions.into_keys().max());
        let Some(highest) = highest else {
            return Ok(Standing {
                highest: None,
                taken: None,
            });
        };
        let package = PackageVersion::new(name.clone(), highest.clone());
        let there = known(&package, &publisher.state, trust, registry).await?;
        let manifest = there.manifest.map(|trusted| trusted.manifest().clone());
        Ok(Standing {
            highest: Some((highest, manifest)),
            taken: None,
        })
    }

    /// Goes on from a version that is taken though no release index lists it, and from those after it that are, too.
    ///
    /// # Errors
    /// [`PublishError`], as publishing would.
    pub async fn past(
        mut self,
        taken: PackageVersion,
        bump: Bump,
        publisher: &Publisher,
        registry: &Arc<dyn Registry>,
    ) -> Result<Standing, PublishError> {
        self.taken = Some(taken.version);
        for _ in 0..TAKEN_MAX {
            let Ok(next) = self.next(bump) else { break };
            let next = PackageVersion::new(taken.name.clone(), next);
            let seen = publisher.state.seen().manifest(&next)?.is_some();
            let there = registry.manifest(&next).await;
            if !seen && there.map_err(PublishError::Registry)?.is_none() {
                break;
            }
            self.taken = Some(next.version);
        }
        Ok(self)
    }

    /// Returns the version that comes next.
    ///
    /// # Errors
    /// [`NoNext`], when there is none.
    pub fn next(&self, bump: Bump) -> Result<Version, NoNext> {
        let listed = self.highest.as_ref().map(|(version, _)| version);
        match listed.max(self.taken.as_ref()) {
            None => Ok(first()),
            Some(highest) => highest.next(bump).ok_or_else(|| NoNext {
                highest: highest.clone(),
            }),
        }
    }

    /// Returns the highest version if it has the same content as `made`.
    pub fn equal(&self, made: &Manifest) -> Option<&Version> {
        let (version, manifest) = self.highest.as_ref()?;
        let manifest = manifest.as_ref()?;
        (manifest.catalog == made.catalog && manifest.root == made.root).then_some(version)
    }
}

fn first() -> Version {
    FIRST
        .parse()
        .unwrap_or_else(|_| unreachable!("a constant that is a version"))
}

impl Version {
    /// Returns the release that comes after this version; `None` when its number would not fit.
    ///
    /// The release that a pre-release prepares comes after it, where it is one of the wanted kind.
    fn next(&self, bump: Bump) -> Option<Version> {
        let [major, minor, patch] = self.numbers();
        let prepares = self.is_prerelease();
        let (major, minor, patch) = match bump {
            Bump::Patch if prepares => (major, minor, patch),
            Bump::Patch => (major, minor, patch.checked_add(1)?),
            Bump::Minor if prepares && patch == 0 => (major, minor, 0),
            Bump::Minor => (major, minor.checked_add(1)?, 0),
            Bump::Major if prepares && minor == 0 && patch == 0 => (major, 0, 0),
            Bump::Major => (major.checked_add(1)?, 0, 0),
        };
        format!("{major}.{minor}.{patch}").parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_version_is_the_one_people_expect() {
        let next = |highest: &str, bump| {
            let highest: Version = highest.parse().unwrap();
            highest.next(bump).map(|next| next.to_string())
        };
        for (highest, patch, minor, major) in [
            ("1.2.3", "1.2.4", "1.3.0", "2.0.0"),
            ("0.1.0", "0.1.1", "0.2.0", "1.0.0"),
            ("1.0.0-rc.1", "1.0.0", "1.0.0", "1.0.0"),
            ("1.2.0-rc.1", "1.2.0", "1.2.0", "2.0.0"),
            ("1.2.3-rc.1", "1.2.3", "1.3.0", "2.0.0"),
        ] {
            assert_eq!(next(highest, Bump::Patch).unwrap(), patch);
            assert_eq!(next(highest, Bump::Minor).unwrap(), minor);
            assert_eq!(next(highest, Bump::Major).unwrap(), major);
        }
        assert_eq!(next("1.0.18446744073709551615", Bump::Patch), None);
        let version = |text: &str| -> Version { text.parse().unwrap() };
        let standing = |highest: Option<&str>, taken: Option<&str>| {
            let standing = Standing {
                highest: highest.map(|highest| (version(highest), None)),
                taken: taken.map(version),
            };
            let next = standing.next(Bump::Patch);
            next.map_or_else(|error| error.to_string(), |next| next.to_string())
        };
        assert_eq!(standing(None, None), "0.1.0");
        assert_eq!(standing(None, Some("0.1.0")), "0.1.1");
        assert_eq!(standing(Some("1.0.0"), Some("1.0.1")), "1.0.2");
        // Listed since.
        assert_eq!(standing(Some("1.0.5"), Some("1.0.1")), "1.0.6");
        let last = "1.0.18446744073709551615";
        assert!(standing(Some(last), None).starts_with("no version comes after"));
    }
}
