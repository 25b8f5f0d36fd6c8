//! Scripted trackers on loopback.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinHandle;

use super::*;
use crate::net::Options;

fn client(allow: &[&str]) -> Client {
    Client::new(Options {
        filter: AddressFilter::new(allow.iter().map(|entry| entry.parse().unwrap()).collect()),
        ..Options::default()
    })
}

fn started() -> Announce {
    Announce {
        info_hash: *b"\x00\xffab &=%+/0123456789",
        peer_id: *b"-MN0100-abcdefghijkl",
        port: 6881,
        uploaded: 1,
        downloaded: 2,
        left: 3,
        event: Event::Started,
        peers: 1000,
    }
}

/// Answers one request with `body`, and returns its first line.
async fn web(body: Vec<u8>) -> (String, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/announce", listener.local_addr().unwrap());
    let asked = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
        // Who has read enough hangs up.
        let _ = stream.write_all(&body).await;
        let head = String::from_utf8(head).unwrap();
        head.lines().next().unwrap().to_owned()
    });
    (url, asked)
}

async fn from_web(allow: &[&str], body: &[u8]) -> Result<Response, TrackerError> {
    let (url, _asked) = web(body.to_vec()).await;
    announce(&client(allow), &url, None, &started()).await
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[tokio::test]
async fn an_http_tracker_is_told_everything_and_keeps_its_own_words() {
    let (url, asked) = web(b"d8:intervali900e5:peers0:e".to_vec()).await;
    let client = client(&["127.0.0.1"]);
    let response = announce(&client, &format!("{url}?pass=x%20y"), None, &started()).await;
    assert_eq!(
        response.unwrap(),
        Response {
            interval: Duration::from_secs(900),
            peers: Vec::new()
        }
    );
    assert_eq!(
        asked.await.unwrap(),
        "GET /announce?pass=x%20y&info_hash=%00%FFab%20%26%3D%25%2B%2F0123456789&peer_id=-MN0100-abcdefghijkl&port=6881\
         &uploaded=1&downloaded=2&left=3&compact=1&numwant=200&event=started HTTP/1.1"
    );
}

#[tokio::test]
async fn peers_come_compact_as_dictionaries_and_of_both_families() {
    let compact = from_web(
        &["127.0.0.1"],
        b"d8:intervali1800e5:peers18:\x08\x08\x08\x08\x1a\xe1\x08\x08\x08\x08\x1a\xe1\x7f\x00\x00\x01\x00\x506:peers6\
          18:\x20\x01\x48\x60\x48\x60\x00\x00\x00\x00\x00\x00\x00\x00\x88\x88\x1a\xe1e",
    );
    assert_eq!(
        compact.await.unwrap().peers,
        [
            address("8.8.8.8:6881"),
            address("127.0.0.1:80"),
            address("[2001:4860:4860::8888]:6881")
        ]
    );
    let dictionaries = from_web(
        &["127.0.0.1"],
        b"d8:intervali1800e12:min intervali2000e5:peersld2:ip7:8.8.8.84:porti1eed2:ip20:2001:4860:4860::88884:porti2ee\
          d2:ip11:example.org4:porti3eed2:ip7:8.8.8.84:porti70000eed4:porti5eei9eee",
    );
    let dictionaries = dictionaries.await.unwrap();
    assert_eq!(
        dictionaries.peers,
        [address("8.8.8.8:1"), address("[2001:4860:4860::8888]:2")]
    );
    assert_eq!(dictionaries.interval, Duration::from_secs(2000));
}

#[tokio::test]
async fn peers_that_may_not_be_dialled_are_left_out() {
    let (url, _asked) = web(
        b"d8:intervali1800e5:peers24:\x7f\x00\x00\x01\x1a\xe1\x0a\x00\x00\x01\x1a\xe1\x08\x08\x08\x08\x00\x00\x09\x09\
          \x09\x09\x00\x01e"
            .to_vec(),
    )
    .await;
    let only_it = url
        .strip_prefix("http://")
        .unwrap()
        .replace("/announce", "");
    let response = announce(&client(&[&only_it]), &url, None, &started()).await;
    assert_eq!(response.unwrap().peers, [address("9.9.9.9:1")]);
}

#[tokio::test]
async fn thousands_of_peers_are_cut_and_intervals_kept_sane() {
    let mut body = b"d8:intervali0e5:peers12000:".to_vec();
    for nth in 0..2000_u16 {
        body.extend([8, 8]);
        body.extend(nth.to_be_bytes());
        body.extend([1, 1]);
    }
    body.push(b'e');
    let response = from_web(&["127.0.0.1"], &body).await.unwrap();
    assert_eq!(response.peers.len(), PEERS_MAX);
    assert_eq!(response.interval, INTERVAL_MIN);
    for (body, interval) in [
        (&b"d8:intervali2147483648ee"[..], INTERVAL_MAX),
        (b"d8:intervali9223372036854775807ee", INTERVAL_MAX),
        (
            b"d8:intervali100e12:min intervali-5ee",
            Duration::from_secs(100),
        ),
    ] {
        let response = from_web(&["127.0.0.1"], body).await.unwrap();
        assert_eq!(response.interval, interval);
    }
}

#[tokio::test]
async fn nonsense_is_no_answer() {
    let endless = vec![b'l'; 1 << 20];
    let mut deep = b"d8:intervali1800e1:x".to_vec();
    deep.extend(vec![b'l'; 100]);
    deep.extend(vec![b'e'; 101]);
    for body in [
        &b""[..],
        b"<html>",
        b"d8:intervali-1ee",
        b"d5:peers0:e",
        b"d8:interval4:soone",
        b"i1800e",
        b"d8:intervali1800e5:peers99999999999:",
        &endless,
        &deep,
    ] {
        let answer = from_web(&["127.0.0.1"], body).await;
        assert!(
            matches!(answer, Err(TrackerError::Nonsense(_))),
            "{answer:?}"
        );
    }
    let failure = from_web(&["127.0.0.1"], b"d14:failure reason8:no\x1b[2Jnoe").await;
    assert!(
        matches!(&failure, Err(TrackerError::Failure(words)) if words == "no[2Jno"),
        "{failure:?}"
    );
}

#[tokio::test]
async fn trackers_at_inward_addresses_are_not_asked() {
    for tracker in [
        "http://127.0.0.1:1/announce",
        "udp://127.0.0.1:1/announce",
        "udp://[::1]:1",
        "udp://0x7f.1:1",
        "udp://localhost:1",
    ] {
        let answer = announce(&client(&[]), tracker, None, &started()).await;
        assert!(
            matches!(answer, Err(TrackerError::Refused(_))),
            "{answer:?}"
        );
    }
    for tracker in [
        "",
        "x",
        "ftp://8.8.8.8/",
        "udp://",
        "wss://tracker/",
        "http://",
    ] {
        let answer = announce(&client(&[]), tracker, None, &started()).await;
        assert!(
            matches!(answer, Err(TrackerError::Url(_))),
            "{tracker}: {answer:?}"
        );
    }
}

/// A UDP tracker that hands each datagram to `answer` and sends what that returns.
async fn udp(mut answer: impl FnMut(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> String {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("udp://{}/announce", socket.local_addr().unwrap());
    tokio::spawn(async move {
        let mut datagram = [0; 2048];
        loop {
            let (length, from) = socket.recv_from(&mut datagram).await.unwrap();
            for bytes in answer(&datagram[..length]) {
                socket.send_to(&bytes, from).await.unwrap();
            }
        }
    });
    url
}

/// Returns an answer: action, the transaction of `request`, the rest.
fn reply(action: u32, request: &[u8], rest: &[u8]) -> Vec<u8> {
    let mut bytes = action.to_be_bytes().to_vec();
    bytes.extend(&request[12..16]);
    bytes.extend(rest);
    bytes
}

#[tokio::test]
async fn a_udp_tracker_is_connected_to_then_told_everything() {
    let url = udp(|request| {
        if request[8..12] == [0; 4] {
            assert_eq!(request[..8], 0x0417_2710_1980_u64.to_be_bytes());
            // Somebody's guesses first: too short, another transaction, another action of none.
            let mut stray = reply(0, request, b"wrong id");
            stray[7] ^= 1;
            return vec![vec![1, 2, 3], stray, reply(0, request, b"the conn")];
        }
        assert_eq!(&request[..8], b"the conn");
        assert_eq!(request[8..12], [0, 0, 0, 1]);
        assert_eq!(request[16..36], started().info_hash);
        assert_eq!(request[36..56], started().peer_id);
        assert_eq!(request[56..64], 2_u64.to_be_bytes());
        assert_eq!(request[64..72], 3_u64.to_be_bytes());
        assert_eq!(request[72..80], 1_u64.to_be_bytes());
        assert_eq!(request[80..84], 2_u32.to_be_bytes());
        assert_eq!(request[92..], [0, 0, 0, 200, 0x1a, 0xe1]);
        vec![reply(
            1,
            request,
            b"\x7f\xff\xff\xff\0\0\0\x01\0\0\0\x02\x08\x08\x08\x08\x1a\xe1\x0a\0\0\x01\0\x01\x7f\0\0\x01\0\x50half",
        )]
    })
    .await;
    let response = announce(&client(&["127.0.0.1"]), &url, None, &started()).await;
    assert_eq!(
        response.unwrap(),
        Response {
            interval: INTERVAL_MAX,
            peers: vec![address("8.8.8.8:6881"), address("127.0.0.1:80")]
        }
    );
}

#[tokio::test]
async fn udp_trackers_that_say_no_or_nonsense_end_the_announce() {
    let refusing = udp(|request| vec![reply(3, request, b"not registered")]).await;
    let short = udp(|request| vec![reply(0, request, b"x")]).await;
    let flood = udp(|_| vec![vec![0; 16]; 100]).await;
    let other = udp(|request| vec![reply(1, request, &[0; 12])]).await;
    let open = client(&["127.0.0.1"]);
    let ask = |url: String| {
        let open = open.clone();
        async move { announce(&open, &url, None, &started()).await.unwrap_err() }
    };
    assert!(
        matches!(ask(refusing).await, TrackerError::Failure(words) if words == "not registered")
    );
    for url in [short, flood, other] {
        assert!(matches!(ask(url).await, TrackerError::Nonsense(_)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_udp_tracker_is_asked_three_times_and_given_up() {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("udp://{}", socket.local_addr().unwrap());
    let start = tokio::time::Instant::now();
    let answer = announce(&client(&["127.0.0.1"]), &url, None, &started()).await;
    assert!(
        matches!(answer, Err(TrackerError::Unavailable(_))),
        "{answer:?}"
    );
    assert_eq!(start.elapsed(), Duration::from_secs(3 + 6 + 12));
    let mut transactions = std::collections::HashSet::new();
    for _ in 0..3 {
        let mut datagram = [0; 64];
        assert_eq!(socket.recv(&mut datagram).await.unwrap(), 16);
        transactions.insert(datagram[12..16].to_vec());
    }
    assert_eq!(transactions.len(), 3, "a number that was used before");
}
