//! Announces over HTTP: a GET whose answer is a bencoded dictionary.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use librqbit_bencode::{BencodeDeserializer, BencodeValueBorrowed, ByteBuf};
use serde::Deserialize as _;
use url::Url;

use super::{Announce, Event, Peers, Response, TrackerError, interval, words};
use crate::net::{Client, Get};

/// Bytes of an answer at most. [`super::PEERS_MAX`] peers as dictionaries take about 20 KiB; trackers that ignore how
/// many were asked for name some thousand in compact form.
const ANSWER_BYTES_MAX: u64 = 128 << 10;

/// Time until the head of the answer. Trackers are asked beside everything else, so that a slow one holds up nobody.
const FIRST_BYTE: Duration = Duration::from_secs(15);

/// Lists and dictionaries within each other; an honest answer has three.
const DEPTH_MAX: usize = 8;

pub(super) async fn announce(
    client: &Client,
    tracker: &str,
    announce: &Announce,
) -> Result<Response, TrackerError> {
    let url = request(tracker, announce).ok_or_else(|| TrackerError::Url(tracker.to_owned()))?;
    let get = Get {
        first_byte: FIRST_BYTE,
        ..Get::new(ANSWER_BYTES_MAX)
    };
    let answer = client.get(url.as_str(), &get).await?;
    if !answer.status.is_success() {
        return Err(TrackerError::Unavailable(answer.status.to_string()));
    }
    if !answer.whole {
        return Err(TrackerError::Nonsense("its answer does not end"));
    }
    read(&answer.body, Peers::new(client.filter(), announce))
}

/// Returns the URL that tells `announce`; the info hash and the peer id are bytes there, not text.
fn request(tracker: &str, announce: &Announce) -> Option<Url> {
    let mut url = Url::parse(tracker).ok()?;
    let mut query = match url.query() {
        Some(query) => format!("{query}&"),
        None => String::new(),
    };
    query.push_str("info_hash=");
    escape(&mut query, &announce.info_hash);
    query.push_str("&peer_id=");
    escape(&mut query, &announce.peer_id);
    let event = match announce.event {
        Event::None => "",
        Event::Started => "&event=started",
        Event::Completed => "&event=completed",
        Event::Stopped => "&event=stopped",
    };
    let written = write!(
        query,
        "&port={}&uploaded={}&downloaded={}&left={}&compact=1&numwant={}{event}",
        announce.port,
        announce.uploaded,
        announce.downloaded,
        announce.left,
        announce.peers.min(super::PEERS_MAX),
    );
    written.ok()?;
    url.set_query(Some(&query));
    url.set_fragment(None);
    Some(url)
}

fn escape(query: &mut String, bytes: &[u8]) {
    for byte in bytes {
        match byte {
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'.' | b'_' | b'~' => {
                query.push(char::from(*byte));
            }
            _ => {
                // Writing to a string cannot fail.
                let _ = write!(query, "%{byte:02X}");
            }
        }
    }
}

fn read(body: &[u8], mut peers: Peers<'_>) -> Result<Response, TrackerError> {
    let mut deserializer = BencodeDeserializer::new_from_buf(body).with_max_depth(DEPTH_MAX);
    let answer = BencodeValueBorrowed::deserialize(&mut deserializer)
        .map_err(|_| TrackerError::Nonsense("no bencode"))?;
    if let Some(BencodeValueBorrowed::Bytes(reason)) = get(&answer, b"failure reason") {
        return Err(TrackerError::Failure(words(reason.0)));
    }
    let seconds = |key: &'static [u8]| match get(&answer, key) {
        Some(BencodeValueBorrowed::Integer(seconds)) => u64::try_from(*seconds).ok(),
        _ => None,
    };
    let wanted = seconds(b"interval").ok_or(TrackerError::Nonsense("no interval"))?;
    let least = seconds(b"min interval").unwrap_or(0);
    match get(&answer, b"peers") {
        Some(BencodeValueBorrowed::Bytes(compact)) => peers.add_compact_v4(compact.0),
        Some(BencodeValueBorrowed::List(list)) => {
            list.iter()
                .filter_map(peer)
                .for_each(|peer| peers.add(peer));
        }
        _ => {}
    }
    if let Some(BencodeValueBorrowed::Bytes(compact)) = get(&answer, b"peers6") {
        peers.add_compact_v6(compact.0);
    }
    Ok(Response {
        interval: interval(wanted.max(least)),
        peers: peers.found,
    })
}

/// Returns the peer that a dictionary names by a literal; names are not resolved.
fn peer(peer: &BencodeValueBorrowed<'_>) -> Option<SocketAddr> {
    let (BencodeValueBorrowed::Bytes(ip), BencodeValueBorrowed::Integer(port)) =
        (get(peer, b"ip")?, get(peer, b"port")?)
    else {
        return None;
    };
    let ip: IpAddr = std::str::from_utf8(ip.0).ok()?.parse().ok()?;
    Some(SocketAddr::new(ip, u16::try_from(*port).ok()?))
}

fn get<'a, 'b>(
    value: &'a BencodeValueBorrowed<'b>,
    key: &'static [u8],
) -> Option<&'a BencodeValueBorrowed<'b>> {
    match value {
        BencodeValueBorrowed::Dict(dictionary) => dictionary.get(&ByteBuf(key)),
        _ => None,
    }
}
