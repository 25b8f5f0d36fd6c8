//! The registry's files, and the moment of their last change.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;

use crate::block::Digest;
use crate::registry::Place;
use crate::registry::changes::{self, Cursor, HOLD};

use super::reply::{Failure, nosniff, unchanged};
use super::request::Query;
use super::{Asked, Inner};

pub(super) async fn answer(
    inner: &Inner,
    asked: &Asked<'_>,
    query: Option<&str>,
) -> Result<Response, Failure> {
    let path = asked.path.strip_prefix('/').unwrap_or(asked.path);
    if path == "changes" {
        let query = Query::parse(query.unwrap_or_default())?;
        return changes(inner, query.get("since"), HOLD).await;
    }
    // Names have no characters that are percent-encoded.
    let place = Place::parse(path).ok_or(Failure::NotFound)?;
    let bytes = inner.shared.file(&place).await?;
    let bytes = bytes.ok_or(Failure::NotFound)?;
    let etag = format!("\"{}\"", Digest::of(&bytes));
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        headers.insert(header::ETAG, etag);
    }
    // May be kept, and is asked for again each time: an index changes.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    nosniff(headers);
    if unchanged(asked.headers, &etag) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(response);
    }
    let media = match place {
        Place::Listing | Place::Index(_) | Place::Manifest(_) => "application/json",
        Place::Sums(_) => "text/plain; charset=utf-8",
        Place::Torrent(_) => "application/x-bittorrent",
        Place::Key(_) => "application/x-pem-file",
    };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    if !asked.head {
        *response.body_mut() = inner.body(bytes);
    }
    Ok(response)
}

/// Answers with the cursor of now, or, when the client knows that one, with the next.
async fn changes(inner: &Inner, since: Option<&str>, hold: Duration) -> Result<Response, Failure> {
    // What is no cursor is not ours, so it is another one than the one of now.
    let since: Option<Cursor> = since.and_then(|text| text.parse().ok());
    let cursor = match since {
        None => inner.shared.changed(None).await,
        Some(since) => {
            let _waiting = inner.waiting.try_acquire().map_err(|_| Failure::Busy)?;
            let changed = inner.shared.changed(Some(&since));
            tokio::time::timeout(hold, changed).await.unwrap_or(since)
        }
    };
    let mut response = Response::new(Body::from(changes::answer(&cursor)));
    let headers = response.headers_mut();
    let media = HeaderValue::from_static("application/json");
    headers.insert(header::CONTENT_TYPE, media);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    nosniff(headers);
    Ok(response)
}
