//! What other clients are given: the `.torrent` file and the magnet link.

use std::fmt::Write as _;

use super::{Info, Sha1Hash};

/// Where else the package may be had from, for clients that know nothing of manifs.
#[derive(Clone, Copy, Debug, Default)]
pub struct MetainfoHints<'a> {
    /// Announce URLs.
    pub trackers: &'a [String],
    /// URLs of mirrors, below which the torrent's name is a directory.
    pub http: &'a [String],
}

/// Returns a `.torrent` file: BEP 3 with the trackers of BEP 12, each a tier, and the web seeds of BEP 19.
///
/// It has no date and no maker: equal torrents and hints give equal files.
pub fn metainfo(info: &Info, hints: MetainfoHints<'_>) -> Vec<u8> {
    let mut out = b"d".to_vec();
    let text = |out: &mut Vec<u8>, text: &str| {
        out.extend_from_slice(format!("{}:{text}", text.len()).as_bytes());
    };
    if let Some(first) = hints.trackers.first() {
        text(&mut out, "announce");
        text(&mut out, first);
        text(&mut out, "announce-list");
        out.push(b'l');
        for tracker in hints.trackers {
            out.push(b'l');
            text(&mut out, tracker);
            out.push(b'e');
        }
        out.push(b'e');
    }
    text(&mut out, "info");
    out.extend_from_slice(info.bytes());
    if !hints.http.is_empty() {
        text(&mut out, "url-list");
        out.push(b'l');
        for url in hints.http {
            text(&mut out, &web_seed(url));
        }
        out.push(b'e');
    }
    out.push(b'e');
    out
}

/// Returns the magnet link of a torrent called `name`.
pub fn magnet(hash: &Sha1Hash, name: &str, hints: MetainfoHints<'_>) -> String {
    let mut link = format!("magnet:?xt=urn:btih:{}&dn=", hex::encode(hash));
    escape(&mut link, name);
    for tracker in hints.trackers {
        link.push_str("&tr=");
        escape(&mut link, tracker);
    }
    for url in hints.http {
        link.push_str("&ws=");
        escape(&mut link, &web_seed(url));
    }
    link
}

/// Returns a mirror's URL as BEP 19 wants it: a client appends name and path to what ends with a slash.
fn web_seed(url: &str) -> String {
    format!("{}/", url.trim_end_matches('/'))
}

/// Appends a value of a query, with everything escaped but what RFC 3986 calls unreserved.
fn escape(link: &mut String, value: &str) {
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            link.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(link, "%{byte:02X}");
        }
    }
}
