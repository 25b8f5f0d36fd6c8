//! A cap on bytes per second.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// A token bucket that may go into debt: bytes that have arrived are paid for afterwards, by waiting.
#[derive(Debug)]
pub struct Rate {
    bytes_per_second: u64,
    /// When the bucket has no debt any more.
    clear: Mutex<Option<Instant>>,
}

impl Rate {
    /// A cap of so many bytes per second; 0 is no cap.
    pub fn new(bytes_per_second: u64) -> Self {
        Rate {
            bytes_per_second,
            clear: Mutex::new(None),
        }
    }

    /// Returns the cap.
    pub fn bytes_per_second(&self) -> u64 {
        self.bytes_per_second
    }

    /// Pays for `bytes`, waiting while there is more than a tenth of a second of debt.
    pub async fn pay(&self, bytes: u64) {
        if self.bytes_per_second == 0 {
            return;
        }
        let now = Instant::now();
        let clear = {
            let mut clear = self.clear.lock();
            let from = clear.map_or(now, |clear| clear.max(now));
            let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
            let until = from + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX / 4));
            *clear = Some(until);
            until
        };
        let allowed = now + Duration::from_millis(100);
        if clear > allowed {
            tokio::time::sleep_until(clear - Duration::from_millis(100)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_take_their_time() {
        let rate = Rate::new(1 << 20);
        let start = Instant::now();
        for _ in 0..40 {
            rate.pay(256 << 10).await;
        }
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(9_700), "{took:?}");
        assert!(took <= Duration::from_millis(10_100), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn no_cap_never_waits() {
        let rate = Rate::new(0);
        let start = Instant::now();
        rate.pay(u64::MAX).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
