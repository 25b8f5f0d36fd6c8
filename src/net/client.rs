//! The one HTTP client.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_RANGE, HeaderMap, HeaderValue, IF_NONE_MATCH, LOCATION, RANGE,
};
use reqwest::{Response, StatusCode, Url};
use tokio::time::{Instant, timeout, timeout_at};
use zeroize::Zeroizing;

use super::filter::{AddressFilter, FilterError, Route, inward};
use super::rate::Rate;

/// Time to resolve a name, connect and do TLS.
const CONNECT: Duration = Duration::from_secs(5);

/// Time that an idle connection is kept. Below the 75 s after which common servers close theirs.
const IDLE: Duration = Duration::from_secs(60);

/// Idle connections kept per host; as many as a source may have wants in flight, or HTTP/1.1 reconnects all the time.
const IDLE_CONNECTIONS: usize = 64;

/// Header lines of an HTTP/1.1 answer.
const HEADERS_MAX: usize = 64;

/// Bytes of the headers of an HTTP/2 answer.
const HEADER_BYTES_MAX: u32 = 16 << 10;

/// Bytes of the body of an answer that is not a success; servers say there what is wrong.
const ERROR_BODY_BYTES_MAX: u64 = 2 << 10;

/// Redirects that may be followed at most, whatever the caller asks for.
const REDIRECTS_MAX: u8 = 3;

/// A slower body is given up: 16 KiB in each second, after [`SLOW_GRACE`]. A drip of bytes is no progress.
const SLOW_BYTES_PER_SECOND: u64 = 16 << 10;

/// Time that a body may take however short it is.
const SLOW_GRACE: Duration = Duration::from_secs(10);

/// A secret sent to one host; wiped when dropped, never shown.
#[derive(Clone)]
pub struct Secret(Arc<Zeroizing<String>>);

impl Secret {
    /// Keeps a bearer token.
    pub fn bearer(token: &str) -> Self {
        Secret(Arc::new(Zeroizing::new(format!("Bearer {}", token.trim()))))
    }
}

/// What a client is made from.
#[derive(Clone, Default)]
pub struct Options {
    /// Which hosts may be dialled.
    pub filter: AddressFilter,
    /// The proxy for configured hosts that are not this machine or network; none: what the usual variables say.
    pub proxy: Option<String>,
    /// Further certificate authorities, as PEM.
    pub ca: Vec<Vec<u8>>,
    /// Secrets by `host:port`. Sent over TLS or to loopback addresses only.
    pub auth: Vec<(String, Secret)>,
    /// Bytes per second that bodies may take together; 0 is no cap.
    pub down: u64,
}

/// One request.
#[derive(Clone, Copy, Debug)]
pub struct Get<'a> {
    /// The `Accept` header.
    pub accept: Option<&'static str>,
    /// Bytes of the body at most; what comes after them is not read.
    pub limit: u64,
    /// Time until the head of the answer.
    pub first_byte: Duration,
    /// Time between two parts of the body.
    pub progress: Duration,
    /// Redirects to follow, each through the filter; at most 3.
    pub redirects: u8,
    /// The `If-None-Match` header.
    pub if_none_match: Option<&'a str>,
    /// The `Range` header: first byte and one past the last. A 206 with another range has no body here.
    pub range: Option<(u64, u64)>,
    /// Bytes of the body at most when a range was asked for and the whole comes instead, with status 200.
    pub whole_limit: u64,
}

impl Get<'_> {
    /// A request for at most `limit` bytes, with the usual patience and no redirects.
    pub fn new(limit: u64) -> Self {
        Get {
            accept: None,
            limit,
            first_byte: Duration::from_secs(20),
            progress: Duration::from_secs(10),
            redirects: 0,
            if_none_match: None,
            range: None,
            whole_limit: limit,
        }
    }

    /// Returns how many bytes of a body are read.
    fn limit(&self, status: StatusCode, headers: &HeaderMap) -> u64 {
        match self.range {
            _ if !status.is_success() => ERROR_BODY_BYTES_MAX.min(self.limit),
            Some(_) if status == StatusCode::OK => self.whole_limit,
            Some((from, until)) if status == StatusCode::PARTIAL_CONTENT => {
                let came = ContentRange::of(headers);
                let right = came.is_some_and(|came| came.from == from && came.until == until);
                if right { self.limit } else { 0 }
            }
            _ => self.limit,
        }
    }
}

/// Which bytes of a file a 206 says it holds: `Content-Range` of RFC 9110, 14.4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentRange {
    /// The first byte.
    pub from: u64,
    /// One past the last.
    pub until: u64,
    /// Bytes of the whole file, if it says.
    pub whole: Option<u64>,
}

impl ContentRange {
    /// Reads it from the headers of an answer; none where it is missing, or no range of bytes.
    pub fn of(headers: &HeaderMap) -> Option<ContentRange> {
        let text = headers.get(CONTENT_RANGE)?.to_str().ok()?;
        let (range, whole) = text.trim().strip_prefix("bytes ")?.trim().split_once('/')?;
        let (from, last) = range.split_once('-')?;
        let number = |text: &str| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u64>().ok().filter(|_| digits)
        };
        let (from, last) = (number(from)?, number(last)?);
        let whole = match whole {
            "*" => None,
            count => Some(number(count)?),
        };
        let until = last.checked_add(1)?;
        (from < until && whole.is_none_or(|whole| until <= whole)).then_some(ContentRange {
            from,
            until,
            whole,
        })
    }
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, or its first `limit` bytes; of an answer that is no success the first 2 KiB.
    pub body: Bytes,
    /// Whether the body ended within the limit.
    pub whole: bool,
}

/// Why there is no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NetError {
    /// The address filter refuses the host.
    #[error(transparent)]
    Refused(#[from] FilterError),
    /// Not a URL.
    #[error("{0:?} is not a URL")]
    Url(String),
    /// Nobody there, or no connection.
    #[error("no connection ({0})")]
    Connect(String),
    /// Too slow.
    #[error("{0}")]
    Slow(&'static str),
    /// The answer is cut off or is no HTTP.
    #[error("broken answer ({0})")]
    Broken(String),
    /// More redirects than may be followed, or one without a place to go.
    #[error("redirected too often")]
    Redirects,
}

/// Sends requests. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    options: Options,
    down: Rate,
    plain: Clients,
    /// Apart from the plain ones, since making one reads the system's certificates, which takes longer than a request.
    tls: Clients,
}

/// Clients by route, made when first needed.
#[derive(Default)]
struct Clients {
    proxied: OnceLock<reqwest::Client>,
    direct: OnceLock<reqwest::Client>,
    guarded: OnceLock<reqwest::Client>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// Makes a client. Nothing is dialled.
    pub fn new(options: Options) -> Self {
        Client {
            inner: Arc::new(Inner {
                down: Rate::new(options.down),
                options,
                plain: Clients::default(),
                tls: Clients::default(),
            }),
        }
    }

    /// Returns the filter, for what is dialled without HTTP.
    pub fn filter(&self) -> &AddressFilter {
        &self.inner.options.filter
    }

    /// Pays for bytes that came without HTTP, waiting while the cap is exceeded.
    pub async fn pay(&self, bytes: u64) {
        self.inner.down.pay(bytes).await;
    }

    /// Asks for `url`, and reads no more of the answer than `get` says.
    ///
    /// # Errors
    /// [`NetError`]; an answer with an error status is an [`Answer`].
    pub async fn get(&self, url: &str, get: &Get<'_>) -> Result<Answer, NetError> {
        self.get_watched(url, get, &|_| {}).await
    }

    /// As [`Client::get`]; calls `arrived` with the number of bytes whenever some have come.
    ///
    /// # Errors
    /// [`NetError`].
    pub async fn get_watched(
        &self,
        url: &str,
        get: &Get<'_>,
        arrived: &(dyn Fn(u64) + Sync),
    ) -> Result<Answer, NetError> {
        let mut url: Url = url.parse().map_err(|_| NetError::Url(url.to_owned()))?;
        let mut left = get.redirects.min(REDIRECTS_MAX);
        loop {
            let response = self.send(&url, get).await?;
            if get.redirects == 0 || !response.status().is_redirection() {
                return self.read(response, get, arrived).await;
            }
            if response.status() == StatusCode::NOT_MODIFIED {
                return self.read(response, get, arrived).await;
            }
            left = left.checked_sub(1).ok_or(NetError::Redirects)?;
            let location = response.headers().get(LOCATION);
            let next = location.and_then(|location| location.to_str().ok());
            let next = next.and_then(|next| url.join(next).ok());
            let next = next.ok_or(NetError::Redirects)?;
            if url.scheme() == "https" && next.scheme() != "https" {
                return Err(NetError::Refused(FilterError::Url {
                    what: "a redirect from https leads to http",
                }));
            }
            url = next;
        }
    }

    async fn send(&self, url: &Url, get: &Get<'_>) -> Result<Response, NetError> {
        let route = self.inner.options.filter.judge(url)?;
        let mut request = self
            .inner
            .client(route, url.scheme() == "https")
            .get(url.clone());
        if let Some(accept) = get.accept {
            request = request.header(ACCEPT, HeaderValue::from_static(accept));
        }
        if let Some(etag) = get.if_none_match {
            request = request.header(IF_NONE_MATCH, etag);
        }
        if let Some((from, until)) = get.range {
            let last = until.saturating_sub(1);
            request = request.header(RANGE, format!("bytes={from}-{last}"));
        }
        if let Some(secret) = self.inner.secret(url) {
            request = request.header(AUTHORIZATION, secret);
        }
        match timeout(get.first_byte, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(tell(&error)),
            Err(_) => Err(NetError::Slow("no answer in time")),
        }
    }

    async fn read(
        &self,
        mut response: Response,
        get: &Get<'_>,
        arrived: &(dyn Fn(u64) + Sync),
    ) -> Result<Answer, NetError> {
        let status = response.status();
        let success = status.is_success();
        let bytes_max = get.limit(status, response.headers());
        let limit = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        let announced = response.content_length();
        let expected = announced.map_or(0, |length| usize::try_from(length).unwrap_or(usize::MAX));
        let slow = Duration::from_secs(
            announced.unwrap_or(bytes_max).min(bytes_max) / SLOW_BYTES_PER_SECOND,
        );
        let end = Instant::now() + SLOW_GRACE + slow;
        let headers = std::mem::take(response.headers_mut());
        // An announced length is no reason to allocate much: it is bounded by what the caller wants.
        let mut body = BytesMut::with_capacity(expected.min(limit).min(ALLOCATE_MAX));
        let mut whole = true;
        loop {
            let patience = (Instant::now() + get.progress).min(end);
            let part = match timeout_at(patience, response.chunk()).await {
                Ok(Ok(Some(part))) => part,
                Ok(Ok(None)) => break,
                // What an error page says is only for people.
                Ok(Err(_)) | Err(_) if !success => break,
                Ok(Err(error)) => return Err(tell(&error)),
                Err(_) => return Err(NetError::Slow("the answer stopped, or drips")),
            };
            arrived(part.len() as u64);
            self.inner.down.pay(part.len() as u64).await;
            let room = limit - body.len();
            if part.len() > room {
                body.extend_from_slice(&part[..room]);
                whole = false;
                break;
            }
            body.extend_from_slice(&part);
        }
        // A body of unannounced length grew by doubling; who keeps it must not keep the rest too.
        let body = if body.capacity() / 2 > body.len() {
            Bytes::copy_from_slice(&body)
        } else {
            body.freeze()
        };
        Ok(Answer {
            status,
            headers,
            body,
            whole,
        })
    }
}

/// Bytes allocated at once for a body on the word of its sender; longer ones grow as they come.
const ALLOCATE_MAX: usize = (1 << 20) + 1;

impl Inner {
    fn client(&self, route: Route, tls: bool) -> &reqwest::Client {
        let clients = if tls { &self.tls } else { &self.plain };
        match route {
            Route::Configured => clients
                .proxied
                .get_or_init(|| self.build(tls, |builder| self.proxied(builder))),
            Route::ConfiguredInward => clients
                .direct
                .get_or_init(|| self.build(tls, reqwest::ClientBuilder::no_proxy)),
            Route::Guarded => clients
                .guarded
                .get_or_init(|| self.build(tls, |builder| builder.no_proxy().dns_resolver(Guard))),
        }
    }

    fn proxied(&self, builder: reqwest::ClientBuilder) -> reqwest::ClientBuilder {
        match self.options.proxy.as_deref().map(reqwest::Proxy::all) {
            None => builder,
            Some(Ok(proxy)) => builder.proxy(proxy),
            Some(Err(error)) => {
                tracing::error!(%error, "the configured proxy is not usable; none is used");
                builder.no_proxy()
            }
        }
    }

    fn build(
        &self,
        tls: bool,
        shape: impl Fn(reqwest::ClientBuilder) -> reqwest::ClientBuilder,
    ) -> reqwest::Client {
        let base = || {
            let builder = reqwest::Client::builder()
                .user_agent(concat!("manifs/", env!("CARGO_PKG_VERSION")))
                .redirect(reqwest::redirect::Policy::none())
                .retry(reqwest::retry::never())
                .referer(false)
                .connect_timeout(CONNECT)
                .pool_idle_timeout(IDLE)
                .pool_max_idle_per_host(IDLE_CONNECTIONS)
                .http1_max_headers(HEADERS_MAX)
                .http2_max_header_list_size(HEADER_BYTES_MAX)
                .http2_adaptive_window(true);
            shape(builder)
        };
        let certificates = || {
            self.options
                .ca
                .iter()
                .flat_map(|pem| reqwest::Certificate::from_pem_bundle(pem).unwrap_or_default())
        };
        // A proxy itself may be spoken to over TLS.
        if tls || self.options.proxy.is_some() {
            match base().tls_certs_merge(certificates()).build() {
                Ok(client) => return client,
                // A machine without any certificates can still use plain HTTP, and what the user configured.
                Err(error) => tracing::warn!(
                    %error,
                    "the system's certificates are not usable; https works with configured ones only"
                ),
            }
        }
        base()
            .tls_certs_only(certificates())
            .build()
            .expect("a client without system certificates needs nothing from the system")
    }

    /// The secret for exactly this host and port, where it cannot be overheard.
    fn secret(&self, url: &Url) -> Option<HeaderValue> {
        if self.options.auth.is_empty() {
            return None;
        }
        let private = url.scheme() == "https"
            || match url.host()? {
                url::Host::Ipv4(address) => address.is_loopback(),
                url::Host::Ipv6(address) => address.is_loopback(),
                url::Host::Domain(name) => name == "localhost",
            };
        let host = format!("{}:{}", url.host_str()?, url.port_or_known_default()?);
        let (_, secret) = self.options.auth.iter().find(|(name, _)| *name == host)?;
        let mut value = HeaderValue::from_str(&secret.0).ok().filter(|_| private)?;
        value.set_sensitive(true);
        Some(value)
    }
}

/// Resolves names that nobody vouches for: inward addresses are left out.
struct Guard;

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found: Vec<_> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let first = found.first().and_then(|address| inward(address.ip()));
            let outward: Vec<_> = found
                .into_iter()
                .filter(|address| inward(address.ip()).is_none())
                .collect();
            match (outward.is_empty(), first) {
                (true, Some(what)) => Err(FilterError::Inward {
                    host: name.as_str().to_owned(),
                    what,
                }
                .into()),
                _ => Ok(Box::new(outward.into_iter()) as Addrs),
            }
        })
    }
}

/// Says what went wrong, from the bottom of the chain of causes, where the words are.
fn tell(error: &reqwest::Error) -> NetError {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        if let Some(refused) = next.downcast_ref::<FilterError>() {
            return NetError::Refused(refused.clone());
        }
        cause = next;
    }
    let words = cause.to_string();
    if error.is_timeout() || error.is_connect() {
        NetError::Connect(words)
    } else {
        NetError::Broken(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_that_leads_inwards_is_found_out_when_it_is_resolved() {
        let resolved = Guard.resolve("localhost".parse().unwrap()).await;
        let Err(error) = resolved else {
            panic!("localhost resolved to a public address");
        };
        let error = error.downcast_ref::<FilterError>();
        assert!(
            matches!(error, Some(FilterError::Inward { .. })),
            "{error:?}"
        );
    }

    #[test]
    fn a_secret_goes_to_its_host_and_only_where_it_cannot_be_overheard() {
        let secret = Secret::bearer("word\n");
        let auth = [
            "gateway.example:443",
            "gateway.example:80",
            "127.0.0.1:5001",
        ]
        .map(|host| (host.to_owned(), secret.clone()));
        let client = Client::new(Options {
            auth: auth.to_vec(),
            ..Options::default()
        });
        let sent = |url: &str| client.inner.secret(&url.parse().unwrap());
        for url in ["https://gateway.example/x", "http://127.0.0.1:5001/api"] {
            let value = sent(url).unwrap();
            assert!(value.is_sensitive());
            assert_eq!(value.to_str().unwrap(), "Bearer word");
        }
        for url in [
            "http://gateway.example/",
            "https://gateway.example:8443/",
            "https://other.example/",
            "http://127.0.0.1:5002/",
            "http://127.0.0.2:5001/",
        ] {
            assert!(sent(url).is_none(), "{url}");
        }
        assert!(!format!("{client:?}").contains("word"));
    }

    #[test]
    fn a_content_range_is_read_as_the_rfc_has_it_or_not_at_all() {
        let read = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_RANGE, text.parse().unwrap());
            ContentRange::of(&headers)
        };
        let range = |from, until, whole| Some(ContentRange { from, until, whole });
        assert_eq!(read("bytes 0-0/1"), range(0, 1, Some(1)));
        assert_eq!(read("bytes 5-9/*"), range(5, 10, None));
        for wrong in [
            "",
            "bytes",
            "bytes */10",
            "bytes 5-4/10",
            "bytes 5-10/10",
            "bytes +5-9/10",
            "bytes 5-18446744073709551615/*",
            "bytes -5/10",
            "items 0-0/1",
            "bytes 0-0",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
        assert_eq!(ContentRange::of(&HeaderMap::new()), None);
    }

    #[test]
    fn a_client_is_made_without_any_certificates() {
        let inner = Client::new(Options::default()).inner;
        for tls in [false, true] {
            for route in [Route::Configured, Route::ConfiguredInward, Route::Guarded] {
                inner.client(route, tls);
            }
        }
    }
}
