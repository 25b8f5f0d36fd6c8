//! What comes along with an answer: signs of life, and bytes of other blocks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::block::BlockRef;

/// Unverified bytes of a block that nobody asked this source for.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Which block they are said to be.
    pub block: BlockRef,
    /// The bytes, unverified.
    pub bytes: Bytes,
}

/// The way by which a source tells more than its one answer.
#[derive(Clone, Debug, Default)]
pub struct Spill {
    arrived: Arc<AtomicU64>,
    offers: Option<mpsc::Sender<Offer>>,
}

impl Spill {
    /// A spill that nobody listens to, for asking a source directly.
    pub fn ignored() -> Self {
        Spill::default()
    }

    /// A spill whose offers go to `offers`; a full queue drops them.
    pub fn new(offers: mpsc::Sender<Offer>) -> Self {
        Spill {
            arrived: Arc::default(),
            offers: Some(offers),
        }
    }

    /// Says that `bytes` more have arrived, which keeps the attempt's deadline away.
    pub fn progressed(&self, bytes: u64) {
        self.arrived.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Returns how many bytes have arrived so far.
    pub fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }

    /// Hands over bytes of another block. They are verified before anybody sees them, and may be dropped.
    pub fn offer(&self, block: BlockRef, bytes: Bytes) {
        if let Some(offers) = &self.offers {
            // A full queue means that there is enough to do already.
            let _ = offers.try_send(Offer { block, bytes });
        }
    }
}
