//! Accepts connections, as many as may be.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Seeds, peer};

/// How long to wait when the system has no descriptor for one more connection.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Who is connected, by address.
#[derive(Default)]
struct Crowd {
    connections: usize,
    of: HashMap<IpAddr, usize>,
}

/// A place in the crowd.
struct Place {
    crowd: Arc<Mutex<Crowd>>,
    address: IpAddr,
}

impl Place {
    fn take(crowd: &Arc<Mutex<Crowd>>, address: IpAddr, seeds: &Seeds) -> Option<Place> {
        let mut inner = crowd.lock();
        let of_address = inner.of.get(&address).copied().unwrap_or(0);
        if inner.connections >= seeds.limits.connections
            || of_address >= seeds.limits.of_one_address
        {
            return None;
        }
        inner.connections += 1;
        inner.of.insert(address, of_address + 1);
        Some(Place {
            crowd: Arc::clone(crowd),
            address,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.crowd.lock();
        inner.connections -= 1;
        if let Some(of_address) = inner.of.get_mut(&self.address) {
            *of_address -= 1;
            if *of_address == 0 {
                inner.of.remove(&self.address);
            }
        }
    }
}

/// Seeds what is in the table to whoever connects, until `shutdown`.
pub async fn serve(listener: TcpListener, seeds: Arc<Seeds>, shutdown: CancellationToken) {
    let crowd = Arc::default();
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "accept");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let Some(place) = Place::take(&crowd, address.ip().to_canonical(), &seeds) else {
            continue;
        };
        let (seeds, shutdown) = (Arc::clone(&seeds), shutdown.clone());
        connections.spawn(async move {
            let _place = place;
            let ended = tokio::select! {
                ended = peer::serve(&seeds, stream) => ended,
                () = shutdown.cancelled() => Ok(()),
            };
            if let Err(error) = ended {
                tracing::debug!(%address, %error, "a leecher's connection ended");
            }
        });
    }
    connections.close();
    connections.wait().await;
}
