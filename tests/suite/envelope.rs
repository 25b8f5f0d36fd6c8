//! Envelopes: the vectors of an independent implementation, and what writing one gives.

use manifs::manifest::json::{Json, Object};
use manifs::manifest::{
    ENVELOPE_BYTES_MAX, Envelope, EnvelopeError, FieldError, HINTS_MAX, Kind, Manifest,
    PackageName, PublicKey, ReleaseIndex, Signed, TrustError, TrustPolicy, Version,
};
use proptest::prelude::*;
use serde_json::Value;

use crate::common::content::{cases, content, text};
use crate::common::signed::{index_fields, key, manifest, manifest_fields, sign};
use crate::common::vectors;

/// What a reader says of a case: the id and the policy's keys that signed, or the word for the refusal.
fn judge(file: &Value, case: &Value) -> Result<(String, Vec<String>), &'static str> {
    let mut lines = Vec::new();
    for name in case["keys"].as_array().unwrap() {
        let name = name.as_str().unwrap();
        let hex = file["test_keys"][name]["public"].as_str().unwrap_or(name);
        let bytes: [u8; 32] = hex::decode(hex).unwrap().try_into().unwrap();
        let key = PublicKey::from_bytes(&bytes).map_err(|_| "weak-key")?;
        lines.push(format!("{:?}", key.to_line()));
    }
    let policy = TrustPolicy::parse(&format!(
        "[[rule]]\npattern = '*'\nkeys = [{}]\nthreshold = {}\n",
        lines.join(", "),
        case["threshold"]
    ))
    .unwrap();

    let envelope = Envelope::parse(&content(&case["envelope"])).map_err(|error| match error {
        EnvelopeError::TooLarge(_) | EnvelopeError::Json(_) => "form",
        EnvelopeError::Shape(_) => "envelope",
        EnvelopeError::SignatureOrder => "signature-order",
        EnvelopeError::Field(FieldError::Format { .. }) => "format",
        EnvelopeError::Field(FieldError::Requires(_)) => "requires",
        EnvelopeError::Field(_) => "field",
    })?;
    let word = |error| match error {
        TrustError::UnknownKeys { .. } => "unknown-key",
        TrustError::TooFewSignatures { .. } => "threshold",
        TrustError::BadSignature { .. } => "bad-signature",
        _ => "another",
    };
    let (id, signers) = match envelope.unverified() {
        Signed::Manifest(manifest) => {
            let trusted = policy
                .verify_manifest(&envelope, &manifest.package)
                .map_err(word)?;
            (trusted.id().to_string(), trusted.signers().to_vec())
        }
        Signed::Index(index) => {
            let trusted = policy
                .verify_index(&envelope, &index.name, None)
                .map_err(word)?;
            (trusted.index().id().to_string(), trusted.signers().to_vec())
        }
    };
    Ok((id, signers.iter().map(ToString::to_string).collect()))
}

#[test]
fn accepts_every_valid_vector() {
    let file = vectors("envelope.json");
    for case in cases(&file, "valid") {
        let (id, signers) = judge(&file, case).unwrap_or_else(|word| panic!("{word}: {case}"));
        assert_eq!(id, text(&case["expect"], "id"), "{}", case["id"]);
        let expected: Vec<String> =
            serde_json::from_value(case["expect"]["signed_by"].clone()).unwrap();
        assert_eq!(signers, expected, "{}", case["id"]);
        let bytes = content(&case["envelope"]);
        let envelope = Envelope::parse(&bytes).unwrap();
        assert_eq!(envelope.bytes(), &bytes);
        let kind = match text(case, "kind") {
            "manifest" => Kind::Manifest,
            _ => Kind::Index,
        };
        assert_eq!(envelope.kind(), kind, "{}", case["id"]);
        // What is read is written as it was.
        let again = Envelope::assemble(envelope.unverified(), envelope.signatures().to_vec());
        assert_eq!(again.unwrap().bytes(), &bytes);
    }
}

#[test]
fn refuses_every_invalid_vector_for_its_reason() {
    let file = vectors("envelope.json");
    for case in cases(&file, "invalid") {
        let expected = match text(case, "reason") {
            "size" | "nesting" | "utf8" | "syntax" | "duplicate" | "number" | "surrogate"
            | "canonical" | "string" => "form",
            other => other,
        };
        assert_eq!(judge(&file, case).err(), Some(expected), "{}", case["id"]);
    }
}

#[test]
fn names_and_versions_of_the_vectors() {
    let file = vectors("envelope.json");
    for name in cases(&file["names"], "valid") {
        let name = name.as_str().unwrap();
        let parsed: PackageName = name
            .parse()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(parsed.to_string(), name);
    }
    for name in cases(&file["names"], "invalid") {
        assert!(
            name.as_str().unwrap().parse::<PackageName>().is_err(),
            "{name}"
        );
    }
    for version in cases(&file["versions"], "valid") {
        let version = version.as_str().unwrap();
        let parsed: Version = version.parse().unwrap();
        assert_eq!(parsed.to_string(), version);
    }
    for version in cases(&file["versions"], "invalid") {
        assert!(
            version.as_str().unwrap().parse::<Version>().is_err(),
            "{version}"
        );
    }
}

/// Golden bytes: when these differ, the format of what is published has changed, which needs a new `format`.
#[test]
fn what_is_written_never_changes() {
    let envelope = sign(manifest("acme/tool@1.0.0", "golden"), &[&key(1)]);
    assert_golden("manifest.json", envelope.bytes());
    let mut fields = index_fields("acme/tool", 3);
    fields.latest = Some("1.0.0".parse().unwrap());
    fields.versions.insert(
        "1.0.0".parse().unwrap(),
        manifest("acme/tool@1.0.0", "golden").id(),
    );
    fields
        .withdrawn
        .insert("0.9.0".parse().unwrap(), "broken".into());
    fields.http.push("https://example.org/".into());
    let envelope = sign(ReleaseIndex::new(&fields).unwrap(), &[&key(1), &key(2)]);
    assert_golden("index.json", envelope.bytes());
}

fn assert_golden(file: &str, bytes: &[u8]) {
    let golden = std::fs::read(crate::common::data("golden").join(file)).unwrap();
    assert!(
        golden == bytes,
        "{file} is written differently than before: that is a new format and needs a new version\n{}",
        String::from_utf8_lossy(bytes)
    );
}

/// The example of the documentation is what the code reads.
#[test]
fn the_documented_manifest_is_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/formats/manifest.md");
    let text = std::fs::read_to_string(path).unwrap();
    let example: String = text
        .lines()
        .skip_while(|line| !line.starts_with("    {"))
        .take_while(|line| line.starts_with("    "))
        .map(str::trim)
        .collect();
    let manifest = Manifest::parse(example.as_bytes()).unwrap();
    assert_eq!(manifest.package.to_string(), "hello@1.0.0");
}

#[test]
fn every_field_comes_back() {
    let mut provenance = Object::new();
    provenance.insert("commit", Json::Text("c0ffee".into()));
    let mut fields = manifest_fields("hello@1.0.0-rc.1", "x");
    fields.description = Some("Says \"hello\" \\ more".into());
    fields.license = Some("MIT".into());
    fields.homepage = Some("https://example.org/".into());
    fields.keywords = vec!["b".into(), "a".into()];
    fields.publisher = Some("Somebody".into());
    fields.provenance = Some(provenance);
    fields.torrent = Some(manifs::manifest::TorrentRef {
        info_hash: [7; 20],
        piece_length: 1 << 20,
    });
    let made = Manifest::new(&fields).unwrap();
    assert_eq!(made.fields(), &fields);
    assert_eq!(Manifest::parse(made.canonical()).unwrap(), made);
    let Signed::Manifest(read) = Envelope::parse(sign(made.clone(), &[&key(1)]).bytes())
        .unwrap()
        .unverified()
        .clone()
    else {
        panic!("not a manifest");
    };
    assert_eq!(read, made);
}

#[test]
fn nothing_is_made_that_no_reader_accepts() {
    let mut fields = manifest_fields("hello@1.0.0", "x");
    fields.description = Some("a\nb".into());
    assert!(Manifest::new(&fields).is_err());
    fields.description = None;
    fields.bytes = 1 << 53;
    assert!(Manifest::new(&fields).is_err());
    fields.bytes = 0;
    fields.catalog.blocks.clear();
    assert!(Manifest::new(&fields).is_err());

    let mut fields = index_fields("hello", 1);
    fields.trackers = vec!["udp://x".into(); HINTS_MAX];
    assert!(ReleaseIndex::new(&fields).is_ok());
    fields.trackers.push("udp://y".into());
    assert!(ReleaseIndex::new(&fields).is_err());
    fields.trackers.clear();
    fields.latest = Some("1.0.0".parse().unwrap());
    assert!(ReleaseIndex::new(&fields).is_err());

    let mut fields = manifest_fields("hello@1.0.0", "x");
    fields.description = Some("a".repeat(ENVELOPE_BYTES_MAX));
    let large = Manifest::new(&fields).unwrap().into();
    assert!(matches!(
        Envelope::sign(&large, &[&key(1)]),
        Err(EnvelopeError::TooLarge(_))
    ));
}

/// Seven levels below the envelope are allowed, and a manifest alone must not promise more than fits into one.
#[test]
fn nesting_counts_the_envelope() {
    let nested = |levels: usize| {
        let mut value = Json::Integer(1);
        for _ in 0..levels {
            value = Json::Array(vec![value]);
        }
        let mut provenance = Object::new();
        provenance.insert("a", value);
        let mut fields = manifest_fields("hello@1.0.0", "x");
        fields.provenance = Some(provenance);
        Manifest::new(&fields)
    };
    // Envelope, manifest and provenance are three.
    assert!(sign(nested(5).unwrap(), &[&key(1)]).bytes().len() > 100);
    assert!(nested(6).is_err());
}

#[test]
fn adding_a_signature_keeps_the_id() {
    let manifest = manifest("hello@1.0.0", "x");
    let one = sign(manifest.clone(), &[&key(1)]);
    let payload = one.unverified().payload();
    let two = one.with_signatures(&[key(2).sign(&payload)]).unwrap();
    assert_eq!(two, sign(manifest, &[&key(2), &key(1)]));
    assert_eq!(two.unverified(), one.unverified());
    assert_eq!(two.with_signatures(&[key(1).sign(&payload)]).unwrap(), two);
    assert!(matches!(
        Envelope::sign(one.unverified(), &[&key(1), &key(1)]),
        Err(EnvelopeError::SignatureOrder)
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Envelope::parse(&bytes).is_err());
    }

    /// One changed byte anywhere is refused, as form or as a signature.
    #[test]
    fn no_byte_can_be_changed(at in any::<prop::sample::Index>(), flip in 1_u8..=255) {
        let good = sign(manifest("hello@1.0.0", "x"), &[&key(1)]);
        let mut bytes = good.bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        let policy = crate::common::signed::trusting("*", &[&key(1)], 1);
        let expected = crate::common::signed::package("hello@1.0.0");
        prop_assert!(policy.verify_manifest(&good, &expected).is_ok());
        if let Ok(envelope) = Envelope::parse(&bytes) {
            prop_assert!(policy.verify_manifest(&envelope, &expected).is_err());
        }
    }
}
