//! A trustless HTTP gateway, also another manifs daemon: `GET /ipfs/{cid}?format=raw`.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};

use super::{BlockSource, SourceError, SourceKind, Spill, Want};
use crate::net::{Answer, Client, Get, NetError};
use crate::unixfs::Cid;

/// What a gateway is asked for; both this and `format=` are sent, since some servers read only one of them.
const RAW: &str = "application/vnd.ipld.raw";

/// Wants in flight at first. Enough to hide a short round trip; `fetch` moves it.
const PARALLEL: usize = 16;

/// The longest that a gateway may ask to be left alone.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// How long it is left alone when it is overloaded and does not say.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);

/// A gateway.
#[derive(Debug)]
pub struct Gateway {
    name: String,
    base: String,
    client: Client,
}

impl Gateway {
    /// A gateway at `base`, for instance `http://127.0.0.1:8420`; a path in it is kept.
    pub fn new(base: &str, client: Client) -> Self {
        let name = base.trim_end_matches('/').to_owned();
        Gateway {
            base: format!("{name}/ipfs/"),
            name,
            client,
        }
    }
}

#[async_trait]
impl BlockSource for Gateway {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> SourceKind {
        SourceKind::Gateway
    }

    fn parallel(&self) -> usize {
        PARALLEL
    }

    async fn fetch(&self, want: &Want, spill: &Spill) -> Result<Bytes, SourceError> {
        let url = format!("{}{}?format=raw", self.base, Cid::raw(want.block.digest));
        let get = Get {
            accept: Some(RAW),
            // One byte more is enough to know that the answer is wrong.
            ..Get::new(u64::from(want.block.len()) + 1)
        };
        let answer = self
            .client
            .get_watched(&url, &get, &|bytes| spill.progressed(bytes))
            .await
            .map_err(|error| broken(&error))?;
        judge(answer)
    }
}

/// Turns a failed request into what to do next.
fn broken(error: &NetError) -> SourceError {
    match error {
        NetError::Refused(_) | NetError::Url(_) => SourceError::refused(error.to_string()),
        NetError::Connect(_) | NetError::Slow(_) | NetError::Broken(_) | NetError::Redirects => {
            SourceError::unavailable(error.to_string())
        }
    }
}

/// Turns a status into what to do next.
fn judge(answer: Answer) -> Result<Bytes, SourceError> {
    let status = answer.status;
    let said = || format!("status {}", status.as_u16());
    match status {
        StatusCode::OK => Ok(answer.body),
        // It does not have it, or does not give it: 412 answers `only-if-cached`. A redirect would lead to a host that
        // nobody configured.
        StatusCode::NOT_FOUND
        | StatusCode::GONE
        | StatusCode::UNAVAILABLE_FOR_LEGAL_REASONS
        | StatusCode::FORBIDDEN
        | StatusCode::PRECONDITION_FAILED => Err(SourceError::not_found(said())),
        _ if status.is_redirection() => Err(SourceError::not_found(said())),
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::BAD_GATEWAY
        | StatusCode::GATEWAY_TIMEOUT => Err(SourceError::Unavailable {
            retry_after: Some(retry_after(&answer.headers, SystemTime::now())),
            reason: said(),
        }),
        // Old Kubo says with a 500 that it has not got a block.
        StatusCode::INTERNAL_SERVER_ERROR if could_not_find(&answer.body) => {
            Err(SourceError::not_found("status 500, could not find"))
        }
        _ if status.is_server_error() => Err(SourceError::unavailable(said())),
        // It cannot give raw blocks, or takes us for somebody else; it will not change its mind soon.
        _ => Err(SourceError::refused(said())),
    }
}

fn could_not_find(body: &[u8]) -> bool {
    let text = String::from_utf8_lossy(body);
    text.starts_with("ipld: could not find") || text.starts_with("could not find")
}

/// Reads `Retry-After`, in seconds or as a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Duration {
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

    fn answer(status: u16, body: &'static str) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::new(),
            body: Bytes::from_static(body.as_bytes()),
            whole: true,
        }
    }

    #[test]
    fn each_status_says_what_to_do_next() {
        assert!(judge(answer(200, "x")).is_ok());
        for status in [301, 302, 304, 307, 308, 403, 404, 410, 412, 451] {
            let said = judge(answer(status, ""));
            assert!(
                matches!(said, Err(SourceError::NotFound { .. })),
                "{status}"
            );
        }
        for status in [429, 502, 503, 504] {
            let said = judge(answer(status, ""));
            assert!(
                matches!(
                    said,
                    Err(SourceError::Unavailable {
                        retry_after: Some(_),
                        ..
                    })
                ),
                "{status}"
            );
        }
        for status in [500, 501, 507] {
            let said = judge(answer(status, "oops"));
            assert!(
                matches!(
                    said,
                    Err(SourceError::Unavailable {
                        retry_after: None,
                        ..
                    })
                ),
                "{status}"
            );
        }
        let said = judge(answer(500, "ipld: could not find bafk"));
        assert!(matches!(said, Err(SourceError::NotFound { .. })));
        for status in [204, 206, 400, 401, 405, 406, 421] {
            let said = judge(answer(status, ""));
            assert!(matches!(said, Err(SourceError::Refused { .. })), "{status}");
        }
    }

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
