//! A trustless HTTP gateway, also another manifs daemon: `GET /ipfs/{cid}?format=raw`.

use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use reqwest::StatusCode;

use super::retry::retry_after;
use super::{BlockSource, SourceError, SourceKind, Spill, Want};
use crate::net::{Answer, Client, Get, NetError};
use crate::unixfs::Cid;

/// What a gateway is asked for; both this and `format=` are sent, since some servers read only one of them.
const RAW: &str = "application/vnd.ipld.raw";

/// Wants in flight at first. Enough to hide a short round trip; `fetch` moves it.
const PARALLEL: usize = 16;

/// A gateway.
#[derive(Debug)]
pub struct Gateway {
    name: String,
    base: String,
    client: Client,
    /// Asked for every package; otherwise for those whose release index names it.
    for_all: bool,
}

impl Gateway {
    /// A gateway at `base` for all packages, as the user names it, for instance `http://127.0.0.1:8420`; a path in it is
    /// kept.
    pub fn new(base: &str, client: Client) -> Self {
        let name = base.trim_end_matches('/').to_owned();
        Gateway {
            base: format!("{name}/ipfs/"),
            name,
            client,
            for_all: true,
        }
    }

    /// A gateway at `base`, asked only for packages whose release index names it.
    pub fn hinted(base: &str, client: Client) -> Self {
        Gateway {
            for_all: false,
            ..Gateway::new(base, client)
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

    fn serves(&self, want: &Want) -> bool {
        let named = |gateway: &String| gateway.trim_end_matches('/') == self.name;
        let hints = want.place.as_ref().map(|place| &place.gateways);
        self.for_all || hints.is_some_and(|gateways| gateways.iter().any(named))
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use reqwest::header::HeaderMap;

    use super::*;
    use crate::block::{BlockRef, Digest, FileRef};
    use crate::source::TreePlace;

    fn answer(status: u16, body: &'static str) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::new(),
            body: Bytes::from_static(body.as_bytes()),
            whole: true,
        }
    }

    #[test]
    fn a_hinted_gateway_is_asked_for_what_names_it_only() {
        let client = Client::new(Default::default());
        let hinted = Gateway::hinted("https://gateway.example/", client.clone());
        let digest = Digest::of(b"x");
        let file = FileRef {
            id: digest,
            size: 1,
        };
        let mut want = Want::new(BlockRef {
            file,
            index: 0,
            digest,
        });
        assert!(Gateway::new("https://gateway.example", client).serves(&want));
        assert!(!hinted.serves(&want));
        let mut place = TreePlace {
            tree: "demo-1.0.0".into(),
            path: b"x".as_slice().into(),
            offset: 0,
            mirrors: ["https://gateway.example".to_owned()].into(),
            gateways: Arc::default(),
        };
        want.place = Some(place.clone());
        assert!(!hinted.serves(&want), "a mirror is no gateway");
        place.gateways = ["https://gateway.example".to_owned()].into();
        want.place = Some(place);
        assert!(hinted.serves(&want));
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
}
