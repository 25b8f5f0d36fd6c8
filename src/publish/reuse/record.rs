//! What the files of the last version were on disk when they were ingested (format: `docs/formats/ingested.md`).
//!
//! It only ever saves time: a record that is missing, damaged or of another format is none, and everything is read.

#![expect(
    clippy::cast_possible_truncation,
    reason = "lengths fit usize on the 64-bit machines that the crate insists on"
)]

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use super::super::disk::{FileKind, Stat};
use crate::block::{Digest, block_count};
use crate::catalog::CATALOG_BYTES_MAX;
use crate::manifest::CatalogBlocks;
use crate::torrent::{PIECES_MAX, Sha1Hash};

/// The first bytes; the digit is the format.
const MAGIC: [u8; 8] = *b"manifsg1";

/// Bytes of the entry of one row.
const ENTRY_BYTES: u64 = 32;

/// Bytes of the counts at the end.
const TAIL_BYTES: u64 = 32;

/// Bytes of the checksum after them.
const CHECKSUM_BYTES: u64 = 32;

/// The most rows: half a GiB. A larger tree has no record.
const ROWS_MAX: u32 = 1 << 24;

/// How far a file's times have to lie before the ingest, so that a later change shows in them: some file systems count
/// in steps of two seconds, and some go by the clock of another machine. This is git's "racy" rule.
const RACY_NS: i64 = 2_000_000_000;

/// The same for local file systems that take times from the kernel's clock: its ticks are 10 ms apart at most.
const RACY_FINE_NS: i64 = 100_000_000;

/// When an ingest began, by which a file's times are judged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Began {
    /// In nanoseconds since 1970, before the walk.
    pub(crate) ns: i64,
    /// The device whose file system is known to count in ticks of the kernel's clock.
    pub(crate) fine_device: Option<u64>,
}

impl Began {
    /// Returns whether a file that is changed from here on has other times than it had.
    fn shows_changes(&self, stat: &Stat) -> bool {
        let racy_ns = match self.fine_device {
            // Whole seconds are what a file system writes whose inodes have no room for more.
            Some(device) if device == stat.device && stat.ctime.1 != 0 => RACY_FINE_NS,
            _ => RACY_NS,
        };
        let (Some(ctime_ns), Some(mtime_ns)) = (stat.ctime_ns(), stat.mtime_ns()) else {
            return false;
        };
        let latest = mtime_ns.max(ctime_ns).checked_add(racy_ns);
        latest.is_some_and(|latest| latest < self.ns)
    }
}

/// Bytes that are read or written at once.
const BUFFER_BYTES: usize = 256 << 10;

/// What one file was on disk when it was ingested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) device: u64,
    pub(super) inode: u64,
    mtime_ns: i64,
    ctime_ns: i64,
}

impl Entry {
    /// Takes what a file is; none when a later change might not show.
    pub(super) fn new(stat: &Stat, began: Began) -> Option<Entry> {
        let usable = stat.kind == FileKind::File && stat.inode != 0 && began.shows_changes(stat);
        usable.then_some(Entry {
            device: stat.device,
            inode: stat.inode,
            mtime_ns: stat.mtime_ns()?,
            ctime_ns: stat.ctime_ns()?,
        })
    }

    /// Returns whether nobody has written to the file since; its size is the caller's to compare.
    pub(super) fn proves(&self, stat: &Stat) -> bool {
        stat.kind == FileKind::File
            && (self.device, self.inode) == (stat.device, stat.inode)
            && stat.mtime_ns() == Some(self.mtime_ns)
            && stat.ctime_ns() == Some(self.ctime_ns)
    }

    fn encode(&self) -> [u8; ENTRY_BYTES as usize] {
        let mut bytes = [0; ENTRY_BYTES as usize];
        bytes[..8].copy_from_slice(&self.device.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.inode.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.mtime_ns.to_le_bytes());
        bytes[24..].copy_from_slice(&self.ctime_ns.to_le_bytes());
        bytes
    }

    /// An entry without inode proves nothing.
    fn decode(bytes: &[u8; ENTRY_BYTES as usize]) -> Option<Entry> {
        let entry = Entry {
            device: u64::from_le_bytes(eight(bytes, 0)),
            inode: u64::from_le_bytes(eight(bytes, 8)),
            mtime_ns: i64::from_le_bytes(eight(bytes, 16)),
            ctime_ns: i64::from_le_bytes(eight(bytes, 24)),
        };
        (entry.inode != 0).then_some(entry)
    }
}

fn eight(bytes: &[u8], at: usize) -> [u8; 8] {
    std::array::from_fn(|index| bytes[at + index])
}

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordError {
    /// It is not what this version of the program writes.
    #[error("{0}")]
    Format(&'static str),
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The counts at the end.
struct Tail {
    rows: u32,
    pieces: u32,
    catalog_bytes: u64,
    piece_bytes: u64,
    judged: u32,
}

impl Tail {
    fn encode(&self) -> [u8; TAIL_BYTES as usize] {
        let mut bytes = [0; TAIL_BYTES as usize];
        bytes[..4].copy_from_slice(&self.rows.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.pieces.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.catalog_bytes.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.piece_bytes.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.judged.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; TAIL_BYTES as usize]) -> Tail {
        let four = |at: usize| u32::from_le_bytes(std::array::from_fn(|index| bytes[at + index]));
        Tail {
            rows: four(0),
            pieces: four(4),
            catalog_bytes: u64::from_le_bytes(eight(bytes, 8)),
            piece_bytes: u64::from_le_bytes(eight(bytes, 16)),
            judged: four(24),
        }
    }

    /// Returns how long the whole is.
    fn len(&self) -> u64 {
        MAGIC.len() as u64
            + ENTRY_BYTES * u64::from(self.rows)
            + 32 * block_count(self.catalog_bytes)
            + 20 * u64::from(self.pieces)
            + TAIL_BYTES
            + CHECKSUM_BYTES
    }
}

/// The hashes of a torrent's pieces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KnownPieces {
    pub(crate) piece_bytes: u64,
    pub(crate) hashes: Vec<Sha1Hash>,
}

/// The record of a version, whole and undamaged.
#[derive(Debug)]
pub(super) struct Record {
    file: File,
    pub(super) rows: u32,
    pub(super) catalog: CatalogBlocks,
    pub(super) pieces: Option<KnownPieces>,
    /// Which rules the content of its files was judged by; 0 for none.
    pub(super) judged: u32,
}

impl Record {
    /// Reads a record; `None` when there is none.
    pub(super) fn open(path: &Path) -> Result<Option<Record>, RecordError> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let len = file.metadata()?.len();
        let least = MAGIC.len() as u64 + TAIL_BYTES + CHECKSUM_BYTES;
        if len < least {
            return Err(RecordError::Format("too short"));
        }
        let mut magic = [0; MAGIC.len()];
        file.read_exact_at(&mut magic, 0)?;
        if magic != MAGIC {
            return Err(RecordError::Format("of another version of manifs"));
        }
        let mut tail = [0; TAIL_BYTES as usize];
        file.read_exact_at(&mut tail, len - CHECKSUM_BYTES - TAIL_BYTES)?;
        let tail = Tail::decode(&tail);
        let bounded = tail.rows <= ROWS_MAX
            && u64::from(tail.pieces) <= PIECES_MAX
            && tail.catalog_bytes <= CATALOG_BYTES_MAX;
        if !bounded || tail.len() != len {
            return Err(RecordError::Format("of the wrong length"));
        }
        if checksum(&file, len - CHECKSUM_BYTES)? != last_digest(&file, len)? {
            return Err(RecordError::Format("damaged"));
        }
        let digests_at = MAGIC.len() as u64 + ENTRY_BYTES * u64::from(tail.rows);
        // Both are bounded above.
        let mut digests = vec![0; 32 * block_count(tail.catalog_bytes) as usize];
        file.read_exact_at(&mut digests, digests_at)?;
        let mut hashes = vec![[0; 20]; tail.pieces as usize];
        file.read_exact_at(hashes.as_flattened_mut(), digests_at + digests.len() as u64)?;
        let (digests, _) = digests.as_chunks::<32>();
        Ok(Some(Record {
            rows: tail.rows,
            catalog: CatalogBlocks {
                size: tail.catalog_bytes,
                blocks: digests.iter().copied().map(Digest::from_bytes).collect(),
            },
            pieces: (tail.piece_bytes > 0).then_some(KnownPieces {
                piece_bytes: tail.piece_bytes,
                hashes,
            }),
            judged: tail.judged,
            file,
        }))
    }

    /// Returns what is known of the files in some rows; the caller bounds them, and those there are do.
    pub(super) fn entries(&self, rows: Range<u32>) -> io::Result<Vec<Option<Entry>>> {
        let end = rows.end.min(self.rows);
        let count = end.saturating_sub(rows.start);
        let mut bytes = vec![[0; ENTRY_BYTES as usize]; count as usize];
        let at = MAGIC.len() as u64 + ENTRY_BYTES * u64::from(rows.start);
        self.file.read_exact_at(bytes.as_flattened_mut(), at)?;
        Ok(bytes.iter().map(Entry::decode).collect())
    }

    /// Visits what is known of every file, by row.
    pub(super) fn each(&self, visit: &mut dyn FnMut(u32, Entry)) -> io::Result<()> {
        let mut reader = BufReader::with_capacity(BUFFER_BYTES, &self.file);
        reader.seek(SeekFrom::Start(MAGIC.len() as u64))?;
        let mut bytes = [0; ENTRY_BYTES as usize];
        for row in 0..self.rows {
            reader.read_exact(&mut bytes)?;
            if let Some(entry) = Entry::decode(&bytes) {
                visit(row, entry);
            }
        }
        Ok(())
    }
}

fn checksum(file: &File, len: u64) -> io::Result<Digest> {
    let mut sha = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut at = 0;
    while at < len {
        let part = (len - at).min(BUFFER_BYTES as u64) as usize;
        file.read_exact_at(&mut buffer[..part], at)?;
        sha.update(&buffer[..part]);
        at += part as u64;
    }
    Ok(Digest::from_bytes(sha.finalize().into()))
}

fn last_digest(file: &File, len: u64) -> io::Result<Digest> {
    let mut bytes = [0; CHECKSUM_BYTES as usize];
    file.read_exact_at(&mut bytes, len - CHECKSUM_BYTES)?;
    Ok(Digest::from_bytes(bytes))
}

/// A record that is being written: entries first, by row, then the rest.
pub(crate) struct RecordWriter {
    out: BufWriter<NamedTempFile>,
    sha: Sha256,
    rows: u32,
    /// More rows than a record holds: nothing is written any more.
    full: bool,
}

impl RecordWriter {
    /// Begins one in the directory where it will lie.
    pub(super) fn new(directory: &Path) -> io::Result<RecordWriter> {
        // Swept at the next start, when this process dies.
        let file = tempfile::Builder::new()
            .prefix(".")
            .suffix(".tmp")
            .tempfile_in(directory)?;
        let mut writer = RecordWriter {
            out: BufWriter::with_capacity(BUFFER_BYTES, file),
            sha: Sha256::new(),
            rows: 0,
            full: false,
        };
        writer.write(&MAGIC)?;
        Ok(writer)
    }

    /// Says what the file in a row is; rows ascend, and those that are left out prove nothing.
    pub(super) fn set(&mut self, row: u32, entry: &Entry) -> io::Result<()> {
        self.fill(row)?;
        if !self.full {
            self.write(&entry.encode())?;
            self.rows = row + 1;
        }
        Ok(())
    }

    fn fill(&mut self, rows: u32) -> io::Result<()> {
        self.full |= rows >= ROWS_MAX;
        while self.rows < rows && !self.full {
            self.write(&[0; ENTRY_BYTES as usize])?;
            self.rows += 1;
        }
        Ok(())
    }

    /// Ends it for a catalog of `rows` rows; `None` when a record cannot hold them.
    pub(super) fn finish(
        mut self,
        rows: u32,
        catalog: &CatalogBlocks,
        pieces: Option<&KnownPieces>,
        judged: u32,
    ) -> io::Result<Option<NewRecord>> {
        self.fill(rows)?;
        if self.full {
            return Ok(None);
        }
        for digest in &catalog.blocks {
            self.write(digest.as_bytes())?;
        }
        let hashes = pieces.map_or(&[][..], |pieces| &pieces.hashes);
        self.write(hashes.as_flattened())?;
        let tail = Tail {
            rows,
            pieces: u32::try_from(hashes.len()).map_err(io::Error::other)?,
            catalog_bytes: catalog.size,
            piece_bytes: pieces.map_or(0, |pieces| pieces.piece_bytes),
            judged,
        };
        self.write(&tail.encode())?;
        let RecordWriter { mut out, sha, .. } = self;
        out.write_all(&sha.finalize())?;
        let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok(Some(NewRecord(file)))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sha.update(bytes);
        self.out.write_all(bytes)
    }
}

/// A record that waits for its version to become visible. Dropped, it leaves nothing.
pub(crate) struct NewRecord(NamedTempFile);

impl NewRecord {
    /// Puts it in the place of the one before. Not synced: what a crash leaves of it fails its checksum.
    pub(crate) fn keep(self, path: &Path) -> io::Result<()> {
        self.0.persist(path).map(drop).map_err(|error| error.error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGAN: Began = Began {
        ns: 2_000_000_000_000_000_000,
        fine_device: None,
    };

    fn stat() -> Stat {
        Stat {
            kind: FileKind::File,
            mode: 0o644,
            size: 5,
            allocated: 4096,
            mtime: (1_000_000_000, 7),
            ctime: (1_000_000_001, 8),
            device: 9,
            inode: 10,
            mount: 11,
            uid: 12,
        }
    }

    fn written(pieces: Option<&KnownPieces>) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let mut writer = RecordWriter::new(dir.path()).unwrap();
        writer.set(2, &Entry::new(&stat(), BEGAN).unwrap()).unwrap();
        let catalog = CatalogBlocks {
            size: 300,
            blocks: vec![Digest::EMPTY],
        };
        let record = writer.finish(4, &catalog, pieces, 1).unwrap().unwrap();
        record.keep(&path).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        (dir, path)
    }

    fn pieces() -> KnownPieces {
        KnownPieces {
            piece_bytes: 1 << 20,
            hashes: vec![[0xaa; 20]],
        }
    }

    #[test]
    fn a_record_says_what_was_written() {
        let (_dir, path) = written(Some(&pieces()));
        let record = Record::open(&path).unwrap().unwrap();
        assert_eq!((record.rows, record.judged), (4, 1));
        assert_eq!(record.catalog.size, 300);
        assert_eq!(record.catalog.blocks, [Digest::EMPTY]);
        assert_eq!(record.pieces, Some(pieces()));
        let entry = Entry::new(&stat(), BEGAN).unwrap();
        assert_eq!(record.entries(1..4).unwrap(), [None, Some(entry), None]);
        assert_eq!(record.entries(2..9).unwrap(), [Some(entry), None]);
        assert_eq!(record.entries(7..9).unwrap(), []);
        let mut visited = Vec::new();
        record
            .each(&mut |row, entry| visited.push((row, entry)))
            .unwrap();
        assert_eq!(visited, [(2, entry)]);
        let (_dir, path) = written(None);
        assert_eq!(Record::open(&path).unwrap().unwrap().pieces, None);
        assert!(Record::open(&path.with_extension("no")).unwrap().is_none());
    }

    /// Golden bytes: `docs/formats/ingested.md`.
    #[test]
    fn the_bytes_are_those_of_the_format() {
        let (_dir, path) = written(Some(&pieces()));
        let bytes = std::fs::read(path).unwrap();
        let golden = concat!(
            "6d616e6966736731",
            "0000000000000000000000000000000000000000000000000000000000000000",
            "0000000000000000000000000000000000000000000000000000000000000000",
            "09000000000000000a00000000000000070064a7b3b6e00d08cafee2b3b6e00d",
            "0000000000000000000000000000000000000000000000000000000000000000",
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "04000000010000002c0100000000000000001000000000000100000000000000",
            "62834b4a067d055e43fc65164407625ef71eceff1ddf0859e22f338a14025caa",
        );
        assert_eq!(
            hex::encode(bytes),
            golden,
            "another format needs another digit in the magic, and a word in docs/formats/ingested.md"
        );
    }

    #[test]
    fn damage_of_any_byte_and_any_cut_is_found() {
        let (_dir, path) = written(Some(&pieces()));
        let bytes = std::fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x40;
            std::fs::write(&path, &damaged).unwrap();
            assert!(Record::open(&path).is_err(), "byte {at}");
            std::fs::write(&path, &bytes[..at]).unwrap();
            assert!(Record::open(&path).is_err(), "cut at {at}");
        }
        std::fs::write(&path, [&bytes[..], b"x"].concat()).unwrap();
        assert!(Record::open(&path).is_err());
    }

    #[test]
    fn only_what_settled_before_the_ingest_proves_anything() {
        let settled = stat();
        let ctime_ns = settled.ctime_ns().unwrap();
        let after = |ns, fine_device| Began {
            ns: ctime_ns + ns,
            fine_device,
        };
        let foreign = Some(settled.device + 1);
        for (device, least) in [
            (None, RACY_NS),
            (foreign, RACY_NS),
            (Some(settled.device), RACY_FINE_NS),
        ] {
            assert!(Entry::new(&settled, after(least + 1, device)).is_some());
            assert!(Entry::new(&settled, after(least, device)).is_none());
        }
        let mut whole = settled;
        whole.ctime.1 = 0;
        assert!(Entry::new(&whole, after(RACY_FINE_NS + 1, Some(whole.device))).is_none());
        let mut later = settled;
        later.mtime = (3_000_000_000, 0);
        assert!(Entry::new(&later, BEGAN).is_none());
        let mut never = settled;
        never.ctime = (i64::MAX, 0);
        assert!(Entry::new(&never, BEGAN).is_none());
        let mut link = settled;
        link.kind = FileKind::Symlink;
        assert!(Entry::new(&link, BEGAN).is_none());
    }

    #[test]
    fn any_difference_proves_nothing() {
        let entry = Entry::new(&stat(), BEGAN).unwrap();
        assert!(entry.proves(&stat()));
        type Change = fn(&mut Stat);
        let changes: [Change; 5] = [
            |stat| stat.device += 1,
            |stat| stat.inode += 1,
            |stat| stat.mtime.1 += 1,
            |stat| stat.ctime.1 += 1,
            |stat| stat.kind = FileKind::Device,
        ];
        for (index, change) in changes.into_iter().enumerate() {
            let mut other = stat();
            change(&mut other);
            assert!(!entry.proves(&other), "{index}");
        }
        // The mode is published as it is now, and proves nothing about the content.
        let mut mode = stat();
        mode.mode = 0o755;
        assert!(entry.proves(&mode));
    }

    #[test]
    fn more_rows_than_a_record_holds_are_none() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = RecordWriter::new(dir.path()).unwrap();
        let entry = Entry::new(&stat(), BEGAN).unwrap();
        writer.set(ROWS_MAX, &entry).unwrap();
        writer.set(ROWS_MAX + 1, &entry).unwrap();
        let catalog = CatalogBlocks {
            size: 0,
            blocks: Vec::new(),
        };
        let record = writer.finish(ROWS_MAX + 2, &catalog, None, 1).unwrap();
        assert!(record.is_none());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
