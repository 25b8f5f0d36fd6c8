//! The configuration file, the environment, and where a home lies. Nothing else reads either of the latter two.
//!
//! What was typed ([`File`], environment) is turned into what is meant ([`Config`]); half-set combinations and unknown
//! words are errors that name the file and, where one is known, the line.

mod paths;
mod publish;
#[cfg(test)]
mod tests;
mod units;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::source::http::check_base;
use crate::store::Verify;

pub use paths::Paths;
pub use publish::{Provider, ProviderError, PublishSection};
pub use units::{Bytes, Share};

/// Begins every variable that overrides a key: `MANIFS_<SECTION>_<KEY>`.
const PREFIX: &str = "MANIFS_";

/// How a token in a file is named in `[net.auth]`.
pub(crate) const BEARER_FILE: &str = "bearer-file:";

/// The smallest quota of the store: a large file's span of 64 blocks does not fit, yet blocks and catalogs do.
const QUOTA_MIN: u64 = 16 << 20;

/// The default quota of the store: 20 GiB.
const QUOTA: u64 = 20 << 30;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {source}", path = path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// The file, or a variable, does not say what it should.
    #[error("{place}: {message}")]
    Invalid {
        /// The file, or the variable.
        place: String,
        /// What is wrong with it.
        message: String,
    },
    /// Neither `--home` nor the variables that say where things are.
    #[error("there is no HOME, and no --home was given")]
    NoHome,
}

impl ConfigError {
    /// Returns what a person can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            ConfigError::Read { .. } => "make the file readable, or name another one with --config",
            ConfigError::Invalid { .. } => {
                "docs/config.md lists every key; `manifs config check` checks the file"
            }
            ConfigError::NoHome => "say where the home is with --home DIR",
        }
    }
}

/// Which versions are installed before somebody enters them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Install {
    /// None.
    #[default]
    OnEntry,
    /// What `latest` leads to.
    Latest,
    /// All.
    All,
    /// None, not even on entry: only who asks for it by name, as `manifs ls` and `warm` do.
    Manual,
}

/// What is meant by the file, the environment and the defaults.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `[store]`
    pub store: StoreSection,
    /// `[mount]`
    pub mount: MountSection,
    /// `[fetch]`
    pub fetch: FetchSection,
    /// `[sources]`
    pub sources: SourcesSection,
    /// `[gateway]`: absent means that nothing is served.
    pub gateway: Option<GatewaySection>,
    /// `[torrent]`: absent means that nothing is seeded.
    pub torrent: Option<TorrentSection>,
    /// `[net]`
    pub net: NetSection,
    /// `[registry]`
    pub registry: RegistrySection,
    /// `[publish]`: absent means that nothing is signed unattended.
    pub publish: Option<PublishSection>,
}

/// `[store]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreSection {
    /// The most bytes the store may take.
    pub quota: Bytes,
    /// When blocks are hashed.
    #[serde(with = "units::verify")]
    pub verify: Verify,
    /// Where the store lies, if not at its usual place.
    pub path: Option<PathBuf>,
}

impl Default for StoreSection {
    fn default() -> Self {
        StoreSection {
            quota: Bytes(QUOTA),
            verify: Verify::FirstTouch,
            path: None,
        }
    }
}

/// `[mount]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct MountSection {
    /// Which versions are installed before somebody enters them.
    pub install: Install,
    /// Whether other users may enter mounts.
    pub allow_other: bool,
}

/// `[fetch]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct FetchSection {
    /// A read fails after this time without progress.
    #[serde(with = "units::duration")]
    pub deadline: Duration,
    /// Bytes per second fetched at most; 0 is no cap.
    pub down: Bytes,
    /// Bytes per second served at most; 0 is no cap.
    pub up: Bytes,
}

impl Default for FetchSection {
    fn default() -> Self {
        FetchSection {
            deadline: Duration::from_secs(30),
            down: Bytes(0),
            up: Bytes(0),
        }
    }
}

/// `[sources]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct SourcesSection {
    /// URLs of IPFS gateways, other manifs daemons among them.
    pub gateways: Vec<String>,
    /// URLs of plain web servers that hold trees.
    pub http: Vec<String>,
    /// Directories with trees, or CAR files.
    pub local: Vec<PathBuf>,
    /// BitTorrent peers of every torrent, `host:port`.
    pub peers: Vec<String>,
}

/// `[gateway]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct GatewaySection {
    /// Where it listens.
    #[serde(default = "gateway_listen")]
    pub listen: std::net::SocketAddr,
    /// Patterns of packages that are served besides own publications.
    #[serde(default)]
    pub share: Vec<Share>,
    /// Names by which it may be asked, besides IP literals and `localhost`.
    #[serde(default)]
    pub hosts: Vec<String>,
}

fn gateway_listen() -> std::net::SocketAddr {
    std::net::SocketAddr::from(([127, 0, 0, 1], 8420))
}

/// `[torrent]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TorrentSection {
    /// Where leechers connect.
    #[serde(default = "torrent_listen")]
    pub listen: std::net::SocketAddr,
    /// The port that trackers are told, if not the one it listens on.
    #[serde(default)]
    pub announce_port: Option<u16>,
    /// Whether everything that was published here, and complete packages that `[gateway] share` names, are seeded.
    #[serde(default)]
    pub seed: bool,
    /// Whether the distributed hash table is used: peers are looked for there, and what is seeded is announced there.
    #[serde(default)]
    pub dht: bool,
    /// Nodes of it where a lookup begins, `host:port`, in place of the usual ones.
    #[serde(default)]
    pub dht_bootstrap: Option<Vec<String>>,
}

fn torrent_listen() -> std::net::SocketAddr {
    std::net::SocketAddr::from(([127, 0, 0, 1], 6881))
}

/// `[net]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetSection {
    /// Hosts, addresses and networks that may be dialled though they are not public.
    pub allow: Vec<String>,
    /// An HTTP proxy.
    pub proxy: Option<String>,
    /// A file of further certificate authorities, PEM.
    pub ca: Option<PathBuf>,
    /// By `host:port`: `bearer-file:PATH`.
    pub auth: std::collections::BTreeMap<String, String>,
}

/// `[registry]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistrySection {
    /// How often a web server that cannot tell of changes is asked.
    #[serde(with = "units::duration")]
    pub interval: Duration,
}

impl Default for RegistrySection {
    fn default() -> Self {
        RegistrySection {
            interval: Duration::from_secs(60),
        }
    }
}

impl Config {
    /// Reads the file, if there is one, and the variables that override it.
    ///
    /// # Errors
    /// [`ConfigError`]
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            text => text.map_err(|source| ConfigError::Read {
                path: path.to_path_buf(),
                source,
            })?,
        };
        // A variable that is not UTF-8 is none of ours.
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        let mut config = Config::parse(&text, &path.display().to_string(), variables)?;
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        config.anchor(path.parent().unwrap_or(Path::new("/")));
        Ok(config)
    }

    /// Reads `text`, and `variables` over it.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`]
    pub fn parse(
        text: &str,
        place: &str,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Config, ConfigError> {
        let invalid = |error: &toml::de::Error| ConfigError::Invalid {
            place: place.to_owned(),
            message: match error.span() {
                Some(span) => format!("line {}: {}", line(text, span.start), error.message()),
                None => error.message().to_owned(),
            },
        };
        // Checked by itself first, so that an error shows the line of the file.
        let mut config: Config = toml::from_str(text).map_err(|error| invalid(&error))?;
        let mut table: toml::Table = toml::from_str(text).map_err(|error| invalid(&error))?;
        for (name, value) in variables {
            let Some((section, key)) = known_variable(&name) else {
                continue;
            };
            // Lists and numbers are written as in the file, text without quotes.
            let typed = format!("value = {value}").parse::<toml::Table>().ok();
            let typed = typed.and_then(|mut table| table.remove("value"));
            let value = typed.unwrap_or(toml::Value::String(value));
            let section = table
                .entry(section)
                .or_insert_with(|| toml::Value::Table(toml::Table::new()));
            if let Some(section) = section.as_table_mut() {
                section.insert(key, value);
            }
            // One by one, so that the error names the variable that is wrong.
            let read = table.clone().try_into();
            config = read.map_err(|error: toml::de::Error| ConfigError::Invalid {
                place: name,
                message: error.message().to_owned(),
            })?;
        }
        config.check(place)?;
        Ok(config)
    }

    /// Lets relative paths begin at the file's directory, and `~/` at the user's home.
    fn anchor(&mut self, directory: &Path) {
        let home = variable("HOME");
        let anchored = |path: &mut PathBuf| {
            *path = match (path.strip_prefix("~"), &home) {
                (Ok(below), Some(home)) => Path::new(home).join(below),
                _ => directory.join(&path),
            };
        };
        self.store.path.iter_mut().for_each(anchored);
        self.sources.local.iter_mut().for_each(anchored);
        self.net.ca.iter_mut().for_each(anchored);
        if let Some(publish) = &mut self.publish {
            publish.anchor(anchored);
        }
        for word in self.net.auth.values_mut() {
            if let Some(file) = word.strip_prefix(BEARER_FILE) {
                let mut path = PathBuf::from(file);
                anchored(&mut path);
                *word = format!("{BEARER_FILE}{}", path.display());
            }
        }
    }

    fn check(&self, place: &str) -> Result<(), ConfigError> {
        let invalid = |message: &str| {
            Err(ConfigError::Invalid {
                place: place.to_owned(),
                message: message.to_owned(),
            })
        };
        if self.store.quota.0 < QUOTA_MIN {
            return invalid("[store] quota: at least 16MiB are needed");
        }
        if self.fetch.deadline.is_zero() {
            return invalid(
                "[fetch] deadline: a read that may not wait never ends well; write, for instance, 30s",
            );
        }
        for base in &self.sources.http {
            check_base(base).or_else(|what| invalid(&format!("[sources] http: {base}: {what}")))?;
        }
        if let Some(torrent) = &self.torrent
            && let Some(nodes) = &torrent.dht_bootstrap
        {
            if !torrent.dht {
                return invalid("[torrent] dht_bootstrap: means nothing without dht = true");
            }
            if nodes.is_empty() {
                return invalid("[torrent] dht_bootstrap: a lookup has to begin somewhere");
            }
            if let Some(node) = nodes.iter().find(|node| !is_peer(node)) {
                return invalid(&format!(
                    "[torrent] dht_bootstrap: {node:?} is not host:port"
                ));
            }
        }
        if let Some(torrent) = &self.torrent
            && torrent.announce_port == Some(0)
        {
            return invalid("[torrent] announce_port: 0 is no port");
        }
        if let Some(publish) = &self.publish {
            publish.check().or_else(|message| invalid(&message))?;
        }
        for (host, word) in &self.net.auth {
            if !word.starts_with(BEARER_FILE) {
                return invalid(&format!("[net.auth] {host}: expected bearer-file:PATH"));
            }
        }
        for peer in &self.sources.peers {
            if !is_peer(peer) {
                return invalid(&format!("[sources] peers: {peer:?} is not host:port"));
            }
        }
        Ok(())
    }
}

/// Returns whether a text is `host:port`; an IPv6 address stands in brackets.
fn is_peer(text: &str) -> bool {
    let port = text.rsplit_once(':').map(|(host, port)| {
        let literal = host.starts_with('[');
        let host = !host.is_empty() && (literal || !host.contains([':', '/', '@']));
        let parsed = port.parse::<u16>().is_ok_and(|port| port > 0);
        host && parsed && (!literal || text.parse::<std::net::SocketAddr>().is_ok())
    });
    port == Some(true)
}

/// Returns the number of the line that holds byte `offset`.
fn line(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().iter().take(offset);
    1 + before.filter(|byte| **byte == b'\n').count()
}

/// Splits `MANIFS_<SECTION>_<KEY>`; other variables of ours have one word only.
fn known_variable(name: &str) -> Option<(String, String)> {
    let (section, key) = name.strip_prefix(PREFIX)?.split_once('_')?;
    let section = section.to_ascii_lowercase();
    let sections = [
        "store", "mount", "fetch", "sources", "gateway", "torrent", "net", "registry", "publish",
    ];
    sections
        .contains(&section.as_str())
        .then(|| (section, key.to_ascii_lowercase()))
}

/// Returns a variable of the environment; an empty one counts as none.
#[expect(
    clippy::disallowed_methods,
    reason = "this module is the one that reads the environment"
)]
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
