//! The stream as it comes: waited for no longer than it is wanted, with bounded headers.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::Timespec;
use rustix::io::Errno;

use super::super::PublishError;
use super::super::progress::Progress;
use super::{BUFFER_BYTES, TarError};

/// How compressed streams begin, with what makes a tar stream of them.
const COMPRESSED: [(&[u8], &str); 6] = [
    (b"\x1f\x8b", "gzip -dc"),
    (b"\x28\xb5\x2f\xfd", "zstd -dc"),
    (b"\xfd7zXZ\0", "xz -dc"),
    (b"BZh", "bzip2 -dc"),
    (b"\x04\x22\x4d\x18", "lz4 -dc"),
    (b"PK\x03\x04", "bsdtar -c @-"),
];

/// Bytes of headers before one member: its own, long names, pax records.
pub(super) const HEADER_BYTES_MAX: u64 = 1 << 20;

/// The end of an archive is padded to this by nearly all programs; it is read, so that they do not write in vain.
const RECORD_BYTES: u64 = 10240;

/// How often somebody who waits for more looks whether it is still wanted, in milliseconds.
const LOOK_EVERY_MS: i64 = 200;

/// Reads the padding after the end mark.
pub(super) fn drain(mut rest: BufReader<Input<'_>>) {
    rest.get_ref().limits.content();
    let mut buffer = [0; 512];
    loop {
        let read = rest.get_ref().limits.read.get() - rest.buffer().len() as u64;
        let left = read.next_multiple_of(RECORD_BYTES) - read;
        let part = left.min(buffer.len() as u64);
        // At most 512.
        match usize::try_from(part).map(|part| rest.read(&mut buffer[..part])) {
            Ok(Ok(count)) if count > 0 => {}
            _ => return,
        }
    }
}

/// What is read of the stream, shared with who reads it.
#[derive(Default)]
pub(super) struct Limits {
    /// Bytes read in all.
    read: Cell<u64>,
    /// How many may be read before the next member; none while its content is.
    left: Cell<Option<u64>>,
    /// There is no more.
    ended: Cell<bool>,
}

impl Limits {
    /// Returns whether the stream has ended.
    pub(super) fn ended(&self) -> bool {
        self.ended.get()
    }

    /// A member's headers come next.
    pub(super) fn headers(&self) {
        self.left
            .set(Some(HEADER_BYTES_MAX + 2 * BUFFER_BYTES as u64));
    }

    /// A member's content comes next.
    pub(super) fn content(&self) {
        self.left.set(None);
    }

    /// Returns why a member cannot be read.
    pub(super) fn judge(&self, error: &io::Error, progress: &Progress) -> PublishError {
        if self.ended.get() && !progress.is_cancelled() {
            return TarError::Truncated.into();
        }
        broken(error, progress)
    }
}

/// The stream, waited for no longer than it is wanted.
pub(super) struct Input<'a> {
    file: File,
    pub(super) limits: Rc<Limits>,
    progress: &'a Progress,
    /// What was looked at already.
    begin: Vec<u8>,
}

impl<'a> Input<'a> {
    /// Begins to read; refuses what is compressed.
    pub(super) fn open(stream: OwnedFd, progress: &'a Progress) -> Result<Input<'a>, PublishError> {
        let mut input = Input {
            file: File::from(stream),
            limits: Rc::default(),
            progress,
            begin: Vec::new(),
        };
        input.look().map_err(|error| broken(&error, progress))?;
        let begin = &input.begin;
        match COMPRESSED
            .iter()
            .find(|(magic, _)| begin.starts_with(magic))
        {
            Some((_, program)) => Err(TarError::Compressed { program }.into()),
            None => Ok(input),
        }
    }

    /// Looks how the stream begins.
    fn look(&mut self) -> io::Result<()> {
        let most = COMPRESSED.iter().map(|(magic, _)| magic.len()).max();
        let mut begin = vec![0; most.unwrap_or(0)];
        let mut filled = 0;
        while filled < begin.len() {
            match self.next(&mut begin[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        begin.truncate(filled);
        self.begin = begin;
        Ok(())
    }

    fn next(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let every = Timespec {
            tv_sec: 0,
            tv_nsec: LOOK_EVERY_MS * 1_000_000,
        };
        loop {
            if self.progress.is_cancelled() {
                return Err(io::Error::other("cancelled"));
            }
            let mut waiting = [PollFd::new(&self.file, PollFlags::IN)];
            match rustix::event::poll(&mut waiting, Some(&every)) {
                Ok(0) | Err(Errno::INTR) => continue,
                Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
            match self.file.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => return outcome,
            }
        }
    }
}

impl Read for Input<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = if self.begin.is_empty() {
            self.next(buffer)?
        } else {
            let count = buffer.len().min(self.begin.len());
            buffer[..count].copy_from_slice(&self.begin[..count]);
            self.begin.drain(..count);
            count
        };
        let limits = &self.limits;
        limits.ended.set(count == 0 && !buffer.is_empty());
        limits.read.set(limits.read.get() + count as u64);
        if let Some(left) = limits.left.get() {
            let left = left.checked_sub(count as u64);
            limits.left.set(left);
            if left.is_none() {
                return Err(io::Error::other("a header of more than 1 MiB"));
            }
        }
        Ok(count)
    }
}

/// Returns why a stream cannot be read.
pub(super) fn broken(error: &io::Error, progress: &Progress) -> PublishError {
    if progress.is_cancelled() {
        return PublishError::Cancelled;
    }
    match error.kind() {
        io::ErrorKind::UnexpectedEof => TarError::Truncated.into(),
        _ => TarError::Damaged(error.to_string()).into(),
    }
}
