//! Copies a version, or a part of it, into a new directory; every file's hash is checked once more.
//!
//! Whatever the daemon says, nothing is written outside the new directory: paths are opened from its descriptor,
//! through no link, and links are made when every file is there. It gets its name when it is complete.

use std::fs::{File, FileTimes, Permissions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, ResolveFlags, Timespec, Timestamps};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::mirror::Mirror;
use super::output::{self, Shown};
use super::session::Session;
use super::{Context, Error, target};
use crate::serve::control::{
    Done, EntryItem, Event, Failure, FailureKind, Inspection, Progress, Reply, Request,
};

/// Copies a version, or a part of it, into a new directory.
#[derive(Debug, Args)]
pub(super) struct Fetch {
    /// PACKAGE, PACKAGE@VERSION, either with /PATH, or a path below a mount.
    target: String,
    /// The directory to make.
    #[arg(short, long, value_name = "DIR", required_unless_present = "mirror")]
    output: Option<PathBuf>,
    /// Puts the version into a mirror instead: DIR/<name>-<version>, with its catalog, for a web server.
    #[arg(long, value_name = "DIR", conflicts_with = "output")]
    mirror: Option<PathBuf>,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
}

impl Fetch {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        if let Some(directory) = &self.mirror {
            return self.mirror(context, directory);
        }
        let output = std::path::absolute(self.output.unwrap_or_default())?;
        if output.symlink_metadata().is_ok() {
            let failure = Failure::failed(format!("{} exists", output.display()));
            return Err(failure
                .hint("name a directory that does not exist yet")
                .into());
        }
        let request = Request::Fetch {
            target: target(&self.target),
        };
        let copy = Copy::begin(&output, context.output.progress())?;
        let done = copy.write(&mut context.session()?, &request, &output)?;
        if self.json {
            return Ok(output::json(&json!({
                "directory": output.display().to_string(),
                "files": done.files,
                "bytes": done.bytes,
            }))?);
        }
        context.output.say(&format!(
            "{} files, {} in {}",
            done.files,
            output::bytes(done.bytes),
            output.display()
        ));
        Ok(())
    }
}

impl Fetch {
    fn mirror(&self, context: &Context, directory: &Path) -> Result<(), Error> {
        let target = target(&self.target);
        let mut session = context.session()?;
        let inspection: Inspection = session.get(&Request::Inspect {
            target: target.clone(),
        })?;
        let mirror = Mirror {
            directory,
            tree: &inspection.tree,
            catalog: &inspection.catalog,
        };
        let written = mirror.write(context, &mut session, &Request::Mirror { target })?;
        if self.json {
            return Ok(output::json(&json!({
                "directory": written.place.display().to_string(),
                "unchanged": written.done.is_none(),
                "files": written.done.as_ref().map(|done| done.files),
                "bytes": written.done.as_ref().map(|done| done.bytes),
            }))?);
        }
        context.output.say(&written.sentence());
        Ok(())
    }
}

/// A copy under way, in a temporary directory beside its place.
pub(super) struct Copy {
    temporary: TempDir,
    root: OwnedFd,
    /// The directory that was last written in: neighbours come together.
    parent: Option<(PathBuf, OwnedFd)>,
    writing: Option<Writing>,
    directories: Vec<EntryItem>,
    links: Vec<EntryItem>,
    shown: Shown,
    done: u64,
    total: u64,
    /// Whether it has to be on the disk before it gets its name.
    pub(super) durable: bool,
    /// What went wrong here, not there.
    problem: Option<Error>,
}

/// A file that is being written.
struct Writing {
    entry: EntryItem,
    file: File,
    hash: Sha256,
    /// Bytes that are still to come.
    left: u64,
}

impl Copy {
    pub(super) fn begin(output: &Path, shown: Shown) -> Result<Copy, Error> {
        let beside = output.parent().unwrap_or(Path::new("/"));
        let temporary = tempfile::Builder::new()
            .prefix(".manifs-fetch-")
            .tempdir_in(beside)
            .map_err(|error| Failure::failed(format!("{}: {error}", beside.display())))?;
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let root = rustix::fs::open(temporary.path(), flags, Mode::empty());
        Ok(Copy {
            root: root.map_err(io::Error::from)?,
            temporary,
            parent: None,
            writing: None,
            directories: Vec::new(),
            links: Vec::new(),
            shown,
            done: 0,
            total: 0,
            durable: false,
            problem: None,
        })
    }

    /// Writes what answers `request`, and gives it its name.
    pub(super) fn write(
        mut self,
        session: &mut Session,
        request: &Request,
        output: &Path,
    ) -> Result<Done, Error> {
        let asked = session.ask(request, &[], &mut |reply| match self.take(reply) {
            Ok(()) => Ok(()),
            Err(error) => {
                self.problem.get_or_insert(error);
                Err(io::ErrorKind::Other.into())
            }
        });
        if let Some(problem) = self.problem.take() {
            return Err(problem);
        }
        let done = serde_json::from_value(asked?).map_err(Failure::failed)?;
        self.finish(output)?;
        Ok(done)
    }

    fn take(&mut self, reply: Reply) -> Result<(), Error> {
        match reply {
            Reply::Data(bytes) => self.data(&bytes),
            Reply::Event(Event::Item(item)) => {
                self.entry(serde_json::from_value(item).map_err(Failure::failed)?)
            }
            Reply::Event(Event::Progress(progress)) => {
                self.total = progress.total;
                Ok(())
            }
            Reply::Event(_) => Ok(()),
        }
    }

    fn entry(&mut self, entry: EntryItem) -> Result<(), Error> {
        if self.writing.is_some() {
            return Err(broken(&entry, "its bytes did not all come"));
        }
        match entry.kind.as_str() {
            "directory" => {
                if !entry.path.is_empty() {
                    let name = name_of(&entry)?;
                    rustix::fs::mkdirat(self.parent_of(&entry)?, name, Mode::from_raw_mode(0o700))
                        .map_err(|error| at(&entry, error))?;
                }
                self.directories.push(entry);
            }
            "symlink" => self.links.push(entry),
            _ => {
                let flags = OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::WRONLY
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let name = name_of(&entry)?;
                let mode = Mode::from_raw_mode(0o600);
                let file = rustix::fs::openat(self.parent_of(&entry)?, name, flags, mode)
                    .map_err(|error| at(&entry, error))?;
                self.writing = Some(Writing {
                    file: File::from(file),
                    hash: Sha256::new(),
                    left: entry.size,
                    entry,
                });
                self.finish_file()?;
            }
        }
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let Some(writing) = &mut self.writing else {
            return Err(Failure::failed("bytes came that belong to no file").into());
        };
        let count = bytes.len() as u64;
        writing.left = writing
            .left
            .checked_sub(count)
            .ok_or_else(|| broken(&writing.entry, "too many bytes came"))?;
        writing.hash.update(bytes);
        writing
            .file
            .write_all(bytes)
            .map_err(|error| at(&writing.entry, error))?;
        self.done += count;
        self.shown.update(&Progress {
            step: "fetch".into(),
            done: self.done,
            total: self.total,
            bytes: true,
        });
        self.finish_file()
    }

    /// Closes the file that is being written, if all its bytes have come.
    fn finish_file(&mut self) -> Result<(), Error> {
        if let Some(writing) = self.writing.take_if(|writing| writing.left == 0) {
            let Writing {
                entry, file, hash, ..
            } = writing;
            if Some(hex::encode(hash.finalize())) != entry.digest {
                return Err(broken(&entry, "it is not what the catalog says"));
            }
            dress(&file, &entry).map_err(|error| at(&entry, error))?;
        }
        Ok(())
    }

    /// Makes the links, gives directories their modes and times, and the whole its name.
    fn finish(mut self, output: &Path) -> Result<(), Error> {
        if let Some(writing) = &self.writing {
            return Err(broken(&writing.entry, "its bytes did not all come"));
        }
        for entry in std::mem::take(&mut self.links) {
            let points = raw(
                entry.target.as_deref().unwrap_or_default(),
                entry.target_hex.as_deref(),
            )?;
            let (name, parent) = (name_of(&entry)?, self.parent_of(&entry)?);
            let points = Path::new(std::ffi::OsStr::from_bytes(&points));
            rustix::fs::symlinkat(points, parent, &name).map_err(|error| at(&entry, error))?;
            let time = timespec(entry.mtime_ns);
            let times = Timestamps {
                last_access: time,
                last_modification: time,
            };
            rustix::fs::utimensat(parent, &name, &times, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| at(&entry, error))?;
        }
        let root = File::from(self.root.try_clone()?);
        // A single file has no directory of its own in the package.
        root.set_permissions(Permissions::from_mode(0o755))?;
        // Deepest first: a directory's time changes with its entries.
        for entry in self.directories.iter().rev() {
            let directory = if entry.path.is_empty() {
                root.try_clone()?
            } else {
                let opened = open_below(&self.root, &path_of(entry)?);
                File::from(opened.map_err(|error| at(entry, error))?)
            };
            dress(&directory, entry).map_err(|error| at(entry, error))?;
        }
        if self.durable {
            rustix::fs::syncfs(&self.root).map_err(io::Error::from)?;
        }
        let from = self.temporary.path();
        rustix::fs::renameat_with(CWD, from, CWD, output, RenameFlags::NOREPLACE).map_err(
            |error| {
                let error = io::Error::from(error);
                Failure::failed(format!("{}: {error}", output.display()))
            },
        )?;
        // It is gone from its place, so there is nothing to clean.
        let _ = self.temporary.keep();
        Ok(())
    }

    /// Opens the directory that an entry lies in.
    fn parent_of(&mut self, entry: &EntryItem) -> Result<&OwnedFd, Error> {
        let path = path_of(entry)?;
        let above = path.parent().unwrap_or(Path::new(""));
        if above.as_os_str().is_empty() {
            return Ok(&self.root);
        }
        if self.parent.as_ref().is_none_or(|(known, _)| known != above) {
            let opened = open_below(&self.root, above).map_err(|error| at(entry, error))?;
            self.parent = Some((above.to_path_buf(), opened));
        }
        match &self.parent {
            Some((_, directory)) => Ok(directory),
            None => Ok(&self.root),
        }
    }
}

/// Says what is wrong with an entry that came.
fn broken(entry: &EntryItem, what: &str) -> Error {
    Failure::new(FailureKind::Refused, format!("{:?}: {what}", entry.path)).into()
}

/// Says which entry could not be written.
fn at(entry: &EntryItem, error: impl Into<io::Error>) -> Error {
    Failure::failed(format!("{:?}: {}", entry.path, error.into())).into()
}

/// Gives a file or directory its mode and time.
fn dress(file: &File, entry: &EntryItem) -> io::Result<()> {
    rustix::fs::fchmod(file, Mode::from_raw_mode(u32::from(entry.mode) & 0o777))?;
    let distance = Duration::from_nanos(entry.mtime_ns.unsigned_abs());
    let time: SystemTime = if entry.mtime_ns < 0 {
        UNIX_EPOCH - distance
    } else {
        UNIX_EPOCH + distance
    };
    file.set_times(FileTimes::new().set_accessed(time).set_modified(time))
}

fn timespec(nanoseconds: i64) -> Timespec {
    Timespec {
        tv_sec: nanoseconds.div_euclid(1_000_000_000),
        tv_nsec: nanoseconds.rem_euclid(1_000_000_000),
    }
}

/// Returns the very bytes of a name.
fn raw(text: &str, digits: Option<&str>) -> Result<Vec<u8>, Failure> {
    match digits {
        Some(digits) => hex::decode(digits).map_err(Failure::failed),
        None => Ok(text.as_bytes().to_vec()),
    }
}

fn path_of(entry: &EntryItem) -> Result<PathBuf, Failure> {
    Ok(PathBuf::from(std::ffi::OsString::from_vec(raw(
        &entry.path,
        entry.path_hex.as_deref(),
    )?)))
}

fn name_of(entry: &EntryItem) -> Result<PathBuf, Failure> {
    let path = path_of(entry)?;
    path.file_name()
        .map(PathBuf::from)
        .ok_or_else(|| Failure::failed(format!("{:?} has no name", entry.path)))
}

/// Opens a directory below the root, through no link.
fn open_below(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat2(
        root.as_fd(),
        path,
        flags,
        Mode::empty(),
        resolve,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Digest;

    fn output() -> output::Output {
        output::Output::new(true)
    }

    fn item(path: &str, kind: &str, bytes: &[u8]) -> Reply {
        let entry = EntryItem {
            path: path.into(),
            kind: kind.into(),
            mode: 0o644,
            size: bytes.len() as u64,
            target: (kind == "symlink").then(|| "/etc".into()),
            digest: (kind == "file").then(|| Digest::of(bytes).to_string()),
            ..EntryItem::default()
        };
        Reply::Event(Event::Item(serde_json::to_value(entry).unwrap()))
    }

    fn data(bytes: &[u8]) -> Reply {
        Reply::Data(bytes.to_vec())
    }

    /// Copies what `replies` say into a new directory, and says what went wrong.
    fn copy(replies: Vec<Reply>) -> (TempDir, PathBuf, Result<(), String>) {
        let around = tempfile::tempdir().unwrap();
        let place = around.path().join("copy");
        let mut copy = Copy::begin(&place, output().progress()).unwrap();
        let mut taken = Ok(());
        for reply in replies {
            taken = taken.and_then(|()| copy.take(reply));
        }
        let done = taken.and_then(|()| copy.finish(&place));
        (around, place, done.map_err(|error| error.failure().message))
    }

    #[test]
    fn a_tree_is_written_and_gets_its_name_last() {
        let (_around, place, done) = copy(vec![
            item("", "directory", b""),
            item("d", "directory", b""),
            item("d/link", "symlink", b"/etc"),
            item("empty", "file", b""),
            item("d/file", "file", b"one two"),
            data(b"one "),
            data(b"two"),
        ]);
        done.unwrap();
        assert_eq!(std::fs::read(place.join("d/file")).unwrap(), b"one two");
        assert_eq!(
            std::fs::read_link(place.join("d/link")).unwrap(),
            Path::new("/etc")
        );
        assert_eq!(std::fs::read(place.join("empty")).unwrap(), b"");
    }

    #[test]
    fn nothing_is_left_of_what_goes_wrong() {
        let cases: Vec<(Vec<Reply>, &str)> = vec![
            (vec![item("f", "file", b"right"), data(b"wrong")], "catalog"),
            (vec![item("f", "file", b"right"), data(b"rig")], "not all"),
            (
                vec![item("f", "file", b"right"), item("g", "file", b"")],
                "not all",
            ),
            (
                vec![item("f", "file", b"right"), data(b"right and more")],
                "too many",
            ),
            (vec![data(b"x")], "no file"),
            (
                vec![item("f", "file", b""), item("f", "file", b"")],
                "exists",
            ),
            (vec![item("../f", "file", b"")], "../f"),
            (vec![item("/f/g", "file", b"")], "/f/g"),
            (vec![item("d/../../f", "file", b"")], "f"),
            (vec![item("..", "directory", b"")], "no name"),
            (vec![item("missing/f", "file", b"")], "missing"),
        ];
        for (replies, want) in cases {
            let (around, _, done) = copy(replies);
            let message = done.unwrap_err();
            assert!(message.contains(want), "{message} does not tell of {want}");
            assert_eq!(std::fs::read_dir(around.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_link_cannot_be_written_through() {
        let (_around, place, done) = copy(vec![
            item("l", "symlink", b"/etc"),
            item("l", "directory", b""),
        ]);
        assert!(done.unwrap_err().contains("exists"));
        assert!(!place.exists());
    }
}
