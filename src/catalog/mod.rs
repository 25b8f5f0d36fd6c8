//! The tree of one version as a file that is read by position (format: `docs/formats/catalog.md`).
//!
//! [`Writer`] writes it in bounded memory, breadth first. [`validate`] checks a whole one in a single pass and constant
//! memory, before anything of it is shown. [`Catalog`] reads single rows, and survives any bytes all the same: every row
//! is checked at each use. Where the bytes come from is [`ReadAt`]'s business; this module knows no store and no network.

mod batch;
pub mod diff;
mod directories;
mod draft;
mod header;
pub mod links;
mod reader;
mod row;
pub mod sums;
mod validate;
mod whole;
mod writer;

use std::io;

use bytes::Bytes;

pub use directories::{build_directories, verify_ids};
pub use draft::Draft;
pub use header::{CATALOG_BYTES_MAX, Header};
pub use reader::{Catalog, VisitNamed, VisitRow};
pub use row::{Kind, Row};
pub use validate::validate;
pub use whole::WholeFile;
pub use writer::{NewEntry, Sealed, Times, Writer};

/// The deepest entry: the root has depth 0.
pub const DEPTH_MAX: u32 = 255;

/// The longest symlink target, in bytes.
pub const TARGET_BYTES_MAX: u64 = 4095;

/// The name in a package's root that is kept for manifs itself.
pub const RESERVED_NAME: &[u8] = b".manifs";

/// What a version holds, as its manifest and its catalog's header both say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Regular files.
    pub files: u64,
    /// Directories, the root included.
    pub directories: u64,
    /// Bytes of all files.
    pub bytes: u64,
}

/// Bytes that can be read by position.
pub trait ReadAt: Send + Sync {
    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// [`ReadError`]; what is in `buffer` then means nothing.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError>;
}

/// Why bytes could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Block `block` of the catalog has to be fetched and verified first; then the same read works.
    #[error("block {block} of the catalog is not here")]
    Missing {
        /// Which block, from 0.
        block: u64,
    },
    /// The disk failed, or there are fewer bytes.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl ReadAt for [u8] {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let end = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let start = usize::try_from(offset).map_err(|_| end())?;
        let bytes = self
            .get(start..)
            .and_then(|rest| rest.get(..buffer.len()))
            .ok_or_else(end)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

impl ReadAt for Vec<u8> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        self.as_slice().read_at(offset, buffer)
    }
}

impl ReadAt for Bytes {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        (**self).read_at(offset, buffer)
    }
}

impl ReadAt for std::fs::File {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        Ok(std::os::unix::fs::FileExt::read_exact_at(
            self, buffer, offset,
        )?)
    }
}

impl<R: ReadAt + ?Sized> ReadAt for &R {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        (**self).read_at(offset, buffer)
    }
}

/// The rules of the format, by the words its page uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The length is what the header says, within the limits.
    Length,
    /// The magic number.
    Magic,
    /// Blocks of 1 MiB.
    BlockBytes,
    /// Reserved fields are zero.
    Reserved,
    /// Totals equal header, manifest, and what is there.
    Totals,
    /// The root's id is the manifest's.
    RootId,
    /// One of the three kinds; the root is a directory.
    Kind,
    /// Row 0 has no name and is its own parent.
    Root,
    /// Permission bits only, 0777 for links.
    Mode,
    /// A name is 1 to 255 bytes, not "." or "..", without "/" and NUL.
    Name,
    /// Names ascend strictly.
    NameOrder,
    /// Names lie one after the other.
    NameOffset,
    /// A row lies in its parent's run.
    Parent,
    /// Runs lie one after the other.
    First,
    /// A directory has no more children than there are rows.
    Children,
    /// Sizes within the limits.
    Size,
    /// A target has no NUL.
    Target,
    /// At most 255 levels.
    Depth,
    /// `.manifs` in the root.
    ReservedName,
    /// A file's id is what its digests give.
    FileId,
    /// A link's id is what its target gives.
    LinkId,
    /// A directory's id is what its entries give.
    DirectoryId,
    /// The digest of a whole large file is what its bytes give; only who has all of them can tell.
    WholeDigest,
}

impl Rule {
    /// Returns the rule's word.
    pub fn word(self) -> &'static str {
        match self {
            Rule::Length => "length",
            Rule::Magic => "magic",
            Rule::BlockBytes => "block-bytes",
            Rule::Reserved => "reserved",
            Rule::Totals => "totals",
            Rule::RootId => "root-id",
            Rule::Kind => "kind",
            Rule::Root => "root",
            Rule::Mode => "mode",
            Rule::Name => "name",
            Rule::NameOrder => "name-order",
            Rule::NameOffset => "name-offset",
            Rule::Parent => "parent",
            Rule::First => "first",
            Rule::Children => "children",
            Rule::Size => "size",
            Rule::Target => "target",
            Rule::Depth => "depth",
            Rule::ReservedName => "reserved-name",
            Rule::FileId => "file-id",
            Rule::LinkId => "link-id",
            Rule::DirectoryId => "directory-id",
            Rule::WholeDigest => "whole-digest",
        }
    }
}

/// Why a catalog, or a part of it, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// A rule that concerns the whole.
    #[error("the catalog breaks the rule {word}", word = .0.word())]
    Whole(Rule),
    /// A rule that one row breaks.
    #[error("row {row} breaks the rule {word}", word = .rule.word())]
    Row {
        /// Which row.
        row: u32,
        /// Which rule.
        rule: Rule,
    },
    /// There is no such row.
    #[error("there is no row {0}")]
    NoSuchRow(u32),
    /// The row is not of the kind that was asked for, or has no such block.
    #[error("row {0} has nothing of that kind")]
    WrongKind(u32),
    /// The bytes could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl CatalogError {
    /// Returns the rule that is broken, if one is.
    pub fn rule(&self) -> Option<Rule> {
        match self {
            CatalogError::Whole(rule) | CatalogError::Row { rule, .. } => Some(*rule),
            CatalogError::NoSuchRow(_) | CatalogError::WrongKind(_) | CatalogError::Read(_) => None,
        }
    }

    /// Returns the block that has to be fetched before the same call works.
    pub fn missing_block(&self) -> Option<u64> {
        match self {
            CatalogError::Read(ReadError::Missing { block }) => Some(*block),
            _ => None,
        }
    }

    /// Returns whether a row was asked for that the catalog does not have.
    pub fn is_no_such_row(&self) -> bool {
        matches!(self, CatalogError::NoSuchRow(_))
    }
}

impl From<io::Error> for CatalogError {
    fn from(error: io::Error) -> Self {
        CatalogError::Read(ReadError::Io(error))
    }
}
