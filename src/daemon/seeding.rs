//! Seeding, where `[torrent]` is configured.

use std::sync::Arc;

use tokio::net::TcpListener;

use super::Home;
use crate::config::{Config, TorrentSection};
use crate::net::Rate;
use crate::serve::control::{Failure, SeedStatus, TorrentStatus};
use crate::serve::seed::{self, Announcer, Limits, Parts, Seeds, Versions, Wanted};

/// What runs.
pub(super) struct Seeding {
    /// Where leechers connect.
    listen: std::net::SocketAddr,
    versions: Arc<Versions>,
}

impl Seeding {
    /// Wants what a configuration that was read again wants.
    pub(super) fn reload(&self, config: &Config) {
        if let Some(section) = &config.torrent {
            self.versions.set_wanted(wanted(config, section));
        }
    }

    /// Has it looked at once what is to be seeded.
    pub(super) fn look_again(&self) {
        self.versions.look_again();
    }

    pub(super) fn status(&self) -> TorrentStatus {
        let report = self.versions.seeds().report();
        TorrentStatus {
            listen: self.listen.to_string(),
            uploaded: report.iter().map(|seed| seed.uploaded).sum(),
            seeds: report
                .into_iter()
                .map(|seed| SeedStatus {
                    package: seed.name,
                    info_hash: hex::encode(seed.info_hash),
                    uploaded: seed.uploaded,
                    peers: seed.peers as u64,
                })
                .collect(),
        }
    }

    /// Returns what was to be seeded and is not, one sentence each.
    pub(super) fn problems(&self) -> Vec<String> {
        self.versions.seeds().problems()
    }
}

/// Returns what a configuration wants to be seeded, besides what was marked by `publish --to torrent`.
fn wanted(config: &Config, section: &TorrentSection) -> Wanted {
    if !section.seed {
        return Wanted::default();
    }
    let patterns = config.gateway.iter().flat_map(|gateway| &gateway.share);
    Wanted {
        own: true,
        patterns: patterns.map(|share| share.0.clone()).collect(),
    }
}

impl Home {
    /// Seeds until the home stops, where that is configured.
    pub(super) async fn start_seeding(&self, up: Option<Arc<Rate>>) -> Result<(), Failure> {
        let config = self.config.load_full();
        let Some(section) = &config.torrent else {
            return Ok(());
        };
        let failed = |error: std::io::Error| {
            Failure::failed(format!("[torrent] listen {}: {error}", section.listen))
                .hint("choose another address in [torrent] listen")
        };
        let listener = TcpListener::bind(section.listen).await.map_err(failed)?;
        let listen = listener.local_addr().map_err(failed)?;
        let seeds = Seeds::new(Arc::clone(&self.store), Limits::default(), up);
        let announcer = Announcer::new(
            Arc::clone(&seeds),
            Arc::clone(&self.serving.client),
            listen,
            section.announce_port.unwrap_or(listen.port()),
            self.stop.clone(),
        )
        .with_dht(self.dht.clone());
        let parts = Parts {
            store: Arc::clone(&self.store),
            listing: Arc::clone(&self.listing),
            installer: Arc::clone(&self.installer),
            state: Arc::clone(&self.state),
        };
        let versions = Versions::new(
            parts,
            Arc::clone(&seeds),
            announcer,
            wanted(&config, section),
        );
        self.tasks
            .spawn(seed::serve(listener, seeds, self.stop.clone()));
        self.tasks
            .spawn(Arc::clone(&versions).run(self.stop.clone()));
        self.serving
            .seeding
            .store(Some(Arc::new(Seeding { listen, versions })));
        Ok(())
    }
}
