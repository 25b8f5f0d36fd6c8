//! Announces over HTTP: a GET whose answer is a bencoded dictionary.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use url::Url;

use super::{Announce, Event, Peers, Response, TrackerError, interval, words};
use crate::net::bencode::{self, Value, bytes, get, number};
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
    let answer = bencode::read(body, DEPTH_MAX).ok_or(TrackerError::Nonsense("no bencode"))?;
    if let Some(reason) = bytes(&answer, b"failure reason") {
        return Err(TrackerError::Failure(words(reason)));
    }
    let wanted: Option<u64> = number(&answer, b"interval");
    let wanted = wanted.ok_or(TrackerError::Nonsense("no interval"))?;
    let least = number(&answer, b"min interval").unwrap_or(0);
    match get(&answer, b"peers") {
        Some(Value::Bytes(compact)) => peers.add_compact_v4(compact.0),
        Some(Value::List(list)) => {
            list.iter()
                .filter_map(peer)
                .for_each(|peer| peers.add(peer));
        }
        _ => {}
    }
    if let Some(compact) = bytes(&answer, b"peers6") {
        peers.add_compact_v6(compact);
    }
    Ok(Response {
        interval: interval(wanted.max(least)),
        peers: peers.found,
    })
}

/// Returns the peer that a dictionary names by a literal; names are not resolved.
fn peer(peer: &Value<'_>) -> Option<SocketAddr> {
    let ip = std::str::from_utf8(bytes(peer, b"ip")?).ok()?;
    let ip: IpAddr = ip.parse().ok()?;
    Some(SocketAddr::new(ip, number(peer, b"port")?))
}
