//! Files that change between the walk and the end of the ingest.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::PublishError;
use super::disk::Disk;
use super::ingest::{Ingest, ingest};
use super::options::Options;
use super::progress::Progress;
use super::refusal::{Reason, Refusals};
use super::reuse::{Began, Matcher};
use super::sink::{LargeSink, Nowhere, Room, Sink};
use super::walk::{Attributes, Walk, walk};
use crate::block::{Block, BlockRef, Digest, FileRef};

/// Walks, lets `change` happen, and ingests into `sink`.
fn ingest_after(
    tree: &Path,
    change: impl FnOnce(),
    sink: &dyn Sink,
) -> Result<Refusals, PublishError> {
    let temporary = tempfile::tempdir().unwrap();
    let options = Options::new("a@1.0.0".parse().unwrap());
    let attributes = Attributes::new(&options).unwrap();
    let progress = Progress::new();
    let disk = Disk::new(File::open(tree).unwrap()).unwrap();
    let homes = HashSet::new();
    let began = Began {
        ns: 0,
        fine_device: None,
    };
    let files = Matcher::new(None, None, sink, began, None, temporary.path()).unwrap();
    let work = Walk {
        disk: &disk,
        options: &options,
        attributes: &attributes,
        homes: &homes,
        beneath: None,
        temporary: temporary.path(),
        progress: &progress,
    };
    let walked = walk(&work, files).unwrap();
    assert!(walked.refusals.is_empty());
    change();
    let work = Ingest {
        disk: &disk,
        catalog: &walked.catalog,
        attributes: &attributes,
        sink,
        pieces: None,
        base: None,
        beneath: None,
        allow_secrets: false,
        progress: &progress,
    };
    ingest(&work, walked.matched.files, walked.refusals)
}

fn tree() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    let file = dir.path().join("d/file");
    fs::write(&file, "content").unwrap();
    fs::write(dir.path().join("d/other"), vec![7; 3 << 20]).unwrap();
    (dir, file)
}

fn changed(refusals: &Refusals) -> Vec<String> {
    let reasons: Vec<Reason> = refusals.groups().map(|(reason, _)| reason).collect();
    assert_eq!(reasons, [Reason::Changed], "{refusals}");
    let group = refusals.group(Reason::Changed).unwrap();
    group.shown.iter().map(ToString::to_string).collect()
}

#[test]
fn an_undisturbed_tree_is_read() {
    let (dir, _) = tree();
    let refusals = ingest_after(dir.path(), || {}, &Nowhere(None)).unwrap();
    assert!(refusals.is_empty());
}

#[test]
fn every_change_between_walk_and_read_is_seen() {
    type Change = fn(&Path);
    let in_place: [(&str, Change); 4] = [
        (
            "other bytes of the same size, the old time set again",
            |file| {
                let before = fs::metadata(file).unwrap().modified().unwrap();
                fs::write(file, "CONTENT").unwrap();
                File::open(file).unwrap().set_modified(before).unwrap();
            },
        ),
        ("one byte more", |file| {
            OpenOptions::new()
                .append(true)
                .open(file)
                .unwrap()
                .write_all(b"!")
                .unwrap();
        }),
        ("truncated", |file| fs::write(file, "").unwrap()),
        ("executable", |file| {
            fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap()
        }),
    ];
    for (what, change) in in_place {
        let (dir, file) = tree();
        let refusals = ingest_after(dir.path(), || change(&file), &Nowhere(None)).unwrap();
        assert_eq!(changed(&refusals), ["d/file"], "{what}");
    }
    // These change the directory too, and it is told as well.
    let in_directory: [(&str, Change); 5] = [
        ("gone", |file| fs::remove_file(file).unwrap()),
        ("a symlink", |file| {
            fs::rename(file, file.with_extension("old")).unwrap();
            symlink("file.old", file).unwrap();
        }),
        ("a directory", |file| {
            fs::remove_file(file).unwrap();
            fs::create_dir(file).unwrap();
        }),
        ("a FIFO, which nobody waits for", |file| {
            fs::remove_file(file).unwrap();
            let kind = rustix::fs::FileType::Fifo;
            rustix::fs::mknodat(rustix::fs::CWD, file, kind, rustix::fs::Mode::RUSR, 0).unwrap();
        }),
        ("another file with the same bytes", |file| {
            fs::write(file.with_extension("new"), "content").unwrap();
            fs::rename(file.with_extension("new"), file).unwrap();
        }),
    ];
    for (what, change) in in_directory {
        let (dir, file) = tree();
        let refusals = ingest_after(dir.path(), || change(&file), &Nowhere(None)).unwrap();
        let paths = changed(&refusals);
        assert_eq!(paths[0], "d", "{what}");
        assert!(paths[1].starts_with("d/file"), "{what}: {paths:?}");
    }
    // A file that was not there, and a directory that is gone.
    let (dir, file) = tree();
    let new = file.with_extension("new");
    let refusals =
        ingest_after(dir.path(), || fs::write(&new, "").unwrap(), &Nowhere(None)).unwrap();
    assert_eq!(changed(&refusals), ["d"]);
    let (dir, _) = tree();
    let moved = tempfile::tempdir().unwrap();
    let to = moved.path().join("d");
    let refusals = ingest_after(
        dir.path(),
        || fs::rename(dir.path().join("d"), &to).unwrap(),
        &Nowhere(None),
    );
    assert!(changed(&refusals.unwrap())[0].starts_with("d ("));
}

/// Changes a file as soon as its first block was read, and fails when told to.
struct Meddling {
    file: PathBuf,
    fails: bool,
    panics: bool,
}

impl Sink for Meddling {
    fn small(&self, _: &Block) -> Result<(), PublishError> {
        Ok(())
    }

    fn large(&self, _: u64, _: u64) -> Result<Arc<dyn LargeSink + '_>, PublishError> {
        Ok(Arc::new(Meddling {
            file: self.file.clone(),
            fails: self.fails,
            panics: self.panics,
        }))
    }

    fn has(&self, _: &FileRef) -> Result<bool, PublishError> {
        Ok(false)
    }

    fn load(&self, _: &BlockRef) -> Option<Block> {
        None
    }

    fn room(&self) -> Option<Room> {
        None
    }

    fn sync(&self) -> Result<(), PublishError> {
        Ok(())
    }
}

impl LargeSink for Meddling {
    fn block(&self, _: u64, _: &[u8]) -> Result<(), PublishError> {
        if self.panics {
            panic!("a bug");
        }
        if self.fails {
            return Err(std::io::Error::from(std::io::ErrorKind::StorageFull).into());
        }
        let mut file = OpenOptions::new().append(true).open(&self.file).unwrap();
        file.write_all(b"!").unwrap();
        Ok(())
    }

    fn finish(&self, _: Digest) -> Result<(), PublishError> {
        panic!("what changed while it was read is never finished");
    }
}

#[test]
fn a_change_while_reading_is_seen() {
    let (dir, _) = tree();
    let sink = Meddling {
        file: dir.path().join("d/other"),
        fails: false,
        panics: false,
    };
    let refusals = ingest_after(dir.path(), || {}, &sink).unwrap();
    assert_eq!(changed(&refusals), ["d/other"]);
}

#[test]
fn a_full_disk_ends_it_and_no_thread_hangs() {
    let (dir, _) = tree();
    for number in 0..50 {
        fs::write(
            dir.path().join(format!("d/large{number}")),
            vec![number; (2 << 20) + 1],
        )
        .unwrap();
    }
    let sink = Meddling {
        file: PathBuf::new(),
        fails: true,
        panics: false,
    };
    let error = ingest_after(dir.path(), || {}, &sink).unwrap_err();
    assert!(matches!(error, PublishError::Io(_)), "{error}");
}

#[test]
fn a_thread_that_dies_takes_the_others_along() {
    let (dir, _) = tree();
    let sink = Meddling {
        file: PathBuf::new(),
        fails: false,
        panics: true,
    };
    let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = ingest_after(dir.path(), || {}, &sink);
    }));
    assert!(died.is_err());
}
