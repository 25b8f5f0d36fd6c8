//! What a publish has to finish after a crash, on disk: one directory for each job.
//!
//! A directory without `job.json` is a job that nobody has signed: nothing of it is visible anywhere, and the next
//! start removes it. `job.json` is written last, when envelopes and sums lie beside it; from then on the job is
//! carried to its end, however often the process dies, since each step leaves alone what is done already.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::options::JobId;
use crate::block::Digest;
use crate::durable;
use crate::manifest::sums::SUMS_BYTES_MAX;
use crate::manifest::{ENVELOPE_BYTES_MAX, PackageVersion};
use crate::torrent::INFO_BYTES_MAX;

const JOB: &str = "job.json";
const MANIFEST: &str = "manifest.json";
const INDEX: &str = "index.json";
const SUMS: &str = "SHA256SUMS";
const TORRENT: &str = "info";

/// The version of `job.json`; another one is refused.
const FORMAT: u32 = 1;

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

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    format: u32,
    package: PackageVersion,
    registry: String,
    replaces: Option<Digest>,
    sums: bool,
    #[serde(default)]
    torrent: bool,
    #[serde(default = "yes")]
    manifest: bool,
}

fn yes() -> bool {
    true
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

    /// Makes the directory of a job; it also holds the temporary files.
    pub(crate) fn begin(&self, job: &JobId) -> io::Result<PathBuf> {
        let path = self.path(job);
        durable::create_dir(&path)?;
        Ok(path)
    }

    /// Records that a job is signed; durable when this returns.
    pub(crate) fn signed(&self, job: &JobId, signed: &Signed) -> io::Result<()> {
        let path = self.begin(job)?;
        // Of one that was signed before, so that its record never stands beside what is written now.
        durable::remove(&path.join(JOB))?;
        let files = [
            (MANIFEST, signed.manifest.as_ref()),
            (INDEX, Some(&signed.index)),
            (SUMS, signed.sums.as_ref()),
            (TORRENT, signed.torrent.as_ref()),
        ];
        for (name, bytes) in files {
            if let Some(bytes) = bytes {
                durable::write(&path.join(name), bytes, 0o600)?;
            }
        }
        let record = Record {
            format: FORMAT,
            package: signed.package.clone(),
            registry: signed.registry.clone(),
            replaces: signed.replaces,
            sums: signed.sums.is_some(),
            torrent: signed.torrent.is_some(),
            manifest: signed.manifest.is_some(),
        };
        durable::write_json(&path.join(JOB), &record)
    }

    /// Reads a signed job; `None` when it is not signed.
    pub(crate) fn read(&self, job: &JobId) -> io::Result<Option<Signed>> {
        let path = self.path(job);
        let Some(record) = durable::read_json::<Record>(&path.join(JOB))? else {
            return Ok(None);
        };
        let damaged = |what: &str| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{}: {what}", path.display()),
            )
        };
        if record.format != FORMAT {
            return Err(damaged("written by another version of manifs"));
        }
        let read = |name: &str, max: u64, wanted: bool| {
            if !wanted {
                return Ok(None);
            }
            match durable::read(&path.join(name), max)? {
                Some(bytes) => Ok(Some(Bytes::from(bytes))),
                None => Err(damaged("a file is gone")),
            }
        };
        Ok(Some(Signed {
            package: record.package,
            registry: record.registry,
            replaces: record.replaces,
            manifest: read(MANIFEST, ENVELOPE_BYTES_MAX as u64, record.manifest)?,
            index: read(INDEX, ENVELOPE_BYTES_MAX as u64, true)?.unwrap_or_default(),
            sums: read(SUMS, SUMS_BYTES_MAX, record.sums)?,
            torrent: read(TORRENT, INFO_BYTES_MAX as u64, record.torrent)?,
        }))
    }

    /// Forgets a job: the record first, so that what is left of it is never taken for a signed one.
    pub(crate) fn remove(&self, job: &JobId) -> io::Result<()> {
        let path = self.path(job);
        durable::remove(&path.join(JOB))?;
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Lists the jobs, signed or not.
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

    #[test]
    fn a_job_is_signed_when_its_record_is_there_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::new(dir.path());
        let job = JobId::random();
        journal.begin(&job).unwrap();
        assert_eq!(journal.jobs().unwrap(), std::slice::from_ref(&job));
        assert_eq!(journal.read(&job).unwrap(), None);
        let mut signed = Signed {
            package: "a@1.0.0".parse().unwrap(),
            registry: "/r".to_owned(),
            replaces: Some(Digest::EMPTY),
            manifest: Some(Bytes::from_static(b"m")),
            index: Bytes::from_static(b"i"),
            sums: Some(Bytes::from_static(b"s")),
            torrent: Some(Bytes::from_static(b"t")),
        };
        journal.signed(&job, &signed).unwrap();
        assert_eq!(journal.read(&job).unwrap(), Some(signed.clone()));
        // The same again, with less: what lies about is not read.
        signed.sums = None;
        signed.torrent = None;
        journal.signed(&job, &signed).unwrap();
        assert_eq!(journal.read(&job).unwrap(), Some(signed));
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
        let path = journal.begin(&job).unwrap();
        for text in [
            "",
            "{}",
            r#"{"format":2,"package":"a@1.0.0","registry":"","replaces":null,"sums":false}"#,
            r#"{"format":1,"package":"a@1.0.0","registry":"","replaces":null,"sums":false}"#,
        ] {
            fs::write(path.join(JOB), text).unwrap();
            let error = journal.read(&job).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{text}");
        }
    }
}
