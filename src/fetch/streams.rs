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

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    const MIB: u64 = BLOCK_BYTES;
    const ROOM: u64 = 1 << 40;

    /// Reads `file` of `size` bytes from `from` to `until` in steps, and returns what was asked for ahead, in order.
    fn run(streams: &Streams, size: u64, from: u64, until: u64, step: u64) -> Vec<u64> {
        let mut asked = Vec::new();
        let mut at = from;
        while at < until {
            asked.extend(streams.read(1, at, step, size, ROOM));
            at += step;
        }
        asked
    }

    #[test]
    fn a_sequential_reader_has_every_block_asked_for_once_and_ahead() {
        for step in [4096, 128 << 10, MIB] {
            let streams = Streams::default();
            let asked = run(&streams, 100 * MIB, 0, 100 * MIB, step);
            let first = asked[0];
            assert!(first <= 3, "step {step}: starts at {first}");
            assert_eq!(asked, (first..100).collect::<Vec<_>>(), "step {step}");
        }
    }

    #[test]
    fn the_window_doubles_up_to_32_and_ends_with_the_file() {
        let streams = Streams::default();
        let mut ahead = Vec::new();
        let mut until = 1;
        for block in 0..60 {
            for half in 0..2 {
                let at = block * MIB + half * MIB / 2;
                let asked = streams.read(1, at, MIB / 2, 90 * MIB + 1, ROOM);
                until = until.max(asked.end);
            }
            ahead.push(until - block - 1);
        }
        assert_eq!(ahead[..8], [1, 2, 4, 8, 16, 32, 32, 32]);
        assert_eq!(until, 91, "the last block has one byte");
    }

    #[test]
    fn random_readers_and_single_reads_get_nothing() {
        let streams = Streams::default();
        let mut random = StdRng::seed_from_u64(1);
        let mut asked = 0;
        for _ in 0..10_000 {
            let at = random.random_range(0..1000 * MIB) / 4096 * 4096;
            let blocks = streams.read(1, at, 4096, 1000 * MIB, ROOM);
            asked += blocks.end - blocks.start;
        }
        // Eight remembered positions of 512 KiB each among 1000 MiB: a few reads are neighbours by chance.
        assert!(asked < 100, "{asked}");
        assert_eq!(streams.read(2, 0, MIB, 10 * MIB, ROOM), 0..0);
        assert_eq!(streams.read(3, 0, 4096, MIB, ROOM), 0..0);
        assert_eq!(streams.read(3, 4096, 4096, MIB, ROOM), 0..0);
    }

    #[test]
    fn the_same_bytes_again_are_no_stream() {
        let streams = Streams::default();
        for _ in 0..100 {
            assert!(streams.read(1, 5 * MIB, 4096, 100 * MIB, ROOM).is_empty());
        }
    }

    #[test]
    fn several_streams_in_one_file_and_swapped_neighbours() {
        let streams = Streams::default();
        let size = 1000 * MIB;
        let starts = [0, 300 * MIB, 600 * MIB];
        let mut asked = [0; 3];
        for step in 0..80 {
            // Requests of 128 KiB, pairs of them the wrong way round.
            let at = (step ^ 1) * (128 << 10);
            for (start, asked) in starts.iter().zip(&mut asked) {
                let blocks = streams.read(1, start + at, 128 << 10, size, ROOM);
                *asked += blocks.end - blocks.start;
            }
        }
        // Ten blocks were read.
        for asked in asked {
            assert!((30..=42).contains(&asked), "{asked}");
        }
    }

    #[test]
    fn what_there_is_no_room_for_is_asked_for_later() {
        let streams = Streams::default();
        let size = 100 * MIB;
        streams.read(1, 0, MIB, size, 0);
        assert!(streams.read(1, MIB, MIB, size, 0).is_empty());
        assert_eq!(streams.read(1, 2 * MIB, MIB, size, MIB), 3..4);
        assert_eq!(streams.read(1, 3 * MIB, MIB, size, 3 * MIB), 4..7);
    }

    #[test]
    fn nonsense_is_harmless() {
        let streams = Streams::default();
        for (offset, len, size) in [
            (u64::MAX, u64::MAX, u64::MAX),
            (0, u64::MAX, u64::MAX),
            (5, 0, 100 * MIB),
            (100 * MIB, 1, 100 * MIB),
        ] {
            for _ in 0..3 {
                streams.read(1, offset, len, size, ROOM);
            }
        }
        for ino in 0..10_000 {
            streams.read(ino, 0, MIB, 10 * MIB, ROOM);
        }
        assert!(streams.files.lock().len() <= STREAMS_MAX);
    }
}
