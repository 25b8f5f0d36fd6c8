//! A directory of trees, or a CAR file, on this machine.
//!
//! A directory holds `<tree name>/<path>` and `<tree name>/.manifs/catalog`, as `publish --to DIR` and
//! `fetch --mirror` write them, and is asked by place. A CAR is indexed once and asked by digest. Both may have been
//! changed by anybody; what they give is verified like any other answer.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::{BlockSource, SourceError, SourceKind, Spill, TreePlace, Want};
use crate::block::Digest;

/// Reads at once. A disk gains little from more.
const PARALLEL: usize = 8;

/// The longest header of a CAR file.
const CAR_HEADER_BYTES_MAX: u64 = 1 << 20;

/// The longest section of a CAR file: a node of 2 MiB and its CID.
const CAR_SECTION_BYTES_MAX: u64 = (2 << 20) + 100;

/// Sections of a CAR file that are remembered; 48 bytes each.
const CAR_SECTIONS_MAX: usize = 1 << 24;

/// The first bytes of the CIDs that we ask for: version 1, raw, SHA-256.
const RAW_CID: [u8; 4] = [0x01, 0x55, 0x12, 0x20];

/// A directory or a CAR file.
#[derive(Debug)]
pub struct Local {
    name: String,
    place: Arc<Place>,
}

#[derive(Debug)]
enum Place {
    Directory(File),
    Car {
        file: File,
        index: OnceLock<Result<HashMap<Digest, u64>, String>>,
    },
}

impl Local {
    /// Opens a directory or a file. A CAR file is indexed when it is first asked.
    ///
    /// # Errors
    /// That of opening it; `InvalidInput` for what is neither a directory nor a regular file.
    pub fn open(path: &Path) -> io::Result<Self> {
        let kind = std::fs::metadata(path)?.file_type();
        if !kind.is_dir() && !kind.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "neither a directory nor a regular file",
            ));
        }
        let file = File::open(path)?;
        let place = if kind.is_dir() {
            Place::Directory(file)
        } else {
            Place::Car {
                file,
                index: OnceLock::new(),
            }
        };
        Ok(Local {
            name: path.display().to_string(),
            place: Arc::new(place),
        })
    }
}

#[async_trait]
impl BlockSource for Local {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> SourceKind {
        SourceKind::Local
    }

    fn parallel(&self) -> usize {
        PARALLEL
    }

    fn serves(&self, want: &Want) -> bool {
        match &*self.place {
            Place::Directory(_) => want.place.is_some(),
            Place::Car { .. } => true,
        }
    }

    async fn fetch(&self, want: &Want, spill: &Spill) -> Result<Bytes, SourceError> {
        let place = Arc::clone(&self.place);
        let want = want.clone();
        let read = tokio::task::spawn_blocking(move || place.read(&want)).await;
        let bytes = read.map_err(|_| SourceError::unavailable("reading was given up"))??;
        spill.progressed(bytes.len() as u64);
        Ok(bytes)
    }
}

impl Place {
    fn read(&self, want: &Want) -> Result<Bytes, SourceError> {
        let len = want.block.len() as usize;
        match self {
            Place::Directory(root) => {
                let Some(place) = &want.place else {
                    return Err(SourceError::not_found("not known by path"));
                };
                let file = open_beneath(root, place)?;
                read_at(&file, place.offset, len)
            }
            Place::Car { file, index } => {
                let index = index
                    .get_or_init(|| index_car(file).map_err(|error| error.to_string()))
                    .as_ref()
                    .map_err(SourceError::refused)?;
                let offset = index
                    .get(&want.block.digest)
                    .ok_or_else(|| SourceError::not_found("not in the archive"))?;
                read_at(file, *offset, len)
            }
        }
    }
}

/// Opens a file of a tree; neither `..` nor a symlink leads out of the directory, and nothing but a regular file opens.
fn open_beneath(root: &File, place: &TreePlace) -> Result<File, SourceError> {
    let mut path = PathBuf::from(&*place.tree);
    path.push(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(&place.path));
    let opened = rustix::fs::openat2(
        root,
        &path,
        // A FIFO would wait for a writer without NONBLOCK.
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    );
    let file = File::from(opened.map_err(|error| SourceError::not_found(error.to_string()))?);
    match file.metadata() {
        Ok(metadata) if metadata.is_file() => Ok(file),
        Ok(_) => Err(SourceError::not_found("not a regular file")),
        Err(error) => Err(SourceError::unavailable(error.to_string())),
    }
}

fn read_at(file: &File, offset: u64, len: usize) -> Result<Bytes, SourceError> {
    let mut bytes = vec![0; len];
    match file.read_exact_at(&mut bytes, offset) {
        Ok(()) => Ok(bytes.into()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(SourceError::not_found("the file is too short"))
        }
        Err(error) => Err(SourceError::unavailable(error.to_string())),
    }
}

/// Notes where each raw block of a CARv1 file begins. A cut-off last section is left out.
fn index_car(file: &File) -> io::Result<HashMap<Digest, u64>> {
    let wrong = |what: &'static str| io::Error::new(io::ErrorKind::InvalidData, what);
    let end = file.metadata()?.len();
    let mut reader = BufReader::with_capacity(64 << 10, file);
    reader.seek(SeekFrom::Start(0))?;
    let (header, mut at) = varint(&mut reader)?.ok_or_else(|| wrong("the archive is empty"))?;
    if header == 0 || header > CAR_HEADER_BYTES_MAX || at + header > end {
        return Err(wrong("not a CAR file"));
    }
    let mut version = vec![0; usize::try_from(header).unwrap_or(0)];
    reader.read_exact(&mut version)?;
    if !version.windows(9).any(|part| part == b"gversion\x01") {
        return Err(wrong("not a CAR file of version 1"));
    }
    at += header;
    let mut index = HashMap::new();
    while let Some((section, prefix)) = varint(&mut reader)? {
        at += prefix;
        if section == 0 || section > CAR_SECTION_BYTES_MAX {
            return Err(wrong("a section of the archive is too long"));
        }
        if at + section > end {
            break;
        }
        let mut rest = i64::try_from(section).unwrap_or(i64::MAX);
        if section >= 36 {
            let mut cid = [0; 36];
            reader.read_exact(&mut cid)?;
            rest -= 36;
            if let Some(digest) = cid.strip_prefix(&RAW_CID) {
                let digest: [u8; 32] = digest.try_into().map_err(|_| wrong("a short CID"))?;
                if index.len() >= CAR_SECTIONS_MAX {
                    return Err(wrong("the archive has too many sections"));
                }
                index.insert(Digest::from_bytes(digest), at + 36);
            }
        }
        reader.seek_relative(rest)?;
        at += section;
    }
    Ok(index)
}

/// Reads a varint and says how many bytes it took; none at the end of the file.
fn varint(reader: &mut impl Read) -> io::Result<Option<(u64, u64)>> {
    let mut value = 0;
    for (shift, count) in (0..63).step_by(7).zip(1..) {
        let mut byte = [0];
        if reader.read(&mut byte)? == 0 {
            return match count {
                1 => Ok(None),
                _ => Err(io::ErrorKind::UnexpectedEof.into()),
            };
        }
        value |= u64::from(byte[0] & 0x7f) << shift;
        if byte[0] < 0x80 {
            return Ok(Some((value, count)));
        }
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        "a varint is too long",
    ))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::block::{BlockRef, FileRef};

    fn want(bytes: &[u8], path: &str, offset: u64) -> Want {
        let digest = Digest::of(bytes);
        Want {
            block: BlockRef {
                file: FileRef {
                    id: digest,
                    size: bytes.len() as u64,
                },
                index: 0,
                digest,
            },
            place: Some(TreePlace {
                tree: "demo-1.0.0".into(),
                path: path.as_bytes().into(),
                offset,
                mirrors: Arc::default(),
                gateways: Arc::default(),
            }),
            torrent: None,
        }
    }

    fn not_found(answer: &Result<Bytes, SourceError>) -> bool {
        matches!(answer, Err(SourceError::NotFound { .. }))
    }

    #[tokio::test]
    async fn a_directory_is_asked_by_place_and_never_left() {
        let home = tempfile::tempdir().unwrap();
        let tree = home.path().join("root/demo-1.0.0");
        std::fs::create_dir_all(tree.join("a")).unwrap();
        std::fs::write(tree.join("a/file"), b"0123456789").unwrap();
        std::fs::write(home.path().join("secret"), b"secret").unwrap();
        symlink("../../secret", tree.join("link")).unwrap();
        symlink("a", tree.join("dir")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            tree.join("fifo"),
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let source = Local::open(&home.path().join("root")).unwrap();
        let spill = Spill::ignored();
        let got = source.fetch(&want(b"3456", "a/file", 3), &spill).await;
        assert_eq!(got.unwrap(), "3456");
        assert_eq!(spill.arrived(), 4);
        // Wrong bytes are given as they are: judging them is not the source's work.
        let got = source.fetch(&want(b"xxxx", "a/file", 0), &spill).await;
        assert_eq!(got.unwrap(), "0123");
        for (path, offset) in [
            ("a/file", 7),
            ("a/none", 0),
            ("../../secret", 0),
            ("/etc/hostname", 0),
            ("link", 0),
            ("dir/file", 0),
            ("fifo", 0),
            ("a", 0),
        ] {
            let got = source.fetch(&want(b"secr", path, offset), &spill).await;
            assert!(not_found(&got), "{path} at {offset}: {got:?}");
        }
        let placeless = Want::new(want(b"3456", "", 0).block);
        assert!(not_found(&source.fetch(&placeless, &spill).await));
    }

    fn section(out: &mut Vec<u8>, codec: u8, bytes: &[u8]) {
        let mut len = 36 + bytes.len();
        while len >= 0x80 {
            out.push(u8::try_from(len & 0x7f).unwrap() | 0x80);
            len >>= 7;
        }
        out.push(u8::try_from(len).unwrap());
        out.extend([1, codec, 0x12, 0x20]);
        out.extend(Digest::of(bytes).as_bytes());
        out.extend(bytes);
    }

    fn car() -> Vec<u8> {
        let mut out = vec![0x3a, 0xa2, 0x65];
        out.extend(b"roots\x81\xd8\x2a\x58\x25\x00\x01\x55\x12\x20");
        out.extend(Digest::EMPTY.as_bytes());
        out.extend(b"gversion\x01");
        out
    }

    #[tokio::test]
    async fn a_car_file_is_asked_by_digest() {
        let mut bytes = car();
        let long = vec![7; 70_000];
        section(&mut bytes, 0x55, b"first");
        section(&mut bytes, 0x70, b"a node");
        section(&mut bytes, 0x55, &long);
        section(&mut bytes, 0x55, b"cut off");
        bytes.truncate(bytes.len() - 2);
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&bytes).unwrap();
        let source = Local::open(file.path()).unwrap();
        let spill = Spill::ignored();
        for want_bytes in [&b"first"[..], &long] {
            let got = source
                .fetch(&want(want_bytes, "", 0), &spill)
                .await
                .unwrap();
            assert_eq!(got, want_bytes);
        }
        for missing in [&b"a node"[..], b"cut off", b"other"] {
            assert!(not_found(
                &source.fetch(&want(missing, "", 0), &spill).await
            ));
        }
    }

    #[tokio::test]
    async fn what_is_no_car_file_is_refused() {
        let mut endless = car();
        endless.extend([0xff; 12]);
        let mut long = car();
        long.extend([0xff, 0xff, 0xff, 0x7f]);
        for bytes in [
            &b""[..],
            b"\x00",
            b"hello world",
            &[0xff; 64],
            &endless,
            &long,
        ] {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(bytes).unwrap();
            let source = Local::open(file.path()).unwrap();
            let got = source.fetch(&want(b"x", "", 0), &Spill::ignored()).await;
            assert!(matches!(got, Err(SourceError::Refused { .. })), "{got:?}");
        }
    }
}
