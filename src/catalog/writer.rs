//! Writes a catalog breadth first, in bounded memory: rows, digests and names grow in temporary files.
//!
//! Structure and content come apart: [`Writer::add_children`] lays a directory's rows down and gives each large file
//! its run of digests; the ids and digests follow through `&self`, out of order, from as many threads as hash.

#![expect(
    clippy::cast_possible_truncation,
    reason = "lengths fit usize on the 64-bit machines that the crate insists on"
)]

use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::header::{DIGEST_BYTES, HEADER_BYTES, Header};
use super::row::{ROW_BYTES, Row};
use super::{
    Catalog, CatalogError, DEPTH_MAX, Kind, RESERVED_NAME, ReadAt, ReadError, Rule,
    TARGET_BYTES_MAX, Totals, build_directories,
};
use crate::block::{BLOCK_BYTES, Digest, FILE_BYTES_MAX, block_count};
use crate::unixfs::{Cid, Node, symlink};

/// Rows that the last pass rewrites at once.
const PATCH_ROWS: u32 = 1024;

/// Rows that [`Writer::next_directory`] reads at once.
const AHEAD_ROWS: u32 = 1024;

/// Rows that [`Writer::set_ids`] writes at once.
const ID_ROWS: u32 = 1024;

/// Where an id lies in its row.
const ID_OFFSET: u64 = 32;

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEntry {
    /// Its name.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits; of a link they are 0777, whatever stands here.
    pub mode: u16,
    /// Nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Bytes of a file.
    pub size: u64,
    /// Where a link points.
    pub target: Vec<u8>,
}

/// Which times directories and links get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// Those that they were given.
    Keep,
    /// The newest regular file's, 0 without any: what a copy of the tree would have does not matter then.
    Newest,
}

/// A finished catalog.
#[derive(Debug)]
pub struct Sealed {
    /// Its bytes, in an unnamed temporary file.
    pub file: File,
    /// How many.
    pub len: u64,
    /// How many rows.
    pub rows: u32,
    /// What it holds.
    pub totals: Totals,
    /// The CID of the version's root.
    pub root: Cid,
}

/// A catalog that is being written.
pub struct Writer {
    directory: PathBuf,
    pub(super) rows: File,
    pub(super) digests: File,
    pub(super) names: BufWriter<File>,
    row_count: u32,
    digest_count: u64,
    name_bytes: u64,
    totals: Totals,
    newest_ns: Option<i64>,
    /// The next row that `next_directory` looks at.
    next: u32,
    /// Depth by level: the first row of the level after the one `next` is in.
    level_end: u32,
    depth: u32,
    /// The directory whose path was asked for last, which is often the next one's parent or sibling.
    last_parent: (u32, Vec<u8>),
    /// Rows from that number on as they were when they were read.
    ahead: (u32, Vec<u8>),
}

impl Writer {
    /// Starts a catalog whose root directory has these attributes. Temporary files go to `directory`.
    ///
    /// # Errors
    /// The system's.
    pub fn new(directory: &Path, mode: u16, mtime_ns: i64) -> io::Result<Writer> {
        let temporary = || tempfile::tempfile_in(directory);
        let root = Row {
            number: 0,
            name: 0,
            name_len: 0,
            kind: Kind::Directory,
            mode: mode & 0o777,
            size: 0,
            mtime_ns,
            parent: 0,
            first: 0,
            id: Digest::EMPTY,
        };
        let rows = temporary()?;
        rows.write_all_at(&root.encode(), 0)?;
        Ok(Writer {
            directory: directory.to_path_buf(),
            rows,
            digests: temporary()?,
            names: BufWriter::new(temporary()?),
            row_count: 1,
            digest_count: 0,
            name_bytes: 0,
            totals: Totals {
                directories: 1,
                ..Totals::default()
            },
            newest_ns: None,
            next: 0,
            level_end: 1,
            depth: 0,
            last_parent: (0, Vec::new()),
            ahead: (0, Vec::new()),
        })
    }

    /// Returns what has been added so far.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Returns the next directory to be listed, breadth first, with its path; `None` when all are.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub fn next_directory(&mut self) -> Result<Option<(u32, Vec<u8>)>, CatalogError> {
        while self.next < self.row_count {
            let number = self.next;
            if number == self.level_end {
                self.level_end = self.row_count;
                self.depth += 1;
            }
            self.next += 1;
            let row = self.row_ahead(number)?;
            if row.kind == Kind::Directory {
                return Ok(Some((number, self.path(&row)?)));
            }
        }
        Ok(None)
    }

    /// As [`Writer::next_directory`], but `None` also when the next one lies deeper than the last: so that directories may
    /// be asked for before those before them have their children.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub fn next_in_level(&mut self) -> Result<Option<(u32, Vec<u8>)>, CatalogError> {
        while self.next < self.level_end {
            let number = self.next;
            self.next += 1;
            let row = self.row_ahead(number)?;
            if row.kind == Kind::Directory {
                return Ok(Some((number, self.path(&row)?)));
            }
        }
        Ok(None)
    }

    /// Adds all children of a directory that [`Writer::next_directory`] or [`Writer::next_in_level`] gave, in that order. Returns the first one's row.
    ///
    /// # Errors
    /// [`CatalogError::Row`] for entries that the format cannot hold; the names have to ascend.
    pub fn add_children(
        &mut self,
        directory: u32,
        entries: &[NewEntry],
    ) -> Result<u32, CatalogError> {
        let first = self.row_count;
        if entries.is_empty() {
            return Ok(first);
        }
        if self.depth >= DEPTH_MAX {
            return Err(CatalogError::Row {
                row: directory,
                rule: Rule::Depth,
            });
        }
        let mut rows = Vec::with_capacity(entries.len() * ROW_BYTES as usize);
        let mut previous: &[u8] = b"";
        for entry in entries {
            let row = self.lay(directory, entry, previous)?;
            previous = &entry.name;
            rows.extend_from_slice(&row.encode());
        }
        self.rows
            .write_all_at(&rows, ROW_BYTES * u64::from(first))?;
        let mut parent = self.row(directory)?;
        parent.first = first;
        parent.size = entries.len() as u64;
        self.rows
            .write_all_at(&parent.encode(), ROW_BYTES * u64::from(directory))?;
        Ok(first)
    }

    fn lay(&mut self, parent: u32, entry: &NewEntry, previous: &[u8]) -> Result<Row, CatalogError> {
        let number = self.row_count;
        let broken = |rule| CatalogError::Row { row: number, rule };
        let name_len = u8::try_from(entry.name.len())
            .ok()
            .filter(|len| *len > 0)
            .ok_or(broken(Rule::Name))?;
        if matches!(&entry.name[..], b"." | b"..")
            || entry.name.iter().any(|byte| matches!(byte, 0 | b'/'))
        {
            return Err(broken(Rule::Name));
        }
        if parent == 0 && entry.name == RESERVED_NAME {
            return Err(broken(Rule::ReservedName));
        }
        if entry.name[..] <= *previous {
            return Err(broken(Rule::NameOrder));
        }
        let mut row = Row {
            number,
            name: u32::try_from(self.name_bytes).map_err(|_| broken(Rule::Length))?,
            name_len,
            kind: entry.kind,
            mode: entry.mode & 0o777,
            size: 0,
            mtime_ns: entry.mtime_ns,
            parent,
            first: 0,
            id: Digest::EMPTY,
        };
        self.names.write_all(&entry.name)?;
        match entry.kind {
            Kind::Directory => self.totals.directories += 1,
            Kind::File => {
                if entry.size > FILE_BYTES_MAX {
                    return Err(broken(Rule::Size));
                }
                row.size = entry.size;
                self.totals.files += 1;
                self.totals.bytes = self
                    .totals
                    .bytes
                    .checked_add(entry.size)
                    .ok_or(broken(Rule::Totals))?;
                self.newest_ns = self.newest_ns.max(Some(entry.mtime_ns));
                if entry.size > BLOCK_BYTES {
                    row.first =
                        u32::try_from(self.digest_count).map_err(|_| broken(Rule::Length))?;
                    self.digest_count += 1 + block_count(entry.size);
                }
            }
            Kind::Symlink => {
                row.mode = 0o777;
                row.size = entry.target.len() as u64;
                if row.size == 0 || row.size > TARGET_BYTES_MAX {
                    return Err(broken(Rule::Size));
                }
                if entry.target.contains(&0) {
                    return Err(broken(Rule::Target));
                }
                self.names.write_all(&entry.target)?;
                row.id = symlink::link(&entry.target).cid.digest();
            }
        }
        self.name_bytes = row.name_end();
        self.row_count = self.row_count.checked_add(1).ok_or(broken(Rule::Length))?;
        Ok(row)
    }

    /// Says what a file of at most one block hashes to.
    ///
    /// # Errors
    /// The system's.
    pub fn set_id(&self, row: u32, id: Digest) -> io::Result<()> {
        self.rows
            .write_all_at(id.as_bytes(), ROW_BYTES * u64::from(row) + ID_OFFSET)
    }

    /// As [`Writer::set_id`], of several files by ascending row, of which nobody sets any meanwhile: rows that lie close
    /// together are written at once.
    ///
    /// # Errors
    /// The system's.
    pub fn set_ids(&self, ids: &[(u32, Digest)]) -> io::Result<()> {
        let mut rest = ids;
        while let Some((first, _)) = rest.first() {
            let close = |(row, _): &(u32, Digest)| row.saturating_sub(*first) < ID_ROWS;
            let (part, after) = rest.split_at(rest.partition_point(close));
            let Some((last, _)) = part.last() else { break };
            let count = last.saturating_sub(*first) + 1;
            let at = ROW_BYTES * u64::from(*first);
            let mut rows = vec![[0; ROW_BYTES as usize]; count as usize];
            self.rows.read_exact_at(rows.as_flattened_mut(), at)?;
            for (row, id) in part {
                if let Some(bytes) = rows.get_mut(row.saturating_sub(*first) as usize) {
                    bytes[ID_OFFSET as usize..][..DIGEST_BYTES as usize]
                        .copy_from_slice(id.as_bytes());
                }
            }
            self.rows.write_all_at(rows.as_flattened(), at)?;
            rest = after;
        }
        Ok(())
    }

    /// Says what some blocks of a larger file hash to, from block `first`.
    ///
    /// # Errors
    /// [`CatalogError::WrongKind`] for rows that are no such file.
    pub fn set_digests(
        &self,
        row: u32,
        first: u64,
        digests: &[Digest],
    ) -> Result<(), CatalogError> {
        let found = self.large(row, first + digests.len() as u64)?;
        let bytes: Vec<u8> = digests
            .iter()
            .flat_map(|digest| *digest.as_bytes())
            .collect();
        Ok(self
            .digests
            .write_all_at(&bytes, (u64::from(found.first) + 1 + first) * DIGEST_BYTES)?)
    }

    /// Says what a larger file as a whole hashes to, and its UnixFS root.
    ///
    /// # Errors
    /// [`CatalogError::WrongKind`] for rows that are no such file.
    pub fn set_whole(&self, row: u32, whole: Digest, id: Digest) -> Result<(), CatalogError> {
        let found = self.large(row, 0)?;
        self.digests
            .write_all_at(whole.as_bytes(), u64::from(found.first) * DIGEST_BYTES)?;
        Ok(self.set_id(row, id)?)
    }

    /// Finishes: gives directories and links their times, and directories their ids.
    ///
    /// `emit` gets every directory's nodes, with the directory's row.
    ///
    /// # Errors
    /// [`CatalogError`]; [`Rule::Length`] when the catalog would be larger than the format allows.
    pub fn finish(
        mut self,
        times: Times,
        emit: &mut dyn FnMut(u32, Node<'_>) -> io::Result<()>,
    ) -> Result<Sealed, CatalogError> {
        self.names.flush()?;
        if times == Times::Newest {
            self.patch_times(self.newest_ns.unwrap_or(0))?;
        }
        let header = Header {
            rows: self.row_count,
            digests: self.digest_count,
            names: self.name_bytes,
            totals: self.totals,
        };
        let bytes = header.encode().ok_or(CatalogError::Whole(Rule::Length))?;
        let mut file = tempfile::tempfile_in(&self.directory)?;
        file.write_all(&bytes)?;
        let mut names = self
            .names
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        for part in [&mut self.rows, &mut self.digests, &mut names] {
            part.rewind()?;
            io::copy(part, &mut file)?;
        }
        let len = header.len();
        // Files that were never given their digests leave the part short, as would a bug of the caller.
        if file.metadata()?.len() != len {
            return Err(CatalogError::Whole(Rule::Length));
        }
        let catalog = Catalog::open(&file, len)?;
        let mut set_id = |row: &Row, link: crate::unixfs::Link| {
            let at = HEADER_BYTES + ROW_BYTES * u64::from(row.number) + ID_OFFSET;
            Ok(file.write_all_at(link.cid.digest().as_bytes(), at)?)
        };
        let root = build_directories(&catalog, emit, &mut set_id)?.cid;
        Ok(Sealed {
            file,
            len,
            rows: self.row_count,
            totals: self.totals,
            root,
        })
    }

    fn patch_times(&self, mtime_ns: i64) -> Result<(), CatalogError> {
        let header = self.header();
        let mut number = 0;
        while number < self.row_count {
            let count = PATCH_ROWS.min(self.row_count - number);
            let mut bytes = vec![0; count as usize * ROW_BYTES as usize];
            self.rows
                .read_exact_at(&mut bytes, ROW_BYTES * u64::from(number))?;
            let (rows, _) = bytes.as_chunks_mut::<{ ROW_BYTES as usize }>();
            for (number, bytes) in (number..).zip(rows) {
                let mut row = Row::parse(zerocopy::transmute_ref!(&*bytes), number, &header)?;
                if row.kind != Kind::File {
                    row.mtime_ns = mtime_ns;
                    *bytes = row.encode();
                }
            }
            self.rows
                .write_all_at(&bytes, ROW_BYTES * u64::from(number))?;
            number += count;
        }
        Ok(())
    }

    fn large(&self, row: u32, blocks: u64) -> Result<Row, CatalogError> {
        let found = self.row(row)?;
        let large = found.kind == Kind::File
            && found.size > BLOCK_BYTES
            && blocks <= block_count(found.size);
        if large {
            Ok(found)
        } else {
            Err(CatalogError::WrongKind(row))
        }
    }

    /// Reads the row that [`Writer::next_directory`] looks at, and many that follow. Of these only ids may change before
    /// they are looked at.
    fn row_ahead(&mut self, number: u32) -> Result<Row, CatalogError> {
        let ahead = (self.ahead.1.len() / ROW_BYTES as usize) as u64;
        if u64::from(number - self.ahead.0) >= ahead {
            let count = AHEAD_ROWS.min(self.row_count - number);
            self.ahead.1.resize(count as usize * ROW_BYTES as usize, 0);
            self.ahead.0 = number;
            let at = ROW_BYTES * u64::from(number);
            if let Err(error) = self.rows.read_exact_at(&mut self.ahead.1, at) {
                self.ahead.1.clear();
                return Err(error.into());
            }
        }
        let (rows, _) = self.ahead.1.as_chunks::<{ ROW_BYTES as usize }>();
        match rows.get((number - self.ahead.0) as usize) {
            Some(bytes) => Row::parse(zerocopy::transmute_ref!(bytes), number, &self.header()),
            None => Err(CatalogError::NoSuchRow(number)),
        }
    }

    fn row(&self, number: u32) -> Result<Row, CatalogError> {
        let mut bytes = [0; ROW_BYTES as usize];
        self.rows
            .read_exact_at(&mut bytes, ROW_BYTES * u64::from(number))?;
        Row::parse(zerocopy::transmute_ref!(&bytes), number, &self.header())
    }

    /// A header that lets every row parse: runs and names are checked against what there is so far.
    pub(super) fn header(&self) -> Header {
        Header {
            rows: self.row_count,
            digests: self.digest_count,
            names: self.name_bytes,
            totals: self.totals,
        }
    }

    fn path(&mut self, row: &Row) -> Result<Vec<u8>, CatalogError> {
        if row.number == 0 {
            return Ok(Vec::new());
        }
        // The names so far have to be readable by position.
        self.names.flush()?;
        if self.last_parent.0 != row.parent || row.parent == 0 {
            let parent = self.climb(row.parent)?;
            self.last_parent = (row.parent, parent);
        }
        let mut path = self.last_parent.1.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&self.name(row)?);
        Ok(path)
    }

    fn climb(&self, mut number: u32) -> Result<Vec<u8>, CatalogError> {
        let mut names = Vec::new();
        // Parents have lower rows, so this ends.
        while number != 0 {
            let row = self.row(number)?;
            names.push(self.name(&row)?);
            number = row.parent;
        }
        names.reverse();
        Ok(names.join(&b'/'))
    }

    fn name(&self, row: &Row) -> Result<Vec<u8>, ReadError> {
        let mut name = vec![0; row.name_len.into()];
        ReadAt::read_at(self.names.get_ref(), row.name.into(), &mut name)?;
        Ok(name)
    }
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Writer({} rows)", self.row_count)
    }
}
