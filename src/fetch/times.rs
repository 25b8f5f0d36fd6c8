//! How long a source usually takes.

use std::time::Duration;

/// Assumed of a source that has not answered yet.
pub(super) const UNKNOWN: Duration = Duration::from_millis(300);

/// Nobody is called late before this: schedulers alone take that long.
const LATE_MIN: Duration = Duration::from_millis(30);

/// And whoever takes longer than this is late, however slow it used to be.
const LATE_MAX: Duration = Duration::from_secs(10);

/// Sizes that are timed apart: up to 16 KiB the time is mostly latency, above 256 KiB mostly throughput.
const CLASS_BYTES: [u32; 2] = [16 << 10, 256 << 10];

/// A moving average and the mean deviation from it, with the weights of TCP's retransmission timer (RFC 6298).
#[derive(Clone, Copy, Debug)]
struct Usual {
    mean: f64,
    deviation: f64,
    /// The lowest mean so far, forgotten slowly.
    best: f64,
}

/// The lowest mean grows by this factor with each answer, so that it is forgotten after some thousands.
const BEST_FADES: f64 = 1.0005;

/// The usual times of a source, in three classes of size.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Times {
    classes: [Option<Usual>; 3],
}

fn class(len: u32) -> usize {
    CLASS_BYTES.iter().filter(|bound| len > **bound).count()
}

impl Times {
    pub(super) fn sample(&mut self, len: u32, took: Duration) {
        let took = took.as_secs_f64();
        match &mut self.classes[class(len)] {
            Some(usual) => {
                usual.deviation += ((took - usual.mean).abs() - usual.deviation) / 4.0;
                usual.mean += (took - usual.mean) / 8.0;
                usual.best = (usual.best * BEST_FADES).min(usual.mean);
            }
            slot => {
                *slot = Some(Usual {
                    mean: took,
                    deviation: took / 2.0,
                    best: took,
                });
            }
        }
    }

    /// Notes that an answer took longer than `took`; says nothing when it usually does. The deviation stays: a source that
    /// hangs must not be waited for longer and longer.
    pub(super) fn at_least(&mut self, len: u32, took: Duration) {
        match &mut self.classes[class(len)] {
            Some(usual) => usual.mean += (took.as_secs_f64() - usual.mean).max(0.0) / 8.0,
            None => self.sample(len, took),
        }
    }

    /// The usual time, in the class of `len` or the nearest that is known.
    pub(super) fn mean(&self, len: u32) -> Option<Duration> {
        self.usual(len)
            .map(|(usual, _)| Duration::from_secs_f64(usual.mean))
    }

    /// Whether answers have become half as slow again as they were at best: more at once would only wait longer.
    pub(super) fn crowded(&self, len: u32) -> bool {
        self.classes[class(len)].is_none_or(|usual| usual.mean > usual.best * 1.5)
    }

    /// After which time an answer is late.
    pub(super) fn late(&self, len: u32) -> Duration {
        match self.usual(len) {
            Some((usual, exact)) => {
                let late = Duration::from_secs_f64(usual.mean + 4.0 * usual.deviation);
                let least = if exact { LATE_MIN } else { UNKNOWN };
                late.clamp(least, LATE_MAX)
            }
            None => UNKNOWN,
        }
    }

    /// The class's own or the nearest known, and whether it says enough: a longer class's time does for a shorter one.
    fn usual(&self, len: u32) -> Option<(Usual, bool)> {
        let class = class(len);
        let longer = self.classes[class..].iter().flatten().next();
        let shorter = || self.classes[..class].iter().rev().flatten().next();
        match longer {
            Some(usual) => Some((*usual, true)),
            None => shorter().map(|usual| (*usual, false)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: u32 = 4096;
    const LARGE: u32 = 1 << 20;

    #[test]
    fn late_is_learnt_and_bounded() {
        let mut times = Times::default();
        assert_eq!(times.late(SMALL), UNKNOWN);
        for _ in 0..50 {
            times.sample(SMALL, Duration::from_millis(1));
        }
        assert_eq!(times.late(SMALL), LATE_MIN);
        assert_eq!(
            times.late(LARGE),
            UNKNOWN,
            "small answers say little of large ones"
        );
        for _ in 0..50 {
            times.sample(LARGE, Duration::from_millis(100));
        }
        let late = times.late(LARGE);
        assert!(
            late >= Duration::from_millis(100) && late < Duration::from_millis(110),
            "{late:?}"
        );
        assert_eq!(times.late(SMALL), LATE_MIN);
        times.sample(LARGE, Duration::from_secs(900));
        assert_eq!(times.late(LARGE), LATE_MAX);
    }

    #[test]
    fn a_lower_bound_only_raises() {
        let mut times = Times::default();
        times.sample(LARGE, Duration::from_millis(100));
        times.at_least(LARGE, Duration::from_millis(10));
        assert_eq!(times.mean(LARGE), Some(Duration::from_millis(100)));
        times.at_least(LARGE, Duration::from_millis(900));
        assert_eq!(times.mean(LARGE), Some(Duration::from_millis(200)));
    }
}
