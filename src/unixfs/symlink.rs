//! Symlinks: one dag-pb node that holds the target.

use super::{Cid, Link, dagpb, message};
use crate::block::Digest;

/// Builds the node of a symlink to `target`, whose bytes are taken as they are.
pub fn node(target: &[u8]) -> Vec<u8> {
    let data = message::symlink(target);
    let mut out = Vec::with_capacity(data.len() + 4);
    dagpb::push_data(&mut out, &data);
    out
}

/// Returns what a directory's link to that symlink carries.
pub fn link(target: &[u8]) -> Link {
    let bytes = node(target);
    Link {
        cid: Cid::dag_pb(Digest::of(&bytes)),
        tsize: bytes.len() as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        // From ipfs/kubo test/sharness/t0044-add-symlink.sh, as are the same bytes under version 0.
        assert_eq!(
            hex::encode(node(b"files/foo/baz")),
            "0a110804120d66696c65732f666f6f2f62617a"
        );
        assert_eq!(link(b"files/foo/baz").tsize, 19);
        assert_eq!(node(&[b'x'; 4095]).len(), 4095 + 8);
    }
}
