//! Small files that survive a crash: either the old content or the new, never a mixture and never nothing.
//!
//! Written beside their place, synced, renamed, and the directory synced. It knows nothing of what is in them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
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

/// Replaces the file at `path` by `bytes`, with the permissions `mode`; durable when this returns.
///
/// # Errors
/// Whatever the file system says; then the old file is still there.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let beside = beside(path)?;
    let written = write_new(&beside, bytes, mode).and_then(|()| fs::rename(&beside, path));
    if let Err(error) = written {
        // The first error is the one to tell; a left-over is overwritten by the next write.
        let _ = fs::remove_file(&beside);
        return Err(error);
    }
    #[cfg(test)]
    note(&Op::Renamed(beside, path.to_owned()));
    sync_parent(path)
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
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        create_dir(parent)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        other => {
            other?;
            #[cfg(test)]
            note(&Op::Made(path.to_owned()));
        }
    }
    sync_parent(path)
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
    let mut bytes = serde_json::to_vec_pretty(value)?;
    bytes.push(b'\n');
    write(path, &bytes, 0o600)
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
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent),
        _ => sync_dir(Path::new(".")),
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
    let open = || {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)
    };
    let mut file = match open() {
        // Left over from a process that died and had our number.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            open()?
        }
        other => other?,
    };
    file.write_all(bytes)?;
    #[cfg(test)]
    note(&Op::Written(path.to_owned(), bytes.to_vec()));
    file.sync_all()?;
    #[cfg(test)]
    note(&Op::Synced(path.to_owned()));
    Ok(())
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
