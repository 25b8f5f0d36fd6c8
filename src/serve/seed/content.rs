//! What a torrent's bytes are: blocks of the store, and zeros between them.

use std::ops::Range;

use bytes::Bytes;

use super::wire::{Request, write_piece_head};
use crate::block::{Block, BlockRef};
use crate::store::{ReadOutcome, Store, Wait};

/// A run of a torrent's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// Bytes of a block, from an offset within it.
    Block {
        /// The block.
        block: BlockRef,
        /// Where in it.
        offset: u32,
        /// How many.
        length: u32,
    },
    /// Padding.
    Zeros {
        /// How many.
        length: u32,
    },
}

/// Where a torrent's bytes lie, and its info dictionary. Blocking: both may read files.
pub trait Content: Send + Sync {
    /// Returns the bytes of a piece.
    fn piece_bytes(&self) -> u64;

    /// Returns the bytes of all pieces.
    fn bytes(&self) -> u64;

    /// Returns what a range of the torrent's bytes is made of, in order and without gaps; none when that cannot be told
    /// any more.
    fn spans(&self, range: Range<u64>) -> Option<Vec<Span>>;

    /// Returns the length of the bencoded info dictionary, if there is one. Quick.
    fn info_bytes(&self) -> Option<u64>;

    /// Returns the bencoded info dictionary. May have to hash everything.
    fn info(&self) -> Option<Bytes>;
}

/// A block that was to be there is not, or is not what it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gone;

/// Returns where a request's bytes lie in the torrent, if it is one that can be answered.
pub(super) fn range(content: &dyn Content, request: Request) -> Option<Range<u64>> {
    let begin = u64::from(request.begin);
    let end = begin + u64::from(request.length);
    let at = content
        .piece_bytes()
        .checked_mul(u64::from(request.piece))?;
    let possible = (1..=super::wire::REQUEST_BYTES_MAX).contains(&request.length)
        && end <= content.piece_bytes()
        && at.checked_add(end)? <= content.bytes();
    possible.then(|| at + begin..at + end)
}

/// Appends answers to requests that [`range`] has found possible. Blocking.
///
/// Bytes come without hashing only from blocks whose mark holds before and after they are read; others are hashed first,
/// so that what leaves is what was signed.
pub(super) fn answer(
    store: &Store,
    content: &dyn Content,
    requests: &[Request],
    out: &mut Vec<u8>,
) -> Result<(), Gone> {
    // Where each block is hashed at each use, at least not for each 16 KiB of it.
    let mut hashed: Option<(BlockRef, Block)> = None;
    for request in requests {
        let range = range(content, *request).ok_or(Gone)?;
        let bytes = usize::try_from(request.length).map_err(|_| Gone)?;
        write_piece_head(out, *request);
        let end = out.len() + bytes;
        for span in content.spans(range).ok_or(Gone)? {
            match span {
                Span::Zeros { length } => out.resize(out.len() + length as usize, 0),
                Span::Block {
                    block,
                    offset,
                    length,
                } => {
                    let (at, length) = (out.len(), length as usize);
                    out.resize(at + length, 0);
                    let read = store.read_verified(&block, offset, &mut out[at..], Wait::Yes);
                    if read == ReadOutcome::Done {
                        continue;
                    }
                    let known = hashed.take().filter(|(known, _)| *known == block);
                    let (_, whole) = match known {
                        Some(known) => hashed.insert(known),
                        None => hashed.insert((block, store.load(&block).ok_or(Gone)?)),
                    };
                    let from = offset as usize;
                    let part = whole.bytes().get(from..from + length).ok_or(Gone)?;
                    out[at..].copy_from_slice(part);
                }
            }
        }
        if out.len() != end {
            return Err(Gone);
        }
    }
    Ok(())
}
