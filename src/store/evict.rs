//! The quota: a hard limit. Space is reserved, others' is evicted, then it is written.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::entry::{Entry, SPAN_BLOCKS, Writing};
use super::{Cold, PAGE_BYTES, SLACK_BYTES, Store, StoreError, map_path, path};
use crate::block::{BLOCK_BYTES, BlockRef, Digest, FileRef, block_len};

impl Store {
    /// Counts what is on the disk, removes what a crash has left, and lets writes begin.
    pub(super) fn count(&self) {
        let mut cold = Vec::new();
        let mut used = 0;
        for (name, _) in self.disk.list("tmp").unwrap_or_default() {
            let _ = self.disk.remove(&format!("tmp/{name}"));
        }
        for kind in ["r", "p"] {
            for shard in 0..=u8::MAX {
                let directory = format!("{kind}/{shard:02x}");
                for (name, stat) in self.disk.list(&directory).unwrap_or_default() {
                    let stem = name.strip_suffix(".part").unwrap_or(&name);
                    let Ok(digest) = stem.parse::<Digest>() else {
                        // A map counts with its data file; anything else is not ours and is left alone.
                        continue;
                    };
                    let large = kind == "p";
                    let cost = stat.allocated.max(PAGE_BYTES) + if large { PAGE_BYTES } else { 0 };
                    used += cost;
                    cold.push(Cold {
                        digest,
                        large,
                        cost,
                        used: stat.used,
                    });
                }
            }
        }
        self.files.fetch_add(cold.len() as u64, Ordering::Relaxed);
        self.used.fetch_add(used, Ordering::AcqRel);
        cold.sort_by_key(|file| std::cmp::Reverse(file.used));
        *self.cold.lock() = Some(cold);
        self.counted.notify_all();
    }

    /// Sets `need` bytes aside, evicting others if they do not fit.
    pub(super) fn reserve(&self, need: u64) -> Result<(), StoreError> {
        {
            let mut cold = self.cold.lock();
            while cold.is_none() {
                self.counted.wait(&mut cold);
            }
        }
        let quota = self.options.quota;
        for _ in 0..2 {
            let fits = |used: u64| used.checked_add(need).filter(|sum| *sum <= quota);
            if self
                .used
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, fits)
                .is_ok()
            {
                return Ok(());
            }
            let over = self
                .used
                .load(Ordering::Acquire)
                .saturating_add(need)
                .saturating_sub(quota);
            // A little more than needed, but never so much that a small store empties itself.
            self.evict_bytes(over.saturating_add(SLACK_BYTES.min(quota / 16)));
        }
        let usage = self.usage();
        Err(StoreError::Full {
            need,
            quota,
            unevictable: usage.unevictable,
        })
    }

    /// Gives back what was set aside.
    pub(super) fn release(&self, bytes: u64) {
        let _ = self
            .used
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
                Some(used.saturating_sub(bytes))
            });
    }

    /// Frees about `want` bytes, least recently used first. Frees less when nothing else can go.
    pub(super) fn evict_bytes(&self, want: u64) {
        let _one = self.evicting.lock();
        let target = self.used.load(Ordering::Acquire).saturating_sub(want);
        self.evict_cold(target);
        if self.used.load(Ordering::Acquire) <= target {
            return;
        }
        let mut spans: Vec<(u64, Arc<Entry>, u64)> = Vec::new();
        for entry in self.entries(|entry| !entry.is_protected()) {
            let count = entry.blocks().div_ceil(SPAN_BLOCKS);
            spans.extend(
                (0..count)
                    .filter(|span| entry.present_in(*span) != 0)
                    .map(|span| (entry.used(span), Arc::clone(&entry), span)),
            );
        }
        spans.sort_by_key(|(used, ..)| *used);
        for (_, entry, span) in spans {
            if self.used.load(Ordering::Acquire) <= target {
                break;
            }
            let first = span * SPAN_BLOCKS;
            self.evict_blocks(&entry, first..(first + SPAN_BLOCKS).min(entry.blocks()));
        }
    }

    /// Evicts files that this run has not touched.
    fn evict_cold(&self, target: u64) {
        while self.used.load(Ordering::Acquire) > target {
            let Some(file) = self.cold.lock().as_mut().and_then(Vec::pop) else {
                return;
            };
            // Touched since: it has an entry, and a place among those.
            if self.known(&file.digest).is_some() {
                continue;
            }
            let hex = file.digest.to_string();
            let kind = if file.large { 'p' } else { 'r' };
            let base = format!("{kind}/{}/{hex}", &hex[..2]);
            let names = [base.clone(), format!("{base}.part"), format!("{base}.map")];
            let names = if file.large { &names[..] } else { &names[..1] };
            // Whoever opened it meanwhile hashes what is read, and finds it gone.
            if names.iter().any(|name| self.disk.remove(name).is_err()) {
                self.count_failure();
                continue;
            }
            self.gone(file.cost);
        }
    }

    fn evict_blocks(&self, entry: &Entry, blocks: Range<u64>) {
        let mut writing = entry.writing.lock();
        if entry.is_protected() {
            return;
        }
        let before = entry.cost.load(Ordering::Relaxed);
        if let Err(error) = self.remove_blocks(entry, &mut writing, blocks) {
            self.count_failure();
            tracing::debug!(%error, "nothing could be evicted from a file");
            return;
        }
        self.evicted.fetch_add(
            before.saturating_sub(entry.cost.load(Ordering::Relaxed)),
            Ordering::Relaxed,
        );
    }

    /// Takes blocks off the disk: the marks first, then the map, then the bytes.
    pub(super) fn remove_blocks(
        &self,
        entry: &Entry,
        writing: &mut Writing,
        blocks: Range<u64>,
    ) -> io::Result<()> {
        if *writing == Writing::Absent {
            return Ok(());
        }
        if entry.is_small() {
            entry.forget(0);
            *entry.handle.write() = None;
            self.disk.remove(&path(&entry.file, Writing::Complete))?;
            return self.file_gone(entry, writing);
        }
        let Some(file) = self.handle_of(entry, *writing)? else {
            return self.file_gone(entry, writing);
        };
        if *writing == Writing::Complete {
            // A complete name proves its file complete, so it goes before the first hole comes.
            self.disk
                .create(&map_path(&entry.file))?
                .write_at(0, &entry.map())?;
            self.disk.rename(
                &path(&entry.file, Writing::Complete),
                &path(&entry.file, Writing::Partial),
            )?;
            *writing = Writing::Partial;
        }
        blocks.clone().for_each(|index| entry.forget(index));
        if entry.present_blocks().next().is_none() {
            *entry.handle.write() = None;
            self.disk.remove(&path(&entry.file, Writing::Partial))?;
            self.disk.remove(&map_path(&entry.file))?;
            return self.file_gone(entry, writing);
        }
        self.disk
            .create(&map_path(&entry.file))?
            .write_at(0, &entry.map())?;
        let start = blocks.start * BLOCK_BYTES;
        let len: u64 = blocks
            .map(|index| u64::from(block_len(entry.file.size, index)))
            .sum();
        file.punch(start, len)?;
        let before = entry.cost.load(Ordering::Relaxed);
        self.account(entry, before, file.stat()?.allocated + PAGE_BYTES);
        Ok(())
    }

    fn file_gone(&self, entry: &Entry, writing: &mut Writing) -> io::Result<()> {
        *writing = Writing::Absent;
        entry.present_blocks().for_each(|index| entry.forget(index));
        self.gone(entry.cost.swap(0, Ordering::Relaxed));
        Ok(())
    }

    fn gone(&self, cost: u64) {
        self.release(cost);
        let _ = self
            .files
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |files| {
                Some(files.saturating_sub(1))
            });
    }

    /// Evicts a file, unless it is protected. Returns the bytes that came free.
    pub fn evict(&self, file: &FileRef) -> u64 {
        let entry = self.entry(file);
        let before = entry.cost.load(Ordering::Relaxed);
        self.evict_blocks(&entry, 0..entry.blocks());
        before.saturating_sub(entry.cost.load(Ordering::Relaxed))
    }

    /// Reads and hashes one block of what is there; a damaged one is dropped. Returns whether it was right.
    pub fn check(&self, block: &BlockRef) -> bool {
        self.load(block).is_some()
    }
}
