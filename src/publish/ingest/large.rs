//! A file of more than one block: read and hashed in order as a whole by one thread, while its blocks are hashed and
//! stored by whoever is free.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock};

use sha2::{Digest as _, Sha256};

use super::{BlockWork, Run, Trouble, ZEROS, ZEROS_DIGEST, changed, read_up_to, unreadable};
use crate::block::{BLOCK_BYTES, Digest, block_count, block_len};
use crate::publish::disk::{self, Stat};
use crate::publish::rules;
use crate::publish::sink::LargeSink;
use crate::publish::spool::SpooledFile;
use crate::torrent::Pieces;
use crate::unixfs::file;

/// How many blocks of one file are in memory.
pub(super) const BLOCKS_UNDER_WAY: usize = 4;

/// How many digests of one file are gathered before they are written.
const DIGESTS_GATHERED: usize = 256;

impl<'a> Run<'a> {
    /// Reads a file of more than one block.
    pub(super) fn large(
        &self,
        opened: &std::fs::File,
        file: &SpooledFile,
        before: &Stat,
    ) -> Result<(), Trouble> {
        let mut head = [0; rules::HEAD_BYTES];
        let head = read_up_to(opened, &mut head, 0).map_err(|error| unreadable(&error))?;
        self.judge(head)?;
        let data = data_bytes(opened, before).map_err(|error| unreadable(&error))?;
        let sink = self.work.sink.large(before.size, data)?;
        let torrent = self.torrent_place(file.row);
        let shared = torrent.is_some_and(|(pieces, _)| pieces.layout().is_small(before.size));
        let mut large = Large {
            run: self,
            row: file.row,
            sink: &sink,
            torrent,
            shared,
            waiting: VecDeque::new(),
            gathered: Vec::with_capacity(DIGESTS_GATHERED),
            written: 0,
            tree: file::Builder::new(before.size),
            whole: Sha256::new(),
        };
        let read = large.read(opened, before.size);
        // Also when it failed: what is under way still uses the sink.
        large.settle(0)?;
        read?;
        let after = disk::stat(opened).map_err(|error| unreadable(&error))?;
        if !after.unchanged(before) {
            return Err(changed());
        }
        if self.stopped() {
            return Ok(());
        }
        large.finish()
    }
}

/// A file of more than one block while it is read.
struct Large<'r, 'a> {
    run: &'r Run<'a>,
    row: u32,
    sink: &'r Arc<dyn LargeSink + 'a>,
    /// What takes its bytes for the torrent, and where they lie in it.
    torrent: Option<(&'a Pieces, u64)>,
    /// Whether other files lie in its pieces too, so that they have to be brought in order.
    shared: bool,
    /// Digests of the last blocks, in order, that are known or being made.
    waiting: VecDeque<Arc<OnceLock<Digest>>>,
    /// Digests in order that the catalog does not have yet.
    gathered: Vec<Digest>,
    /// How many it has.
    written: u64,
    tree: file::Builder,
    whole: Sha256,
}

impl<'a> Large<'_, 'a> {
    fn read(&mut self, opened: &std::fs::File, size: u64) -> Result<(), Trouble> {
        // The data that is known to lie ahead: nothing yet.
        let mut data = Some((0, 0));
        for index in 0..block_count(size) {
            if self.run.stopped() {
                return Ok(());
            }
            let start = index * BLOCK_BYTES;
            let len = block_len(size, index) as usize;
            while let Some((_, end)) = data
                && end <= start
            {
                data = disk::data_after(opened.as_fd(), start, size)
                    .map_err(|error| unreadable(&error))?;
            }
            let hole = data.is_none_or(|(from, _)| from >= start + len as u64);
            self.settle(BLOCKS_UNDER_WAY - 1)?;
            if hole {
                let zeros = &ZEROS[..len];
                let digest = if len == ZEROS.len() {
                    *ZEROS_DIGEST
                } else {
                    Digest::of(zeros)
                };
                self.waiting.push_back(Arc::new(OnceLock::from(digest)));
                self.whole.update(zeros);
                if let Some((pieces, offset)) = self.torrent {
                    pieces.add_zeros(offset + start, len as u64);
                }
            } else {
                self.read_block(opened, index, len)?;
            }
            self.run.work.progress.read(0, len as u64);
        }
        Ok(())
    }

    fn read_block(
        &mut self,
        opened: &std::fs::File,
        index: u64,
        len: usize,
    ) -> Result<(), Trouble> {
        let mut buffer = self.run.buffer();
        buffer.resize(len, 0);
        let read = read_up_to(opened, &mut buffer, index * BLOCK_BYTES)
            .map(<[u8]>::len)
            .map_err(|error| unreadable(&error))?;
        if read != len {
            return Err(changed());
        }
        let torrent = self
            .torrent
            .map(|(pieces, offset)| (pieces, offset + index * BLOCK_BYTES));
        // Whoever may have to wait must not be a thread that blocks wait for.
        if let Some((pieces, offset)) = torrent.filter(|_| self.shared) {
            pieces.add(offset, &buffer);
        }
        let bytes = Arc::new(buffer);
        let slot = Arc::new(OnceLock::new());
        self.waiting.push_back(Arc::clone(&slot));
        self.run.queue.add_block(BlockWork {
            sink: Arc::clone(self.sink),
            index,
            bytes: Arc::clone(&bytes),
            torrent: torrent.filter(|_| !self.shared).map(|(_, offset)| offset),
            slot,
        });
        self.whole.update(&*bytes);
        // Whoever is last gives the buffer back.
        if let Ok(buffer) = Arc::try_unwrap(bytes) {
            self.run.give_back(buffer);
        }
        Ok(())
    }

    /// Waits until at most `left` blocks are under way, and takes the digests of the others.
    fn settle(&mut self, left: usize) -> Result<(), Trouble> {
        while self.waiting.len() > left
            && let Some(slot) = self.waiting.pop_front()
        {
            let run = self.run;
            if slot.get().is_none() {
                run.queue
                    .wait(|| slot.get().is_some(), |block| run.block(block));
            }
            let Some(digest) = slot.get().copied() else {
                // The thread that had it died; so does the publish.
                self.waiting.clear();
                return Ok(());
            };
            self.tree.push(digest, &mut |_| Ok(()))?;
            self.gathered.push(digest);
            if self.gathered.len() == DIGESTS_GATHERED {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Trouble> {
        let catalog = self.run.work.catalog;
        catalog.set_digests(self.row, self.written, &self.gathered)?;
        self.written += self.gathered.len() as u64;
        self.gathered.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<(), Trouble> {
        self.flush()?;
        let id = self.tree.finish(&mut |_| Ok(()))?.cid.digest();
        self.sink.finish(id)?;
        let whole = Digest::from_bytes(self.whole.finalize().into());
        self.run.work.catalog.set_whole(self.row, whole, id)?;
        Ok(())
    }
}

/// Returns how many bytes of a file lie in blocks that are not all hole.
fn data_bytes(opened: &std::fs::File, stat: &Stat) -> io::Result<u64> {
    if stat.allocated >= stat.size {
        return Ok(stat.size);
    }
    let mut bytes = 0;
    let mut at = 0;
    while at < stat.size
        && let Some((start, end)) = disk::data_after(opened.as_fd(), at, stat.size)?
    {
        let start = start.max(at) / BLOCK_BYTES * BLOCK_BYTES;
        // Never backwards, whatever the file system says.
        let end = end
            .max(start + 1)
            .next_multiple_of(BLOCK_BYTES)
            .min(stat.size.max(start + 1));
        bytes += end - start;
        at = end;
    }
    Ok(bytes)
}
