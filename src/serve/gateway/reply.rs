//! Answers that are no content, and what all answers have in common.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;

use crate::unixfs::AnyCid;

use super::request::{ContentRequest, Format, RequestError};
use super::{Asked, SharedError};

/// What a CID names never changes. The number is the one that other gateways send.
const FOR_EVER: &str = "public, max-age=29030400, immutable";

/// Seconds after which a client that found everything busy is told to come back.
const RETRY_AFTER: &str = "1";

/// Why there is no content in the answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// 400 or 406.
    Request(RequestError),
    /// 404: not shared, or not here; which of the two is nobody's business.
    NotFound,
    /// 503: too much is going on.
    Busy,
    /// 500: the disk or a catalog failed.
    Failed(String),
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Self {
        Failure::Request(error)
    }
}

impl From<SharedError> for Failure {
    fn from(error: SharedError) -> Self {
        match error {
            SharedError::Absent => Failure::NotFound,
            SharedError::Failed(reason) => Failure::Failed(reason),
        }
    }
}

impl Failure {
    pub(super) fn response(self) -> Response {
        match self {
            Failure::Request(RequestError::Bad(what)) => plain(StatusCode::BAD_REQUEST, &what),
            Failure::Request(RequestError::NotAcceptable(what)) => {
                plain(StatusCode::NOT_ACCEPTABLE, &what)
            }
            Failure::NotFound => plain(StatusCode::NOT_FOUND, "not shared here"),
            Failure::Busy => {
                let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, "busy");
                let after = HeaderValue::from_static(RETRY_AFTER);
                response.headers_mut().insert(header::RETRY_AFTER, after);
                response
            }
            Failure::Failed(reason) => {
                tracing::warn!(%reason, "what is shared cannot be read");
                plain(StatusCode::INTERNAL_SERVER_ERROR, "it cannot be read")
            }
        }
    }
}

/// A line for people. Nothing of it is ever taken for content or kept.
pub(super) fn plain(status: StatusCode, what: &str) -> Response {
    let mut response = Response::new(Body::from(format!("{what}\n")));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, text);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    nosniff(headers);
    response
}

pub(super) fn nosniff(headers: &mut HeaderMap) {
    let value = HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, value);
}

/// Returns whether `If-None-Match` names `etag`; compared weakly, as RFC 9110 says for it.
pub(super) fn unchanged(headers: &HeaderMap, etag: &str) -> bool {
    let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    let wanted = opaque(etag);
    headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|tag| tag.trim() == "*" || opaque(tag) == wanted)
}

/// Sets what every answer with content has, also the one that says that nothing has changed.
pub(super) fn content_headers(
    headers: &mut HeaderMap,
    asked: &Asked<'_>,
    request: &ContentRequest,
    roots: &[AnyCid],
    etag: &str,
) {
    let mut set = |name: header::HeaderName, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    set(header::ETAG, etag);
    set(header::CACHE_CONTROL, FOR_EVER);
    set(header::HeaderName::from_static("x-ipfs-path"), asked.path);
    let roots: Vec<String> = roots.iter().map(AnyCid::to_string).collect();
    set(
        header::HeaderName::from_static("x-ipfs-roots"),
        &roots.join(","),
    );
    if !request.format_in_url {
        set(header::VARY, "Accept");
        set(header::CONTENT_LOCATION, &location(asked, request));
    }
    nosniff(headers);
}

/// The URL under which a cache may keep what was negotiated by headers.
fn location(asked: &Asked<'_>, request: &ContentRequest) -> String {
    let format = match &request.format {
        Format::Raw => "raw".to_owned(),
        Format::Car(params) => format!("car{}", params.query()),
    };
    format!("{}?format={format}", asked.path)
}

/// Says that the answer is a file to be saved, and its name.
pub(super) fn disposition(request: &ContentRequest, fallback: &str) -> HeaderValue {
    let name = request.filename.as_deref().filter(|name| !name.is_empty());
    let name = name.unwrap_or(fallback);
    let plain = |c: char| matches!(c, ' '..='~') && !matches!(c, '"' | '\\' | '/');
    let ascii: String = name
        .chars()
        .map(|c| if plain(c) { c } else { '_' })
        .collect();
    let mut value = format!("attachment; filename=\"{ascii}\"");
    if ascii != name {
        // RFC 8187.
        value.push_str("; filename*=UTF-8''");
        for byte in name.bytes() {
            match byte {
                b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' | b'~' => {
                    value.push(char::from(byte));
                }
                byte => value.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    HeaderValue::from_str(&value).unwrap_or(HeaderValue::from_static("attachment"))
}
