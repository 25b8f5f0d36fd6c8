//! A file on its way in: its bytes are written as they are hashed, and it gets its name when the hash is known.

#![expect(
    clippy::cast_possible_truncation,
    reason = "lengths fit usize on the 64-bit machines that the crate insists on"
)]

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::disk::DiskFile;
use super::entry::Writing;
use super::{PAGE_BYTES, Store, StoreError, path};
use crate::block::FileRef;

/// A large file that is being stored. Dropped before [`Ingest::finish`], it leaves nothing.
pub struct Ingest {
    store: Arc<Store>,
    file: Arc<dyn DiskFile>,
    temporary: String,
    reserved: u64,
    finished: bool,
}

impl Store {
    /// Begins to store a file of `size` bytes, of which `data` bytes are no hole.
    ///
    /// # Errors
    /// [`StoreError::Full`] when that does not fit.
    pub fn ingest(self: &Arc<Self>, size: u64, data: u64) -> Result<Ingest, StoreError> {
        let reserved = data.next_multiple_of(PAGE_BYTES) + PAGE_BYTES;
        self.reserve(reserved)?;
        let temporary = self.temporary();
        let made = self
            .disk
            .create(&temporary)
            .and_then(|file| file.set_len(size).map(|()| file));
        match made {
            Ok(file) => Ok(Ingest {
                store: Arc::clone(self),
                file,
                temporary,
                reserved,
                finished: false,
            }),
            Err(source) => {
                self.release(reserved);
                Err(StoreError::Io {
                    path: temporary,
                    source,
                })
            }
        }
    }
}

impl Ingest {
    /// Writes bytes at their place; what is never written stays a hole. From any thread.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        self.file
            .write_at(offset, bytes)
            .map_err(|source| self.error(source, bytes.len() as u64))
    }

    /// Gives the file its name. Every block of it counts as verified: these are the bytes that were hashed.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn finish(mut self, file: FileRef) -> Result<(), StoreError> {
        let entry = self.store.entry(&file);
        let mut writing = entry.writing.lock();
        if *writing != Writing::Complete {
            let finished = path(&file, Writing::Complete);
            let stat = self.file.stat().map_err(|source| self.error(source, 0))?;
            self.store
                .disk
                .rename(&self.temporary, &finished)
                .map_err(|source| self.error(source, 0))?;
            if *writing == Writing::Partial {
                let _ = self.store.disk.remove(&path(&file, Writing::Partial));
                let _ = self.store.disk.remove(&super::map_path(&file));
            } else {
                self.store.files.fetch_add(1, Ordering::Relaxed);
            }
            self.finished = true;
            *writing = Writing::Complete;
            *entry.handle.write() = None;
            entry.fill();
            let before = entry.cost.load(Ordering::Relaxed);
            self.store
                .account(&entry, before, stat.allocated + PAGE_BYTES);
            (0..entry.blocks()).for_each(|index| entry.set_verified(index));
        }
        let now = self.store.now();
        (0..entry.blocks())
            .step_by(super::entry::SPAN_BLOCKS as usize)
            .for_each(|index| entry.touch(index, now));
        Ok(())
    }

    fn error(&self, source: io::Error, need: u64) -> StoreError {
        if source.kind() == io::ErrorKind::StorageFull {
            let usage = self.store.usage();
            return StoreError::Full {
                need,
                quota: usage.quota,
                unevictable: usage.unevictable,
            };
        }
        StoreError::Io {
            path: self.temporary.clone(),
            source,
        }
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        if !self.finished {
            let _ = self.store.disk.remove(&self.temporary);
        }
        self.store.release(self.reserved);
    }
}
