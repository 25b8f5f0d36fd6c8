//! The second door: an envelope goes in, and what the user's policy accepts comes out under another name.
//!
//! [`TrustPolicy::verify_manifest`] and [`TrustPolicy::verify_index`] are the only constructors of
//! [`TrustedManifest`] and [`TrustedIndex`]. Neither has a way to be told to look away.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::document::Manifest;
use super::envelope::{Envelope, Kind, Signed};
use super::index::ReleaseIndex;
use super::name::{IndexId, KeyId, ManifestId, PackageName, PackageVersion};
use super::policy::{BlockedPackage, Links, Pattern, Rule, TrustPolicy};
use super::time::{Timestamp, format_duration};

/// The highest release index that was admitted for a package.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SeenIndex {
    /// Its sequence.
    pub sequence: u64,
    /// Its content.
    pub id: IndexId,
}

/// Why an envelope is not trusted: one variant for each decision, each with what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// The envelope holds the other of the two kinds.
    #[error("a {got} where a {want} is wanted")]
    WrongKind {
        /// What was asked for.
        want: Kind,
        /// What is there.
        got: Kind,
    },
    /// The envelope is about something else than its place says.
    #[error("found at the place of {expected}, but signed as {found}")]
    WrongPackage {
        /// What the place says.
        expected: String,
        /// What the envelope says.
        found: String,
    },
    /// No rule is about the package.
    #[error("no trust rule matches {0}")]
    NoRule(PackageName),
    /// The user blocked it.
    #[error("{package} is blocked by the trust policy{}", because(.reason.as_deref()))]
    Blocked {
        /// What the policy names.
        package: String,
        /// Why, as the user wrote it.
        reason: Option<String>,
    },
    /// It is signed, but by none of the rule's keys.
    #[error("signed by {} and by no key of the rule for {pattern}", list(.signers))]
    UnknownKeys {
        /// The rule.
        pattern: Pattern,
        /// Who says to have signed.
        signers: Vec<KeyId>,
    },
    /// Too few of the rule's keys signed.
    #[error("signed by {have} of the keys of the rule for {pattern}, which wants {need}")]
    TooFewSignatures {
        /// The rule.
        pattern: Pattern,
        /// Distinct keys of the rule that signed.
        have: usize,
        /// The threshold.
        need: usize,
    },
    /// A signature by a key of the rule does not verify.
    #[error("the signature by key {key} is not right for this content (rule for {pattern})")]
    BadSignature {
        /// The rule.
        pattern: Pattern,
        /// The key that is named as signer.
        key: KeyId,
    },
    /// It would have enough signatures but for a key that is revoked.
    #[error("signed by key {key}, which is revoked{}", because(.reason.as_deref()))]
    RevokedKey {
        /// The key.
        key: KeyId,
        /// Why, as the user wrote it.
        reason: Option<String>,
    },
    /// An older release index than one seen before.
    #[error(
        "rollback: the release index of {name} has sequence {sequence}, and {seen} was seen before"
    )]
    Rollback {
        /// The package.
        name: PackageName,
        /// The sequence that came.
        sequence: u64,
        /// The highest seen.
        seen: u64,
    },
    /// Another release index with the sequence of one seen before.
    #[error("two different release indices of {name} have sequence {sequence}")]
    SameSequence {
        /// The package.
        name: PackageName,
        /// The sequence.
        sequence: u64,
    },
    /// Another manifest under a (name, version) that is known.
    #[error("{package} is known as manifest {seen}, and now comes as {got}")]
    OtherContent {
        /// Name and version.
        package: Box<PackageVersion>,
        /// The manifest known.
        seen: ManifestId,
        /// The manifest that came.
        got: ManifestId,
    },
    /// The publisher withdrew the version.
    #[error("{package} is withdrawn by its publisher{}", because(Some(.reason)))]
    Withdrawn {
        /// Name and version.
        package: PackageVersion,
        /// Why, as the publisher wrote it.
        reason: String,
    },
    /// The release index is too old to install anything new on its word.
    #[error("the release index of {name} is stale: {stale}")]
    Stale {
        /// The package.
        name: PackageName,
        /// In which way.
        stale: Stale,
    },
}

fn because(reason: Option<&str>) -> String {
    match reason {
        Some(reason) if !reason.is_empty() => format!(": {reason}"),
        _ => String::new(),
    }
}

fn list(keys: &[KeyId]) -> String {
    // More would fill a screen, and whoever forges an envelope chooses how many there are.
    const SHOWN: usize = 3;
    let shown: Vec<String> = keys.iter().take(SHOWN).map(KeyId::to_string).collect();
    match keys.len().checked_sub(SHOWN) {
        None | Some(0) => shown.join(", "),
        Some(more) => format!("{} and {more} more", shown.join(", ")),
    }
}

impl TrustError {
    /// Returns what a person can do about it.
    pub fn hint(&self) -> String {
        match self {
            TrustError::WrongKind { .. } | TrustError::WrongPackage { .. } => {
                "the registry serves it at the wrong place; tell whoever runs it".to_owned()
            }
            TrustError::NoRule(name) => format!(
                "if you have the publisher's key from somebody you believe: manifs trust add '{name}' KEY"
            ),
            TrustError::Blocked { .. } => {
                "your own trust.toml blocks it; remove the entry to see it again".to_owned()
            }
            TrustError::UnknownKeys { pattern, .. } => format!(
                "if the publisher told you of a new key: manifs trust add '{pattern}' KEY"
            ),
            TrustError::TooFewSignatures { .. } => {
                "another signer has to add a signature (manifs sign), or the rule's threshold is too high"
                    .to_owned()
            }
            TrustError::BadSignature { .. } => {
                "the file was damaged or forged; fetch it from another registry".to_owned()
            }
            TrustError::RevokedKey { .. } => {
                "the publisher has to sign with another key".to_owned()
            }
            TrustError::Rollback { .. } => {
                "the registry is behind or withholds news; update it or use another one".to_owned()
            }
            TrustError::SameSequence { .. } | TrustError::OtherContent { .. } => {
                "what is published never changes: somebody signs two things as one; ask the publisher"
                    .to_owned()
            }
            TrustError::Withdrawn { .. } => "use another version".to_owned(),
            TrustError::Stale { .. } => {
                "the publisher has to sign a new release index, or the registry withholds it".to_owned()
            }
        }
    }
}

/// In which way a release index is stale.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stale {
    /// Its own `expires` has passed.
    Expired(Timestamp),
    /// It is older than the rule's `max_age`.
    TooOld {
        /// When it was made.
        created: Timestamp,
        /// How old it may be.
        max_age: Duration,
    },
}

impl fmt::Display for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stale::Expired(expires) => write!(f, "it expired at {expires}"),
            Stale::TooOld { created, max_age } => write!(
                f,
                "it was made at {created}, more than {} ago",
                format_duration(*max_age)
            ),
        }
    }
}

/// Whether a release index names a version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mention {
    /// It does, with this very manifest.
    Listed,
    /// It does not: a version published after it, or dropped from it.
    Unlisted,
}

/// A manifest that the policy accepts. The fields are private: holding one is the proof.
#[derive(Clone)]
pub struct TrustedManifest(Arc<TrustedInner<Manifest>>);

/// A release index that the policy accepts. The fields are private: holding one is the proof.
#[derive(Clone)]
pub struct TrustedIndex(Arc<TrustedInner<ReleaseIndex>>);

struct TrustedInner<T> {
    content: T,
    signers: Vec<KeyId>,
    pattern: Pattern,
    links: Links,
    max_age: Option<Duration>,
    envelope: Bytes,
}

impl TrustedManifest {
    /// Returns the manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.0.content
    }

    /// Returns package and version.
    pub fn package(&self) -> &PackageVersion {
        &self.0.content.package
    }

    /// Returns the manifest's id.
    pub fn id(&self) -> ManifestId {
        self.0.content.id()
    }

    /// Returns the keys of the rule that signed.
    pub fn signers(&self) -> &[KeyId] {
        &self.0.signers
    }

    /// Returns the pattern of the rule that accepted it.
    pub fn pattern(&self) -> &Pattern {
        &self.0.pattern
    }

    /// Returns which symlinks the rule lets be shown.
    pub fn links(&self) -> Links {
        self.0.links
    }

    /// Returns the envelope as received.
    pub fn envelope(&self) -> &Bytes {
        &self.0.envelope
    }
}

impl fmt::Debug for TrustedManifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustedManifest({} {})", self.package(), self.id())
    }
}

impl TrustedIndex {
    /// Returns the release index.
    pub fn index(&self) -> &ReleaseIndex {
        &self.0.content
    }

    /// Returns the package.
    pub fn name(&self) -> &PackageName {
        &self.0.content.name
    }

    /// Returns sequence and content, for later comparison.
    pub fn seen(&self) -> SeenIndex {
        SeenIndex {
            sequence: self.0.content.sequence,
            id: self.0.content.id(),
        }
    }

    /// Returns the keys of the rule that signed.
    pub fn signers(&self) -> &[KeyId] {
        &self.0.signers
    }

    /// Returns the pattern of the rule that accepted it.
    pub fn pattern(&self) -> &Pattern {
        &self.0.pattern
    }

    /// Returns the envelope as received.
    pub fn envelope(&self) -> &Bytes {
        &self.0.envelope
    }

    /// Compares with the highest release index seen.
    ///
    /// # Errors
    /// [`TrustError::Rollback`], [`TrustError::SameSequence`].
    pub fn check_sequence(&self, seen: Option<SeenIndex>) -> Result<(), TrustError> {
        let new = self.seen();
        match seen {
            Some(seen) if new.sequence < seen.sequence => Err(TrustError::Rollback {
                name: self.name().clone(),
                sequence: new.sequence,
                seen: seen.sequence,
            }),
            Some(seen) if new.sequence == seen.sequence && new.id != seen.id => {
                Err(TrustError::SameSequence {
                    name: self.name().clone(),
                    sequence: new.sequence,
                })
            }
            _ => Ok(()),
        }
    }

    /// Returns whether the index is too old at `now`: then what is installed stays readable, marked as stale, and
    /// nothing new is installed.
    pub fn stale_at(&self, now: Timestamp) -> Option<Stale> {
        let index = &self.0.content;
        if let Some(expires) = index.expires.filter(|&expires| now >= expires) {
            return Some(Stale::Expired(expires));
        }
        let max_age = self
            .0
            .max_age
            .filter(|&max_age| now.since(index.created) > max_age)?;
        Some(Stale::TooOld {
            created: index.created,
            max_age,
        })
    }

    /// Checks a manifest of this package against what the index says of its version.
    ///
    /// # Errors
    /// [`TrustError::Withdrawn`], [`TrustError::OtherContent`]; [`TrustError::WrongPackage`] for one of another
    /// package.
    pub fn check(&self, manifest: &TrustedManifest) -> Result<Mention, TrustError> {
        let index = &self.0.content;
        let package = manifest.package();
        if package.name != index.name {
            return Err(TrustError::WrongPackage {
                expected: index.name.to_string(),
                found: package.name.to_string(),
            });
        }
        if let Some(reason) = index.withdrawn.get(&package.version) {
            return Err(TrustError::Withdrawn {
                package: package.clone(),
                reason: reason.clone(),
            });
        }
        match index.versions.get(&package.version) {
            None => Ok(Mention::Unlisted),
            Some(&id) if id == manifest.id() => Ok(Mention::Listed),
            Some(&seen) => Err(TrustError::OtherContent {
                package: Box::new(package.clone()),
                seen,
                got: manifest.id(),
            }),
        }
    }
}

impl fmt::Debug for TrustedIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustedIndex({:?})", self.index())
    }
}

impl TrustPolicy {
    /// Turns an envelope into a trusted manifest of `expected`, if the policy accepts it.
    ///
    /// What earlier runs saw is not known here: `state::Seen::admit_manifest` comes after this.
    ///
    /// # Errors
    /// [`TrustError`], the first reason to refuse it.
    pub fn verify_manifest(
        &self,
        envelope: &Envelope,
        expected: &PackageVersion,
    ) -> Result<TrustedManifest, TrustError> {
        let Signed::Manifest(manifest) = envelope.unverified() else {
            return Err(wrong_kind(Kind::Manifest, envelope));
        };
        if manifest.package != *expected {
            return Err(TrustError::WrongPackage {
                expected: expected.to_string(),
                found: manifest.package.to_string(),
            });
        }
        self.check_blocked(&expected.name, Some(expected))?;
        let (rule, signers) = self.verify(envelope, &expected.name)?;
        Ok(TrustedManifest(Arc::new(trusted(
            manifest, rule, signers, envelope,
        ))))
    }

    /// Turns an envelope into a trusted release index of `expected`, if the policy accepts it and `seen` is not newer.
    ///
    /// A stale index is accepted; see [`TrustedIndex::stale_at`].
    ///
    /// # Errors
    /// [`TrustError`], the first reason to refuse it.
    pub fn verify_index(
        &self,
        envelope: &Envelope,
        expected: &PackageName,
        seen: Option<SeenIndex>,
    ) -> Result<TrustedIndex, TrustError> {
        let Signed::Index(index) = envelope.unverified() else {
            return Err(wrong_kind(Kind::Index, envelope));
        };
        if index.name != *expected {
            return Err(TrustError::WrongPackage {
                expected: expected.to_string(),
                found: index.name.to_string(),
            });
        }
        self.check_blocked(expected, None)?;
        let (rule, signers) = self.verify(envelope, expected)?;
        let trusted = TrustedIndex(Arc::new(trusted(index, rule, signers, envelope)));
        trusted.check_sequence(seen)?;
        Ok(trusted)
    }

    /// Returns whether the policy blocks a package as a whole or, when given, its version.
    ///
    /// # Errors
    /// [`TrustError::Blocked`].
    pub fn check_blocked(
        &self,
        name: &PackageName,
        version: Option<&PackageVersion>,
    ) -> Result<(), TrustError> {
        let hit = self.blocked().iter().find(|(blocked, _)| match blocked {
            BlockedPackage::Name(blocked) => blocked == name,
            BlockedPackage::Version(blocked) => Some(blocked) == version,
        });
        match hit {
            None => Ok(()),
            Some((package, reason)) => Err(TrustError::Blocked {
                package: package.to_string(),
                reason: reason.clone(),
            }),
        }
    }

    /// Checks the signatures by the rule for `name`: enough distinct keys, and none of theirs wrong. What strangers
    /// put beside them is ignored.
    fn verify(
        &self,
        envelope: &Envelope,
        name: &PackageName,
    ) -> Result<(&Rule, Vec<KeyId>), TrustError> {
        let rule = self
            .rule_for(name)
            .ok_or_else(|| TrustError::NoRule(name.clone()))?;
        let payload = envelope.unverified().payload();
        // Once, not for each signature: a stranger chooses how many there are.
        let keys: Vec<_> = rule.keys.iter().map(|key| (key.id(), key)).collect();
        let mut signers = Vec::new();
        let mut revoked = None;
        // The signatures have distinct key ids, so each key counts once.
        for signature in envelope.signatures() {
            let Some((_, key)) = keys.iter().find(|(id, _)| *id == signature.key) else {
                continue;
            };
            if !key.verifies(&payload, &signature.bytes) {
                return Err(TrustError::BadSignature {
                    pattern: rule.pattern.clone(),
                    key: signature.key,
                });
            }
            match self
                .revoked()
                .iter()
                .find(|entry| entry.key == signature.key)
            {
                Some(entry) => revoked = Some(entry),
                None => signers.push(signature.key),
            }
        }
        if signers.len() >= rule.threshold {
            return Ok((rule, signers));
        }
        if let Some(entry) = revoked {
            return Err(TrustError::RevokedKey {
                key: entry.key,
                reason: entry.reason.clone(),
            });
        }
        if signers.is_empty() && !envelope.signatures().is_empty() {
            return Err(TrustError::UnknownKeys {
                pattern: rule.pattern.clone(),
                signers: envelope
                    .signatures()
                    .iter()
                    .map(|signature| signature.key)
                    .collect(),
            });
        }
        Err(TrustError::TooFewSignatures {
            pattern: rule.pattern.clone(),
            have: signers.len(),
            need: rule.threshold,
        })
    }
}

fn wrong_kind(want: Kind, envelope: &Envelope) -> TrustError {
    TrustError::WrongKind {
        want,
        got: envelope.kind(),
    }
}

fn trusted<T: Clone>(
    content: &T,
    rule: &Rule,
    signers: Vec<KeyId>,
    envelope: &Envelope,
) -> TrustedInner<T> {
    TrustedInner {
        content: content.clone(),
        signers,
        pattern: rule.pattern.clone(),
        links: rule.links,
        max_age: rule.max_age,
        envelope: envelope.bytes().clone(),
    }
}
