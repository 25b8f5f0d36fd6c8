//! The one way to a disk, narrow enough that crashes, torn writes and full disks can be simulated in memory.
//!
//! Files are named by what they are, not by paths: a [`Name`] is made from digests and constants only, so no byte from
//! outside ever becomes a path. [`RealDisk`](super::RealDisk) is a directory, [`MemoryDisk`](super::MemoryDisk) the double.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::Wait;
use crate::block::Digest;

/// A file below `store/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Name {
    /// `r/<xx>/<hex>`: a file of at most one block.
    Small(Digest),
    /// `p/<xx>/<hex>`: a larger file, complete.
    Whole(Digest),
    /// `p/<xx>/<hex>.part`: a larger file with holes where blocks are absent.
    Part(Digest),
    /// `p/<xx>/<hex>.map`: which blocks of the part file are there.
    Map(Digest),
    /// `tmp/<number>`: a file whose name is not known yet.
    Temporary(u64),
    /// `recency`: sizes and order of use when the store was last flushed.
    Recency,
    /// `recency.new`: its successor while it is written.
    RecencyNew,
}

/// A directory below `store/` that holds data files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Folder {
    /// `r/<xx>`.
    Small(u8),
    /// `p/<xx>`.
    Large(u8),
}

impl Name {
    /// Returns the directory of a data file; none for what lies elsewhere.
    pub fn folder(&self) -> Option<Folder> {
        match self {
            Name::Small(id) => Some(Folder::Small(id.as_bytes()[0])),
            Name::Whole(id) | Name::Part(id) | Name::Map(id) => {
                Some(Folder::Large(id.as_bytes()[0]))
            }
            Name::Temporary(_) | Name::Recency | Name::RecencyNew => None,
        }
    }
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// For reading and writing; with [`Wait::No`] only if no disk has to be asked for it.
    Existing(Wait),
    /// For reading and writing; made when it, or its directory, is missing, and emptied when not.
    New,
}

/// A file's length and cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stat {
    /// Bytes.
    pub len: u64,
    /// Bytes it takes on the disk.
    pub allocated: u64,
}

/// What a directory takes beside its data files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Listed {
    /// Bytes of the directory itself; 0 when it is missing.
    pub folder: u64,
    /// Bytes of files in it that are none of ours.
    pub strangers: u64,
}

/// Files below one directory. Errors are the system's; a file that is not there is `NotFound`, and what would have to
/// wait although it may not is `WouldBlock`.
pub trait Disk: Send + Sync + 'static {
    /// Opens a file.
    ///
    /// # Errors
    /// The system's, here and below.
    fn open(&self, name: Name, access: Access) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens, reads as [`DiskFile::read_at`] does, and closes: the way of small files.
    ///
    /// # Errors
    /// The system's.
    fn read(&self, name: Name, offset: u64, buffer: &mut [u8], wait: Wait) -> io::Result<usize>;

    /// Opens, reads up to `len` bytes from the start into a new vector, and closes.
    ///
    /// # Errors
    /// The system's.
    fn read_vec(&self, name: Name, len: usize) -> io::Result<Vec<u8>>;

    /// Moves a file, over one that is there.
    ///
    /// # Errors
    /// The system's.
    fn rename(&self, from: Name, to: Name) -> io::Result<()>;

    /// Removes a file; one that is not there is fine.
    ///
    /// # Errors
    /// The system's.
    fn remove(&self, name: Name) -> io::Result<()>;

    /// Returns length and space.
    ///
    /// # Errors
    /// The system's.
    fn stat(&self, name: Name) -> io::Result<Stat>;

    /// Visits each data file of a directory. A missing directory is an empty one.
    ///
    /// # Errors
    /// The system's.
    fn list(&self, folder: Folder, visit: &mut dyn FnMut(Name)) -> io::Result<Listed>;

    /// Returns the bytes taken by what is no data file: directories above them, the index, the summary, strangers.
    ///
    /// # Errors
    /// The system's.
    fn other_bytes(&self) -> io::Result<u64>;

    /// Makes everything durable. A write that failed after it was accepted is told here.
    ///
    /// # Errors
    /// The system's.
    fn sync(&self) -> io::Result<()>;

    /// Returns the unit in which space is given out, in bytes.
    fn granule(&self) -> u64;
}

/// One open file.
pub trait DiskFile: Send + Sync {
    /// Reads until `buffer` is full or the file ends; with [`Wait::No`] only what needs no disk, else `WouldBlock`.
    ///
    /// # Errors
    /// The system's.
    fn read_at(&self, offset: u64, buffer: &mut [u8], wait: Wait) -> io::Result<usize>;

    /// Reads up to `len` bytes into a new vector, fewer only at the end of the file.
    ///
    /// # Errors
    /// The system's.
    fn read_vec(&self, offset: u64, len: usize) -> io::Result<Vec<u8>>;

    /// Writes all of `bytes`; after an error some of them may be written.
    ///
    /// # Errors
    /// The system's.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes a span a hole, which takes no space and reads as zeros. The length stays.
    ///
    /// # Errors
    /// The system's.
    fn punch(&self, span: Range<u64>) -> io::Result<()>;

    /// Sets the length; what is added is a hole.
    ///
    /// # Errors
    /// The system's.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Returns length and space.
    ///
    /// # Errors
    /// The system's.
    fn stat(&self) -> io::Result<Stat>;

    /// Returns the first span at or after `offset` that is no hole.
    ///
    /// # Errors
    /// The system's.
    fn data_after(&self, offset: u64) -> io::Result<Option<Range<u64>>>;
}
