//! Times as envelopes write them: RFC 3339, UTC with `Z`, whole seconds.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Seconds of a day; the time scale has no leap seconds.
const DAY_SECONDS: i64 = 86_400;

/// The first and the last second that four digits of a year can say.
const SECONDS_MIN: i64 = -62_167_219_200;
const SECONDS_MAX: i64 = 253_402_300_799;

/// A second between the years 0000 and 9999, written `2026-01-02T03:04:05Z`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// Not a time in that form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a time is written like 2026-01-02T03:04:05Z")]
pub struct TimestampSyntax;

impl Timestamp {
    /// The beginning of 1970.
    pub const EPOCH: Timestamp = Timestamp(0);

    /// Returns the time now.
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// Takes seconds since 1970; what lies outside the years 0000 to 9999 becomes the nearest of them.
    pub fn from_unix_seconds(seconds: i64) -> Self {
        Timestamp(seconds.clamp(SECONDS_MIN, SECONDS_MAX))
    }

    /// Returns the seconds since 1970.
    pub fn unix_seconds(self) -> i64 {
        self.0
    }

    /// Returns how long ago `earlier` was; zero when it is later than `self`.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_secs(u64::try_from(self.0 - earlier.0).unwrap_or(0))
    }

    /// Returns the time `duration` later, at most the end of the year 9999.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
        Timestamp::from_unix_seconds(self.0.saturating_add(seconds))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let seconds = match time.duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            Err(before) => {
                i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |seconds| -seconds)
            }
        };
        Timestamp::from_unix_seconds(seconds)
    }
}

impl From<Timestamp> for SystemTime {
    fn from(time: Timestamp) -> Self {
        let distance = Duration::from_secs(time.0.unsigned_abs());
        if time.0 < 0 {
            UNIX_EPOCH - distance
        } else {
            UNIX_EPOCH + distance
        }
    }
}

/// Days since 1970-01-01 of a date of the proleptic Gregorian calendar. The year is counted from March, so that
/// the leap day is its last; 400 years are 146,097 days, and 0000-03-01 lies 719,468 days before 1970.
fn days_from_date(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The inverse of [`days_from_date`].
fn date_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = date_from_days(self.0.div_euclid(DAY_SECONDS));
        let second = self.0.rem_euclid(DAY_SECONDS);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"
        )
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Timestamp {
    type Err = TimestampSyntax;

    fn from_str(text: &str) -> Result<Self, TimestampSyntax> {
        const PATTERN: &[u8] = b"dddd-dd-ddTdd:dd:ddZ";
        let bytes = text.as_bytes();
        let fits = bytes.len() == PATTERN.len()
            && bytes.iter().zip(PATTERN).all(|(&byte, &want)| match want {
                b'd' => byte.is_ascii_digit(),
                _ => byte == want,
            });
        if !fits {
            return Err(TimestampSyntax);
        }
        let number = |from: usize, to: usize| {
            bytes[from..to]
                .iter()
                .fold(0, |sum, &digit| sum * 10 + i64::from(digit - b'0'))
        };
        let days = days_from_date(number(0, 4), number(5, 7), number(8, 10));
        let (hour, minute, second) = (number(11, 13), number(14, 16), number(17, 19));
        let time = Timestamp(days * DAY_SECONDS + hour * 3600 + minute * 60 + second);
        // Refuses what is no date or time (February 30, month 13, 24:00:00, a leap second): it says itself otherwise.
        if time.to_string() != text {
            return Err(TimestampSyntax);
        }
        Ok(time)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Not a length of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a length of time is a number and a unit: 90s, 15m, 12h, 30d")]
pub struct DurationSyntax;

/// Reads a length of time: a whole number and one of the units s, m, h, d.
///
/// # Errors
/// [`DurationSyntax`] for anything else.
pub fn parse_duration(text: &str) -> Result<Duration, DurationSyntax> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit: u64 = match &text[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(DurationSyntax),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(DurationSyntax);
    }
    let number: u64 = digits.parse().map_err(|_| DurationSyntax)?;
    let seconds = number.checked_mul(unit).ok_or(DurationSyntax)?;
    Ok(Duration::from_secs(seconds))
}

/// Writes a length of time so that [`parse_duration`] reads it, in the largest unit that fits without a rest.
pub fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    for (unit, letter) in [(86_400, 'd'), (3600, 'h'), (60, 'm')] {
        if seconds > 0 && seconds.is_multiple_of(unit) {
            return format!("{}{letter}", seconds / unit);
        }
    }
    format!("{seconds}s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_times() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2026-01-02T03:04:05Z", 1_767_323_045),
            ("2000-02-29T23:59:59Z", 951_868_799),
            ("1969-12-31T23:59:59Z", -1),
            ("0000-01-01T00:00:00Z", SECONDS_MIN),
            ("9999-12-31T23:59:59Z", SECONDS_MAX),
        ] {
            assert_eq!(text.parse::<Timestamp>().unwrap().unix_seconds(), seconds);
            assert_eq!(Timestamp::from_unix_seconds(seconds).to_string(), text);
        }
        for seconds in (SECONDS_MIN..SECONDS_MAX).step_by(40_000_001) {
            let time = Timestamp::from_unix_seconds(seconds);
            assert_eq!(time.to_string().parse(), Ok(time));
            assert_eq!(Timestamp::from(SystemTime::from(time)), time);
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "2026-02-29T00:00:00Z",
            "1900-02-29T00:00:00Z",
            "2026-00-01T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-01-00T00:00:00Z",
            "2026-01-32T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:60:00Z",
            "2016-12-31T23:59:60Z",
            "2026-01-01T00:00:00z",
            "2026-01-01t00:00:00Z",
            "2026-01-01T00:00:00+00:00",
            "02026-01-01T00:00:00Z",
            "+026-01-01T00:00:00Z",
            "0000-00-00T00:00:00Z",
        ] {
            assert_eq!(text.parse::<Timestamp>(), Err(TimestampSyntax), "{text}");
        }
    }

    #[test]
    fn lengths_of_time() {
        for (text, seconds) in [
            ("0s", 0),
            ("90s", 90),
            ("15m", 900),
            ("12h", 43_200),
            ("30d", 2_592_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)));
            let duration = Duration::from_secs(seconds);
            assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }
        for text in [
            "",
            "s",
            "1",
            "-1s",
            "1.5h",
            "1w",
            "1 h",
            "h1",
            "999999999999999999d",
            "٣s",
        ] {
            assert_eq!(parse_duration(text), Err(DurationSyntax), "{text}");
        }
    }
}
