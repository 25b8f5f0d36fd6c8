//! What is known of a package before a version is added: its release index, and whether the version exists.
//!
//! Asked are this home and the registry. Both pass the trust policy; what is refused there is never replaced.

use std::sync::Arc;

use bytes::Bytes;

use super::PublishError;
use super::job::Part;
use super::options::{Latest, Options};
use crate::block::Digest;
use crate::manifest::{
    Envelope, IndexFields, ManifestId, PackageName, PackageVersion, ReleaseIndex, SeenIndex,
    Timestamp, TrustPolicy, TrustedIndex, TrustedManifest, Version,
};
use crate::registry::Registry;
use crate::state::State;

/// What is known of a package.
pub(crate) struct Known {
    /// The release index to go on from: of this home's and the registry's the later one, with the other's versions.
    pub(crate) index: Option<IndexFields>,
    /// The envelope of that index, when it stands as it is.
    pub(crate) index_envelope: Option<Bytes>,
    /// The digest of the index envelope in the registry.
    pub(crate) replaces: Option<Digest>,
    /// The version's manifest, if there is one.
    pub(crate) manifest: Option<TrustedManifest>,
    /// The manifest id that is known for the version, from the index or from what this home has seen.
    pub(crate) id: Option<ManifestId>,
}

const HOME: &str = "this home";

impl Known {
    /// Returns the version that `latest` leads to, or else the highest that is not withdrawn.
    pub(super) fn newest(&self) -> Option<Version> {
        let index = self.index.as_ref()?;
        let mut versions = index.versions.keys().rev();
        let highest = || versions.find(|version| !index.withdrawn.contains_key(version));
        index.latest.as_ref().or_else(highest).cloned()
    }

    /// Refuses to publish a version that is withdrawn, whatever its tree.
    pub(super) fn check_not_withdrawn(&self, package: &PackageVersion) -> Result<(), PublishError> {
        let withdrawn = self.index.as_ref().map(|index| &index.withdrawn);
        match withdrawn.and_then(|all| all.get(&package.version)) {
            Some(reason) => Err(PublishError::Withdrawn {
                package: package.clone(),
                reason: reason.clone(),
            }),
            None => Ok(()),
        }
    }
}

/// Asks this home and the registry for the release index, and not for the version's manifest.
pub(crate) async fn known_index(
    package: &PackageVersion,
    state: &State,
    trust: &TrustPolicy,
    registry: &Arc<dyn Registry>,
) -> Result<Known, PublishError> {
    let name = &package.name;
    let here = state.published().index(name)?.map(Bytes::from);
    let there = registry.index(name).await.map_err(PublishError::Registry)?;
    let replaces = there.as_deref().map(Digest::of);
    let here = here
        .map(|bytes| trusted_index(&bytes, name, trust, HOME))
        .transpose()?;
    let there = there
        .map(|bytes| trusted_index(&bytes, name, trust, registry.name()))
        .transpose()?;
    let (index, index_envelope) = merge(here, there, registry.name())?;
    check_not_behind(
        name,
        index.as_ref(),
        state.seen().index(name)?,
        registry.name(),
    )?;
    let listed = index
        .as_ref()
        .and_then(|index| index.versions.get(&package.version).copied());
    let seen = state.seen().manifest(package)?;
    Ok(Known {
        index,
        index_envelope,
        replaces,
        manifest: None,
        id: listed.or(seen),
    })
}

/// Asks this home and the registry.
pub(crate) async fn known(
    package: &PackageVersion,
    state: &State,
    trust: &TrustPolicy,
    registry: &Arc<dyn Registry>,
) -> Result<Known, PublishError> {
    let mut known = known_index(package, state, trust, registry).await?;
    let here = state.published().manifest(package)?.map(Bytes::from);
    let there = registry
        .manifest(package)
        .await
        .map_err(PublishError::Registry)?;
    let mut manifest: Option<TrustedManifest> = None;
    for (bytes, place) in [(here, HOME), (there, registry.name())] {
        let Some(bytes) = bytes else { continue };
        let found = trusted_manifest(&bytes, package, trust, place)?;
        if let Some(before) = &manifest
            && before.id() != found.id()
        {
            return Err(PublishError::Exists {
                package: package.clone(),
                ours: before.id(),
                there: found.id(),
            });
        }
        manifest.get_or_insert(found);
    }
    known.id = manifest.as_ref().map(TrustedManifest::id).or(known.id);
    known.manifest = manifest;
    Ok(known)
}

fn trusted_index(
    bytes: &[u8],
    name: &PackageName,
    trust: &TrustPolicy,
    place: &str,
) -> Result<TrustedIndex, PublishError> {
    let stranger = |error| stranger(place, "release index", name, error);
    let envelope = Envelope::parse(bytes).map_err(|error| stranger(error.into()))?;
    // Which sequence was seen is judged on the result, not on each place: one of them may well be behind.
    trust
        .verify_index(&envelope, name, None)
        .map_err(|error| stranger(error.into()))
}

fn trusted_manifest(
    bytes: &[u8],
    package: &PackageVersion,
    trust: &TrustPolicy,
    place: &str,
) -> Result<TrustedManifest, PublishError> {
    let stranger = |error| stranger(place, "manifest", &package.name, error);
    let envelope = Envelope::parse(bytes).map_err(|error| stranger(error.into()))?;
    trust
        .verify_manifest(&envelope, package)
        .map_err(|error| stranger(error.into()))
}

fn stranger(
    place: &str,
    what: &'static str,
    package: &PackageName,
    error: Box<dyn std::error::Error + Send + Sync>,
) -> PublishError {
    PublishError::Stranger {
        place: place.to_owned(),
        what,
        package: package.clone(),
        error,
    }
}

/// Puts two indexes together: the later one, and what only the other one lists.
fn merge(
    here: Option<TrustedIndex>,
    there: Option<TrustedIndex>,
    place: &str,
) -> Result<(Option<IndexFields>, Option<Bytes>), PublishError> {
    let (here, there) = match (here, there) {
        (Some(here), Some(there)) if here.index().id() != there.index().id() => (here, there),
        (one, other) => {
            let only = one.or(other);
            let envelope = only.as_ref().map(|index| index.envelope().clone());
            return Ok((only.map(|index| index.index().fields().clone()), envelope));
        }
    };
    let ours_is_later = here.index().sequence > there.index().sequence;
    let (later, earlier) = if ours_is_later {
        (here, there)
    } else {
        (there, here)
    };
    let mut fields = later.index().fields().clone();
    let mut as_it_is = later.index().sequence != earlier.index().sequence;
    for (version, id) in &earlier.index().versions {
        match fields.versions.get(version) {
            None => {
                fields.versions.insert(version.clone(), *id);
                as_it_is = false;
            }
            Some(known) if known == id => {}
            Some(known) => {
                let (here, there) = if ours_is_later {
                    (*known, *id)
                } else {
                    (*id, *known)
                };
                return Err(PublishError::Split {
                    package: PackageVersion::new(fields.name.clone(), version.clone()),
                    here,
                    there,
                    place: place.to_owned(),
                });
            }
        }
    }
    for (version, reason) in &earlier.index().withdrawn {
        if !fields.withdrawn.contains_key(version) {
            fields.withdrawn.insert(version.clone(), reason.clone());
            as_it_is = false;
        }
    }
    let envelope = as_it_is.then(|| later.envelope().clone());
    Ok((Some(fields), envelope))
}

/// Refuses to go on from an index that is older than one this home has seen: versions would be lost.
fn check_not_behind(
    name: &PackageName,
    index: Option<&IndexFields>,
    seen: Option<SeenIndex>,
    place: &str,
) -> Result<(), PublishError> {
    let sequence = index.map_or(0, |index| index.sequence);
    match seen {
        Some(seen) if seen.sequence > sequence => Err(PublishError::Behind {
            package: name.clone(),
            place: place.to_owned(),
            sequence,
            seen: seen.sequence,
        }),
        _ => Ok(()),
    }
}

/// Returns the release index that adds the version: the one there is when it says all of it already.
pub(crate) fn next_index(
    known: &Known,
    options: &Options,
    id: ManifestId,
    created: Timestamp,
) -> Result<Part<ReleaseIndex>, PublishError> {
    let package = &options.package;
    if let (Some(envelope), Some(index)) = (&known.index_envelope, &known.index)
        && index.versions.get(&package.version) == Some(&id)
        && options.hints.hold(index)
    {
        return Ok(Part::Signed(envelope.clone()));
    }
    let mut fields = known.index.clone().unwrap_or_else(|| IndexFields {
        name: package.name.clone(),
        sequence: 0,
        created,
        expires: None,
        latest: None,
        versions: Default::default(),
        withdrawn: Default::default(),
        http: Vec::new(),
        gateways: Vec::new(),
        trackers: Vec::new(),
    });
    fields.sequence += 1;
    // Time never goes backwards in a chain of indexes, also with SOURCE_DATE_EPOCH: `max_age` is measured from it.
    fields.created = fields.created.max(created);
    fields.expires = options.expires;
    fields.versions.insert(package.version.clone(), id);
    match options.latest {
        Latest::Highest => fields.latest = ReleaseIndex::highest_release(&fields).cloned(),
        Latest::This => fields.latest = Some(package.version.clone()),
        Latest::Keep => {}
    }
    for (hint, there) in [
        (&options.hints.http, &mut fields.http),
        (&options.hints.gateways, &mut fields.gateways),
        (&options.hints.trackers, &mut fields.trackers),
    ] {
        if let Some(hint) = hint {
            there.clone_from(hint);
        }
    }
    Ok(Part::Unsigned(ReleaseIndex::new(&fields)?))
}
