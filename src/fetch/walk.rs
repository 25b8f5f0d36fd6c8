//! Who goes through a directory in order, and which small files to fetch before it opens them.
//!
//! A walk is a position among the children of a directory. Children are numbered in the catalog's order, which is the
//! order `readdir` shows, so `cp -a`, `tar` and `grep -r` touch them ascending. The third touch that goes forward
//! opens a window; it doubles as the reader goes on. Pure data: no clock, no network.

use lru::LruCache;
use parking_lot::Mutex;

/// Directories remembered.
const DIRECTORIES_MAX: usize = 256;

/// Files of the first window.
const WINDOW_FILES_MIN: u32 = 8;

/// Files of the largest window.
const WINDOW_FILES_MAX: u32 = 256;

/// Bytes of one window.
const WINDOW_BYTES: u64 = 8 << 20;

/// Larger files are no business of a walk: reading them is a stream.
pub const SMALL_FILE_BYTES: u64 = 1 << 20;

/// Children that a reader may leave out between two touches: directories, links, files it filters out by name.
const GAP_MAX: u32 = 16;

/// Touches that go forward before anything is fetched ahead.
const RUN_MIN: u32 = 3;

#[derive(Clone, Copy, Debug)]
struct Walk {
    at: u32,
    run: u32,
    window: u32,
    asked: u32,
}

/// Which children to look at for prefetching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// The first child to look at.
    pub from: u32,
    /// One past the last child to look at.
    pub until: u32,
    /// No more than this many bytes of small files are to be asked for.
    pub bytes: u64,
}

/// The readers of all directories.
#[derive(Debug)]
pub struct DirectoryWalk {
    directories: Mutex<LruCache<u64, Walk>>,
}

impl Default for DirectoryWalk {
    fn default() -> Self {
        let directories =
            std::num::NonZeroUsize::new(DIRECTORIES_MAX).unwrap_or(std::num::NonZeroUsize::MIN);
        DirectoryWalk {
            directories: Mutex::new(LruCache::new(directories)),
        }
    }
}

impl DirectoryWalk {
    /// Notes that the file at position `child` of the `children` of `directory` is read from its beginning. When that
    /// continues a walk and less than half of the window is left ahead, returns what to look at next; say with
    /// [`DirectoryWalk::asked`] how far that got.
    pub fn touched(&self, directory: u64, child: u32, children: u32) -> Option<Ahead> {
        let mut directories = self.directories.lock();
        let Some(walk) = directories.get_mut(&directory) else {
            directories.put(
                directory,
                Walk {
                    at: child,
                    run: 1,
                    window: WINDOW_FILES_MIN,
                    asked: child.saturating_add(1),
                },
            );
            return None;
        };
        if child == walk.at {
            return None;
        }
        // Several threads swap neighbours: a small step back is neither progress nor the end of the walk.
        if child < walk.at && walk.at - child <= GAP_MAX {
            return None;
        }
        if child < walk.at || child - walk.at > GAP_MAX.max(walk.asked.saturating_sub(walk.at)) {
            *walk = Walk {
                at: child,
                run: 1,
                window: WINDOW_FILES_MIN,
                asked: child.saturating_add(1),
            };
            return None;
        }
        walk.at = child;
        walk.run = walk.run.saturating_add(1);
        walk.asked = walk.asked.max(child.saturating_add(1));
        if walk.run < RUN_MIN || walk.asked - child > walk.window / 2 {
            return None;
        }
        let from = walk.asked;
        let until = child
            .saturating_add(1)
            .saturating_add(walk.window)
            .min(children);
        walk.window = (walk.window * 2).min(WINDOW_FILES_MAX);
        (from < until).then_some(Ahead {
            from,
            until,
            bytes: WINDOW_BYTES,
        })
    }

    /// Notes that the children before `until` have been asked for, or are not worth it.
    pub fn asked(&self, directory: u64, until: u32) {
        if let Some(walk) = self.directories.lock().get_mut(&directory) {
            walk.asked = walk.asked.max(until);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Touches children in the given order; returns all that was asked for ahead.
    fn touch(
        walk: &DirectoryWalk,
        children: u32,
        order: impl IntoIterator<Item = u32>,
    ) -> Vec<u32> {
        let mut asked = Vec::new();
        for child in order {
            if let Some(ahead) = walk.touched(1, child, children) {
                assert!(ahead.from > child && ahead.until <= children);
                asked.extend(ahead.from..ahead.until);
                walk.asked(1, ahead.until);
            }
        }
        asked
    }

    #[test]
    fn a_reader_in_order_has_each_sibling_asked_for_once() {
        let walk = DirectoryWalk::default();
        let asked = touch(&walk, 5000, 0..5000);
        assert_eq!(asked, (3..5000).collect::<Vec<_>>());
    }

    #[test]
    fn windows_grow_to_256_and_half_of_one_is_always_ahead() {
        let walk = DirectoryWalk::default();
        let mut asked = 0;
        let mut largest = 0;
        for child in 0..5000 {
            if let Some(ahead) = walk.touched(1, child, 10_000) {
                largest = largest.max(ahead.until - child - 1);
                asked = ahead.until;
                walk.asked(1, asked);
            }
            if child > 1000 {
                assert!(asked - child > 100, "{child}: {asked}");
            }
        }
        assert_eq!(largest, WINDOW_FILES_MAX);
    }

    #[test]
    fn gaps_and_swapped_neighbours_do_not_end_a_walk() {
        let walk = DirectoryWalk::default();
        // Every third child is a file; pairs come the wrong way round.
        let order = (0..600).map(|i| (i ^ 1) * 3);
        let asked = touch(&walk, 1800, order);
        assert!(asked.len() > 1700, "{}", asked.len());
    }

    #[test]
    fn random_and_backward_readers_get_nothing() {
        let walk = DirectoryWalk::default();
        assert!(touch(&walk, 5000, (0..5000).rev()).is_empty());
        let random = (0..2000).map(|i: u32| i.wrapping_mul(2_654_435_761) % 100_000);
        let asked = touch(&walk, 100_000, random);
        assert!(asked.len() < 100, "{}", asked.len());
        assert!(touch(&walk, 100, [7; 50]).is_empty());
    }

    #[test]
    fn a_second_pass_is_a_new_walk() {
        let walk = DirectoryWalk::default();
        touch(&walk, 300, 0..300);
        let again = touch(&walk, 300, 0..300);
        assert_eq!(again, (3..300).collect::<Vec<_>>());
    }

    #[test]
    fn directories_are_forgotten_in_the_end() {
        let walk = DirectoryWalk::default();
        for directory in 0..10_000 {
            walk.touched(directory, 0, 10);
        }
        assert!(walk.directories.lock().len() <= DIRECTORIES_MAX);
    }
}
