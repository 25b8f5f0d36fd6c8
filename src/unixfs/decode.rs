//! Reads nodes of any writer: verified first, then parsed, with everything checked that a reader would rely on.

use super::dagpb::{self, DagPbError, PbLink};
use super::message::{self, Kind, Message, MessageError};
use super::{AnyCid, Codec, NODE_BYTES_MAX, UnknownHash, directory, hamt};

/// Slots of the largest shard that is read; more would let a small node name a huge table.
pub const FANOUT_MAX: u32 = 1024;

/// Slots of the smallest shard that is read.
pub const FANOUT_MIN: u32 = 8;

/// A node, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded<'a> {
    /// A file, or a part of one.
    File(FileNode<'a>),
    /// A directory with all its entries.
    Directory(Vec<Named<'a>>),
    /// A shard of a large directory.
    Shard(Shard<'a>),
    /// A symlink with its target.
    Symlink(&'a [u8]),
}

/// A file, or the part of one below a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileNode<'a> {
    /// Bytes of it.
    pub size: u64,
    /// The bytes that are in this node, before all others.
    pub data: &'a [u8],
    /// The nodes that hold the rest, in order. Their bytes and `data` add up to `size`.
    pub children: Vec<FileChild>,
}

/// A part of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileChild {
    /// Its node.
    pub cid: AnyCid,
    /// Bytes of the file below it, as the parent says: whoever reads the child compares with its own size.
    pub bytes: u64,
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named<'a> {
    /// Its name, which a file system would take.
    pub name: &'a [u8],
    /// Its root.
    pub cid: AnyCid,
    /// What the link says of its size.
    pub tsize: Option<u64>,
}

/// A shard of a large directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard<'a> {
    /// Bits of the hash that one level takes.
    bits: u32,
    /// Slots that are taken, ascending.
    slots: Vec<Slot<'a>>,
}

/// A slot that is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot<'a> {
    /// Its number.
    pub slot: u32,
    /// The entry's name; `None` when the slot leads to a shard of several.
    pub name: Option<&'a [u8]>,
    /// The entry's root, or the shard.
    pub cid: AnyCid,
    /// What the link says of its size.
    pub tsize: Option<u64>,
}

/// Why bytes are not the node that was asked for, or none that can be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// They are more than any peer passes on.
    #[error("a node of {0} bytes is longer than {NODE_BYTES_MAX}")]
    TooLong(usize),
    /// They do not hash to the CID.
    #[error("the bytes that came for {0} are not its own")]
    WrongBytes(AnyCid),
    /// They cannot be checked.
    #[error(transparent)]
    UnknownHash(#[from] UnknownHash),
    /// They are not for this reader.
    #[error("the codec 0x{0:x} is not one of files and directories")]
    UnknownCodec(u64),
    /// They are no dag-pb node.
    #[error(transparent)]
    Node(#[from] DagPbError),
    /// There is no UnixFS message in the node, or a malformed one.
    #[error("the UnixFS message of the node is malformed")]
    Message,
    /// The node is of a type that nobody reads.
    #[error("the UnixFS type {0} is not read")]
    UnknownType(u64),
    /// The sizes that a file's node states do not agree.
    #[error("the sizes in a file's node do not add up")]
    Sizes,
    /// A node has links where its type has none.
    #[error("a symlink has links")]
    Links,
    /// A directory's entry has a name that no file system takes.
    #[error("{} is no name of an entry", .0.escape_ascii())]
    Name(Vec<u8>),
    /// A directory has two entries of one name.
    #[error("the name {} comes twice", .0.escape_ascii())]
    Duplicate(Vec<u8>),
    /// A shard's slots, hash function, bit field and links do not agree.
    #[error("a shard of a directory is malformed")]
    Shard,
    /// A shard stands deeper than the hash has bits.
    #[error("a directory has more levels of shards than its hash has bits")]
    TooDeep,
    /// An entry stands in a slot that its name does not hash to.
    #[error("the entry {} stands in a wrong slot", .0.escape_ascii())]
    Misplaced(Vec<u8>),
}

impl From<MessageError> for DecodeError {
    fn from(error: MessageError) -> Self {
        match error {
            MessageError::Malformed => DecodeError::Message,
            MessageError::Kind(kind) => DecodeError::UnknownType(kind),
        }
    }
}

/// Checks `bytes` against `cid` and parses them.
///
/// # Errors
/// [`DecodeError`], and nothing was relied on before the hash was right.
pub fn decode<'a>(cid: &AnyCid, bytes: &'a [u8]) -> Result<Decoded<'a>, DecodeError> {
    if bytes.len() > NODE_BYTES_MAX {
        return Err(DecodeError::TooLong(bytes.len()));
    }
    if !cid.names(bytes)? {
        return Err(DecodeError::WrongBytes(cid.clone()));
    }
    match cid.codec() {
        Some(codec) => parse(codec, bytes),
        None => Err(DecodeError::UnknownCodec(cid.codec_code())),
    }
}

/// Parses bytes that somebody has verified.
pub(crate) fn parse(codec: Codec, bytes: &[u8]) -> Result<Decoded<'_>, DecodeError> {
    if codec == Codec::Raw {
        return Ok(Decoded::File(FileNode {
            size: bytes.len() as u64,
            data: bytes,
            children: Vec::new(),
        }));
    }
    let node = dagpb::decode(bytes)?;
    let message = message::decode(node.data.ok_or(DecodeError::Message)?)?;
    match message.kind {
        Kind::Raw | Kind::File => file(&message, node.links).map(Decoded::File),
        Kind::Directory => directory(node.links).map(Decoded::Directory),
        Kind::Shard => shard(&message, node.links).map(Decoded::Shard),
        Kind::Symlink if node.links.is_empty() => Ok(Decoded::Symlink(message.data)),
        Kind::Symlink => Err(DecodeError::Links),
    }
}

fn file<'a>(message: &Message<'a>, links: Vec<PbLink<'a>>) -> Result<FileNode<'a>, DecodeError> {
    if message.sizes.len() != links.len() {
        return Err(DecodeError::Sizes);
    }
    let size = message
        .sizes
        .iter()
        .try_fold(message.data.len() as u64, |sum, &bytes| {
            sum.checked_add(bytes)
        })
        .filter(|&size| message.size.is_none_or(|stated| stated == size))
        .ok_or(DecodeError::Sizes)?;
    let children = links
        .into_iter()
        .zip(&message.sizes)
        .map(|(link, &bytes)| FileChild {
            cid: link.cid,
            bytes,
        })
        .collect();
    Ok(FileNode {
        size,
        data: message.data,
        children,
    })
}

fn directory(links: Vec<PbLink<'_>>) -> Result<Vec<Named<'_>>, DecodeError> {
    let entries = links
        .into_iter()
        .map(|link| {
            Ok(Named {
                name: entry_name(link.name.unwrap_or_default())?,
                cid: link.cid,
                tsize: link.tsize,
            })
        })
        .collect::<Result<Vec<_>, DecodeError>>()?;
    let mut names: Vec<&[u8]> = entries.iter().map(|entry| entry.name).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(DecodeError::Duplicate(pair[0].to_vec())),
        None => Ok(entries),
    }
}

fn entry_name(name: &[u8]) -> Result<&[u8], DecodeError> {
    if directory::is_name(name) {
        Ok(name)
    } else {
        Err(DecodeError::Name(name.to_vec()))
    }
}

fn shard<'a>(message: &Message<'a>, links: Vec<PbLink<'a>>) -> Result<Shard<'a>, DecodeError> {
    let fanout = message
        .fanout
        .and_then(|fanout| u32::try_from(fanout).ok())
        .filter(|fanout| fanout.is_power_of_two() && (FANOUT_MIN..=FANOUT_MAX).contains(fanout))
        .ok_or(DecodeError::Shard)?;
    if message.hash != Some(message::MURMUR3) || message.data.len() > (fanout / 8) as usize {
        return Err(DecodeError::Shard);
    }
    // Hex digits of the highest slot.
    let digits = (fanout - 1).ilog2() as usize / 4 + 1;
    let slots = links
        .into_iter()
        .map(|link| {
            let (prefix, name) = link
                .name
                .unwrap_or_default()
                .split_at_checked(digits)
                .ok_or(DecodeError::Shard)?;
            Ok(Slot {
                slot: upper_hex(prefix).ok_or(DecodeError::Shard)?,
                name: match name {
                    b"" => None,
                    name => Some(entry_name(name)?),
                },
                cid: link.cid,
                tsize: link.tsize,
            })
        })
        .collect::<Result<Vec<_>, DecodeError>>()?;
    // The field is a big-endian number, and link k stands for the k-th bit that is set.
    let taken = (0..fanout).filter(|slot| {
        let byte = message.data.iter().rev().nth((slot / 8) as usize);
        byte.is_some_and(|byte| byte >> (slot % 8) & 1 == 1)
    });
    if !taken.eq(slots.iter().map(|slot| slot.slot)) {
        return Err(DecodeError::Shard);
    }
    Ok(Shard {
        bits: fanout.ilog2(),
        slots,
    })
}

fn upper_hex(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |value, &digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'A'..=b'F' => digit - b'A' + 10,
            _ => return None,
        };
        Some(value << 4 | u32::from(digit))
    })
}

impl<'a> Shard<'a> {
    /// Returns the slots that are taken, ascending.
    pub fn slots(&self) -> &[Slot<'a>] {
        &self.slots
    }

    /// Returns how many slots there are in all.
    pub fn fanout(&self) -> u32 {
        1 << self.bits
    }

    /// Returns the slot that holds `name`, or the shard to ask next; `depth` is 0 in a directory's root.
    ///
    /// # Errors
    /// [`DecodeError::TooDeep`] when the hash has no bits left at this depth.
    pub fn lookup(&self, name: &[u8], depth: usize) -> Result<Option<&Slot<'a>>, DecodeError> {
        let wanted = hamt::slot(hamt::hash(name), depth, self.bits).ok_or(DecodeError::TooDeep)?;
        let found = self.slots.binary_search_by_key(&wanted, |slot| slot.slot);
        Ok(found
            .ok()
            .map(|at| &self.slots[at])
            .filter(|slot| slot.name.is_none_or(|resident| resident == name)))
    }

    /// Checks that each entry hashes to where it stands; `path` holds the slots taken from the directory's root.
    ///
    /// # Errors
    /// [`DecodeError::TooDeep`], or [`DecodeError::Misplaced`].
    pub fn check(&self, path: &[u32]) -> Result<(), DecodeError> {
        if hamt::slot(0, path.len(), self.bits).is_none() {
            return Err(DecodeError::TooDeep);
        }
        for slot in &self.slots {
            let Some(name) = slot.name else { continue };
            let hash = hamt::hash(name);
            let mut steps = path.iter().copied().chain([slot.slot]).enumerate();
            if !steps.all(|(depth, step)| hamt::slot(hash, depth, self.bits) == Some(step)) {
                return Err(DecodeError::Misplaced(name.to_vec()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Digest;
    use crate::unixfs::dagpb::PbNode;

    fn node(links: &[(&str, &[u8])], message: &[u8]) -> Vec<u8> {
        dagpb::encode(&PbNode {
            links: links
                .iter()
                .map(|(name, content)| PbLink {
                    cid: AnyCid::from(crate::unixfs::Cid::raw(Digest::of(content))),
                    name: Some(name.as_bytes()),
                    tsize: None,
                })
                .collect(),
            data: Some(message),
        })
    }

    fn refused(links: &[(&str, &[u8])], message: &[u8]) -> DecodeError {
        parse(Codec::DagPb, &node(links, message)).unwrap_err()
    }

    #[test]
    fn nothing_is_parsed_before_its_hash_is_right() {
        let cid: AnyCid = "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354"
            .parse()
            .unwrap();
        let empty = [0x0a, 0x02, 0x08, 0x01];
        assert_eq!(decode(&cid, &empty), Ok(Decoded::Directory(vec![])));
        assert_eq!(
            decode(&cid, &empty[1..]),
            Err(DecodeError::WrongBytes(cid.clone()))
        );
        let long = vec![0; NODE_BYTES_MAX + 1];
        assert!(matches!(decode(&cid, &long), Err(DecodeError::TooLong(_))));
        let inline: AnyCid = "bafyaabakaieac".parse().unwrap();
        assert_eq!(decode(&inline, &empty), Ok(Decoded::Directory(vec![])));
        let other = AnyCid::from_bytes(&[1, 0x55, 0x1e, 1, 0]).unwrap();
        assert_eq!(
            decode(&other, b""),
            Err(DecodeError::UnknownHash(UnknownHash(0x1e)))
        );
        let cbor = AnyCid::from_bytes(&[1, 0x71, 0, 0]).unwrap();
        assert_eq!(decode(&cbor, b""), Err(DecodeError::UnknownCodec(0x71)));
    }

    #[test]
    fn hostile_names_are_refused() {
        let long = "n".repeat(256);
        for name in ["", ".", "..", "../file", "a/b", "nul\0", &long] {
            let error = refused(&[(name, b"x")], &[8, 1]);
            assert_eq!(error, DecodeError::Name(name.as_bytes().to_vec()));
        }
        let twice = refused(&[("b", b"1"), ("a", b"2"), ("b", b"3")], &[8, 1]);
        assert_eq!(twice, DecodeError::Duplicate(b"b".to_vec()));
        // Not sorted is what old writers made.
        assert!(parse(Codec::DagPb, &node(&[("b", b"1"), ("a", b"2")], &[8, 1])).is_ok());
        assert_eq!(refused(&[("", b"x")], &[8, 4]), DecodeError::Links);
        let none = parse(Codec::DagPb, &[]).unwrap_err();
        assert_eq!(none, DecodeError::Message);
    }

    #[test]
    fn sizes_have_to_add_up() {
        let links: &[(&str, &[u8])] = &[("", b"ab"), ("", b"c")];
        let good = node(links, &[8, 2, 0x12, 1, b'x', 0x18, 4, 0x20, 2, 0x20, 1]);
        let Ok(Decoded::File(file)) = parse(Codec::DagPb, &good) else {
            panic!("a file");
        };
        assert_eq!((file.size, file.data), (4, &b"x"[..]));
        assert_eq!(file.children[0].bytes, 2);
        for message in [
            &[8, 2, 0x18, 4, 0x20, 2, 0x20, 1][..],
            &[8, 2, 0x18, 3, 0x20, 3],
            &[8, 2, 0x18, 3, 0x20, 1, 0x20, 1, 0x20, 1],
        ] {
            assert_eq!(refused(links, message), DecodeError::Sizes);
        }
        let mut huge = vec![8, 2];
        for _ in 0..2 {
            huge.push(0x20);
            huge.extend([0xff; 9]);
            huge.push(1);
        }
        assert_eq!(refused(links, &huge), DecodeError::Sizes);
    }

    #[test]
    fn shards_agree_with_themselves() {
        let message = |bits: &[u8], hash: u8, fanout: u8| {
            let mut out = vec![8, 5, 0x12, u8::try_from(bits.len()).unwrap()];
            out.extend_from_slice(bits);
            out.extend([0x28, hash, 0x30, fanout]);
            out
        };
        // Sixteen slots: slot 0 is 470.txt, slot 3 leads on.
        let links: &[(&str, &[u8])] = &[("0470.txt", b"x"), ("3", b"y")];
        let good = node(links, &message(&[0b1001], 0x22, 16));
        let Ok(Decoded::Shard(shard)) = parse(Codec::DagPb, &good) else {
            panic!("a shard");
        };
        assert_eq!(shard.fanout(), 16);
        assert!(shard.lookup(b"470.txt", 0).unwrap().is_some());
        assert_eq!(shard.lookup(b"742.txt", 0), Ok(None));
        assert_eq!(shard.lookup(b"x", 16), Err(DecodeError::TooDeep));
        assert_eq!(shard.check(&[]), Ok(()));
        assert_eq!(shard.check(&[0]), Ok(()));
        let misplaced = DecodeError::Misplaced(b"470.txt".to_vec());
        assert_eq!(shard.check(&[1]), Err(misplaced));
        assert_eq!(shard.check(&[0; 16]), Err(DecodeError::TooDeep));
        assert!(parse(Codec::DagPb, &node(links, &message(&[0, 9], 0x22, 16))).is_ok());

        for (bits, hash, fanout) in [
            (&[0b1011][..], 0x22, 16),
            (&[0b0001], 0x22, 16),
            (&[0b1010], 0x22, 16),
            (&[9, 0], 0x22, 16),
            (&[0, 0, 9], 0x22, 16),
            (&[9], 0x23, 16),
            (&[9], 0x22, 17),
            (&[9], 0x22, 4),
            (&[9], 0x22, 0),
        ] {
            let error = refused(links, &message(bits, hash, fanout));
            assert_eq!(error, DecodeError::Shard, "{bits:?} {hash} {fanout}");
        }
        for names in [
            ["3", "0470.txt"],
            ["0470.txt", "g"],
            ["0470.txt", ""],
            ["0a", "0b"],
        ] {
            let links: Vec<(&str, &[u8])> = names.map(|name| (name, &b"x"[..])).into();
            let error = refused(&links, &message(&[9], 0x22, 16));
            assert_eq!(error, DecodeError::Shard, "{names:?}");
        }
        let slash = refused(&[("0a/b", b"x")], &message(&[1], 0x22, 16));
        assert_eq!(slash, DecodeError::Name(b"a/b".to_vec()));
    }
}
