//! Reading: bytes at hand in place, everything else on a task, prefetch on the way.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};

use super::{Attempt, Fs, FsError, Ino, Place, catalog_error, fetch_error};
use crate::block::{BLOCK_BYTES, BlockRef};
use crate::catalog::{Kind, Row};
use crate::fetch::Priority;
use crate::fetch::walk::SMALL_FILE_BYTES;
use crate::install::{Listed, Tree, want_of};
use crate::source::Want;
use crate::store::{self, ReadOutcome};

/// The largest read that may wait for the disk in place: about one access, whatever the disk.
const WAITING_READ_BYTES: usize = 16 << 10;

/// How many of the caller's threads may wait for the disk at a time, so that the others go on answering.
///
/// A small read that waits in place saves two changes of thread, which cost as much as a fast disk.
pub struct Turns {
    left: AtomicUsize,
}

/// The right of one thread to wait, until dropped.
struct Turn<'a>(&'a Turns);

/// How a read in place ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadHere {
    /// So many bytes were read; fewer than asked for only at the end of the file.
    Done(usize),
    /// It would wait for a disk, a first check or a network.
    Later,
}

/// One file of an installed version.
struct OpenFile {
    version: Arc<Listed>,
    tree: Arc<Tree>,
    number: u32,
    row: Row,
}

/// The part of one block that a read wants.
struct Span {
    block: BlockRef,
    within: Range<u32>,
}

impl Fs {
    /// Reads what this process has verified before: what the page cache holds, and a little from the disk if it is the
    /// thread's turn to wait.
    ///
    /// # Errors
    /// [`FsError`]
    pub fn read_here(
        &self,
        ino: Ino,
        offset: u64,
        buffer: &mut [u8],
        turns: &Turns,
    ) -> Attempt<ReadHere> {
        let file = self.file(ino)?;
        let size = file.row.size();
        if offset >= size {
            return Ok(ReadHere::Done(0));
        }
        let end = offset.saturating_add(buffer.len() as u64).min(size);
        self.look_ahead(ino, &file, &(offset..end));
        let mut done = 0;
        for span in file.spans(offset..end)? {
            let len = (span.within.end - span.within.start) as usize;
            let part = &mut buffer[done..done + len];
            let mut read = |wait| {
                self.store
                    .read_verified(&span.block, span.within.start, part, wait)
            };
            let mut outcome = read(store::Wait::No);
            if outcome == ReadOutcome::WouldBlock
                && end - offset <= WAITING_READ_BYTES as u64
                && let Some(_turn) = turns.take()
            {
                outcome = read(store::Wait::Yes);
            }
            match outcome {
                ReadOutcome::Done => {}
                // What was just fetched, a walk's next small file mostly, is still in memory.
                ReadOutcome::WouldBlock | ReadOutcome::Unverified | ReadOutcome::Missing => {
                    let Some(block) = self.fetcher.at_hand(&span.block) else {
                        return Ok(ReadHere::Later);
                    };
                    let within = span.within.start as usize..span.within.end as usize;
                    part.copy_from_slice(&block.bytes()[within]);
                }
            }
            done += len;
        }
        Ok(ReadHere::Done(done))
    }

    /// Reads up to `len` bytes, from the store, the memory tier or the sources, whatever is needed.
    ///
    /// # Errors
    /// [`FsError`], at the latest when the fetcher's deadline is over.
    pub async fn read(&self, ino: Ino, offset: u64, len: usize) -> Attempt<Bytes> {
        let file = match self.file(ino) {
            Err(FsError::Wait(wait)) => self.wait_and_retry(wait, |fs| fs.file(ino)).await?,
            found => found?,
        };
        let size = file.row.size();
        if offset >= size {
            return Ok(Bytes::new());
        }
        let end = offset.saturating_add(len as u64).min(size);
        let spans = match file.spans(offset..end) {
            Err(FsError::Wait(wait)) => {
                self.wait_and_retry(wait, |_| file.spans(offset..end))
                    .await?
            }
            spans => spans?,
        };
        if let [span] = &spans[..] {
            return self.span(&file, span).await;
        }
        let mut bytes = BytesMut::with_capacity(len);
        for span in &spans {
            bytes.extend_from_slice(&self.span(&file, span).await?);
        }
        Ok(bytes.freeze())
    }

    async fn span(&self, file: &OpenFile, span: &Span) -> Attempt<Bytes> {
        if !self.fetcher.is_under_way(&span.block)
            && let Some(bytes) = self.stored(span).await
        {
            return Ok(bytes);
        }
        let want = want_of(&file.version, &file.tree, file.number, span.block);
        let want = want.map_err(|error| catalog_error(&file.version, &error))?;
        let block = self
            .fetcher
            .get(want, Priority::Foreground)
            .await
            .map_err(|error| fetch_error(&error))?;
        Ok(block
            .bytes()
            .slice(span.within.start as usize..span.within.end as usize))
    }

    /// Reads from the disk on the blocking pool; a block that this process has not hashed yet is hashed there.
    async fn stored(&self, span: &Span) -> Option<Bytes> {
        let (store, block, within) = (Arc::clone(&self.store), span.block, span.within.clone());
        let read = move || {
            let mut bytes = BytesMut::zeroed((within.end - within.start) as usize);
            match store.read_verified(&block, within.start, &mut bytes, store::Wait::Yes) {
                ReadOutcome::Done => Some(bytes.freeze()),
                ReadOutcome::Missing => None,
                ReadOutcome::Unverified | ReadOutcome::WouldBlock => {
                    store.load(&block).map(|block| {
                        block
                            .bytes()
                            .slice(within.start as usize..within.end as usize)
                    })
                }
            }
        };
        // An error means that the runtime is shutting down.
        tokio::task::spawn_blocking(read).await.ok().flatten()
    }

    /// Asks for what a sequential reader, or one that walks a directory in order, will want next.
    fn look_ahead(&self, ino: Ino, file: &OpenFile, span: &Range<u64>) {
        if file.row.blocks() > 1 {
            let room = self.fetcher.prefetch_room();
            let size = file.row.size();
            let window =
                self.streams
                    .read(ino.get(), span.start, span.end - span.start, size, room);
            let wants: Vec<Want> = window
                .filter_map(|index| self.want_ahead(file, file.number, &file.row, index))
                .collect();
            if !wants.is_empty() {
                self.fetcher.prefetch(wants);
            }
        } else if span.start == 0 {
            self.look_at_siblings(ino, file);
        }
    }

    /// Asks for the small files after this one that a directory walk is about to reach.
    fn look_at_siblings(&self, ino: Ino, file: &OpenFile) {
        let Place::Row { slot, .. } = ino.place() else {
            return;
        };
        let Ok(parent) = file.tree.row(file.row.parent()) else {
            return;
        };
        let children = parent.children();
        let directory = Ino::row(slot, file.row.parent()).get();
        let (child, count) = (file.number - children.start, children.end - children.start);
        let Some(ahead) = self.walks.touched(directory, child, count) else {
            return;
        };
        let mut bytes = 0;
        let mut wants = Vec::new();
        let mut until = ahead.from;
        for child in ahead.from..ahead.until {
            let number = children.start + child;
            let Ok(row) = file.tree.row(number) else {
                break;
            };
            let small = row.kind() == Kind::File && (1..=SMALL_FILE_BYTES).contains(&row.size());
            if small {
                bytes += row.size();
                if bytes > ahead.bytes {
                    break;
                }
                wants.extend(self.want_ahead(file, number, &row, 0));
            }
            until = child + 1;
        }
        self.walks.asked(directory, until);
        if !wants.is_empty() {
            self.fetcher.prefetch(wants);
        }
    }

    /// Returns what to ask for, unless this process has verified the block already.
    fn want_ahead(&self, file: &OpenFile, number: u32, row: &Row, index: u64) -> Option<Want> {
        let block = file.tree.block(row, index).ok()?;
        if self.store.verified(&block) {
            None
        } else {
            want_of(&file.version, &file.tree, number, block).ok()
        }
    }

    fn file(&self, ino: Ino) -> Attempt<OpenFile> {
        let Place::Row { slot, row: number } = ino.place() else {
            return Err(FsError::IsADirectory);
        };
        // Withdrawn versions too: the kernel may have the file open, and open files stay readable.
        let version = self.listing.by_slot(slot).ok_or(FsError::Stale)?;
        let tree = self.tree(&version)?;
        let row = self.row(&version, &tree, number)?;
        if row.kind() != Kind::File {
            return Err(FsError::IsADirectory);
        }
        Ok(OpenFile {
            version,
            tree,
            number,
            row,
        })
    }
}

impl Turns {
    /// Lets so many threads wait at a time.
    pub fn new(count: usize) -> Turns {
        Turns {
            left: AtomicUsize::new(count),
        }
    }

    fn take(&self) -> Option<Turn<'_>> {
        self.left
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| {
                left.checked_sub(1)
            })
            .ok()
            .map(|_| Turn(self))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.left.fetch_add(1, Ordering::AcqRel);
    }
}

impl OpenFile {
    /// Returns the blocks, and the parts of them, that cover a span of the file.
    fn spans(&self, span: Range<u64>) -> Attempt<Vec<Span>> {
        let indices = span.start / BLOCK_BYTES..span.end.div_ceil(BLOCK_BYTES);
        let one = |index: u64| {
            let block = self
                .tree
                .block(&self.row, index)
                .map_err(|error| catalog_error(&self.version, &error))?;
            let start = index * BLOCK_BYTES;
            let within =
                span.start.saturating_sub(start)..span.end.min(start + BLOCK_BYTES) - start;
            #[expect(
                clippy::cast_possible_truncation,
                reason = "both lie within one block of 2^20 bytes"
            )]
            let within = within.start as u32..within.end as u32;
            Ok(Span { block, within })
        };
        indices.map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_given_back() {
        let turns = Turns::new(1);
        let first = turns.take();
        assert!(first.is_some());
        assert!(turns.take().is_none(), "one at a time");
        drop(first);
        assert!(turns.take().is_some());
    }
}
