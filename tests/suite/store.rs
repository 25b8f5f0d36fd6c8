//! The store on a real disk: what it keeps, what it refuses, and what happens around it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use manifs::block::{BLOCK_BYTES, Block, BlockRef, Digest, FileRef, block_count, block_len};
use manifs::store::{MemoryDisk, Name, Options, ReadOutcome, Store, StoreError, Verify, Wait};

const MIB: u64 = 1 << 20;

fn options(quota: u64) -> Options {
    Options {
        quota,
        verify: Verify::FirstTouch,
    }
}

/// Returns a block of a file that is known by `seed`, and its place.
fn block(seed: u64, size: u64, index: u64) -> (BlockRef, Block) {
    let len = block_len(size, index) as usize;
    let mut bytes = vec![seed as u8; len];
    let stamp = [seed.to_le_bytes(), index.to_le_bytes()].concat();
    for chunk in bytes.chunks_mut(1000) {
        let len = chunk.len().min(stamp.len());
        chunk[..len].copy_from_slice(&stamp[..len]);
    }
    let block = Block::seal(Bytes::from(bytes));
    let id = if size <= BLOCK_BYTES {
        block.digest()
    } else {
        Digest::of(&seed.to_le_bytes())
    };
    let place = BlockRef {
        file: FileRef { id, size },
        index,
        digest: block.digest(),
    };
    (place, block)
}

fn file_of(seed: u64, size: u64) -> FileRef {
    block(seed, size, 0).0.file
}

fn put_all(store: &Store, seed: u64, size: u64) {
    for index in 0..block_count(size) {
        let (place, block) = block(seed, size, index);
        store.put(&place, &block).unwrap();
    }
}

fn read(store: &Store, place: &BlockRef, wait: Wait) -> (ReadOutcome, Vec<u8>) {
    let mut bytes = vec![0; place.len() as usize];
    let outcome = store.read_verified(place, 0, &mut bytes, wait);
    (outcome, bytes)
}

/// Returns the bytes that a directory and everything in it take, as `du` counts them.
fn du(path: &Path) -> u64 {
    let metadata = std::fs::symlink_metadata(path).unwrap();
    let mut bytes = metadata.blocks() * 512;
    if metadata.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            bytes += du(&entry.unwrap().path());
        }
    }
    bytes
}

fn data_path(dir: &Path, kind: &str, id: &Digest, extension: &str) -> PathBuf {
    let hex = id.to_string();
    dir.join(kind)
        .join(&hex[..2])
        .join(format!("{hex}{extension}"))
}

#[test]
fn blocks_are_trusted_once_hashed_and_strangers_to_the_next_run() {
    let dir = tempfile::tempdir().unwrap();
    for size in [1, 4096, 200_000, MIB, MIB + 1, 3 * MIB + 5] {
        let store = Store::open(dir.path(), options(64 * MIB)).unwrap();
        put_all(&store, size, size);
        assert!(store.complete(&file_of(size, size)), "{size}");
        drop(store);
        let store = Store::open(dir.path(), options(64 * MIB)).unwrap();
        for index in 0..block_count(size) {
            let (place, block) = block(size, size, index);
            assert!(store.has(&place) && !store.verified(&place));
            let (outcome, _) = read(&store, &place, Wait::Yes);
            assert_eq!(outcome, ReadOutcome::Unverified);
            assert_eq!(store.load(&place).unwrap().bytes(), block.bytes());
            for wait in [Wait::Yes, Wait::No] {
                let (outcome, bytes) = read(&store, &place, wait);
                assert_eq!(outcome, ReadOutcome::Done, "{size} {index} {wait:?}");
                assert_eq!(bytes, block.bytes()[..]);
            }
            // Past the end of the block there is nothing, whatever the next one holds.
            let mut more = vec![0; 2];
            let last = place.len() - 1;
            assert_eq!(
                store.read_verified(&place, last, &mut more, Wait::Yes),
                ReadOutcome::Missing
            );
            assert_eq!(
                store.read_verified(&place, last, &mut more[..1], Wait::Yes),
                ReadOutcome::Done
            );
        }
        store.forget_verified();
        assert!(!store.verified(&block(size, size, 0).0));
    }
}

#[test]
fn every_use_is_hashed_when_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        quota: 64 * MIB,
        verify: Verify::Always,
    };
    let store = Store::open(dir.path(), options).unwrap();
    let (place, block) = block(1, 5000, 0);
    store.put(&place, &block).unwrap();
    assert_eq!(read(&store, &place, Wait::Yes).0, ReadOutcome::Unverified);
    assert!(store.load(&place).is_some());
    let path = data_path(dir.path(), "r", &place.file.id, "");
    std::fs::write(&path, vec![9; 5000]).unwrap();
    assert!(store.load(&place).is_none());
    assert!(!path.exists());
    assert_eq!(store.usage().damaged, 1);
}

#[test]
fn what_was_edited_cut_or_removed_is_a_miss_and_heals() {
    let dir = tempfile::tempdir().unwrap();
    let size = 3 * MIB;
    let open = || Store::open(dir.path(), options(64 * MIB)).unwrap();
    let store = open();
    for seed in 0..3 {
        put_all(&store, seed, 7000 + seed);
        put_all(&store, seed, size);
    }
    drop(store);
    let small = |seed| data_path(dir.path(), "r", &file_of(seed, 7000 + seed).id, "");
    let large = |seed| data_path(dir.path(), "p", &file_of(seed, size).id, "");
    std::fs::write(small(0), [1; 7000]).unwrap();
    std::fs::write(small(1), [1; 70]).unwrap();
    std::fs::remove_file(small(2)).unwrap();
    {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::options().write(true).open(large(0)).unwrap();
        file.write_all_at(b"edited", MIB + 5).unwrap();
        let file = std::fs::File::options().write(true).open(large(1)).unwrap();
        file.set_len(MIB + 1).unwrap();
        std::fs::remove_file(large(2)).unwrap();
    }
    let store = open();
    for seed in 0..3 {
        let (place, bytes) = block(seed, 7000 + seed, 0);
        assert!(store.load(&place).is_none(), "{seed}");
        assert_eq!(read(&store, &place, Wait::Yes).0, ReadOutcome::Missing);
        store.put(&place, &bytes).unwrap();
        assert_eq!(read(&store, &place, Wait::Yes).1, bytes.bytes()[..]);
    }
    let (edited, _) = block(0, size, 1);
    assert!(store.load(&edited).is_none());
    assert_eq!(store.present(&edited.file), [0..1, 2..3]);
    assert!(data_path(dir.path(), "p", &edited.file.id, ".part").exists());
    for seed in 0..3 {
        put_all(&store, seed, size);
        for index in 0..3 {
            let (place, bytes) = block(seed, size, index);
            assert_eq!(store.load(&place).unwrap().bytes(), bytes.bytes());
            assert_eq!(read(&store, &place, Wait::No).1, bytes.bytes()[..]);
        }
        assert!(large(seed).exists());
    }
}

#[test]
fn files_that_vanish_while_they_are_open_are_misses() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), options(64 * MIB)).unwrap();
    let (place, bytes) = block(1, 7000, 0);
    store.put(&place, &bytes).unwrap();
    std::fs::remove_dir_all(dir.path().join("r")).unwrap();
    assert_ne!(read(&store, &place, Wait::Yes).0, ReadOutcome::Done);
    assert!(store.load(&place).is_none());
    assert!(!store.has(&place));
    // The directories come back with the first file.
    store.put(&place, &bytes).unwrap();
    assert_eq!(read(&store, &place, Wait::Yes).1, bytes.bytes()[..]);
}

#[test]
fn an_unknown_version_is_refused_and_nothing_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), options(64 * MIB)).unwrap();
    put_all(&store, 1, 100);
    let in_use = Store::open(dir.path(), options(64 * MIB));
    assert!(matches!(in_use, Err(StoreError::InUse { .. })));
    drop(store);
    std::fs::write(dir.path().join("VERSION"), "manifs store 2\n").unwrap();
    let refused = Store::open(dir.path(), options(64 * MIB)).err().unwrap();
    assert!(
        matches!(&refused, StoreError::UnknownVersion { found, .. } if found == "manifs store 2")
    );
    assert!(data_path(dir.path(), "r", &file_of(1, 100).id, "").exists());
    // Without any, it is ours as long as nothing else is in it.
    std::fs::remove_file(dir.path().join("VERSION")).unwrap();
    assert!(
        Store::open(dir.path(), options(64 * MIB))
            .unwrap()
            .has(&block(1, 100, 0).0)
    );
    let other = tempfile::tempdir().unwrap();
    std::fs::write(other.path().join("thesis.tex"), "mine").unwrap();
    let refused = Store::open(other.path(), options(64 * MIB));
    assert!(matches!(refused, Err(StoreError::NoStore { found, .. }) if found == "thesis.tex"));
    assert_eq!(std::fs::read_dir(other.path()).unwrap().count(), 1);
}

#[test]
fn what_was_deleted_while_nobody_looked_is_an_empty_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = Store::open(&path, options(64 * MIB)).unwrap();
    put_all(&store, 1, 100);
    put_all(&store, 2, 2 * MIB);
    drop(store);
    std::fs::remove_dir_all(&path).unwrap();
    let store = Store::open(&path, options(64 * MIB)).unwrap();
    assert!(!store.has(&block(1, 100, 0).0));
    assert!(store.load(&block(2, 2 * MIB, 1).0).is_none());
    assert_eq!(store.usage().files, 0);
}

#[test]
fn the_quota_holds_for_everything_below_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let quota = 24 * MIB;
    let store = Store::open(dir.path(), options(quota)).unwrap();
    for seed in 0..3000 {
        let (place, bytes) = block(seed, 1 + seed * 7 % 9000, 0);
        store.put(&place, &bytes).unwrap();
    }
    assert!(du(dir.path()) <= quota, "{}", du(dir.path()));
    for seed in 0..6 {
        put_all(&store, seed, 7 * MIB + 3);
    }
    store.flush();
    assert!(store.usage().used <= quota);
    assert!(du(dir.path()) <= quota, "{}", du(dir.path()));
    // A summary and maps are written when it is closed.
    drop(store);
    assert!(du(dir.path()) <= quota, "{}", du(dir.path()));
    let store = Store::open(dir.path(), options(quota)).unwrap();
    assert!(store.usage().used <= quota);
    assert!(store.usage().used >= du(dir.path()));
    // A smaller quota holds from the first write on.
    drop(store);
    let store = Store::open(dir.path(), options(quota / 2)).unwrap();
    put_all(&store, 7, 5);
    assert!(du(dir.path()) <= quota / 2, "{}", du(dir.path()));
}

#[test]
fn a_file_larger_than_the_quota_streams_through() {
    let dir = tempfile::tempdir().unwrap();
    let quota = 16 * MIB;
    let store = Store::open(dir.path(), options(quota)).unwrap();
    let size = 50 * MIB + 17;
    for index in 0..block_count(size) {
        let (place, bytes) = block(1, size, index);
        store.put(&place, &bytes).unwrap();
        assert_eq!(read(&store, &place, Wait::No).1, bytes.bytes()[..]);
        assert!(store.usage().used <= quota);
    }
    assert!(du(dir.path()) <= quota);
    // The newest blocks are there, and most of the room is used.
    assert!(store.has(&block(1, size, 50).0) && !store.has(&block(1, size, 0).0));
    assert!(store.cached(&file_of(1, size)) > 10 * MIB);
}

#[test]
fn the_least_recently_used_goes_first_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let quota = 16 * MIB;
    let open = || Store::open(dir.path(), options(quota)).unwrap();
    let store = open();
    let size = 600_000;
    for seed in 0..20 {
        put_all(&store, seed, size);
    }
    // Reading makes the oldest the newest.
    for seed in 0..5 {
        assert_eq!(
            read(&store, &block(seed, size, 0).0, Wait::Yes).0,
            ReadOutcome::Done
        );
    }
    drop(store);
    let store = open();
    for seed in 100..115 {
        put_all(&store, seed, size);
    }
    let kept = |seed| store.has(&block(seed, size, 0).0);
    assert!((0..5).all(kept), "read last before the restart");
    assert!(!kept(5) && !kept(6) && !kept(7));
    assert!((100..115).all(kept));
}

#[test]
fn what_is_protected_stays_and_the_rest_passes_through() {
    let dir = tempfile::tempdir().unwrap();
    let quota = 16 * MIB;
    let store = Store::open(dir.path(), options(quota)).unwrap();
    let (catalog, size) = (file_of(1, 12 * MIB), 12 * MIB);
    store.protect(&catalog);
    put_all(&store, 1, size);
    store.protect(&catalog);
    store.unprotect(&catalog);
    assert!(store.usage().unevictable >= size);
    for seed in 10..60 {
        put_all(&store, seed, 400_000);
    }
    assert_eq!(store.cached(&catalog), size);
    assert_eq!(store.evict(&catalog), 0);
    let (second, bytes) = (file_of(2, 8 * MIB), 8 * MIB);
    store.protect(&second);
    let outcomes: Vec<_> = (0..8)
        .map(|index| {
            let (place, block) = block(2, bytes, index);
            store.put(&place, &block)
        })
        .collect();
    let full = outcomes.iter().filter(|outcome| {
        matches!(outcome, Err(StoreError::Full { unevictable, .. }) if *unevictable > size)
    });
    assert!(full.count() >= 4, "{outcomes:?}");
    assert!(store.usage().used <= quota && du(dir.path()) <= quota);
    store.unprotect(&second);
    store.unprotect(&catalog);
    assert_eq!(store.usage().unevictable, 0);
    assert!(store.evict(&catalog) >= size);
    assert_eq!(store.cached(&catalog), 0);
}

#[test]
fn holes_stay_holes_and_are_verified_as_zeros() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), options(64 * MIB)).unwrap();
    let size = 40 * MIB;
    let zeros = Block::seal(Bytes::from(vec![0; MIB as usize]));
    let (place, bytes) = block(5, size, 3);
    let ingest = store.ingest(size, MIB).unwrap();
    ingest.write(3 * MIB, bytes.bytes()).unwrap();
    ingest.finish(place.file).unwrap();
    assert!(store.complete(&place.file));
    assert!(store.usage().used < 4 * MIB);
    let hole = BlockRef {
        index: 39,
        digest: zeros.digest(),
        ..place
    };
    assert_eq!(read(&store, &hole, Wait::Yes).0, ReadOutcome::Unverified);
    assert_eq!(store.load(&hole).unwrap().bytes(), zeros.bytes());
    assert_eq!(read(&store, &hole, Wait::No).0, ReadOutcome::Done);
    assert!(store.load(&place).is_some());
    // A hole where there should be data is damage.
    let wrong = BlockRef { index: 7, ..place };
    assert!(store.load(&wrong).is_none());
    // Of one that is given up nothing is left.
    let before = store.usage().used;
    let ingest = store.ingest(size, 20 * MIB).unwrap();
    assert!(store.usage().used >= before + 20 * MIB);
    ingest.write(0, bytes.bytes()).unwrap();
    drop(ingest);
    assert_eq!(store.usage().used, before);
    assert_eq!(
        std::fs::read_dir(dir.path().join("tmp")).unwrap().count(),
        0
    );
    assert!(matches!(
        store.ingest(size, 70 * MIB),
        Err(StoreError::Full { .. })
    ));
}

#[test]
fn small_files_are_ingested_too_and_take_the_place_of_strangers() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), options(64 * MIB)).unwrap();
    let (place, bytes) = block(5, 300_000, 0);
    for _ in 0..2 {
        let ingest = store.ingest(300_000, 300_000).unwrap();
        ingest.write(0, bytes.bytes()).unwrap();
        ingest.finish(place.file).unwrap();
        assert_eq!(store.usage().files, 1);
        assert_eq!(store.load(&place).unwrap().bytes(), bytes.bytes());
    }
    assert_eq!(store.find(&place.digest), Some(place));
    assert_eq!(store.find(&Digest::EMPTY), None);
}

#[test]
fn a_failing_sync_drops_what_it_cannot_vouch_for() {
    let disk = MemoryDisk::new();
    let store = Store::open_on(Arc::new(disk.clone()), options(64 * MIB));
    put_all(&store, 1, 100);
    put_all(&store, 1, 2 * MIB);
    store.sync().unwrap();
    put_all(&store, 2, 100);
    put_all(&store, 2, 2 * MIB);
    disk.fail(1);
    assert!(matches!(store.sync(), Err(StoreError::Io { .. })));
    assert!(store.complete(&file_of(1, 100)) && store.complete(&file_of(1, 2 * MIB)));
    assert_eq!(
        store.cached(&file_of(2, 100)) + store.cached(&file_of(2, 2 * MIB)),
        0
    );
    store.sync().unwrap();
}

#[test]
fn a_full_disk_makes_room_of_its_own_or_lets_blocks_pass() {
    let disk = MemoryDisk::new();
    let store = Store::open_on(Arc::new(disk.clone()), options(64 * MIB));
    for seed in 0..10 {
        put_all(&store, seed, 500_000);
    }
    disk.set_capacity(Some(disk.used()));
    for seed in 10..20 {
        put_all(&store, seed, 500_000);
        let (place, bytes) = block(seed, 500_000, 0);
        assert_eq!(read(&store, &place, Wait::Yes).1, bytes.bytes()[..]);
    }
    disk.set_capacity(Some(0));
    let (place, bytes) = block(50, 3 * MIB, 0);
    assert!(matches!(
        store.put(&place, &bytes),
        Err(StoreError::Full { .. })
    ));
    assert!(!store.has(&place));
    assert!(
        disk.names()
            .iter()
            .all(|name| !matches!(name, Name::Part(_)))
    );
}

#[test]
fn readers_never_see_what_writers_and_eviction_do() {
    let dir = tempfile::tempdir().unwrap();
    // Far too small, so that everything is always on its way out.
    let store = Store::open(dir.path(), options(16 * MIB)).unwrap();
    let size = 24 * MIB;
    let sizes = [size, 2 * MIB + 1, 100_000, 300_000, 900_000];
    let places: Vec<(BlockRef, Block)> = (0..sizes.len() as u64)
        .flat_map(|seed| {
            let size = sizes[seed as usize];
            (0..block_count(size)).map(move |index| block(seed, size, index))
        })
        .collect();
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..3usize {
            let (store, places, stop, done) = (&store, &places, &stop, &done);
            scope.spawn(move || {
                let mut at = thread * 7;
                let mut buffer = vec![0; 4096];
                while !stop.load(Ordering::Relaxed) {
                    at = (at + 1) % places.len();
                    let (place, bytes) = &places[at];
                    let start = (at * 4096) % (place.len() as usize).saturating_sub(4096).max(1);
                    let want = &bytes.bytes()[start..(start + 4096).min(bytes.bytes().len())];
                    let buffer = &mut buffer[..want.len()];
                    let wait = if at % 2 == 0 { Wait::No } else { Wait::Yes };
                    match store.read_verified(place, start as u32, buffer, wait) {
                        ReadOutcome::Done => {
                            assert!(buffer == want, "a wrong byte");
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                        ReadOutcome::Unverified => drop(store.load(place)),
                        ReadOutcome::Missing | ReadOutcome::WouldBlock => {}
                    }
                }
            });
        }
        for round in 0..400usize {
            let (place, bytes) = &places[(round * 5) % places.len()];
            store.put(place, bytes).unwrap();
            if round % 17 == 0 {
                store.forget_verified();
            }
            if round % 29 == 0 {
                store.evict(&places[0].0.file);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(done.load(Ordering::Relaxed) > 100);
    assert_eq!(store.usage().damaged, 0);
    assert!(du(dir.path()) <= 16 * MIB);
}

#[test]
fn many_threads_may_put_the_same_block() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), options(64 * MIB)).unwrap();
    for size in [5000, 3 * MIB + 9] {
        let blocks: Vec<_> = (0..block_count(size))
            .map(|index| block(9, size, index))
            .collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for (place, bytes) in &blocks {
                        store.put(place, bytes).unwrap();
                    }
                });
            }
        });
        assert!(store.complete(&file_of(9, size)));
        for (place, bytes) in &blocks {
            assert_eq!(read(&store, place, Wait::Yes).1, bytes.bytes()[..]);
        }
    }
    // Nothing was charged twice.
    let charged = store.usage().used;
    drop(store);
    let store = Store::open(dir.path(), options(64 * MIB)).unwrap();
    assert!(charged <= store.usage().used + MIB / 2, "{charged}");
    assert_eq!(store.usage().files, 2);
}
