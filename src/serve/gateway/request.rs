//! What a request for content asks for: a CID, a path, a format and its parameters.

use axum::http::{HeaderMap, header};

use crate::unixfs::{AnyCid, directory};

/// Names in a path; no deeper tree is published.
const SEGMENTS_MAX: usize = 256;

/// Media types in one `Accept` header that are looked at.
const ACCEPTED_MAX: usize = 32;

/// Formats of the path gateway specification that this gateway never answers with.
const OTHER_FORMATS: [&str; 7] = [
    "html",
    "tar",
    "json",
    "cbor",
    "dag-json",
    "dag-cbor",
    "ipns-record",
];

pub(super) const RAW_TYPE: &str = "application/vnd.ipld.raw";
pub(super) const CAR_TYPE: &str = "application/vnd.ipld.car";

/// Why a request is not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum RequestError {
    /// It is malformed: 400.
    #[error("{0}")]
    Bad(String),
    /// It asks for a form that there is not: 406.
    #[error("{0}")]
    NotAcceptable(String),
}

fn bad(what: impl Into<String>) -> RequestError {
    RequestError::Bad(what.into())
}

/// A block, or a tree of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Format {
    /// One block as it is.
    Raw,
    /// A CAR.
    Car(CarParams),
}

/// Which blocks a CAR holds, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CarParams {
    pub(super) scope: Scope,
    /// Whether a block is sent each time that it occurs.
    pub(super) dups: bool,
}

/// How far a CAR goes from where the path leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// That block.
    Block,
    /// A file with its blocks, or the given range of it; a directory with all its shards and no child.
    Entity(Option<EntityBytes>),
    /// Everything below.
    All,
}

/// A range of a file, both ends within it; negative numbers count from the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EntityBytes {
    pub(super) from: i64,
    pub(super) to: Option<i64>,
}

impl EntityBytes {
    fn parse(text: &str) -> Option<Self> {
        let (from, to) = text.split_once(':')?;
        let number = |text: &str| -> Option<i64> {
            // `i64::from_str` also takes a plus sign.
            let digits = text.strip_prefix('-').unwrap_or(text);
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            text.parse().ok()
        };
        let from = number(from)?;
        let to = match to {
            "*" => None,
            text => Some(number(text)?),
        };
        match to {
            Some(to) if (from < 0) == (to < 0) && to < from => None,
            _ => Some(EntityBytes { from, to }),
        }
    }

    /// Returns first byte and one past the last in a file of `size` bytes; `None` when no byte of it is meant.
    pub(super) fn within(self, size: u64) -> Option<(u64, u64)> {
        let size = i128::from(size);
        let absolute = |at: i64| i128::from(at) + if at < 0 { size } else { 0 };
        let from = absolute(self.from).max(0);
        let last = self.to.map_or(size - 1, absolute).min(size - 1);
        if from > last {
            return None;
        }
        Some((u64::try_from(from).ok()?, u64::try_from(last + 1).ok()?))
    }
}

/// A request below `/ipfs/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ContentRequest {
    pub(super) root: AnyCid,
    pub(super) segments: Vec<Vec<u8>>,
    pub(super) format: Format,
    /// Whether the URL alone says what is asked for; otherwise the headers did.
    pub(super) format_in_url: bool,
    /// What to call the answer when it is saved.
    pub(super) filename: Option<String>,
}

impl ContentRequest {
    /// Reads a request; `path` is what follows `/ipfs/`, as it stands in the URL.
    pub(super) fn parse(
        path: &str,
        query: Option<&str>,
        headers: &HeaderMap,
    ) -> Result<Self, RequestError> {
        let (root, rest) = path.split_once('/').unwrap_or((path, ""));
        let root = root
            .parse()
            .map_err(|error| bad(format!("{:?} is not a CID: {error}", shorten(root))))?;
        let query = Query::parse(query.unwrap_or_default())?;
        let (format, format_in_url) = format(&query, headers)?;
        Ok(ContentRequest {
            root,
            segments: segments(rest)?,
            format,
            format_in_url,
            filename: query.get("filename").map(str::to_owned),
        })
    }
}

fn shorten(text: &str) -> &str {
    text.get(..80).unwrap_or(text)
}

fn segments(path: &str) -> Result<Vec<Vec<u8>>, RequestError> {
    if path.is_empty() {
        return Ok(Vec::new());
    }
    let path = path.strip_suffix('/').unwrap_or(path);
    let segments = path
        .split('/')
        .map(|segment| {
            let name = decode(segment)
                .ok_or_else(|| bad("the path has a '%' that is not followed by two digits"))?;
            // Refused, not cleaned: no directory has such an entry, and no reader means one.
            if !directory::is_name(&name) {
                return Err(bad(format!(
                    "{:?} cannot be the name of a file",
                    shorten(segment)
                )));
            }
            Ok(name)
        })
        .collect::<Result<Vec<_>, _>>()?;
    if segments.len() > SEGMENTS_MAX {
        return Err(bad(format!("the path has more than {SEGMENTS_MAX} names")));
    }
    Ok(segments)
}

/// Undoes percent-encoding.
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                u8::try_from(digit()? << 4 | digit()?).ok()?
            }
            byte => byte,
        });
    }
    Some(out)
}

/// The parameters of a URL.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(query: &str) -> Result<Self, RequestError> {
        let text = |part: &str| {
            let part = part.replace('+', " ");
            decode(&part).and_then(|bytes| String::from_utf8(bytes).ok())
        };
        query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                text(name)
                    .zip(text(value))
                    .ok_or_else(|| bad("a parameter of the URL is not percent-encoded UTF-8"))
            })
            .collect::<Result<_, _>>()
            .map(Query)
    }

    /// Returns the first value of `name`.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// What stands in `Accept`: the parameters of a CAR, or a block.
enum Accepted {
    Raw,
    Car(Vec<(String, String)>),
}

/// Decides the format: `format=` wins over `Accept`, and each parameter in the URL over the same in the header.
fn format(query: &Query, headers: &HeaderMap) -> Result<(Format, bool), RequestError> {
    let mut accepted = accepted(headers);
    match query.get("format") {
        Some("raw") => Ok((Format::Raw, true)),
        Some("car") => {
            // Of the header only the CAR's parameters count now.
            let found = accepted.into_iter().find_map(|accepted| match accepted {
                Accepted::Car(params) => Some(params),
                Accepted::Raw => None,
            });
            let in_url = found.as_ref().is_none_or(Vec::is_empty);
            car(query, &found.unwrap_or_default()).map(|car| (Format::Car(car), in_url))
        }
        Some(other) if OTHER_FORMATS.contains(&other) => Err(not_acceptable()),
        Some(other) => Err(bad(format!("no such format: {:?}", shorten(other)))),
        None if accepted.is_empty() => Err(not_acceptable()),
        None => match accepted.remove(0) {
            Accepted::Raw => Ok((Format::Raw, false)),
            Accepted::Car(params) => car(query, &params).map(|car| (Format::Car(car), false)),
        },
    }
}

fn not_acceptable() -> RequestError {
    RequestError::NotAcceptable(
        "blocks and CARs only: say format=raw or format=car, or accept application/vnd.ipld.raw or application/vnd.ipld.car"
            .to_owned(),
    )
}

/// Returns what the header accepts that there is, best first.
fn accepted(headers: &HeaderMap) -> Vec<Accepted> {
    let mut found: Vec<(u16, Accepted)> = headers
        .get_all(header::ACCEPT)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .take(ACCEPTED_MAX)
        .filter_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next()?;
            let params: Vec<(String, String)> = parts
                .filter_map(|part| part.split_once('='))
                .map(|(name, value)| {
                    let value = value.trim().trim_matches('"');
                    (name.trim().to_ascii_lowercase(), value.to_owned())
                })
                .collect();
            let quality = params.iter().find(|(name, _)| name == "q");
            let quality = quality.map_or(Some(1.0), |(_, value)| value.parse::<f32>().ok())?;
            if !(quality > 0.0 && quality <= 1.0) {
                return None;
            }
            let accepted = if media.eq_ignore_ascii_case(RAW_TYPE) {
                Accepted::Raw
            } else if media.eq_ignore_ascii_case(CAR_TYPE) {
                Accepted::Car(params.into_iter().filter(|(name, _)| name != "q").collect())
            } else {
                return None;
            };
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a quality is between 0 and 1, with three digits that mean something"
            )]
            Some(((quality * 1000.0) as u16, accepted))
        })
        .collect();
    // Stable: of equals the first.
    found.sort_by_key(|(quality, _)| std::cmp::Reverse(*quality));
    found.into_iter().map(|(_, accepted)| accepted).collect()
}

fn car(query: &Query, header: &[(String, String)]) -> Result<CarParams, RequestError> {
    let param = |url: &str, name: &str| {
        query.get(url).map(str::to_owned).or_else(|| {
            let found = header.iter().find(|(key, _)| key == name);
            found.map(|(_, value)| value.clone())
        })
    };
    match param("car-version", "version").as_deref() {
        None | Some("1") => {}
        Some(other) => return Err(bad(format!("no such car-version: {:?}", shorten(other)))),
    }
    // Depth-first is also a fair answer to whoever takes any order.
    match param("car-order", "order").as_deref() {
        None | Some("dfs" | "unk") => {}
        Some(other) => return Err(bad(format!("no such car-order: {:?}", shorten(other)))),
    }
    let dups = match param("car-dups", "dups").as_deref() {
        None | Some("n") => false,
        Some("y") => true,
        Some(other) => return Err(bad(format!("no such car-dups: {:?}", shorten(other)))),
    };
    let bytes = match query.get("entity-bytes") {
        None => None,
        Some(text) => Some(
            EntityBytes::parse(text)
                .ok_or_else(|| bad(format!("no such entity-bytes: {:?}", shorten(text))))?,
        ),
    };
    let scope = match query.get("dag-scope") {
        None if bytes.is_some() => Scope::Entity(bytes),
        None | Some("all") => Scope::All,
        Some("entity") => Scope::Entity(bytes),
        Some("block") => Scope::Block,
        Some(other) => return Err(bad(format!("no such dag-scope: {:?}", shorten(other)))),
    };
    Ok(CarParams { scope, dups })
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    const CID: &str = "bafkreifzjut3te7nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e";

    fn parse(path: &str, query: &str, accept: &str) -> Result<ContentRequest, RequestError> {
        let mut headers = HeaderMap::new();
        if !accept.is_empty() {
            headers.insert(header::ACCEPT, HeaderValue::from_str(accept).unwrap());
        }
        ContentRequest::parse(path, Some(query), &headers)
    }

    fn car(scope: Scope, dups: bool) -> Format {
        Format::Car(CarParams { scope, dups })
    }

    #[test]
    fn the_url_wins_over_the_header() {
        let format = |query: &str, accept: &str| {
            let request = parse(CID, query, accept)?;
            Ok::<_, RequestError>((request.format, request.format_in_url))
        };
        assert_eq!(format("format=raw", ""), Ok((Format::Raw, true)));
        assert_eq!(format("format=raw", CAR_TYPE), Ok((Format::Raw, true)));
        assert_eq!(
            format("format=car", RAW_TYPE),
            Ok((car(Scope::All, false), true))
        );
        assert_eq!(format("", RAW_TYPE), Ok((Format::Raw, false)));
        assert_eq!(format("", CAR_TYPE), Ok((car(Scope::All, false), false)));
        let dups = "application/vnd.ipld.car; version=1; order=dfs; dups=y";
        assert_eq!(format("", dups), Ok((car(Scope::All, true), false)));
        assert_eq!(
            format("car-dups=n", dups),
            Ok((car(Scope::All, false), false))
        );
        assert_eq!(
            format("format=car", dups),
            Ok((car(Scope::All, true), false))
        );
        assert_eq!(
            format("format=car&car-dups=y", ""),
            Ok((car(Scope::All, true), true))
        );
    }

    #[test]
    fn the_best_accepted_format_wins() {
        let format = |accept: &str| parse(CID, "", accept).map(|request| request.format);
        let (raw, tree) = (Ok(Format::Raw), Ok(car(Scope::All, false)));
        assert_eq!(format(&format!("{RAW_TYPE},{CAR_TYPE}")), raw);
        assert_eq!(format(&format!("{CAR_TYPE}, {RAW_TYPE}")), tree);
        assert_eq!(format(&format!("{RAW_TYPE};q=0.5, {CAR_TYPE};q=0.9")), tree);
        assert_eq!(format(&format!("{RAW_TYPE};q=0, {CAR_TYPE};q=0.1")), tree);
        assert_eq!(format(&format!("text/html, {RAW_TYPE}, */*;q=0.1")), raw);
        assert_eq!(format("Application/Vnd.Ipld.Raw"), raw);
        for accept in [
            "",
            "*/*",
            "text/html",
            "application/*",
            "application/vnd.ipld.raw;q=2",
        ] {
            assert!(
                matches!(format(accept), Err(RequestError::NotAcceptable(_))),
                "{accept}"
            );
        }
    }

    #[test]
    fn unknown_words_are_errors() {
        for query in [
            "format=zip",
            "format=",
            "format=car&dag-scope=tree",
            "format=car&car-version=2",
            "format=car&car-order=bfs",
            "format=car&car-dups=maybe",
            "format=car&entity-bytes=",
            "format=car&entity-bytes=1",
            "format=car&entity-bytes=a:b",
            "format=car&entity-bytes=*:5",
            "format=car&entity-bytes=5:2",
            "format=car&entity-bytes=-2:-5",
            "format=car&entity-bytes=%2B1:5",
            "format=car&entity-bytes=0:99999999999999999999",
            "format=raw&x=%zz",
            "format=raw&x=%ff",
        ] {
            assert!(
                matches!(parse(CID, query, ""), Err(RequestError::Bad(_))),
                "{query}"
            );
        }
        for query in ["format=tar", "format=dag-json", "format=ipns-record"] {
            assert!(
                matches!(
                    parse(CID, query, RAW_TYPE),
                    Err(RequestError::NotAcceptable(_))
                ),
                "{query}"
            );
        }
        for accept in ["version=2", "order=bfs", "dups=x"] {
            let accept = format!("{CAR_TYPE};{accept}");
            assert!(
                matches!(parse(CID, "", &accept), Err(RequestError::Bad(_))),
                "{accept}"
            );
        }
    }

    #[test]
    fn scopes_and_ranges() {
        let scope = |query: &str| match parse(CID, &format!("format=car&{query}"), "")?.format {
            Format::Car(params) => Ok::<_, RequestError>(params.scope),
            Format::Raw => unreachable!(),
        };
        let bytes = |from, to| Some(EntityBytes { from, to });
        assert_eq!(scope(""), Ok(Scope::All));
        assert_eq!(scope("dag-scope=block"), Ok(Scope::Block));
        assert_eq!(scope("dag-scope=entity"), Ok(Scope::Entity(None)));
        assert_eq!(scope("entity-bytes=0:*"), Ok(Scope::Entity(bytes(0, None))));
        assert_eq!(
            scope("dag-scope=entity&entity-bytes=-5:-1"),
            Ok(Scope::Entity(bytes(-5, Some(-1))))
        );
        assert_eq!(
            scope("entity-bytes=5:-1"),
            Ok(Scope::Entity(bytes(5, Some(-1))))
        );
        assert_eq!(
            scope("entity-bytes=-5:9"),
            Ok(Scope::Entity(bytes(-5, Some(9))))
        );
    }

    #[test]
    fn ranges_are_cut_to_the_file() {
        let within = |from, to, size| EntityBytes { from, to }.within(size);
        assert_eq!(within(0, None, 10), Some((0, 10)));
        assert_eq!(within(0, Some(0), 10), Some((0, 1)));
        assert_eq!(within(9, Some(9), 10), Some((9, 10)));
        assert_eq!(within(10, None, 10), None);
        assert_eq!(within(3, Some(100), 10), Some((3, 10)));
        assert_eq!(within(-3, None, 10), Some((7, 10)));
        assert_eq!(within(-100, Some(2), 10), Some((0, 3)));
        assert_eq!(within(-100, Some(-50), 10), None);
        assert_eq!(within(-3, Some(-2), 10), Some((7, 9)));
        assert_eq!(within(8, Some(-5), 10), None);
        assert_eq!(within(0, None, 0), None);
        assert_eq!(
            within(i64::MIN, Some(i64::MAX), u64::MAX),
            Some((u64::MAX - (1 << 63), 1 << 63))
        );
    }

    #[test]
    fn paths_are_split_then_decoded() {
        let path = |rest: &str| {
            parse(&format!("{CID}{rest}"), "format=car", "").map(|request| request.segments)
        };
        assert_eq!(path(""), Ok(vec![]));
        assert_eq!(path("/"), Ok(vec![]));
        assert_eq!(path("/a/b%20c/"), Ok(vec![b"a".to_vec(), b"b c".to_vec()]));
        assert_eq!(
            path("/%F0%9F%8D%95"),
            Ok(vec!["\u{1f355}".as_bytes().to_vec()])
        );
        assert_eq!(path("/a+b"), Ok(vec![b"a+b".to_vec()]));
        for rest in [
            "//",
            "//a",
            "/a//b",
            "/..",
            "/a/../b",
            "/%2e%2e/x",
            "/.",
            "/a%2Fb",
            "/a%00b",
            "/%",
            "/%4",
            "/%zz",
        ] {
            assert!(matches!(path(rest), Err(RequestError::Bad(_))), "{rest}");
        }
        let long = "a".repeat(256);
        assert!(path(&format!("/{long}")).is_err());
        assert!(path(&"/a".repeat(SEGMENTS_MAX)).is_ok());
        assert!(path(&"/a".repeat(SEGMENTS_MAX + 1)).is_err());
        for cid in ["", "x", "bafk", "../etc", "Qm"] {
            assert!(parse(cid, "format=raw", "").is_err(), "{cid}");
        }
    }
}
