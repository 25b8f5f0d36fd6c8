//! How long a web server wants to be left alone.

use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER};

/// The longest that a server may ask to be left alone.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// How long it is left alone when it is overloaded and does not say.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);

/// Reads `Retry-After`, in seconds or as a date.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Duration {
    let Some(text) = headers.get(RETRY_AFTER).and_then(|text| text.to_str().ok()) else {
        return RETRY_AFTER_DEFAULT;
    };
    let wait = match text.trim().parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => http_date(text.trim())
            .and_then(|date| date.duration_since(now).ok())
            .unwrap_or(RETRY_AFTER_DEFAULT),
    };
    wait.min(RETRY_AFTER_MAX)
}

/// Reads an IMF-fixdate (RFC 9110, 5.6.7): `Sun, 06 Nov 1994 08:49:37 GMT`. The obsolete forms are not read.
fn http_date(text: &str) -> Option<SystemTime> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let mut words = text.split_once(", ")?.1.split(' ');
    let day: u64 = words.next()?.parse().ok()?;
    let name = words.next()?;
    let month = MONTHS.iter().position(|month| *month == name)? as u64 + 1;
    let year: u64 = words.next()?.parse().ok()?;
    let mut clock = words.next()?.splitn(3, ':').map(|part| part.parse::<u64>());
    let (hour, minute, second) = (
        clock.next()?.ok()?,
        clock.next()?.ok()?,
        clock.next()?.ok()?,
    );
    let sane = (1970..=9999).contains(&year)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60
        && words.next() == Some("GMT");
    // Days since 1970, by the civil-calendar arithmetic with years that begin in March.
    let (y, m) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1;
    let seconds = (days.checked_sub(719_468)?) * 86_400 + hour * 3600 + minute * 60 + second;
    sane.then(|| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_in_both_forms_and_bounded() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let wait = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers, now)
        };
        assert_eq!(wait("7"), Duration::from_secs(7));
        assert_eq!(wait("0"), Duration::ZERO);
        assert_eq!(wait("999999999999"), RETRY_AFTER_MAX);
        assert_eq!(
            wait("Sun, 06 Nov 1994 08:49:47 GMT"),
            Duration::from_secs(10)
        );
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:27 GMT"), RETRY_AFTER_DEFAULT);
        assert_eq!(wait("soon"), RETRY_AFTER_DEFAULT);
        assert_eq!(wait("Sun, 99 Nov 1994 08:49:47 GMT"), RETRY_AFTER_DEFAULT);
        assert_eq!(retry_after(&HeaderMap::new(), now), RETRY_AFTER_DEFAULT);
        assert_eq!(
            http_date("Thu, 29 Feb 2024 00:00:00 GMT"),
            Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_709_164_800))
        );
    }
}
