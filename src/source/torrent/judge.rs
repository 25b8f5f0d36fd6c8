//! A block of a swarm, from the want to bytes, and who is to blame when they are wrong.
//!
//! The digest decides, whoever sent the bytes. A block from several peers that is wrong says only that one of them lied, so
//! it is asked for again, of one peer at a time. The right bytes show which parts of the first ones were wrong, and so
//! who sent them. Peers that agree on wrong bytes are not to blame: then it is the torrent that holds other bytes.

use std::sync::Arc;

use bytes::Bytes;

use super::book::Peer;
use super::job::{Delivered, Part, Terms, cut};
use super::swarm::Swarm;
use crate::block::Digest;
use crate::source::{SourceError, Spill, TorrentPlace, Want};

/// Peers that are asked for all of a block by themselves, after it came out wrong.
const ALONE_MAX: usize = 6;

/// A wrong answer of one peer.
struct Lie {
    peer: Peer,
    digest: Digest,
}

/// Gets the block of `want` at `place`. Wrong bytes are returned only when every peer that was asked sent such.
pub(super) async fn get(
    swarm: &Arc<Swarm>,
    want: &Want,
    place: &TorrentPlace,
    spill: &Spill,
) -> Result<Bytes, SourceError> {
    let len = want.block.len();
    let nowhere = || SourceError::not_found("the torrent has no such place");
    if let Some(bytes) = place.torrent.bytes
        && place
            .offset
            .checked_add(u64::from(len))
            .is_none_or(|end| end > bytes)
    {
        return Err(nowhere());
    }
    let parts = cut(place.offset, len, place.torrent.piece_bytes).ok_or_else(nowhere)?;
    if parts.is_empty() {
        return Ok(Bytes::new());
    }
    let mut terms = Terms::default();
    let mut mixed: Option<Delivered> = None;
    let mut lies: Vec<Lie> = Vec::new();
    loop {
        let answer = swarm.ask(parts.clone(), len, terms.clone(), spill).await;
        let delivered = match answer {
            Ok(delivered) => delivered,
            Err(error) => {
                blame_all(swarm, &lies);
                return match mixed {
                    Some(wrong) if !lies.is_empty() => Ok(wrong.bytes),
                    _ => Err(error),
                };
            }
        };
        let digest = Digest::of(&delivered.bytes);
        if digest == want.block.digest {
            let mut liars: Vec<Peer> = lies.into_iter().map(|lie| lie.peer).collect();
            if let Some(mixed) = &mixed {
                add_liars(&mut liars, &parts, mixed, &delivered.bytes);
            }
            // Somebody had the right bytes, so that those who had others are proven to have lied.
            swarm.judged(&shares(&parts, &delivered), &liars, true);
            return Ok(delivered.bytes);
        }
        let first = delivered.from.first().map(Arc::clone);
        match first {
            Some(peer) if delivered.from.iter().all(|from| *from == peer) => {
                terms.avoid.push(Arc::clone(&peer));
                lies.push(Lie { peer, digest });
                terms.alone = true;
                if lies.len() >= ALONE_MAX || agree(&lies) {
                    blame_all(swarm, &lies);
                    return Ok(delivered.bytes);
                }
                // Kept to be handed on as it is, when nobody has better.
                if mixed.is_none() {
                    mixed = Some(Delivered {
                        bytes: delivered.bytes,
                        from: Vec::new(),
                    });
                }
            }
            _ if terms.alone => return Err(SourceError::unavailable("a mixed answer")),
            _ => {
                terms.alone = true;
                mixed = Some(delivered);
            }
        }
    }
}

/// Returns whether two peers sent the same wrong bytes.
fn agree(lies: &[Lie]) -> bool {
    let Some((last, before)) = lies.split_last() else {
        return false;
    };
    before.iter().any(|lie| lie.digest == last.digest)
}

/// Nobody had right bytes: blames those who lied by themselves, but not those who agree. That proves nothing yet.
fn blame_all(swarm: &Swarm, lies: &[Lie]) {
    let alone = |lie: &&Lie| {
        let same = lies.iter().filter(|other| other.digest == lie.digest);
        same.count() == 1
    };
    let liars: Vec<Peer> = lies
        .iter()
        .filter(alone)
        .map(|lie| Arc::clone(&lie.peer))
        .collect();
    swarm.judged(&[], &liars, false);
}

/// Adds who sent parts of `mixed` that differ from the right bytes.
fn add_liars(liars: &mut Vec<Peer>, parts: &[Part], mixed: &Delivered, right: &[u8]) {
    for (part, from) in parts.iter().zip(&mixed.from) {
        if mixed.bytes[part.range()] != right[part.range()] && !liars.contains(from) {
            liars.push(Arc::clone(from));
        }
    }
}

/// Returns how many bytes came from whom.
fn shares(parts: &[Part], delivered: &Delivered) -> Vec<(Peer, u64)> {
    let mut shares: Vec<(Peer, u64)> = Vec::new();
    for (part, from) in parts.iter().zip(&delivered.from) {
        let bytes = u64::from(part.key.len);
        match shares.iter_mut().find(|(peer, _)| peer == from) {
            Some((_, sum)) => *sum += bytes,
            None => shares.push((Arc::clone(from), bytes)),
        }
    }
    shares
}
