//! The gateway: what is shared, over HTTP, for any reader that checks what it gets.
//!
//! It speaks the trustless gateway protocol of IPFS (`GET /ipfs/{cid}[/path]` as a raw block or a CAR) and hands out
//! the registry's envelopes (`/packages/...`, `/packages.json`, `/keys/...`) and the moment of their last change
//! (`/changes`), so that one URL is all that a reader needs. It writes nothing, asks nobody else, and knows neither the
//! store nor a catalog: whatever it serves comes through [`Shared`], which also decides what is shared at all.
//!
//! A request goes through `host` (whom it was sent to), `request` (what it asks for), `resolve` (the path), and
//! ends in `block` or `car`; `envelopes` answers for the registry. `server` bounds connections, headers and times.

mod block;
mod car;
mod envelopes;
mod host;
mod reply;
mod request;
mod resolve;
mod server;
mod walk;

use std::sync::Arc;

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use tokio::sync::Semaphore;

use crate::block::Digest;
use crate::net::Rate;
use crate::registry::Place;
use crate::registry::changes::Cursor;

pub use server::{Limits, serve};

use reply::plain;
use request::ContentRequest;

/// CARs that are sent at once; each holds a few blocks in memory and reads the disk as fast as it can.
const CARS_MAX: usize = 32;

/// Requests that wait for a change at once. Each is a connection that does nothing.
const WAITING_MAX: usize = 256;

/// How much is sent at once where sending is limited to a rate.
const SLOW_BYTES: usize = 64 << 10;

/// The longest request target, in bytes: a path of 4096 bytes, each percent-encoded, and a query.
const TARGET_BYTES_MAX: usize = 14 << 10;

/// Why something shared cannot be sent now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SharedError {
    /// It is shared and known, but its bytes are not here: like something unknown, for whoever asks.
    #[error("not here")]
    Absent,
    /// The disk or the catalog failed.
    #[error("{0}")]
    Failed(String),
}

/// What a gateway serves: nodes by digest, and the files of a registry.
///
/// Only what belongs to a shared version is found here, whatever else the store holds.
#[async_trait]
pub trait Shared: Send + Sync + 'static {
    /// Returns the bytes that hash to `digest`: a block, or a node rebuilt from a catalog. `None` for what is not
    /// shared. The implementation has verified them; never other bytes.
    async fn node(&self, digest: Digest) -> Result<Option<Bytes>, SharedError>;

    /// Returns how many bytes [`Shared::node`] would return, without reading them if that can be avoided.
    async fn node_len(&self, digest: Digest) -> Result<Option<u64>, SharedError> {
        let node = self.node(digest).await?;
        Ok(node.map(|bytes| bytes.len() as u64))
    }

    /// Returns a file of the registry as it was received. `None` for what is not there or not shared.
    async fn file(&self, place: &Place) -> Result<Option<Bytes>, SharedError>;

    /// Returns the cursor of now at once, or one that is not `since` as soon as there is one. Cancel-safe.
    async fn changed(&self, since: Option<&Cursor>) -> Cursor;
}

/// How a gateway behaves.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Names by which it may be called besides IP addresses and `localhost`: without port, any letter case.
    pub hosts: Vec<String>,
    /// What all answers take together, and whatever else pays there; none is no cap.
    pub up: Option<Arc<Rate>>,
}

/// The gateway. Cheap to clone.
#[derive(Clone)]
pub struct Gateway {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<dyn Shared>,
    hosts: Vec<String>,
    rate: Option<Arc<Rate>>,
    cars: Arc<Semaphore>,
    waiting: Semaphore,
}

impl Inner {
    /// Makes a body of bytes that are there; in small parts if they have to be sent slowly.
    fn body(&self, bytes: Bytes) -> Body {
        if self.rate.is_none() {
            return Body::from(bytes);
        }
        let parts = (0..bytes.len().div_ceil(SLOW_BYTES)).map(move |nth| {
            Ok(bytes.slice(nth * SLOW_BYTES..bytes.len().min((nth + 1) * SLOW_BYTES)))
        });
        Body::from_stream(car::limited(stream::iter(parts), self.rate.clone()))
    }
}

impl Gateway {
    /// Makes a gateway to what is shared.
    pub fn new(shared: Arc<dyn Shared>, options: &Options) -> Self {
        Gateway {
            inner: Arc::new(Inner {
                shared,
                hosts: options
                    .hosts
                    .iter()
                    .map(|name| host::canonical(name))
                    .collect(),
                rate: options.up.clone(),
                cars: Arc::new(Semaphore::new(CARS_MAX)),
                waiting: Semaphore::new(WAITING_MAX),
            }),
        }
    }

    /// Returns the router: every path that is not the gateway's is 404.
    pub fn router(&self) -> Router {
        Router::new().fallback(answer).with_state(self.clone())
    }
}

/// What a handler needs of the request besides the path.
pub(crate) struct Asked<'a> {
    /// Whether the body is wanted.
    pub(crate) head: bool,
    /// The path, as it stands in the URL.
    pub(crate) path: &'a str,
    /// The headers.
    pub(crate) headers: &'a axum::http::HeaderMap,
}

async fn answer(State(gateway): State<Gateway>, request: Request) -> Response {
    if !host::allowed(&request, &gateway.inner.hosts) {
        return plain(
            StatusCode::MISDIRECTED_REQUEST,
            "this is not the host that was asked for; [gateway] hosts names those that are served",
        );
    }
    let head = match *request.method() {
        Method::GET => false,
        Method::HEAD => true,
        _ => {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD only");
            let allow = header::HeaderValue::from_static("GET, HEAD");
            response.headers_mut().insert(header::ALLOW, allow);
            return response;
        }
    };
    let uri = request.uri();
    if uri.path().len() + uri.query().map_or(0, str::len) > TARGET_BYTES_MAX {
        return plain(StatusCode::URI_TOO_LONG, "the URL is too long");
    }
    let asked = Asked {
        head,
        path: uri.path(),
        headers: request.headers(),
    };
    let answered = match uri.path().strip_prefix("/ipfs/") {
        Some(rest) => content(&gateway, &asked, rest, uri.query()).await,
        None => envelopes::answer(&gateway.inner, &asked, uri.query()).await,
    };
    answered.unwrap_or_else(|error| error.response())
}

async fn content(
    gateway: &Gateway,
    asked: &Asked<'_>,
    path: &str,
    query: Option<&str>,
) -> Result<Response, reply::Failure> {
    let request = ContentRequest::parse(path, query, asked.headers)?;
    let found = resolve::resolve(&*gateway.inner.shared, &request).await?;
    match &request.format {
        request::Format::Raw => block::answer(&gateway.inner, asked, &request, &found).await,
        request::Format::Car(params) => {
            car::answer(&gateway.inner, asked, &request, *params, found).await
        }
    }
}
