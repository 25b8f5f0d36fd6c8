//! Which version comes next: what `@next` means.

use std::sync::Arc;

use super::instructions::Bump;
use crate::manifest::{Manifest, PackageName, PackageVersion, TrustPolicy, Version};
use crate::publish::known::known;
use crate::publish::{PublishError, Publisher};
use crate::registry::Registry;

/// The version of a package that has none yet.
const FIRST: &str = "0.1.0";

/// How a package stands before a version is added: its highest version, whether released or not, withdrawn or not.
#[derive(Debug, Clone)]
pub struct Standing {
    highest: Option<(Version, Option<Manifest>)>,
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
            return Ok(Standing { highest: None });
        };
        let package = PackageVersion::new(name.clone(), highest.clone());
        let there = known(&package, &publisher.state, trust, registry).await?;
        let manifest = there.manifest.map(|trusted| trusted.manifest().clone());
        Ok(Standing {
            highest: Some((highest, manifest)),
        })
    }

    /// Returns the version that comes next.
    pub fn next(&self, bump: Bump) -> Version {
        let next = self
            .highest
            .as_ref()
            .and_then(|(highest, _)| highest.next(bump));
        next.unwrap_or_else(first)
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
        let none = Standing { highest: None };
        assert_eq!(none.next(Bump::Major).to_string(), "0.1.0");
    }
}
