//! Where a home lies.

use std::path::{Path, PathBuf};

use super::{ConfigError, variable};

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
    /// The drop directory, where one is configured.
    pub publish: PathBuf,
    /// Blocks; disposable.
    pub store: PathBuf,
    /// Socket and mount records.
    pub run: PathBuf,
}

impl Paths {
    /// Returns the home of the machine's own service.
    pub fn system() -> Paths {
        let (config, lib) = (Path::new("/etc/manifs"), Path::new("/var/lib/manifs"));
        Paths {
            home: None,
            config: config.join("config.toml"),
            trust: config.join("trust.toml"),
            keys: config.join("keys"),
            state: lib.join("state"),
            registry: lib.join("registry"),
            publish: lib.join("publish"),
            store: PathBuf::from("/var/cache/manifs/store"),
            run: PathBuf::from("/run/manifs"),
        }
    }

    /// Finds a home: `--home`, else `MANIFS_HOME`, else the XDG directories.
    ///
    /// # Errors
    /// [`ConfigError::NoHome`]
    pub fn find(home: Option<&Path>) -> Result<Paths, ConfigError> {
        let named = home.map(Path::to_path_buf);
        match named.or_else(|| variable("MANIFS_HOME").map(PathBuf::from)) {
            Some(home) => Ok(Paths::below(&std::path::absolute(&home).unwrap_or(home))),
            None => Paths::xdg(),
        }
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
            publish: home.join("publish"),
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
            publish: base("XDG_DATA_HOME", ".local/share")?.join("publish"),
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
