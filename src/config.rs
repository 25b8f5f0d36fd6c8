//! The configuration file, the environment, and where a home lies. Nothing else reads either of the latter two.
//!
//! What was typed ([`File`], environment) is turned into what is meant ([`Config`]); half-set combinations and unknown
//! words are errors that name the file and, where one is known, the line.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};

use crate::manifest::Pattern;
use crate::manifest::time::parse_duration;
use crate::store::Verify;

/// Begins every variable that overrides a key: `MANIFS_<SECTION>_<KEY>`.
const PREFIX: &str = "MANIFS_";

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

/// Where everything of a home lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// `--home`, if it was given; for commands that are run again by hand.
    pub home: Option<PathBuf>,
    /// `config.toml`.
    pub config: PathBuf,
    /// `trust.toml`.
    pub trust: PathBuf,
    /// Private and public keys.
    pub keys: PathBuf,
    /// What must not be lost.
    pub state: PathBuf,
    /// The default registry.
    pub registry: PathBuf,
    /// Blocks; disposable.
    pub store: PathBuf,
    /// Socket and mount records.
    pub run: PathBuf,
}

impl Paths {
    /// Finds a home: `--home`, else `MANIFS_HOME`, else the XDG directories.
    ///
    /// # Errors
    /// [`ConfigError::NoHome`]
    pub fn find(home: Option<&Path>, config: Option<&Path>) -> Result<Paths, ConfigError> {
        let mut paths = match home
            .map(Path::to_path_buf)
            .or_else(|| variable("MANIFS_HOME").map(PathBuf::from))
        {
            Some(home) => Paths::below(&std::path::absolute(&home).unwrap_or(home)),
            None => Paths::xdg()?,
        };
        if let Some(config) = config {
            paths.config = config.to_path_buf();
        }
        Ok(paths)
    }

    /// Puts everything below one directory.
    pub fn below(home: &Path) -> Paths {
        Paths {
            home: Some(home.to_path_buf()),
            config: home.join("config.toml"),
            trust: home.join("trust.toml"),
            keys: home.join("keys"),
            state: home.join("state"),
            registry: home.join("registry"),
            store: home.join("store"),
            run: home.join("run"),
        }
    }

    fn xdg() -> Result<Paths, ConfigError> {
        let home = variable("HOME").map(PathBuf::from);
        let base = |name: &str, below: &str| {
            let set = variable(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute());
            let set = set.or_else(|| home.as_ref().map(|home| home.join(below)));
            set.map(|path| path.join("manifs"))
                .ok_or(ConfigError::NoHome)
        };
        let config = base("XDG_CONFIG_HOME", ".config")?;
        let state = base("XDG_STATE_HOME", ".local/state")?;
        let run = match variable("XDG_RUNTIME_DIR")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
        {
            Some(run) => run.join("manifs"),
            None => state.join("run"),
        };
        Ok(Paths {
            home: None,
            config: config.join("config.toml"),
            trust: config.join("trust.toml"),
            keys: config.join("keys"),
            state: state.join("state"),
            registry: base("XDG_DATA_HOME", ".local/share")?.join("registry"),
            store: base("XDG_CACHE_HOME", ".cache")?.join("store"),
            run,
        })
    }

    /// Returns the control socket.
    pub fn socket(&self) -> PathBuf {
        self.run.join("control")
    }

    /// Returns the log of a daemon in the background.
    pub fn log(&self) -> PathBuf {
        self.state.join("daemon.log")
    }

    /// Returns the private key of that name.
    pub fn private_key(&self, name: &str) -> PathBuf {
        self.keys.join(format!("{name}.pem"))
    }

    /// Returns the public key of that name.
    pub fn public_key(&self, name: &str) -> PathBuf {
        self.keys.join(format!("{name}.pub.pem"))
    }
}

/// Which versions are installed before somebody enters them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Install {
    /// None.
    #[default]
    OnEntry,
    /// What `latest` leads to.
    Latest,
    /// All.
    All,
    /// None, not even on entry: only `warm` installs.
    Manual,
}

/// What is meant by the file, the environment and the defaults.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
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
    /// `[net]`
    pub net: NetSection,
    /// `[registry]`
    pub registry: RegistrySection,
}

/// `[store]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreSection {
    /// The most bytes the store may take.
    pub quota: Bytes,
    /// When blocks are hashed.
    #[serde(deserialize_with = "verify")]
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
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MountSection {
    /// Which versions are installed before somebody enters them.
    pub install: Install,
    /// Whether other users may enter mounts.
    pub allow_other: bool,
}

/// `[fetch]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FetchSection {
    /// A read fails after this time without progress.
    #[serde(deserialize_with = "duration")]
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
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SourcesSection {
    /// URLs of IPFS gateways, other manifs daemons among them.
    pub gateways: Vec<String>,
    /// Directories with trees, or CAR files.
    pub local: Vec<PathBuf>,
}

/// `[gateway]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
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

/// `[net]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistrySection {
    /// How often a web server that cannot tell of changes is asked.
    #[serde(deserialize_with = "duration")]
    pub interval: Duration,
}

impl Default for RegistrySection {
    fn default() -> Self {
        RegistrySection {
            interval: Duration::from_secs(60),
        }
    }
}

/// Which packages are served: `*`, `scope/*` or a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share(pub Pattern);

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = |_| {
            D::Error::custom(format!(
                "{text:?} is no pattern: expected *, scope/* or a package name"
            ))
        };
        text.parse().map(Share).map_err(wrong)
    }
}

/// A number of bytes, as people write it: `20GiB`, `64 MiB`, `1000`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is no size: expected a number and, for instance, MiB or GiB");
        let text = text.trim();
        let split = text
            .find(|character: char| !character.is_ascii_digit())
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "kib" | "k" => 1 << 10,
            "mib" | "m" => 1 << 20,
            "gib" | "g" => 1 << 30,
            "tib" | "t" => 1 << 40,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            _ => return Err(wrong()),
        };
        number.checked_mul(factor).map(Bytes).ok_or_else(wrong)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Typed {
            Number(u64),
            Text(String),
        }
        match Typed::deserialize(deserializer)? {
            Typed::Number(number) => Ok(Bytes(number)),
            Typed::Text(text) => text.parse().map_err(D::Error::custom),
        }
    }
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text).map_err(|_| {
        D::Error::custom(format!(
            "{text:?} is no duration: expected, for instance, 30s or 5m"
        ))
    })
}

fn verify<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Verify, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "first-touch" => Ok(Verify::FirstTouch),
        "always" => Ok(Verify::Always),
        other => Err(D::Error::custom(format!(
            "{other:?} is neither \"first-touch\" nor \"always\""
        ))),
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
        Config::parse(&text, &path.display().to_string(), std::env::vars())
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
            message: error.to_string().trim().to_owned(),
        };
        // Checked by itself first, so that an error shows the line of the file.
        let plain: Config = read(text).map_err(|error| invalid(&error))?;
        let mut table: toml::Table = toml::from_str(text).map_err(|error| invalid(&error))?;
        let mut overridden = None;
        for (name, value) in variables {
            if let Some((section, key)) = known_variable(&name) {
                // Lists and numbers are written as in the file, text without quotes.
                let typed = format!("value = {value}")
                    .parse::<toml::Table>()
                    .ok()
                    .and_then(|mut table| table.remove("value"));
                let value = typed.unwrap_or(toml::Value::String(value));
                let section = table
                    .entry(section)
                    .or_insert_with(|| toml::Value::Table(toml::Table::new()));
                if let Some(section) = section.as_table_mut() {
                    section.insert(key, value);
                }
                overridden = Some(name);
            }
        }
        let config = match overridden {
            None => plain,
            Some(name) => {
                table
                    .try_into()
                    .map_err(|error: toml::de::Error| ConfigError::Invalid {
                        place: name,
                        message: error.message().to_owned(),
                    })?
            }
        };
        config.check(place)?;
        Ok(config)
    }

    fn check(&self, place: &str) -> Result<(), ConfigError> {
        let invalid = |message: &str| {
            Err(ConfigError::Invalid {
                place: place.to_owned(),
                message: message.to_owned(),
            })
        };
        if self.store.quota.0 < 16 << 20 {
            return invalid("[store] quota: at least 16MiB are needed");
        }
        if self.fetch.deadline.is_zero() {
            return invalid(
                "[fetch] deadline: a read that may not wait never ends well; write, for instance, 30s",
            );
        }
        Ok(())
    }
}

fn read<T: DeserializeOwned>(text: &str) -> Result<T, toml::de::Error> {
    toml::from_str(text)
}

/// Splits `MANIFS_<SECTION>_<KEY>`; other variables of ours have one word only.
fn known_variable(name: &str) -> Option<(String, String)> {
    let (section, key) = name.strip_prefix(PREFIX)?.split_once('_')?;
    let section = section.to_ascii_lowercase();
    let sections = [
        "store", "mount", "fetch", "sources", "gateway", "net", "registry",
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

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, "config.toml", [])
    }

    #[test]
    fn everything_has_a_default() {
        let config = parse("").unwrap();
        assert_eq!(config, Config::default());
        assert_eq!(
            (config.store.quota, config.fetch.deadline),
            (Bytes(20 << 30), Duration::from_secs(30))
        );
        assert_eq!(config.gateway, None);
        let served = parse("[gateway]\n").unwrap().gateway.unwrap();
        assert_eq!(
            (served.listen.to_string().as_str(), served.share.len()),
            ("127.0.0.1:8420", 0)
        );
    }

    #[test]
    fn sizes_durations_and_patterns_are_read_as_people_write_them() {
        let text = "[store]\nquota = \"64 MiB\"\nverify = \"always\"\n[fetch]\ndeadline = \"5m\"\ndown = 1000\n\
            [gateway]\nshare = [\"*\", \"acme/*\", \"tools\"]\n[mount]\ninstall = \"latest\"\n";
        let config = parse(text).unwrap();
        assert_eq!(
            (config.store.quota.0, config.store.verify),
            (64 << 20, Verify::Always)
        );
        assert_eq!(
            (config.fetch.deadline, config.fetch.down.0),
            (Duration::from_secs(300), 1000)
        );
        assert_eq!(config.mount.install, Install::Latest);
        let share = config.gateway.unwrap().share;
        let covers = |name: &str| {
            share[1..]
                .iter()
                .any(|share| share.0.matches(&name.parse().unwrap()))
        };
        assert_eq!(
            [
                covers("acme/x"),
                covers("tools"),
                covers("acme"),
                covers("other/x")
            ],
            [true, true, false, false]
        );
    }

    #[test]
    fn mistakes_name_the_place_and_the_line() {
        for (text, want) in [
            ("[store]\nquotas = 1\n", "line 2"),
            ("[stroe]\n", "stroe"),
            ("[store]\nquota = \"20 pounds\"\n", "20 pounds"),
            ("[store]\nquota = \"1MiB\"\n", "16MiB"),
            ("[store]\nverify = \"never\"\n", "first-touch"),
            ("[fetch]\ndeadline = \"0s\"\n", "deadline"),
            ("[gateway]\nlisten = \"nowhere\"\n", "line 2"),
            ("[gateway]\nshare = [\"A\"]\n", "pattern"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(
                error.starts_with("config.toml: ") && error.contains(want),
                "{text:?}: {error}"
            );
        }
    }

    #[test]
    fn variables_override_the_file() {
        let variables = [
            ("MANIFS_STORE_QUOTA", "32MiB"),
            ("MANIFS_MOUNT_ALLOW_OTHER", "true"),
            ("MANIFS_HOME", "/h"),
            ("HOME", "/"),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let config =
            Config::parse("[store]\nquota = \"64MiB\"\n", "config.toml", variables).unwrap();
        assert_eq!(
            (config.store.quota.0, config.mount.allow_other),
            (32 << 20, true)
        );
        let wrong = [("MANIFS_STORE_QUOTAS".to_owned(), "1".to_owned())];
        let error = Config::parse("", "config.toml", wrong)
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("MANIFS_STORE_QUOTAS: "), "{error}");
    }

    #[test]
    fn a_home_is_one_directory() {
        let paths = Paths::below(Path::new("/h"));
        assert_eq!(
            paths.private_key("default"),
            Path::new("/h/keys/default.pem")
        );
        assert_eq!(paths.socket(), Path::new("/h/run/control"));
    }
}
