//! Directories: one node with a link for each entry, or a tree of shards when that node would be large.
//!
//! A directory whose one node would be longer than 256 KiB becomes a HAMT with 256 slots a shard, decided by the final
//! entries alone. Entries are sorted by the hash of their names once, 16 bytes an entry, and each shard is a run of that
//! order, so that a directory of a million entries needs no tree of maps.

use std::io;

use super::hamt::{self, DEPTH_MAX};
use super::{Cid, Link, Node, NodePlace, dagpb, message};
use crate::block::Digest;

/// The longest node of a directory that is not sharded; part of the profile, so changing it changes CIDs.
pub const BASIC_BYTES_MAX: u64 = 262_144;

/// The longest name of an entry.
pub const NAME_BYTES_MAX: usize = 255;

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: Vec<u8>,
    /// Its root.
    pub link: Link,
}

/// Why entries are no directory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    /// A name that no file system takes.
    #[error("{} is no name of an entry", .0.escape_ascii())]
    Name(Vec<u8>),
    /// Entries are not in ascending order of their names' bytes, or a name comes twice.
    #[error("the entry {} is out of order or comes twice", .0.escape_ascii())]
    Order(Vec<u8>),
    /// Two names of a large directory have the same 64-bit hash, which no tree of shards can hold.
    #[error("the names {} and {} have the same hash", .0.escape_ascii(), .1.escape_ascii())]
    Collision(Vec<u8>, Vec<u8>),
}

impl From<DirectoryError> for io::Error {
    fn from(error: DirectoryError) -> Self {
        io::Error::new(io::ErrorKind::InvalidInput, error)
    }
}

/// Returns whether `name` may name an entry: 1 to 255 bytes, neither "." nor "..", no "/" and no NUL.
pub fn is_name(name: &[u8]) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name != b"."
        && name != b".."
        && !name.iter().any(|&byte| byte == b'/' || byte == 0)
}

/// Builds the nodes of a directory from its entries, which must be sorted by name.
///
/// Nodes come children first, the root last.
///
/// # Errors
/// Whatever `emit` returns, or a [`DirectoryError`] as [`io::ErrorKind::InvalidInput`].
pub fn build(
    entries: &[Entry],
    emit: &mut dyn FnMut(Node<'_>) -> io::Result<()>,
) -> io::Result<Link> {
    check(entries)?;
    if basic_len(entries) > BASIC_BYTES_MAX {
        return Shards::new(entries).build(0, [0; 8], &Shards::order(entries), emit);
    }
    let bytes = encode_basic(entries);
    let link = link(&bytes, entries.iter().map(|entry| entry.link.tsize));
    emit(Node {
        cid: link.cid,
        tsize: link.tsize,
        bytes: &bytes,
        place: NodePlace::Directory,
    })?;
    Ok(link)
}

/// Builds a directory as shards whatever its size, which the profile does not: for other programs' test vectors.
#[doc(hidden)]
pub fn build_sharded(
    entries: &[Entry],
    emit: &mut dyn FnMut(Node<'_>) -> io::Result<()>,
) -> io::Result<Link> {
    check(entries)?;
    Shards::new(entries).build(0, [0; 8], &Shards::order(entries), emit)
}

/// Builds one node of a directory again; `None` when the directory has no such node.
///
/// A shard reads every entry and builds the shards below it, so the root of a large directory costs as much as
/// [`build`].
pub fn node(entries: &[Entry], place: NodePlace) -> Option<Vec<u8>> {
    check(entries).ok()?;
    let sharded = basic_len(entries) > BASIC_BYTES_MAX;
    match place {
        NodePlace::Directory if !sharded => Some(encode_basic(entries)),
        NodePlace::Shard { depth, prefix } if sharded => shard(entries, depth, prefix),
        _ => None,
    }
}

/// Builds one shard again, whatever the directory's size.
#[doc(hidden)]
pub fn shard(entries: &[Entry], depth: u8, prefix: [u8; 8]) -> Option<Vec<u8>> {
    if depth >= DEPTH_MAX {
        return None;
    }
    let taken = usize::from(depth);
    let mut order = Shards::hashes(entries);
    order.retain(|&(hash, _)| hash.to_be_bytes()[..taken] == prefix[..taken]);
    order.sort_unstable();
    if order.len() < 2 && depth > 0 {
        return None;
    }
    let mut found = None;
    Shards::new(entries)
        .build(depth, prefix, &order, &mut |node| {
            let wanted = NodePlace::Shard { depth, prefix };
            if node.place == wanted {
                found = Some(node.bytes.to_vec());
            }
            Ok(())
        })
        .ok()?;
    found
}

fn check(entries: &[Entry]) -> Result<(), DirectoryError> {
    if let Some(entry) = entries.iter().find(|entry| !is_name(&entry.name)) {
        return Err(DirectoryError::Name(entry.name.clone()));
    }
    match entries.windows(2).find(|pair| pair[0].name >= pair[1].name) {
        Some(pair) => Err(DirectoryError::Order(pair[1].name.clone())),
        None => Ok(()),
    }
}

/// Returns how long the one node of a directory would be.
pub fn basic_len(entries: &[Entry]) -> u64 {
    entries
        .iter()
        .map(|entry| dagpb::link_len(entry.name.len(), entry.link.tsize))
        .fold(
            dagpb::data_len(message::DIRECTORY.len() as u64),
            u64::saturating_add,
        )
}

fn encode_basic(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        dagpb::push_link(&mut out, &entry.link.cid, &entry.name, entry.link.tsize);
    }
    dagpb::push_data(&mut out, &message::DIRECTORY);
    out
}

fn link(bytes: &[u8], below: impl Iterator<Item = u64>) -> Link {
    Link {
        cid: Cid::dag_pb(Digest::of(bytes)),
        tsize: below.fold(bytes.len() as u64, u64::saturating_add),
    }
}

struct Shards<'a> {
    entries: &'a [Entry],
}

impl<'a> Shards<'a> {
    fn new(entries: &'a [Entry]) -> Self {
        Shards { entries }
    }

    /// Returns the entries' hashes and positions in the order of the hashes.
    fn order(entries: &[Entry]) -> Vec<(u64, u32)> {
        let mut order = Self::hashes(entries);
        order.sort_unstable();
        order
    }

    fn hashes(entries: &[Entry]) -> Vec<(u64, u32)> {
        // A catalog has at most 2^32 rows, its root among them.
        (0..=u32::MAX)
            .zip(entries)
            .map(|(index, entry)| (hamt::hash(&entry.name), index))
            .collect()
    }

    /// Builds the shard over one run of the order, after the shards below it. Recursion ends at [`DEPTH_MAX`].
    fn build(
        &self,
        depth: u8,
        prefix: [u8; 8],
        run: &[(u64, u32)],
        emit: &mut dyn FnMut(Node<'_>) -> io::Result<()>,
    ) -> io::Result<Link> {
        let level = usize::from(depth);
        let slot_of = |hash: u64| hash.to_be_bytes()[level];
        let mut bits = [0_u8; 32];
        let mut out = Vec::new();
        let mut below = Vec::new();
        for group in run.chunk_by(|a, b| slot_of(a.0) == slot_of(b.0)) {
            let slot = slot_of(group[0].0);
            // The field is a big-endian number: slot 0 is the lowest bit of the last byte.
            bits[31 - usize::from(slot / 8)] |= 1 << (slot % 8);
            let mut name = format!("{slot:02X}").into_bytes();
            let child = match group {
                &[(_, index)] => {
                    let entry = &self.entries[index as usize];
                    name.extend_from_slice(&entry.name);
                    entry.link
                }
                _ if depth + 1 == DEPTH_MAX => {
                    let name = |at: usize| self.entries[group[at].1 as usize].name.clone();
                    return Err(DirectoryError::Collision(name(0), name(1)).into());
                }
                _ => {
                    let mut prefix = prefix;
                    prefix[level] = slot;
                    self.build(depth + 1, prefix, group, emit)?
                }
            };
            dagpb::push_link(&mut out, &child.cid, &name, child.tsize);
            below.push(child.tsize);
        }
        let cut = bits
            .iter()
            .position(|&byte| byte != 0)
            .unwrap_or(bits.len());
        dagpb::push_data(&mut out, &message::shard(&bits[cut..]));
        let link = link(&out, below.into_iter());
        emit(Node {
            cid: link.cid,
            tsize: link.tsize,
            bytes: &out,
            place: NodePlace::Shard { depth, prefix },
        })?;
        Ok(link)
    }
}
