//! One block on its way: its requests, who answered them, and the bytes so far.

use std::collections::VecDeque;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::book::Peer;
use super::wire::{Key, PIECES_MAX, REQUEST_BYTES};
use crate::source::{SourceError, Spill};

/// One request of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// What is asked for.
    pub(super) key: Key,
    /// Where its bytes lie in the block.
    pub(super) at: usize,
}

impl Part {
    /// Returns where its bytes lie in the block.
    pub(super) fn range(&self) -> std::ops::Range<usize> {
        self.at..self.at + self.key.len as usize
    }
}

/// Cuts `len` bytes at `offset` of a torrent into requests: just these bytes, at most 16 KiB each, none across a piece.
/// `None`: there are no such pieces.
pub(super) fn cut(offset: u64, len: u32, piece_bytes: u64) -> Option<Vec<Part>> {
    let piece_bytes = u32::try_from(piece_bytes).ok().filter(|bytes| *bytes > 0)?;
    let end = offset.checked_add(u64::from(len))?;
    let mut parts = Vec::new();
    let mut next = offset;
    while next < end {
        let piece = u32::try_from(next / u64::from(piece_bytes)).ok()?;
        if piece >= PIECES_MAX {
            return None;
        }
        let begin = u32::try_from(next % u64::from(piece_bytes)).ok()?;
        let rest = u32::try_from(end - next).ok()?;
        let len = REQUEST_BYTES.min(piece_bytes - begin).min(rest);
        let at = usize::try_from(next - offset).ok()?;
        parts.push(Part {
            key: Key { piece, begin, len },
            at,
        });
        next += u64::from(len);
    }
    Some(parts)
}

/// A block that came together, and who sent which of its parts.
#[derive(Debug)]
pub(super) struct Delivered {
    pub(super) bytes: Bytes,
    pub(super) from: Vec<Peer>,
}

/// Which peers may be asked for a block, and how.
#[derive(Clone, Debug, Default)]
pub(super) struct Terms {
    /// All of it has to come from one peer, so that it is known who lied.
    pub(super) alone: bool,
    /// Peers that are not asked for this block.
    pub(super) avoid: Vec<Peer>,
}

/// A block on its way.
pub(super) struct Job {
    pub(super) parts: Vec<Part>,
    /// Parts that nobody is asked for, in order.
    pub(super) pending: VecDeque<usize>,
    /// At how many peers each part is asked for.
    pub(super) copies: Vec<u8>,
    pub(super) from: Vec<Option<Peer>>,
    /// Parts that have not come.
    pub(super) left: usize,
    /// The only connection that may be asked for pending parts.
    pub(super) owner: Option<u64>,
    pub(super) terms: Terms,
    bytes: Vec<u8>,
    len: usize,
    spill: Spill,
    done: Option<oneshot::Sender<Result<Delivered, SourceError>>>,
}

impl Job {
    pub(super) fn new(
        parts: Vec<Part>,
        len: u32,
        terms: Terms,
        spill: Spill,
        done: oneshot::Sender<Result<Delivered, SourceError>>,
    ) -> Self {
        Job {
            pending: (0..parts.len()).collect(),
            copies: vec![0; parts.len()],
            from: vec![None; parts.len()],
            left: parts.len(),
            parts,
            owner: None,
            terms,
            bytes: Vec::new(),
            len: len as usize,
            spill,
            done: Some(done),
        }
    }

    /// Returns whether nobody has been asked for any part of it.
    pub(super) fn untouched(&self) -> bool {
        self.pending.len() == self.parts.len()
    }

    /// Takes the bytes of a part. Returns whether they were missing.
    pub(super) fn put(&mut self, part: usize, bytes: &[u8], from: &Peer) -> bool {
        if self.from[part].is_some() {
            return false;
        }
        if self.bytes.is_empty() {
            self.bytes = vec![0; self.len];
        }
        self.bytes[self.parts[part].range()].copy_from_slice(bytes);
        self.from[part] = Some(Peer::clone(from));
        self.left -= 1;
        self.spill.progressed(bytes.len() as u64);
        true
    }

    /// Forgets what came, to have all of it from one peer.
    pub(super) fn restart(&mut self) {
        self.pending = (0..self.parts.len()).collect();
        self.copies.fill(0);
        self.from.fill(None);
        self.left = self.parts.len();
        self.owner = None;
    }

    /// One peer less is asked for a part; it waits again if nobody is.
    pub(super) fn give_back(&mut self, part: usize) {
        self.copies[part] = self.copies[part].saturating_sub(1);
        if self.copies[part] == 0 && self.from[part].is_none() {
            self.pending.push_front(part);
        }
    }

    /// Ends the job.
    pub(super) fn finish(mut self, error: Option<SourceError>) {
        let result = match error {
            Some(error) => Err(error),
            None => Ok(Delivered {
                bytes: std::mem::take(&mut self.bytes).into(),
                from: std::mem::take(&mut self.from)
                    .into_iter()
                    .flatten()
                    .collect(),
            }),
        };
        if let Some(done) = self.done.take() {
            // Who does not wait any more does not care.
            let _ = done.send(result);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_cover_just_the_bytes_and_cross_no_piece() {
        for (offset, len, piece) in [
            (0, 1 << 20, 1 << 20),
            (0, 0, 1 << 20),
            (1 << 20, 1, 1 << 20),
            ((1 << 20) - 1, 2, 1 << 20),
            (123_456, 1 << 20, 1 << 20),
            (5, 100_000, 32_768),
            (5, 100, 7),
        ] {
            let parts = cut(offset, len, piece).unwrap();
            let mut next = offset;
            for part in &parts {
                let Key {
                    piece: number,
                    begin,
                    len,
                } = part.key;
                assert_eq!(u64::from(number) * piece + u64::from(begin), next);
                assert_eq!(part.at as u64, next - offset);
                assert!(len > 0 && len <= REQUEST_BYTES);
                assert!(u64::from(begin) + u64::from(len) <= piece);
                next += u64::from(len);
            }
            assert_eq!(next, offset + u64::from(len));
        }
        assert_eq!(cut(0, 1 << 20, 1 << 20).unwrap().len(), 64);
        assert_eq!(cut(70_000, 4096, 1 << 20).unwrap().len(), 1);
    }

    #[test]
    fn places_that_no_torrent_has_are_refused() {
        assert_eq!(cut(0, 1, 0), None);
        assert_eq!(cut(0, 1, 1 << 32), None);
        assert_eq!(cut(u64::MAX, 1, 1 << 20), None);
        assert_eq!(cut(u64::from(PIECES_MAX) << 20, 1, 1 << 20), None);
        assert!(cut((u64::from(PIECES_MAX) << 20) - 1, 1, 1 << 20).is_some());
    }
}
