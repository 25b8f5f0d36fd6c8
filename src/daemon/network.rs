//! The home's sources and registries, made from its configuration and what was added by hand.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use url::Url;

use super::Home;
use super::follow::Followed;
use crate::config::{BEARER_FILE, Config};
use crate::durable;
use crate::install::Hints;
use crate::net::dht::{BOOTSTRAP, Dht};
use crate::net::{self, AddressFilter, Allow};
use crate::registry::{Directory, Http, HttpOptions, Registry};
use crate::serve::control::{Failure, FailureKind, RegistryItem};
use crate::source::torrent::{ByDht, Finder, Finders, Patience, Settings, Swarms, Trackers};
use crate::source::{BlockSource, Gateway, Http as Mirror, Local};

/// Where registries that were added by hand are written down.
const REGISTRIES: &str = "registries.json";

/// Mirrors out of release indexes that are asked, of all packages together, and gateways as many: publishers share them.
const HINTED_MAX: usize = 64;

/// The sources that the configuration names, and what is needed to add those that packages name.
#[derive(Default)]
pub(super) struct Network {
    client: Option<net::Client>,
    sources: Vec<Arc<dyn BlockSource>>,
    /// Those that the configuration names, which are asked for every package.
    configured: Bases,
    /// Those that listed packages name, as far as they are asked; none before the first look.
    hinted: Option<Bases>,
}

/// URLs of sources that can be hinted at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Bases {
    mirrors: BTreeSet<String>,
    gateways: BTreeSet<String>,
}

impl Bases {
    /// Adds what the release index of a listed package names, except those that are `configured`.
    fn add(&mut self, hints: &Hints, configured: &Bases) {
        for (named, own, there) in [
            (&hints.http, &configured.mirrors, &mut self.mirrors),
            (&hints.gateways, &configured.gateways, &mut self.gateways),
        ] {
            let bases = named.iter().map(|base| base.trim_end_matches('/'));
            let others = bases.filter(|base| !own.contains(*base));
            there.extend(others.map(str::to_owned));
        }
    }

    /// Leaves out what is too many; returns how many that were.
    fn cut(&mut self) -> usize {
        let mut left_out = 0;
        for bases in [&mut self.mirrors, &mut self.gateways] {
            while bases.len() > HINTED_MAX && bases.pop_last().is_some() {
                left_out += 1;
            }
        }
        left_out
    }
}

/// Returns whether a place is on a web server.
pub(super) fn is_url(place: &str) -> bool {
    place.starts_with("http://") || place.starts_with("https://")
}

impl Home {
    fn registries_path(&self) -> PathBuf {
        self.state.dir().join(REGISTRIES)
    }

    /// Returns the registries that were added by hand, in order.
    pub(super) fn added_registries(&self) -> Result<Vec<String>, Failure> {
        let path = self.registries_path();
        let read = durable::read_json::<Vec<String>>(&path);
        Ok(read
            .map_err(|error| Failure::failed(format!("{}: {error}", path.display())))?
            .unwrap_or_default())
    }

    /// Adds a registry: a URL, or a directory. Says how reading it went.
    pub(super) async fn add_registry(
        self: &Arc<Self>,
        place: &str,
    ) -> Result<RegistryItem, Failure> {
        let usage = |message: String| Failure::new(FailureKind::Usage, message);
        let place = if is_url(place) {
            let url = Url::parse(place)
                .map_err(|error| usage(format!("{place} is not a URL: {error}")))?;
            if url.host_str().is_none() {
                return Err(usage(format!("{place} names no host")));
            }
            place.trim_end_matches('/').to_owned()
        } else if place.contains("://") {
            return Err(usage(format!(
                "{place}: only http, https and directories can be registries so far"
            )));
        } else {
            let path = std::path::absolute(place).map_err(Failure::failed)?;
            path.to_str()
                .ok_or_else(|| usage(format!("{place} is not UTF-8")))?
                .to_owned()
        };
        let mut added = self.added_registries()?;
        if !added.contains(&place) {
            added.push(place.clone());
            self.save_registries(&added)?;
            self.connect()?;
        }
        let added = {
            let followed = self.followed.lock();
            followed
                .iter()
                .find(|known| known.place() == place)
                .cloned()
        };
        let added =
            added.ok_or_else(|| Failure::failed(format!("{place} was taken away again")))?;
        // Whoever adds it wants to know at once whether it can be read.
        self.read_registry(&added).await;
        Ok(added.item())
    }

    /// Takes a registry away; what it listed stays listed.
    pub(super) fn remove_registry(self: &Arc<Self>, place: &str) -> Result<(), Failure> {
        let absolute = std::path::absolute(place).unwrap_or_default();
        let same =
            |known: &String| known == place.trim_end_matches('/') || Path::new(known) == absolute;
        let mut added = self.added_registries()?;
        let before = added.len();
        added.retain(|known| !same(known));
        if added.len() == before {
            return Err(Failure::new(
                FailureKind::NotFound,
                format!("{place} is not among the registries"),
            )
            .hint("`manifs registry list` shows them"));
        }
        self.save_registries(&added)?;
        self.connect()
    }

    fn save_registries(&self, added: &[String]) -> Result<(), Failure> {
        durable::write_json(&self.registries_path(), added).map_err(Failure::failed)
    }

    /// Makes client, sources and registries anew from configuration and additions.
    pub(super) fn connect(self: &Arc<Self>) -> Result<(), Failure> {
        let config = self.config.load_full();
        let added = self.added_registries()?;
        let urls: Vec<&String> = added.iter().filter(|place| is_url(place)).collect();
        let client = client(
            &config,
            urls.iter()
                .copied()
                .chain(&config.sources.gateways)
                .chain(&config.sources.http),
        )?;
        self.serving.client.store(Arc::new(client.clone()));
        let mut sources: Vec<Arc<dyn BlockSource>> = Vec::new();
        let mut configured = Bases::default();
        // A registry by URL may be a daemon, which then has the blocks too.
        for base in config.sources.gateways.iter().chain(urls) {
            let base = base.trim_end_matches('/');
            if configured.gateways.insert(base.to_owned()) {
                sources.push(Arc::new(Gateway::new(base, client.clone())));
            }
        }
        for base in &config.sources.http {
            let base = base.trim_end_matches('/');
            if configured.mirrors.insert(base.to_owned()) {
                sources.push(Arc::new(Mirror::new(base, client.clone())));
            }
        }
        for path in &config.sources.local {
            match Local::open(path) {
                Ok(local) => sources.push(Arc::new(local)),
                Err(error) => {
                    let note = format!("[sources] local: {}: {error}", path.display());
                    tracing::warn!("{note}");
                    self.notes.lock().push(note);
                }
            }
        }
        sources.push(self.swarms(&config, &client));
        {
            let mut network = self.network.lock();
            *network = Network {
                client: Some(client.clone()),
                sources,
                configured,
                hinted: None,
            };
        }
        self.apply_hints();
        self.set_registries(&added, &client, &config);
        Ok(())
    }

    /// Adds the mirrors and gateways that listed packages name to the sources of the configuration, if they changed.
    pub(super) fn apply_hints(&self) {
        let listed = self.listing.all();
        let versions = listed.iter().flat_map(|(_, versions, _)| versions);
        let mut network = self.network.lock();
        let mut hinted = Bases::default();
        for version in versions {
            hinted.add(&version.hints(), &network.configured);
        }
        let left_out = hinted.cut();
        if left_out > 0 && network.hinted.is_none() {
            tracing::warn!(
                left_out,
                "packages name more mirrors and gateways than are asked"
            );
        }
        let Some(client) = network
            .client
            .clone()
            .filter(|_| network.hinted.as_ref() != Some(&hinted))
        else {
            return;
        };
        let mut sources = network.sources.clone();
        for base in &hinted.mirrors {
            sources.push(Arc::new(Mirror::hinted(base, client.clone())));
        }
        for base in &hinted.gateways {
            sources.push(Arc::new(Gateway::hinted(base, client.clone())));
        }
        network.hinted = Some(hinted);
        self.fetcher.set_sources(sources);
    }

    /// Returns the torrent swarms, with the configuration as it is now.
    fn swarms(&self, config: &Config, client: &net::Client) -> Arc<Swarms> {
        let bind = config.torrent.as_ref().map(|torrent| torrent.listen.ip());
        let trackers = Trackers::new(client.clone(), bind);
        let mut finders: Vec<Arc<dyn Finder>> = vec![Arc::new(trackers)];
        if let Some(dht) = &self.dht {
            finders.push(Arc::new(ByDht::new(Arc::clone(dht), client.clone())));
        }
        let settings = Settings {
            client: client.clone(),
            peers: config.sources.peers.clone(),
            finder: Some(Arc::new(Finders(finders))),
        };
        let made = self
            .swarms
            .get_or_init(|| Swarms::new(settings.clone(), Patience::default()));
        made.configure(settings);
        Arc::clone(made)
    }

    fn set_registries(self: &Arc<Self>, added: &[String], client: &net::Client, config: &Config) {
        let mut followed = self.followed.lock();
        let own = self.state.published().dir().display().to_string();
        let default = self.paths.registry.display().to_string();
        // Own publications first: they are listed whatever registry they were announced in.
        let wanted: Vec<&str> = [own.as_str(), default.as_str()]
            .into_iter()
            .chain(added.iter().map(String::as_str))
            .collect();
        let mut kept: Vec<Arc<Followed>> = Vec::new();
        for old in followed.drain(..) {
            if wanted.contains(&old.place()) {
                kept.push(old)
            } else {
                old.stop()
            }
        }
        for place in &wanted {
            if kept.iter().any(|known| known.place() == *place) {
                continue;
            }
            let registry: Arc<dyn Registry> = if is_url(place) {
                Arc::new(Http::new(
                    place,
                    client.clone(),
                    HttpOptions {
                        interval: config.registry.interval,
                    },
                ))
            } else {
                Arc::new(Directory::new(place))
            };
            kept.push(Arc::new(Followed::new(place, registry)));
        }
        *followed = kept;
        drop(followed);
        self.follow_all();
    }

    /// Opens the registry that a publication goes to: a directory, or an added registry by its place.
    pub(super) fn registry_for(&self, place: Option<&str>) -> Result<Arc<dyn Registry>, Failure> {
        let place = match place {
            None => return Ok(Arc::new(Directory::new(&self.paths.registry))),
            Some(place) => place,
        };
        if is_url(place) {
            return Err(Failure::new(
                FailureKind::Usage,
                format!("{place}: a registry on a web server can only be read"),
            )
            .hint("publish to a directory, and serve it"));
        }
        Ok(Arc::new(Directory::new(
            std::path::absolute(place).map_err(Failure::failed)?,
        )))
    }
}

/// Makes the hash table's asker, where the configuration allows that; nothing is sent before something is looked for.
pub(super) fn dht(config: &Config) -> Option<Arc<Dht>> {
    let section = config.torrent.as_ref().filter(|section| section.dht)?;
    let bootstrap = match &section.dht_bootstrap {
        Some(own) => own.clone(),
        None => BOOTSTRAP.map(str::to_owned).to_vec(),
    };
    Some(Arc::new(Dht::new(section.listen.ip(), bootstrap)))
}

/// Makes the one client: every host that the configuration or the user named may be dialled.
fn client<'a>(
    config: &Config,
    urls: impl Iterator<Item = &'a String>,
) -> Result<net::Client, Failure> {
    let usage =
        |message: String| Failure::new(FailureKind::Usage, message).hint("see docs/config.md");
    let mut allow = Vec::new();
    for text in &config.net.allow {
        allow.push(
            text.parse::<Allow>()
                .map_err(|error| usage(format!("[net] allow: {error}")))?,
        );
    }
    for peer in &config.sources.peers {
        allow.push(
            peer.parse::<Allow>()
                .map_err(|error| usage(format!("[sources] peers: {error}")))?,
        );
    }
    for url in urls {
        let parsed = Url::parse(url).map_err(|error| usage(format!("{url}: {error}")))?;
        allow.extend(Allow::url(&parsed));
    }
    let mut ca = Vec::new();
    if let Some(path) = &config.net.ca {
        ca.push(
            std::fs::read(path)
                .map_err(|error| usage(format!("[net] ca: {}: {error}", path.display())))?,
        );
    }
    let mut auth = Vec::new();
    for (host, word) in &config.net.auth {
        let path = word.strip_prefix(BEARER_FILE);
        let path =
            path.ok_or_else(|| usage(format!("[net.auth] {host}: expected bearer-file:PATH")))?;
        let token = std::fs::read_to_string(path)
            .map_err(|error| usage(format!("[net.auth] {host}: {path}: {error}")))?;
        auth.push((host.clone(), net::Secret::bearer(&token)));
    }
    Ok(net::Client::new(net::Options {
        filter: AddressFilter::new(allow),
        proxy: config.net.proxy.clone(),
        ca,
        auth,
        down: config.fetch.down.0,
    }))
}
