//! How far a publish is, for whoever shows it, and the wish that it ends.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

/// What a publish is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Unpacks a stream.
    Unpack,
    /// Lists the tree.
    Walk,
    /// Reads, hashes and stores the files.
    Ingest,
    /// Finishes the catalog.
    Seal,
    /// Waits for signatures.
    Sign,
    /// Puts it where others get it.
    Provide,
    /// Tells the registry, then makes it visible here.
    Announce,
}

impl Step {
    const ALL: [Step; 7] = [
        Step::Unpack,
        Step::Walk,
        Step::Ingest,
        Step::Seal,
        Step::Sign,
        Step::Provide,
        Step::Announce,
    ];

    /// Returns the word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Step::Unpack => "unpack",
            Step::Walk => "walk",
            Step::Ingest => "ingest",
            Step::Seal => "seal",
            Step::Sign => "sign",
            Step::Provide => "provide",
            Step::Announce => "announce",
        }
    }
}

/// How far it is at one moment. Totals grow during the walk and stand from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// What is being done.
    pub step: Step,
    /// Files found.
    pub files: u64,
    /// Bytes of the files found.
    pub bytes: u64,
    /// Files read.
    pub files_done: u64,
    /// Bytes read.
    pub bytes_done: u64,
    /// Of the files done, those that were not read, since the last version has them.
    pub files_known: u64,
    /// Their bytes.
    pub bytes_known: u64,
    /// Bytes that were put where it is being provided.
    pub bytes_provided: u64,
}

/// Counters that the publish moves and others look at.
#[derive(Debug, Default)]
pub struct Progress {
    step: AtomicU8,
    files: AtomicU64,
    bytes: AtomicU64,
    files_done: AtomicU64,
    bytes_done: AtomicU64,
    files_known: AtomicU64,
    bytes_known: AtomicU64,
    bytes_provided: AtomicU64,
    cancelled: AtomicBool,
}

impl Progress {
    /// Starts at nothing.
    pub fn new() -> Progress {
        let progress = Progress::default();
        // Only streams are unpacked first.
        progress.enter(Step::Walk);
        progress
    }

    /// Returns how far it is.
    pub fn now(&self) -> Snapshot {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Snapshot {
            step: Step::ALL[usize::from(self.step.load(Ordering::Relaxed)) % Step::ALL.len()],
            files: count(&self.files),
            bytes: count(&self.bytes),
            files_done: count(&self.files_done),
            bytes_done: count(&self.bytes_done),
            files_known: count(&self.files_known),
            bytes_known: count(&self.bytes_known),
            bytes_provided: count(&self.bytes_provided),
        }
    }

    /// Asks the publish to end; it leaves nothing behind then. Too late once it announces.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    pub(crate) fn enter(&self, step: Step) {
        self.step.store(step as u8, Ordering::Relaxed);
    }

    pub(crate) fn found(&self, files: u64, bytes: u64) {
        self.files.fetch_add(files, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn read(&self, files: u64, bytes: u64) {
        self.files_done.fetch_add(files, Ordering::Relaxed);
        self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Takes how much of it is in the place that it is being put into.
    pub(crate) fn provided(&self, bytes: u64) {
        self.bytes_provided.store(bytes, Ordering::Relaxed);
    }

    /// Begins to count anew, for the tree that came as a stream.
    pub(crate) fn unpacked(&self) {
        self.bytes_done.store(0, Ordering::Relaxed);
    }

    /// Counts a file as done that did not have to be read.
    pub(crate) fn took_over(&self, bytes: u64) {
        self.read(1, bytes);
        self.files_known.fetch_add(1, Ordering::Relaxed);
        self.bytes_known.fetch_add(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_is_told_as_itself() {
        let progress = Progress::new();
        assert_eq!(progress.now().step, Step::Walk);
        for step in Step::ALL {
            progress.enter(step);
            assert_eq!(progress.now().step, step);
        }
        progress.found(2, 10);
        progress.read(1, 4);
        let now = progress.now();
        assert_eq!(
            (now.files, now.bytes, now.files_done, now.bytes_done),
            (2, 10, 1, 4)
        );
    }
}
