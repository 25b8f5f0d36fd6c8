//! The release index: what changes about a package, and the only thing rollback, freeze and withdrawal are judged on.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;

use bytes::Bytes;

use super::envelope::ENVELOPE_BYTES_MAX;
use super::fields::{FieldError, Fields, text_array};
use super::json::{Json, Object};
use super::name::{IndexId, ManifestId, PackageName, Version};
use super::time::Timestamp;
use crate::block::Digest;

/// The value of a release index's `format`.
pub const INDEX_FORMAT: &str = "manifs-index/1";

/// The most entries of each of `http`, `gateways` and `trackers`.
pub const HINTS_MAX: usize = 16;

/// What a release index says, as typed fields: to make one with [`ReleaseIndex::new`], and to read of one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IndexFields {
    /// The package.
    pub name: PackageName,
    /// Grows by each signing.
    pub sequence: u64,
    /// When it was made.
    pub created: Timestamp,
    /// After this it is stale.
    pub expires: Option<Timestamp>,
    /// What `latest` points to, one of `versions`; none while all are pre-releases.
    pub latest: Option<Version>,
    /// Every version and the one manifest it names.
    pub versions: BTreeMap<Version, ManifestId>,
    /// Versions that must not be used any more, and why.
    pub withdrawn: BTreeMap<Version, String>,
    /// URLs of mirrors.
    pub http: Vec<String>,
    /// URLs of IPFS gateways.
    pub gateways: Vec<String>,
    /// URLs of BitTorrent trackers.
    pub trackers: Vec<String>,
}

/// A release index of valid form. It says nothing about who signed it: that is `TrustedIndex`.
#[derive(Clone, PartialEq, Eq)]
pub struct ReleaseIndex {
    fields: IndexFields,
    canonical: Bytes,
    id: IndexId,
}

impl Deref for ReleaseIndex {
    type Target = IndexFields;

    fn deref(&self) -> &IndexFields {
        &self.fields
    }
}

impl fmt::Debug for ReleaseIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ReleaseIndex({} #{} {})",
            self.fields.name, self.fields.sequence, self.id
        )
    }
}

impl ReleaseIndex {
    /// Makes a release index of `fields`.
    ///
    /// # Errors
    /// [`FieldError`] for what no reader would accept.
    pub fn new(fields: &IndexFields) -> Result<ReleaseIndex, FieldError> {
        ReleaseIndex::from_json(&fields.to_json())
    }

    /// Reads a release index without an envelope, in canonical form: as it is handed over to be signed.
    ///
    /// # Errors
    /// [`FieldError`].
    pub fn parse(bytes: &[u8]) -> Result<ReleaseIndex, FieldError> {
        if bytes.len() > ENVELOPE_BYTES_MAX {
            return Err(FieldError::invalid(
                "index",
                "larger than an envelope may be",
            ));
        }
        let json =
            Json::parse_canonical(bytes).map_err(|error| FieldError::invalid("index", error))?;
        ReleaseIndex::from_json(&json)
    }

    /// Returns the SHA-256 of the canonical bytes.
    pub fn id(&self) -> IndexId {
        self.id
    }

    /// Returns the JCS bytes, with every field that this version does not know.
    pub fn canonical(&self) -> &Bytes {
        &self.canonical
    }

    /// Returns the typed fields.
    pub fn fields(&self) -> &IndexFields {
        &self.fields
    }

    /// Returns the highest version that is neither a pre-release nor withdrawn: what `latest` follows by itself.
    pub fn highest_release(fields: &IndexFields) -> Option<&Version> {
        fields
            .versions
            .keys()
            .rev()
            .find(|version| !version.is_prerelease() && !fields.withdrawn.contains_key(version))
    }

    pub(crate) fn from_json(json: &Json) -> Result<ReleaseIndex, FieldError> {
        // In an envelope it lies one level down.
        json.check(1)
            .map_err(|error| FieldError::invalid("index", error))?;
        let object = json
            .as_object()
            .ok_or_else(|| FieldError::invalid("index", "not an object"))?;
        let fields = read(Fields(object))?;
        let canonical = Bytes::from(json.to_canonical());
        let id = IndexId(Digest::of(&canonical));
        Ok(ReleaseIndex {
            fields,
            canonical,
            id,
        })
    }
}

fn read(all: Fields<'_>) -> Result<IndexFields, FieldError> {
    all.format(INDEX_FORMAT)?;
    let versions: BTreeMap<Version, ManifestId> = by_version(all, "versions")?
        .into_iter()
        .map(|(version, id)| match id.parse() {
            Ok(id) => Ok((version, id)),
            Err(error) => Err(FieldError::invalid("versions", error)),
        })
        .collect::<Result<_, _>>()?;
    let latest = match all.0.get("latest") {
        None => None,
        Some(_) => Some(all.parsed::<Version>("latest")?),
    };
    if latest
        .as_ref()
        .is_some_and(|latest| !versions.contains_key(latest))
    {
        return Err(FieldError::invalid("latest", "not one of the versions"));
    }
    let expires = match all.0.get("expires") {
        None => None,
        Some(_) => Some(all.parsed::<Timestamp>("expires")?),
    };
    Ok(IndexFields {
        name: all.parsed("name")?,
        sequence: all.integer("sequence")?,
        created: all.parsed("created")?,
        expires,
        latest,
        versions,
        withdrawn: by_version(all, "withdrawn")?
            .into_iter()
            .map(|(version, reason)| (version, reason.to_owned()))
            .collect(),
        http: hints(all, "http")?,
        gateways: hints(all, "gateways")?,
        trackers: hints(all, "trackers")?,
    })
}

fn by_version<'a>(
    all: Fields<'a>,
    field: &'static str,
) -> Result<Vec<(Version, &'a str)>, FieldError> {
    let wrong = |reason: &dyn fmt::Display| FieldError::invalid(field, reason);
    all.object(field)?
        .0
        .iter()
        .map(|(version, value)| {
            let version = version
                .parse()
                .map_err(|error| wrong(&format_args!("{version:?}: {error}")))?;
            let text = value
                .as_text()
                .ok_or_else(|| wrong(&"not a text for each version"))?;
            Ok((version, text))
        })
        .collect()
}

fn hints(all: Fields<'_>, field: &'static str) -> Result<Vec<String>, FieldError> {
    let hints = all.texts(field)?;
    if hints.len() > HINTS_MAX {
        return Err(FieldError::invalid(
            field,
            format!("{} entries where {HINTS_MAX} are the most", hints.len()),
        ));
    }
    Ok(hints.into_iter().map(str::to_owned).collect())
}

impl IndexFields {
    fn to_json(&self) -> Json {
        let text = |text: &dyn fmt::Display| Json::Text(text.to_string());
        let mut versions = Object::new();
        for (version, id) in &self.versions {
            versions.insert(version.as_str(), text(id));
        }
        let mut withdrawn = Object::new();
        for (version, reason) in &self.withdrawn {
            withdrawn.insert(version.as_str(), text(reason));
        }
        let mut all = Object::new();
        all.insert("format", text(&INDEX_FORMAT));
        all.insert("name", text(&self.name));
        all.insert("sequence", Json::Integer(self.sequence));
        all.insert("created", text(&self.created));
        if let Some(expires) = self.expires {
            all.insert("expires", text(&expires));
        }
        if let Some(latest) = &self.latest {
            all.insert("latest", text(latest));
        }
        all.insert("versions", Json::Object(versions));
        all.insert("withdrawn", Json::Object(withdrawn));
        all.insert("http", text_array(&self.http));
        all.insert("gateways", text_array(&self.gateways));
        all.insert("trackers", text_array(&self.trackers));
        Json::Object(all)
    }
}
