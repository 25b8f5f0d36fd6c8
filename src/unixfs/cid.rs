//! CIDs: [`Cid`] for what manifs makes itself, [`AnyCid`] for what others link to and ask for.

use std::fmt;
use std::str::FromStr;

use ::cid::multibase::{self, Base};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::varint;
use crate::block::Digest;

/// The longest digest that a CID may carry: what identity CIDs may hold inline.
pub const DIGEST_BYTES_MAX: usize = 128;

/// Characters of the longest CID in text that is looked at: base16 of the longest binary form, rounded up.
const TEXT_MAX: usize = 400;

const RAW: u64 = 0x55;
const DAG_PB: u64 = 0x70;
const SHA2_256: u64 = 0x12;
const IDENTITY: u64 = 0x00;

const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// What the bytes under a CID are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Codec {
    /// Bytes of a file.
    Raw,
    /// A dag-pb node.
    DagPb,
}

impl Codec {
    const fn code(self) -> u8 {
        match self {
            Codec::Raw => 0x55,
            Codec::DagPb => 0x70,
        }
    }
}

/// A CIDv1 with sha2-256 and codec raw or dag-pb: the only kind that manifs writes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cid {
    codec: Codec,
    digest: Digest,
}

impl Cid {
    /// Bytes of the binary form.
    pub const BYTES: usize = 36;

    /// Names bytes of a file.
    pub const fn raw(digest: Digest) -> Self {
        Cid {
            codec: Codec::Raw,
            digest,
        }
    }

    /// Names a dag-pb node.
    pub const fn dag_pb(digest: Digest) -> Self {
        Cid {
            codec: Codec::DagPb,
            digest,
        }
    }

    /// Returns what the bytes are.
    pub const fn codec(&self) -> Codec {
        self.codec
    }

    /// Returns what the bytes hash to.
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// Returns the binary form.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..4].copy_from_slice(&[0x01, self.codec.code(), 0x12, 0x20]);
        bytes[4..].copy_from_slice(self.digest.as_bytes());
        bytes
    }

    /// Parses the binary form, which must be the whole input.
    ///
    /// # Errors
    /// [`CidError`] for anything but what [`Cid::to_bytes`] makes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CidError> {
        match bytes {
            [0x01, codec, 0x12, 0x20, digest @ ..] => {
                let digest = digest.try_into().map_err(|_| CidError::Digest)?;
                let digest = Digest::from_bytes(digest);
                match codec {
                    0x55 => Ok(Cid::raw(digest)),
                    0x70 => Ok(Cid::dag_pb(digest)),
                    _ => Err(CidError::Foreign),
                }
            }
            _ => Err(CidError::Foreign),
        }
    }
}

impl fmt::Display for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("b")?;
        f.write_str(&base32(&self.to_bytes()))
    }
}

impl fmt::Debug for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Cid {
    type Err = CidError;

    /// Parses the one text form: base32 in lower case.
    fn from_str(text: &str) -> Result<Self, CidError> {
        if !text.starts_with('b') {
            return Err(CidError::Foreign);
        }
        let cid = text.parse::<AnyCid>()?;
        match cid.multihash {
            Multihash::Sha2_256(digest) if !cid.v0 && cid.codec == RAW => Ok(Cid::raw(digest)),
            Multihash::Sha2_256(digest) if !cid.v0 && cid.codec == DAG_PB => {
                Ok(Cid::dag_pb(digest))
            }
            _ => Err(CidError::Foreign),
        }
    }
}

impl Serialize for Cid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Why something is not a CID, or not one of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CidError {
    /// A valid CID may look so, but manifs does not make such.
    #[error("not a version 1 CID with sha2-256 and codec raw or dag-pb")]
    Foreign,
    /// Neither version 0 nor 1, or the numbers in it are malformed.
    #[error("not a CID of version 0 or 1")]
    Version,
    /// The digest is cut off, too long, or followed by more.
    #[error("the digest of the CID has the wrong length")]
    Digest,
    /// The text is not in the encoding that its first letter names, or too long.
    #[error("the text is not a CID in a known encoding")]
    Text,
}

/// A block cannot be checked: its hash function, by its number in the multicodec table, is not computed here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the hash function 0x{0:x} is not known")]
pub struct UnknownHash(pub u64);

/// The hash in a CID.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Multihash {
    /// SHA-256.
    Sha2_256(Digest),
    /// No hash: the content itself.
    Identity(Box<[u8]>),
    /// A function that manifs does not compute.
    Other {
        /// Its number in the multicodec table.
        code: u64,
        /// Its value.
        digest: Box<[u8]>,
    },
}

/// Any CID of version 0 or 1: what other writers link to and what clients ask for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AnyCid {
    v0: bool,
    codec: u64,
    multihash: Multihash,
}

impl AnyCid {
    /// Returns the codec's number in the multicodec table; 0x70 in version 0.
    pub fn codec_code(&self) -> u64 {
        self.codec
    }

    /// Returns the codec, if it is one that manifs reads.
    pub fn codec(&self) -> Option<Codec> {
        match self.codec {
            RAW => Some(Codec::Raw),
            DAG_PB => Some(Codec::DagPb),
            _ => None,
        }
    }

    /// Returns the hash.
    pub fn multihash(&self) -> &Multihash {
        &self.multihash
    }

    /// Returns whether the version is 0.
    pub fn is_v0(&self) -> bool {
        self.v0
    }

    /// Returns the content that an identity CID holds.
    pub fn identity(&self) -> Option<&[u8]> {
        match &self.multihash {
            Multihash::Identity(content) => Some(content),
            _ => None,
        }
    }

    /// Returns the CID of the same block in our own form, if its hash and codec allow one.
    pub fn known(&self) -> Option<Cid> {
        match (&self.multihash, self.codec()?) {
            (Multihash::Sha2_256(digest), Codec::Raw) => Some(Cid::raw(*digest)),
            (Multihash::Sha2_256(digest), Codec::DagPb) => Some(Cid::dag_pb(*digest)),
            _ => None,
        }
    }

    /// Returns whether `bytes` are what this CID names.
    ///
    /// # Errors
    /// [`UnknownHash`] when the hash function is not computed here.
    pub fn names(&self, bytes: &[u8]) -> Result<bool, UnknownHash> {
        match &self.multihash {
            Multihash::Sha2_256(digest) => Ok(Digest::of(bytes) == *digest),
            Multihash::Identity(content) => Ok(bytes == &content[..]),
            Multihash::Other { code, .. } => Err(UnknownHash(*code)),
        }
    }

    /// Parses the binary form, which must be the whole input.
    ///
    /// # Errors
    /// [`CidError`] when it is malformed or goes on after the digest.
    pub fn from_bytes(mut bytes: &[u8]) -> Result<Self, CidError> {
        let cid = Self::take(&mut bytes)?;
        if bytes.is_empty() {
            Ok(cid)
        } else {
            Err(CidError::Digest)
        }
    }

    /// Takes a CID from the front of `input`, as a section of a CAR begins.
    pub(crate) fn take(input: &mut &[u8]) -> Result<Self, CidError> {
        let number = |input: &mut &[u8]| {
            varint::take(input, varint::MULTIFORMATS).map_err(|_| CidError::Version)
        };
        let v0 = input.starts_with(&[0x12, 0x20]);
        let codec = if v0 {
            DAG_PB
        } else {
            if number(input)? != 1 {
                return Err(CidError::Version);
            }
            number(input)?
        };
        let code = number(input)?;
        let len = usize::try_from(number(input)?).map_err(|_| CidError::Digest)?;
        if len > DIGEST_BYTES_MAX {
            return Err(CidError::Digest);
        }
        let (digest, rest) = input.split_at_checked(len).ok_or(CidError::Digest)?;
        *input = rest;
        let multihash = match code {
            SHA2_256 => {
                let digest = digest.try_into().map_err(|_| CidError::Digest)?;
                Multihash::Sha2_256(Digest::from_bytes(digest))
            }
            IDENTITY => Multihash::Identity(digest.into()),
            _ => Multihash::Other {
                code,
                digest: digest.into(),
            },
        };
        Ok(AnyCid {
            v0,
            codec,
            multihash,
        })
    }

    /// Returns the binary form.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Cid::BYTES);
        if !self.v0 {
            out.push(1);
            varint::push(&mut out, self.codec);
        }
        let (code, digest) = match &self.multihash {
            Multihash::Sha2_256(digest) => (SHA2_256, &digest.as_bytes()[..]),
            Multihash::Identity(content) => (IDENTITY, &content[..]),
            Multihash::Other { code, digest } => (*code, &digest[..]),
        };
        varint::push(&mut out, code);
        varint::push(&mut out, digest.len() as u64);
        out.extend_from_slice(digest);
        out
    }
}

impl From<Cid> for AnyCid {
    fn from(cid: Cid) -> Self {
        AnyCid {
            v0: false,
            codec: u64::from(cid.codec.code()),
            multihash: Multihash::Sha2_256(cid.digest),
        }
    }
}

impl fmt::Display for AnyCid {
    /// Writes base58 for version 0 and base32 for version 1.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.to_bytes();
        if self.v0 {
            f.write_str(&Base::Base58Btc.encode(bytes))
        } else {
            f.write_str("b")?;
            f.write_str(&base32(&bytes))
        }
    }
}

impl fmt::Debug for AnyCid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for AnyCid {
    type Err = CidError;

    /// Parses version 0 (base58) and version 1 in any multibase encoding.
    fn from_str(text: &str) -> Result<Self, CidError> {
        if text.len() > TEXT_MAX {
            return Err(CidError::Text);
        }
        if text.len() == 46 && text.starts_with("Qm") {
            let bytes = Base::Base58Btc.decode(text).map_err(|_| CidError::Text)?;
            return Self::from_bytes(&bytes);
        }
        let (base, bytes) = multibase::decode(text).map_err(|_| CidError::Text)?;
        let cid = Self::from_bytes(&bytes)?;
        // Version 0 has no multibase form; and one CID has one text in each encoding.
        if cid.v0 || multibase::encode(base, &bytes) != text {
            return Err(CidError::Text);
        }
        Ok(cid)
    }
}

fn base32(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(5) * 8);
    let mut bits = 0_u32;
    let mut count = 0;
    for &byte in bytes {
        // At most 4 bits are left over, so 12 are in use here.
        bits = (bits << 8 | u32::from(byte)) & 0xfff;
        count += 8;
        while count >= 5 {
            count -= 5;
            text.push(char::from(BASE32[(bits >> count & 31) as usize]));
        }
    }
    if count > 0 {
        text.push(char::from(BASE32[(bits << (5 - count) & 31) as usize]));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_form_comes_back() {
        let digest = Digest::of(b"hello world");
        let text = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e";
        assert_eq!(Cid::raw(digest).to_string(), text);
        for cid in [Cid::raw(digest), Cid::dag_pb(digest)] {
            assert_eq!(Cid::from_bytes(&cid.to_bytes()), Ok(cid));
            assert_eq!(cid.to_string().parse(), Ok(cid));
            assert_eq!(AnyCid::from(cid).known(), Some(cid));
            assert_eq!(AnyCid::from(cid).to_bytes(), cid.to_bytes());
            let json = serde_json::to_string(&cid).unwrap();
            assert_eq!(serde_json::from_str::<Cid>(&json).unwrap(), cid);
        }
        assert!(text.to_uppercase().parse::<Cid>().is_err());
        assert!(text[..58].parse::<Cid>().is_err());
        assert!(format!("{text}a").parse::<Cid>().is_err());
        // 36 bytes are 57.6 digits: the last two bits must be zero.
        assert!(format!("{}f", &text[..58]).parse::<Cid>().is_err());
    }

    #[test]
    fn foreign_ones_are_read_but_are_not_ours() {
        let v0: AnyCid = "Qmf412jQZiuVUtdgnB36FXFX7xg5V6KEbSJ4dpQuhkLyfD"
            .parse()
            .unwrap();
        assert!(v0.is_v0());
        assert_eq!(v0.codec(), Some(Codec::DagPb));
        assert_eq!(v0.known().map(|cid| cid.codec()), Some(Codec::DagPb));
        assert_eq!(
            v0.to_string(),
            "Qmf412jQZiuVUtdgnB36FXFX7xg5V6KEbSJ4dpQuhkLyfD"
        );
        assert_eq!(v0.to_string().parse::<Cid>(), Err(CidError::Foreign));

        let probe: AnyCid = "bafkqaaa".parse().unwrap();
        assert_eq!(probe.identity(), Some(&b""[..]));
        assert_eq!(probe.names(b""), Ok(true));
        assert_eq!(probe.names(b"x"), Ok(false));
        assert_eq!(probe.known(), None);
        assert_eq!("bafkqaaa".parse::<Cid>(), Err(CidError::Foreign));
    }

    #[test]
    fn every_encoding_gives_the_same_cid() {
        let cid = AnyCid::from(Cid::dag_pb(Digest::of(b"x")));
        for base in [
            Base::Base16Lower,
            Base::Base16Upper,
            Base::Base32Lower,
            Base::Base32Upper,
            Base::Base36Lower,
            Base::Base58Btc,
            Base::Base64Url,
        ] {
            let text = multibase::encode(base, cid.to_bytes());
            assert_eq!(text.parse(), Ok(cid.clone()), "{text}");
        }
    }

    #[test]
    fn malformed_ones_are_refused() {
        let good = Cid::raw(Digest::EMPTY).to_bytes();
        for len in 0..good.len() {
            assert!(AnyCid::from_bytes(&good[..len]).is_err(), "cut to {len}");
            assert!(Cid::from_bytes(&good[..len]).is_err(), "cut to {len}");
        }
        let mut long = good.to_vec();
        long.push(0);
        assert_eq!(AnyCid::from_bytes(&long), Err(CidError::Digest));
        assert_eq!(Cid::from_bytes(&long), Err(CidError::Digest));
        assert_eq!(AnyCid::from_bytes(&[2, 0x55, 0, 0]), Err(CidError::Version));
        // A padded varint names the same number by other bytes.
        assert!(AnyCid::from_bytes(&[0x81, 0x00, 0x55, 0, 0]).is_err());
        let mut fat = vec![1, 0x55, 0, 0x81, 0x01];
        fat.extend([0; 129]);
        assert_eq!(AnyCid::from_bytes(&fat), Err(CidError::Digest));
        for text in ["", "b", "Qm", "z", "\u{e9}", &"b".repeat(1000)] {
            assert!(text.parse::<AnyCid>().is_err(), "{text}");
        }
    }
}
