//! Checks a version, an envelope, or a directory against its version.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::look::items;
use super::output::{self, bytes};
use super::{Context, Error, target};
use crate::manifest::{Envelope, Signed, TrustPolicy};
use crate::serve::control::{EntryItem, Event, Failure, FailureKind, Reply, Request, Verification};

/// Differences that are named; the rest is counted.
const NAMED_MAX: usize = 20;

/// Checks a version, a manifest file, or a directory against its version.
#[derive(Debug, Args)]
pub(super) struct Verify {
    /// A package or version, or the file of a manifest or release index.
    target: String,
    /// A directory that should hold just that version.
    directory: Option<PathBuf>,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        if Path::new(&self.target).is_file() {
            return verify_file(context, &self.target, self.json);
        }
        if let Some(directory) = &self.directory {
            return self.compare(context, directory);
        }
        let mut shown = context.output.progress();
        let value = context.session()?.ask(
            &Request::Verify {
                target: target(&self.target),
            },
            &[],
            &mut |reply| {
                if let Reply::Event(Event::Progress(progress)) = reply {
                    shown.update(&progress);
                }
                Ok(())
            },
        )?;
        drop(shown);
        let found: Verification = serde_json::from_value(value).map_err(Failure::failed)?;
        if self.json {
            return Ok(output::json(&found)?);
        }
        output::line(&format!(
            "{} is right: {} files, {}",
            found.package,
            found.files,
            bytes(found.bytes)
        ))?;
        output::line(&format!(
            "manifest {} signed by {}",
            found.id,
            found.signers.join(", ")
        ))?;
        Ok(())
    }

    fn compare(&self, context: &Context, directory: &Path) -> Result<(), Error> {
        let entries: Vec<EntryItem> = items(
            &mut context.session()?,
            &Request::Ls {
                target: target(&self.target),
                recursive: true,
            },
        )?;
        let mut wanted: BTreeMap<Vec<u8>, &EntryItem> = BTreeMap::new();
        for entry in entries.iter().filter(|entry| !entry.path.is_empty()) {
            let path = match &entry.path_hex {
                Some(digits) => hex::decode(digits).map_err(Failure::failed)?,
                None => entry.path.clone().into_bytes(),
            };
            wanted.insert(path, entry);
        }
        let mut differences = Vec::new();
        walk(directory, Path::new(""), &mut |path| {
            let shown = path.to_string_lossy().into_owned();
            match wanted.remove(path.as_os_str().as_bytes()) {
                None => differences.push(format!("extra: {shown}")),
                Some(entry) => differences.extend(
                    differs(&directory.join(path), entry)?.map(|why| format!("{why}: {shown}")),
                ),
            }
            Ok(())
        })?;
        differences.extend(
            wanted
                .values()
                .map(|entry| format!("missing: {}", entry.path)),
        );
        if self.json {
            output::json(
                &json!({ "target": self.target, "entries": entries.len(), "differences": differences }),
            )?;
        } else {
            for difference in differences.iter().take(NAMED_MAX) {
                output::line(difference)?;
            }
        }
        if differences.is_empty() {
            context
                .output
                .say(&format!("{} holds just that version", directory.display()));
            return Ok(());
        }
        let failure = Failure::new(
            FailureKind::Refused,
            format!(
                "{} differs in {} entries",
                directory.display(),
                differences.len()
            ),
        );
        Err(failure.into())
    }
}

/// Visits everything below a directory, links not followed.
fn walk(
    root: &Path,
    below: &Path,
    visit: &mut dyn FnMut(&Path) -> Result<(), Error>,
) -> Result<(), Error> {
    for entry in std::fs::read_dir(root.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        visit(&path)?;
        if entry.file_type()?.is_dir() {
            walk(root, &path, visit)?;
        }
    }
    Ok(())
}

/// Returns how an entry on disk differs from the catalog's, if it does.
fn differs(path: &Path, entry: &EntryItem) -> Result<Option<&'static str>, Error> {
    let metadata = std::fs::symlink_metadata(path)?;
    let kind = if metadata.is_dir() {
        "directory"
    } else if metadata.is_symlink() {
        "symlink"
    } else {
        "file"
    };
    if kind != entry.kind {
        return Ok(Some("of another kind"));
    }
    if metadata.is_symlink() {
        let target = std::fs::read_link(path)?;
        let wanted = match &entry.target_hex {
            Some(digits) => hex::decode(digits).map_err(Failure::failed)?,
            None => entry.target.clone().unwrap_or_default().into_bytes(),
        };
        return Ok((target.as_os_str().as_bytes() != wanted).then_some("points elsewhere"));
    }
    if metadata.is_dir() {
        return Ok(None);
    }
    if metadata.len() != entry.size {
        return Ok(Some("of another size"));
    }
    let mut file = std::fs::File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => hash.update(&buffer[..count]),
        }
    }
    Ok((Some(hex::encode(hash.finalize())) != entry.digest).then_some("of other content"))
}

/// Says whether an envelope is well-formed, signed and trusted.
fn verify_file(context: &Context, path: &str, as_json: bool) -> Result<(), Error> {
    let bytes = std::fs::read(path)?;
    let refused = |error: &dyn std::fmt::Display, hint: String| {
        Failure::new(FailureKind::Refused, format!("{path}: {error}")).hint(hint)
    };
    let envelope =
        Envelope::parse(&bytes).map_err(|error| refused(&error, error.hint().to_owned()))?;
    let policy = TrustPolicy::load(&context.paths.trust)
        .map_err(|error| super::trust::policy_failure(&error))?;
    let (what, id, signers) = match envelope.unverified() {
        Signed::Manifest(manifest) => {
            let trusted = policy
                .verify_manifest(&envelope, &manifest.package)
                .map_err(|error| refused(&error, error.hint()))?;
            (
                trusted.package().to_string(),
                trusted.id().to_string(),
                trusted.signers().to_vec(),
            )
        }
        Signed::Index(index) => {
            let trusted = policy
                .verify_index(&envelope, &index.name, None)
                .map_err(|error| refused(&error, error.hint()))?;
            (
                format!("the release index of {}", trusted.name()),
                trusted.index().id().to_string(),
                trusted.signers().to_vec(),
            )
        }
    };
    let signers: Vec<String> = signers.iter().map(ToString::to_string).collect();
    if as_json {
        return Ok(output::json(
            &json!({ "what": what, "id": id, "signers": signers }),
        )?);
    }
    output::line(&format!("{what} is signed and trusted"))?;
    output::line(&format!("id {id} signed by {}", signers.join(", ")))?;
    Ok(())
}
