//! Copies a version, or a part of it, into a new directory; every file's hash is checked once more.

use std::fs::{File, FileTimes};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use sha2::{Digest as _, Sha256};

use super::look::items;
use super::output;
use super::session::Session;
use super::{Context, Error};
use crate::serve::control::{EntryItem, Failure, FailureKind, Progress, Reply, Request};

/// Copies a version, or a part of it, into a new directory.
#[derive(Debug, Args)]
pub(super) struct Fetch {
    /// PACKAGE, PACKAGE@VERSION, or either with /PATH.
    target: String,
    /// The directory to make.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
}

impl Fetch {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let target = std::path::absolute(&self.output)?;
        if target.symlink_metadata().is_ok() {
            let failure = Failure::failed(format!("{} exists", target.display()));
            return Err(failure
                .hint("name a directory that does not exist yet")
                .into());
        }
        let parent = target.parent().unwrap_or(Path::new("/"));
        // One for all: without a daemon each would open the home again.
        let mut session = context.session()?;
        let entries: Vec<EntryItem> = items(
            &mut session,
            &Request::Ls {
                target: self.target.clone(),
                recursive: true,
            },
        )?;
        let temporary = tempfile::Builder::new()
            .prefix(".manifs-fetch-")
            .tempdir_in(parent)?;
        let root = open_directory(temporary.path())?;
        let total = entries
            .iter()
            .filter(|entry| entry.kind == "file")
            .map(|entry| entry.size)
            .sum();
        let mut shown = context.output.progress();
        let mut done = 0;
        for entry in entries
            .iter()
            .filter(|entry| entry.kind == "directory" && !entry.path.is_empty())
        {
            rustix::fs::mkdirat(
                &parent_of(&root, entry)?,
                name_of(entry)?,
                Mode::from_raw_mode(0o700),
            )
            .map_err(io::Error::from)?;
        }
        for entry in entries.iter().filter(|entry| entry.kind == "file") {
            self.file(&mut session, &root, entry)?;
            done += entry.size;
            shown.update(&Progress {
                step: "fetch".into(),
                done,
                total,
                bytes: true,
            });
        }
        drop(shown);
        // Last, so that nothing is ever written through one.
        for entry in entries.iter().filter(|entry| entry.kind == "symlink") {
            let points = raw(
                entry.target.as_deref().unwrap_or_default(),
                entry.target_hex.as_deref(),
            )?;
            let (parent, name) = (parent_of(&root, entry)?, name_of(entry)?);
            rustix::fs::symlinkat(
                Path::new(std::ffi::OsStr::from_bytes(&points)),
                &parent,
                &name,
            )
            .map_err(io::Error::from)?;
            let times = Timestamps {
                last_access: timespec(entry.mtime_ns),
                last_modification: timespec(entry.mtime_ns),
            };
            rustix::fs::utimensat(&parent, &name, &times, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(io::Error::from)?;
        }
        // Deepest first: a directory's time changes with its entries.
        for entry in entries
            .iter()
            .rev()
            .filter(|entry| entry.kind == "directory")
        {
            let directory = if entry.path.is_empty() {
                root.try_clone()?
            } else {
                open_below(&root, &path_of(entry)?, OFlags::DIRECTORY | OFlags::RDONLY)?
            };
            finish(&File::from(directory), entry)?;
        }
        rustix::fs::renameat_with(
            rustix::fs::CWD,
            temporary.path(),
            rustix::fs::CWD,
            &target,
            rustix::fs::RenameFlags::NOREPLACE,
        )
        .map_err(io::Error::from)?;
        // What is gone from its place needs no cleaning.
        let _ = temporary.keep();
        context.output.say(&format!(
            "{} entries, {} in {}",
            entries.len(),
            output::bytes(total),
            target.display()
        ));
        Ok(())
    }

    fn file(&self, session: &mut Session, root: &OwnedFd, entry: &EntryItem) -> Result<(), Error> {
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (parent, name) = (parent_of(root, entry)?, name_of(entry)?);
        let file = rustix::fs::openat(&parent, &name, flags, Mode::from_raw_mode(0o600))
            .map_err(io::Error::from)?;
        let mut file = File::from(file);
        let mut hash = Sha256::new();
        if entry.size > 0 {
            let target = join(&self.target, &entry.path);
            let request = Request::Read {
                target,
                offset: 0,
                len: None,
            };
            session.ask(&request, &[], &mut |reply| {
                if let Reply::Data(bytes) = reply {
                    hash.update(&bytes);
                    file.write_all(&bytes)?;
                }
                Ok(())
            })?;
        }
        if Some(hex::encode(hash.finalize())) != entry.digest {
            let failure = Failure::new(
                FailureKind::Refused,
                format!("{:?} is not what the catalog says", entry.path),
            );
            return Err(failure.into());
        }
        Ok(finish(&file, entry)?)
    }
}

/// Gives a file or directory its mode and time.
fn finish(file: &File, entry: &EntryItem) -> io::Result<()> {
    rustix::fs::fchmod(file, Mode::from_raw_mode(entry.mode.into()))?;
    let distance = Duration::from_nanos(entry.mtime_ns.unsigned_abs());
    let time: SystemTime = if entry.mtime_ns < 0 {
        UNIX_EPOCH - distance
    } else {
        UNIX_EPOCH + distance
    };
    file.set_times(FileTimes::new().set_accessed(time).set_modified(time))
}

fn timespec(ns: i64) -> Timespec {
    Timespec {
        tv_sec: ns.div_euclid(1_000_000_000),
        tv_nsec: ns.rem_euclid(1_000_000_000),
    }
}

fn join(target: &str, path: &str) -> String {
    if path.is_empty() {
        target.to_owned()
    } else {
        format!("{}/{path}", target.trim_end_matches('/'))
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

/// Opens the directory that an entry lies in: below the root, through no link.
fn parent_of(root: &OwnedFd, entry: &EntryItem) -> Result<OwnedFd, Error> {
    let path = path_of(entry)?;
    match path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        None => Ok(root.try_clone()?),
        Some(parent) => Ok(open_below(
            root,
            parent,
            OFlags::DIRECTORY | OFlags::RDONLY,
        )?),
    }
}

fn open_below(root: &OwnedFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(
        root.as_fd(),
        path,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        resolve,
    )?)
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        path,
        OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}
