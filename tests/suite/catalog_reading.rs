//! What reading and writing a catalog costs, and what it does at its limits.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};

use manifs::block::{BLOCK_BYTES, Digest, FILE_BYTES_MAX, block_count};
use manifs::catalog::{
    Catalog, CatalogError, DEPTH_MAX, Kind, NewEntry, ReadAt, ReadError, Row, Rule, Sealed, Times,
    Writer, build_directories, links, sums, validate, verify_ids,
};
use manifs::unixfs::file;

/// Bytes that count how often they are read, and may lack a block.
pub(crate) struct Counting<'a> {
    bytes: &'a [u8],
    missing: Option<u64>,
    reads: AtomicU64,
    read_bytes: AtomicU64,
}

impl<'a> Counting<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Counting {
            bytes,
            missing: None,
            reads: AtomicU64::new(0),
            read_bytes: AtomicU64::new(0),
        }
    }

    /// Returns how many reads, and of how many bytes, `work` takes.
    pub(crate) fn cost<T>(&self, work: impl FnOnce() -> T) -> (u64, u64, T) {
        let count = || {
            let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            (load(&self.reads), load(&self.read_bytes))
        };
        let before = count();
        let outcome = work();
        let after = count();
        (after.0 - before.0, after.1 - before.1, outcome)
    }
}

impl ReadAt for Counting<'_> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.read_bytes
            .fetch_add(buffer.len() as u64, Ordering::Relaxed);
        let touched = offset / BLOCK_BYTES..=(offset + buffer.len() as u64 - 1) / BLOCK_BYTES;
        match self.missing {
            Some(block) if touched.contains(&block) => Err(ReadError::Missing { block }),
            _ => self.bytes.read_at(offset, buffer),
        }
    }
}

fn entry(name: impl AsRef<[u8]>, kind: Kind) -> NewEntry {
    NewEntry {
        name: name.as_ref().to_vec(),
        kind,
        mode: 0o644,
        mtime_ns: 0,
        size: 0,
        target: if kind == Kind::Symlink {
            b"target".to_vec()
        } else {
            Vec::new()
        },
    }
}

fn writer() -> (tempfile::TempDir, Writer) {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(dir.path(), 0o755, 0).unwrap();
    assert_eq!(writer.next_directory().unwrap(), Some((0, Vec::new())));
    (dir, writer)
}

fn bytes_of(sealed: &Sealed) -> Vec<u8> {
    let mut bytes = vec![0; sealed.len as usize];
    sealed.file.read_at(0, &mut bytes).unwrap();
    validate(&bytes, sealed.len, &sealed.totals, sealed.root).unwrap();
    bytes
}

/// Returns a catalog with these entries in its root.
fn flat(entries: &[NewEntry]) -> Vec<u8> {
    let (_dir, mut writer) = writer();
    writer.add_children(0, entries).unwrap();
    bytes_of(&writer.finish(Times::Keep, &mut |_, _| Ok(())).unwrap())
}

fn numbered(count: u32) -> Vec<NewEntry> {
    let name = |number| entry(format!("name-{number:07}"), Kind::File);
    (0..count).map(name).collect()
}

fn open<R: ReadAt>(reader: R, len: usize) -> (Catalog<R>, Row) {
    let catalog = Catalog::open(reader, len as u64).unwrap();
    let root = catalog.row(0).unwrap();
    (catalog, root)
}

fn list<R: ReadAt>(catalog: &Catalog<R>, directory: &Row, from: u32) -> Vec<(u32, Vec<u8>)> {
    let mut listed = Vec::new();
    catalog
        .entries(directory, from, &mut |number, row, name| {
            assert_eq!(row.number(), number);
            listed.push((number, name.to_vec()));
            ControlFlow::Continue(())
        })
        .unwrap();
    listed
}

#[test]
fn a_lookup_reads_little_of_a_large_directory() {
    const COUNT: u32 = 100_000;
    let entries = numbered(COUNT);
    let bytes = flat(&entries);
    let counting = Counting::new(&bytes);
    let (catalog, root) = open(&counting, bytes.len());
    for index in (0..COUNT).step_by(997).chain([1, COUNT - 2, COUNT - 1]) {
        let name = &entries[index as usize].name;
        let (reads, read_bytes, found) = counting.cost(|| catalog.lookup(&root, name).unwrap());
        assert_eq!(found.unwrap().0, 1 + index);
        // Each step halves 100,000 until 32 are left: twelve steps of two reads, then rows and names at once.
        assert!(reads <= 26 && read_bytes <= 4096, "{reads}, {read_bytes}");
    }
    for name in ["a", "name-0050000x", "name-00500005", "zz", ""] {
        let (reads, _, found) = counting.cost(|| catalog.lookup(&root, name.as_bytes()).unwrap());
        assert!(found.is_none(), "{name}");
        assert!(reads <= 26, "{reads}");
    }
}

#[test]
fn a_listing_reads_rows_and_names_64_at_a_time() {
    for count in [0_u32, 1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1000] {
        let entries = numbered(count);
        let bytes = flat(&entries);
        let counting = Counting::new(&bytes);
        let (catalog, root) = open(&counting, bytes.len());
        let all: Vec<(u32, Vec<u8>)> = (1..).zip(entries.iter().map(|e| e.name.clone())).collect();
        for from in [
            0,
            1,
            63,
            64,
            65,
            count.saturating_sub(1),
            count,
            count + 1,
            u32::MAX,
        ] {
            let (reads, _, listed) = counting.cost(|| list(&catalog, &root, from));
            let left = count.saturating_sub(from);
            assert_eq!(listed, all[(count - left) as usize..], "{from} of {count}");
            assert_eq!(reads, 2 * u64::from(left.div_ceil(64)), "{from} of {count}");
        }
        for (number, name) in &all {
            let found = catalog.lookup(&root, name).unwrap();
            assert_eq!(found.map(|(number, _)| number), Some(*number), "of {count}");
        }
        let mut seen = 0;
        catalog
            .entries(&root, 0, &mut |_, _, _| {
                seen += 1;
                ControlFlow::Break(())
            })
            .unwrap();
        assert_eq!(seen, count.min(1), "a visitor that breaks is left alone");
    }
}

#[test]
fn names_that_lie_far_apart_are_found_all_the_same() {
    let mut entries = numbered(200);
    for entry in entries.iter_mut().step_by(2) {
        entry.kind = Kind::Symlink;
        entry.target = vec![b't'; 4095];
    }
    let bytes = flat(&entries);
    let (catalog, root) = open(&bytes[..], bytes.len());
    let names: Vec<Vec<u8>> = list(&catalog, &root, 0)
        .into_iter()
        .map(|found| found.1)
        .collect();
    assert!(names.iter().eq(entries.iter().map(|entry| &entry.name)));
    for (number, entry) in (1..).zip(&entries) {
        let (found, row) = catalog.lookup(&root, &entry.name).unwrap().unwrap();
        assert_eq!(
            (found, catalog.name(&row).unwrap()),
            (number, entry.name.clone())
        );
        if row.kind() == Kind::Symlink {
            assert_eq!(catalog.target(&row).unwrap(), entry.target);
        }
    }
    verify_ids(&catalog).unwrap();
}

#[test]
fn a_missing_block_is_named_and_a_listing_goes_on_behind_it() {
    // 15,000 rows and names of 200 bytes: almost 4 MiB, the names in all blocks but the first.
    let entries: Vec<NewEntry> = (0..15_000)
        .map(|number| entry(format!("{number:0200}"), Kind::File))
        .collect();
    let bytes = flat(&entries);
    let mut counting = Counting::new(&bytes);
    for block in 1..block_count(bytes.len() as u64) {
        counting.missing = Some(block);
        let (catalog, root) = open(&counting, bytes.len());
        let mut names = Vec::new();
        let error = catalog
            .entries(&root, 0, &mut |_, _, name| {
                names.push(name.to_vec());
                ControlFlow::Continue(())
            })
            .unwrap_err();
        assert_eq!(error.missing_block(), Some(block));
        let error = validate(&counting, bytes.len() as u64, &catalog.totals(), root.cid());
        assert_eq!(error.unwrap_err().missing_block(), Some(block));
        counting.missing = None;
        let (catalog, root) = open(&counting, bytes.len());
        let rest = list(&catalog, &root, names.len() as u32);
        names.extend(rest.into_iter().map(|found| found.1));
        assert!(
            names.iter().eq(entries.iter().map(|entry| &entry.name)),
            "block {block}"
        );
    }
}

#[test]
fn directories_that_claim_the_same_rows_take_no_quadratic_time() {
    const ROWS: u32 = 20_000;
    let mut bytes = b"manifsc1".to_vec();
    bytes.extend((BLOCK_BYTES as u32).to_le_bytes());
    bytes.extend([0; 4]);
    for count in [u64::from(ROWS), 0, 1] {
        bytes.extend(count.to_le_bytes());
    }
    bytes.extend([0; 24]);
    for number in 0..ROWS {
        bytes.extend(0_u32.to_le_bytes());
        bytes.extend([u8::from(number > 0), 1, 0, 0]);
        let children = ROWS - number - 1;
        bytes.extend(u64::from(children).to_le_bytes());
        bytes.extend([0; 12]);
        bytes.extend((if children > 0 { number + 1 } else { 0 }).to_le_bytes());
        bytes.extend([0; 32]);
    }
    bytes.push(b'n');
    let counting = Counting::new(&bytes);
    let (catalog, _) = open(&counting, bytes.len());
    let build = || build_directories(&catalog, &mut |_, _| Ok(()), &mut |_, _| Ok(()));
    let (reads, _, outcome) = counting.cost(build);
    assert_eq!(outcome.unwrap_err().rule(), Some(Rule::First));
    assert!(reads <= 3 * u64::from(ROWS), "{reads}");
}

#[test]
fn what_the_format_cannot_hold_is_not_written() {
    let link = |target: &[u8]| NewEntry {
        target: target.to_vec(),
        ..entry("link", Kind::Symlink)
    };
    let sized = |size| NewEntry {
        size,
        ..entry("file", Kind::File)
    };
    let file = |name: &[u8]| entry(name, Kind::File);
    for (rule, entries) in [
        (Rule::Name, vec![file(b"")]),
        (Rule::Name, vec![file(b".")]),
        (Rule::Name, vec![file(b"..")]),
        (Rule::Name, vec![file(b"a/b")]),
        (Rule::Name, vec![file(b"a\0")]),
        (Rule::Name, vec![file(&[b'n'; 256])]),
        (Rule::ReservedName, vec![file(b".manifs")]),
        (Rule::NameOrder, vec![file(b"b"), file(b"a")]),
        (Rule::NameOrder, vec![file(b"a"), file(b"a")]),
        // Bytes are unsigned.
        (Rule::NameOrder, vec![file(&[0xff]), file(b"a")]),
        (Rule::Size, vec![link(b"")]),
        (Rule::Size, vec![link(&[b't'; 4096])]),
        (Rule::Target, vec![link(b"a\0b")]),
        (Rule::Size, vec![sized(FILE_BYTES_MAX + 1)]),
    ] {
        let (_dir, mut writer) = writer();
        let error = writer.add_children(0, &entries).unwrap_err();
        assert_eq!(error.rule(), Some(rule), "{entries:?}");
    }
    let (_dir, mut writer) = writer();
    let most = [
        file(&[b'n'; 255]),
        NewEntry {
            name: b"o".to_vec(),
            ..link(&[b't'; 4095])
        },
    ];
    writer.add_children(0, &most).unwrap();
    bytes_of(&writer.finish(Times::Keep, &mut |_, _| Ok(())).unwrap());
}

#[test]
fn a_catalog_that_would_be_too_large_is_refused_before_it_is_written() {
    let (dir, mut writer) = writer();
    let huge = NewEntry {
        // Its digests alone are 32 GiB.
        size: FILE_BYTES_MAX,
        ..entry("huge", Kind::File)
    };
    writer.add_children(0, &[huge]).unwrap();
    let error = writer.finish(Times::Keep, &mut |_, _| Ok(())).unwrap_err();
    assert_eq!(error.rule(), Some(Rule::Length));
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 0, "temporary files have no name");
}

/// Asking for all directories of a level before any has its children changes nothing, down to the greatest depth.
#[test]
fn directories_may_be_asked_for_ahead_within_their_level() {
    let children = |path: &[u8]| -> Vec<NewEntry> {
        let depth = path.split(|byte| *byte == b'/').count();
        let mut entries = vec![entry("file", Kind::File)];
        match path {
            b"" => entries.extend(["a", "b", "c"].map(|name| entry(name, Kind::Directory))),
            b"b" => entries.clear(),
            _ if depth < DEPTH_MAX as usize => entries.push(entry("z", Kind::Directory)),
            _ => entries.clear(),
        }
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        entries
    };
    let build = |level: bool| {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(dir.path(), 0o755, 0).unwrap();
        let mut levels = Vec::new();
        while let Some(first) = writer.next_directory().unwrap() {
            let mut ahead = vec![first];
            while level && let Some(next) = writer.next_in_level().unwrap() {
                ahead.push(next);
            }
            levels.push(ahead.len());
            for (row, path) in ahead {
                writer.add_children(row, &children(&path)).unwrap();
            }
        }
        let sealed = writer.finish(Times::Keep, &mut |_, _| Ok(())).unwrap();
        (bytes_of(&sealed), levels)
    };
    let (one_by_one, _) = build(false);
    let (ahead, levels) = build(true);
    assert!(one_by_one == ahead);
    assert_eq!(levels[..3], [1, 3, 2]);
    assert_eq!(levels.len(), DEPTH_MAX as usize + 1);
}

#[test]
fn ids_that_are_set_together_are_those_that_were_meant() {
    const COUNT: u32 = 5000;
    let id = |row: u32| Digest::of(&row.to_le_bytes());
    let entries: Vec<NewEntry> = numbered(COUNT)
        .into_iter()
        .map(|file| NewEntry { size: 1, ..file })
        .collect();
    let build = |together: &[u32]| {
        let (_dir, mut writer) = writer();
        writer.add_children(0, &entries).unwrap();
        for row in (1..=COUNT).filter(|row| !together.contains(row)) {
            writer.set_id(row, id(row)).unwrap();
        }
        let ids: Vec<_> = together.iter().map(|row| (*row, id(*row))).collect();
        writer.set_ids(&ids).unwrap();
        bytes_of(&writer.finish(Times::Keep, &mut |_, _| Ok(())).unwrap())
    };
    let wanted = build(&[]);
    let all: Vec<u32> = (1..=COUNT).collect();
    for together in [
        &all[..],
        &[1],
        &[COUNT],
        &[1, 2, 1024, 1025, 1026, 3000, COUNT],
    ] {
        assert!(build(together) == wanted, "{}", together.len());
    }
}

#[test]
fn trees_end_at_the_greatest_depth() {
    for (depth, allowed) in [(DEPTH_MAX, true), (DEPTH_MAX + 1, false)] {
        let (_dir, mut writer) = writer();
        let mut row = 0;
        let outcome = (0..depth).try_for_each(|_| {
            writer.add_children(row, &[entry("d", Kind::Directory)])?;
            row = writer.next_directory()?.unwrap().0;
            Ok::<(), CatalogError>(())
        });
        match outcome {
            Ok(()) => {
                assert!(allowed);
                let bytes = bytes_of(&writer.finish(Times::Keep, &mut |_, _| Ok(())).unwrap());
                let (catalog, _) = open(&bytes[..], bytes.len());
                assert_eq!(catalog.path(row).unwrap().len() as u32, 2 * depth - 1);
            }
            Err(error) => {
                assert!(!allowed, "{error}");
                assert_eq!(error.rule(), Some(Rule::Depth));
            }
        }
    }
}

#[test]
fn digests_come_from_many_threads_in_any_order() {
    const FILES: u32 = 8;
    const BLOCKS: u64 = 65;
    let (_dir, mut writer) = writer();
    let size = BLOCKS * BLOCK_BYTES - 1;
    let entries: Vec<NewEntry> = numbered(FILES)
        .into_iter()
        .map(|entry| NewEntry { size, ..entry })
        .collect();
    let first = writer.add_children(0, &entries).unwrap();
    let digest = |row: u32, index: u64| Digest::of(format!("{row}/{index}").as_bytes());
    let whole = |row: u32| Digest::of(&row.to_le_bytes());
    let shared = &writer;
    std::thread::scope(|scope| {
        for worker in 0..4 {
            scope.spawn(move || {
                for row in first..first + FILES {
                    let mine = (0..BLOCKS).rev().filter(|index| index % 4 == worker);
                    for index in mine {
                        shared
                            .set_digests(row, index, &[digest(row, index)])
                            .unwrap();
                    }
                    if u64::from(row) % 4 == worker {
                        let leaves = (0..BLOCKS).map(|index| digest(row, index));
                        let id = file::root(size, leaves).digest();
                        shared.set_whole(row, whole(row), id).unwrap();
                    }
                }
            });
        }
    });
    for (row, first_block, count) in [(0, 0, 1), (first, BLOCKS, 1), (first, 0, 66), (99, 0, 1)] {
        let digests = vec![Digest::EMPTY; count];
        assert!(writer.set_digests(row, first_block, &digests).is_err());
    }
    let bytes = bytes_of(&writer.finish(Times::Keep, &mut |_, _| Ok(())).unwrap());
    let (catalog, _) = open(&bytes[..], bytes.len());
    for number in first..first + FILES {
        let row = catalog.row(number).unwrap();
        assert_eq!(catalog.whole(&row).unwrap(), whole(number));
        let digests = catalog.digests(&row, 3..BLOCKS).unwrap();
        assert!(
            digests
                .iter()
                .copied()
                .eq((3..BLOCKS).map(|index| digest(number, index)))
        );
        assert!(catalog.digests(&row, 0..BLOCKS + 1).is_err());
    }
}

#[test]
fn sums_are_in_row_order_and_read_in_batches() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(dir.path(), 0o755, 0).unwrap();
    let mut paths = BTreeSet::new();
    while let Some((row, path)) = writer.next_directory().unwrap() {
        let mut entries = numbered(100);
        if row == 0 {
            entries.extend([
                entry("sub-a", Kind::Directory),
                entry("sub-b", Kind::Directory),
            ]);
            entries.push(entry("symlink", Kind::Symlink));
        }
        let prefix = if path.is_empty() {
            String::new()
        } else {
            String::from_utf8(path).unwrap() + "/"
        };
        for entry in entries.iter().filter(|entry| entry.kind == Kind::File) {
            paths.insert((
                row,
                prefix.clone() + std::str::from_utf8(&entry.name).unwrap(),
            ));
        }
        writer.add_children(row, &entries).unwrap();
    }
    let bytes = bytes_of(&writer.finish(Times::Keep, &mut |_, _| Ok(())).unwrap());
    let counting = Counting::new(&bytes);
    let (catalog, _) = open(&counting, bytes.len());
    let (reads, _, text) = counting.cost(|| sums::text(&catalog, 1 << 20).unwrap().unwrap());
    let want: String = paths
        .iter()
        .map(|(_, path)| format!("{}  {path}\n", Digest::EMPTY))
        .collect();
    assert_eq!(String::from_utf8(text).unwrap(), want);
    assert!(reads < 40, "{reads}");
    assert_eq!(sums::text(&catalog, want.len() as u64 - 1).unwrap(), None);
    assert!(sums::text(&catalog, want.len() as u64).unwrap().is_some());
}

#[test]
fn a_chain_of_links_is_followed_forty_times() {
    for (followed, leaves) in [(1, true), (39, true), (40, true), (41, false), (100, false)] {
        let mut entries: Vec<NewEntry> = (0..=followed)
            .map(|number| NewEntry {
                target: format!("link-{:03}", number + 1).into_bytes(),
                ..entry(format!("link-{number:03}"), Kind::Symlink)
            })
            .collect();
        entries.last_mut().unwrap().target = b"/out".to_vec();
        let bytes = flat(&entries);
        let (catalog, _) = open(&bytes[..], bytes.len());
        assert_eq!(links::leaves(&catalog, 1).unwrap(), leaves, "{followed}");
        assert!(links::leaves(&catalog, 1 + followed).unwrap());
    }
    let bytes = flat(&numbered(1));
    let (catalog, _) = open(&bytes[..], bytes.len());
    assert!(matches!(
        links::leaves(&catalog, 1),
        Err(CatalogError::WrongKind(1))
    ));
}
