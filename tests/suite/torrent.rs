//! Torrents against the vectors of an independent implementation, whose info hashes libtorrent confirms.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use manifs::block::{BLOCK_BYTES, Block, BlockRef, Digest};
use manifs::catalog::Catalog;
use manifs::manifest::{CatalogBlocks, PackageVersion};
use manifs::torrent::{Info, Layout, NotOffered, Place, TorrentError, block_at, rebuild};
use serde_json::{Value, json};

use super::catalog::{Item, bytes_of, items, write};
use crate::common;

/// Returns a layout's files as the vectors give them: path, length, offset.
fn files(layout: &Layout, name: &dyn Fn(u32) -> String) -> Vec<Value> {
    let span = |place: Place, len: u64, offset: u64| match place {
        Place::Catalog { .. } => json!([".manifs/catalog", len, offset]),
        Place::File { row, .. } => json!([name(row), len, offset]),
        Place::Padding => json!([format!(".pad/{len}"), len, offset]),
    };
    layout
        .spans(0..layout.bytes())
        .map(|found| {
            span(
                found.place,
                found.bytes.end - found.bytes.start,
                found.bytes.start,
            )
        })
        .collect()
}

#[test]
fn layouts_are_the_vectors() {
    let vectors = common::vectors("catalog.json");
    for case in vectors["layouts"].as_array().unwrap() {
        let entries = case["entries"].as_array().unwrap();
        let sizes = (1..).zip(entries.iter().map(|entry| entry[1].as_u64().unwrap()));
        let layout = Layout::new(case["catalog_size"].as_u64().unwrap(), sizes.clone()).unwrap();
        assert_eq!(layout.piece_bytes(), case["piece_length"], "{case}");
        assert_eq!(layout.piece_count(), case["pieces"], "{case}");
        let name = |row: u32| entries[row as usize - 1][0].as_str().unwrap().to_owned();
        // Empty files are in the info dictionary, but nothing of them lies anywhere.
        let mut expected = case["files"].as_array().unwrap().clone();
        expected.retain(|file| file[1] != 0);
        assert_eq!(files(&layout, &name), expected, "{case}");
        both_ways(&layout, sizes);
    }
}

/// Checks that a file's offset leads back to it, and that spans are cut where asked.
fn both_ways(layout: &Layout, sizes: impl Iterator<Item = (u32, u64)>) {
    for (row, size) in sizes {
        let Some(start) = layout.offset_of(row) else {
            assert_eq!(size, 0);
            continue;
        };
        for (at, len) in [(0, 1), (size - 1, 1), (size / 2, size - size / 2)] {
            let spans: Vec<_> = layout.spans(start + at..start + at + len).collect();
            assert_eq!(spans.len(), 1);
            assert_eq!(spans[0].place, Place::File { row, offset: at });
            assert_eq!(spans[0].bytes, start + at..start + at + len);
        }
    }
    assert_eq!(layout.offset_of(u32::MAX), None);
    let last = layout.piece(layout.piece_count() - 1);
    assert!(!last.is_empty() && last.end == layout.bytes());
    assert!(layout.piece(layout.piece_count()).is_empty());
    assert!(layout.spans(layout.bytes()..u64::MAX).next().is_none());
}

/// A tree in memory, with every block by its digest.
struct Tree {
    name: String,
    catalog: Vec<u8>,
    blocks: CatalogBlocks,
    stored: BTreeMap<Digest, Bytes>,
}

impl Tree {
    fn of(tree: &Value, items: &BTreeMap<Vec<u8>, Item>) -> Tree {
        let sealed = write(items, tree["preserve"] == true, tree["mtime"].as_i64());
        let catalog = bytes_of(&sealed);
        let mut stored = BTreeMap::new();
        let mut keep = |bytes: &[u8]| -> Vec<Digest> {
            let blocks = bytes.chunks(BLOCK_BYTES as usize);
            blocks
                .map(|block| {
                    let digest = Digest::of(block);
                    stored
                        .entry(digest)
                        .or_insert_with(|| Bytes::copy_from_slice(block));
                    digest
                })
                .collect()
        };
        let blocks = CatalogBlocks {
            size: catalog.len() as u64,
            blocks: keep(&catalog),
        };
        for item in items.values() {
            keep(&item.content);
        }
        let package: PackageVersion = format!(
            "{}@{}",
            tree["name"].as_str().unwrap(),
            tree["version"].as_str().unwrap()
        )
        .parse()
        .unwrap();
        Tree {
            name: package.tree_name(),
            catalog,
            blocks,
            stored,
        }
    }

    fn load(&self, block: &BlockRef) -> io::Result<Block> {
        let bytes = self
            .stored
            .get(&block.digest)
            .ok_or(io::ErrorKind::NotFound)?;
        Block::verify(block.digest, block.len(), bytes.clone()).map_err(io::Error::other)
    }

    fn torrent(&self) -> Result<(Arc<Layout>, Info), TorrentError> {
        let catalog = Catalog::open(&self.catalog[..], self.blocks.size)?;
        let layout = Arc::new(Layout::of(&catalog)?);
        let load = &mut |block: &BlockRef| self.load(block);
        let info = rebuild(&self.name, &catalog, &self.blocks, &layout, load)?;
        Ok((layout, info))
    }
}

#[test]
fn trees_give_exactly_the_vectors_info_hashes() {
    let vectors = common::vectors("catalog.json");
    let full = common::full("torrent vectors of gigabytes or 200,000 files");
    let mut offered = 0;
    for vector in vectors["trees"].as_array().unwrap() {
        if vector["slow"] == true && !full {
            continue;
        }
        let id = vector["id"].as_str().unwrap();
        let tree = Tree::of(vector, &items(vector));
        let expect = &vector["expect"];
        match tree.torrent() {
            Ok((layout, info)) => {
                assert_eq!(
                    hex::encode(info.hash()),
                    expect["info_hash"],
                    "{id}: another info hash is another format: bump it"
                );
                assert_eq!(layout.piece_bytes(), expect["piece_length"], "{id}");
                Info::verify(info.bytes().clone(), &info.hash()).unwrap();
                // Whatever lies at a place is in the block that is said to hold it.
                let catalog = Catalog::open(&tree.catalog[..], tree.blocks.size).unwrap();
                for span in layout.spans(0..layout.bytes()).take(100) {
                    let block = block_at(&catalog, &tree.blocks, span.place).unwrap();
                    assert_eq!(block.is_none(), span.place == Place::Padding, "{id}");
                    if let Some((block, within)) = block {
                        assert_eq!(within, 0, "{id}");
                        tree.load(&block).unwrap();
                    }
                }
                offered += 1;
            }
            Err(TorrentError::NotOffered(reason)) => {
                assert_eq!(expect["info_hash"], Value::Null, "{id}: {reason}");
            }
            Err(error) => panic!("{id}: {error}"),
        }
    }
    assert!(offered > 20, "{offered}");
}

#[test]
fn what_is_too_much_is_not_offered_and_says_why() {
    let files = |count: u32| (1..=count).map(|row| (row, 1));
    assert!(Layout::new(300, files(200_000)).is_ok());
    assert_eq!(
        Layout::new(300, files(200_001)),
        Err(NotOffered::Files { files: 200_001 })
    );
    assert_eq!(
        Layout::new(300, [(1, u64::MAX), (2, u64::MAX)]),
        Err(NotOffered::Bytes)
    );
}

/// Changing these bytes changes info hashes that are signed: another torrent is another format, to be bumped.
#[test]
fn golden_info_dictionary_of_the_smallest_version() {
    let tree = json!({
        "name": "demo", "version": "1.0.0", "preserve": false, "mtime": null,
        "entries": [],
    });
    let (layout, info) = Tree::of(&tree, &items(&tree)).torrent().unwrap();
    assert_eq!((layout.bytes(), layout.piece_count()), (1 << 20, 1));
    let head = "d5:filesld6:lengthi128e4:pathl7:.manifs7:catalogeed4:attr1:p6:lengthi1048448e\
                4:pathl4:.pad7:1048448eee4:name10:demo-1.0.012:piece lengthi1048576e6:pieces20:";
    let bytes = info.bytes();
    assert_eq!(bytes[..head.len()], *head.as_bytes());
    assert_eq!(bytes.len(), head.len() + 21);
    assert_eq!(bytes.last(), Some(&b'e'));
}
