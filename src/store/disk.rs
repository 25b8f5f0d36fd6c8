//! The one way to a disk, narrow enough that crashes, torn writes and full disks can be simulated in memory.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use rustix::io::{Errno, ReadWriteFlags};

use super::Wait;

/// Files below one directory. Paths are relative, of plain names.
pub trait Disk: Send + Sync + 'static {
    /// Opens a file for reading and writing; `None` when there is none.
    ///
    /// # Errors
    /// The system's, here and below.
    fn open(&self, path: &str) -> io::Result<Option<Arc<dyn DiskFile>>>;

    /// Creates an empty file, in the place of one that is there.
    ///
    /// # Errors
    /// The system's.
    fn create(&self, path: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Moves a file, over one that is there.
    ///
    /// # Errors
    /// The system's.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file; one that is not there is fine.
    ///
    /// # Errors
    /// The system's.
    fn remove(&self, path: &str) -> io::Result<()>;

    /// Returns the files of a directory; none when there is no such directory.
    ///
    /// # Errors
    /// The system's.
    fn list(&self, directory: &str) -> io::Result<Vec<(String, Stat)>>;

    /// Notes that a file was used just now.
    ///
    /// # Errors
    /// The system's.
    fn touch(&self, path: &str) -> io::Result<()>;

    /// Makes everything durable.
    ///
    /// # Errors
    /// The system's.
    fn sync(&self) -> io::Result<()>;
}

/// One open file.
pub trait DiskFile: Send + Sync {
    /// Reads up to `buffer.len()` bytes; with [`Wait::No`] only what needs no disk, else `WouldBlock`.
    ///
    /// # Errors
    /// The system's.
    fn read_at(&self, offset: u64, buffer: &mut [u8], wait: Wait) -> io::Result<usize>;

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// The system's.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes a span a hole, which takes no space.
    ///
    /// # Errors
    /// The system's.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Sets the length; what is added is a hole.
    ///
    /// # Errors
    /// The system's.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Returns length and space.
    ///
    /// # Errors
    /// The system's.
    fn stat(&self) -> io::Result<Stat>;
}

/// A file's size, cost and age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stat {
    /// Bytes.
    pub len: u64,
    /// Bytes it takes on the disk.
    pub allocated: u64,
    /// When it was last used, in seconds since 1970.
    pub used: u64,
}

/// A directory of a real disk.
pub struct RealDisk {
    root: PathBuf,
    /// For `syncfs`.
    handle: File,
}

impl RealDisk {
    /// Takes a directory, which is made when it is missing, with all the directories that a store has.
    ///
    /// # Errors
    /// The system's.
    pub fn new(root: &Path) -> io::Result<RealDisk> {
        fs::create_dir_all(root)?;
        for kind in ["r", "p"] {
            for shard in 0..=u8::MAX {
                fs::create_dir_all(root.join(kind).join(format!("{shard:02x}")))?;
            }
        }
        fs::create_dir_all(root.join("tmp"))?;
        Ok(RealDisk {
            handle: File::open(root)?,
            root: root.to_path_buf(),
        })
    }
}

fn stat(metadata: &fs::Metadata) -> Stat {
    Stat {
        len: metadata.len(),
        allocated: metadata.blocks() * 512,
        used: u64::try_from(metadata.atime().max(metadata.mtime())).unwrap_or(0),
    }
}

impl Disk for RealDisk {
    fn open(&self, path: &str) -> io::Result<Option<Arc<dyn DiskFile>>> {
        match OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOATIME)
            .open(self.root.join(path))
        {
            Ok(file) => Ok(Some(Arc::new(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn create(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(self.root.join(path))?;
        Ok(Arc::new(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.root.join(from), self.root.join(to))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        match fs::remove_file(self.root.join(path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn list(&self, directory: &str) -> io::Result<Vec<(String, Stat)>> {
        let entries = match fs::read_dir(self.root.join(directory)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            // One that was removed meanwhile is no error.
            if let (Ok(name), Ok(metadata)) = (entry.file_name().into_string(), entry.metadata()) {
                found.push((name, stat(&metadata)));
            }
        }
        Ok(found)
    }

    fn touch(&self, path: &str) -> io::Result<()> {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        };
        let keep = Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        };
        let times = Timestamps {
            last_access: now,
            last_modification: keep,
        };
        rustix::fs::utimensat(
            rustix::fs::CWD,
            self.root.join(path),
            &times,
            rustix::fs::AtFlags::empty(),
        )?;
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.handle)?)
    }
}

impl DiskFile for File {
    fn read_at(&self, offset: u64, buffer: &mut [u8], wait: Wait) -> io::Result<usize> {
        if wait == Wait::Yes {
            let mut done = 0;
            while done < buffer.len() {
                match FileExt::read_at(self, &mut buffer[done..], offset + done as u64) {
                    Ok(0) => break,
                    Ok(count) => done += count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            return Ok(done);
        }
        let mut slices = [io::IoSliceMut::new(buffer)];
        match rustix::io::preadv2(self.as_fd(), &mut slices, offset, ReadWriteFlags::NOWAIT) {
            Ok(count) => Ok(count),
            // Some file systems do not know NOWAIT: then nothing is at hand.
            Err(Errno::OPNOTSUPP | Errno::AGAIN) => Err(io::ErrorKind::WouldBlock.into()),
            Err(error) => Err(error.into()),
        }
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        Ok(rustix::fs::fallocate(
            self,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            offset,
            len,
        )?)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }

    fn stat(&self) -> io::Result<Stat> {
        Ok(stat(&self.metadata()?))
    }
}
