//! Announces over UDP (BEP 15): a connection id first, which proves our address, then the announce.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::timeout;
use url::{Host, Url};

use super::{Announce, Event, Peers, Response, TrackerError, interval, words};
use crate::net::{AddressFilter, Route};

/// How long each attempt waits, connect and announce together. The BEP's own 15 s, doubled eight times, are for who has
/// an hour.
const PATIENCE: [Duration; 3] = [
    Duration::from_secs(3),
    Duration::from_secs(6),
    Duration::from_secs(12),
];

/// Time to resolve a name.
const RESOLVE: Duration = Duration::from_secs(5);

/// Datagrams of others, or of other transactions, that an attempt passes over.
const STRAY_MAX: usize = 64;

/// Bytes of a datagram: the head of an answer and [`super::PEERS_MAX`] peers of either family.
const DATAGRAM_BYTES_MAX: usize = 20 + 18 * super::PEERS_MAX;

/// The first eight bytes of a connect.
const PROTOCOL: u64 = 0x0417_2710_1980;

const CONNECT: u32 = 0;
const ANNOUNCE: u32 = 1;
const ERROR: u32 = 3;

pub(super) async fn announce(
    filter: &AddressFilter,
    tracker: &str,
    place: &str,
    bind: Option<IpAddr>,
    announce: &Announce,
) -> Result<Response, TrackerError> {
    let address = resolve(filter, tracker, place).await?;
    let unavailable = |error: std::io::Error| TrackerError::Unavailable(error.to_string());
    let socket = UdpSocket::bind((source(bind, address), 0)).await;
    let socket = socket.map_err(unavailable)?;
    // Connected, so that the kernel drops what others send.
    socket.connect(address).await.map_err(unavailable)?;
    for patience in PATIENCE {
        let peers = Peers::new(filter, announce);
        match timeout(patience, exchange(&socket, address, announce, peers)).await {
            Ok(answer) => return answer,
            // Lost on the way, in one direction or the other: from the beginning, with new numbers.
            Err(_) => continue,
        }
    }
    Err(TrackerError::Unavailable("not in time".to_owned()))
}

/// Finds the address that may be dialled.
async fn resolve(
    filter: &AddressFilter,
    tracker: &str,
    place: &str,
) -> Result<SocketAddr, TrackerError> {
    // Only URLs of web servers have their hosts parsed, and only such are judged.
    let no_url = || TrackerError::Url(tracker.to_owned());
    let url = Url::parse(&format!("http://{place}")).map_err(|_| no_url())?;
    let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
        return Err(no_url());
    };
    let route = filter.judge(&url)?;
    let name = match host {
        Host::Ipv4(ip) => return Ok(SocketAddr::from((ip, port))),
        Host::Ipv6(ip) => return Ok(SocketAddr::from((ip, port))),
        Host::Domain(name) => name,
    };
    let found = timeout(RESOLVE, tokio::net::lookup_host((name, port))).await;
    let found = match found {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return Err(TrackerError::Unavailable(error.to_string())),
        Err(_) => return Err(TrackerError::Unavailable("no such name in time".to_owned())),
    };
    let mut refused = None;
    for address in found {
        match filter.dial(address) {
            Err(error) if route == Route::Guarded => refused = Some(error),
            _ => return Ok(address),
        }
    }
    Err(match refused {
        Some(error) => TrackerError::Refused(error),
        None => TrackerError::Unavailable("the name has no address".to_owned()),
    })
}

/// Returns the address to send from: the configured one where the tracker can answer to it.
fn source(bind: Option<IpAddr>, tracker: SocketAddr) -> IpAddr {
    let tracker = tracker.ip();
    match bind {
        Some(bind)
            if bind.is_ipv4() == tracker.is_ipv4()
                && bind.is_loopback() == tracker.is_loopback() =>
        {
            bind
        }
        _ => match (tracker.is_ipv4(), tracker.is_loopback()) {
            (true, true) => Ipv4Addr::LOCALHOST.into(),
            (true, false) => Ipv4Addr::UNSPECIFIED.into(),
            (false, true) => Ipv6Addr::LOCALHOST.into(),
            (false, false) => Ipv6Addr::UNSPECIFIED.into(),
        },
    }
}

async fn exchange(
    socket: &UdpSocket,
    tracker: SocketAddr,
    announce: &Announce,
    mut peers: Peers<'_>,
) -> Result<Response, TrackerError> {
    let mut datagram = vec![0; DATAGRAM_BYTES_MAX];

    let transaction: u32 = rand::random();
    let mut connect = Vec::with_capacity(16);
    connect.extend(PROTOCOL.to_be_bytes());
    connect.extend(CONNECT.to_be_bytes());
    connect.extend(transaction.to_be_bytes());
    let answer = ask(socket, &connect, CONNECT, transaction, &mut datagram).await?;
    let connection: [u8; 8] = *answer
        .first_chunk()
        .ok_or(TrackerError::Nonsense("too short"))?;

    let transaction: u32 = rand::random();
    let request = request(connection, transaction, announce);
    let answer = ask(socket, &request, ANNOUNCE, transaction, &mut datagram).await?;
    // Interval, leechers, seeders, then peers of the family that was asked over.
    let (head, rest) = answer
        .split_first_chunk::<12>()
        .ok_or(TrackerError::Nonsense("too short"))?;
    let [a, b, c, d, ..] = *head;
    if tracker.is_ipv4() {
        peers.add_compact_v4(rest);
    } else {
        peers.add_compact_v6(rest);
    }
    Ok(Response {
        interval: interval(u32::from_be_bytes([a, b, c, d]).into()),
        peers: peers.found,
    })
}

fn request(connection: [u8; 8], transaction: u32, announce: &Announce) -> Vec<u8> {
    let event: u32 = match announce.event {
        Event::None => 0,
        Event::Completed => 1,
        Event::Started => 2,
        Event::Stopped => 3,
    };
    let peers = u32::try_from(announce.peers.min(super::PEERS_MAX)).unwrap_or(0);
    let mut request = Vec::with_capacity(98);
    request.extend(connection);
    request.extend(ANNOUNCE.to_be_bytes());
    request.extend(transaction.to_be_bytes());
    request.extend(announce.info_hash);
    request.extend(announce.peer_id);
    request.extend(announce.downloaded.to_be_bytes());
    request.extend(announce.left.to_be_bytes());
    request.extend(announce.uploaded.to_be_bytes());
    request.extend(event.to_be_bytes());
    // Our address is what the datagram says.
    request.extend(0_u32.to_be_bytes());
    // A key by which a tracker would know us under another address: none is kept.
    request.extend(rand::random::<u32>().to_be_bytes());
    request.extend(peers.to_be_bytes());
    request.extend(announce.port.to_be_bytes());
    request
}

/// Sends a request and returns what follows action and transaction in its answer.
async fn ask<'a>(
    socket: &UdpSocket,
    request: &[u8],
    action: u32,
    transaction: u32,
    datagram: &'a mut [u8],
) -> Result<&'a [u8], TrackerError> {
    let unavailable = |error: std::io::Error| TrackerError::Unavailable(error.to_string());
    socket.send(request).await.map_err(unavailable)?;
    for _ in 0..STRAY_MAX {
        let length = socket.recv(datagram).await.map_err(unavailable)?;
        let Some((head, _)) = datagram[..length].split_first_chunk::<8>() else {
            continue;
        };
        let [a, b, c, d, rest @ ..] = *head;
        if u32::from_be_bytes(rest) != transaction {
            continue;
        }
        return match u32::from_be_bytes([a, b, c, d]) {
            ERROR => Err(TrackerError::Failure(words(&datagram[8..length]))),
            said if said == action => Ok(&datagram[8..length]),
            _ => Err(TrackerError::Nonsense("the answer to something else")),
        };
    }
    Err(TrackerError::Nonsense("only answers that nobody asked for"))
}
