//! Writes down what happens on the disk below a directory, so that a test can lay out what a power cut leaves of it.
//! Only in tests.
//!
//! A name is on the disk once its directory is synced, and bytes once their file is. Until then the disk may have them or
//! not: a test looks at both ends, [`Disk::Lazy`], which has nothing that was not synced, and [`Disk::Eager`], which has
//! everything at once.

use std::fs;
use std::os::fd::{AsFd, AsRawFd as _};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

/// One thing that happened; paths are below the directory that is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// A directory was made.
    Made(PathBuf),
    /// A new file was written.
    Written(PathBuf, Vec<u8>),
    /// A file got a second name.
    Linked(PathBuf, PathBuf),
    /// A file got another name.
    Renamed(PathBuf, PathBuf),
    /// A file was removed.
    Removed(PathBuf),
    /// A file or directory was synced.
    Synced(PathBuf),
}

/// How early a disk has what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disk {
    /// At once.
    Eager,
    /// Never.
    Lazy,
}

/// By directory, what happened below it.
static RECORDINGS: Mutex<Vec<(PathBuf, Vec<Op>)>> = Mutex::new(Vec::new());

/// Records until it is dropped.
pub(crate) struct Recording(PathBuf);

impl Recording {
    /// Records what happens below a directory that no other recording is about.
    pub(crate) fn start(root: &Path) -> Recording {
        let root = fs::canonicalize(root).unwrap();
        RECORDINGS.lock().push((root.clone(), Vec::new()));
        Recording(root)
    }

    /// Returns what happened until now.
    pub(crate) fn ops(&self) -> Vec<Op> {
        let recordings = RECORDINGS.lock();
        let own = recordings.iter().find(|(root, _)| *root == self.0);
        own.map(|(_, ops)| ops.clone()).unwrap_or_default()
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        RECORDINGS.lock().retain(|(root, _)| *root != self.0);
    }
}

/// Takes what happened, with full paths.
pub(crate) fn note(op: &Op) {
    for (root, ops) in RECORDINGS.lock().iter_mut() {
        let below = |path: &Path| path.strip_prefix(&*root).map(Path::to_owned);
        let op = match op {
            Op::Made(path) => below(path).map(Op::Made),
            Op::Written(path, bytes) => below(path).map(|path| Op::Written(path, bytes.clone())),
            Op::Linked(from, to) => below(from).and_then(|from| Ok(Op::Linked(from, below(to)?))),
            Op::Renamed(from, to) => below(from).and_then(|from| Ok(Op::Renamed(from, below(to)?))),
            Op::Removed(path) => below(path).map(Op::Removed),
            Op::Synced(path) => below(path).map(Op::Synced),
        };
        ops.extend(op);
    }
}

/// Returns the full path of a name in an open directory, or with no name that of the directory.
pub(crate) fn path_at(directory: impl AsFd, name: &str) -> PathBuf {
    let link = format!("/proc/self/fd/{}", directory.as_fd().as_raw_fd());
    let directory = fs::read_link(link).unwrap();
    if name.is_empty() {
        directory
    } else {
        directory.join(name)
    }
}

impl Op {
    /// Returns the directory that has to be synced before this is on the disk.
    fn directory(&self) -> Option<&Path> {
        match self {
            Op::Made(path) | Op::Written(path, _) | Op::Removed(path) => path.parent(),
            Op::Linked(_, to) | Op::Renamed(_, to) => to.parent(),
            Op::Synced(_) => None,
        }
    }

    /// Does it again below `root`; `synced` are the files whose bytes are on the disk.
    fn apply(&self, root: &Path, synced: &[&Path]) {
        match self {
            Op::Made(path) => fs::create_dir(root.join(path)).unwrap(),
            Op::Written(path, bytes) => {
                let whole = synced.contains(&path.as_path());
                let bytes = if whole { bytes.as_slice() } else { b"" };
                fs::write(root.join(path), bytes).unwrap();
            }
            Op::Linked(from, to) => fs::hard_link(root.join(from), root.join(to)).unwrap(),
            Op::Renamed(from, to) => fs::rename(root.join(from), root.join(to)).unwrap(),
            Op::Removed(path) => fs::remove_file(root.join(path)).unwrap(),
            Op::Synced(_) => {}
        }
    }
}

/// Lays out below `root`, which is as it was when the recording began, what a power cut after `ops` leaves.
pub(crate) fn replay(ops: &[Op], disk: Disk, root: &Path) {
    let mut synced: Vec<&Path> = Vec::new();
    let mut pending: Vec<&Op> = Vec::new();
    for op in ops {
        match op {
            Op::Synced(path) => {
                synced.push(path);
                pending.retain(|op| {
                    let now = op.directory() == Some(path);
                    if now {
                        op.apply(root, &synced);
                    }
                    !now
                });
            }
            Op::Written(path, _) => {
                // Another file of that name.
                synced.retain(|known| known != path);
                pending.push(op);
            }
            op => pending.push(op),
        }
    }
    if disk == Disk::Eager {
        for op in pending {
            op.apply(root, &synced);
        }
    }
}

/// Calls `check` with what each power cut leaves of `ops` in a copy of `before`, and with how many of them had happened.
pub(crate) fn every_cut(before: &Path, ops: &[Op], mut check: impl FnMut(&Path, usize, Disk)) {
    for cut in 0..=ops.len() {
        for disk in [Disk::Eager, Disk::Lazy] {
            let after = tempfile::tempdir().unwrap();
            copy(before, after.path());
            replay(&ops[..cut], disk, after.path());
            check(after.path(), cut, disk);
        }
    }
}

/// Copies the directories and files of a tree.
pub(crate) fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
