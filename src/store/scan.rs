//! What was there before: counted on threads at the start, and looked up on the spot until they have come by.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::disk::{Folder, Listed, Name};
use super::large::{Handle, Large, State};
use super::read::SmallState;
use super::recency::{Recency, Remembered};
use super::table::{Folders, Small};
use super::{SHARDS, Stat, Store, Wait};
use crate::block::{BLOCK_BYTES, Digest, FILE_BYTES_MAX, FileRef};

/// Threads that count.
const THREADS_MAX: usize = 4;

/// A store that is counted within this time is whole when it is opened.
const AT_ONCE: Duration = Duration::from_millis(100);

/// Tells when everything is counted, without keeping the store open.
#[derive(Default)]
pub(super) struct Counted {
    done: Mutex<bool>,
    changed: Condvar,
}

impl Counted {
    pub(super) fn wait(&self) {
        let mut done = self.done.lock();
        while !*done {
            self.changed.wait(&mut done);
        }
    }

    fn wait_for(&self, time: Duration) {
        let mut done = self.done.lock();
        if !*done {
            self.changed.wait_for(&mut done, time);
        }
    }

    pub(super) fn is_done(&self) -> bool {
        *self.done.lock()
    }

    fn set_done(&self) {
        *self.done.lock() = true;
        self.changed.notify_all();
    }
}

impl Store {
    /// Counts what is on the disk, here.
    pub(super) fn count(&self) {
        let recency = Recency::open(&*self.disk);
        self.begin_clock(recency.as_ref());
        (0..SHARDS).for_each(|shard| self.scan(shard, recency.as_ref()));
        self.count_others();
        self.counted.set_done();
    }

    /// Counts what is on the disk, on threads of their own, which end early when the store is closed.
    pub(super) fn count_behind(self: &Arc<Self>) -> io::Result<()> {
        let recency = Arc::new(Recency::open(&*self.disk));
        self.begin_clock(recency.as_ref().as_ref());
        let (next, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let threads = thread::available_parallelism().map_or(1, |count| count.get());
        for _ in 0..threads.min(THREADS_MAX) {
            let worker = Worker {
                store: Arc::downgrade(self),
                counted: Arc::clone(&self.counted),
                recency: Arc::clone(&recency),
                next: Arc::clone(&next),
                done: Arc::clone(&done),
            };
            thread::Builder::new()
                .name("manifs-count".into())
                .spawn(move || worker.run())?;
        }
        self.counted.wait_for(AT_ONCE);
        Ok(())
    }

    fn begin_clock(&self, recency: Option<&Recency>) {
        let begin = recency.map_or(0, Recency::clock);
        self.clock
            .fetch_max(begin.saturating_add(1), Ordering::Relaxed);
    }

    fn scan(&self, number: usize, recency: Option<&Recency>) {
        let (Some(shard), Ok(byte)) = (self.shards.get(number), u8::try_from(number)) else {
            return;
        };
        let remembered = recency
            .map(|recency| recency.shard(byte))
            .unwrap_or_default();
        let mut names = Vec::new();
        let small = self.list(Folder::Small(byte), &mut names);
        let large = self.list(Folder::Large(byte), &mut names);
        {
            let mut folders = shard.change.lock();
            let folders = &mut *folders;
            let grown = folders.small.grow(small.folder) + folders.large.grow(large.folder);
            // Strangers stay where they are, and are charged until the next start.
            let beside = grown + small.strangers + large.strangers;
            self.space.used.fetch_add(beside, Ordering::AcqRel);
        }
        // In short turns, so that readers get in between.
        for name in names {
            let mut folders = shard.change.lock();
            match name {
                Name::Small(id) => self.discover_small(&mut folders, id, &remembered),
                Name::Whole(id) | Name::Part(id) => {
                    self.discover_large(&mut folders, id, &remembered);
                }
                Name::Map(id) => self.discover_map(id),
                Name::Temporary(_) | Name::Recency | Name::RecencyNew => {}
            }
        }
        shard.scanned.store(true, Ordering::Release);
    }

    fn list(&self, folder: Folder, names: &mut Vec<Name>) -> Listed {
        self.disk
            .list(folder, &mut |name| names.push(name))
            .inspect_err(|error| self.count_failure(error, "list"))
            .unwrap_or_default()
    }

    /// Returns what is known of a small file; before its directory was scanned, that is what the disk says.
    pub(super) fn find_small(&self, id: &Digest) -> Option<SmallState> {
        let shard = self.shard(id);
        let known = self.small_state(id);
        if known.is_some() || shard.scanned.load(Ordering::Acquire) {
            return known;
        }
        let mut folders = shard.change.lock();
        self.discover_small(&mut folders, *id, &Remembered::default());
        self.small_state(id)
    }

    /// Returns the entry of a large file, unless it is of another size; before its directory was scanned, the disk is
    /// asked.
    pub(super) fn find_large(&self, file: &FileRef) -> Option<Arc<Large>> {
        let shard = self.shard(&file.id);
        let mut known = self.known_large(&file.id);
        if known.is_none() && !shard.scanned.load(Ordering::Acquire) {
            let mut folders = shard.change.lock();
            self.discover_large(&mut folders, file.id, &Remembered::default());
            known = self.known_large(&file.id);
        }
        known.filter(|large| large.file.size == file.size)
    }

    fn discover_small(
        &self,
        folders: &mut MutexGuard<'_, Folders>,
        id: Digest,
        remembered: &Remembered,
    ) {
        if self.small_state(&id).is_some() {
            return;
        }
        // The size that was written down is good enough for counting; what is read is hashed.
        let (proven, used) = remembered.small(&id);
        let size = match (proven, proven.is_none().then(|| self.stat(Name::Small(id)))) {
            (Some(size), _) => size,
            (None, Some(Some(stat))) => u32::try_from(stat.len).unwrap_or(u32::MAX),
            (None, _) => return,
        };
        let entry = Small {
            size,
            used: AtomicU32::new(used),
            written: 0,
            verified: AtomicBool::new(false),
            proven: proven.is_some(),
        };
        self.add_small(folders, id, entry);
    }

    /// Puts a small file that is on the disk into the table.
    pub(super) fn add_small(
        &self,
        folders: &mut MutexGuard<'_, Folders>,
        id: Digest,
        entry: Small,
    ) {
        let shard = self.shard(&id);
        let cost = self.small_cost(entry.size);
        let folder = folders.small.add(1, self.granule);
        self.space.used.fetch_add(cost + folder, Ordering::AcqRel);
        self.space.files.fetch_add(1, Ordering::Relaxed);
        if shard.is_kept(&id) {
            self.space.unevictable.fetch_add(cost, Ordering::Relaxed);
        }
        shard.small.write().insert(id, entry);
    }

    fn discover_large(
        &self,
        folders: &mut MutexGuard<'_, Folders>,
        id: Digest,
        remembered: &Remembered,
    ) {
        if self.known_large(&id).is_some() {
            return;
        }
        let whole = self.stat(Name::Whole(id));
        let (state, stat) = match (whole, self.stat(Name::Part(id))) {
            (Some(stat), part) => {
                // A crash between two names, or a leftover: the complete one is as good as the other.
                if part.is_some()
                    && let Err(error) = self.disk.remove(Name::Part(id))
                {
                    self.count_failure(&error, "remove");
                }
                (State::Whole, stat)
            }
            (None, Some(stat)) => (State::Part, stat),
            (None, None) => return,
        };
        if stat.len <= BLOCK_BYTES || stat.len > FILE_BYTES_MAX {
            // Not what we write under such a name.
            if let Err(error) = state.name(id).map_or(Ok(()), |name| self.disk.remove(name)) {
                self.count_failure(&error, "remove");
            }
            return;
        }
        let file = FileRef { id, size: stat.len };
        let large = Arc::new(Large::new(file, state, self.span_blocks));
        match state {
            State::Part => self.find_blocks(&large),
            State::Whole | State::Gone => {
                for index in 0..large.blocks() {
                    large.set_present(index);
                }
            }
        }
        if large.is_empty() {
            let removed = self.disk.remove(Name::Part(id));
            if let Err(error) = removed.and_then(|()| self.disk.remove(Name::Map(id))) {
                self.count_failure(&error, "remove");
            }
            return;
        }
        (0..large.spans()).for_each(|span| large.set_used(span, remembered.span(&id, span)));
        large.handle.store(None);
        if let Some(large) = Arc::into_inner(large) {
            self.add_large(folders, large, &stat);
        }
    }

    /// Finds out which blocks of a part file are there: those that the map names, and those that have data. Each of
    /// them is a stranger all the same.
    fn find_blocks(&self, large: &Arc<Large>) {
        let (id, size) = (large.file.id, large.file.size);
        if let Ok(map) = self.disk.read_vec(Name::Map(id), Large::map_len(size)) {
            large.read_map(&map);
        }
        let find = || {
            let state = State::Part;
            let file: Arc<Handle> = self.handle_of(large, state, Wait::Yes)?;
            let mut at = 0;
            while let Some(span) = file.0.data_after(at)? {
                // Forward, whatever the disk says.
                at = span.end.max(at + 1);
                large.set_present_bytes(span);
            }
            io::Result::Ok(())
        };
        if let Err(error) = find() {
            self.count_failure(&error, "seek");
        }
    }

    /// Puts a large file that is on the disk into the table.
    pub(super) fn add_large(
        &self,
        folders: &mut MutexGuard<'_, Folders>,
        large: Large,
        stat: &Stat,
    ) {
        let shard = self.shard(&large.file.id);
        large
            .kept
            .store(shard.is_kept(&large.file.id), Ordering::Relaxed);
        self.recount(&large, stat);
        let folder = folders.large.add(2, self.granule);
        self.space.used.fetch_add(folder, Ordering::AcqRel);
        self.space.files.fetch_add(1, Ordering::Relaxed);
        shard.large.write().insert(large.file.id, Arc::new(large));
    }

    /// Removes a map without a part file.
    fn discover_map(&self, id: Digest) {
        let part = self.stat(Name::Part(id)).is_some();
        if !part && let Err(error) = self.disk.remove(Name::Map(id)) {
            self.count_failure(&error, "remove");
        }
    }

    fn stat(&self, name: Name) -> Option<Stat> {
        match self.disk.stat(name) {
            Ok(stat) => Some(stat),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                self.count_failure(&error, "stat");
                None
            }
        }
    }
}

/// One counting thread. It holds the store for one shard at a time, so that closing does not wait for all of them.
struct Worker {
    store: Weak<Store>,
    counted: Arc<Counted>,
    recency: Arc<Option<Recency>>,
    next: Arc<AtomicUsize>,
    done: Arc<AtomicUsize>,
}

impl Worker {
    fn run(self) {
        loop {
            let number = self.next.fetch_add(1, Ordering::AcqRel);
            if number >= SHARDS {
                return;
            }
            let Some(store) = self.store.upgrade() else {
                return;
            };
            store.scan(number, self.recency.as_ref().as_ref());
            let last = self.done.fetch_add(1, Ordering::AcqRel) + 1 == SHARDS;
            if last {
                store.count_others();
            }
            // Before anybody is told, so that who opened and closes the store finds it closed.
            drop(store);
            if last {
                self.counted.set_done();
            }
        }
    }
}
