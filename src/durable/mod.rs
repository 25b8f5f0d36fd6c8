//! Small files that survive a crash: either the old content or the new, never a mixture and never nothing.
//!
//! Written beside their place, synced, renamed, and the directory synced. It knows nothing of what is in them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

#[cfg(test)]
use recorder::{Op, note};

#[cfg(test)]
pub(crate) mod recorder;

/// The largest file that [`read_json`] reads, in bytes.
pub const JSON_BYTES_MAX: u64 = 64 << 20;

/// How many files are synced at once.
const SYNCS_MAX: usize = 8;

/// Replaces the file at `path` by `bytes`, with the permissions `mode`; durable when this returns.
///
/// # Errors
/// Whatever the file system says; then the old file is still there.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    write_parts(path, &[bytes], mode)
}

/// As [`write`], of several parts, one after the other.
///
/// # Errors
/// As [`write`].
pub fn write_parts(path: &Path, parts: &[&[u8]], mode: u32) -> io::Result<()> {
    let mut batch = Batch::default();
    batch.write(path, parts, mode)?;
    batch.commit()
}

/// Small files that are replaced together, so that all of them wait for the disk at the same time.
///
/// They appear in the order in which they were added. After a power cut each is the old one or the new one, whatever
/// the others are. A batch that is dropped changes nothing.
#[derive(Default)]
pub struct Batch {
    files: Vec<Staged>,
    /// Directories in which others were made.
    grown: Vec<PathBuf>,
}

/// A file of a batch, under its hidden name.
struct Staged {
    file: File,
    beside: PathBuf,
    path: PathBuf,
}

impl Batch {
    /// Adds a file: `parts` one after the other are to be at `path`, with the permissions `mode`.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn write(&mut self, path: &Path, parts: &[&[u8]], mode: u32) -> io::Result<()> {
        let beside = beside(path)?;
        let file = create_new(&beside, mode)?;
        let staged = self.files.push_mut(Staged {
            file,
            beside,
            path: path.to_owned(),
        });
        for part in parts {
            staged.file.write_all(part)?;
        }
        #[cfg(test)]
        note(&Op::Written(staged.beside.clone(), parts.concat()));
        Ok(())
    }

    /// Adds a JSON file, readable for people, with mode 0600.
    ///
    /// # Errors
    /// As [`Batch::write`].
    pub fn write_json<T: Serialize + ?Sized>(&mut self, path: &Path, value: &T) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(value)?;
        self.write(path, &[&text, b"\n"], 0o600)
    }

    /// Makes a directory and its parents with mode 0700, at once; they are durable when the files are.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn create_dir(&mut self, path: &Path) -> io::Result<()> {
        make_dir(path, &mut self.grown)
    }

    /// Replaces all files; durable when this returns.
    ///
    /// # Errors
    /// Whatever the file system says; then some of the old files may be there still.
    pub fn commit(mut self) -> io::Result<()> {
        let files: Vec<&File> = self.files.iter().map(|staged| &staged.file).collect();
        sync_together(&files)?;
        #[cfg(test)]
        for staged in &self.files {
            note(&Op::Synced(staged.beside.clone()));
        }
        let mut directories = std::mem::take(&mut self.grown);
        for Staged { beside, path, .. } in &self.files {
            fs::rename(beside, path)?;
            #[cfg(test)]
            note(&Op::Renamed(beside.clone(), path.clone()));
            directories.push(parent_of(path).to_owned());
        }
        self.files.clear();
        directories.sort_unstable();
        directories.dedup();
        let opened: io::Result<Vec<File>> = directories.iter().map(File::open).collect();
        sync_together(&opened?)?;
        #[cfg(test)]
        for directory in directories {
            note(&Op::Synced(directory));
        }
        Ok(())
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        for staged in &self.files {
            // What went wrong before is what is told; some have their places already, and a left-over is swept.
            let _ = fs::remove_file(&staged.beside);
        }
    }
}

/// Syncs several files or directories at once, so that they wait for the disk at the same time. Blocking.
pub(crate) fn sync_together<F: AsFd + Sync>(files: &[F]) -> io::Result<()> {
    let sync = |file: &F| Ok(rustix::fs::fsync(file)?);
    files.chunks(SYNCS_MAX).try_for_each(|files| {
        let Some((first, others)) = files.split_first() else {
            return Ok(());
        };
        std::thread::scope(|scope| {
            let spawn = |file| {
                let thread = std::thread::Builder::new().name("manifs-sync".into());
                // Without a thread it is synced here.
                thread
                    .spawn_scoped(scope, move || sync(file))
                    .map_err(|_| file)
            };
            let others: Vec<_> = others.iter().map(spawn).collect();
            let first = sync(first);
            others.into_iter().fold(first, |synced, other| {
                let other = match other {
                    Ok(thread) => thread
                        .join()
                        .unwrap_or_else(|_| Err(io::Error::other("panicked"))),
                    Err(file) => sync(file),
                };
                synced.and(other)
            })
        })
    })
}

/// Writes a file that must not exist yet; durable when this returns.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] when it exists, otherwise whatever the file system says.
pub fn create(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let beside = beside(path)?;
    let linked = write_new(&beside, bytes, mode).and_then(|()| fs::hard_link(&beside, path));
    let _ = fs::remove_file(&beside);
    linked?;
    #[cfg(test)]
    note(&Op::Linked(beside.clone(), path.to_owned()));
    #[cfg(test)]
    note(&Op::Removed(beside));
    sync_parent(path)
}

/// Removes a file; durable when this returns. One that is not there is no error.
///
/// # Errors
/// Whatever the file system says.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    }
    #[cfg(test)]
    note(&Op::Removed(path.to_owned()));
    sync_parent(path)
}

/// Makes a directory and its parents with mode 0700; durable when this returns.
///
/// # Errors
/// Whatever the file system says.
pub fn create_dir(path: &Path) -> io::Result<()> {
    let mut grown = Vec::new();
    make_dir(path, &mut grown)?;
    grown.iter().try_for_each(|parent| sync_dir(parent))
}

/// Makes a directory and its parents, and adds to `grown` the directories in which there is one more now.
fn make_dir(path: &Path, grown: &mut Vec<PathBuf>) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = parent_of(path);
    make_dir(parent, grown)?;
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        other => {
            other?;
            #[cfg(test)]
            note(&Op::Made(path.to_owned()));
        }
    }
    // Also when somebody else has just made it.
    grown.push(parent.to_owned());
    Ok(())
}

/// Reads a file of at most `max_bytes`; `None` when it is not there.
///
/// # Errors
/// [`io::ErrorKind::FileTooLarge`] above the limit, otherwise whatever the file system says.
pub fn read(path: &Path, max_bytes: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut bytes = Vec::new();
    file.take(max_bytes.saturating_add(1))
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max_bytes {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("more than {max_bytes} bytes"),
        ));
    }
    Ok(Some(bytes))
}

/// Reads a JSON file; `None` when it is not there.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] when it is not what `T` is, otherwise as [`read`].
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let Some(bytes) = read(path, JSON_BYTES_MAX)? else {
        return Ok(None);
    };
    let value = serde_json::from_slice(&bytes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(Some(value))
}

/// Writes a JSON file, readable for people, with mode 0600; durable when this returns.
///
/// # Errors
/// As [`write`].
pub fn write_json<T: Serialize + ?Sized>(path: &Path, value: &T) -> io::Result<()> {
    let mut batch = Batch::default();
    batch.write_json(path, value)?;
    batch.commit()
}

/// Removes what writes that a crash cut short left in a directory. Only for its one owner, before it writes.
///
/// # Errors
/// Whatever the file system says.
pub fn sweep(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let text = name.to_string_lossy();
        if text.starts_with('.') && text.ends_with(".tmp") {
            fs::remove_file(dir.join(&name))?;
        }
    }
    Ok(())
}

/// Syncs a directory, so that the names in it are durable.
///
/// # Errors
/// Whatever the file system says.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()?;
    #[cfg(test)]
    note(&Op::Synced(path.to_owned()));
    Ok(())
}

fn sync_parent(path: &Path) -> io::Result<()> {
    sync_dir(parent_of(path))
}

/// Returns the directory in which a path lies.
fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Where a file is written before it gets its name: hidden, in the same directory. The process id keeps two
/// processes apart, and a counter two threads.
fn beside(path: &Path) -> io::Result<PathBuf> {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no file name"))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    hidden.push(format!(".{}-{count}.tmp", std::process::id()));
    Ok(path.with_file_name(hidden))
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = create_new(path, mode)?;
    file.write_all(bytes)?;
    #[cfg(test)]
    note(&Op::Written(path.to_owned(), bytes.to_vec()));
    file.sync_all()?;
    #[cfg(test)]
    note(&Op::Synced(path.to_owned()));
    Ok(())
}

fn create_new(path: &Path, mode: u32) -> io::Result<File> {
    let open = || {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)
    };
    match open() {
        // Left over from a process that died and had our number.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            open()
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn replaces_creates_and_removes_without_leaving_anything() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write(&path, b"one", 0o600).unwrap();
        write(&path, b"two", 0o600).unwrap();
        assert_eq!(read(&path, 3).unwrap().unwrap(), b"two");
        assert_eq!(
            read(&path, 2).unwrap_err().kind(),
            io::ErrorKind::FileTooLarge
        );
        assert_eq!(
            create(&path, b"three", 0o600).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        assert_eq!(read(&path, 3).unwrap().unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(read(&path, 3).unwrap(), None);
    }

    #[test]
    fn a_power_cut_leaves_the_old_file_or_the_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let before = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        let recording = recorder::Recording::start(&root);
        // What the two files hold after each step, and how much had happened by then.
        let mut steps: Vec<(usize, [Option<&[u8]>; 2])> = vec![(0, [None, None])];
        let mut step = |files| steps.push((recording.ops().len(), files));
        create_dir(&root.join("deep/er")).unwrap();
        write(&root.join("deep/er/a"), b"one", 0o600).unwrap();
        step([Some(b"one"), None]);
        write(&root.join("deep/er/a"), b"two", 0o600).unwrap();
        step([Some(b"two"), None]);
        create(&root.join("b"), b"three", 0o600).unwrap();
        step([Some(b"two"), Some(b"three")]);
        remove(&root.join("deep/er/a")).unwrap();
        step([None, Some(b"three")]);
        recorder::every_cut(before.path(), &recording.ops(), |after, cut, disk| {
            let files = ["deep/er/a", "b"].map(|name| read(&after.join(name), 9).unwrap());
            let files = files.each_ref().map(Option::as_deref);
            let done = steps.iter().filter(|(ops, _)| *ops <= cut).count();
            let (_, old) = steps[done - 1];
            let new = steps.get(done).map(|(_, new)| *new);
            assert!(
                files == old || Some(files) == new,
                "{files:?} after {cut} of a disk that is {disk:?}"
            );
        });
    }

    #[test]
    fn a_batch_replaces_all_or_when_dropped_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("deep/er/two"));
        write(&one, b"old", 0o600).unwrap();
        let stage = || {
            let mut batch = Batch::default();
            batch.write(&one, &[b"n", b"ew"], 0o600).unwrap();
            batch.create_dir(two.parent().unwrap()).unwrap();
            batch.write(&two, &[b"2"], 0o644).unwrap();
            batch
        };
        drop(stage());
        assert_eq!(read(&one, 9).unwrap().unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        assert_eq!(fs::read_dir(two.parent().unwrap()).unwrap().count(), 0);
        stage().commit().unwrap();
        assert_eq!(read(&one, 9).unwrap().unwrap(), b"new");
        assert_eq!(read(&two, 9).unwrap().unwrap(), b"2");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        // More than are synced at once, of which one cannot get its place: those before it have theirs, nothing else is left.
        let many: Vec<PathBuf> = (0..2 * SYNCS_MAX)
            .map(|number| dir.path().join(format!("many{number}")))
            .collect();
        fs::create_dir(&many[9]).unwrap();
        let mut batch = Batch::default();
        for path in &many {
            batch.write(path, &[b"x"], 0o600).unwrap();
        }
        assert!(batch.commit().is_err());
        for (number, path) in many.iter().enumerate() {
            assert_eq!(path.is_file(), number < 9, "{number}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2 + 10);
    }

    #[test]
    fn json_that_is_something_else_is_an_error_not_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/a.json");
        create_dir(path.parent().unwrap()).unwrap();
        assert_eq!(read_json::<Vec<u8>>(&path).unwrap(), None);
        write_json(&path, &[1, 2]).unwrap();
        assert_eq!(read_json::<Vec<u8>>(&path).unwrap(), Some(vec![1, 2]));
        write(&path, b"[1, 2", 0o600).unwrap();
        assert_eq!(
            read_json::<Vec<u8>>(&path).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }
}
