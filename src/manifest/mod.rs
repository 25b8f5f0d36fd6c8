//! What is signed: names, manifests, release indices, envelopes, keys and the trust policy.
//!
//! Bytes from a registry become an [`Envelope`] when their form is right ([`Envelope::parse`]) and a
//! [`TrustedManifest`] or [`TrustedIndex`] when the user's [`TrustPolicy`] accepts them. There is no other way to
//! make one of these two. This module knows nothing of registries, mounts and blocks; what was seen before is kept
//! by `state` and handed in.

mod document;
mod envelope;
mod fields;
mod index;
pub mod json;
pub mod keys;
mod name;
mod policy;
pub mod sums;
pub mod time;
mod trust;

pub use document::{
    CATALOG_BYTES_MAX, CatalogBlocks, MANIFEST_FORMAT, Manifest, ManifestFields, TorrentRef,
};
pub use envelope::{ENVELOPE_BYTES_MAX, Envelope, EnvelopeError, Kind, Signature, Signed};
pub use fields::FieldError;
pub use index::{HINTS_MAX, INDEX_FORMAT, IndexFields, ReleaseIndex};
pub use keys::{KeyError, Password, PrivateKey, PublicKey};
pub use name::{
    IndexId, KeyId, ManifestId, NAME_PART_BYTES_MAX, NameError, PackageName, PackageVersion,
    PackageVersionError, VERSION_BYTES_MAX, Version, VersionError, check_part,
};
pub use policy::{BlockedPackage, Links, Pattern, PolicyError, RevokedKey, Rule, TrustPolicy};
pub use time::Timestamp;
pub use trust::{Mention, SeenIndex, Stale, TrustError, TrustedIndex, TrustedManifest};
