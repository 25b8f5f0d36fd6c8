//! A plain web server that holds trees: `GET {base}/{tree}/{path}`, a block at a time by `Range`.
//!
//! A mirror knows files, not digests, so it answers wants whose place in a tree is known. It proves nothing and need not
//! know anything of us: whatever it sends is judged by its digest, in `fetch`. A server that ignores ranges is still
//! good for files that may be taken whole; it is found out at its first answer, and large files are then not asked of it
//! for a while.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use reqwest::StatusCode;
use reqwest::header::{ACCEPT_RANGES, CONTENT_LENGTH, HeaderMap};
use tokio::time::Instant;

use super::retry::retry_after;
use super::{BlockSource, SourceError, SourceKind, Spill, TreePlace, Want};
use crate::net::{Answer, Client, ContentRange, Get, NetError};

/// Wants in flight at first; HTTP/1.1 takes a connection for each. `fetch` moves it.
const PARALLEL: usize = 8;

/// Redirects that are followed, each through the address filter.
const REDIRECTS: u8 = 3;

/// The largest file that is taken whole for one block of it: four times the bytes, in the worst case.
const WHOLE_BYTES_MAX: u64 = 4 << 20;

/// How long a server that ignored a range is not asked for one again. A cache in front of it may do it once only.
const NO_RANGES: Duration = Duration::from_secs(60);

/// Checks the URL of a mirror, to which paths are appended.
///
/// # Errors
/// What is wrong with it, in a few words.
pub fn check_base(base: &str) -> Result<(), String> {
    let url = reqwest::Url::parse(base).map_err(|error| error.to_string())?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("expected http:// or https://".to_owned());
    }
    if url.query().or(url.fragment()).is_some() {
        return Err("paths are appended to it, so it cannot have a query or a fragment".to_owned());
    }
    Ok(())
}

/// A mirror.
#[derive(Debug)]
pub struct Http {
    name: String,
    client: Client,
    /// Asked for every package; otherwise for those whose release index names it.
    for_all: bool,
    /// Until when it counts as knowing no ranges.
    no_ranges: Mutex<Option<Instant>>,
}

/// What is asked for to get a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    /// The whole file, of which the block is a part.
    Whole,
    /// The first bytes of what comes.
    First,
    /// The block's range.
    Range,
}

impl Http {
    /// A mirror at `base` for all packages, as the user's configuration names it.
    pub fn new(base: &str, client: Client) -> Self {
        Http {
            name: base.trim_end_matches('/').to_owned(),
            client,
            for_all: true,
            no_ranges: Mutex::new(None),
        }
    }

    /// A mirror at `base`, asked only for packages whose release index names it.
    pub fn hinted(base: &str, client: Client) -> Self {
        Http {
            for_all: false,
            ..Http::new(base, client)
        }
    }

    fn knows_no_ranges(&self) -> bool {
        let mut until = self.no_ranges.lock();
        *until = until.filter(|until| Instant::now() < *until);
        until.is_some()
    }

    fn plan(&self, want: &Want, place: &TreePlace) -> Result<Plan, SourceError> {
        let size = want.block.file.size;
        if size <= u64::from(want.block.len()) {
            return Ok(Plan::Whole);
        }
        if !self.knows_no_ranges() {
            return Ok(Plan::Range);
        }
        match place.offset {
            _ if size <= WHOLE_BYTES_MAX => Ok(Plan::Whole),
            0 => Ok(Plan::First),
            _ => Err(no_ranges()),
        }
    }

    fn judge(
        &self,
        want: &Want,
        place: &TreePlace,
        plan: Plan,
        answer: Answer,
    ) -> Result<Bytes, SourceError> {
        let Answer {
            status,
            headers,
            body,
            ..
        } = answer;
        let said = || format!("status {}", status.as_u16());
        match status {
            StatusCode::OK => self.whole(want, place, plan, &headers, &body),
            StatusCode::PARTIAL_CONTENT if plan == Plan::Range && body.is_empty() => {
                let size = want.block.file.size;
                match ContentRange::of(&headers).and_then(|range| range.whole) {
                    Some(other) if other != size => Err(other_file(other)),
                    _ => {
                        self.note_no_ranges();
                        Err(SourceError::not_found("another range than asked for"))
                    }
                }
            }
            StatusCode::PARTIAL_CONTENT if plan == Plan::Range => Ok(body),
            StatusCode::UNAUTHORIZED
            | StatusCode::PROXY_AUTHENTICATION_REQUIRED
            | StatusCode::MISDIRECTED_REQUEST => Err(SourceError::refused(said())),
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::BAD_GATEWAY
            | StatusCode::GATEWAY_TIMEOUT => Err(SourceError::Unavailable {
                retry_after: Some(retry_after(&headers, SystemTime::now())),
                reason: said(),
            }),
            _ if status.is_server_error() => Err(SourceError::unavailable(said())),
            // It is about this file: object stores say 403 for what they have not got, firewalls 400 for odd names.
            _ => Err(SourceError::not_found(said())),
        }
    }

    /// What came counts as the whole file, or its beginning; it may also be a page for people.
    fn whole(
        &self,
        want: &Want,
        place: &TreePlace,
        plan: Plan,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Result<Bytes, SourceError> {
        let text = |name| headers.get(name).and_then(|text| text.to_str().ok());
        let length = text(CONTENT_LENGTH).and_then(|text| text.trim().parse::<u64>().ok());
        let size = want.block.file.size;
        if let Some(other) = length.filter(|length| *length != size) {
            return Err(other_file(other));
        }
        let ignored = length.is_some() || text(ACCEPT_RANGES) == Some("none");
        if plan == Plan::Range && ignored {
            self.note_no_ranges();
        }
        if size <= WHOLE_BYTES_MAX || place.offset == 0 {
            return Ok(part(want, place, body));
        }
        Err(no_ranges())
    }

    fn note_no_ranges(&self) {
        *self.no_ranges.lock() = Some(Instant::now() + NO_RANGES);
    }
}

#[async_trait]
impl BlockSource for Http {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> SourceKind {
        SourceKind::Http
    }

    fn parallel(&self) -> usize {
        PARALLEL
    }

    fn serves(&self, want: &Want) -> bool {
        want.place.as_ref().is_some_and(|place| {
            let named = |mirror: &String| mirror.trim_end_matches('/') == self.name;
            self.for_all || place.mirrors.iter().any(named)
        })
    }

    async fn fetch(&self, want: &Want, spill: &Spill) -> Result<Bytes, SourceError> {
        let Some(place) = &want.place else {
            return Err(SourceError::not_found("not known by path"));
        };
        let plan = self.plan(want, place)?;
        let (size, len) = (want.block.file.size, u64::from(want.block.len()));
        // One byte more is enough to know that the answer is wrong.
        let whole = if size <= WHOLE_BYTES_MAX { size + 1 } else { 0 };
        let get = Get {
            redirects: REDIRECTS,
            ..match plan {
                Plan::Whole => Get::new(size + 1),
                Plan::First => Get::new(len),
                Plan::Range => Get {
                    range: Some((place.offset, place.offset + len)),
                    whole_limit: if place.offset == 0 {
                        whole.max(len)
                    } else {
                        whole
                    },
                    ..Get::new(len + 1)
                },
            }
        };
        let answer = self
            .client
            .get_watched(&url(&self.name, place), &get, &|bytes| {
                spill.progressed(bytes)
            })
            .await
            .map_err(|error| broken(&error))?;
        self.judge(want, place, plan, answer)
    }
}

/// Cuts a block out of a whole file. What cannot be cut is handed over as it is: it will not verify.
fn part(want: &Want, place: &TreePlace, body: &Bytes) -> Bytes {
    let len = want.block.len() as usize;
    if want.block.file.size <= len as u64 {
        return body.clone();
    }
    let from = usize::try_from(place.offset).map_or(body.len(), |from| from.min(body.len()));
    body.slice(from..body.len().min(from.saturating_add(len)))
}

fn no_ranges() -> SourceError {
    SourceError::not_found("it knows no ranges, and the file is too large to be taken whole")
}

fn other_file(bytes: u64) -> SourceError {
    SourceError::not_found(format!("it has another file there, of {bytes} bytes"))
}

/// Turns a failed request into what to do next.
fn broken(error: &NetError) -> SourceError {
    match error {
        NetError::Refused(_) | NetError::Url(_) => SourceError::refused(error.to_string()),
        NetError::Redirects => SourceError::not_found(error.to_string()),
        NetError::Connect(_) | NetError::Slow(_) | NetError::Broken(_) => {
            SourceError::unavailable(error.to_string())
        }
    }
}

/// Returns where a file lies: each byte of a name that is not unreserved (RFC 3986, 2.3) is percent-encoded.
fn url(base: &str, place: &TreePlace) -> String {
    let mut url = String::with_capacity(base.len() + place.tree.len() + place.path.len() + 16);
    url.push_str(base);
    url.push('/');
    url.push_str(&place.tree);
    url.push('/');
    for byte in &*place.path {
        match byte {
            b'/' | b'-' | b'.' | b'_' | b'~' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => {
                url.push(char::from(*byte));
            }
            // A `String` takes whatever is written.
            _ => drop(write!(url, "%{byte:02X}")),
        }
    }
    url
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::block::{BLOCK_BYTES, BlockRef, Digest, FileRef};

    fn place(path: &[u8], offset: u64) -> TreePlace {
        TreePlace {
            tree: "acme-tools-1.0.0".into(),
            path: path.into(),
            offset,
            mirrors: Arc::default(),
            gateways: Arc::default(),
        }
    }

    fn want(size: u64, index: u64) -> Want {
        let digest = Digest::EMPTY;
        Want {
            place: Some(place(b"f", index * BLOCK_BYTES)),
            ..Want::new(BlockRef {
                file: FileRef { id: digest, size },
                index,
                digest,
            })
        }
    }

    fn mirror() -> Http {
        Http::new("http://mirror.example/m/", Client::new(Default::default()))
    }

    fn answer(status: u16, headers: &[(&'static str, &str)], body: Vec<u8>) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: headers
                .iter()
                .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
                .collect(),
            body: body.into(),
            whole: true,
        }
    }

    #[test]
    fn every_byte_of_a_name_reaches_the_server_as_it_is() {
        let base = mirror().name;
        assert_eq!(
            url(&base, &place(b".manifs/catalog", 0)),
            "http://mirror.example/m/acme-tools-1.0.0/.manifs/catalog"
        );
        let odd = place(b"a b/%2e%2e/?q#f/\\..\\x/\xff\n", 0);
        let text = url(&base, &odd);
        assert_eq!(
            text,
            "http://mirror.example/m/acme-tools-1.0.0/a%20b/%252e%252e/%3Fq%23f/%5C..%5Cx/%FF%0A"
        );
        // And the URL parser changes nothing about it.
        assert_eq!(text.parse::<reqwest::Url>().unwrap().as_str(), text);
    }

    #[test]
    fn a_hinted_mirror_is_asked_for_what_names_it_only() {
        let client = Client::new(Default::default());
        let hinted = Http::hinted("http://mirror.example/m", client);
        let mut want = want(5, 0);
        assert!(mirror().serves(&want) && !hinted.serves(&want));
        want.place.as_mut().unwrap().mirrors = ["http://mirror.example/m/".to_owned()].into();
        assert!(hinted.serves(&want));
        want.place = None;
        assert!(!mirror().serves(&want) && !hinted.serves(&want));
    }

    #[test]
    fn each_status_says_what_to_do_next() {
        let judge = |status| {
            let want = want(3 * BLOCK_BYTES, 1);
            let place = want.place.clone().unwrap();
            let answer = answer(status, &[], b"no".to_vec());
            mirror()
                .judge(&want, &place, Plan::Range, answer)
                .unwrap_err()
        };
        for status in [204, 304, 400, 403, 404, 405, 410, 412, 414, 416, 451] {
            let said = judge(status);
            assert!(matches!(said, SourceError::NotFound { .. }), "{status}");
        }
        for status in [429, 502, 503, 504] {
            let said = judge(status);
            let wait = matches!(
                said,
                SourceError::Unavailable {
                    retry_after: Some(_),
                    ..
                }
            );
            assert!(wait, "{status}");
        }
        for status in [500, 501, 507] {
            let said = judge(status);
            let wait = matches!(
                said,
                SourceError::Unavailable {
                    retry_after: None,
                    ..
                }
            );
            assert!(wait, "{status}");
        }
        for status in [401, 407, 421] {
            let said = judge(status);
            assert!(matches!(said, SourceError::Refused { .. }), "{status}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_without_ranges_is_good_for_small_files_and_for_first_blocks() {
        let mirror = mirror();
        let plan = |want: &Want| mirror.plan(want, want.place.as_ref().unwrap());
        let (one, small, large) = (
            want(7, 0),
            want(WHOLE_BYTES_MAX, 1),
            want(WHOLE_BYTES_MAX + 1, 1),
        );
        assert_eq!(plan(&one), Ok(Plan::Whole), "no range is needed");
        assert_eq!(plan(&small), Ok(Plan::Range));
        assert_eq!(plan(&large), Ok(Plan::Range));
        // It sends the whole: the second block is cut out of it, and the server remembered.
        let bytes: Vec<u8> = (0..WHOLE_BYTES_MAX)
            .map(|at| u8::try_from(at >> 20).unwrap())
            .collect();
        let length = WHOLE_BYTES_MAX.to_string();
        let whole = answer(200, &[("content-length", &length)], bytes);
        let got = mirror.judge(&small, small.place.as_ref().unwrap(), Plan::Range, whole);
        let got = got.unwrap();
        assert_eq!(got.len() as u64, BLOCK_BYTES);
        assert!(got.iter().all(|byte| *byte == 1));
        assert_eq!(plan(&small), Ok(Plan::Whole));
        assert_eq!(plan(&want(WHOLE_BYTES_MAX + 1, 0)), Ok(Plan::First));
        assert!(matches!(plan(&large), Err(SourceError::NotFound { .. })));
        tokio::time::advance(NO_RANGES).await;
        assert_eq!(plan(&large), Ok(Plan::Range), "it may have learned");
    }

    #[tokio::test]
    async fn a_page_for_people_is_no_proof_that_a_server_knows_no_ranges() {
        let mirror = mirror();
        let large = want(WHOLE_BYTES_MAX + 1, 1);
        for headers in [&[("content-length", "40")][..], &[]] {
            let page = answer(200, headers, Vec::new());
            let said = mirror.judge(&large, large.place.as_ref().unwrap(), Plan::Range, page);
            assert!(matches!(said, Err(SourceError::NotFound { .. })));
            assert!(!mirror.knows_no_ranges());
        }
    }

    #[tokio::test]
    async fn another_range_is_no_answer() {
        let large = want(WHOLE_BYTES_MAX + 1, 1);
        let judge = |range: &str| {
            let mirror = mirror();
            let answer = answer(206, &[("content-range", range)], Vec::new());
            let said = mirror.judge(&large, large.place.as_ref().unwrap(), Plan::Range, answer);
            assert!(
                matches!(said, Err(SourceError::NotFound { .. })),
                "{said:?}"
            );
            mirror.knows_no_ranges()
        };
        assert!(!judge("bytes 0-9/10"), "a file of another age");
        assert!(judge(&format!("bytes 0-9/{}", WHOLE_BYTES_MAX + 1)));
        assert!(judge("nonsense"));
    }
}
