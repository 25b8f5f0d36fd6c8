//! The UnixFS message in the Data field of a dag-pb node: `unixfs.proto`, written field by field.

use super::varint;

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
