//! Catalogs against the vectors of an independent implementation.

use std::collections::BTreeMap;

use manifs::block::{BLOCK_BYTES, Digest, block_count, block_len};
use manifs::catalog::{
    self, Catalog, CatalogError, Kind, NewEntry, Rule, Sealed, Times, Totals, WholeFile, Writer,
    sums, validate, verify_ids,
};
use manifs::unixfs::{Cid, file};
use proptest::prelude::*;
use serde_json::Value;

use super::catalog_reading::Counting;
use crate::common;

/// Returns the bytes that a vector's content describes.
pub(crate) fn content(value: &Value, path: &str) -> Vec<u8> {
    if let Some(text) = value["hex"].as_str() {
        return hex::decode(text).unwrap();
    }
    if let Some(text) = value["text"].as_str() {
        return text.as_bytes().to_vec();
    }
    if let Some(bytes) = value["repeat"].as_str() {
        return hex::decode(bytes)
            .unwrap()
            .repeat(value["times"].as_u64().unwrap() as usize);
    }
    if let Some(parts) = value["concat"].as_array() {
        return parts.iter().flat_map(|part| content(part, path)).collect();
    }
    assert_eq!(value["own_name"], true, "{value}");
    path.rsplit('/').next().unwrap().as_bytes().to_vec()
}

/// An entry of a vector's tree.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) kind: Kind,
    pub(crate) mode: u16,
    pub(crate) mtime_ns: i64,
    pub(crate) content: Vec<u8>,
    pub(crate) target: Vec<u8>,
}

/// Returns a vector's entries by path; the root's is empty.
pub(crate) fn items(tree: &Value) -> BTreeMap<Vec<u8>, Item> {
    let mut items = BTreeMap::new();
    for entry in tree["entries"].as_array().unwrap() {
        let kind = match entry["kind"].as_str().unwrap() {
            "dir" => Kind::Directory,
            "file" => Kind::File,
            "symlink" => Kind::Symlink,
            other => panic!("{other}"),
        };
        let mut add = |path: String| {
            let item = Item {
                kind,
                mode: u16::from_str_radix(entry["mode"].as_str().unwrap_or("0777"), 8).unwrap(),
                mtime_ns: entry["mtime_ns"].as_i64().unwrap(),
                content: if kind == Kind::File {
                    content(&entry["content"], &path)
                } else {
                    Vec::new()
                },
                target: entry["target"]
                    .as_str()
                    .unwrap_or_default()
                    .as_bytes()
                    .to_vec(),
            };
            items.insert(path.into_bytes(), item);
        };
        match entry["numbered"].as_object() {
            None => add(entry["path"].as_str().unwrap().to_owned()),
            Some(numbered) => {
                let word = |name: &str| numbered[name].as_str().unwrap();
                let number = |name: &str| numbered[name].as_u64().unwrap();
                for i in number("from")..=number("to") {
                    let pad = number("pad") as usize;
                    add(format!("{}{i:0pad$}{}", word("prefix"), word("suffix")));
                }
            }
        }
    }
    // A directory that is not listed is 0755 with time 1700000000 s.
    let paths: Vec<Vec<u8>> = items.keys().cloned().collect();
    for path in paths {
        for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            items
                .entry(path[..at].to_vec())
                .or_insert_with(plain_directory);
        }
    }
    items.entry(Vec::new()).or_insert_with(plain_directory);
    items
}

fn plain_directory() -> Item {
    Item {
        kind: Kind::Directory,
        mode: 0o755,
        mtime_ns: 1_700_000_000_000_000_000,
        content: Vec::new(),
        target: Vec::new(),
    }
}

/// Writes a catalog as `publish` would, by the options of the vector.
pub(crate) fn write(items: &BTreeMap<Vec<u8>, Item>, preserve: bool, mtime: Option<i64>) -> Sealed {
    let dir = tempfile::tempdir().unwrap();
    let mut children: BTreeMap<Vec<u8>, Vec<(Vec<u8>, &Item)>> = BTreeMap::new();
    for (path, item) in items.iter().filter(|(path, _)| !path.is_empty()) {
        let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (path[..at].to_vec(), path[at + 1..].to_vec()),
            None => (Vec::new(), path.clone()),
        };
        children.entry(parent).or_default().push((name, item));
    }
    let mode = |item: &Item| match (preserve, item.kind) {
        (true, _) => item.mode & 0o777,
        (false, Kind::File) if item.mode & 0o100 == 0 => 0o644,
        (false, _) => 0o755,
    };
    let time = |item: &Item| mtime.map_or(item.mtime_ns, |seconds| seconds * 1_000_000_000);
    let root = &items[&Vec::new()];
    let mut writer = Writer::new(dir.path(), mode(root), time(root)).unwrap();
    while let Some((row, path)) = writer.next_directory().unwrap() {
        let mut entries = children.remove(&path).unwrap_or_default();
        entries.sort_by(|one, other| one.0.cmp(&other.0));
        let new: Vec<NewEntry> = entries
            .iter()
            .map(|(name, item)| NewEntry {
                name: name.clone(),
                kind: item.kind,
                mode: mode(item),
                mtime_ns: time(item),
                size: item.content.len() as u64,
                target: item.target.clone(),
            })
            .collect();
        let first = writer.add_children(row, &new).unwrap();
        for (number, (_, item)) in (first..)
            .zip(&entries)
            .filter(|(_, (_, item))| item.kind == Kind::File)
        {
            let size = item.content.len() as u64;
            if size <= BLOCK_BYTES {
                writer.set_id(number, Digest::of(&item.content)).unwrap();
            } else {
                let digests: Vec<Digest> = item
                    .content
                    .chunks(BLOCK_BYTES as usize)
                    .map(Digest::of)
                    .collect();
                // In pieces and out of order, as hashing threads do.
                let middle = digests.len() / 2;
                writer
                    .set_digests(number, middle as u64, &digests[middle..])
                    .unwrap();
                writer.set_digests(number, 0, &digests[..middle]).unwrap();
                let id = file::root(size, digests.iter().copied()).digest();
                writer
                    .set_whole(number, Digest::of(&item.content), id)
                    .unwrap();
            }
        }
    }
    let times = if preserve || mtime.is_some() {
        Times::Keep
    } else {
        Times::Newest
    };
    writer.finish(times, &mut |_, _| Ok(())).unwrap()
}

pub(crate) fn bytes_of(sealed: &Sealed) -> Vec<u8> {
    let mut bytes = vec![0; sealed.len as usize];
    std::os::unix::fs::FileExt::read_exact_at(&sealed.file, &mut bytes, 0).unwrap();
    bytes
}

fn totals(value: &Value) -> Totals {
    let number = |name: &str| value[name].as_u64().unwrap();
    Totals {
        files: number("files"),
        directories: number("directories"),
        bytes: number("bytes"),
    }
}

#[test]
fn trees_give_exactly_the_vectors_catalogs() {
    let vectors = common::vectors("catalog.json");
    let full = common::full("catalog vectors of gigabytes or 200,000 files");
    let mut checked = 0;
    for tree in vectors["trees"].as_array().unwrap() {
        if tree["slow"] == true && !full {
            continue;
        }
        let id = tree["id"].as_str().unwrap();
        let items = items(tree);
        let sealed = write(&items, tree["preserve"] == true, tree["mtime"].as_i64());
        let bytes = bytes_of(&sealed);
        let expect = &tree["expect"];
        assert_eq!(sealed.root.to_string(), expect["root"], "{id}");
        assert_eq!(sealed.totals, totals(&expect["totals"]), "{id}");
        match expect["catalog"]["hex"]
            .as_str()
            .or(expect["catalog"].as_str())
        {
            Some(text) => assert_eq!(
                hex::encode(&bytes),
                text,
                "{id}: another catalog is another format: bump it"
            ),
            None => {
                assert_eq!(
                    Digest::of(&bytes).to_string(),
                    expect["catalog"]["sha256"],
                    "{id}"
                );
                assert_eq!(bytes.len() as u64, expect["catalog"]["size"], "{id}");
            }
        }
        validate(&bytes, sealed.len, &sealed.totals, sealed.root)
            .unwrap_or_else(|error| panic!("{id}: {error}"));
        let catalog = Catalog::open(&bytes[..], sealed.len).unwrap();
        verify_ids(&catalog).unwrap_or_else(|error| panic!("{id}: {error}"));
        if let Some(text) = expect["sha256sums"].as_str() {
            let sums = sums::text(&catalog, 1 << 20).unwrap().unwrap();
            assert_eq!(String::from_utf8(sums).unwrap(), text, "{id}");
        }
        read_back(&catalog, &items, id);
        checked += 1;
    }
    assert!(checked > 20, "{checked}");
}

/// Checks that reading by position gives what was written.
fn read_back<R: catalog::ReadAt>(catalog: &Catalog<R>, items: &BTreeMap<Vec<u8>, Item>, id: &str) {
    assert_eq!(catalog.rows() as usize, items.len(), "{id}");
    for (path, item) in items.iter().step_by(1 + items.len() / 2000) {
        let (number, row) = catalog
            .find(path)
            .unwrap()
            .unwrap_or_else(|| panic!("{id}: {path:?} is not found"));
        assert_eq!(&catalog.path(number).unwrap(), path, "{id}");
        assert_eq!(row.kind(), item.kind, "{id}");
        match row.kind() {
            Kind::Symlink => assert_eq!(catalog.target(&row).unwrap(), item.target, "{id}"),
            Kind::File => {
                assert_eq!(row.size(), item.content.len() as u64, "{id}");
                assert_eq!(
                    catalog.whole(&row).unwrap(),
                    Digest::of(&item.content),
                    "{id}"
                );
                for index in 0..row.blocks() {
                    let block = catalog.block(&row, index).unwrap();
                    let start = (index * BLOCK_BYTES) as usize;
                    let bytes = &item.content[start..start + block_len(row.size(), index) as usize];
                    assert_eq!(block.digest, Digest::of(bytes), "{id}");
                }
                assert!(
                    catalog.block(&row, block_count(row.size())).is_err(),
                    "{id}"
                );
            }
            Kind::Directory => {
                let mut names = Vec::new();
                catalog
                    .entries(&row, 0, &mut |number, row, name| {
                        assert_eq!(
                            (row.number(), row.parent()),
                            (number, catalog.find(path).unwrap().unwrap().0)
                        );
                        names.push(name.to_vec());
                        std::ops::ControlFlow::Continue(())
                    })
                    .unwrap();
                assert_eq!(names.len() as u64, row.size(), "{id}");
                assert!(names.is_sorted(), "{id}");
                assert!(
                    catalog.lookup(&row, b"no such name").unwrap().is_none(),
                    "{id}"
                );
            }
        }
    }
}

#[test]
fn hostile_catalogs_are_refused_for_their_reason() {
    let vectors = common::vectors("catalog.json");
    let items = items(&vectors["base"]);
    let base = write(
        &items,
        vectors["base"]["preserve"] == true,
        vectors["base"]["mtime"].as_i64(),
    );
    let mut same = 0;
    let cases = vectors["invalid"].as_array().unwrap();
    for case in cases {
        let id = case["id"].as_str().unwrap();
        let bytes = content(&case["catalog"], "");
        // The manifest agrees with the header and row 0, so that only the catalog's own rules refuse.
        let open = Catalog::open(&bytes[..], bytes.len() as u64);
        let (totals, root) = match open
            .as_ref()
            .map(|catalog| (catalog.totals(), catalog.row(0)))
        {
            Ok((totals, Ok(row))) => (totals, row.cid()),
            Ok((totals, Err(_))) => (totals, base.root),
            Err(_) => (base.totals, base.root),
        };
        let error = validate(&bytes, bytes.len() as u64, &totals, root).expect_err(id);
        let word = error
            .rule()
            .unwrap_or_else(|| panic!("{id}: {error}"))
            .word();
        same += usize::from(word == case["reason"]);
        walk_everything(&bytes);
    }
    // Where a change breaks several rules, another order of checks gives another word.
    assert!(
        same * 10 >= cases.len() * 8,
        "{same} of {} are refused by the first rule that the vectors name",
        cases.len()
    );
    println!("{same} of {} refused for the very reason", cases.len());
}

#[test]
fn ids_that_lie_are_found_by_verify() {
    let vectors = common::vectors("catalog.json");
    let base = items(&vectors["base"]);
    for case in vectors["ids_not_covered_by_valid"].as_array().unwrap() {
        let id = case["id"].as_str().unwrap();
        let bytes = content(&case["catalog"], "");
        let catalog = Catalog::open(&bytes[..], bytes.len() as u64).unwrap();
        validate(
            &bytes,
            bytes.len() as u64,
            &catalog.totals(),
            catalog.row(0).unwrap().cid(),
        )
        .expect(id);
        let ids = verify_ids(&catalog).map_err(|error| error.rule());
        let contents = verify_contents(&catalog, &base).map_err(|error| error.rule());
        if id == "whole-digest" {
            assert_eq!((ids, contents), (Ok(()), Err(Some(Rule::WholeDigest))));
        } else {
            let refused = Err(Some(Rule::DirectoryId));
            assert_eq!((ids, contents), (refused, Ok(())), "{id}");
        }
    }
}

/// Compares the digest of each whole file with its bytes.
fn verify_contents(
    catalog: &Catalog<&[u8]>,
    items: &BTreeMap<Vec<u8>, Item>,
) -> Result<(), CatalogError> {
    for (path, item) in items.iter().filter(|(_, item)| item.kind == Kind::File) {
        let (_, row) = catalog.find(path)?.expect("every file is in the catalog");
        let mut whole = WholeFile::default();
        for block in item.content.chunks(BLOCK_BYTES as usize) {
            whole.add(block);
        }
        whole.check(catalog, &row)?;
    }
    Ok(())
}

#[test]
fn a_catalog_that_is_not_the_manifests_is_refused() {
    let vectors = common::vectors("catalog.json");
    let items = items(&vectors["base"]);
    let base = write(
        &items,
        vectors["base"]["preserve"] == true,
        vectors["base"]["mtime"].as_i64(),
    );
    let bytes = bytes_of(&base);
    for case in vectors["against_manifest"].as_array().unwrap() {
        let manifest = &case["manifest"];
        let root: Cid = manifest["ipfs"]["root"].as_str().unwrap().parse().unwrap();
        let catalog = &manifest["catalog"];
        let blocks: Vec<String> = bytes
            .chunks(BLOCK_BYTES as usize)
            .map(|block| Digest::of(block).to_string())
            .collect();
        // A block with another digest never gets as far as `validate`.
        let by_digest = catalog["blocks"]
            .as_array()
            .unwrap()
            .iter()
            .ne(blocks.iter());
        match validate(
            &bytes,
            catalog["size"].as_u64().unwrap(),
            &totals(manifest),
            root,
        ) {
            Ok(()) => assert!(case["result"] == "ok" || by_digest, "{case}"),
            Err(error) => assert_ne!(case["result"], "ok", "{case}: {error}"),
        }
    }
}

/// Reads everything that can be read; nothing may panic, whatever the bytes.
fn walk_everything(bytes: &[u8]) {
    let counting = Counting::new(bytes);
    let Ok(catalog) = Catalog::open(&counting, bytes.len() as u64) else {
        return;
    };
    for number in 0..catalog.rows().min(1000) {
        let Ok(row) = catalog.row(number) else {
            continue;
        };
        let _ = (
            catalog.name(&row),
            catalog.target(&row),
            catalog.path(number),
            catalog.whole(&row),
            catalog.block(&row, 0),
        );
        let _ = catalog::links::leaves(&catalog, number);
        // 27 steps to 32 rows of at most 2^32, these, and each of their names.
        let (reads, _, _) = counting.cost(|| catalog.lookup(&row, b"a"));
        assert!(reads <= 2 * 27 + 2 + 6, "{reads}");
        let mut seen = 0;
        let _ = catalog.entries(&row, 0, &mut |_, _, _| {
            seen += 1;
            if seen > 2000 {
                std::ops::ControlFlow::Break(())
            } else {
                std::ops::ControlFlow::Continue(())
            }
        });
    }
    let _ = verify_ids(&catalog);
    let _ = sums::text(&catalog, 1 << 16);
}

#[test]
fn links_that_leave_are_told_from_those_that_only_look_like_it() {
    let link = |target: &str| Item {
        kind: Kind::Symlink,
        target: target.into(),
        ..plain_directory()
    };
    let cases = [
        ("inside", "d/../x", false),
        ("up", "../x", true),
        ("absolute", "/etc/passwd", true),
        ("d/up-and-back", "../d/../../pkg/x", true),
        ("d/to-root", "..", false),
        ("d/above-root", "../..", true),
        ("through-link", "d/to-root/..", true),
        ("virtual", "no/such/../../x", false),
        ("virtual-out", "no/such/../../../x", true),
        ("self", "self", false),
        ("dots", "./d/././..", false),
        ("slashes", "d//to-root///x", false),
        ("to-absolute", "absolute", true),
    ];
    let mut items: BTreeMap<Vec<u8>, Item> = cases
        .iter()
        .map(|(path, target, _)| (path.as_bytes().to_vec(), link(target)))
        .collect();
    items.insert(b"d".to_vec(), plain_directory());
    items.insert(Vec::new(), plain_directory());
    let sealed = write(&items, true, None);
    let bytes = bytes_of(&sealed);
    let catalog = Catalog::open(&bytes[..], sealed.len).unwrap();
    for (path, target, leaves) in cases {
        let (row, _) = catalog.find(path.as_bytes()).unwrap().unwrap();
        assert_eq!(
            catalog::links::leaves(&catalog, row).unwrap(),
            leaves,
            "{path} -> {target}"
        );
    }
}

fn arbitrary_tree() -> impl Strategy<Value = BTreeMap<Vec<u8>, Item>> {
    let name = prop::collection::vec(
        prop_oneof![Just(b'a'), Just(b'b'), Just(0xff), Just(b'.'), Just(b'z')],
        1..4,
    )
    .prop_filter("dots are no names", |name| {
        !matches!(&name[..], b"." | b"..")
    });
    let path = prop::collection::vec(name, 1..5);
    let leaf = (
        0_u8..3,
        any::<i64>(),
        0_u16..0o1000,
        prop::collection::vec(1_u8..255, 1..40),
    );
    prop::collection::vec((path, leaf), 0..60).prop_map(|leaves| {
        let mut items = BTreeMap::from([(Vec::new(), plain_directory())]);
        for (path, (kind, mtime_ns, mode, bytes)) in leaves {
            let blocked = (1..path.len()).any(|depth| {
                items
                    .get(&path[..depth].join(&b'/'))
                    .is_some_and(|item: &Item| item.kind != Kind::Directory)
            });
            let full = path.join(&b'/');
            if blocked || items.contains_key(&full) {
                continue;
            }
            for depth in 1..path.len() {
                items
                    .entry(path[..depth].join(&b'/'))
                    .or_insert_with(plain_directory);
            }
            let kind = [Kind::Directory, Kind::File, Kind::Symlink][usize::from(kind)];
            let content = if kind == Kind::File {
                bytes.clone()
            } else {
                Vec::new()
            };
            let target = if kind == Kind::Symlink {
                bytes
            } else {
                Vec::new()
            };
            items.insert(
                full,
                Item {
                    kind,
                    mode,
                    mtime_ns,
                    content,
                    target,
                },
            );
        }
        items
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_reads_back_as_it_was_written(items in arbitrary_tree()) {
        let sealed = write(&items, true, None);
        let bytes = bytes_of(&sealed);
        validate(&bytes, sealed.len, &sealed.totals, sealed.root).unwrap();
        let catalog = Catalog::open(&bytes[..], sealed.len).unwrap();
        verify_ids(&catalog).unwrap();
        read_back(&catalog, &items, "random");
    }

    #[test]
    fn a_damaged_catalog_is_refused_or_harmless(items in arbitrary_tree(), flips in prop::collection::vec(any::<prop::sample::Index>(), 1..4)) {
        let sealed = write(&items, true, None);
        let mut bytes = bytes_of(&sealed);
        for flip in flips {
            let bit = flip.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        walk_everything(&bytes);
        let _ = validate(&bytes, bytes.len() as u64, &sealed.totals, sealed.root);
    }
}
