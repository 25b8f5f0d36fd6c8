//! The manifest: what one version of a package is, immutable and signed.

use std::fmt;
use std::ops::Deref;

use bytes::Bytes;

use super::envelope::ENVELOPE_BYTES_MAX;
use super::fields::{FieldError, Fields, shown, text_array};
use super::json::{Json, Object};
use super::name::{ManifestId, PackageName, PackageVersion, Version};
use super::time::Timestamp;
use crate::block::{BlockRef, Digest, FileRef, block_count};
use crate::unixfs::{Cid, Codec, file};

/// The value of a manifest's `format`.
pub const MANIFEST_FORMAT: &str = "manifs/1";

/// The largest catalog, in bytes: 4 GiB.
pub const CATALOG_BYTES_MAX: u64 = 4 << 30;

/// The smallest catalog: the header and the root's row, 64 bytes each.
const CATALOG_BYTES_MIN: u64 = 128;

/// The smallest piece of a torrent, in bytes.
const PIECE_BYTES_MIN: u64 = 1 << 20;

/// The catalog of a version: its size, and the digest of each of its blocks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CatalogBlocks {
    /// Bytes.
    pub size: u64,
    /// One for each started MiB.
    pub blocks: Vec<Digest>,
}

impl CatalogBlocks {
    /// Returns the catalog as a file of the store: its id is that of the UnixFS file with these blocks.
    pub fn file(&self) -> FileRef {
        FileRef {
            id: self.cid().digest(),
            size: self.size,
        }
    }

    /// Returns the CID of that file, by which IPFS nodes know the catalog.
    pub fn cid(&self) -> Cid {
        file::root(self.size, self.blocks.iter().copied())
    }

    /// Returns each block and where it lies.
    pub fn block_refs(&self) -> impl Iterator<Item = BlockRef> {
        let file = self.file();
        (0..)
            .zip(self.blocks.iter())
            .map(move |(index, &digest)| BlockRef {
                file,
                index,
                digest,
            })
    }
}

/// Where a version is found in BitTorrent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TorrentRef {
    /// The SHA-1 of the info dictionary.
    pub info_hash: [u8; 20],
    /// A power of two of at least 1 MiB.
    pub piece_length: u64,
}

/// What a manifest says, as typed fields: to make one with [`Manifest::new`], and to read of one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ManifestFields {
    /// Package and version.
    pub package: PackageVersion,
    /// When it was made.
    pub created: Timestamp,
    /// Number of regular files.
    pub files: u64,
    /// Number of directories, the root included.
    pub directories: u64,
    /// Sum of the files' sizes.
    pub bytes: u64,
    /// The catalog.
    pub catalog: CatalogBlocks,
    /// The CID of the root directory, a dag-pb node: what row 0 of the catalog names.
    pub root: Cid,
    /// The torrent, if one is offered.
    pub torrent: Option<TorrentRef>,
    /// Free text.
    pub description: Option<String>,
    /// Free text, by custom an SPDX expression.
    pub license: Option<String>,
    /// Free text, by custom a URL.
    pub homepage: Option<String>,
    /// Words to search for.
    pub keywords: Vec<String>,
    /// Free text, never identity.
    pub publisher: Option<String>,
    /// How it was made, free form.
    pub provenance: Option<Object>,
}

/// A manifest of valid form. It says nothing about who signed it: that is `TrustedManifest`.
#[derive(Clone, PartialEq, Eq)]
pub struct Manifest {
    fields: ManifestFields,
    canonical: Bytes,
    id: ManifestId,
}

impl Deref for Manifest {
    type Target = ManifestFields;

    fn deref(&self) -> &ManifestFields {
        &self.fields
    }
}

impl fmt::Debug for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Manifest({} {})", self.fields.package, self.id)
    }
}

impl Manifest {
    /// Makes a manifest of `fields`.
    ///
    /// # Errors
    /// [`FieldError`] for what no reader would accept.
    pub fn new(fields: &ManifestFields) -> Result<Manifest, FieldError> {
        Manifest::from_json(&fields.to_json())
    }

    /// Reads a manifest without an envelope, in canonical form: as it is handed over to be signed.
    ///
    /// # Errors
    /// [`FieldError`], also when the bytes are not canonical JSON.
    pub fn parse(bytes: &[u8]) -> Result<Manifest, FieldError> {
        if bytes.len() > ENVELOPE_BYTES_MAX {
            return Err(FieldError::invalid(
                "manifest",
                "larger than an envelope may be",
            ));
        }
        let json =
            Json::parse_canonical(bytes).map_err(|error| FieldError::invalid("manifest", error))?;
        Manifest::from_json(&json)
    }

    /// Returns the SHA-256 of the canonical bytes.
    pub fn id(&self) -> ManifestId {
        self.id
    }

    /// Returns the JCS bytes, with every field that this version does not know.
    pub fn canonical(&self) -> &Bytes {
        &self.canonical
    }

    /// Returns the typed fields.
    pub fn fields(&self) -> &ManifestFields {
        &self.fields
    }

    pub(crate) fn from_json(json: &Json) -> Result<Manifest, FieldError> {
        // In an envelope it lies one level down.
        json.check(1)
            .map_err(|error| FieldError::invalid("manifest", error))?;
        let object = json
            .as_object()
            .ok_or_else(|| FieldError::invalid("manifest", "not an object"))?;
        let fields = read(Fields(object))?;
        let canonical = Bytes::from(json.to_canonical());
        let id = ManifestId(Digest::of(&canonical));
        Ok(Manifest {
            fields,
            canonical,
            id,
        })
    }
}

fn read(all: Fields<'_>) -> Result<ManifestFields, FieldError> {
    all.format(MANIFEST_FORMAT)?;
    match all.0.get("requires") {
        Some(Json::Array(elements)) if elements.is_empty() => {}
        other => return Err(FieldError::Requires(shown(other))),
    }
    let package = PackageVersion {
        name: all.parsed::<PackageName>("name")?,
        version: all.parsed::<Version>("version")?,
    };
    let keywords = match all.0.get("keywords") {
        None => Vec::new(),
        Some(_) => all
            .texts("keywords")?
            .into_iter()
            .map(str::to_owned)
            .collect(),
    };
    let provenance = match all.0.get("provenance") {
        None => None,
        Some(_) => Some(all.object("provenance")?.0.clone()),
    };
    let torrent = match all.0.get("torrent") {
        None => None,
        Some(_) => Some(read_torrent(all.object("torrent")?)?),
    };
    Ok(ManifestFields {
        package,
        created: all.parsed("created")?,
        files: all.integer("files")?,
        directories: all.integer("directories")?,
        bytes: all.integer("bytes")?,
        catalog: read_catalog(all.object("catalog")?)?,
        root: read_root(all.object("ipfs")?)?,
        torrent,
        description: all.optional_text("description")?,
        license: all.optional_text("license")?,
        homepage: all.optional_text("homepage")?,
        keywords,
        publisher: all.optional_text("publisher")?,
        provenance,
    })
}

fn read_catalog(catalog: Fields<'_>) -> Result<CatalogBlocks, FieldError> {
    let size = catalog.integer("size")?;
    if !(CATALOG_BYTES_MIN..=CATALOG_BYTES_MAX).contains(&size) {
        return Err(FieldError::invalid(
            "size",
            format!("a catalog has {CATALOG_BYTES_MIN} to {CATALOG_BYTES_MAX} bytes"),
        ));
    }
    let blocks = catalog
        .texts("blocks")?
        .into_iter()
        .map(|text| {
            text.parse()
                .map_err(|error| FieldError::invalid("blocks", error))
        })
        .collect::<Result<Vec<Digest>, _>>()?;
    if blocks.len() as u64 != block_count(size) {
        return Err(FieldError::invalid(
            "blocks",
            format!(
                "{} digests where {} are due",
                blocks.len(),
                block_count(size)
            ),
        ));
    }
    Ok(CatalogBlocks { size, blocks })
}

/// Reads the root's CID: version 1, dag-pb, SHA-256, in lower-case base32 and that alone.
fn read_root(ipfs: Fields<'_>) -> Result<Cid, FieldError> {
    let text = ipfs.text("root")?;
    match text.parse::<Cid>() {
        Ok(cid) if cid.codec() == Codec::DagPb && cid.to_string() == text => Ok(cid),
        _ => Err(FieldError::invalid(
            "root",
            "not a CIDv1 of dag-pb and sha2-256 in base32",
        )),
    }
}

fn read_torrent(torrent: Fields<'_>) -> Result<TorrentRef, FieldError> {
    let text = torrent.text("info_hash")?;
    let mut info_hash = [0; 20];
    if hex::decode_to_slice(text, &mut info_hash).is_err() || hex::encode(info_hash) != text {
        return Err(FieldError::invalid(
            "info_hash",
            "not 40 lower-case hexadecimal digits",
        ));
    }
    let piece_length = torrent.integer("piece_length")?;
    if piece_length < PIECE_BYTES_MIN || !piece_length.is_power_of_two() {
        return Err(FieldError::invalid(
            "piece_length",
            "not a power of two of at least 1 MiB",
        ));
    }
    Ok(TorrentRef {
        info_hash,
        piece_length,
    })
}

impl ManifestFields {
    fn to_json(&self) -> Json {
        let text = |text: &dyn fmt::Display| Json::Text(text.to_string());
        let mut catalog = Object::new();
        catalog.insert("size", Json::Integer(self.catalog.size));
        catalog.insert("blocks", text_array(&self.catalog.blocks));
        let mut ipfs = Object::new();
        ipfs.insert("root", text(&self.root));

        let mut all = Object::new();
        all.insert("format", text(&MANIFEST_FORMAT));
        all.insert("name", text(&self.package.name));
        all.insert("version", text(&self.package.version));
        all.insert("created", text(&self.created));
        all.insert("requires", Json::Array(Vec::new()));
        all.insert("files", Json::Integer(self.files));
        all.insert("directories", Json::Integer(self.directories));
        all.insert("bytes", Json::Integer(self.bytes));
        all.insert("catalog", Json::Object(catalog));
        all.insert("ipfs", Json::Object(ipfs));
        if let Some(torrent) = &self.torrent {
            let mut object = Object::new();
            object.insert("info_hash", Json::Text(hex::encode(torrent.info_hash)));
            object.insert("piece_length", Json::Integer(torrent.piece_length));
            all.insert("torrent", Json::Object(object));
        }
        for (name, value) in [
            ("description", &self.description),
            ("license", &self.license),
            ("homepage", &self.homepage),
            ("publisher", &self.publisher),
        ] {
            if let Some(value) = value {
                all.insert(name, text(value));
            }
        }
        if !self.keywords.is_empty() {
            all.insert("keywords", text_array(&self.keywords));
        }
        if let Some(provenance) = &self.provenance {
            all.insert("provenance", Json::Object(provenance.clone()));
        }
        Json::Object(all)
    }
}
