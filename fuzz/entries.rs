//! What is fuzzed: one function a target, which takes any bytes and panics when a promise is broken.
//!
//! Both the fuzzers (`fuzz/targets`) and the replay of the corpus in every test run (`tests/suite/fuzz_corpus.rs`)
//! include this file, so that they run the same code. It uses the public interface only.

use std::ops::ControlFlow;
use std::sync::OnceLock;

use manifs::block::Digest;
use manifs::catalog::{Catalog, CatalogError, Kind, Row, links, validate, verify_ids};
use manifs::config::Config;
use manifs::manifest::{
    BlockedPackage, Envelope, KeyId, Manifest, PackageName, PackageVersion, Password, Pattern,
    PrivateKey, PublicKey, ReleaseIndex, Signed, Timestamp, TrustPolicy, Version, sums, time,
};
use manifs::registry::{Listing, Place};
use manifs::unixfs::car::{self, Reader};
use manifs::unixfs::{AnyCid, Cid, Decoded, dagpb, decode};

/// A target: its name, which is also its corpus's, and its function.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// All targets.
pub(crate) const TARGETS: &[Target] = &[
    ("car", car),
    ("catalog", catalog),
    ("cid", cid),
    ("config", config),
    ("document", document),
    ("envelope", envelope),
    ("keys", keys),
    ("listing", listing),
    ("names", names),
    ("node", node),
    ("sums", sums),
    ("trust", trust),
];

/// A dag-pb node and the UnixFS in it.
pub(crate) fn node(bytes: &[u8]) {
    let Ok(node) = dagpb::decode(bytes) else {
        return;
    };
    let again = dagpb::encode(&node);
    assert_eq!(dagpb::decode(&again).as_ref(), Ok(&node));
    assert!(
        again.len() == bytes.len(),
        "there is one way to write it but for order"
    );
    match decode(&Cid::dag_pb(Digest::of(bytes)).into(), bytes) {
        Ok(Decoded::File(file)) => {
            let below = file.children.iter().map(|child| child.bytes);
            assert_eq!(file.size, file.data.len() as u64 + below.sum::<u64>());
        }
        Ok(Decoded::Directory(entries)) => {
            assert!(entries.iter().all(|entry| !entry.name.contains(&b'/')));
        }
        Ok(Decoded::Shard(shard)) => {
            assert!(shard.slots().iter().all(|slot| slot.slot < shard.fanout()));
            if shard.check(&[]).is_ok() {
                for slot in shard.slots() {
                    let name = slot.name.unwrap_or(b"any");
                    let found = shard.lookup(name, 0).expect("the root is not too deep");
                    assert!(slot.name.is_none() || found == Some(slot));
                }
            }
            for depth in 0..70 {
                let _ = shard.lookup(b"name", depth);
                let _ = shard.check(&vec![0; depth]);
            }
        }
        Ok(Decoded::Symlink(_)) | Err(_) => {}
    }
}

/// A CAR file.
pub(crate) fn car(bytes: &[u8]) {
    let Ok(reader) = Reader::new(bytes) else {
        return;
    };
    assert!(reader.roots().len() <= car::ROOTS_MAX);
    let mut total = 0;
    for section in reader.flatten() {
        assert_eq!(section.cid.names(&section.bytes), Ok(true));
        total += section.bytes.len();
        if let Some(cid) = section.cid.known() {
            assert!(car::section(&cid, &section.bytes).ends_with(&section.bytes));
        }
    }
    assert!(total <= bytes.len());
}

/// Rows that a walk of a hostile catalog looks at, so that runs that lie over each other take no quadratic time.
const ROWS_WALKED: usize = 200;

/// A catalog: read as it is, and walked to its last row when it is valid.
pub(crate) fn catalog(bytes: &[u8]) {
    let len = bytes.len() as u64;
    let Ok(catalog) = Catalog::open(bytes, len) else {
        return;
    };
    for number in (0..catalog.rows()).take(ROWS_WALKED) {
        if let Ok(row) = catalog.row(number) {
            let _ = read_row(&catalog, &row);
        }
    }
    let _ = catalog.find(b"a/b//c");
    let _ = verify_ids(&catalog);
    let Ok(root) = catalog.row(0) else { return };
    if validate(&bytes, len, &catalog.totals(), root.cid()).is_ok() {
        for number in 0..catalog.rows() {
            let row = catalog.row(number).expect("a valid row");
            read_row(&catalog, &row).expect("a valid row is readable");
            let path = catalog.path(number).expect("a valid row has a path");
            let found = catalog.find(&path).expect("a valid path is found");
            assert_eq!(found.map(|(found, _)| found), Some(number));
        }
    }
}

/// Reads everything of one row.
fn read_row(catalog: &Catalog<&[u8]>, row: &Row) -> Result<(), CatalogError> {
    let name = catalog.name(row)?;
    let path = catalog.path(row.number())?;
    assert!(row.number() == 0 || path.ends_with(&name));
    match row.kind() {
        Kind::Directory => {
            let mut left = ROWS_WALKED;
            let mut names: Vec<Vec<u8>> = Vec::new();
            catalog.entries(row, 0, &mut |_, _, name| {
                names.push(name.to_vec());
                left -= 1;
                if left == 0 {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })?;
            let sorted = names.is_sorted_by(|a, b| a < b);
            for name in names.iter().take(16) {
                let found = catalog.lookup(row, name)?;
                assert!(found.is_some() || !sorted || left == 0);
            }
        }
        Kind::File => {
            catalog.whole(row)?;
            if row.blocks() > 0 {
                let last = row.blocks() - 1;
                assert_eq!(catalog.block(row, last)?.file, row.file());
                if last > 0 {
                    assert_eq!(catalog.digests(row, last..last + 1)?.len(), 1);
                }
            }
            assert!(catalog.block(row, row.blocks()).is_err());
        }
        Kind::Symlink => {
            assert_eq!(catalog.target(row)?.len() as u64, row.size());
            links::leaves(catalog, row.number())?;
        }
    }
    Ok(())
}

/// A configuration file.
pub(crate) fn config(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Config::parse(text, "config.toml", []);
    }
}

/// A CID, binary and text.
pub(crate) fn cid(bytes: &[u8]) {
    if let Ok(cid) = AnyCid::from_bytes(bytes) {
        assert_eq!(cid.to_bytes(), bytes);
        assert_eq!(cid.to_string().parse(), Ok(cid));
    }
    if let Ok(cid) = Cid::from_bytes(bytes) {
        assert_eq!(cid.to_bytes(), bytes);
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(cid) = text.parse::<AnyCid>() {
        assert_eq!(cid.to_string().parse(), Ok(cid.clone()));
        assert_eq!(AnyCid::from_bytes(&cid.to_bytes()), Ok(cid));
    }
    if let Ok(cid) = text.parse::<Cid>() {
        assert_eq!(cid.to_string(), text);
    }
}

/// The policy of the test vectors: their first three keys, for any name.
fn policy() -> &'static TrustPolicy {
    static POLICY: OnceLock<TrustPolicy> = OnceLock::new();
    POLICY.get_or_init(|| {
        let mut policy = TrustPolicy::default();
        let everything: Pattern = "*".parse().expect("a pattern");
        for seed in [
            "dc0b9eccb75da218d134e8237263dea8a136bbda4e33fac2b87bf88900bbe721",
            "05c7cdbf6a5546103923fabc7ebcec98fab13a66fb8e80e27b9e14d51ad4d9d1",
        ] {
            let mut bytes = [0; 32];
            hex::decode_to_slice(seed, &mut bytes).expect("hexadecimal digits");
            let key = PrivateKey::from_seed(&bytes).public();
            policy
                .add(&everything, &key, Some(1))
                .expect("a valid policy");
        }
        policy
    })
}

/// An envelope: its form, then what the vectors' policy says of it.
pub(crate) fn envelope(bytes: &[u8]) {
    let Ok(envelope) = Envelope::parse(bytes) else {
        return;
    };
    assert_eq!(&envelope.bytes()[..], bytes);
    let again = Envelope::assemble(envelope.unverified(), envelope.signatures().to_vec());
    assert_eq!(again.as_ref(), Ok(&envelope));
    match envelope.unverified() {
        Signed::Manifest(manifest) => {
            let trusted = policy().verify_manifest(&envelope, &manifest.package);
            if let Ok(trusted) = trusted {
                assert_eq!(trusted.id(), manifest.id());
                assert!(!trusted.signers().is_empty());
            }
        }
        Signed::Index(index) => {
            let _ = policy().verify_index(&envelope, &index.name, None);
        }
    }
}

/// A manifest or release index on its own, as `publish` hands them to `sign`.
pub(crate) fn document(bytes: &[u8]) {
    if let Ok(manifest) = Manifest::parse(bytes) {
        assert_eq!(&manifest.canonical()[..], bytes);
        let blocks = manifest.catalog.block_refs();
        let total: u64 = blocks.map(|block| u64::from(block.len())).sum();
        assert_eq!(total, manifest.catalog.file().size);
        assert!(Envelope::assemble(&manifest.into(), Vec::new()).is_ok());
    }
    if let Ok(index) = ReleaseIndex::parse(bytes) {
        assert_eq!(&index.canonical()[..], bytes);
        let _ = ReleaseIndex::highest_release(index.fields());
        assert!(Envelope::assemble(&index.into(), Vec::new()).is_ok());
    }
}

/// A trust policy, and changes to it.
pub(crate) fn trust(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let Ok(mut policy) = TrustPolicy::parse(text) else {
        return;
    };
    assert_eq!(policy.text(), text);
    for name in ["a", "acme/tool"] {
        let name: PackageName = name.parse().expect("a name");
        if let Some(rule) = policy.rule_for(&name) {
            assert!(rule.pattern.matches(&name));
        }
    }
    let key = PrivateKey::from_seed(&[1; 32]).public();
    let pattern: Pattern = "acme/*".parse().expect("a pattern");
    let package: BlockedPackage = "acme/evil@1.0.0".parse().expect("a package");
    let all_apply = policy.add(&pattern, &key, None).is_ok()
        & policy.revoke(key.id(), Some("lost\n\"it\"")).is_ok()
        & policy.block(&package, None).is_ok();
    let again = TrustPolicy::parse(policy.text()).expect("a changed policy is a policy");
    assert_eq!(again.rules().len(), policy.rules().len());
    if all_apply {
        assert!(
            policy
                .revoked()
                .iter()
                .any(|revoked| revoked.key == key.id())
        );
        assert!(policy.rules().iter().any(|rule| rule.pattern == pattern));
    }
    let _ = policy.remove(&pattern, Some(key.id()));
    let _ = policy.remove(&pattern, None);
    assert!(TrustPolicy::parse(policy.text()).is_ok());
}

/// Names, versions, patterns, places in a registry, times, durations: whatever is not refused is written as it was read.
pub(crate) fn names(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let (left, right) = text.split_once('\n').unwrap_or((text, "1.0.0"));
    if let Ok(name) = left.parse::<PackageName>() {
        assert_eq!(name.to_string(), left);
        assert!(!left.contains("..") && !left.starts_with('/'));
        assert!(name.parts().count() <= 2);
    }
    if let (Ok(a), Ok(b)) = (left.parse::<Version>(), right.parse::<Version>()) {
        assert_eq!(a.to_string(), left);
        assert_eq!(a.cmp(&b), b.cmp(&a).reverse());
        assert_eq!(a == b, left == right);
    }
    if let Ok(package) = left.parse::<PackageVersion>() {
        assert_eq!(package.to_string(), left);
        assert!(!package.tree_name().contains('/'));
    }
    if let Ok(pattern) = left.parse::<Pattern>() {
        assert_eq!(pattern.to_string(), left);
    }
    if let Ok(id) = left.parse::<KeyId>() {
        assert_eq!(id.to_string(), left);
    }
    if let Ok(time) = left.parse::<Timestamp>() {
        assert_eq!(time.to_string(), left);
    }
    if let Some(place) = Place::parse(left) {
        assert_eq!(place.to_string(), left);
    }
    if let Ok(duration) = time::parse_duration(left) {
        let text = time::format_duration(duration);
        assert_eq!(time::parse_duration(&text), Ok(duration));
    }
}

/// Keys in both forms.
pub(crate) fn keys(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(key) = PublicKey::parse(text) {
        assert_eq!(
            PublicKey::from_line(&key.to_line()).ok().as_ref(),
            Some(&key)
        );
        assert_eq!(PublicKey::from_pem(&key.to_pem()).ok(), Some(key));
    }
    // No password: the cost of opening an encrypted one is a limit of its own.
    let no_password = || Ok(None::<Password>);
    if let Ok(key) = PrivateKey::from_pem(text, no_password) {
        let pem = key.to_pem(None).expect("a key without a password");
        let again = PrivateKey::from_pem(&pem, no_password).expect("what was written");
        assert_eq!(again.public(), key.public());
    }
}

/// A registry's list of names.
pub(crate) fn listing(bytes: &[u8]) {
    if let Ok(listing) = Listing::parse(bytes) {
        assert_eq!(listing.names().count(), listing.len());
        assert!(
            listing
                .names()
                .all(|name| listing.versions(name).is_sorted())
        );
        assert_eq!(Listing::parse(listing.to_string().as_bytes()), Ok(listing));
    }
}

/// A line of SHA256SUMS: 32 bytes of a digest, then a path; read as coreutils reads it, the path comes back.
pub(crate) fn sums(bytes: &[u8]) {
    let Some((digest, path)) = bytes.split_first_chunk::<32>() else {
        return;
    };
    if path.is_empty() || path.contains(&0) {
        return;
    }
    let digest = Digest::from_bytes(*digest);
    let line = sums::line(digest, path);
    let (last, line) = line.split_last().expect("a line is not empty");
    assert_eq!(*last, b'\n');
    assert!(!line.contains(&b'\n') && !line.contains(&b'\r'));
    let (escaped, line) = match line.strip_prefix(b"\\") {
        Some(line) => (true, line),
        None => (false, line),
    };
    let (hex, rest) = line.split_at(64);
    assert_eq!(hex, digest.to_string().as_bytes());
    let name = rest.strip_prefix(b"  ").expect("two blanks");
    let mut read = Vec::new();
    let mut name = name.iter();
    while let Some(&byte) = name.next() {
        read.push(match (escaped, byte) {
            (true, b'\\') => match name.next() {
                Some(b'n') => b'\n',
                Some(b'r') => b'\r',
                Some(b'\\') => b'\\',
                other => panic!("an escape of {other:?}"),
            },
            _ => byte,
        });
    }
    if path == b"-" {
        assert_eq!(read, b"./-");
    } else {
        assert_eq!(read, path);
    }
}
