//! How this program introduces itself to BitTorrent peers, whether it reads from them or seeds to them.

use librqbit_core::hash_id::Id20;
use librqbit_peer_protocol::Handshake;

use super::Sha1Hash;

/// Bytes of a handshake, BEP 3.
pub const HANDSHAKE_BYTES: usize = 68;

/// What peers see as the client's name, BEP 10.
pub const CLIENT: &str = concat!("manifs ", env!("CARGO_PKG_VERSION"));

/// Begins the peer id, BEP 20: two letters for the program, four digits for its version.
const PEER_ID_HEAD: &[u8; 8] = b"-MN0100-";

/// Returns a new peer id: ours in its beginning, random in the rest.
pub fn peer_id() -> [u8; 20] {
    let mut peer_id = [0; 20];
    let (head, rest) = peer_id.split_at_mut(PEER_ID_HEAD.len());
    head.copy_from_slice(PEER_ID_HEAD);
    for byte in rest {
        *byte = rand::random_range(b'a'..=b'z');
    }
    peer_id
}

/// Returns our handshake.
pub fn handshake(info_hash: Sha1Hash, peer_id: [u8; 20]) -> [u8; HANDSHAKE_BYTES] {
    let mut bytes = [0; HANDSHAKE_BYTES];
    let handshake = Handshake::new(Id20::new(info_hash), Id20::new(peer_id));
    let _ = handshake.serialize_unchecked_len(&mut bytes);
    bytes
}
