//! The order of the blocks in a CAR: depth first, parents before children, children in the order of their links.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;

use crate::unixfs::decode::{Decoded, FileNode, decode};
use crate::unixfs::{AnyCid, Codec, LEVELS_MAX};

use super::Shared;
use super::reply::Failure;
use super::request::{CarParams, EntityBytes, Scope};
use super::resolve::{self, Found};

/// Blocks that a walk remembers to have sent. When there are more, the rest is still right, and may be sent twice.
const SEEN_MAX: usize = 1 << 20;

/// The next section.
pub(super) enum Step {
    /// A node that had to be read to find its children.
    Node(AnyCid, Bytes),
    /// A block that is not looked into; whoever sends it reads it.
    Leaf(AnyCid),
}

/// What is still to be sent, the next one on top. Bounded: a node's links times the levels.
pub(super) struct Walk {
    shared: Arc<dyn Shared>,
    stack: Vec<Task>,
    seen: Option<Seen>,
}

struct Task {
    cid: AnyCid,
    level: usize,
    what: What,
}

enum What {
    /// This node, which has been read; nothing below.
    Known(Bytes),
    /// This block; nothing below.
    Block,
    /// This node and everything below.
    All,
    /// A file with its blocks or a range of it; a directory with its shards.
    Entity(Option<EntityBytes>),
    /// This shard and those below.
    Shards,
    /// A part of a file, of which these bytes are wanted, counted from its own first one.
    Part(u64, u64),
}

impl What {
    /// Whether a second visit sends the same blocks as the first. Of a file's part that occurs twice different
    /// bytes may be wanted.
    fn is_the_same_each_time(&self) -> bool {
        !matches!(self, What::Part(..))
    }
}

impl Walk {
    pub(super) fn new(shared: Arc<dyn Shared>, found: Found, params: CarParams) -> Self {
        let what = match params.scope {
            Scope::Block => What::Block,
            Scope::Entity(bytes) => What::Entity(bytes),
            Scope::All => What::All,
        };
        let way = found
            .way
            .into_iter()
            .map(|(cid, bytes)| (cid, What::Known(bytes)));
        let mut stack: Vec<Task> = way
            .chain([(found.end, what)])
            .map(|(cid, what)| Task {
                cid,
                level: 0,
                what,
            })
            .collect();
        stack.reverse();
        Walk {
            shared,
            stack,
            seen: (!params.dups).then(Seen::default),
        }
    }

    /// Returns the next section; `None` after the last.
    pub(super) async fn step(&mut self) -> Result<Option<Step>, Failure> {
        while let Some(Task { cid, level, what }) = self.stack.pop() {
            // The block of an identity CID is in the CID itself, and never sent.
            let inline = cid.identity().is_some();
            let fresh = self.seen.as_mut().is_none_or(|seen| seen.insert(&cid));
            if !fresh && what.is_the_same_each_time() {
                continue;
            }
            let send = fresh && !inline;
            if let What::Known(bytes) = what {
                if send {
                    return Ok(Some(Step::Node(cid, bytes)));
                }
                continue;
            }
            if matches!(what, What::Block) || cid.codec() != Some(Codec::DagPb) {
                if send {
                    return Ok(Some(Step::Leaf(cid)));
                }
                continue;
            }
            let bytes = resolve::node(&*self.shared, &cid).await?;
            let bytes = bytes.ok_or_else(|| Failure::Failed(format!("{cid} is not here")))?;
            self.descend(&cid, &bytes, level + 1, &what)?;
            if send {
                return Ok(Some(Step::Node(cid, bytes)));
            }
        }
        Ok(None)
    }

    /// Pushes what is to be sent below a node.
    fn descend(
        &mut self,
        cid: &AnyCid,
        bytes: &[u8],
        level: usize,
        what: &What,
    ) -> Result<(), Failure> {
        if level > LEVELS_MAX {
            return Err(Failure::Failed(format!("{cid} is too deep")));
        }
        let before = self.stack.len();
        let mut push = |cid, what| self.stack.push(Task { cid, level, what });
        match (decode(cid, bytes)?, what) {
            (Decoded::Symlink(_), _) | (Decoded::Directory(_), What::Entity(_)) => {}
            (Decoded::File(file), What::Entity(Some(wanted))) => {
                if let Some((from, until)) = wanted.within(file.size) {
                    push_part(file, from, until, &mut push);
                }
            }
            (Decoded::File(file), What::Part(from, until)) => {
                push_part(file, *from, *until, &mut push);
            }
            (Decoded::File(file), _) => {
                for child in file.children {
                    push(child.cid, What::All);
                }
            }
            (Decoded::Directory(entries), _) => {
                for entry in entries {
                    push(entry.cid, What::All);
                }
            }
            (Decoded::Shard(shard), what) => {
                let all = matches!(what, What::All);
                for slot in shard.slots() {
                    match slot.name {
                        _ if all => push(slot.cid.clone(), What::All),
                        None => push(slot.cid.clone(), What::Shards),
                        Some(_) => {}
                    }
                }
            }
        }
        self.stack[before..].reverse();
        Ok(())
    }
}

/// Pushes the children of a file's node that hold bytes from `from` until `until`.
fn push_part(file: FileNode<'_>, from: u64, until: u64, push: &mut impl FnMut(AnyCid, What)) {
    let mut start = file.data.len() as u64;
    for child in file.children {
        let end = start + child.bytes;
        if start < until && end > from {
            let part = What::Part(from.saturating_sub(start), until.min(end) - start);
            push(child.cid, part);
        }
        start = end;
    }
}

/// The blocks that were sent, by the first half of their digest: nobody finds two blocks that share 128 bits.
#[derive(Default)]
struct Seen(HashSet<u128>);

impl Seen {
    /// Returns whether the block is a new one.
    fn insert(&mut self, cid: &AnyCid) -> bool {
        let Some(half) = cid
            .known()
            .and_then(|cid| cid.digest().as_bytes().first_chunk::<16>().copied())
        else {
            return true;
        };
        let half = u128::from_le_bytes(half);
        if self.0.len() >= SEEN_MAX {
            return !self.0.contains(&half);
        }
        self.0.insert(half)
    }
}
