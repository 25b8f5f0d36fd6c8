//! Who reads forward through a file, and how far ahead of it to ask.
//!
//! A stream is a position in a file that reads keep arriving at. The second read that continues one opens a window of
//! one block; each time the reader comes into a new block the window doubles, up to 32. A read that continues nothing
//! starts a stream of its own, so a random reader never gets a window. Pure data: no clock, no network.

use std::ops::Range;

use lru::LruCache;
use parking_lot::Mutex;

use crate::block::{BLOCK_BYTES, block_count};

/// Streams remembered, of all files together; the least recently used one is forgotten first.
const STREAMS_MAX: usize = 1024;

/// Streams of one file.
const STREAMS_PER_FILE: usize = 8;

/// The largest window, in blocks.
const WINDOW_BLOCKS_MAX: u64 = 32;

/// How far from its stream's position a read may begin. The kernel reads ahead in requests of 128 KiB to 1 MiB which
/// several threads deliver, so neighbours arrive swapped.
const SLACK_BYTES: u64 = 256 << 10;

#[derive(Clone, Debug)]
struct Stream {
    /// Where the next read is expected.
    position: u64,
    /// Blocks ahead of the reader's; 0 until a second read has continued the first.
    window: u64,
    /// The first block that has not been asked for on behalf of this stream.
    asked: u64,
}

/// The forward readers of all files.
#[derive(Debug)]
pub struct Streams {
    files: Mutex<LruCache<u64, Vec<Stream>>>,
}

impl Default for Streams {
    fn default() -> Self {
        let files =
            std::num::NonZeroUsize::new(STREAMS_MAX / 2).unwrap_or(std::num::NonZeroUsize::MIN);
        Streams {
            files: Mutex::new(LruCache::new(files)),
        }
    }
}

impl Streams {
    /// Notes a read of `len` bytes at `offset` in a file of `size` bytes, and returns the blocks to prefetch now: those
    /// of the window that have not been asked for yet, no more than `room_bytes` of them (whole blocks).
    pub fn read(&self, ino: u64, offset: u64, len: u64, size: u64, room_bytes: u64) -> Range<u64> {
        let end = offset.saturating_add(len).min(size);
        if offset >= end || size <= BLOCK_BYTES {
            return 0..0;
        }
        let last = (end - 1) / BLOCK_BYTES;
        let mut files = self.files.lock();
        let streams = files.get_or_insert_mut(ino, Vec::new);
        let nearest = streams
            .iter()
            .enumerate()
            .map(|(i, stream)| (stream.position.abs_diff(offset), i))
            .filter(|(distance, _)| *distance <= SLACK_BYTES)
            .min();
        let Some((_, nearest)) = nearest else {
            if streams.len() >= STREAMS_PER_FILE {
                streams.remove(0);
            }
            streams.push(Stream {
                position: end,
                window: 0,
                asked: last + 1,
            });
            return 0..0;
        };
        // The most recently used stream is the last one.
        let mut stream = streams.remove(nearest);
        let entered = last > stream.position.saturating_sub(1) / BLOCK_BYTES;
        let forward = end > stream.position;
        stream.position = stream.position.max(end);
        if stream.window == 0 {
            stream.window = u64::from(forward);
        } else if entered {
            stream.window = (stream.window * 2).min(WINDOW_BLOCKS_MAX);
        }
        let from = stream.asked.max(last + 1);
        let until = (last + 1 + stream.window)
            .min(block_count(size))
            .min(from.saturating_add(room_bytes / BLOCK_BYTES));
        stream.asked = from.max(until);
        streams.push(stream);
        from..until.max(from)
    }
}
