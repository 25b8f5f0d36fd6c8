//! A file on its way in: its bytes are written as they are hashed, and it gets its name when the hash is known.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::disk::{Access, DiskFile, Name};
use super::large::{Large, State};
use super::read::is_small;
use super::table::Small;
use super::write::failed;
use super::{Stat, Store, StoreError};
use crate::block::FileRef;

/// A file that is being stored. Dropped before [`Ingest::finish`], it leaves nothing.
pub struct Ingest {
    store: Arc<Store>,
    file: Arc<dyn DiskFile>,
    temporary: Name,
    reserved: u64,
    finished: bool,
}

impl Store {
    /// Begins to store a file of `size` bytes, of which `data` bytes are no hole. Blocking.
    ///
    /// # Errors
    /// [`StoreError::Full`] when that does not fit.
    pub fn ingest(self: &Arc<Self>, size: u64, data: u64) -> Result<Ingest, StoreError> {
        // What goes beside the data, and the last granule, and directories that grow.
        let beside = Large::overhead(size, self.granule) + 4 * self.granule;
        let need = data.next_multiple_of(self.granule) + beside;
        self.reserve(need)?.charge(need);
        let temporary = Name::Temporary(self.temporaries.fetch_add(1, Ordering::Relaxed));
        let made = self
            .disk
            .open(temporary, Access::New)
            .and_then(|file| file.set_len(size).map(|()| file));
        match made {
            Ok(file) => Ok(Ingest {
                store: Arc::clone(self),
                file,
                temporary,
                reserved: need,
                finished: false,
            }),
            Err(source) => {
                let _ = self.disk.remove(temporary);
                self.uncharge(need);
                let path = "tmp".to_owned();
                Err(self.judge(StoreError::Io { path, source }, need))
            }
        }
    }
}

impl Ingest {
    /// Writes bytes at their place; what is never written stays a hole. From any thread. Blocking.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        self.file.write_at(offset, bytes).map_err(|source| {
            let path = "tmp".to_owned();
            let error = StoreError::Io { path, source };
            self.store.judge(error, bytes.len() as u64)
        })
    }

    /// Gives the file its name: it takes the place of what is there, unless all of that was verified in this run. Its
    /// blocks are strangers like any others, hashed when they are first read. Blocking.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn finish(mut self, file: FileRef) -> Result<(), StoreError> {
        let store = Arc::clone(&self.store);
        let finish = || {
            let stat = self.file.stat()?;
            if is_small(&file) {
                store.take_small(&file, self.temporary, &stat)
            } else {
                store.take_large(&file, self.temporary, &stat)
            }
        };
        self.finished = finish().map_err(|source| store.judge(failed(&file, source), file.size))?;
        Ok(())
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = self.store.disk.remove(self.temporary)
        {
            self.store.count_failure(&error, "remove");
        }
        self.store.uncharge(self.reserved);
    }
}

impl Store {
    /// Gives a temporary file the name of a small one; returns whether it was taken.
    fn take_small(&self, file: &FileRef, from: Name, stat: &Stat) -> std::io::Result<bool> {
        let id = file.id;
        let size = u32::try_from(file.size).map_err(std::io::Error::other)?;
        let shard = self.shard(&id);
        let mut folders = shard.change.lock();
        if stat.len != file.size || self.small_state(&id).is_some_and(|state| state.verified) {
            return Ok(false);
        }
        self.remove_small(&mut folders, &id);
        if self.small_state(&id).is_some() {
            return Err(std::io::Error::other("it cannot be replaced"));
        }
        self.disk.rename(from, Name::Small(id))?;
        let entry = Small {
            size,
            used: AtomicU32::new(self.tick()),
            written: self.next_write(),
            verified: AtomicBool::new(false),
            proven: true,
        };
        self.add_small(&mut folders, id, entry);
        Ok(true)
    }

    fn take_large(&self, file: &FileRef, from: Name, stat: &Stat) -> std::io::Result<bool> {
        let id = file.id;
        let shard = self.shard(&id);
        let mut folders = shard.change.lock();
        if stat.len != file.size {
            return Ok(false);
        }
        if let Some(old) = self.known_large(&id) {
            if (0..old.blocks()).all(|index| old.is_verified(index)) && old.file == *file {
                return Ok(false);
            }
            self.remove_blocks(&mut folders, &old, 0..old.blocks(), &mut || true);
            if self.known_large(&id).is_some() {
                return Err(std::io::Error::other("it cannot be replaced"));
            }
        }
        self.disk.rename(from, Name::Whole(id))?;
        let large = Large::new(*file, State::Whole, self.span_blocks);
        let (now, write) = (self.tick(), self.next_write());
        for index in 0..large.blocks() {
            large.set_present(index);
            large.set_written(index, write);
            large.touch(index, now);
        }
        self.add_large(&mut folders, large, stat);
        Ok(true)
    }
}
