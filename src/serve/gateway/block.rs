//! One block, or a range of it.

use std::ops::Range;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;

use super::reply::{self, Failure, content_headers, disposition, unchanged};
use super::request::{ContentRequest, RAW_TYPE};
use super::resolve::{self, Found};
use super::{Asked, Inner};

pub(super) async fn answer(
    inner: &Inner,
    asked: &Asked<'_>,
    request: &ContentRequest,
    found: &Found,
) -> Result<Response, Failure> {
    let cid = &found.end;
    let etag = format!("\"{cid}.raw\"");
    let known = unchanged(asked.headers, &etag);
    // Only a GET sends bytes; the others need no more than the length.
    let (len, bytes) = if asked.head || known {
        let len = resolve::len(&*inner.shared, cid).await?;
        (len.ok_or(Failure::NotFound)?, None)
    } else {
        let bytes = resolve::node(&*inner.shared, cid).await?;
        let bytes = bytes.ok_or(Failure::NotFound)?;
        (bytes.len() as u64, Some(bytes))
    };
    let mut response = Response::new(Body::empty());
    content_headers(response.headers_mut(), asked, request, &found.roots, &etag);
    if known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(response);
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(RAW_TYPE));
    let name = format!("{cid}.bin");
    headers.insert(header::CONTENT_DISPOSITION, disposition(request, &name));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let Some(bytes) = bytes else {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(len));
        return Ok(response);
    };
    let body = match range(asked.headers, len, &etag) {
        Wanted::Whole => bytes,
        Wanted::Part(part) => {
            let text = format!("bytes {}-{}/{len}", part.start, part.end - 1);
            if let Ok(value) = HeaderValue::from_str(&text) {
                headers.insert(header::CONTENT_RANGE, value);
            }
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            bytes.slice(part)
        }
        Wanted::Nothing => {
            let mut response = reply::plain(
                StatusCode::RANGE_NOT_SATISFIABLE,
                "the block has no such bytes",
            );
            if let Ok(value) = HeaderValue::from_str(&format!("bytes */{len}")) {
                response.headers_mut().insert(header::CONTENT_RANGE, value);
            }
            return Ok(response);
        }
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    *response.body_mut() = inner.body(body);
    Ok(response)
}

#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Whole,
    Part(Range<usize>),
    /// The range lies outside.
    Nothing,
}

/// Reads the `Range` header. What is not one range of bytes is passed over, as RFC 9110 lets a server do.
fn range(headers: &HeaderMap, len: u64, etag: &str) -> Wanted {
    let Some(value) = headers.get(header::RANGE) else {
        return Wanted::Whole;
    };
    // Of another block: then the whole of this one is wanted.
    if let Some(condition) = headers.get(header::IF_RANGE)
        && condition.as_bytes() != etag.as_bytes()
    {
        return Wanted::Whole;
    }
    let Some((first, last)) = value.to_str().ok().and_then(|text| {
        let (unit, range) = text.split_once('=')?;
        (unit.eq_ignore_ascii_case("bytes") && !range.contains(','))
            .then(|| range.trim().split_once('-'))?
    }) else {
        return Wanted::Whole;
    };
    // Digits only: `u64::from_str` also takes a plus sign. Too many digits are just a large number.
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse().unwrap_or(u64::MAX))
    };
    let (start, end) = match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => (first, last.saturating_add(1).min(len)),
        (Some(first), None) if last.is_empty() => (first, len),
        (None, Some(suffix)) if first.is_empty() => (len.saturating_sub(suffix), len),
        _ => return Wanted::Whole,
    };
    match (usize::try_from(start), usize::try_from(end)) {
        (Ok(start), Ok(end)) if start < end => Wanted::Part(start..end),
        _ => Wanted::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, len: u64, if_range: Option<&str>) -> Wanted {
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, HeaderValue::from_str(text).unwrap());
        if let Some(tag) = if_range {
            headers.insert(header::IF_RANGE, HeaderValue::from_str(tag).unwrap());
        }
        range(&headers, len, "\"x.raw\"")
    }

    #[test]
    fn single_ranges_at_every_edge() {
        for (text, len, wanted) in [
            ("bytes=0-0", 10, Wanted::Part(0..1)),
            ("bytes=0-9", 10, Wanted::Part(0..10)),
            ("bytes=0-10", 10, Wanted::Part(0..10)),
            ("bytes=9-", 10, Wanted::Part(9..10)),
            ("bytes=10-", 10, Wanted::Nothing),
            ("bytes=10-12", 10, Wanted::Nothing),
            ("bytes=-1", 10, Wanted::Part(9..10)),
            ("bytes=-10", 10, Wanted::Part(0..10)),
            ("bytes=-11", 10, Wanted::Part(0..10)),
            ("bytes=-0", 10, Wanted::Nothing),
            ("bytes=0-", 0, Wanted::Nothing),
            ("bytes=-5", 0, Wanted::Nothing),
            ("Bytes=3-4", 10, Wanted::Part(3..5)),
            ("bytes=1-99999999999999999999999", 10, Wanted::Part(1..10)),
            ("bytes=99999999999999999999999-", 10, Wanted::Nothing),
        ] {
            assert_eq!(of(text, len, None), wanted, "{text} of {len}");
        }
    }

    #[test]
    fn what_is_no_single_range_is_passed_over() {
        for text in [
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=5-2",
            "bytes=+1-2",
            "bytes=1-2,4-5",
            "items=0-1",
            "bytes=1--2",
        ] {
            assert_eq!(of(text, 10, None), Wanted::Whole, "{text}");
        }
        assert_eq!(of("bytes=0-0", 10, Some("\"x.raw\"")), Wanted::Part(0..1));
        assert_eq!(of("bytes=0-0", 10, Some("\"y.raw\"")), Wanted::Whole);
        assert_eq!(of("bytes=0-0", 10, Some("W/\"x.raw\"")), Wanted::Whole);
    }
}
