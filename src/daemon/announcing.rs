//! Announces what was signed and could not be announced: at start, and again until the registry takes it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::Home;
use crate::publish::{PublishError, Resumed};
use crate::registry::Registry;

/// How long after a try that failed the next one comes, at first and at most.
const AGAIN_MIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(120);

/// What the log says of each package already.
type Said = BTreeMap<String, String>;

impl Home {
    /// Carries on what an earlier process had signed and could not announce, and from then on whatever is left like
    /// that, until the home stops.
    pub(super) async fn start_announcing(self: &Arc<Self>) {
        let home = Arc::clone(self);
        let open = move |place: &str| home.registry_for(Some(place)).ok();
        let mut said = Said::new();
        let resumed = self.publisher.resume(&open, self.updater.policy()).await;
        let left = say(&resumed, &mut said);
        let home = Arc::clone(self);
        self.tasks.spawn(async move {
            // Cut off anywhere: each step leaves alone what is done already.
            tokio::select! {
                () = home.stop.cancelled() => {}
                () = home.announce_left(&open, left, said) => {}
            }
        });
    }

    async fn announce_left(
        self: &Arc<Self>,
        open: &(dyn Fn(&str) -> Option<Arc<dyn Registry>> + Sync),
        mut left: bool,
        mut said: Said,
    ) {
        loop {
            if !left {
                said.clear();
                self.publisher.left().await;
            }
            let mut wait = AGAIN_MIN;
            loop {
                tokio::time::sleep(wait).await;
                let trust = self.updater.policy();
                let resumed = self.publisher.announce_left(open, trust).await;
                left = say(&resumed, &mut said);
                if resumed.iter().any(|resumed| resumed.result.is_ok()) {
                    self.show_publication().await;
                }
                if !left {
                    break;
                }
                wait = (wait * 2).min(AGAIN_MAX);
            }
        }
    }
}

/// Says how it went, each thing once; returns whether something may be left.
fn say(resumed: &[Resumed], said: &mut Said) -> bool {
    let mut left = false;
    for Resumed { package, result } in resumed {
        let package = package
            .as_ref()
            .map_or_else(|| "a publication".to_owned(), ToString::to_string);
        match result {
            Ok(()) => {
                said.remove(&package);
                tracing::info!(
                    package,
                    "what could not be announced before is announced now"
                );
            }
            Err(error) => {
                left = true;
                let text = error.to_string();
                let waits = matches!(error, PublishError::Busy(_));
                if !waits && said.get(&package) != Some(&text) {
                    tracing::warn!(package, error = text, "what is signed is not announced");
                    said.insert(package, text);
                }
            }
        }
    }
    left
}
