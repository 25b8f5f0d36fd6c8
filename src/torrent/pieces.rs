//! The hashes of pieces, made of spans that come from many threads while files are read.
//!
//! A piece is hashed from its beginning on. A span that fits the end of what is hashed is hashed where it lies; one that
//! comes early is copied and waits. A large file's blocks come nearly in order, and small files come in batches, so
//! little waits; when too much does, whoever brings more waits itself.

#![expect(
    clippy::cast_possible_truncation,
    reason = "lengths fit usize on the 64-bit machines that the crate insists on"
)]

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, LazyLock};

use parking_lot::{Condvar, Mutex};
use sha1::{Digest as _, Sha1};

use super::{Layout, PIECE_BYTES_MIN, Sha1Hash};

/// Bytes of small files that wait at most for what comes before them.
const WAITING_BYTES_MAX: u64 = 64 << 20;

static ZEROS: [u8; PIECE_BYTES_MIN as usize] = [0; PIECE_BYTES_MIN as usize];

/// What a piece of the shortest length hashes to that is all zeros.
static ZEROS_HASH: LazyLock<Sha1Hash> = LazyLock::new(|| Sha1::digest(ZEROS).into());

/// Hashes the pieces of one torrent.
#[derive(Debug)]
pub struct Pieces {
    layout: Arc<Layout>,
    state: Mutex<State>,
    /// What waits became less, or a piece grew.
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    hashes: Vec<Option<Sha1Hash>>,
    open: HashMap<u64, Arc<Mutex<Open>>>,
    /// Bytes of small files that wait, in all pieces.
    waiting_bytes: u64,
    /// How often something was hashed, so that nobody sleeps over it.
    changes: u64,
    given_up: bool,
}

/// A piece of which a part has come.
#[derive(Debug, Default)]
struct Open {
    sha: Sha1,
    /// Bytes that are hashed.
    hashed: u64,
    /// What came early, by where it belongs in the piece.
    waiting: BTreeMap<u64, Vec<u8>>,
}

impl Pieces {
    /// Begins with nothing.
    pub fn new(layout: Arc<Layout>) -> Pieces {
        // At most PIECES_MAX.
        let hashes = vec![None; layout.piece_count() as usize];
        Pieces {
            layout,
            state: Mutex::new(State {
                hashes,
                open: HashMap::new(),
                waiting_bytes: 0,
                changes: 0,
                given_up: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Returns the layout.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Takes the bytes at `offset` of the torrent, each once.
    ///
    /// A thread that brings bytes of small files may have to wait for those that lie before them: each thread brings its
    /// own in ascending order, and whoever cannot bring them any more calls [`Pieces::give_up`]. A few spans of large
    /// files may come early without waiting; whoever brings them sees to it that they are few.
    pub fn add(&self, offset: u64, bytes: &[u8]) {
        let piece_bytes = self.layout.piece_bytes();
        let (mut offset, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let (index, at) = (offset / piece_bytes, offset % piece_bytes);
            let len = (piece_bytes - at).min(rest.len() as u64);
            let (part, after) = rest.split_at(len as usize);
            self.part(index, at, part);
            offset += len;
            rest = after;
        }
    }

    /// As [`Pieces::add`], for `len` bytes that are all zeros.
    pub fn add_zeros(&self, offset: u64, len: u64) {
        let (mut offset, end) = (offset, offset.saturating_add(len));
        while offset < end {
            let part = (end - offset).min(ZEROS.len() as u64);
            let aligned = self.layout.piece_bytes() == part && offset.is_multiple_of(part);
            if aligned {
                self.set(offset / part, *ZEROS_HASH);
            } else {
                self.add(offset, &ZEROS[..part as usize]);
            }
            offset += part;
        }
    }

    /// Says what a piece hashes to; its bytes are not needed any more, and taken no notice of.
    pub fn know(&self, index: u64, hash: Sha1Hash) {
        self.set(index, hash);
    }

    /// Returns whether all pieces in which bytes of a span lie have their hashes.
    pub fn know_all(&self, bytes: Range<u64>) -> bool {
        let piece_bytes = self.layout.piece_bytes();
        let state = self.state.lock();
        let mut pieces = bytes.start / piece_bytes..bytes.end.div_ceil(piece_bytes);
        pieces.all(|index| state.has(index))
    }

    /// Says that there will be no hashes, and wakes whoever waits.
    pub fn give_up(&self) {
        self.state.lock().given_up = true;
        self.changed.notify_all();
    }

    /// Returns all hashes; none when bytes are missing.
    pub fn finish(self) -> Option<Vec<Sha1Hash>> {
        self.state.into_inner().hashes.into_iter().collect()
    }

    fn part(&self, index: u64, at: u64, bytes: &[u8]) {
        if self.state.lock().has(index) {
            return;
        }
        let data = self.layout.data_bytes(index);
        if at == 0 && bytes.len() as u64 == data {
            // The whole of it, as it nearly always is in large files: nothing is shared, nothing is locked.
            let mut sha = Sha1::new();
            sha.update(bytes);
            self.set(index, self.pad(sha, index, data));
            return;
        }
        // No data of large files lies before the first piece of one.
        let patient = index * self.layout.piece_bytes() < self.layout.small_end();
        loop {
            let (open, changes) = {
                let mut state = self.state.lock();
                if state.given_up {
                    return;
                }
                (
                    Arc::clone(state.open.entry(index).or_default()),
                    state.changes,
                )
            };
            let mut piece = open.lock();
            if piece.hashed == at {
                let freed = piece.grow(bytes);
                let done = piece.hashed == data;
                let sha = if done {
                    std::mem::take(&mut piece.sha)
                } else {
                    Sha1::new()
                };
                drop(piece);
                let hash = done.then(|| self.pad(sha, index, data));
                let mut state = self.state.lock();
                if let Some(hash) = hash {
                    state.open.remove(&index);
                    state.set(index, hash);
                }
                if patient {
                    state.waiting_bytes = state.waiting_bytes.saturating_sub(freed);
                }
                state.changes += 1;
                self.changed.notify_all();
                return;
            }
            if !patient || self.reserve(bytes.len() as u64) {
                piece.waiting.insert(at, bytes.to_vec());
                return;
            }
            drop(piece);
            let mut state = self.state.lock();
            if state.changes == changes && !state.given_up {
                self.changed.wait(&mut state);
            }
        }
    }

    fn reserve(&self, bytes: u64) -> bool {
        let mut state = self.state.lock();
        let fits = state.waiting_bytes + bytes <= WAITING_BYTES_MAX;
        if fits {
            state.waiting_bytes += bytes;
        }
        fits
    }

    /// Ends a piece that has all its data with the padding after it.
    fn pad(&self, mut sha: Sha1, index: u64, data: u64) -> Sha1Hash {
        let piece = self.layout.piece(index);
        let mut rest = (piece.end - piece.start).saturating_sub(data);
        while rest > 0 {
            let part = rest.min(ZEROS.len() as u64);
            sha.update(&ZEROS[..part as usize]);
            rest -= part;
        }
        sha.finalize().into()
    }

    fn set(&self, index: u64, hash: Sha1Hash) {
        self.state.lock().set(index, hash);
    }
}

impl State {
    fn has(&self, index: u64) -> bool {
        self.hashes.get(index as usize).is_some_and(Option::is_some)
    }

    fn set(&mut self, index: u64, hash: Sha1Hash) {
        if let Some(slot) = self.hashes.get_mut(index as usize) {
            *slot = Some(hash);
        }
    }
}

impl Open {
    /// Hashes what comes next, and what waited for it. Returns how many bytes had waited.
    fn grow(&mut self, bytes: &[u8]) -> u64 {
        self.sha.update(bytes);
        self.hashed += bytes.len() as u64;
        let mut freed = 0;
        while let Some(bytes) = self.waiting.remove(&self.hashed) {
            self.sha.update(&bytes);
            self.hashed += bytes.len() as u64;
            freed += bytes.len() as u64;
        }
        freed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Piece hashes by the plainest way: all bytes in memory.
    fn plain(layout: &Layout, bytes: &[u8]) -> Vec<Sha1Hash> {
        let pieces = (0..layout.piece_count()).map(|index| layout.piece(index));
        pieces
            .map(|piece| Sha1::digest(&bytes[piece.start as usize..piece.end as usize]).into())
            .collect()
    }

    /// A layout with its bytes, and its files' spans in the order of the torrent.
    fn torrent(sizes: &[u64]) -> (Arc<Layout>, Vec<u8>, Vec<(u64, u64)>) {
        let layout = Layout::new(300, (1..).zip(sizes.iter().copied())).unwrap();
        let mut bytes = vec![0; layout.bytes() as usize];
        let mut spans = Vec::new();
        for span in layout.spans(0..layout.bytes()) {
            if span.place != super::super::Place::Padding {
                let range = span.bytes.start as usize..span.bytes.end as usize;
                for (byte, at) in bytes[range].iter_mut().zip(span.bytes.clone()) {
                    *byte = (at % 251) as u8;
                }
                spans.push((span.bytes.start, span.bytes.end));
            }
        }
        (Arc::new(layout), bytes, spans)
    }

    const SIZES: [u64; 9] = [
        0,
        1,
        700_000,
        3_000_000,
        1_048_575,
        1_048_576,
        900_000,
        5 << 20,
        1_500_001,
    ];

    #[test]
    fn pieces_hash_the_same_in_whatever_order_spans_come() {
        let (layout, bytes, spans) = torrent(&SIZES);
        let mut orders: Vec<Vec<(u64, u64)>> = vec![spans.clone()];
        orders.push(spans.iter().rev().copied().collect());
        // Cut small, and the odd ones first.
        let mut cut = Vec::new();
        for (start, end) in spans {
            let mut at = start;
            while at < end {
                let next = (at + 299_999).min(end);
                cut.push((at, next));
                at = next;
            }
        }
        let (odd, even): (Vec<_>, Vec<_>) = (0..).zip(cut).partition(|(index, _)| index % 2 == 1);
        orders.push(odd.into_iter().chain(even).map(|(_, span)| span).collect());
        for order in orders {
            let pieces = Pieces::new(Arc::clone(&layout));
            for (start, end) in order {
                pieces.add(start, &bytes[start as usize..end as usize]);
            }
            assert_eq!(pieces.finish(), Some(plain(&layout, &bytes)));
        }
    }

    #[test]
    fn zeros_are_hashed_as_if_they_had_been_read() {
        let sizes = [1000, 3 << 20, (2 << 20) + 5, (1 << 20) + 1];
        let layout = Arc::new(Layout::new(1 << 20, (1..).zip(sizes)).unwrap());
        let pieces = Pieces::new(Arc::clone(&layout));
        for span in layout.spans(0..layout.bytes()) {
            if span.place != super::super::Place::Padding {
                pieces.add_zeros(span.bytes.start, span.bytes.end - span.bytes.start);
            }
        }
        let bytes = vec![0; layout.bytes() as usize];
        assert_eq!(pieces.finish(), Some(plain(&layout, &bytes)));
    }

    #[test]
    fn a_missing_byte_is_no_hash() {
        let (layout, bytes, spans) = torrent(&SIZES);
        let pieces = Pieces::new(Arc::clone(&layout));
        for (start, end) in spans {
            let end = if start == 0 { end - 1 } else { end };
            pieces.add(start, &bytes[start as usize..end as usize]);
        }
        assert_eq!(pieces.finish(), None);
    }

    /// Small files of pieces longer than all that may wait, from two threads of which one is far ahead.
    #[test]
    fn who_is_too_far_ahead_waits_and_giving_up_frees_it() {
        let size = 48 << 20;
        // Enough bytes for pieces of 128 MiB, most of which nobody reads.
        let sizes = [size, size, size, 9 << 40];
        let layout = Arc::new(Layout::new(300, (1..).zip(sizes)).unwrap());
        assert_eq!(layout.piece_bytes(), 128 << 20);
        let piece = layout.offset_of(1).unwrap();
        let block = vec![7; 1 << 20];
        let bring = |pieces: &Pieces, file: u64| {
            for index in 0..48 {
                pieces.add(piece + file * size + index * (1 << 20), &block);
            }
        };
        let pieces = Pieces::new(Arc::clone(&layout));
        std::thread::scope(|scope| {
            let ahead = scope.spawn(|| {
                bring(&pieces, 1);
                bring(&pieces, 2);
            });
            while pieces.state.lock().waiting_bytes + (1 << 20) <= WAITING_BYTES_MAX {
                std::thread::yield_now();
            }
            assert!(!ahead.is_finished());
            bring(&pieces, 0);
        });
        let state = pieces.state.into_inner();
        assert_eq!(state.waiting_bytes, 0);
        let hashed: Vec<_> = state.hashes.iter().flatten().collect();
        let all = vec![7; 128 << 20];
        assert_eq!(hashed.len(), 2);
        assert_eq!(*hashed[0], <[u8; 20]>::from(Sha1::digest(all)));

        let pieces = Pieces::new(layout);
        std::thread::scope(|scope| {
            scope.spawn(|| bring(&pieces, 1));
            scope.spawn(|| bring(&pieces, 2));
            while pieces.state.lock().waiting_bytes + (1 << 20) <= WAITING_BYTES_MAX {
                std::thread::yield_now();
            }
            pieces.give_up();
        });
    }
}
