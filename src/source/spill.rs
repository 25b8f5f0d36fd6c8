//! What comes along with an answer: signs of life, and bytes of other blocks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::block::BlockRef;

/// Unverified bytes of a block that nobody asked this source for.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Which block they are said to be.
    pub block: BlockRef,
    /// The bytes, unverified.
    pub bytes: Bytes,
}

/// The way by which a source tells more than its one answer. Clones tell the same listener.
#[derive(Clone, Debug)]
pub struct Spill {
    signs: Arc<Signs>,
    offers: Option<mpsc::Sender<Offer>>,
}

#[derive(Debug)]
struct Signs {
    began: Instant,
    bytes: AtomicU64,
    /// When the last bytes came, in milliseconds after `began`.
    last_ms: AtomicU64,
}

impl Spill {
    /// A spill that nobody listens to, for asking a source directly.
    pub fn ignored() -> Self {
        Spill::make(None)
    }

    /// A spill whose offers go to `offers`; a full queue drops them.
    pub fn new(offers: mpsc::Sender<Offer>) -> Self {
        Spill::make(Some(offers))
    }

    fn make(offers: Option<mpsc::Sender<Offer>>) -> Self {
        Spill {
            signs: Arc::new(Signs {
                began: Instant::now(),
                bytes: AtomicU64::new(0),
                last_ms: AtomicU64::new(0),
            }),
            offers,
        }
    }

    /// Says that `bytes` more have arrived, which keeps the deadline away.
    pub fn progressed(&self, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let ms = u64::try_from(self.signs.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.signs.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.signs.last_ms.fetch_max(ms, Ordering::Relaxed);
    }

    /// Returns how many bytes have arrived so far.
    pub fn arrived(&self) -> u64 {
        self.signs.bytes.load(Ordering::Relaxed)
    }

    /// Returns when the last bytes arrived, or when the spill was made if none has.
    pub fn last(&self) -> Instant {
        self.signs.began + Duration::from_millis(self.signs.last_ms.load(Ordering::Relaxed))
    }

    /// Hands over bytes of another block. They are verified before anybody sees them, and may be dropped.
    pub fn offer(&self, block: BlockRef, bytes: Bytes) {
        if let Some(offers) = &self.offers {
            // A full queue means that there is enough to do already.
            let _ = offers.try_send(Offer { block, bytes });
        }
    }
}
