//! A CAR: many blocks in one stream.

use std::io;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures::stream::{self, Stream, StreamExt as _};

use crate::block::Digest;
use crate::net::Rate;
use crate::unixfs::AnyCid;
use crate::unixfs::car::{header_of, section_head_of};

use super::reply::{Failure, content_headers, disposition, unchanged};
use super::request::{CAR_TYPE, CarParams, ContentRequest, EntityBytes, Scope};
use super::resolve::{self, Found};
use super::walk::{Step, Walk};
use super::{Asked, Inner, Shared};

/// Blocks that are read ahead of the one that is being sent.
const READ_AHEAD: usize = 4;

/// Smaller blocks are copied together, so that a million small files are not a million writes.
const COPY_BYTES_MAX: usize = 32 << 10;

/// How much is copied together.
const TOGETHER_BYTES: usize = 128 << 10;

impl CarParams {
    /// Returns the parameters as a part of a URL, without those that are what they are anyway.
    pub(super) fn query(self) -> String {
        let scope = match self.scope {
            Scope::All => String::new(),
            Scope::Block => "&dag-scope=block".to_owned(),
            Scope::Entity(None) => "&dag-scope=entity".to_owned(),
            Scope::Entity(Some(EntityBytes { from, to })) => {
                let to = to.map_or("*".to_owned(), |to| to.to_string());
                format!("&dag-scope=entity&entity-bytes={from}:{to}")
            }
        };
        let dups = if self.dups { "&car-dups=y" } else { "" };
        format!("{scope}{dups}")
    }
}

pub(super) async fn answer(
    inner: &Inner,
    asked: &Asked<'_>,
    request: &ContentRequest,
    params: CarParams,
    found: Found,
) -> Result<Response, Failure> {
    let end = &found.end;
    let len = resolve::len(&*inner.shared, end).await?;
    len.ok_or(Failure::NotFound)?;
    // Weak: what is sent is the same set of blocks, in other bytes perhaps after an update.
    let what = format!("{} {}", asked.path, params.query());
    let what = Digest::of(what.as_bytes()).to_string();
    let etag = format!("W/\"{end}.car.{}\"", &what[..16]);
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    content_headers(headers, asked, request, &found.roots, &etag);
    if unchanged(asked.headers, &etag) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(response);
    }
    let dups = if params.dups { "y" } else { "n" };
    let media = format!("{CAR_TYPE}; version=1; order=dfs; dups={dups}");
    if let Ok(media) = HeaderValue::from_str(&media) {
        headers.insert(header::CONTENT_TYPE, media);
    }
    let name = format!("{end}.car");
    headers.insert(header::CONTENT_DISPOSITION, disposition(request, &name));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("none"));
    if asked.head {
        // Of no known length, or somebody would say that the CAR has none.
        *response.body_mut() = Body::from_stream(stream::empty::<io::Result<Bytes>>());
        return Ok(response);
    }
    let permit = Arc::clone(&inner.cars).try_acquire_owned();
    let permit = permit.map_err(|_| Failure::Busy)?;
    let head = BytesMut::from(&header_of([end.to_bytes()].into_iter())[..]);
    let walk = Walk::new(Arc::clone(&inner.shared), found, params);
    let parts = together(head, sections(walk, Arc::clone(&inner.shared)));
    let parts = limited(parts, inner.rate.clone()).map(move |part| {
        // Given back when the stream is dropped, however it ends.
        let _permit = &permit;
        part
    });
    *response.body_mut() = Body::from_stream(parts);
    Ok(response)
}

/// The sections in their order, some read ahead.
fn sections(
    walk: Walk,
    shared: Arc<dyn Shared>,
) -> impl Stream<Item = Result<(AnyCid, Bytes), Failure>> + Send {
    let steps = stream::unfold(Some(walk), async |walk| {
        let mut walk = walk?;
        match walk.step().await {
            Ok(Some(step)) => Some((Ok(step), Some(walk))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    });
    let read = steps.map(move |step| {
        let shared = Arc::clone(&shared);
        async move {
            match step? {
                Step::Node(cid, bytes) => Ok((cid, bytes)),
                Step::Leaf(cid) => {
                    let bytes = resolve::node(&*shared, &cid).await?;
                    let bytes =
                        bytes.ok_or_else(|| Failure::Failed(format!("{cid} is not here")))?;
                    Ok((cid, bytes))
                }
            }
        }
    });
    read.buffered(READ_AHEAD)
}

struct Together<S> {
    sections: S,
    small: BytesMut,
    /// A block that is not copied, to be sent after what is in `small`.
    large: Option<Bytes>,
    failed: Option<io::Error>,
    ended: bool,
}

/// Turns sections into parts of a body: large blocks as they are, small ones together.
fn together(
    head: BytesMut,
    sections: impl Stream<Item = Result<(AnyCid, Bytes), Failure>> + Send,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let state = Together {
        sections: Box::pin(sections),
        small: head,
        large: None,
        failed: None,
        ended: false,
    };
    stream::unfold(state, async |mut state| {
        loop {
            let full = state.small.len() >= TOGETHER_BYTES;
            if !state.small.is_empty() && (full || state.large.is_some() || state.ended) {
                return Some((Ok(state.small.split().freeze()), state));
            }
            if let Some(large) = state.large.take() {
                return Some((Ok(large), state));
            }
            if let Some(error) = state.failed.take() {
                return Some((Err(error), state));
            }
            if state.ended {
                return None;
            }
            match state.sections.next().await {
                Some(Ok((cid, bytes))) => {
                    let head = section_head_of(&cid.to_bytes(), bytes.len());
                    state.small.extend_from_slice(&head);
                    if bytes.len() > COPY_BYTES_MAX {
                        state.large = Some(bytes);
                    } else {
                        state.small.extend_from_slice(&bytes);
                    }
                }
                Some(Err(error)) => {
                    // The status is long sent: cutting the connection is all that is left to say.
                    tracing::warn!(?error, "a CAR ends early");
                    state.failed = Some(io::Error::other("a block is missing"));
                    state.ended = true;
                }
                None => state.ended = true,
            }
        }
    })
}

/// Slows a body down to the rate that is allowed.
pub(super) fn limited(
    parts: impl Stream<Item = io::Result<Bytes>> + Send,
    rate: Option<Arc<Rate>>,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    parts.then(move |part| {
        let rate = rate.clone();
        async move {
            if let (Some(rate), Ok(bytes)) = (&rate, &part) {
                rate.pay(bytes.len() as u64).await;
            }
            part
        }
    })
}
