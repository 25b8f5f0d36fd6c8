//! Makes signed things for tests, always the same for the same arguments.

use std::collections::BTreeMap;

use manifs::block::Digest;
use manifs::manifest::{
    CatalogBlocks, Envelope, IndexFields, Manifest, ManifestFields, PackageName, PackageVersion,
    PrivateKey, ReleaseIndex, Signed, Timestamp, TrustPolicy,
};
use manifs::unixfs::Cid;

/// A key that is always the same for one number.
pub(crate) fn key(number: u8) -> PrivateKey {
    PrivateKey::from_seed(&[number; 32])
}

pub(crate) fn name(text: &str) -> PackageName {
    text.parse().unwrap()
}

pub(crate) fn package(text: &str) -> PackageVersion {
    text.parse().unwrap()
}

pub(crate) fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// The fields of a manifest whose catalog nobody ever reads; `content` tells two of them apart.
pub(crate) fn manifest_fields(package_text: &str, content: &str) -> ManifestFields {
    let digest = Digest::of(content.as_bytes());
    ManifestFields {
        package: package(package_text),
        created: time("2026-01-02T03:04:05Z"),
        files: 1,
        directories: 1,
        bytes: 11,
        catalog: CatalogBlocks {
            size: 201,
            blocks: vec![digest],
        },
        root: Cid::dag_pb(digest),
        torrent: None,
        description: None,
        license: None,
        homepage: None,
        keywords: Vec::new(),
        publisher: None,
        provenance: None,
    }
}

pub(crate) fn manifest(package: &str, content: &str) -> Manifest {
    Manifest::new(&manifest_fields(package, content)).unwrap()
}

/// The fields of a release index without versions.
pub(crate) fn index_fields(package: &str, sequence: u64) -> IndexFields {
    IndexFields {
        name: name(package),
        sequence,
        created: time("2026-01-02T03:04:05Z"),
        expires: None,
        latest: None,
        versions: BTreeMap::new(),
        withdrawn: BTreeMap::new(),
        http: Vec::new(),
        gateways: Vec::new(),
        trackers: Vec::new(),
    }
}

/// A release index that names these manifests, the last one as `latest`.
pub(crate) fn index(package: &str, sequence: u64, manifests: &[&Manifest]) -> ReleaseIndex {
    let mut fields = index_fields(package, sequence);
    for manifest in manifests {
        let version = &manifest.package.version;
        fields.versions.insert(version.clone(), manifest.id());
        fields.latest = Some(version.clone());
    }
    ReleaseIndex::new(&fields).unwrap()
}

pub(crate) fn sign(signed: impl Into<Signed>, keys: &[&PrivateKey]) -> Envelope {
    Envelope::sign(&signed.into(), keys).unwrap()
}

/// A policy with one rule.
pub(crate) fn trusting(pattern: &str, keys: &[&PrivateKey], threshold: usize) -> TrustPolicy {
    let mut policy = TrustPolicy::default();
    for key in keys {
        policy
            .add(&pattern.parse().unwrap(), &key.public(), Some(threshold))
            .unwrap();
    }
    policy
}
