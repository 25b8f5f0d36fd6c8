//! The envelope: a manifest or a release index with its signatures, as received and not yet verified.
//!
//! [`Envelope::parse`] checks form alone: size, nesting, canonical JSON, fields. What it returns is still a stranger's
//! word; `TrustPolicy` turns it into something trusted. Signing is here too, so that what is written is what is read.

use std::fmt;

use bytes::Bytes;

use super::document::Manifest;
use super::fields::FieldError;
use super::index::ReleaseIndex;
use super::json::{Json, JsonError, Object};
use super::keys::PrivateKey;
use super::name::KeyId;

/// The largest envelope, in bytes: 4 MiB.
pub const ENVELOPE_BYTES_MAX: usize = 4 << 20;

/// What an envelope holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// The manifest of one version.
    Manifest,
    /// The release index of a package.
    Index,
}

impl Kind {
    /// Returns the envelope's member that holds it.
    fn member(self) -> &'static str {
        match self {
            Kind::Manifest => "manifest",
            Kind::Index => "index",
        }
    }

    /// Returns what stands before the JCS bytes in what is signed, so that no signature fits another kind.
    fn domain(self) -> &'static [u8] {
        match self {
            Kind::Manifest => b"manifs-manifest-v1\n",
            Kind::Index => b"manifs-index-v1\n",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Manifest => "manifest",
            Kind::Index => "release index",
        })
    }
}

/// Something to sign, or that claims to be signed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Signed {
    /// The manifest of one version.
    Manifest(Manifest),
    /// The release index of a package.
    Index(ReleaseIndex),
}

impl Signed {
    /// Returns which of the two it is.
    pub fn kind(&self) -> Kind {
        match self {
            Signed::Manifest(_) => Kind::Manifest,
            Signed::Index(_) => Kind::Index,
        }
    }

    /// Returns the JCS bytes.
    pub fn canonical(&self) -> &Bytes {
        match self {
            Signed::Manifest(manifest) => manifest.canonical(),
            Signed::Index(index) => index.canonical(),
        }
    }

    /// Returns the bytes that are signed: domain, newline, JCS.
    pub fn payload(&self) -> Vec<u8> {
        [self.kind().domain(), self.canonical()].concat()
    }
}

impl From<Manifest> for Signed {
    fn from(manifest: Manifest) -> Self {
        Signed::Manifest(manifest)
    }
}

impl From<ReleaseIndex> for Signed {
    fn from(index: ReleaseIndex) -> Self {
        Signed::Index(index)
    }
}

/// A signature and the id of the key that is said to have made it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature {
    /// The key's id.
    pub key: KeyId,
    /// R and S of Ed25519.
    pub bytes: [u8; 64],
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature(by {})", self.key)
    }
}

/// Why bytes are not an envelope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// More bytes than an envelope may have.
    #[error("an envelope has at most {ENVELOPE_BYTES_MAX} bytes, this one {0}")]
    TooLarge(usize),
    /// Not canonical JSON.
    #[error("the envelope is refused as JSON: {0}")]
    Json(#[from] JsonError),
    /// Not the members of an envelope.
    #[error("not an envelope: {0}")]
    Shape(&'static str),
    /// Signatures are not sorted by key, or a key is there twice.
    #[error("the signatures are not sorted by key, each key once")]
    SignatureOrder,
    /// The manifest or index inside is wrong.
    #[error(transparent)]
    Field(#[from] FieldError),
}

impl EnvelopeError {
    /// Returns what a person can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            EnvelopeError::Field(error) => error.hint(),
            EnvelopeError::TooLarge(_) | EnvelopeError::Json(_) => {
                "the file was changed or damaged on its way, or was not written by manifs; fetch it again"
            }
            EnvelopeError::Shape(_) | EnvelopeError::SignatureOrder => {
                "this is not a file written by manifs publish or manifs sign"
            }
        }
    }
}

/// A manifest or release index of valid form with its signatures, none of them verified.
#[derive(Clone, PartialEq, Eq)]
pub struct Envelope {
    signed: Signed,
    signatures: Vec<Signature>,
    bytes: Bytes,
}

impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Envelope")
            .field("unverified", &self.signed)
            .field("signatures", &self.signatures)
            .finish_non_exhaustive()
    }
}

impl Envelope {
    /// Reads an envelope; this checks its form and nothing else.
    ///
    /// # Errors
    /// [`EnvelopeError`], the first thing that is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Envelope, EnvelopeError> {
        if bytes.len() > ENVELOPE_BYTES_MAX {
            return Err(EnvelopeError::TooLarge(bytes.len()));
        }
        let json = Json::parse_canonical(bytes)?;
        let object = json
            .as_object()
            .ok_or(EnvelopeError::Shape("not an object"))?;
        if object.len() != 2 {
            return Err(EnvelopeError::Shape("it must have two members"));
        }
        let signatures = object
            .get("signatures")
            .and_then(Json::as_array)
            .ok_or(EnvelopeError::Shape("no array of signatures"))?
            .iter()
            .map(read_signature)
            .collect::<Result<Vec<_>, _>>()?;
        if !signatures.is_sorted_by(|a, b| a.key < b.key) {
            return Err(EnvelopeError::SignatureOrder);
        }
        let inner = |kind: Kind| match object.get(kind.member()) {
            Some(value @ Json::Object(_)) => Ok(Some(value)),
            Some(_) => Err(EnvelopeError::Shape("what is signed is not an object")),
            None => Ok(None),
        };
        let signed = if let Some(json) = inner(Kind::Manifest)? {
            Signed::Manifest(Manifest::from_json(json)?)
        } else if let Some(json) = inner(Kind::Index)? {
            Signed::Index(ReleaseIndex::from_json(json)?)
        } else {
            return Err(EnvelopeError::Shape("neither a manifest nor an index"));
        };
        Ok(Envelope {
            signed,
            signatures,
            bytes: Bytes::copy_from_slice(bytes),
        })
    }

    /// Signs with each of `keys`.
    ///
    /// # Errors
    /// [`EnvelopeError::TooLarge`], or [`EnvelopeError::SignatureOrder`] when a key is given twice.
    pub fn sign(signed: &Signed, keys: &[&PrivateKey]) -> Result<Envelope, EnvelopeError> {
        let payload = signed.payload();
        let signatures = keys.iter().map(|key| key.sign(&payload)).collect();
        Envelope::assemble(signed, signatures)
    }

    /// Puts signatures made elsewhere, in any order, to what they sign. They are not verified.
    ///
    /// # Errors
    /// [`EnvelopeError::TooLarge`], or [`EnvelopeError::SignatureOrder`] when a key is there twice.
    pub fn assemble(
        signed: &Signed,
        mut signatures: Vec<Signature>,
    ) -> Result<Envelope, EnvelopeError> {
        signatures.sort_by_key(|signature| signature.key);
        let list: Vec<String> = signatures
            .iter()
            .map(|signature| {
                format!(
                    r#"{{"key":"{}","sig":"{}"}}"#,
                    signature.key,
                    hex::encode(signature.bytes)
                )
            })
            .collect();
        // "index" and "manifest" both sort before "signatures".
        let mut bytes = format!(r#"{{"{}":"#, signed.kind().member()).into_bytes();
        bytes.extend_from_slice(signed.canonical());
        bytes.extend_from_slice(format!(r#","signatures":[{}]}}"#, list.join(",")).as_bytes());
        Envelope::parse(&bytes)
    }

    /// Adds signatures; one by a key that has signed already replaces the old one.
    ///
    /// # Errors
    /// As [`Envelope::assemble`].
    pub fn with_signatures(&self, added: &[Signature]) -> Result<Envelope, EnvelopeError> {
        let is_new = |old: &Signature| added.iter().all(|new| new.key != old.key);
        let mut signatures: Vec<Signature> = self
            .signatures
            .iter()
            .copied()
            .filter(|old| is_new(old))
            .collect();
        signatures.extend_from_slice(added);
        Envelope::assemble(&self.signed, signatures)
    }

    /// Returns what the envelope holds.
    pub fn kind(&self) -> Kind {
        self.signed.kind()
    }

    /// Returns what somebody claims to have signed: for `inspect`, for publishing, never for the mount.
    pub fn unverified(&self) -> &Signed {
        &self.signed
    }

    /// Returns the signatures, sorted by key id.
    pub fn signatures(&self) -> &[Signature] {
        &self.signatures
    }

    /// Returns the file as received.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

fn read_signature(json: &Json) -> Result<Signature, EnvelopeError> {
    let members = json
        .as_object()
        .filter(|members| members.len() == 2)
        .ok_or(EnvelopeError::Shape(
            "a signature has the members key and sig",
        ))?;
    let text = |name: &str| {
        Object::get(members, name)
            .and_then(Json::as_text)
            .ok_or(EnvelopeError::Shape(
                "a signature has the texts key and sig",
            ))
    };
    let key = text("key")?
        .parse()
        .map_err(|_| EnvelopeError::Shape("a key is 64 lower-case hexadecimal digits"))?;
    let sig = text("sig")?;
    let mut bytes = [0; 64];
    if hex::decode_to_slice(sig, &mut bytes).is_err() || hex::encode(bytes) != sig {
        return Err(EnvelopeError::Shape(
            "a sig is 128 lower-case hexadecimal digits",
        ));
    }
    Ok(Signature { key, bytes })
}
