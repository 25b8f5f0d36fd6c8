//! A release index that says something else about a version that exists: it is withdrawn, or `latest` leads to it.
//!
//! A withdrawal is never taken back. So two indexes that were made at a time can be put together without asking which
//! of the two knew of the other: what either of them withdraws is withdrawn.

use serde::{Deserialize, Serialize};

use super::PublishError;
use super::job::Part;
use super::known::Known;
use crate::manifest::{ManifestId, PackageVersion, ReleaseIndex, Timestamp};

/// The longest reason of a withdrawal, in bytes: every reader of the package gets it with the index.
pub const REASON_BYTES_MAX: usize = 1000;

/// What a release index is to say of a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// It must not be used any more, for this reason. `latest` goes on to the highest release that is left, if it led
    /// here.
    Withdraw(String),
    /// `latest` leads to it.
    Latest,
}

/// Returns the manifest of the version, and the index that says it: the one there is when it does already.
pub(super) fn changed_index(
    known: &Known,
    package: &PackageVersion,
    change: &Change,
    now: Timestamp,
) -> Result<(ManifestId, Part<ReleaseIndex>), PublishError> {
    let there = known.index.as_ref();
    let there = there.ok_or_else(|| PublishError::NoPackage(package.name.clone()))?;
    let id = there.versions.get(&package.version).copied();
    let id = id.ok_or_else(|| PublishError::NoVersion(package.clone()))?;
    let withdrawn = there.withdrawn.get(&package.version);
    let mut fields = there.clone();
    match (change, withdrawn) {
        (Change::Withdraw(reason), None) => {
            if !(1..=REASON_BYTES_MAX).contains(&reason.len()) {
                return Err(PublishError::Reason(reason.len()));
            }
            fields
                .withdrawn
                .insert(package.version.clone(), reason.clone());
            if fields.latest.as_ref() == Some(&package.version) {
                fields.latest = ReleaseIndex::highest_release(&fields).cloned();
            }
        }
        // Once more, because it could not be announced.
        (Change::Withdraw(reason), Some(before)) if reason == before => {}
        (_, Some(before)) => {
            return Err(PublishError::Withdrawn {
                package: package.clone(),
                reason: before.clone(),
            });
        }
        (Change::Latest, None) => fields.latest = Some(package.version.clone()),
    }
    if let Some(envelope) = &known.index_envelope
        && fields == *there
    {
        return Ok((id, Part::Signed(envelope.clone())));
    }
    fields.sequence += 1;
    // Time never goes backwards in a chain of indexes: `max_age` is measured from it.
    fields.created = fields.created.max(now);
    Ok((id, Part::Unsigned(ReleaseIndex::new(&fields)?)))
}
