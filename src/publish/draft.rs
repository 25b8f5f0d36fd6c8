//! What has to be signed, as a function of what is wanted and of what is known of the package: when somebody else was
//! faster, it is made once more from what they announced.

use super::PublishError;
use super::build::Built;
use super::change::{Change, changed_index};
use super::job::{Part, Summary};
use super::known::{Known, next_index};
use super::options::Options;
use crate::manifest::json::Json;
use crate::manifest::{
    Manifest, ManifestFields, ManifestId, PackageVersion, ReleaseIndex, Timestamp, TorrentRef,
};

/// What somebody wants to have signed.
pub(super) enum Wish {
    /// A tree that is stored becomes a version.
    Version(Box<Made>),
    /// Only the release index changes.
    Change(PackageVersion, Change),
}

/// A tree that was read, and what its manifest says if there is none yet.
pub(super) struct Made {
    options: Options,
    manifest: Manifest,
    instructions: Vec<String>,
    /// Files that were not read, since the last version has them.
    unread: u64,
}

/// What has to be signed, and what stands as it is.
pub(super) struct Draft {
    pub(super) id: ManifestId,
    /// None when only the release index changes.
    pub(super) summary: Option<Summary>,
    /// None when only the release index changes.
    pub(super) manifest: Option<Part<Manifest>>,
    pub(super) index: Part<ReleaseIndex>,
}

impl Wish {
    pub(super) fn package(&self) -> &PackageVersion {
        match self {
            Wish::Version(made) => made.package(),
            Wish::Change(package, _) => package,
        }
    }

    pub(super) fn draft(&self, known: &Known) -> Result<Draft, PublishError> {
        let now = Timestamp::now();
        match self {
            Wish::Version(made) => made.draft(known, now),
            Wish::Change(package, change) => {
                let (id, index) = changed_index(known, package, change, now)?;
                Ok(Draft {
                    id,
                    summary: None,
                    manifest: None,
                    index,
                })
            }
        }
    }
}

impl Made {
    pub(super) fn new(built: &Built, options: Options, unread: u64) -> Result<Made, PublishError> {
        let now = Timestamp::now();
        let created = options.mtime.map_or(now, Timestamp::from_unix_seconds);
        Ok(Made {
            manifest: manifest_of(built, &options, created)?,
            instructions: built.instructions.clone(),
            unread,
            options,
        })
    }

    pub(super) fn package(&self) -> &PackageVersion {
        &self.options.package
    }

    /// Returns what would come of it.
    pub(super) fn summary(&self, known: &Known) -> Result<Summary, PublishError> {
        let (summary, ..) = self.parts(known, Timestamp::now())?;
        Ok(summary)
    }

    fn draft(&self, known: &Known, now: Timestamp) -> Result<Draft, PublishError> {
        let (summary, manifest, index) = self.parts(known, now)?;
        Ok(Draft {
            id: summary.manifest,
            summary: Some(summary),
            manifest: Some(manifest),
            index,
        })
    }

    fn parts(
        &self,
        known: &Known,
        now: Timestamp,
    ) -> Result<(Summary, Part<Manifest>, Part<ReleaseIndex>), PublishError> {
        let (package, ours) = (&self.options.package, &self.manifest);
        known.check_not_withdrawn(package)?;
        let (id, manifest) = match &known.manifest {
            Some(there)
                if there.manifest().catalog == ours.catalog
                    && there.manifest().root == ours.root =>
            {
                (there.id(), Part::Signed(there.envelope().clone()))
            }
            _ => match known.id {
                Some(there) if there != ours.id() => {
                    return Err(PublishError::Exists {
                        package: package.clone(),
                        ours: ours.id(),
                        there,
                    });
                }
                _ => (ours.id(), Part::Unsigned(ours.clone())),
            },
        };
        if self.options.seed {
            let named = match (&manifest, &known.manifest) {
                (Part::Signed(_), Some(there)) => there.manifest().torrent,
                _ => ours.torrent,
            };
            if named.is_none() || named != ours.torrent {
                return Err(PublishError::OtherTorrent(package.clone()));
            }
        }
        let index = next_index(known, &self.options, id, now)?;
        let summary = Summary {
            package: package.clone(),
            manifest: id,
            new: manifest.unsigned().is_some(),
            root: ours.root.to_string(),
            files: ours.files,
            directories: ours.directories,
            bytes: ours.bytes,
            catalog_bytes: ours.catalog.size,
            instructions: self.instructions.clone(),
            unread: self.unread,
        };
        Ok((summary, manifest, index))
    }
}

/// Returns how a manifest names the torrent, which it does whenever one is offered: it is never changed afterwards.
fn torrent_of(built: &Built) -> Option<TorrentRef> {
    let torrent = built.torrent.as_ref().ok()?;
    Some(TorrentRef {
        info_hash: torrent.info.hash(),
        piece_length: torrent.pieces.piece_bytes,
    })
}

fn manifest_of(
    built: &Built,
    options: &Options,
    created: Timestamp,
) -> Result<Manifest, PublishError> {
    let about = &options.about;
    let provenance = match &about.provenance {
        None => None,
        Some(text) => {
            let json = Json::parse_canonical(text.as_bytes());
            let object = json.ok().and_then(|json| json.as_object().cloned());
            Some(object.ok_or(PublishError::Provenance)?)
        }
    };
    Ok(Manifest::new(&ManifestFields {
        package: options.package.clone(),
        created,
        files: built.totals.files,
        directories: built.totals.directories,
        bytes: built.totals.bytes,
        catalog: built.catalog.clone(),
        root: built.root,
        torrent: torrent_of(built),
        description: about.description.clone(),
        license: about.license.clone(),
        homepage: about.homepage.clone(),
        keywords: about.keywords.clone(),
        publisher: about.publisher.clone(),
        provenance,
    })?)
}
