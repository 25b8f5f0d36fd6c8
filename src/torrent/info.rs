//! The info dictionary: what the info hash is of.

use bytes::Bytes;
use sha1::{Digest as _, Sha1};

use super::{CATALOG_PATH, INFO_BYTES_MAX, Layout, NotOffered, Sha1Hash, TorrentError};
use crate::catalog::{Catalog, CatalogError, Kind, ReadAt, Row, links};

/// Bytes of a piece's hash.
const HASH_BYTES: u64 = 20;

/// The owner's right to execute, which BEP 47 knows as attribute `x`.
const EXECUTABLE: u16 = 0o100;

/// An info dictionary without the hashes of its pieces.
#[derive(Debug)]
pub struct Outline {
    /// Everything before the hashes.
    head: Vec<u8>,
    pieces: u64,
}

/// An info dictionary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    bytes: Bytes,
    hash: Sha1Hash,
}

/// Bytes that are not the info dictionary in question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InfoError {
    /// There are too many of them.
    #[error("larger than 16 MiB")]
    Length,
    /// Their SHA-1 is another.
    #[error("the info hash is another")]
    Hash,
}

impl Outline {
    /// Writes everything but the hashes for the tree of `catalog`, whose name is `name`.
    ///
    /// The catalog need not be finished: kinds, modes, sizes, names and targets are read, but no id and no digest.
    ///
    /// # Errors
    /// [`TorrentError`]
    pub fn new<R: ReadAt>(
        name: &str,
        catalog: &Catalog<R>,
        layout: &Layout,
    ) -> Result<Outline, TorrentError> {
        let mut writer = Writer {
            out: b"d5:filesl".to_vec(),
            hash_bytes: HASH_BYTES * layout.piece_count(),
            end: 0,
            piece_bytes: layout.piece_bytes(),
        };
        let (directory, file) = (CATALOG_PATH[0].as_bytes(), CATALOG_PATH[1].as_bytes());
        writer.file("", layout.catalog_bytes(), &[directory, file], None)?;
        // Always written, also before nothing.
        writer.pad()?;
        let mut paths = Paths::new(catalog);
        for large in [false, true] {
            catalog.scan_named::<TorrentError>(0..catalog.rows(), &mut |row, name| {
                if row.kind() == Kind::Directory
                    || large == (row.kind() == Kind::Symlink || layout.is_small(row.size()))
                {
                    return Ok(());
                }
                if large {
                    writer.pad()?;
                }
                let parent = paths.of(row.parent())?;
                let path: Vec<&[u8]> = parent.iter().map(|part| &part[..]).chain([name]).collect();
                if row.kind() == Kind::Symlink {
                    let target = link_target(catalog, row, parent)?;
                    writer.file("l", 0, &path, Some(&target))
                } else if row.mode() & EXECUTABLE != 0 {
                    writer.file("x", row.size(), &path, None)
                } else {
                    writer.file("", row.size(), &path, None)
                }
            })?;
        }
        let mut head = writer.out;
        head.extend_from_slice(b"e4:name");
        text(&mut head, name.as_bytes());
        head.extend_from_slice(
            format!("12:piece lengthi{}e6:pieces", layout.piece_bytes()).as_bytes(),
        );
        let outline = Outline {
            head,
            pieces: layout.piece_count(),
        };
        if outline.bytes() > INFO_BYTES_MAX as u64 {
            return Err(NotOffered::Info.into());
        }
        Ok(outline)
    }

    /// Returns the length of the whole dictionary.
    pub fn bytes(&self) -> u64 {
        let hashes = HASH_BYTES * self.pieces;
        let digits = hashes.to_string().len() as u64;
        // The colon after the number, the end of the dictionary.
        self.head.len() as u64 + digits + 1 + hashes + 1
    }

    /// Adds the hashes; none when there are more or fewer than there are pieces.
    pub fn finish(self, hashes: &[Sha1Hash]) -> Option<Info> {
        if hashes.len() as u64 != self.pieces {
            return None;
        }
        let mut bytes = self.head;
        text(&mut bytes, hashes.as_flattened());
        bytes.push(b'e');
        Some(Info::new(bytes.into()))
    }
}

impl Info {
    fn new(bytes: Bytes) -> Info {
        let hash = Sha1::digest(&bytes).into();
        Info { bytes, hash }
    }

    /// Takes bytes that are to be the dictionary with this info hash.
    ///
    /// # Errors
    /// [`InfoError`]
    pub fn verify(bytes: Bytes, hash: &Sha1Hash) -> Result<Info, InfoError> {
        if bytes.len() > INFO_BYTES_MAX {
            return Err(InfoError::Length);
        }
        let info = Info::new(bytes);
        if info.hash == *hash {
            Ok(info)
        } else {
            Err(InfoError::Hash)
        }
    }

    /// Returns the bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Returns the info hash.
    pub fn hash(&self) -> Sha1Hash {
        self.hash
    }
}

/// Writes the entries of `files`.
struct Writer {
    out: Vec<u8>,
    /// What the hashes will add.
    hash_bytes: u64,
    /// Where the last file ends in the torrent.
    end: u64,
    piece_bytes: u64,
}

impl Writer {
    fn file(
        &mut self,
        attributes: &str,
        len: u64,
        path: &[&[u8]],
        target: Option<&[Vec<u8>]>,
    ) -> Result<(), TorrentError> {
        let out = &mut self.out;
        out.push(b'd');
        if !attributes.is_empty() {
            out.extend_from_slice(b"4:attr");
            text(out, attributes.as_bytes());
        }
        out.extend_from_slice(format!("6:lengthi{len}e4:pathl").as_bytes());
        for part in path {
            text(out, part);
        }
        out.push(b'e');
        if let Some(target) = target {
            out.extend_from_slice(b"12:symlink pathl");
            for part in target {
                text(out, part);
            }
            out.push(b'e');
        }
        out.push(b'e');
        self.end += len;
        if self.out.len() as u64 + self.hash_bytes > INFO_BYTES_MAX as u64 {
            return Err(NotOffered::Info.into());
        }
        Ok(())
    }

    /// Fills up to the next piece.
    fn pad(&mut self) -> Result<(), TorrentError> {
        match self.end.next_multiple_of(self.piece_bytes) - self.end {
            0 => Ok(()),
            len => {
                let len_text = len.to_string();
                self.file("p", len, &[b".pad", len_text.as_bytes()], None)
            }
        }
    }
}

/// The paths of directories; the last one is kept, since a directory's children are neighbours.
struct Paths<'a, R> {
    catalog: &'a Catalog<R>,
    last: (u32, Vec<Vec<u8>>),
}

impl<'a, R: ReadAt> Paths<'a, R> {
    fn new(catalog: &'a Catalog<R>) -> Self {
        Paths {
            catalog,
            last: (0, Vec::new()),
        }
    }

    fn of(&mut self, directory: u32) -> Result<&[Vec<u8>], CatalogError> {
        if self.last.0 != directory {
            let path = self.catalog.path(directory)?;
            let parts = path.split(|byte| *byte == b'/').map(<[u8]>::to_vec);
            self.last = (directory, parts.filter(|part| !part.is_empty()).collect());
        }
        Ok(&self.last.1)
    }
}

/// Resolves a link's target by its text, from the torrent's root: all that BEP 47 can say.
fn link_target<R: ReadAt>(
    catalog: &Catalog<R>,
    link: &Row,
    parent: &[Vec<u8>],
) -> Result<Vec<Vec<u8>>, TorrentError> {
    if links::leaves(catalog, link.number())? {
        let row = link.number();
        return Err(NotOffered::Link { row }.into());
    }
    let mut parts = parent.to_vec();
    for part in catalog.target(link)?.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            name => parts.push(name.to_vec()),
        }
    }
    Ok(parts)
}

/// Writes a byte string of bencode.
fn text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(text.len().to_string().as_bytes());
    out.push(b':');
    out.extend_from_slice(text);
}
