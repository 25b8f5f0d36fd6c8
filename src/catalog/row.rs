//! One row of 64 bytes: a file, a directory or a symlink.

#![expect(
    clippy::cast_possible_truncation,
    reason = "lengths fit usize on the 64-bit machines that the crate insists on"
)]

use std::ops::Range;

use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::header::Header;
use super::{CatalogError, Rule, TARGET_BYTES_MAX};
use crate::block::{BLOCK_BYTES, Digest, FILE_BYTES_MAX, FileRef, block_count};
use crate::unixfs::Cid;

/// Bytes of a row.
pub(super) const ROW_BYTES: u64 = 64;

const DIRECTORY: u8 = 1;
const FILE: u8 = 2;
const SYMLINK: u8 = 3;

/// The permission bits: all that a mode may have.
const MODE_MASK: u16 = 0o777;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct RawRow {
    name: U32,
    name_len: u8,
    kind: u8,
    mode: U16,
    size: U64,
    mtime: I64,
    parent: U32,
    first: U32,
    id: [u8; 32],
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
}

/// A row whose fields are within the format's limits and point into its catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub(super) number: u32,
    pub(super) name: u32,
    pub(super) name_len: u8,
    pub(super) kind: Kind,
    pub(super) mode: u16,
    pub(super) size: u64,
    pub(super) mtime_ns: i64,
    pub(super) parent: u32,
    pub(super) first: u32,
    pub(super) id: Digest,
}

impl Row {
    /// Decodes a row and checks what can be checked without another one.
    pub(super) fn parse(raw: &RawRow, number: u32, header: &Header) -> Result<Row, CatalogError> {
        let broken = |rule| Err(CatalogError::Row { row: number, rule });
        let kind = match raw.kind {
            DIRECTORY => Kind::Directory,
            FILE => Kind::File,
            SYMLINK => Kind::Symlink,
            _ => return broken(Rule::Kind),
        };
        let row = Row {
            number,
            name: raw.name.get(),
            name_len: raw.name_len,
            kind,
            mode: raw.mode.get(),
            size: raw.size.get(),
            mtime_ns: raw.mtime.get(),
            parent: raw.parent.get(),
            first: raw.first.get(),
            id: Digest::from_bytes(raw.id),
        };
        if row.mode & !MODE_MASK != 0 || (kind == Kind::Symlink && row.mode != MODE_MASK) {
            return broken(Rule::Mode);
        }
        let end = u64::from(row.first).checked_add(row.size);
        match kind {
            Kind::Directory if row.size >= u64::from(header.rows) => return broken(Rule::Children),
            Kind::Directory if row.size == 0 && row.first != 0 => return broken(Rule::First),
            // A directory's children come after it, within the rows.
            Kind::Directory
                if row.size > 0 && (row.first <= number || end > Some(header.rows.into())) =>
            {
                return broken(Rule::First);
            }
            Kind::File if row.size > FILE_BYTES_MAX => return broken(Rule::Size),
            Kind::File if row.size > BLOCK_BYTES => {
                let run = u64::from(row.first).checked_add(1 + block_count(row.size));
                if run.is_none_or(|end| end > header.digests) {
                    return broken(Rule::FileId);
                }
            }
            Kind::Symlink if row.size == 0 || row.size > TARGET_BYTES_MAX => {
                return broken(Rule::Size);
            }
            Kind::File | Kind::Symlink if row.first != 0 => return broken(Rule::First),
            _ => {}
        }
        if row.name_end() > header.names {
            return broken(Rule::NameOffset);
        }
        if number == 0 {
            if kind != Kind::Directory {
                return broken(Rule::Kind);
            }
            if row.parent != 0 || row.name_len != 0 || row.name != 0 {
                return broken(Rule::Root);
            }
        } else {
            if row.name_len == 0 {
                return broken(Rule::Name);
            }
            if row.parent >= number {
                return broken(Rule::Parent);
            }
        }
        Ok(row)
    }

    pub(super) fn encode(&self) -> [u8; ROW_BYTES as usize] {
        zerocopy::transmute!(RawRow {
            name: U32::new(self.name),
            name_len: self.name_len,
            kind: match self.kind {
                Kind::Directory => DIRECTORY,
                Kind::File => FILE,
                Kind::Symlink => SYMLINK,
            },
            mode: U16::new(self.mode),
            size: U64::new(self.size),
            mtime: I64::new(self.mtime_ns),
            parent: U32::new(self.parent),
            first: U32::new(self.first),
            id: *self.id.as_bytes(),
        })
    }

    /// Returns where the row's bytes among the names end.
    pub(super) fn name_end(&self) -> u64 {
        let target = if self.kind == Kind::Symlink {
            self.size
        } else {
            0
        };
        u64::from(self.name) + u64::from(self.name_len) + target
    }

    /// Returns its number.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Returns what it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns the permission bits.
    pub fn mode(&self) -> u16 {
        self.mode
    }

    /// Returns the bytes of a file or of a link's target, or the number of a directory's children.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the modification time in nanoseconds since 1970.
    pub fn mtime_ns(&self) -> i64 {
        self.mtime_ns
    }

    /// Returns the row of the directory that it lies in; the root's is its own.
    pub fn parent(&self) -> u32 {
        self.parent
    }

    /// Returns the rows of a directory's children; empty for everything else.
    pub fn children(&self) -> Range<u32> {
        match self.kind {
            // Checked in `parse`: no more children than rows, so the sum fits.
            Kind::Directory => {
                self.first
                    ..self
                        .first
                        .saturating_add(u32::try_from(self.size).unwrap_or(0))
            }
            Kind::File | Kind::Symlink => 0..0,
        }
    }

    /// Returns the digest of the entry's UnixFS node; of the bytes themselves for a file of at most one block.
    pub fn id(&self) -> Digest {
        self.id
    }

    /// Returns the CID by which IPFS knows the entry.
    pub fn cid(&self) -> Cid {
        if self.kind == Kind::File && self.size <= BLOCK_BYTES {
            Cid::raw(self.id)
        } else {
            Cid::dag_pb(self.id)
        }
    }

    /// Returns the file as the store knows it.
    pub fn file(&self) -> FileRef {
        FileRef {
            id: self.id,
            size: if self.kind == Kind::File {
                self.size
            } else {
                0
            },
        }
    }

    /// Returns how many blocks the file has; 0 for everything else.
    pub fn blocks(&self) -> u64 {
        if self.kind == Kind::File {
            block_count(self.size)
        } else {
            0
        }
    }
}
