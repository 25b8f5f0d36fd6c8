//! The UnixFS message in the Data field of a dag-pb node: `unixfs.proto`, written and read field by field.

use super::wire::{self, Value};
use super::{VarintError, varint};

/// HAMT shards hash names with murmur3-x64-64.
pub(crate) const MURMUR3: u64 = 0x22;

/// Slots of a shard that we write.
pub(crate) const FANOUT: u64 = 256;

/// The message of an empty or basic directory.
pub(crate) const DIRECTORY: [u8; 2] = [0x08, 0x01];

/// Builds the message of a symlink.
pub(crate) fn symlink(target: &[u8]) -> Vec<u8> {
    let mut out = vec![0x08, 0x04];
    push_bytes(&mut out, target);
    out
}

/// Builds the message of a file's inner node from the bytes of the file below each link.
pub(crate) fn file(size: u64, children: impl Iterator<Item = u64>) -> Vec<u8> {
    let mut out = vec![0x08, 0x02, 0x18];
    varint::push(&mut out, size);
    for bytes in children {
        out.push(0x20);
        varint::push(&mut out, bytes);
    }
    out
}

/// Builds the message of a shard from its bit field, leading zero bytes cut.
pub(crate) fn shard(bits: &[u8]) -> Vec<u8> {
    let mut out = vec![0x08, 0x05];
    push_bytes(&mut out, bits);
    out.push(0x28);
    varint::push(&mut out, MURMUR3);
    out.push(0x30);
    varint::push(&mut out, FANOUT);
    out
}

/// The Data field is left out when it is empty.
fn push_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    if !bytes.is_empty() {
        out.push(0x12);
        varint::push(out, bytes.len() as u64);
        out.extend_from_slice(bytes);
    }
}

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Bytes of a file, as old writers make leaves.
    Raw,
    Directory,
    File,
    Symlink,
    Shard,
}

/// The fields of a message that matter to a reader; mode and time are passed over, as are unknown fields.
#[derive(Debug)]
pub(crate) struct Message<'a> {
    pub(crate) kind: Kind,
    pub(crate) data: &'a [u8],
    pub(crate) size: Option<u64>,
    pub(crate) sizes: Vec<u64>,
    pub(crate) hash: Option<u64>,
    pub(crate) fanout: Option<u64>,
}

/// The bytes are no message that can be read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum MessageError {
    /// Malformed, or a single field comes twice.
    Malformed,
    /// Of type Metadata, or of an unknown one.
    Kind(u64),
}

impl From<VarintError> for MessageError {
    fn from(_: VarintError) -> Self {
        MessageError::Malformed
    }
}

/// Parses a message.
pub(crate) fn decode(mut input: &[u8]) -> Result<Message<'_>, MessageError> {
    let (mut kind, mut data, mut size, mut hash, mut fanout) = (None, None, None, None, None);
    let mut sizes = Vec::new();
    while !input.is_empty() {
        match wire::take(&mut input)? {
            (1, Value::Varint(value)) => once(&mut kind, value)?,
            (2, Value::Bytes(value)) => once(&mut data, value)?,
            (3, Value::Varint(value)) => once(&mut size, value)?,
            (4, Value::Varint(value)) => sizes.push(value),
            (4, Value::Bytes(mut packed)) => {
                while !packed.is_empty() {
                    sizes.push(varint::take(&mut packed, varint::PROTOBUF)?);
                }
            }
            (5, Value::Varint(value)) => once(&mut hash, value)?,
            (6, Value::Varint(value)) => once(&mut fanout, value)?,
            (1..=6, _) => return Err(MessageError::Malformed),
            _ => {}
        }
    }
    let kind = match kind.ok_or(MessageError::Malformed)? {
        0 => Kind::Raw,
        1 => Kind::Directory,
        2 => Kind::File,
        4 => Kind::Symlink,
        5 => Kind::Shard,
        other => return Err(MessageError::Kind(other)),
    };
    Ok(Message {
        kind,
        data: data.unwrap_or_default(),
        size,
        sizes,
        hash,
        fanout,
    })
}

fn once<T>(field: &mut Option<T>, value: T) -> Result<(), MessageError> {
    match field.replace(value) {
        None => Ok(()),
        Some(_) => Err(MessageError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_may_be_packed() {
        for text in ["0802180520022003", "080218052202 0203"] {
            let bytes = hex::decode(text.replace(' ', "")).unwrap();
            let message = decode(&bytes).unwrap();
            assert_eq!(message.kind, Kind::File);
            assert_eq!(message.size, Some(5));
            assert_eq!(message.sizes, [2, 3]);
        }
    }

    #[test]
    fn mode_and_time_are_passed_over() {
        let bytes = hex::decode("0802180038f403420b0888a6d0fc051531d40000").unwrap();
        assert_eq!(decode(&bytes).unwrap().size, Some(0));
    }

    #[test]
    fn malformed_ones_are_refused() {
        for text in [
            "",
            "1200",
            "08020802",
            "0a00",
            "080218001800",
            "0802120012",
            "12010808",
        ] {
            let bytes = hex::decode(text).unwrap();
            assert_eq!(
                decode(&bytes).unwrap_err(),
                MessageError::Malformed,
                "{text}"
            );
        }
        assert_eq!(decode(&[8, 3]).unwrap_err(), MessageError::Kind(3));
        assert_eq!(decode(&[8, 6]).unwrap_err(), MessageError::Kind(6));
    }
}
