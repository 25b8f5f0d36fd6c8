//! Digests and verified blocks: the door that every byte of data passes.
//!
//! A block is at most 1 MiB of one file. Whatever a network or a disk delivers is plain [`Bytes`] until
//! [`Block::verify`] has compared its SHA-256 with the digest that was asked for. This module knows nothing of
//! files, networks or stores.

#![expect(
    clippy::cast_possible_truncation,
    reason = "lengths fit usize on the 64-bit machines that the crate insists on"
)]

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// Bytes of every block of a file but the last; a constant of catalog format 1, so changing it breaks the format.
pub const BLOCK_BYTES: u64 = 1 << 20;

/// The largest file, in bytes: 2^50.
pub const FILE_BYTES_MAX: u64 = 1 << 50;

const HEX_DIGITS: [u8; 16] = *b"0123456789abcdef";

/// What a byte of a text stands for as a lower-case hexadecimal digit; 0xff for any other.
const HEX_VALUES: [u8; 256] = {
    let mut values = [0xff; 256];
    let mut value = 0;
    while value < 16 {
        values[HEX_DIGITS[value as usize] as usize] = value;
        value += 1;
    }
    values
};

/// The SHA-256 of some bytes: what a block, a file or a node is known by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of no bytes at all.
    pub const EMPTY: Digest = Digest([
        0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9,
        0x24, 0x27, 0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52,
        0xb8, 0x55,
    ]);

    /// Computes the digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Digest(Sha256::digest(bytes).into())
    }

    /// Takes 32 bytes that are already a SHA-256.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Digest(bytes)
    }

    /// Returns the 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the text: 64 lower-case hexadecimal digits.
    pub fn to_hex(&self) -> [u8; 64] {
        let mut text = [0; 64];
        let (pairs, _) = text.as_chunks_mut::<2>();
        for (pair, byte) in pairs.iter_mut().zip(self.0) {
            *pair = [byte >> 4, byte & 0xf].map(|value| HEX_DIGITS[usize::from(value)]);
        }
        text
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.to_hex()).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Not 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a digest is 64 lower-case hexadecimal digits")]
pub struct DigestSyntax;

impl FromStr for Digest {
    type Err = DigestSyntax;

    fn from_str(text: &str) -> Result<Self, DigestSyntax> {
        let digits: &[u8; 64] = text.as_bytes().try_into().map_err(|_| DigestSyntax)?;
        let (pairs, _) = digits.as_chunks::<2>();
        let mut bytes = [0; 32];
        // Of all digits at once, so that nothing branches on them: a store has a million names.
        let mut wrong = 0;
        for (byte, pair) in bytes.iter_mut().zip(pairs) {
            let [high, low] = pair.map(|digit| HEX_VALUES[usize::from(digit)]);
            wrong |= high | low;
            *byte = high << 4 | low;
        }
        if wrong > 0xf {
            return Err(DigestSyntax);
        }
        Ok(Digest(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Returns how many blocks a file of `size` bytes has; an empty file has none.
pub const fn block_count(size: u64) -> u64 {
    size.div_ceil(BLOCK_BYTES)
}

/// Returns the length in bytes of block `index` of a file of `size` bytes; 0 past the end.
pub const fn block_len(size: u64, index: u64) -> u32 {
    let start = index.saturating_mul(BLOCK_BYTES);
    let rest = size.saturating_sub(start);
    // At most 2^20, so the cast loses nothing.
    (if rest < BLOCK_BYTES {
        rest
    } else {
        BLOCK_BYTES
    }) as u32
}

/// A file as the store and other software know it: the digest of its UnixFS root, and its size in bytes.
///
/// For a file of at most one block `id` is the digest of its bytes. A catalog is a file in this sense too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileRef {
    /// The SHA-256 of the UnixFS root in profile `unixfs-v1-2025`.
    pub id: Digest,
    /// Bytes.
    pub size: u64,
}

/// One block and where it lies: what can be looked up in the store and asked of sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockRef {
    /// The file that holds it.
    pub file: FileRef,
    /// Which block of the file, from 0.
    pub index: u64,
    /// What its bytes must hash to.
    pub digest: Digest,
}

impl BlockRef {
    /// Returns the block's length in bytes.
    pub const fn len(&self) -> u32 {
        block_len(self.file.size, self.index)
    }

    /// Returns whether the block has no bytes, which no block of a valid file does.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The bytes are not the ones that were asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WrongBytes {
    /// Their number is wrong.
    #[error("{got} bytes came where block {digest} has {want}")]
    Length {
        /// The block asked for.
        digest: Digest,
        /// Its length.
        want: u32,
        /// The length that came.
        got: usize,
    },
    /// They hash to something else.
    #[error("the bytes that came for block {digest} hash to {got}")]
    Digest {
        /// The block asked for.
        digest: Digest,
        /// What the bytes hash to.
        got: Digest,
    },
}

/// Bytes that hash to their digest. The field is private: holding a `Block` is the proof.
#[derive(Clone, Debug)]
pub struct Block {
    digest: Digest,
    bytes: Bytes,
}

impl Block {
    /// Checks `bytes` against the digest and length that were asked for: the only way in for bytes from outside.
    ///
    /// # Errors
    /// [`WrongBytes`] when the length or the SHA-256 differs.
    pub fn verify(digest: Digest, len: u32, bytes: Bytes) -> Result<Block, WrongBytes> {
        if bytes.len() as u64 != u64::from(len) {
            return Err(WrongBytes::Length {
                digest,
                want: len,
                got: bytes.len(),
            });
        }
        let got = Digest::of(&bytes);
        if got != digest {
            return Err(WrongBytes::Digest { digest, got });
        }
        Ok(Block { digest, bytes })
    }

    /// Names bytes of our own: the block is whatever they hash to. For `publish` and for nodes that we build.
    pub fn seal(bytes: Bytes) -> Block {
        Block {
            digest: Digest::of(&bytes),
            bytes,
        }
    }

    /// Returns what the bytes hash to.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Returns the bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Gives the bytes away.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_its_text_and_nothing_else_is_one() {
        let digest = Digest::of(b"x");
        let text = digest.to_string();
        assert_eq!(text, hex::encode(digest.as_bytes()));
        assert_eq!(text.parse(), Ok(digest));
        for at in 0..64 {
            // Around the digits and letters, in upper case, and more than a byte.
            for wrong in ["/", ":", "`", "g", "A", "F", " ", "\0", "\u{ff}"] {
                let mut other = text.clone();
                other.replace_range(at..=at, wrong);
                assert_eq!(other.parse::<Digest>(), Err(DigestSyntax), "{other}");
            }
        }
        for other in [&text[1..], &format!("{text}0"), ""] {
            assert_eq!(other.parse::<Digest>(), Err(DigestSyntax));
        }
    }

    #[test]
    fn counts_and_lengths_around_every_boundary() {
        let b = BLOCK_BYTES;
        for (size, count, last) in [
            (0, 0, 0),
            (1, 1, 1),
            (b - 1, 1, b - 1),
            (b, 1, b),
            (b + 1, 2, 1),
            (2 * b, 2, b),
        ] {
            assert_eq!(block_count(size), count, "{size}");
            assert_eq!(
                u64::from(block_len(size, count.saturating_sub(1))),
                last,
                "{size}"
            );
            assert_eq!(block_len(size, count), 0, "past the end of {size}");
        }
        assert_eq!(block_len(u64::MAX, u64::MAX), 0);
    }

    #[test]
    fn a_block_is_only_what_was_asked_for() {
        let bytes = Bytes::from_static(b"hello world");
        let digest = Digest::of(&bytes);
        assert_eq!(
            Block::verify(digest, 11, bytes.clone()).unwrap().bytes(),
            &bytes
        );
        assert!(matches!(
            Block::verify(digest, 12, bytes.clone()),
            Err(WrongBytes::Length {
                want: 12,
                got: 11,
                ..
            })
        ));
        assert!(matches!(
            Block::verify(digest, 11, Bytes::from_static(b"hello worle")),
            Err(WrongBytes::Digest { .. })
        ));
        assert_eq!(Block::seal(bytes).digest(), digest);
        assert_eq!(Digest::of(b""), Digest::EMPTY);
    }

    #[test]
    fn digests_are_lower_case_hex_and_nothing_else() {
        let text = Digest::EMPTY.to_string();
        assert_eq!(text.parse::<Digest>(), Ok(Digest::EMPTY));
        assert!(text.to_uppercase().parse::<Digest>().is_err());
        assert!(text[1..].parse::<Digest>().is_err());
        assert!(format!("{}g", &text[1..]).parse::<Digest>().is_err());
    }
}
