//! A bounded cache of catalog pages, shared by all catalogs of a home.
//!
//! A lookup reads some thirty rows and names; from here each costs a lock and a copy instead of a system call.

#![expect(
    clippy::cast_possible_truncation,
    reason = "lengths fit usize on the 64-bit machines that the crate insists on"
)]

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use crate::block::{Digest, FileRef};

/// Bytes of a page: a divisor of the block, so that a page never needs two blocks.
const PAGE_BYTES: u64 = 16 << 10;

/// Locks, so that FUSE threads seldom meet.
const SHARDS: usize = 8;

/// Bytes that a cache holds at most, whatever the size of the catalogs.
const CACHE_BYTES: usize = 16 << 20;

type Shard = Mutex<LruCache<(Digest, u64), Arc<[u8]>>>;

/// Pages of catalogs, least recently used out first.
pub struct PageCache {
    shards: [Shard; SHARDS],
}

impl Default for PageCache {
    fn default() -> Self {
        let pages = NonZeroUsize::new(CACHE_BYTES / SHARDS / PAGE_BYTES as usize)
            .expect("2 MiB hold some pages of 16 KiB");
        PageCache {
            shards: std::array::from_fn(|_| Mutex::new(LruCache::new(pages))),
        }
    }
}

impl PageCache {
    /// Fills `buffer` from `offset` of `file`; `load` reads whole pages, the last one shorter, that are not here.
    pub(super) fn read<E>(
        &self,
        file: FileRef,
        offset: u64,
        buffer: &mut [u8],
        load: impl Fn(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut at, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let start = at / PAGE_BYTES * PAGE_BYTES;
            let page = self.page(file, start, &load)?;
            // Within a page, so it fits any usize.
            let skip = (at - start) as usize;
            // A read past the end is the caller's bug; `load` has refused it, or there is nothing to copy.
            let have = page.get(skip..).unwrap_or_default();
            let count = have.len().min(rest.len());
            if count == 0 {
                return load(at, rest);
            }
            let (now, later) = rest.split_at_mut(count);
            now.copy_from_slice(&have[..count]);
            (at, rest) = (at + count as u64, later);
        }
        Ok(())
    }

    fn page<E>(
        &self,
        file: FileRef,
        start: u64,
        load: &impl Fn(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<Arc<[u8]>, E> {
        let key = (file.id, start);
        let shard = &self.shards
            [(usize::from(file.id.as_bytes()[0]) + (start / PAGE_BYTES) as usize) % SHARDS];
        if let Some(page) = shard.lock().get(&key) {
            return Ok(Arc::clone(page));
        }
        let len = PAGE_BYTES.min(file.size.saturating_sub(start)) as usize;
        let mut bytes = vec![0; len];
        load(start, &mut bytes)?;
        let page: Arc<[u8]> = bytes.into();
        shard.lock().put(key, Arc::clone(&page));
        Ok(page)
    }

    /// Forgets everything: after this, every page is read from verified blocks again.
    pub fn clear(&self) {
        for shard in &self.shards {
            shard.lock().clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn pages_are_loaded_once_and_reads_cross_them() {
        let size = 2 * PAGE_BYTES + 100;
        let content: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        let file = FileRef {
            id: Digest::of(&content),
            size,
        };
        let loads = Cell::new(0);
        let load = |start: u64, page: &mut [u8]| {
            loads.set(loads.get() + 1);
            page.copy_from_slice(&content[start as usize..start as usize + page.len()]);
            Ok::<(), ()>(())
        };
        let cache = PageCache::default();
        for (offset, len) in [
            (0, 1),
            (PAGE_BYTES - 1, 2),
            (0, size as usize),
            (size - 1, 1),
            (PAGE_BYTES, PAGE_BYTES as usize),
        ] {
            let mut buffer = vec![0; len];
            cache.read(file, offset, &mut buffer, load).unwrap();
            assert_eq!(
                buffer,
                content[offset as usize..offset as usize + len],
                "{offset}+{len}"
            );
        }
        assert_eq!(loads.get(), 3);
        cache.clear();
        cache.read(file, 0, &mut [0], load).unwrap();
        assert_eq!(loads.get(), 4);
    }

    #[test]
    fn a_failed_load_is_not_remembered() {
        let file = FileRef {
            id: Digest::EMPTY,
            size: 10,
        };
        let cache = PageCache::default();
        assert_eq!(
            cache.read(file, 0, &mut [0; 4], |_, _| Err("missing")),
            Err("missing")
        );
        cache
            .read(file, 0, &mut [0; 4], |_, page| {
                page.fill(7);
                Ok::<(), &str>(())
            })
            .unwrap();
    }
}
