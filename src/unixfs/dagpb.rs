//! dag-pb, the codec of inner nodes: links first, then data, both kept byte for byte.

use super::{Cid, varint};

/// Appends one link with all three fields, as every current writer does: also an empty name, also a zero size.
pub(crate) fn push_link(out: &mut Vec<u8>, cid: &Cid, name: &[u8], tsize: u64) {
    out.push(0x12);
    varint::push(out, link_body_len(name.len(), tsize));
    out.extend_from_slice(&[0x0a, 36]);
    out.extend_from_slice(&cid.to_bytes());
    out.push(0x12);
    varint::push(out, name.len() as u64);
    out.extend_from_slice(name);
    out.push(0x18);
    varint::push(out, tsize);
}

/// Appends the data field.
pub(crate) fn push_data(out: &mut Vec<u8>, data: &[u8]) {
    out.push(0x0a);
    varint::push(out, data.len() as u64);
    out.extend_from_slice(data);
}

/// Returns how many bytes [`push_link`] appends.
pub(crate) const fn link_len(name_bytes: usize, tsize: u64) -> u64 {
    let body = link_body_len(name_bytes, tsize);
    1 + varint::len(body) + body
}

/// Returns how many bytes [`push_data`] appends.
pub(crate) const fn data_len(data_bytes: u64) -> u64 {
    1 + varint::len(data_bytes) + data_bytes
}

const fn link_body_len(name_bytes: usize, tsize: u64) -> u64 {
    // Hash: tag, length, 36 bytes. Name: tag, length, bytes. Tsize: tag, varint.
    let name_bytes = name_bytes as u64;
    38 + 1 + varint::len(name_bytes) + name_bytes + 1 + varint::len(tsize)
}
