//! The threads that read, hash and store: one bounded queue, with blocks before files.
//!
//! A thread that reads a large file hands each block to whoever is free and goes on; when too many of its blocks are
//! under way it does some of the work itself. Nobody ever waits for a thread that may be waiting itself: block work
//! waits for nothing.

use std::collections::VecDeque;

use parking_lot::{Condvar, Mutex};

/// Work that waits for nobody (`B`, a block), and work that may make such work (`F`, some files).
pub(crate) struct Queue<B, F> {
    state: Mutex<State<B, F>>,
    /// Something was queued, taken or done.
    changed: Condvar,
    /// How many `F` wait at most; whoever adds more waits.
    capacity: usize,
}

struct State<B, F> {
    blocks: VecDeque<B>,
    files: VecDeque<F>,
    /// How many `F` are being worked on, and may still make blocks.
    active: usize,
    /// Nothing more of `F` will come.
    closed: bool,
    /// A thread has died: nobody waits for anything any more.
    aborted: bool,
}

/// A piece of work.
pub(crate) enum Work<B, F> {
    Block(B),
    Files(F),
}

impl<B, F> Queue<B, F> {
    pub(crate) fn new(capacity: usize) -> Self {
        Queue {
            state: Mutex::new(State {
                blocks: VecDeque::new(),
                files: VecDeque::new(),
                active: 0,
                closed: false,
                aborted: false,
            }),
            changed: Condvar::new(),
            capacity,
        }
    }

    /// Adds files; waits while many are waiting.
    pub(crate) fn add_files(&self, files: F) {
        let mut state = self.state.lock();
        while state.files.len() >= self.capacity && !state.aborted {
            self.changed.wait(&mut state);
        }
        state.files.push_back(files);
        drop(state);
        self.changed.notify_all();
    }

    /// Adds a block. Its number is bounded by whoever adds: see [`Queue::wait`].
    pub(crate) fn add_block(&self, block: B) {
        self.state.lock().blocks.push_back(block);
        self.changed.notify_all();
    }

    /// Says that no more files will come.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }

    /// Returns the next work for a free thread; `None` when there will never be any. Whoever gets files calls
    /// [`Queue::files_done`] afterwards.
    pub(crate) fn next(&self) -> Option<Work<B, F>> {
        let mut state = self.state.lock();
        loop {
            if state.aborted {
                return None;
            }
            if let Some(block) = state.blocks.pop_front() {
                return Some(Work::Block(block));
            }
            if let Some(files) = state.files.pop_front() {
                state.active += 1;
                drop(state);
                self.changed.notify_all();
                return Some(Work::Files(files));
            }
            if state.closed && state.active == 0 {
                return None;
            }
            self.changed.wait(&mut state);
        }
    }

    /// Says that files are done, blocks and all.
    pub(crate) fn files_done(&self) {
        self.state.lock().active -= 1;
        self.changed.notify_all();
    }

    /// Says that a thread has died, and with it maybe what others wait for.
    pub(crate) fn abort(&self) {
        self.state.lock().aborted = true;
        self.changed.notify_all();
    }

    /// Waits until `ready`, doing blocks meanwhile; returns early after [`Queue::abort`]. Whoever makes `ready` true calls [`Queue::done`] afterwards.
    pub(crate) fn wait(&self, ready: impl Fn() -> bool, mut block: impl FnMut(B)) {
        let mut state = self.state.lock();
        while !ready() && !state.aborted {
            if let Some(work) = state.blocks.pop_front() {
                drop(state);
                block(work);
                state = self.state.lock();
            } else {
                self.changed.wait(&mut state);
            }
        }
    }

    /// Says that a block is done: wakes those who wait for it.
    pub(crate) fn done(&self) {
        // With the lock, so that nobody looks before and sleeps after.
        drop(self.state.lock());
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// Every thread count does all the work, also when one file makes all the blocks and its thread must help.
    #[test]
    fn all_work_is_done_and_all_threads_end() {
        for threads in [1, 2, 5] {
            let queue: Queue<u64, u64> = Queue::new(2);
            let sum = AtomicU64::new(0);
            let done = AtomicU64::new(0);
            let block = |value: u64| {
                sum.fetch_add(value, Ordering::Relaxed);
                done.fetch_add(1, Ordering::Release);
                queue.done();
            };
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| {
                        while let Some(work) = queue.next() {
                            match work {
                                Work::Block(value) => block(value),
                                Work::Files(count) => {
                                    for value in 0..count {
                                        queue.add_block(value);
                                    }
                                    // All blocks of all files so far are at least these.
                                    queue.wait(|| done.load(Ordering::Acquire) >= count, block);
                                    queue.files_done();
                                }
                            }
                        }
                    });
                }
                for count in [0, 1, 100, 1000, 7] {
                    queue.add_files(count);
                }
                queue.close();
            });
            assert_eq!(done.load(Ordering::Acquire), 1108);
            assert_eq!(sum.load(Ordering::Relaxed), 4950 + 499_500 + 21);
        }
    }
}
