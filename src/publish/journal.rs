//! What a publish has to finish after a crash, on disk: one file for each job that is signed.
//!
//! A job without a file is one that nobody has signed: nothing of it is visible anywhere. From the moment its file is
//! there, which is one rename, the job is carried to its end, however often the process dies, since each step leaves
//! alone what is done already.
//!
//! A file is a line of JSON that says what follows and how long it is, and then just that: the envelopes, the sums and
//! the info dictionary, byte for byte.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::options::JobId;
use crate::block::Digest;
use crate::durable;
use crate::manifest::sums::SUMS_BYTES_MAX;
use crate::manifest::{ENVELOPE_BYTES_MAX, PackageVersion};
use crate::torrent::INFO_BYTES_MAX;

/// The version of the first line; another one is refused.
const FORMAT: u32 = 2;

/// The longest first line, in bytes: two names and a registry's path or URL.
const HEAD_BYTES_MAX: u64 = 64 << 10;

/// A signed job: everything that is needed to make it visible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Signed {
    pub(crate) package: PackageVersion,
    /// The registry, as it names itself.
    pub(crate) registry: String,
    /// The digest of the index envelope that the new one was made from.
    pub(crate) replaces: Option<Digest>,
    /// None when only the release index changes.
    pub(crate) manifest: Option<Bytes>,
    pub(crate) index: Bytes,
    pub(crate) sums: Option<Bytes>,
    /// The info dictionary, when the version is to be seeded.
    pub(crate) torrent: Option<Bytes>,
}

/// The first line. The parts follow in the order of their lengths here; one without a length is not there.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    format: u32,
    package: PackageVersion,
    registry: String,
    replaces: Option<Digest>,
    manifest: Option<u64>,
    index: u64,
    sums: Option<u64>,
    torrent: Option<u64>,
}

/// The journal of a home.
pub(crate) struct Journal {
    directory: PathBuf,
}

impl Journal {
    pub(crate) fn new(directory: &Path) -> Journal {
        Journal {
            directory: directory.to_path_buf(),
        }
    }

    /// Records that a job is signed; durable when this returns.
    pub(crate) fn signed(&self, job: &JobId, signed: &Signed) -> io::Result<()> {
        let len = |part: &Option<Bytes>| part.as_ref().map(|bytes| bytes.len() as u64);
        let head = Head {
            format: FORMAT,
            package: signed.package.clone(),
            registry: signed.registry.clone(),
            replaces: signed.replaces,
            manifest: len(&signed.manifest),
            index: signed.index.len() as u64,
            sums: len(&signed.sums),
            torrent: len(&signed.torrent),
        };
        let mut line = serde_json::to_vec(&head)?;
        line.push(b'\n');
        let mut parts: Vec<&[u8]> = vec![&line];
        parts.extend(signed.manifest.as_deref());
        parts.push(&signed.index);
        parts.extend(signed.sums.as_deref());
        parts.extend(signed.torrent.as_deref());
        durable::write_parts(&self.path(job), &parts, 0o600)
    }

    /// Reads a signed job; `None` when it is not signed.
    pub(crate) fn read(&self, job: &JobId) -> io::Result<Option<Signed>> {
        let path = self.path(job);
        let damaged = |what: &str| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{}: {what}", path.display()),
            )
        };
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(damaged("written by another version of manifs"));
        }
        let mut reader = BufReader::new(file);
        let mut line = Vec::new();
        let head_bytes =
            Read::take(&mut reader, HEAD_BYTES_MAX).read_until(b'\n', &mut line)? as u64;
        let head: Head = serde_json::from_slice(&line)
            .map_err(|_| damaged("damaged, or written by another version of manifs"))?;
        if head.format != FORMAT {
            return Err(damaged("written by another version of manifs"));
        }
        let limits = [
            (head.manifest, ENVELOPE_BYTES_MAX as u64),
            (Some(head.index), ENVELOPE_BYTES_MAX as u64),
            (head.sums, SUMS_BYTES_MAX),
            (head.torrent, INFO_BYTES_MAX as u64),
        ];
        let mut bytes = head_bytes;
        for (len, max) in limits {
            let len = len.unwrap_or(0);
            if len > max {
                return Err(damaged("a part is too long"));
            }
            bytes += len;
        }
        if bytes != meta.len() {
            return Err(damaged("of the wrong length"));
        }
        let mut part = |len: Option<u64>| -> io::Result<Option<Bytes>> {
            let Some(len) = len else { return Ok(None) };
            // Bounded above, and there is so much.
            let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
            reader.read_exact(&mut bytes)?;
            Ok(Some(bytes.into()))
        };
        Ok(Some(Signed {
            package: head.package,
            registry: head.registry,
            replaces: head.replaces,
            manifest: part(head.manifest)?,
            index: part(Some(head.index))?.unwrap_or_default(),
            sums: part(head.sums)?,
            torrent: part(head.torrent)?,
        }))
    }

    /// Forgets a job.
    pub(crate) fn remove(&self, job: &JobId) -> io::Result<()> {
        durable::remove(&self.path(job))
    }

    /// Lists the signed jobs.
    pub(crate) fn jobs(&self) -> io::Result<Vec<JobId>> {
        let mut jobs = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            if let Some(job) = name.to_str().and_then(|name| name.parse().ok()) {
                jobs.push(job);
            }
        }
        jobs.sort_unstable();
        Ok(jobs)
    }

    fn path(&self, job: &JobId) -> PathBuf {
        self.directory.join(job.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable::recorder;

    fn signed() -> Signed {
        Signed {
            package: "a@1.0.0".parse().unwrap(),
            registry: "/r".to_owned(),
            replaces: Some(Digest::EMPTY),
            manifest: Some(Bytes::from_static(b"m\n\n")),
            index: Bytes::from_static(b"i"),
            sums: Some(Bytes::from_static(b"")),
            torrent: Some(Bytes::from_static(b"\0t")),
        }
    }

    #[test]
    fn a_job_is_signed_when_its_file_is_there_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::new(dir.path());
        let job = JobId::random();
        assert_eq!(journal.jobs().unwrap(), []);
        assert_eq!(journal.read(&job).unwrap(), None);
        let mut signed = signed();
        journal.signed(&job, &signed).unwrap();
        assert_eq!(journal.jobs().unwrap(), std::slice::from_ref(&job));
        assert_eq!(journal.read(&job).unwrap(), Some(signed.clone()));
        // The same again, with less.
        signed.manifest = None;
        signed.sums = None;
        signed.torrent = None;
        journal.signed(&job, &signed).unwrap();
        assert_eq!(journal.read(&job).unwrap(), Some(signed));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        journal.remove(&job).unwrap();
        journal.remove(&job).unwrap();
        assert_eq!(journal.jobs().unwrap(), []);
    }

    #[test]
    fn a_power_cut_leaves_a_whole_job_or_none() {
        let (dir, before) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let recording = recorder::Recording::start(dir.path());
        let journal = Journal::new(&fs::canonicalize(dir.path()).unwrap());
        let job = JobId::random();
        let old = Signed {
            package: "a@1.0.0".parse().unwrap(),
            registry: "/r".to_owned(),
            replaces: Some(Digest::EMPTY),
            manifest: Some(Bytes::from_static(b"m")),
            index: Bytes::from_static(b"i"),
            sums: Some(Bytes::from_static(b"s")),
            torrent: None,
        };
        let new = Signed {
            index: Bytes::from_static(b"other"),
            replaces: None,
            ..old.clone()
        };
        let mut steps = vec![(0, None)];
        let mut step = |job: Option<&Signed>| steps.push((recording.ops().len(), job.cloned()));
        journal.signed(&job, &old).unwrap();
        step(Some(&old));
        // Signed once more, over the first.
        journal.signed(&job, &new).unwrap();
        step(Some(&new));
        journal.remove(&job).unwrap();
        step(None);
        recorder::every_cut(before.path(), &recording.ops(), |after, cut, disk| {
            let journal = Journal::new(after);
            let found = journal.read(&job).unwrap();
            let done = steps.iter().filter(|(ops, _)| *ops <= cut).count();
            let old = &steps[done - 1].1;
            let new = steps.get(done).map(|(_, new)| new);
            assert!(
                found.is_none() && new.is_some() || found == *old || Some(&found) == new,
                "{found:?} after {cut} of a disk that is {disk:?}"
            );
            // Whatever is left of it is taken away.
            for left in journal.jobs().unwrap() {
                journal.remove(&left).unwrap();
            }
            assert_eq!(journal.jobs().unwrap(), []);
        });
    }

    #[test]
    fn a_damaged_job_is_an_error_and_not_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::new(dir.path());
        let job = JobId::random();
        journal.signed(&job, &signed()).unwrap();
        let path = dir.path().join(job.as_str());
        let bytes = fs::read(&path).unwrap();
        let refused = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            let error = journal.read(&job).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{bytes:?}");
        };
        for cut in 0..bytes.len() {
            refused(&bytes[..cut]);
        }
        refused(&[&bytes[..], b"x"].concat());
        let text = String::from_utf8_lossy(&bytes).into_owned();
        refused(text.replace("\"format\":2", "\"format\":3").as_bytes());
        let long = format!("\"index\":{}", ENVELOPE_BYTES_MAX + 1);
        refused(text.replace("\"index\":1", &long).as_bytes());
        refused(
            text.replace("\"index\":1", "\"index\":18446744073709551615")
                .as_bytes(),
        );
        refused(&vec![b' '; 1 << 20]);
        // A directory is what an earlier version made of a job.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let error = journal.read(&job).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
