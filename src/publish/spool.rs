//! The files that the walk found, in a temporary file, so that their number does not matter to memory.
//!
//! Written and read once, front to back: a directory, then its files. It lives as long as one job, so its form is
//! nobody else's business.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::Path;

use super::disk::{FileKind, Stat};
use crate::block::Digest;

/// Bytes that are written and read at once.
const BUFFER_BYTES: usize = 256 << 10;

/// A directory that has files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SpooledDirectory {
    pub(crate) path: Vec<u8>,
    /// None when it is not on disk, and all its files stay from the version beneath.
    pub(crate) stat: Option<Stat>,
    pub(crate) files: u32,
}

/// A regular file, to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SpooledFile {
    pub(crate) row: u32,
    pub(crate) name: Vec<u8>,
    pub(crate) stat: Stat,
    /// Where the last version has its content, if that is known.
    pub(crate) known: Option<KnownFile>,
    /// It stays from the version beneath, which is the one where its content is known. Of `stat` only the size counts.
    pub(crate) kept: bool,
}

/// A file whose content is known without being read, and stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KnownFile {
    /// The row of the last version.
    pub(crate) row: u32,
    /// The file's id.
    pub(crate) id: Digest,
}

/// Takes what the walk finds.
pub(crate) struct SpoolWriter(BufWriter<File>);

impl SpoolWriter {
    /// Makes an unnamed file in `directory`.
    pub(crate) fn new(directory: &Path) -> io::Result<SpoolWriter> {
        let file = tempfile::tempfile_in(directory)?;
        Ok(SpoolWriter(BufWriter::with_capacity(BUFFER_BYTES, file)))
    }

    /// Adds a directory; its files have to follow.
    pub(crate) fn directory(&mut self, directory: &SpooledDirectory) -> io::Result<()> {
        self.bytes(&directory.path)?;
        self.0.write_all(&[u8::from(directory.stat.is_some())])?;
        if let Some(stat) = &directory.stat {
            self.stat(stat)?;
        }
        self.0.write_all(&directory.files.to_le_bytes())
    }

    /// Adds a file of the directory before it.
    pub(crate) fn file(&mut self, file: &SpooledFile) -> io::Result<()> {
        self.bytes(&file.name)?;
        self.stat(&file.stat)?;
        self.0.write_all(&file.row.to_le_bytes())?;
        // Row 0 is the root, and never a file.
        let row = file.known.map_or(0, |known| known.row);
        self.0.write_all(&row.to_le_bytes())?;
        self.0.write_all(&[u8::from(file.kept)])?;
        match file.known {
            Some(known) => self.0.write_all(known.id.as_bytes()),
            None => Ok(()),
        }
    }

    /// Turns around.
    pub(crate) fn finish(self) -> io::Result<SpoolReader> {
        let mut file = self.0.into_inner()?;
        let len = file.stream_position()?;
        file.rewind()?;
        Ok(SpoolReader {
            file: BufReader::with_capacity(BUFFER_BYTES, file),
            len,
        })
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        let len = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        self.0.write_all(&len.to_le_bytes())?;
        self.0.write_all(bytes)
    }

    fn stat(&mut self, stat: &Stat) -> io::Result<()> {
        self.0.write_all(&stat.mode.to_le_bytes())?;
        self.0.write_all(&stat.uid.to_le_bytes())?;
        for (seconds, ns) in [stat.mtime, stat.ctime] {
            self.0.write_all(&seconds.to_le_bytes())?;
            self.0.write_all(&ns.to_le_bytes())?;
        }
        for word in [
            stat.size,
            stat.allocated,
            stat.device,
            stat.inode,
            stat.mount,
        ] {
            self.0.write_all(&word.to_le_bytes())?;
        }
        Ok(())
    }
}

/// Gives back what the walk found.
pub(crate) struct SpoolReader {
    file: BufReader<File>,
    len: u64,
}

impl SpoolReader {
    /// Returns the next directory.
    pub(crate) fn directory(&mut self) -> io::Result<Option<SpooledDirectory>> {
        if self.file.stream_position()? >= self.len {
            return Ok(None);
        }
        Ok(Some(SpooledDirectory {
            path: self.bytes()?,
            stat: match self.array::<1>()? {
                [0] => None,
                _ => Some(self.stat(FileKind::Directory)?),
            },
            files: u32::from_le_bytes(self.array()?),
        }))
    }

    /// Returns the next file of the directory that was returned last; there are as many as it said.
    pub(crate) fn file(&mut self) -> io::Result<SpooledFile> {
        let name = self.bytes()?;
        let stat = self.stat(FileKind::File)?;
        let row = u32::from_le_bytes(self.array()?);
        let known = u32::from_le_bytes(self.array()?);
        let kept = self.array::<1>()? != [0];
        let known = match known {
            0 => None,
            row => Some(KnownFile {
                row,
                id: Digest::from_bytes(self.array()?),
            }),
        };
        Ok(SpooledFile {
            row,
            name,
            stat,
            known,
            kept,
        })
    }

    fn bytes(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; u32::from_le_bytes(self.array()?) as usize];
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn stat(&mut self, kind: FileKind) -> io::Result<Stat> {
        Ok(Stat {
            kind,
            mode: u16::from_le_bytes(self.array()?),
            uid: u32::from_le_bytes(self.array()?),
            mtime: (
                i64::from_le_bytes(self.array()?),
                u32::from_le_bytes(self.array()?),
            ),
            ctime: (
                i64::from_le_bytes(self.array()?),
                u32::from_le_bytes(self.array()?),
            ),
            size: u64::from_le_bytes(self.array()?),
            allocated: u64::from_le_bytes(self.array()?),
            device: u64::from_le_bytes(self.array()?),
            inode: u64::from_le_bytes(self.array()?),
            mount: u64::from_le_bytes(self.array()?),
        })
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        let dir = tempfile::tempdir().unwrap();
        let stat = |kind, size| Stat {
            kind,
            mode: 0o4755,
            size,
            allocated: size / 2,
            mtime: (-5, 999_999_999),
            ctime: (i64::MAX, 0),
            device: 3,
            inode: u64::MAX,
            mount: 7,
            uid: 1000,
        };
        let directory = SpooledDirectory {
            path: b"a/b\n".to_vec(),
            stat: Some(stat(FileKind::Directory, 4096)),
            files: 2,
        };
        let file = |row| SpooledFile {
            row,
            name: vec![b'n'; 255],
            stat: stat(FileKind::File, 1 << 40),
            known: (row > 5).then_some(KnownFile {
                row: 9,
                id: Digest::EMPTY,
            }),
            kept: row > 5,
        };
        let mut spool = SpoolWriter::new(dir.path()).unwrap();
        spool.directory(&directory).unwrap();
        spool.file(&file(5)).unwrap();
        spool.file(&file(u32::MAX)).unwrap();
        let not_on_disk = SpooledDirectory {
            path: b"c".to_vec(),
            stat: None,
            files: 0,
        };
        spool.directory(&not_on_disk).unwrap();
        let mut spool = spool.finish().unwrap();
        assert_eq!(spool.directory().unwrap(), Some(directory));
        assert_eq!(spool.file().unwrap(), file(5));
        assert_eq!(spool.file().unwrap(), file(u32::MAX));
        assert_eq!(spool.directory().unwrap(), Some(not_on_disk));
        assert_eq!(spool.directory().unwrap(), None);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
