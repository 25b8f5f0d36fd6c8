//! CAR files: many blocks in one stream, each with its CID.
//!
//! Version 1 is written; versions 1 and 2 are read, and every block is hashed before it is handed out. Specification:
//! `specs/transport/car` of ipld/ipld; `docs/formats/car.md` says what is used of it.

use std::io::{self, BufReader, Read, Write};

use bytes::Bytes;

use super::{AnyCid, Cid, CidError, NODE_BYTES_MAX, UnknownHash, varint};

/// The longest header that is read.
pub const HEADER_BYTES_MAX: u64 = 1 << 20;

/// The longest section that is read: a block and its CID.
pub const SECTION_BYTES_MAX: u64 = NODE_BYTES_MAX as u64 + 100;

/// Roots that a header may name.
pub const ROOTS_MAX: usize = 16;

/// Bytes that version 2 may leave between its header and the data.
pub const PADDING_BYTES_MAX: u64 = 1 << 20;

/// Bytes of the fixed parts of version 2: the 11 that say so, and its header.
const V2_HEAD_BYTES: u64 = 51;

/// Returns the header of a version 1 file; readers take at most [`ROOTS_MAX`] roots.
pub fn header(roots: &[Cid]) -> Vec<u8> {
    header_of(roots.iter().map(Cid::to_bytes))
}

/// As [`header`], for roots of any kind in their binary form.
pub(crate) fn header_of(roots: impl ExactSizeIterator<Item = impl AsRef<[u8]>>) -> Vec<u8> {
    let mut body = b"\xa2\x65roots".to_vec();
    push_cbor(&mut body, 4, roots.len() as u64);
    for root in roots {
        let root = root.as_ref();
        // Tag 42, a byte string that begins with a zero byte.
        body.extend_from_slice(&[0xd8, 0x2a]);
        push_cbor(&mut body, 2, root.len() as u64 + 1);
        body.push(0x00);
        body.extend_from_slice(root);
    }
    body.extend_from_slice(b"\x67version\x01");
    let mut out = Vec::with_capacity(body.len() + 2);
    varint::push(&mut out, body.len() as u64);
    out.extend_from_slice(&body);
    out
}

/// Returns a whole section.
pub fn section(cid: &Cid, bytes: &[u8]) -> Vec<u8> {
    let mut out = section_head(cid, bytes.len());
    out.extend_from_slice(bytes);
    out
}

/// Returns what stands before a block of `len` bytes, for streaming without a copy.
pub fn section_head(cid: &Cid, len: usize) -> Vec<u8> {
    section_head_of(&cid.to_bytes(), len)
}

/// As [`section_head`], for a CID of any kind in its binary form.
pub(crate) fn section_head_of(cid: &[u8], len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(cid.len() + 10);
    varint::push(&mut out, cid.len() as u64 + len as u64);
    out.extend_from_slice(cid);
    out
}

fn push_cbor(out: &mut Vec<u8>, major: u8, value: u64) {
    let major = major << 5;
    let bytes = value.to_be_bytes();
    match value {
        0..=23 => out.push(major | bytes[7]),
        24..=0xff => out.extend_from_slice(&[major | 24, bytes[7]]),
        0x100..=0xffff => {
            out.push(major | 25);
            out.extend_from_slice(&bytes[6..]);
        }
        0x1_0000..=0xffff_ffff => {
            out.push(major | 26);
            out.extend_from_slice(&bytes[4..]);
        }
        _ => {
            out.push(major | 27);
            out.extend_from_slice(&bytes);
        }
    }
}

/// Writes a version 1 file.
pub struct Writer<W> {
    out: W,
}

impl<W: Write> Writer<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// Whatever `out` returns.
    pub fn new(mut out: W, roots: &[Cid]) -> io::Result<Self> {
        out.write_all(&header(roots))?;
        Ok(Writer { out })
    }

    /// Writes a block, which the caller has hashed.
    ///
    /// # Errors
    /// Whatever `out` returns.
    pub fn write(&mut self, cid: &Cid, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(&section_head(cid, bytes.len()))?;
        self.out.write_all(bytes)
    }

    /// Flushes and gives the output back.
    ///
    /// # Errors
    /// Whatever `out` returns.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.flush()?;
        Ok(self.out)
    }
}

/// A block of a file, its bytes hashed and found to be the CID's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Its name.
    pub cid: AnyCid,
    /// Its bytes.
    pub bytes: Bytes,
}

/// Why a file is not read on.
#[derive(Debug, thiserror::Error)]
pub enum CarError {
    /// The input could not be read.
    #[error("the CAR file cannot be read")]
    Io(#[source] io::Error),
    /// The input ends within a header or a section.
    #[error("the CAR file is cut off")]
    CutOff,
    /// A length is malformed, zero, or over the limit.
    #[error("a length in the CAR file is malformed or over the limit")]
    Length,
    /// The header is not one of version 1 or 2.
    #[error("the header of the CAR file is malformed")]
    Header,
    /// There are more roots than are read.
    #[error("the CAR file has {0} roots, more than {ROOTS_MAX}")]
    Roots(u64),
    /// A CID is malformed.
    #[error("a CID in the CAR file is malformed")]
    Cid(#[from] CidError),
    /// A block does not hash to its CID.
    #[error("the bytes of {0} in the CAR file are not its own")]
    WrongBytes(AnyCid),
    /// A block cannot be checked. The only error after which reading may go on.
    #[error("{cid} in the CAR file cannot be checked")]
    UnknownHash {
        /// The block.
        cid: AnyCid,
        /// Why.
        source: UnknownHash,
    },
}

impl CarError {
    fn from_read(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            CarError::CutOff
        } else {
            CarError::Io(error)
        }
    }
}

/// Reads a file section by section; holds one section at a time.
pub struct Reader<R: Read> {
    /// The data, which in version 2 ends before the file does.
    input: io::Take<BufReader<R>>,
    /// Whether the data has a stated end.
    bounded: bool,
    roots: Vec<AnyCid>,
    ended: bool,
}

impl<R: Read> Reader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`CarError`] when it is malformed or over a limit.
    pub fn new(input: R) -> Result<Self, CarError> {
        let mut reader = Reader {
            input: BufReader::new(input).take(u64::MAX),
            bounded: false,
            roots: Vec::new(),
            ended: false,
        };
        let mut header = reader.header()?;
        if header == b"\xa1\x67version\x02" {
            reader.enter_v2()?;
            header = reader.header()?;
        }
        reader.roots = parse_header(&header)?;
        Ok(reader)
    }

    /// Returns the roots that the header names; nothing says that the file holds them.
    pub fn roots(&self) -> &[AnyCid] {
        &self.roots
    }

    /// Reads the next block; `None` at the end.
    ///
    /// # Errors
    /// [`CarError`]; after any but [`CarError::UnknownHash`] there are no more blocks.
    pub fn read(&mut self) -> Result<Option<Section>, CarError> {
        if self.ended {
            return Ok(None);
        }
        let result = self.section();
        self.ended = !matches!(result, Ok(Some(_)) | Err(CarError::UnknownHash { .. }));
        result
    }

    fn section(&mut self) -> Result<Option<Section>, CarError> {
        let Some(len) = self.length(SECTION_BYTES_MAX)? else {
            return Ok(None);
        };
        let bytes = Bytes::from(self.bytes(len)?);
        let mut rest = &bytes[..];
        let cid = AnyCid::take(&mut rest)?;
        let bytes = bytes.slice(bytes.len() - rest.len()..);
        match cid.names(&bytes) {
            Ok(true) => Ok(Some(Section { cid, bytes })),
            Ok(false) => Err(CarError::WrongBytes(cid)),
            Err(source) => Err(CarError::UnknownHash { cid, source }),
        }
    }

    fn header(&mut self) -> Result<Vec<u8>, CarError> {
        let len = self.length(HEADER_BYTES_MAX)?.ok_or(CarError::CutOff)?;
        self.bytes(len)
    }

    /// Passes over the header of version 2 and limits the input to the data it tells of.
    fn enter_v2(&mut self) -> Result<(), CarError> {
        let head = self.bytes(V2_HEAD_BYTES - 11)?;
        let number = |at: usize| {
            let bytes = head[at..].first_chunk::<8>();
            bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
        };
        let padding = number(16)
            .checked_sub(V2_HEAD_BYTES)
            .filter(|&padding| padding <= PADDING_BYTES_MAX)
            .ok_or(CarError::Length)?;
        let passed = io::copy(&mut self.input.by_ref().take(padding), &mut io::sink())
            .map_err(CarError::Io)?;
        if passed != padding {
            return Err(CarError::CutOff);
        }
        self.input.set_limit(number(24));
        self.bounded = true;
        Ok(())
    }

    /// Reads a length; `None` where the data ends.
    fn length(&mut self, max: u64) -> Result<Option<u64>, CarError> {
        let mut bytes = [0; varint::MULTIFORMATS];
        for at in 0..bytes.len() {
            if let Err(error) = self.input.read_exact(&mut bytes[at..=at]) {
                let error = CarError::from_read(error);
                let at_end = matches!(error, CarError::CutOff) && at == 0;
                return if at_end && !(self.bounded && self.input.limit() > 0) {
                    Ok(None)
                } else {
                    Err(error)
                };
            }
            if bytes[at] & 0x80 == 0 {
                return varint::take(&mut &bytes[..=at], varint::MULTIFORMATS)
                    .ok()
                    .filter(|len| (1..=max).contains(len))
                    .map(Some)
                    .ok_or(CarError::Length);
            }
        }
        Err(CarError::Length)
    }

    /// Reads `len` bytes, allocating as they come.
    fn bytes(&mut self, len: u64) -> Result<Vec<u8>, CarError> {
        let mut bytes = Vec::new();
        let got = self.input.by_ref().take(len).read_to_end(&mut bytes);
        if got.map_err(CarError::Io)? as u64 == len {
            Ok(bytes)
        } else {
            Err(CarError::CutOff)
        }
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Result<Section, CarError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

/// Parses a version 1 header: DAG-CBOR `{"roots": [CID, ...], "version": 1}`, whose keys have one order.
fn parse_header(header: &[u8]) -> Result<Vec<AnyCid>, CarError> {
    let mut input = header
        .strip_prefix(b"\xa2\x65roots")
        .ok_or(CarError::Header)?;
    let count = take_cbor(&mut input, 4)?;
    if count > ROOTS_MAX as u64 {
        return Err(CarError::Roots(count));
    }
    let mut roots = Vec::new();
    for _ in 0..count {
        input = input.strip_prefix(b"\xd8\x2a").ok_or(CarError::Header)?;
        let len = take_cbor(&mut input, 2)?;
        let len = usize::try_from(len).map_err(|_| CarError::Header)?;
        let (bytes, rest) = input.split_at_checked(len).ok_or(CarError::Header)?;
        input = rest;
        let cid = bytes.strip_prefix(b"\0").ok_or(CarError::Header)?;
        roots.push(AnyCid::from_bytes(cid)?);
    }
    if input == b"\x67version\x01" {
        Ok(roots)
    } else {
        Err(CarError::Header)
    }
}

/// Takes a CBOR head of type `major` from the front of `input` and returns its number.
fn take_cbor(input: &mut &[u8], major: u8) -> Result<u64, CarError> {
    let (&first, rest) = input.split_first().ok_or(CarError::Header)?;
    let (value, rest) = match first & 0x1f {
        short @ 0..=23 => (u64::from(short), rest),
        size @ 24..=27 => {
            let len = 1 << (size - 24);
            let (bytes, rest) = rest.split_at_checked(len).ok_or(CarError::Header)?;
            let fold = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
            (bytes.iter().fold(0, fold), rest)
        }
        _ => return Err(CarError::Header),
    };
    let mut shortest = Vec::new();
    push_cbor(&mut shortest, major, value);
    // Also compares the type.
    if !input.starts_with(&shortest) || input.len() - rest.len() != shortest.len() {
        return Err(CarError::Header);
    }
    *input = rest;
    Ok(value)
}

#[cfg(test)]
#[path = "car_tests.rs"]
mod tests;
