//! Files: a balanced tree over the file's blocks.
//!
//! A file of at most one block is that block, a raw leaf, also when it is empty. A larger one groups its leaves 1024 to
//! a node, left to right, level by level, until one node is left; the last group of a level may be as small as one. Only
//! inner nodes are built here: leaves are the blocks themselves, and only their digests are needed. Memory is 1024
//! links for each level.

use std::io;
use std::ops::Range;

use super::{Cid, Link, Node, NodePlace, dagpb, message, varint};
use crate::block::{BLOCK_BYTES, Digest};

/// The two numbers that decide the shape of a file's tree.
///
/// manifs writes [`Layout::V1_2025`] and nothing else; other values exist so that small trees of other programs' test
/// vectors can be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of a leaf; not zero.
    pub leaf_bytes: u64,
    /// Links of a full node; at least 2.
    pub width: u64,
}

impl Layout {
    /// The profile `unixfs-v1-2025`; changing it changes every CID.
    pub const V1_2025: Layout = Layout {
        leaf_bytes: BLOCK_BYTES,
        width: 1024,
    };
}

/// Returns the root CID of a file of `size` bytes with these leaves.
///
/// Always the root over exactly the leaves given: too few or too many for `size` give a CID that no file of that size
/// has.
pub fn root(size: u64, leaves: impl IntoIterator<Item = Digest>) -> Cid {
    let mut builder = Builder::new(size);
    let mut ignore = |_: Node<'_>| Ok(());
    let built = leaves
        .into_iter()
        .try_for_each(|leaf| builder.push(leaf, &mut ignore))
        .and_then(|()| builder.finish(&mut ignore));
    built.expect("only the callback can fail").cid
}

/// Returns what a link to a file of `size` bytes carries; it depends on nothing else.
pub fn tsize(size: u64) -> u64 {
    Layout::V1_2025.tsize(size)
}

/// Builds the inner nodes of a file from its leaves; none for a file of at most one block.
///
/// Nodes come children first, the root last. Leaves are treated as in [`root`].
///
/// # Errors
/// Whatever `emit` returns.
pub fn build(
    size: u64,
    leaves: impl IntoIterator<Item = Digest>,
    emit: &mut dyn FnMut(Node<'_>) -> io::Result<()>,
) -> io::Result<Link> {
    let mut builder = Builder::new(size);
    for leaf in leaves {
        builder.push(leaf, emit)?;
    }
    builder.finish(emit)
}

/// Builds one inner node again; `None` when the file has no such node or `leaves` returns too few or too many.
///
/// `leaves` is asked for at most 1024 digests at a time. A node of level `n` reads all leaves below it: 32 KiB of
/// digests for level 1, 32 MiB for level 2.
///
/// # Errors
/// Whatever `leaves` returns.
pub fn node<E>(
    size: u64,
    level: u8,
    index: u64,
    leaves: &mut dyn FnMut(Range<u64>) -> Result<Vec<Digest>, E>,
) -> Result<Option<Vec<u8>>, E> {
    Layout::V1_2025.node(size, level, index, leaves)
}

/// A leaf or node below the one that is being built.
struct Child {
    cid: Cid,
    measure: Measure,
}

/// Bytes of the file below a node, and bytes of its blocks.
#[derive(Clone, Copy)]
struct Measure {
    bytes: u64,
    tsize: u64,
}

/// Nodes of one level that wait for their parent.
#[derive(Default)]
struct Level {
    closed: u64,
    children: Vec<Child>,
}

/// Builds a file's tree from leaves that come one by one.
pub struct Builder {
    layout: Layout,
    size: u64,
    next: u64,
    levels: Vec<Level>,
}

impl Builder {
    /// Starts the tree of a file of `size` bytes.
    pub fn new(size: u64) -> Self {
        Self::with_layout(Layout::V1_2025, size)
    }

    /// Starts a tree of another shape.
    pub fn with_layout(layout: Layout, size: u64) -> Self {
        Builder {
            layout,
            size,
            next: 0,
            levels: Vec::new(),
        }
    }

    /// Adds the next leaf.
    ///
    /// # Errors
    /// Whatever `emit` returns.
    pub fn push(
        &mut self,
        leaf: Digest,
        emit: &mut dyn FnMut(Node<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let bytes = self.layout.leaf_len(self.size, self.next);
        self.next += 1;
        let mut child = Child {
            cid: Cid::raw(leaf),
            measure: Measure {
                bytes,
                tsize: bytes,
            },
        };
        for level in 0.. {
            if self.levels.len() == level {
                self.levels.push(Level::default());
            }
            self.levels[level].children.push(child);
            if (self.levels[level].children.len() as u64) < self.layout.width {
                break;
            }
            child = self.close(level, emit)?;
        }
        Ok(())
    }

    /// Closes what is open and returns the link to the root.
    ///
    /// # Errors
    /// Whatever `emit` returns.
    pub fn finish(mut self, emit: &mut dyn FnMut(Node<'_>) -> io::Result<()>) -> io::Result<Link> {
        if self.levels.is_empty() {
            return Ok(Link {
                cid: Cid::raw(Digest::EMPTY),
                tsize: 0,
            });
        }
        let mut level = 0;
        loop {
            let top = level + 1 == self.levels.len();
            let children = &self.levels[level].children;
            if let ([root], true) = (children.as_slice(), top) {
                return Ok(Link {
                    cid: root.cid,
                    tsize: root.measure.tsize,
                });
            }
            if !children.is_empty() {
                let child = self.close(level, emit)?;
                if top {
                    self.levels.push(Level::default());
                }
                self.levels[level + 1].children.push(child);
            }
            level += 1;
        }
    }

    fn close(
        &mut self,
        level: usize,
        emit: &mut dyn FnMut(Node<'_>) -> io::Result<()>,
    ) -> io::Result<Child> {
        let open = &mut self.levels[level];
        let bytes = encode(&open.children);
        let cid = Cid::dag_pb(Digest::of(&bytes));
        let measure = Measure {
            bytes: sum(open.children.iter().map(|child| child.measure.bytes)),
            tsize: sum(open.children.iter().map(|child| child.measure.tsize))
                .saturating_add(bytes.len() as u64),
        };
        open.children.clear();
        let index = open.closed;
        open.closed += 1;
        emit(Node {
            cid,
            tsize: measure.tsize,
            bytes: &bytes,
            place: NodePlace::File {
                level: u8::try_from(level + 1).expect("2^64 leaves of width 2 are 64 levels"),
                index,
            },
        })?;
        Ok(Child { cid, measure })
    }
}

fn encode(children: &[Child]) -> Vec<u8> {
    // 51 bytes a link and 5 a block size in a full node of full blocks.
    let mut out = Vec::with_capacity(children.len() * 60 + 16);
    for child in children {
        dagpb::push_link(&mut out, &child.cid, b"", child.measure.tsize);
    }
    let size = sum(children.iter().map(|child| child.measure.bytes));
    let data = message::file(size, children.iter().map(|child| child.measure.bytes));
    dagpb::push_data(&mut out, &data);
    out
}

fn sum(values: impl Iterator<Item = u64>) -> u64 {
    values.fold(0, u64::saturating_add)
}

impl Layout {
    /// Returns what a link to a file of `size` bytes carries.
    pub fn tsize(&self, size: u64) -> u64 {
        let mut level = 0;
        while self.count(size, level) > 1 {
            level += 1;
        }
        self.last(size, level).tsize
    }

    /// Builds one inner node again, as [`node`] does.
    ///
    /// # Errors
    /// Whatever `leaves` returns.
    pub fn node<E>(
        &self,
        size: u64,
        level: u8,
        index: u64,
        leaves: &mut dyn FnMut(Range<u64>) -> Result<Vec<Digest>, E>,
    ) -> Result<Option<Vec<u8>>, E> {
        let Some(below) = level.checked_sub(1) else {
            return Ok(None);
        };
        // A level of one node ends the tree.
        let available = self.count(size, below);
        if available < 2 || index >= self.count(size, level) {
            return Ok(None);
        }
        let first = index * self.width;
        let range = first..available.min(first + self.width);
        let digests = if below == 0 {
            let digests = leaves(range.clone())?;
            if digests.len() as u64 != range.end - range.start {
                return Ok(None);
            }
            digests
        } else {
            let mut digests = Vec::new();
            for child in range.clone() {
                let Some(bytes) = self.node(size, below, child, leaves)? else {
                    return Ok(None);
                };
                digests.push(Digest::of(&bytes));
            }
            digests
        };
        let full = self.full(below);
        let children: Vec<Child> = range
            .zip(digests)
            .map(|(child, digest)| Child {
                cid: if below == 0 {
                    Cid::raw(digest)
                } else {
                    Cid::dag_pb(digest)
                },
                measure: if child + 1 == available {
                    self.last(size, below)
                } else {
                    full
                },
            })
            .collect();
        Ok(Some(encode(&children)))
    }

    /// Returns the length of leaf `index`; 0 past the end.
    fn leaf_len(&self, size: u64, index: u64) -> u64 {
        let start = index.saturating_mul(self.leaf_bytes);
        size.saturating_sub(start).min(self.leaf_bytes)
    }

    /// Returns how many nodes `level` has; leaves are level 0, and an empty file has one.
    fn count(&self, size: u64, level: u8) -> u64 {
        let mut count = size.div_ceil(self.leaf_bytes).max(1);
        for _ in 0..level {
            count = count.div_ceil(self.width);
        }
        count
    }

    /// Measures a node of `level` with all leaves below it full.
    fn full(&self, level: u8) -> Measure {
        let mut measure = Measure {
            bytes: self.leaf_bytes,
            tsize: self.leaf_bytes,
        };
        for _ in 0..level {
            measure = wrap(self.width - 1, measure, measure);
        }
        measure
    }

    /// Measures the last node of `level`.
    fn last(&self, size: u64, level: u8) -> Measure {
        let bytes = self.leaf_len(size, self.count(size, 0) - 1);
        let mut measure = Measure {
            bytes,
            tsize: bytes,
        };
        for below in 0..level {
            let children = (self.count(size, below) - 1) % self.width;
            measure = wrap(children, self.full(below), measure);
        }
        measure
    }
}

/// Measures a node over `count` children of one measure and a last one of another.
fn wrap(count: u64, full: Measure, last: Measure) -> Measure {
    let total = |each: u64, last: u64| count.saturating_mul(each).saturating_add(last);
    let bytes = total(full.bytes, last.bytes);
    let links = total(
        dagpb::link_len(0, full.tsize),
        dagpb::link_len(0, last.tsize),
    );
    let sizes = total(1 + varint::len(full.bytes), 1 + varint::len(last.bytes));
    // The message: type and file size, then the block sizes.
    let data = dagpb::data_len(2 + 1 + varint::len(bytes) + sizes);
    Measure {
        bytes,
        tsize: total(full.tsize, last.tsize).saturating_add(links + data),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds a tree and checks sizes and each node's rebuilding; returns how many nodes it has.
    fn check(layout: Layout, size: u64) -> usize {
        let leaf = |index: u64| Digest::of(&index.to_le_bytes());
        let count = size.div_ceil(layout.leaf_bytes);
        let mut builder = Builder::with_layout(layout, size);
        let mut nodes: Vec<(NodePlace, Vec<u8>, u64)> = Vec::new();
        let mut emit = |node: Node<'_>| {
            assert_eq!(node.cid, Cid::dag_pb(Digest::of(node.bytes)));
            nodes.push((node.place, node.bytes.to_vec(), node.tsize));
            Ok(())
        };
        for index in 0..count {
            builder.push(leaf(index), &mut emit).unwrap();
        }
        let link = builder.finish(&mut emit).unwrap();
        assert_eq!(link.tsize, layout.tsize(size), "{layout:?} {size}");
        for (place, bytes, _) in &nodes {
            let NodePlace::File { level, index } = *place else {
                panic!("a file has nodes of a file");
            };
            let mut leaves = |range: Range<u64>| Ok::<_, ()>(range.map(leaf).collect());
            let again = layout.node(size, level, index, &mut leaves).unwrap();
            assert_eq!(again.as_ref(), Some(bytes), "{layout:?} {size} {place:?}");
        }
        if let Some((_, bytes, tsize)) = nodes.last() {
            assert_eq!(link.cid, Cid::dag_pb(Digest::of(bytes)));
            assert_eq!(link.tsize, *tsize);
        }
        nodes.len()
    }

    #[test]
    fn every_small_tree_measures_and_rebuilds_right() {
        for width in 2..6 {
            for leaf_bytes in [1, 4] {
                for size in 0..150 {
                    check(Layout { leaf_bytes, width }, size);
                }
            }
        }
    }

    #[test]
    fn the_profile_around_its_boundaries() {
        let b = BLOCK_BYTES;
        for (size, nodes) in [
            (0, 0),
            (1, 0),
            (b - 1, 0),
            (b, 0),
            (b + 1, 1),
            (1024 * b - 1, 1),
            (1024 * b, 1),
            (1024 * b + 1, 3),
            (2048 * b, 3),
            (2048 * b + 1, 4),
        ] {
            assert_eq!(check(Layout::V1_2025, size), nodes, "{size}");
        }
    }

    #[test]
    fn a_terabyte_and_one_byte_has_three_levels() {
        let size = 1024 * 1024 * BLOCK_BYTES + 1;
        let mut levels = [0; 4];
        let leaf = Digest::EMPTY;
        let link = build(size, (0..1024 * 1024 + 1).map(|_| leaf), &mut |node| {
            let NodePlace::File { level, index } = node.place else {
                panic!("a file has nodes of a file");
            };
            assert_eq!(index, levels[usize::from(level)]);
            levels[usize::from(level)] += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!(levels, [0, 1025, 2, 1]);
        assert_eq!(link.tsize, tsize(size));
    }

    #[test]
    fn wrong_numbers_of_leaves_give_other_roots() {
        let leaf = |index: u64| Digest::of(&index.to_le_bytes());
        let size = 3 * BLOCK_BYTES;
        let right = root(size, (0..3).map(leaf));
        for count in [0, 1, 2, 4, 5] {
            assert_ne!(root(size, (0..count).map(leaf)), right, "{count}");
        }
        assert_eq!(root(0, []), Cid::raw(Digest::EMPTY));
    }

    #[test]
    fn there_is_no_node_outside_the_tree() {
        let size = 2 * BLOCK_BYTES;
        let mut leaves = |range: Range<u64>| Ok::<_, ()>(range.map(|_| Digest::EMPTY).collect());
        assert!(node(size, 1, 0, &mut leaves).unwrap().is_some());
        for (size, level, index) in [
            (size, 0, 0),
            (size, 1, 1),
            (size, 2, 0),
            (size, 255, 0),
            (size, 1, u64::MAX),
            (0, 1, 0),
            (BLOCK_BYTES, 1, 0),
        ] {
            assert_eq!(node(size, level, index, &mut leaves), Ok(None));
        }
        let mut short = |_: Range<u64>| Ok::<_, ()>(vec![Digest::EMPTY]);
        assert_eq!(node(size, 1, 0, &mut short), Ok(None));
        assert_eq!(node(size, 1, 0, &mut |_: Range<u64>| Err("io")), Err("io"));
        assert!(tsize(u64::MAX) >= u64::MAX - 1);
    }
}
