//! How fast a peer answers, and so how much it is asked for at once.
//!
//! The window is the bandwidth-delay product with some room: what the peer delivers in the time of an answer, and 50 ms
//! more. A window that is too small shows as a rate that grows with it, so that it opens by itself; a rate that was low
//! because little was asked for says nothing and closes nothing.

use std::time::Duration;

use tokio::time::Instant;

use super::wire::REQUEST_BYTES;

/// Requests at a peer at least, and at most.
pub(super) const WINDOW_MIN: usize = 4;
pub(super) const WINDOW_MAX: usize = 512;

/// Requests at a peer whose rate is not known yet: one block.
const WINDOW_FIRST: usize = 64;

/// Requests that a client takes when it does not say (BEP 10 leaves it open; libtorrent's assumption).
const QUEUE: usize = 250;

/// The room in the window.
const SLACK: Duration = Duration::from_millis(50);

/// A rate is measured over at least this time and so many bytes.
const MEASURE: Duration = Duration::from_millis(30);
const MEASURE_BYTES: u64 = 128 << 10;

/// The least time of an answer is forgotten by this factor with each answer; far more slowly while the window is full,
/// when answers mostly wait for one another: a window made from that time would only make it longer.
const FADES: f64 = 1.000_5;
const FADES_WHEN_FULL: f64 = 1.000_01;

/// What is assumed of an unknown peer: it is worth a try.
const RATE: f64 = 8e6;
const ANSWER: f64 = 0.02;

/// What is known of a peer's speed.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    /// Least time of an answer, in seconds.
    answer: Option<f64>,
    /// Bytes per second while it had enough to do.
    rate: Option<f64>,
    queue: usize,
    since: Option<Instant>,
    bytes: u64,
    /// Whether the window was full at some time since then.
    full: bool,
}

impl Pace {
    pub(super) fn new() -> Self {
        Pace {
            answer: None,
            rate: None,
            queue: QUEUE,
            since: None,
            bytes: 0,
            full: false,
        }
    }

    /// The peer says how many requests may wait at it.
    pub(super) fn set_queue(&mut self, requests: u32) {
        let requests = usize::try_from(requests).unwrap_or(WINDOW_MAX);
        self.queue = requests.clamp(1, WINDOW_MAX);
    }

    /// Notes that requests were sent. `idle`: there were none before.
    pub(super) fn asked(&mut self, idle: bool, now: Instant) {
        if idle {
            (self.since, self.bytes, self.full) = (Some(now), 0, false);
        }
    }

    /// Notes that there was more to ask for than the window takes.
    pub(super) fn filled(&mut self) {
        self.full = true;
    }

    /// Notes an answer of `bytes` that took `took`.
    pub(super) fn answered(&mut self, bytes: u32, took: Duration, now: Instant) {
        let took = took.as_secs_f64();
        let fades = if self.full { FADES_WHEN_FULL } else { FADES };
        self.answer = Some(self.answer.map_or(took, |least| (least * fades).min(took)));
        self.bytes += u64::from(bytes);
        let Some(since) = self.since else { return };
        let time = now.saturating_duration_since(since);
        if time < MEASURE || self.bytes < MEASURE_BYTES {
            return;
        }
        let rate = self.bytes as f64 / time.as_secs_f64();
        self.rate = Some(match self.rate {
            None => rate,
            Some(before) if rate > before => before + (rate - before) / 2.0,
            Some(before) if self.full => before + (rate - before) / 4.0,
            Some(before) => before,
        });
        (self.since, self.bytes, self.full) = (Some(now), 0, false);
    }

    /// Returns how many requests may be at the peer at once.
    pub(super) fn window(&self) -> usize {
        let (Some(rate), Some(answer)) = (self.rate, self.answer) else {
            return WINDOW_FIRST.min(self.queue);
        };
        let bytes = rate * (answer + SLACK.as_secs_f64()) * 1.25;
        let requests = (bytes / f64::from(REQUEST_BYTES)).min(WINDOW_MAX as f64);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "neither negative nor above WINDOW_MAX"
        )]
        let requests = requests as usize;
        (requests + WINDOW_MIN).min(self.queue).min(WINDOW_MAX)
    }

    /// Returns the time of an answer, as far as it is known.
    pub(super) fn usual(&self) -> Option<Duration> {
        self.answer.map(Duration::from_secs_f64)
    }

    /// Returns when `bytes`, asked for now or before, will have come.
    pub(super) fn estimate(&self, bytes: u64) -> Duration {
        let rate = self.rate.unwrap_or(RATE).max(1.0);
        let seconds = self.answer.unwrap_or(ANSWER) + bytes as f64 / rate;
        Duration::from_secs_f64(seconds.min(3600.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line of `rate` bytes per second and `delay` there and back, asked for as much as the window takes.
    fn settle(rate: f64, delay: f64) -> usize {
        let mut pace = Pace::new();
        let start = Instant::now();
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let each = f64::from(REQUEST_BYTES) / rate;
        let mut sent: std::collections::VecDeque<f64> = [].into();
        let (mut now, mut free) = (0.0_f64, 0.0_f64);
        pace.asked(true, at(0.0));
        for _ in 0..20_000 {
            while sent.len() < pace.window() {
                sent.push_back(now);
            }
            pace.filled();
            let asked = sent.pop_front().unwrap();
            free = free.max(asked + delay / 2.0) + each;
            now = now.max(free + delay / 2.0);
            pace.answered(REQUEST_BYTES, Duration::from_secs_f64(now - asked), at(now));
        }
        pace.window()
    }

    #[test]
    fn the_window_is_the_bandwidth_delay_product_with_room() {
        // 10 MB/s with 100 ms: 1 MB are under way, 61 requests; with the room 114, and the surplus 118.
        let window = settle(10e6, 0.1);
        assert!((80..200).contains(&window), "{window}");
        // A slow line near by needs few, a fast one far away all.
        assert!(settle(200e3, 0.001) < 8);
        assert_eq!(settle(1e9, 0.1), QUEUE);
    }

    #[test]
    fn little_asked_for_closes_nothing() {
        let mut pace = Pace::new();
        let start = Instant::now();
        let ms = Duration::from_millis;
        pace.asked(true, start);
        pace.filled();
        pace.answered(1 << 20, ms(10), start + ms(40));
        let window = pace.window();
        for second in 1..100 {
            let sent = start + ms(second * 1000);
            pace.asked(true, sent);
            pace.answered(4096, ms(10), sent + ms(10));
        }
        assert_eq!(pace.window(), window);
    }

    #[test]
    fn what_a_client_takes_at_most_is_respected() {
        let mut pace = Pace::new();
        pace.set_queue(10);
        assert_eq!(pace.window(), 10);
        pace.set_queue(0);
        assert_eq!(pace.window(), 1);
        pace.set_queue(u32::MAX);
        assert_eq!(pace.window(), WINDOW_FIRST);
    }
}
