//! FUSE operations, one to one onto [`Fs`].

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    AccessFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyOpen, ReplyStatfs, ReplyXattr,
    Request,
};
use tokio::runtime::Handle;

use super::{THREADS, errno};
use crate::catalog::Kind;
use crate::fs::{Attempt, Attributes, Fs, FsError, Ino, Owner, ReadHere, Turns};

/// Requests the kernel may have waiting on us; with 64, a few dead readers stall every other read (measured).
const MAX_BACKGROUND: u16 = 4096;

/// The largest read request: one block.
const MAX_READ_BYTES: u32 = 1 << 20;

/// `statfs` counts in units of this many bytes.
const STATFS_UNIT: u32 = 4096;

/// Inodes never mean something else, so their generation never changes.
const GENERATION: Generation = Generation(0);

thread_local! {
    /// Each FUSE thread's reply buffer.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The `fuser` file system over an [`Fs`].
pub(super) struct Adapter {
    fs: Arc<Fs>,
    runtime: Handle,
    /// One thread is always free to answer.
    turns: Turns,
}

impl Adapter {
    pub(super) fn new(fs: Arc<Fs>, runtime: Handle) -> Self {
        Adapter {
            fs,
            runtime,
            turns: Turns::new(THREADS - 1),
        }
    }

    /// Tries on this thread; what has to wait for a catalog goes to a task that waits, tries again and replies.
    fn answer<T, R>(
        &self,
        reply: R,
        attempt: impl Fn(&Fs, &mut R) -> Attempt<T> + Send + Sync + 'static,
        send: impl FnOnce(R, Attempt<T>) + Send + 'static,
    ) where
        T: Send + 'static,
        R: Send + 'static,
    {
        let mut reply = reply;
        match attempt(&self.fs, &mut reply) {
            Err(FsError::Wait(wait)) => {
                let fs = Arc::clone(&self.fs);
                self.runtime.spawn(async move {
                    let outcome = fs.wait_and_retry(wait, |fs| attempt(fs, &mut reply)).await;
                    send(reply, outcome);
                });
            }
            outcome => send(reply, outcome),
        }
    }
}

/// Returns attributes in the kernel's words.
fn file_attr(owner: Owner, attributes: &Attributes) -> FileAttr {
    let mtime = system_time(attributes.mtime_ns);
    let perm = match attributes.kind {
        Kind::Symlink => attributes.mode,
        Kind::Directory | Kind::File => attributes.mode & !owner.umask,
    };
    FileAttr {
        ino: INodeNo(attributes.ino.get()),
        size: attributes.size,
        blocks: attributes.size.div_ceil(512),
        atime: mtime,
        mtime,
        ctime: mtime,
        crtime: mtime,
        kind: file_type(attributes.kind),
        perm,
        nlink: 1,
        uid: owner.uid,
        gid: owner.gid,
        rdev: 0,
        blksize: MAX_READ_BYTES,
        flags: 0,
    }
}

/// Returns the kernel's word for a kind.
fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::File => FileType::RegularFile,
        Kind::Symlink => FileType::Symlink,
    }
}

/// Returns nanoseconds since 1970, before it too, as a time.
fn system_time(ns: i64) -> SystemTime {
    let distance = Duration::from_nanos(ns.unsigned_abs());
    if ns < 0 {
        UNIX_EPOCH - distance
    } else {
        UNIX_EPOCH + distance
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, kernel: &mut KernelConfig) -> io::Result<()> {
        // READDIRPLUS without AUTO: the first pass of `find` takes 0.72 s instead of 3.4 s (100,000 files, measured).
        let wanted = InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_EXPORT_SUPPORT
            | InitFlags::FUSE_EXPLICIT_INVAL_DATA;
        // A kernel that lacks one of these is slower, not wrong.
        let _ = kernel.add_capabilities(wanted & kernel.capabilities());
        let _ = kernel.set_max_write(MAX_READ_BYTES);
        let _ = kernel.set_max_background(MAX_BACKGROUND);
        let _ = kernel.set_congestion_threshold(MAX_BACKGROUND / 4 * 3);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (parent, name) = (Ino::from_kernel(parent.0), name.as_bytes().to_vec());
        let owner = self.fs.owner();
        self.answer(
            reply,
            move |fs, _| fs.lookup(parent, &name),
            move |reply, found| match found {
                Ok(attributes) => {
                    reply.entry_with_ttls(
                        &attributes.ttl,
                        &attributes.entry_ttl,
                        &file_attr(owner, &attributes),
                        GENERATION,
                    );
                }
                // Inode 0 with a time to live is a negative entry: the kernel remembers that there is no such name.
                Err(FsError::NotFound { ttl }) if !ttl.is_zero() => {
                    let nothing = Attributes::nothing();
                    reply.entry(&ttl, &file_attr(owner, &nothing), GENERATION);
                }
                Err(error) => reply.error(errno::of(&error)),
            },
        );
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let ino = Ino::from_kernel(ino.0);
        let owner = self.fs.owner();
        self.answer(
            reply,
            move |fs, _| fs.attributes(ino),
            move |reply, found| match found {
                Ok(attributes) => reply.attr(&attributes.ttl, &file_attr(owner, &attributes)),
                Err(error) => reply.error(errno::of(&error)),
            },
        );
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let ino = Ino::from_kernel(ino.0);
        self.answer(
            reply,
            move |fs, _| fs.link(ino),
            |reply, target| match target {
                Ok(target) => reply.data(&target),
                Err(error) => reply.error(errno::of(&error)),
            },
        );
    }

    /// Not implemented on purpose: the kernel then opens files without asking us (130,000 a second instead of 14,000).
    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    /// Not implemented on purpose, as `open`; the kernel also caches listings then.
    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let ino = Ino::from_kernel(ino.0);
        let size = size.min(MAX_READ_BYTES) as usize;
        BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            match self
                .fs
                .read_here(ino, offset, &mut buffer[..size], &self.turns)
            {
                Ok(ReadHere::Done(count)) => reply.data(&buffer[..count]),
                Ok(ReadHere::Later) | Err(FsError::Wait(_)) => {
                    let fs = Arc::clone(&self.fs);
                    self.runtime.spawn(async move {
                        match fs.read(ino, offset, size).await {
                            Ok(bytes) => reply.data(&bytes),
                            Err(error) => reply.error(errno::of(&error)),
                        }
                    });
                }
                Err(error) => reply.error(errno::of(&error)),
            }
        });
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let ino = Ino::from_kernel(ino.0);
        let attempt = move |fs: &Fs, reply: &mut ReplyDirectory| {
            fs.list(ino, offset, &mut |item| {
                let ino = INodeNo(item.attributes.ino.get());
                !reply.add(
                    ino,
                    item.cookie,
                    file_type(item.attributes.kind),
                    OsStr::from_bytes(item.name),
                )
            })
        };
        self.answer(reply, attempt, |reply, listed| match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno::of(&error)),
        });
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let ino = Ino::from_kernel(ino.0);
        let owner = self.fs.owner();
        let attempt = move |fs: &Fs, reply: &mut ReplyDirectoryPlus| {
            fs.list(ino, offset, &mut |item| {
                let attr = file_attr(owner, item.attributes);
                let name = OsStr::from_bytes(item.name);
                // One time to live serves entry and attributes here, so the shorter one.
                let ttl = item.attributes.ttl.min(item.attributes.entry_ttl);
                !reply.add(
                    INodeNo(item.attributes.ino.get()),
                    item.cookie,
                    name,
                    &ttl,
                    &attr,
                    GENERATION,
                )
            })
        };
        self.answer(reply, attempt, |reply, listed| match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno::of(&error)),
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let space = self.fs.space();
        let unit = u64::from(STATFS_UNIT);
        reply.statfs(
            space.total_bytes / unit,
            space.free_bytes / unit,
            space.free_bytes / unit,
            0,
            0,
            STATFS_UNIT,
            255,
            STATFS_UNIT,
        );
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let (ino, name) = (Ino::from_kernel(ino.0), name.as_bytes().to_vec());
        // security.capability and the like are asked before many an exec: answered without a look at anything.
        if !name.starts_with(b"user.") {
            return reply.error(Errno::NO_XATTR);
        }
        self.answer(
            reply,
            move |fs, _| fs.attribute(ino, &name),
            move |reply, value| match value {
                Ok(value) => match u32::try_from(value.len()) {
                    Ok(len) if size == 0 => reply.size(len),
                    Ok(len) if len <= size => reply.data(&value),
                    _ => reply.error(Errno::ERANGE),
                },
                Err(error) => reply.error(errno::of(&error)),
            },
        );
    }

    /// Not implemented on purpose: attributes are asked for by name, so that `cp -a` and `tar` do not copy them.
    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        // `default_permissions` has the kernel decide; it never asks.
        reply.error(Errno::ENOSYS);
    }

    /// Python's `open()` sends one for each open, and the kernel does not remember a refusal.
    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }
}
