//! What the hot paths of the store cost. The full run prints its figures; they are bounds only where a machine that is
//! busy with other things would still keep them.

use std::io::Write as _;
use std::time::{Duration, Instant};

use bytes::Bytes;
use manifs::block::{BLOCK_BYTES, Block, BlockRef, Digest, FileRef};
use manifs::store::{Index, NodeKind, Options, ReadOutcome, Store, Verify, Wait};

use crate::common;

const OPTIONS: Options = Options {
    quota: 8 << 30,
    verify: Verify::FirstTouch,
};

fn tell(what: &str, count: u64, time: Duration) {
    let each = time.as_nanos() as f64 / count as f64 / 1000.0;
    let rate = count as f64 / time.as_secs_f64();
    let line = format!("{what}: {each:.2} us each, {rate:.0} a second\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

fn small(seed: u64, len: usize) -> (BlockRef, Block) {
    let mut bytes = vec![0; len];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let block = Block::seal(Bytes::from(bytes));
    let file = FileRef {
        id: block.digest(),
        size: len as u64,
    };
    let place = BlockRef {
        file,
        index: 0,
        digest: block.digest(),
    };
    (place, block)
}

#[test]
fn verified_reads_and_puts() {
    let full = common::full("the store's figures");
    let (files, reads, blocks) = if full {
        (20_000, 1_000_000, 512)
    } else {
        (300, 5_000, 8)
    };
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), OPTIONS).unwrap();

    let made: Vec<(BlockRef, Block)> = (0..files).map(|seed| small(seed, 4000)).collect();
    let begin = Instant::now();
    for (place, block) in &made {
        store.put(place, block).unwrap();
    }
    tell("put of a file of 4000 bytes", files, begin.elapsed());
    let mut buffer = vec![0; 4000];
    for wait in [Wait::Yes, Wait::No] {
        let begin = Instant::now();
        for (place, _) in &made {
            let read = store.read_verified(place, 0, &mut buffer, wait);
            assert_eq!(read, ReadOutcome::Done);
        }
        tell(
            &format!("verified read of one, {wait:?}"),
            files,
            begin.elapsed(),
        );
    }
    store.forget_verified();
    let begin = Instant::now();
    for (place, _) in &made {
        assert!(store.load(place).is_some());
    }
    tell("first read of one", files, begin.elapsed());

    let size = blocks * BLOCK_BYTES;
    let file = FileRef {
        id: Digest::of(b"large"),
        size,
    };
    let data = Block::seal(Bytes::from(vec![7; BLOCK_BYTES as usize]));
    let place = |index| BlockRef {
        file,
        index,
        digest: data.digest(),
    };
    let begin = Instant::now();
    for index in 0..blocks {
        store.put(&place(index), &data).unwrap();
    }
    tell("put of a block", blocks, begin.elapsed());
    store.forget_verified();
    let begin = Instant::now();
    for index in 0..blocks {
        assert!(store.load(&place(index)).is_some());
    }
    tell("first read of a block", blocks, begin.elapsed());
    let mut buffer = vec![0; 4096];
    let begin = Instant::now();
    let mut at: u64 = 1;
    for _ in 0..reads {
        at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let page = (at >> 33) % (size / 4096);
        let place = place(page / 256);
        let offset = (page % 256) as u32 * 4096;
        let read = store.read_verified(&place, offset, &mut buffer, Wait::No);
        assert_eq!(read, ReadOutcome::Done);
    }
    tell("verified read of 4 KiB", reads, begin.elapsed());

    let begin = Instant::now();
    let ingest = store.ingest(size, size).unwrap();
    for index in 0..blocks {
        ingest.write(index * BLOCK_BYTES, data.bytes()).unwrap();
    }
    let file = FileRef {
        id: Digest::of(b"other"),
        size,
    };
    ingest.finish(file).unwrap();
    tell("ingest of a block", blocks, begin.elapsed());
    let begin = Instant::now();
    store.flush();
    tell("flush", 1, begin.elapsed());
}

#[test]
fn a_store_of_many_small_files_opens_at_once() {
    let full = common::full("opening a store of 200,000 files");
    let files = if full { 200_000 } else { 2_000 };
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), OPTIONS).unwrap();
    for seed in 0..files {
        let (place, block) = small(seed, 8);
        store.put(&place, &block).unwrap();
    }
    drop(store);
    for summary in [true, false] {
        if !summary {
            std::fs::remove_file(dir.path().join("recency")).unwrap();
        }
        let begin = Instant::now();
        let store = Store::open(dir.path(), OPTIONS).unwrap();
        let first = begin.elapsed();
        let (place, block) = small(files - 1, 8);
        assert_eq!(store.load(&place).unwrap().bytes(), block.bytes());
        store.put(&small(files, 8).0, &small(files, 8).1).unwrap();
        let counted = begin.elapsed();
        assert_eq!(store.usage().files, files + 1);
        store.evict(&small(files, 8).0.file);
        tell(&format!("opened, summary {summary}"), 1, first);
        tell("counted", files, counted);
        drop(store);
    }
    let store = Store::open(
        dir.path(),
        Options {
            quota: 64 << 20,
            ..OPTIONS
        },
    )
    .unwrap();
    let begin = Instant::now();
    store.flush();
    tell("evicted down to a smaller quota", 1, begin.elapsed());
    assert!(store.usage().used <= 64 << 20);
}

#[test]
fn a_million_entries_go_into_the_index() {
    let full = common::full("a million entries of the index");
    let entries: u32 = if full { 1_000_000 } else { 2_000 };
    let dir = tempfile::tempdir().unwrap();
    let index = Index::open(&dir.path().join("index.redb")).unwrap();
    let digest = |row: u32| Digest::of(&row.to_le_bytes());
    let begin = Instant::now();
    let mut writer = index.begin(1);
    for row in 0..entries {
        writer
            .add(&digest(row), row, NodeKind::Block { index: 0 }, 10)
            .unwrap();
    }
    writer.finish(digest(0)).unwrap();
    tell("entry of the index", u64::from(entries), begin.elapsed());
    let begin = Instant::now();
    for row in (0..entries).step_by(97) {
        assert_eq!(index.find(&digest(row)).unwrap()[0].row, row);
    }
    tell("look-up", u64::from(entries / 97 + 1), begin.elapsed());
    let begin = Instant::now();
    index.drop_version(1).unwrap();
    tell("drop of a version", 1, begin.elapsed());
    let len = std::fs::metadata(dir.path().join("index.redb"))
        .unwrap()
        .len();
    tell(
        "bytes of the file for each entry (in thousands)",
        u64::from(entries),
        Duration::from_nanos(len),
    );
}
