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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use sha1::{Digest as _, Sha1};

    use super::*;

    fn hints() -> (Vec<String>, Vec<String>) {
        let trackers = ["http://a.example/announce", "udp://b.example:6969"];
        let http = ["https://c.example/m", "https://d.example/m//"];
        (
            trackers.map(str::to_owned).to_vec(),
            http.map(str::to_owned).to_vec(),
        )
    }

    fn info() -> Info {
        let bytes = Bytes::from_static(b"d5:filesle4:name1:ne");
        let hash = Sha1::digest(&bytes).into();
        Info::verify(bytes, &hash).unwrap()
    }

    #[test]
    fn a_torrent_file_is_canonical_and_has_what_is_known() {
        let (trackers, http) = hints();
        let all = MetainfoHints {
            trackers: &trackers,
            http: &http,
        };
        let text = |hints| String::from_utf8(metainfo(&info(), hints)).unwrap();
        assert_eq!(
            text(all),
            "d8:announce25:http://a.example/announce\
             13:announce-listll25:http://a.example/announceel20:udp://b.example:6969ee\
             4:infod5:filesle4:name1:ne\
             8:url-listl20:https://c.example/m/20:https://d.example/m/ee"
        );
        assert_eq!(
            text(MetainfoHints::default()),
            "d4:infod5:filesle4:name1:nee"
        );
    }

    #[test]
    fn a_magnet_link_escapes_what_would_end_a_value() {
        let (trackers, http) = hints();
        let link = magnet(
            &[0xab; 20],
            "a b&c-1.0.0",
            MetainfoHints {
                trackers: &trackers[1..],
                http: &http[..1],
            },
        );
        assert_eq!(
            link,
            format!(
                "magnet:?xt=urn:btih:{}&dn=a%20b%26c-1.0.0&tr=udp%3A%2F%2Fb.example%3A6969&ws=https%3A%2F%2Fc.example%2Fm%2F",
                "ab".repeat(20)
            )
        );
    }

    #[test]
    fn bytes_with_another_hash_are_no_dictionary() {
        let bytes = info().bytes().clone();
        assert!(Info::verify(bytes, &[0; 20]).is_err());
        let long = Bytes::from(vec![0; (16 << 20) + 1]);
        let hash = Sha1::digest(&long).into();
        assert_eq!(
            Info::verify(long, &hash),
            Err(super::super::InfoError::Length)
        );
    }
}
