//! What is asked and answered. The results are the objects that `--json` prints: within a major version, fields are
//! added, never taken away or given another meaning.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::release::{DiffPreview, IndexChange};
use super::source::SourceStatus;

/// What a command asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// [`Status`].
    Status,
    /// Items of [`PackageItem`].
    List {
        /// One package only.
        package: Option<String>,
        /// Also what was refused, and why.
        all: bool,
    },
    /// Items of [`EntryItem`].
    Ls {
        /// What to list: `PKG[@VERSION][/PATH]`, or a path below a mount.
        target: String,
        /// Everything below it, with digests.
        recursive: bool,
    },
    /// Data of a file.
    Read {
        /// The file.
        target: String,
        /// Where to begin.
        offset: u64,
        /// How much at most; none: to the end.
        len: Option<u64>,
    },
    /// [`Done`]: for each [`EntryItem`] below the target, parents first, an item; after a file's its bytes, as data.
    ///
    /// Before the first, a progress event with the number of bytes in all.
    Fetch {
        /// A package, a version, a directory or a file.
        target: String,
    },
    /// [`Done`]: a whole version as a mirror has it: as [`Request::Fetch`], and the catalog as `.manifs/catalog`.
    Mirror {
        /// The version.
        target: String,
    },
    /// As [`Request::Mirror`], of a version that waits to be signed.
    PublishMirror {
        /// The job that [`Prepared`] names.
        job: String,
    },
    /// [`Inspection`].
    Inspect {
        /// The version.
        target: String,
    },
    /// [`super::DiffSummary`]: an item of [`super::DiffItem`] for each path that differs between two targets.
    Diff {
        /// A package, a version, a directory or a file.
        from: String,
        /// What it is compared with.
        to: String,
    },
    /// Data: the `SHA256SUMS` of a version.
    Sums {
        /// The version.
        target: String,
    },
    /// [`Verification`]: fetches everything and checks all ids.
    Verify {
        /// The version.
        target: String,
    },
    /// [`Why`].
    Why {
        /// A package, a version, or a path.
        target: String,
    },
    /// [`Done`]: fetches what is not here yet.
    Warm {
        /// Packages, versions, paths.
        targets: Vec<String>,
    },
    /// [`Done`]: keeps from being evicted.
    Pin {
        /// Packages, versions, paths.
        targets: Vec<String>,
    },
    /// [`Done`]
    Unpin {
        /// What was pinned.
        targets: Vec<String>,
    },
    /// [`Done`]: drops from the store what is not pinned.
    Evict {
        /// Packages, versions, paths; none: everything.
        targets: Vec<String>,
    },
    /// [`Prepared`]: walks and ingests the directory whose descriptor comes along.
    PublishPrepare {
        /// How.
        options: Box<PublishOptions>,
    },
    /// [`Prepared`]: the release index that is to be signed for a version that exists.
    PublishChange {
        /// The package.
        name: String,
        /// The version.
        version: String,
        /// A registry; none: the home's default one.
        registry: Option<String>,
        /// What is said of it.
        change: IndexChange,
    },
    /// [`super::Finished`]
    PublishFinish {
        /// The job that [`Prepared`] names.
        job: String,
        /// The signed manifest, where one was to be signed.
        manifest: Option<String>,
        /// The signed release index, where one was to be signed.
        index: Option<String>,
    },
    /// Nothing: forgets a prepared job.
    PublishCancel {
        /// The job.
        job: String,
    },
    /// [`Committed`]: publishes an entry of the drop directory, and waits until that has succeeded or failed.
    PublishCommit {
        /// Its name, or an absolute path.
        entry: PathBuf,
    },
    /// [`Mounted`]
    Mount {
        /// An absolute path.
        mountpoint: PathBuf,
        /// How.
        options: MountRequest,
    },
    /// Nothing.
    Unmount {
        /// An absolute path.
        mountpoint: PathBuf,
    },
    /// Items of [`RegistryItem`].
    RegistryList,
    /// [`RegistryItem`]: adds it, and reads it once.
    RegistryAdd {
        /// A directory or a URL.
        place: String,
    },
    /// Nothing.
    RegistryRemove {
        /// As it was added.
        place: String,
    },
    /// [`Done`]: asks every registry now.
    RegistryUpdate,
    /// Nothing: reads configuration and trust policy again.
    Reload,
    /// Nothing: the daemon ends.
    Stop,
}

impl Request {
    /// Returns whether users other than the daemon's own may ask: it returns no content and changes nothing.
    pub fn is_harmless(&self) -> bool {
        matches!(
            self,
            Request::Status | Request::List { .. } | Request::Why { .. }
        )
    }
}

/// How a directory is published.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PublishOptions {
    /// The package.
    pub name: String,
    /// The version.
    pub version: String,
    /// The directory, for messages.
    pub directory: String,
    /// A directory; none: the home's default registry.
    pub registry: Option<String>,
    /// Walk and hash, store nothing.
    pub dry_run: bool,
    /// Lay the tree on top of a version.
    #[serde(default)]
    pub update: Option<UpdateOptions>,
    /// The descriptor is not the directory's but that of a tar stream.
    #[serde(default)]
    pub tar: bool,
    /// Read every file, also those that the last version has.
    #[serde(default)]
    pub rehash: bool,
    /// Keep modes and times.
    pub preserve: bool,
    /// All times, in seconds since 1970.
    pub mtime: Option<i64>,
    /// `links`, `case`, `secrets`.
    pub allow: Vec<String>,
    /// Whether `latest` follows; none: by the rule.
    pub latest: Option<bool>,
    /// Free text.
    pub description: Option<String>,
    /// Free text.
    pub license: Option<String>,
    /// Free text.
    pub homepage: Option<String>,
    /// Words.
    pub keywords: Vec<String>,
    /// Free text.
    pub publisher: Option<String>,
    /// URLs of mirrors for the release index; none: as it was.
    pub http: Vec<String>,
    /// URLs of IPFS gateways for the release index; none: as it was.
    #[serde(default)]
    pub gateways: Vec<String>,
    /// URLs of trackers for the release index; none: as it was.
    #[serde(default)]
    pub trackers: Vec<String>,
    /// Whether a torrent file is written, and the version seeded from this home.
    #[serde(default)]
    pub seed: bool,
}

/// Which version a tree is laid on top of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpdateOptions {
    /// Which one; none: the one that `latest` leads to.
    pub version: Option<String>,
    /// Paths of it that go.
    pub remove: Vec<String>,
    /// No descriptor comes along: nothing is laid on top.
    pub bare: bool,
}

/// What is to be signed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Prepared {
    /// To be named when the envelopes are handed back; none: nothing is left to do.
    pub job: Option<String>,
    /// The manifest's canonical JSON, if it is to be signed.
    pub manifest: Option<String>,
    /// The release index's canonical JSON, if it is to be signed.
    pub index: Option<String>,
    /// The version exists already with the same content.
    pub unchanged: bool,
    /// What is worth saying, one sentence each.
    pub notes: Vec<String>,
    /// The manifest's id.
    pub id: String,
    /// The CID of the root.
    pub root: String,
    /// The CID of the catalog as a file.
    #[serde(default)]
    pub catalog: String,
    /// The tree's name in mirrors and torrents.
    #[serde(default)]
    pub tree: String,
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Files that were not read, since the last version has them.
    #[serde(default)]
    pub unread: u64,
    /// How it differs from the last version; only of what is only tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff: Option<DiffPreview>,
}

/// What was published.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Published {
    /// Name and version.
    pub package: String,
    /// The manifest's id.
    pub manifest: String,
    /// The CID of the root.
    pub root: String,
    /// Where it was announced.
    pub registry: String,
    /// What `latest` leads to now.
    #[serde(default)]
    pub latest: Option<String>,
}

/// How to mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MountRequest {
    /// Other users may enter.
    pub allow_other: bool,
    /// Whom the files belong to; none: the daemon's user.
    pub uid: Option<u32>,
    /// As `uid`.
    pub gid: Option<u32>,
    /// Permission bits taken away.
    pub umask: Option<u16>,
}

/// A new mount.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Mounted {
    /// Where.
    pub mountpoint: PathBuf,
    /// Packages it shows.
    pub packages: u64,
    /// What is worth saying.
    pub notes: Vec<String>,
}

/// What a daemon is doing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Its process; 0 when no daemon runs and the command looked itself.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Where it mounts.
    pub mounts: Vec<PathBuf>,
    /// Whether it ends when the last of them goes.
    pub ends_with_last_mount: bool,
    /// Where it serves; none: it does not.
    pub gateway: Option<String>,
    /// What it seeds; none: nothing.
    #[serde(default)]
    pub torrent: Option<TorrentStatus>,
    /// What is published from the drop directory; none: nothing is.
    #[serde(default)]
    pub publish: Option<DropStatus>,
    /// What keeps it from doing all it should.
    pub problems: Vec<String>,
    /// Packages, and their versions.
    pub packages: u64,
    /// Versions listed.
    pub versions: u64,
    /// Versions installed.
    pub installed: u64,
    /// The store.
    pub store: StoreStatus,
    /// Bytes fetched from sources since the start.
    pub fetched_bytes: u64,
    /// Blocks fetched.
    pub fetched_blocks: u64,
    /// Each source.
    pub sources: Vec<SourceStatus>,
    /// Each registry.
    pub registries: Vec<RegistryItem>,
}

/// How the drop directory stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DropStatus {
    /// Where it is.
    pub directory: PathBuf,
    /// Patterns of packages that are signed.
    pub names: Vec<String>,
    /// How long a directory has to be quiet, in seconds; 0: it is never published for that.
    pub settle_seconds: u64,
    /// Its entries, and the last versions published from it.
    pub entries: Vec<DropItem>,
}

/// How an entry of the drop directory stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DropItem {
    /// Its name.
    pub entry: String,
    /// `arriving`, `committed`, `publishing`, `waiting`, `published`, `unchanged` or `refused`.
    pub state: String,
    /// Since when, RFC 3339.
    pub since: String,
    /// What its status says besides.
    pub lines: Vec<String>,
}

/// An entry of the drop directory that is a version.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Committed {
    /// Name and version.
    pub package: String,
    /// The manifest's id.
    pub manifest: String,
    /// The CID of the root.
    pub root: String,
    /// Where it was announced.
    pub registry: String,
    /// The version was there with the same content.
    pub unchanged: bool,
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Bytes of all files.
    pub bytes: u64,
}

/// What is given to BitTorrent programs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TorrentStatus {
    /// Where they connect.
    pub listen: String,
    /// Bytes given to them, of all that is seeded now.
    pub uploaded: u64,
    /// Each version, by name.
    pub seeds: Vec<SeedStatus>,
}

/// A version that is seeded.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SeedStatus {
    /// Name and version.
    pub package: String,
    /// In hex.
    pub info_hash: String,
    /// Bytes given since it is seeded.
    pub uploaded: u64,
    /// Who is connected.
    pub peers: u64,
}

/// What a store holds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// Bytes on the disk.
    pub used: u64,
    /// The quota.
    pub quota: u64,
    /// Bytes that cannot be evicted.
    pub unevictable: u64,
    /// Data files.
    pub files: u64,
    /// Damaged blocks found since the start.
    pub damaged: u64,
    /// Failures of the disk since the start.
    pub failures: u64,
}

/// A registry.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RegistryItem {
    /// A directory or a URL.
    pub place: String,
    /// `directory` or `http`.
    pub kind: String,
    /// When it was last read, RFC 3339.
    pub updated: Option<String>,
    /// The last thing that went wrong.
    pub error: Option<String>,
}

/// A version, or what was refused.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PackageItem {
    /// The package.
    pub name: String,
    /// The version; none: the package as a whole was refused.
    pub version: Option<String>,
    /// Whether `latest` leads here.
    pub latest: bool,
    /// Whether its catalog is here.
    pub installed: bool,
    /// Whether its release index is expired or too old.
    pub stale: bool,
    /// Regular files.
    pub files: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// When it was made, RFC 3339.
    pub created: Option<String>,
    /// Free text of the publisher.
    pub description: Option<String>,
    /// Why it is not shown.
    pub refused: Option<String>,
    /// What to do about that.
    pub hint: Option<String>,
}

/// An entry of a directory.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EntryItem {
    /// Its path from what was listed; not UTF-8 is shown with replacement characters.
    pub path: String,
    /// The very bytes of the path in hexadecimal digits, where `path` had to replace some.
    pub path_hex: Option<String>,
    /// `file`, `directory` or `symlink`.
    pub kind: String,
    /// Permission bits.
    pub mode: u16,
    /// Bytes of a file, children of a directory.
    pub size: u64,
    /// Nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Where a link points.
    pub target: Option<String>,
    /// The very bytes of the target, as `path_hex`.
    pub target_hex: Option<String>,
    /// The SHA-256 of a file.
    pub digest: Option<String>,
    /// Its CID.
    pub cid: String,
    /// Bytes of it that are here.
    pub cached: u64,
}

/// What a manifest says, and who signed it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Inspection {
    /// The manifest as signed.
    pub manifest: Value,
    /// Its id.
    pub id: String,
    /// The CID of the catalog as a file: what an IPFS node needs besides the root to serve the version.
    pub catalog: String,
    /// The tree's name in mirrors and torrents.
    #[serde(default)]
    pub tree: String,
    /// The magnet link of its torrent, if one is offered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub magnet: Option<String>,
    /// The trusted keys that signed.
    pub signers: Vec<String>,
    /// The trust rule that accepted it.
    pub rule: String,
    /// The release index, if there is one.
    pub index: Option<Value>,
    /// Whether its catalog is here.
    pub installed: bool,
}

/// What `verify` found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Verification {
    /// Name and version.
    pub package: String,
    /// The manifest's id.
    pub id: String,
    /// The trusted keys that signed.
    pub signers: Vec<String>,
    /// Files checked.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Why something is, or is not, as one expects.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Why {
    /// Sentences, the most important first.
    pub lines: Vec<String>,
    /// What to do.
    pub hint: Option<String>,
}

/// What was done.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// Files.
    pub files: u64,
    /// Bytes.
    pub bytes: u64,
    /// Bytes that had to be fetched, or came free.
    pub moved: u64,
    /// Who delivered while it was done, to whomever; only of what fetches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Served>,
    /// Files that were to be evicted and are kept: pinned, or published here.
    #[serde(default)]
    pub kept: u64,
}

/// What a source delivered.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Served {
    /// Its URL or path.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// Blocks.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Its usual time for a block, in milliseconds.
    pub usual_ms: Option<u64>,
}

/// How far something is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// What is going on, one or two words.
    pub step: String,
    /// How much of it is done.
    pub done: u64,
    /// Of how much; 0 when that is not known.
    pub total: u64,
    /// Whether `done` and `total` are bytes.
    pub bytes: bool,
}

/// What comes back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// It is going on.
    Progress(Progress),
    /// One of several results.
    Item(Value),
    /// The result; the last event.
    Done(Value),
    /// It did not work; the last event.
    Failed(Failure),
}

/// What kind of failure it is: the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// 1
    Failed,
    /// 1: another process works on this home; waiting helps.
    Busy,
    /// 2
    Usage,
    /// 3: no such package, version or path.
    NotFound,
    /// 4: not trusted, or does not verify.
    Refused,
    /// 5: no source could deliver in time.
    NoSource,
}

impl FailureKind {
    /// Returns the exit code.
    pub fn exit_code(self) -> u8 {
        match self {
            FailureKind::Failed | FailureKind::Busy => 1,
            FailureKind::Usage => 2,
            FailureKind::NotFound => 3,
            FailureKind::Refused => 4,
            FailureKind::NoSource => 5,
        }
    }
}

/// Why something did not work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The exit code.
    pub kind: FailureKind,
    /// One line: what failed and why.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "errors and literals are given away alike"
)]
impl Failure {
    /// A failure of a kind.
    pub fn new(kind: FailureKind, message: impl ToString) -> Failure {
        Failure {
            kind,
            message: message.to_string(),
            hint: None,
        }
    }

    /// A failure of no special kind.
    pub fn failed(message: impl ToString) -> Failure {
        Failure::new(FailureKind::Failed, message)
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl ToString) -> Failure {
        self.hint = Some(hint.to_string());
        self
    }
}
