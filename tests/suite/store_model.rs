//! Random operations on a store over a disk that crashes, tears, flips, fails and fills up, against a plain map: never a
//! wrong byte, never above the quota, and what is protected is never evicted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use manifs::block::{BLOCK_BYTES, Block, BlockRef, Digest, FileRef, block_count, block_len};
use manifs::store::{
    Disk, MemoryDisk, Name, Options, ReadOutcome, Store, StoreError, Verify, Wait,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use crate::common;

/// Room for about two thirds of all the files.
const QUOTA: u64 = 12 << 20;

/// Sizes around every boundary; the last file has a hole in the middle.
const SIZES: [u64; 9] = [
    1,
    16 << 10,
    (16 << 10) + 1,
    BLOCK_BYTES - 1,
    BLOCK_BYTES,
    BLOCK_BYTES + 1,
    3 * BLOCK_BYTES + 7,
    9 * BLOCK_BYTES,
    4 * BLOCK_BYTES,
];

/// A file and what is in it.
struct Sample {
    file: FileRef,
    blocks: Vec<Block>,
}

impl Sample {
    fn new(number: usize) -> Sample {
        let size = SIZES[number];
        let blocks: Vec<Block> = (0..block_count(size))
            .map(|index| {
                let hole = number + 1 == SIZES.len() && index == 2;
                let len = block_len(size, index) as usize;
                let byte = |at: usize| {
                    (at as u64 * 31 + index * 7 + number as u64 + (at as u64 >> 9)) as u8
                };
                let bytes: Vec<u8> = if hole {
                    vec![0; len]
                } else {
                    (0..len).map(byte).collect()
                };
                Block::seal(Bytes::from(bytes))
            })
            .collect();
        let id = match &blocks[..] {
            [only] => only.digest(),
            // Any name will do for the store; the catalog is what ties it to the digests.
            _ => Digest::of(&[number as u8]),
        };
        Sample {
            file: FileRef { id, size },
            blocks,
        }
    }

    fn place(&self, index: usize) -> BlockRef {
        BlockRef {
            file: self.file,
            index: index as u64,
            digest: self.blocks[index].digest(),
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Put(usize, usize),
    Load(usize, usize),
    Read(usize, usize, u32),
    Ingest(usize),
    Evict(usize),
    Protect(usize),
    Unprotect(usize),
    /// A bit flips; the process has to be told to look again, since it trusts what it has hashed.
    Flip(usize, u64),
    Forget,
    Sync,
    Flush,
    Reopen,
    Crash(u64),
    /// So many bytes are left on the disk; none: as many as one likes.
    Room(Option<u64>),
    Fail(u32),
}

fn steps(count: usize) -> impl Strategy<Value = Vec<Step>> {
    let file = 0..SIZES.len();
    let block = 0..9usize;
    let step = prop_oneof![
        12 => (file.clone(), block.clone()).prop_map(|(file, block)| Step::Put(file, block)),
        6 => (file.clone(), block.clone()).prop_map(|(file, block)| Step::Load(file, block)),
        8 => (file.clone(), block, any::<u32>()).prop_map(|(file, block, at)| Step::Read(file, block, at)),
        2 => file.clone().prop_map(Step::Ingest),
        2 => file.clone().prop_map(Step::Evict),
        1 => file.clone().prop_map(Step::Protect),
        2 => file.clone().prop_map(Step::Unprotect),
        2 => (file, any::<u64>()).prop_map(|(file, at)| Step::Flip(file, at)),
        1 => Just(Step::Forget),
        1 => Just(Step::Sync),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        1 => any::<u64>().prop_map(Step::Crash),
        1 => prop_oneof![Just(None), (0..2 * QUOTA).prop_map(Some)].prop_map(Step::Room),
        1 => (1..4u32).prop_map(Step::Fail),
    ];
    prop::collection::vec(step, 1..count)
}

/// The store and what is known of it.
struct World {
    disk: MemoryDisk,
    store: Arc<Store>,
    options: Options,
    protected: BTreeMap<usize, u32>,
    /// What was put while it was protected, or was there then, and nothing but damage may take away.
    kept: BTreeSet<(usize, usize)>,
    /// Changes may fail: then nothing is promised but right bytes and the quota.
    faults: u32,
    full: bool,
}

impl World {
    fn new(options: Options) -> World {
        let disk = MemoryDisk::new();
        World {
            store: Store::open_on(Arc::new(disk.clone()), options),
            disk,
            options,
            protected: BTreeMap::new(),
            kept: BTreeSet::new(),
            faults: 0,
            full: false,
        }
    }

    fn open(&mut self, samples: &[Sample]) {
        self.store = Store::open_on(Arc::new(self.disk.clone()), self.options);
        for (number, count) in &self.protected {
            (0..*count).for_each(|_| self.store.protect(&samples[*number].file));
        }
    }

    fn keep_what_is_there(&mut self, samples: &[Sample], number: usize) {
        for index in 0..samples[number].blocks.len() {
            if self.store.has(&samples[number].place(index)) {
                self.kept.insert((number, index));
            }
        }
    }

    fn step(&mut self, samples: &[Sample], step: &Step) -> Result<(), TestCaseError> {
        match *step {
            Step::Put(number, block) => {
                let sample = &samples[number];
                let index = block % sample.blocks.len();
                let place = sample.place(index);
                match self.store.put(&place, &sample.blocks[index]) {
                    Ok(()) => {
                        prop_assert!(self.store.has(&place), "put, and not there");
                        if self.options.verify == Verify::FirstTouch {
                            prop_assert!(self.store.verified(&place));
                        }
                        if self.protected.contains_key(&number) {
                            self.kept.insert((number, index));
                        }
                    }
                    Err(StoreError::Full { unevictable, .. }) => {
                        // With nothing protected, and no fault, any one block fits.
                        prop_assert!(self.full || self.faults > 0 || unevictable > 0);
                    }
                    Err(error) => prop_assert!(self.faults > 0 || self.full, "{error}"),
                }
            }
            Step::Load(number, block) => {
                let sample = &samples[number];
                let index = block % sample.blocks.len();
                let place = sample.place(index);
                let loaded = self.store.load(&place);
                if let Some(loaded) = &loaded {
                    prop_assert!(loaded.bytes() == sample.blocks[index].bytes());
                } else {
                    // A miss is no surprise, but it is the last one: what was damaged is gone.
                    prop_assert!(self.faults > 0 || !self.store.has(&place));
                    self.kept.remove(&(number, index));
                }
            }
            Step::Read(number, block, at) => {
                let sample = &samples[number];
                let index = block % sample.blocks.len();
                let bytes = sample.blocks[index].bytes();
                let start = at as usize % bytes.len();
                let mut buffer = vec![0xaa; (bytes.len() - start).min(5000)];
                let place = sample.place(index);
                let start_here = u32::try_from(start).unwrap();
                let read = self
                    .store
                    .read_verified(&place, start_here, &mut buffer, Wait::No);
                match read {
                    ReadOutcome::Done => {
                        prop_assert!(buffer == bytes[start..start + buffer.len()], "a wrong byte");
                        prop_assert_eq!(self.options.verify, Verify::FirstTouch);
                    }
                    ReadOutcome::Unverified => prop_assert!(self.store.has(&place)),
                    ReadOutcome::Missing => prop_assert!(!self.store.has(&place)),
                    ReadOutcome::WouldBlock => prop_assert!(false, "memory never blocks"),
                }
            }
            Step::Ingest(number) => self.ingest(samples, number)?,
            Step::Evict(number) => {
                let before = self.store.cached(&samples[number].file);
                let freed = self.store.evict(&samples[number].file);
                if self.protected.contains_key(&number) {
                    prop_assert_eq!(freed, 0);
                    prop_assert_eq!(self.store.cached(&samples[number].file), before);
                } else if self.faults == 0 {
                    prop_assert_eq!(self.store.cached(&samples[number].file), 0);
                }
            }
            Step::Protect(number) => {
                self.store.protect(&samples[number].file);
                *self.protected.entry(number).or_default() += 1;
                self.keep_what_is_there(samples, number);
            }
            Step::Unprotect(number) => {
                self.store.unprotect(&samples[number].file);
                if let Some(count) = self.protected.get_mut(&number) {
                    *count -= 1;
                    if *count == 0 {
                        self.protected.remove(&number);
                        self.kept.retain(|(other, _)| *other != number);
                    }
                }
            }
            Step::Flip(number, at) => {
                let file = samples[number].file;
                let at = at % file.size;
                let mask = 1 << (at % 8);
                for name in [
                    Name::Small(file.id),
                    Name::Whole(file.id),
                    Name::Part(file.id),
                ] {
                    self.disk.flip(name, at, mask);
                }
                self.store.forget_verified();
                self.kept.remove(&(number, (at / BLOCK_BYTES) as usize));
            }
            Step::Forget => self.store.forget_verified(),
            Step::Sync => {
                if self.store.sync().is_err() {
                    prop_assert!(self.faults > 0);
                    self.kept.clear();
                }
            }
            Step::Flush => {
                if self.faults > 0 {
                    // It syncs, and a failing sync drops what it cannot vouch for.
                    self.kept.clear();
                }
                self.store.flush();
            }
            Step::Reopen => self.reopen(samples)?,
            Step::Crash(seed) => {
                let mut state = seed | 1;
                let mut random = || {
                    // xorshift64: any numbers will do, as long as they are the same again.
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state >> 11
                };
                let after = self.disk.crash(&mut random);
                self.disk = after;
                self.kept.clear();
                (self.faults, self.full) = (0, false);
                self.open(samples);
                self.protected.clone().keys().for_each(|number| {
                    self.keep_what_is_there(samples, *number);
                });
                // Whatever a crash has torn is a stranger now, and found out when it is hashed.
                self.kept.clear();
            }
            Step::Room(room) => {
                self.disk.set_capacity(room);
                self.full = room.is_some();
            }
            Step::Fail(count) => {
                self.disk.fail(count);
                // The next few changes fail, and what they were for is not known here.
                self.faults = 1;
            }
        }
        if self.faults > 0 && !matches!(step, Step::Fail(_)) {
            self.faults += 1;
            if self.faults > 12 {
                self.disk.fail(0);
                self.faults = 0;
            }
        }
        self.check(samples)
    }

    fn ingest(&mut self, samples: &[Sample], number: usize) -> Result<(), TestCaseError> {
        let sample = &samples[number];
        let zero = |block: &Block| block.bytes().iter().all(|byte| *byte == 0);
        let data = sample.blocks.iter().filter(|block| !zero(block));
        let data = data.map(|block| block.bytes().len() as u64).sum();
        let ingest = match self.store.ingest(sample.file.size, data) {
            Ok(ingest) => ingest,
            Err(error) => {
                let may = self.faults > 0 || self.full || !self.protected.is_empty();
                prop_assert!(may, "{error}");
                return Ok(());
            }
        };
        let mut written = Ok(());
        for (index, block) in sample.blocks.iter().enumerate() {
            if written.is_ok() && !zero(block) {
                written = ingest.write(index as u64 * BLOCK_BYTES, block.bytes());
            }
        }
        match written.and_then(|()| ingest.finish(sample.file)) {
            Ok(()) => {
                prop_assert!(self.store.complete(&sample.file));
                if self.protected.contains_key(&number) {
                    self.keep_what_is_there(samples, number);
                }
            }
            Err(error) => {
                prop_assert!(self.faults > 0 || self.full, "{error}");
                // It may have failed between removing the old file and naming the new one.
                self.kept.retain(|(other, _)| *other != number);
            }
        }
        Ok(())
    }

    fn reopen(&mut self, samples: &[Sample]) -> Result<(), TestCaseError> {
        let before: Vec<u64> = samples
            .iter()
            .map(|sample| self.store.cached(&sample.file))
            .collect();
        // The new one opens when the old one is gone.
        self.store = Store::open_on(Arc::new(MemoryDisk::new()), self.options);
        let faults = self.faults > 0 || self.full;
        self.open(samples);
        if !faults {
            for (sample, before) in samples.iter().zip(before) {
                prop_assert_eq!(self.store.cached(&sample.file), before, "after a clean end");
            }
        }
        Ok(())
    }

    fn check(&self, samples: &[Sample]) -> Result<(), TestCaseError> {
        let usage = self.store.usage();
        let used = self.disk.used();
        prop_assert!(usage.used <= QUOTA, "{} charged", usage.used);
        prop_assert!(used <= usage.used, "{used} used, {} charged", usage.used);
        prop_assert!(usage.unevictable <= usage.used);
        if self.protected.is_empty() {
            prop_assert_eq!(usage.unevictable, 0);
        }
        if self.faults == 0 {
            for (number, index) in &self.kept {
                let place = samples[*number].place(*index);
                prop_assert!(self.store.has(&place), "{number}/{index} was protected");
            }
        }
        Ok(())
    }
}

fn run(options: Options, cases: u32, count: usize) {
    let samples: Vec<Sample> = (0..SIZES.len()).map(Sample::new).collect();
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 100,
        ..Config::default()
    };
    let outcome = TestRunner::new(config).run(&steps(count), |steps| {
        let mut world = World::new(options);
        for step in &steps {
            world.step(&samples, step)?;
        }
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn random_operations_never_give_a_wrong_byte_nor_break_the_quota() {
    let cases = if common::full("most of the store's model test") {
        2000
    } else {
        24
    };
    let options = Options {
        quota: QUOTA,
        verify: Verify::FirstTouch,
    };
    run(options, cases, 80);
}

#[test]
fn random_operations_with_every_use_verified() {
    let cases = if common::full("most of the store's model test") {
        500
    } else {
        6
    };
    let options = Options {
        quota: QUOTA,
        verify: Verify::Always,
    };
    run(options, cases, 60);
}

/// Runs the steps of a shrunk failure.
fn again(verify: Verify, steps: &[Step]) {
    let samples: Vec<Sample> = (0..SIZES.len()).map(Sample::new).collect();
    let quota = QUOTA;
    let mut world = World::new(Options { quota, verify });
    for step in steps {
        world.step(&samples, step).unwrap();
    }
}

/// A complete file was damaged, and the disk too full for the map that was to come before the first hole.
#[test]
fn regression_damage_is_dropped_on_a_full_disk() {
    use Step::{Crash, Fail, Flush, Ingest, Load, Protect, Put, Read, Room, Sync};
    let steps = [
        Ingest(2),
        Sync,
        Put(5, 2),
        Put(0, 0),
        Crash(13_184_285_993_289_533_101),
        Put(5, 7),
        Room(Some(80_656)),
        Load(5, 4),
    ];
    again(Verify::Always, &steps);
    let steps = [
        Put(2, 0),
        Put(0, 0),
        Put(0, 0),
        Read(0, 4, 1_889_544_859),
        Fail(3),
        Protect(0),
        Ingest(3),
        Put(7, 5),
        Flush,
        Put(6, 3),
        Ingest(7),
        Put(2, 0),
        Load(3, 6),
        Crash(17_993_504_999_403_310_433),
        Room(Some(3_375_412)),
        Load(7, 0),
    ];
    again(Verify::FirstTouch, &steps);
}

#[test]
fn a_disk_in_memory_is_one_disk_for_all_clones() {
    let disk = MemoryDisk::new();
    assert_eq!(disk.names(), []);
    assert_eq!(disk.clone().granule(), 16 << 10);
}
