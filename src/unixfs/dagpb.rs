//! dag-pb, the codec of inner nodes: links first, then data, absent and empty fields kept apart.
//!
//! Specification: `specs/codecs/dag-pb/spec.md` of ipld/ipld. The reader takes the data before or after the links,
//! links without a name or a size, and links in any order, since old writers made all of these; everything else that
//! the specification forbids is refused.

use super::wire::{self, Value};
use super::{AnyCid, Cid, CidError, VarintError, varint};

/// A node as it was encoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PbNode<'a> {
    /// Its links in their order.
    pub links: Vec<PbLink<'a>>,
    /// Its data.
    pub data: Option<&'a [u8]>,
}

/// A link of a [`PbNode`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PbLink<'a> {
    /// What it points to.
    pub cid: AnyCid,
    /// Its name.
    pub name: Option<&'a [u8]>,
    /// Bytes of everything below it, as its writer says: never to be relied on.
    pub tsize: Option<u64>,
}

/// Why bytes are no dag-pb node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DagPbError {
    /// A field is cut off, or its number or type is malformed.
    #[error("a dag-pb field is malformed")]
    Wire(#[from] VarintError),
    /// A field stands where none or another belongs.
    #[error("a dag-pb field is unknown, repeated or out of order")]
    Field,
    /// A link points nowhere.
    #[error("a dag-pb link has no CID")]
    NoCid,
    /// The CID of a link is malformed.
    #[error("a dag-pb link is malformed")]
    Cid(#[from] CidError),
}

/// Parses a node. Its memory is bounded by a small multiple of the input, whose length the caller limits.
///
/// # Errors
/// [`DagPbError`] for anything but a node.
pub fn decode(mut input: &[u8]) -> Result<PbNode<'_>, DagPbError> {
    let mut node = PbNode::default();
    // Links are one run: they may stand before or after the data, but not around it.
    let mut data_after_links = false;
    while !input.is_empty() {
        match wire::take(&mut input)? {
            (1, Value::Bytes(data)) if node.data.is_none() => {
                node.data = Some(data);
                data_after_links = !node.links.is_empty();
            }
            (2, Value::Bytes(link)) if !data_after_links => node.links.push(decode_link(link)?),
            _ => return Err(DagPbError::Field),
        }
    }
    Ok(node)
}

fn decode_link(mut input: &[u8]) -> Result<PbLink<'_>, DagPbError> {
    let mut last = 0;
    let (mut cid, mut name, mut tsize) = (None, None, None);
    while !input.is_empty() {
        let (number, value) = wire::take(&mut input)?;
        if number <= last {
            return Err(DagPbError::Field);
        }
        last = number;
        match (number, value) {
            (1, Value::Bytes(bytes)) => cid = Some(AnyCid::from_bytes(bytes)?),
            (2, Value::Bytes(bytes)) => name = Some(bytes),
            (3, Value::Varint(value)) => tsize = Some(value),
            _ => return Err(DagPbError::Field),
        }
    }
    Ok(PbLink {
        cid: cid.ok_or(DagPbError::NoCid)?,
        name,
        tsize,
    })
}

/// Encodes a node: links in the order they have, then the data.
pub fn encode(node: &PbNode<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    for link in &node.links {
        let mut body = Vec::new();
        push_bytes(&mut body, 0x0a, &link.cid.to_bytes());
        if let Some(name) = link.name {
            push_bytes(&mut body, 0x12, name);
        }
        if let Some(tsize) = link.tsize {
            body.push(0x18);
            varint::push(&mut body, tsize);
        }
        push_bytes(&mut out, 0x12, &body);
    }
    if let Some(data) = node.data {
        push_data(&mut out, data);
    }
    out
}

fn push_bytes(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    varint::push(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends one link with all three fields, as every current writer does: also an empty name, also a zero size.
pub(crate) fn push_link(out: &mut Vec<u8>, cid: &Cid, name: &[u8], tsize: u64) {
    out.push(0x12);
    varint::push(out, link_body_len(name.len(), tsize));
    push_bytes(out, 0x0a, &cid.to_bytes());
    push_bytes(out, 0x12, name);
    out.push(0x18);
    varint::push(out, tsize);
}

/// Appends the data field.
pub(crate) fn push_data(out: &mut Vec<u8>, data: &[u8]) {
    push_bytes(out, 0x0a, data);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The identity CID of five bytes, as the fixtures of ipld/ipld use it.
    const CID: &str = "0a09015500050001020304";

    fn refused(hex_text: &str) -> DagPbError {
        decode(&hex::decode(hex_text.replace(' ', "")).unwrap()).unwrap_err()
    }

    #[test]
    fn data_may_stand_on_either_side_of_the_links() {
        let link = format!("120b{CID}");
        let data = "0a03010203";
        for text in [format!("{link}{link}{data}"), format!("{data}{link}{link}")] {
            let bytes = hex::decode(text).unwrap();
            let node = decode(&bytes).unwrap();
            assert_eq!(node.links.len(), 2);
            assert_eq!(node.data, Some(&[1, 2, 3][..]));
        }
        assert_eq!(refused(&format!("{link}{data}{link}")), DagPbError::Field);
    }

    #[test]
    fn what_the_specification_forbids_is_refused() {
        assert_eq!(refused("0a00 0a00"), DagPbError::Field);
        assert_eq!(refused("1a00"), DagPbError::Field);
        assert_eq!(refused("0801"), DagPbError::Field);
        assert_eq!(refused("0d00000000"), DagPbError::Field);
        assert_eq!(refused("1200"), DagPbError::NoCid);
        assert_eq!(refused("1202 1200"), DagPbError::NoCid);
        assert_eq!(refused(&format!("120d 1200{CID}")), DagPbError::Field);
        assert_eq!(refused(&format!("1216 {CID}{CID}")), DagPbError::Field);
        assert_eq!(
            refused(&format!("120d{CID}1801")[..24]),
            DagPbError::Wire(VarintError)
        );
        assert_eq!(refused("1204 0a020155"), DagPbError::Cid(CidError::Version));
        assert_eq!(refused("0a"), DagPbError::Wire(VarintError));
        assert_eq!(refused("0a05 00"), DagPbError::Wire(VarintError));
        assert_eq!(
            refused("0affffffffffffffffff01"),
            DagPbError::Wire(VarintError)
        );
        assert_eq!(refused("0b"), DagPbError::Wire(VarintError));
    }

    #[test]
    fn computed_lengths_are_the_real_ones() {
        let cid = Cid::raw(crate::block::Digest::EMPTY);
        for name in [0, 1, 85, 86, 127, 128, 255] {
            for tsize in [0, 127, 128, 1 << 40, u64::MAX] {
                let mut out = Vec::new();
                push_link(&mut out, &cid, &vec![b'n'; name], tsize);
                assert_eq!(out.len() as u64, link_len(name, tsize), "{name} {tsize}");
            }
            let mut out = Vec::new();
            push_data(&mut out, &vec![0; name]);
            assert_eq!(out.len() as u64, data_len(name as u64));
        }
    }
}
