//! Sizes and order of use, written down now and then, so that the next run evicts in the right order and does not have
//! to ask for a million sizes. It is trusted for nothing else, and nothing is lost with it.
//!
//! Format: magic "manifsr1", the clock as u64, 256 counts as u64 (records by first byte of the digest), then records of
//! 48 bytes: digest, span as u32 (u32::MAX for a small file), time of use as u32, size as u64 (u64::MAX when nobody has
//! proven it yet). Little-endian.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::disk::{Access, Disk, DiskFile, Name};
use super::table::DigestMap;
use super::{SHARDS, Store, Wait};
use crate::block::Digest;

const MAGIC: &[u8; 8] = b"manifsr1";
const HEADER_BYTES: usize = 16 + 8 * SHARDS;
const RECORD_BYTES: usize = 48;
const SMALL: u32 = u32::MAX;

/// How many bytes of records are gathered before they are written.
const WRITE_BYTES: usize = 256 << 10;

/// The clock is halved beyond this, so that it never runs out: at 2^31 blocks of one run.
const CLOCK_MAX: u64 = 1 << 31;

/// A summary is written at most every so often for each so many records: a large one is worth less of the disk's time.
const EVERY: (Duration, u64) = (Duration::from_secs(60), 1 << 17);

/// When the summary was last written.
#[derive(Default)]
pub(super) struct Flushed {
    clock: u32,
    when: Option<Instant>,
    records: u64,
}

/// A summary of an earlier run.
pub(super) struct Recency {
    file: Arc<dyn DiskFile>,
    clock: u64,
    counts: Vec<u64>,
}

/// What a summary says of one shard.
#[derive(Default)]
pub(super) struct Remembered {
    small: DigestMap<(Option<u32>, u32)>,
    large: DigestMap<Vec<(u32, u32)>>,
}

impl Recency {
    /// Opens the summary; one that is damaged is none.
    pub(super) fn open(disk: &dyn Disk) -> Option<Recency> {
        let file = disk.open(Name::Recency, Access::Existing(Wait::Yes)).ok()?;
        let header = file.read_vec(0, HEADER_BYTES).ok()?;
        if header.len() != HEADER_BYTES || !header.starts_with(MAGIC) {
            return None;
        }
        let mut numbers = header[8..]
            .chunks_exact(8)
            .map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap_or_default()));
        let clock = numbers.next()?;
        let counts: Vec<u64> = numbers.collect();
        let records = counts
            .iter()
            .try_fold(0u64, |sum, count| sum.checked_add(*count))?;
        let len = records.checked_mul(RECORD_BYTES as u64)? + HEADER_BYTES as u64;
        (file.stat().ok()?.len == len).then_some(Recency {
            file,
            clock,
            counts,
        })
    }

    /// Returns a time that no use is later than.
    pub(super) fn clock(&self) -> u32 {
        self.scaled(self.clock)
    }

    fn scaled(&self, time: u64) -> u32 {
        let time = time.min(self.clock);
        let half = if self.clock > CLOCK_MAX {
            time / 2
        } else {
            time
        };
        u32::try_from(half).unwrap_or(u32::MAX / 2)
    }

    pub(super) fn shard(&self, byte: u8) -> Remembered {
        let mut remembered = Remembered::default();
        let before: u64 = self.counts[..usize::from(byte)].iter().sum();
        let count = self.counts[usize::from(byte)];
        let Ok(len) = usize::try_from(count * RECORD_BYTES as u64) else {
            return remembered;
        };
        let at = HEADER_BYTES as u64 + before * RECORD_BYTES as u64;
        // The length of the file has shown that there are so many bytes.
        let bytes = self.file.read_vec(at, len).unwrap_or_default();
        for record in bytes.chunks_exact(RECORD_BYTES) {
            let Some((id, span, used, size)) = decode(record) else {
                continue;
            };
            let used = self.scaled(u64::from(used));
            if span == SMALL {
                let size = u32::try_from(size).ok();
                remembered.small.insert(id, (size, used));
            } else {
                remembered.large.entry(id).or_default().push((span, used));
            }
        }
        remembered
    }
}

impl Remembered {
    /// Returns size, if it was proven, and time of use.
    pub(super) fn small(&self, id: &Digest) -> (Option<u32>, u32) {
        self.small.get(id).copied().unwrap_or_default()
    }

    pub(super) fn span(&self, id: &Digest, span: u64) -> u32 {
        let spans = self.large.get(id);
        let found =
            spans.and_then(|spans| spans.iter().find(|(other, _)| u64::from(*other) == span));
        found.map_or(0, |(_, used)| *used)
    }
}

impl Store {
    /// Writes down what was used since the last time, and makes durable what was written. For each minute. Blocking.
    pub fn flush(&self) {
        self.counted.wait();
        if self.writes.load(Ordering::Acquire) != self.durable.load(Ordering::Acquire) {
            // An error has been told and dealt with.
            let _ = self.sync();
        }
        self.write_recency(false);
        self.count_others();
        self.shrink();
    }

    /// Writes the summary, if it is worth it.
    pub(super) fn write_recency(&self, closing: bool) {
        let mut flushed = self.flushing.lock();
        let now = self.now();
        let patience = EVERY.0 * u32::try_from(flushed.records / EVERY.1).unwrap_or(u32::MAX);
        let early = flushed.when.is_some_and(|when| when.elapsed() < patience);
        if flushed.clock == now || (early && !closing) {
            return;
        }
        match self.summary() {
            Ok(records) => {
                *flushed = Flushed {
                    clock: now,
                    when: Some(Instant::now()),
                    records,
                };
            }
            Err(error) => self.count_failure(&error, "recency"),
        }
        self.count_others();
    }

    fn summary(&self) -> io::Result<u64> {
        let mut counts = Vec::new();
        let records: u64 = self.shards.iter().map(|shard| shard.records()).sum();
        let mut bytes = Vec::new();
        // Both the old one and the new one are there for a moment. Entries that come meanwhile make it a little longer.
        let need = (records + 1024) * RECORD_BYTES as u64 + 2 * HEADER_BYTES as u64;
        let _room = self
            .reserve(need.next_multiple_of(self.granule))
            .map_err(io::Error::other)?;
        let file = self.disk.open(Name::RecencyNew, Access::New)?;
        let mut at = HEADER_BYTES as u64;
        for shard in &self.shards {
            counts.push(shard.write_records(&mut bytes));
            if counts.iter().sum::<u64>() > records + 1024 {
                return Err(io::Error::other("it grows while it is written"));
            }
            if bytes.len() >= WRITE_BYTES {
                file.write_at(at, &bytes)?;
                at += bytes.len() as u64;
                bytes.clear();
            }
        }
        file.write_at(at, &bytes)?;
        let mut header = MAGIC.to_vec();
        header.extend(u64::from(self.now()).to_le_bytes());
        counts
            .iter()
            .for_each(|count| header.extend(count.to_le_bytes()));
        file.write_at(0, &header)?;
        self.disk.rename(Name::RecencyNew, Name::Recency)?;
        Ok(records)
    }
}

impl super::table::Shard {
    fn records(&self) -> u64 {
        let large: u64 = self.large.read().values().map(|large| large.spans()).sum();
        self.small.read().len() as u64 + large
    }

    fn write_records(&self, bytes: &mut Vec<u8>) -> u64 {
        let mut count = 0;
        let mut push = |id: &Digest, span: u32, used: u32, size: u64| {
            bytes.extend_from_slice(id.as_bytes());
            bytes.extend_from_slice(&span.to_le_bytes());
            bytes.extend_from_slice(&used.to_le_bytes());
            bytes.extend_from_slice(&size.to_le_bytes());
            count += 1;
        };
        for (id, entry) in &*self.small.read() {
            let used = entry.used.load(Ordering::Relaxed);
            // A torn file may be shorter than what takes its place before the next summary.
            let size = if entry.proven || entry.verified.load(Ordering::Relaxed) {
                u64::from(entry.size)
            } else {
                u64::MAX
            };
            push(id, SMALL, used, size);
        }
        for (id, large) in &*self.large.read() {
            for span in 0..large.spans() {
                if let Ok(number) = u32::try_from(span) {
                    push(id, number, large.used(span), large.file.size);
                }
            }
        }
        count
    }
}

fn decode(record: &[u8]) -> Option<(Digest, u32, u32, u64)> {
    let id = Digest::from_bytes(*record.first_chunk()?);
    let span = u32::from_le_bytes(record[32..36].try_into().ok()?);
    let used = u32::from_le_bytes(record[36..40].try_into().ok()?);
    Some((id, span, used, u64::from_le_bytes(*record.last_chunk()?)))
}
