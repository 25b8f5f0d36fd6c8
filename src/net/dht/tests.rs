//! A hash table of scripted nodes on loopback, honest or not. They know nothing of our code.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;

use super::*;

/// Nothing below may take longer than this.
const HANG: Duration = Duration::from_secs(60);

const TARGET: Id = [0x5a; 20];

fn loopback() -> AddressFilter {
    AddressFilter::new(vec!["127.0.0.1".parse().unwrap()])
}

fn near(one: &Id, other: &Id) -> Vec<u8> {
    one.iter().zip(other).map(|(a, b)| a ^ b).collect()
}

/// Returns what follows `key` in a datagram, as a string of `len` bytes.
fn after<'a>(datagram: &'a [u8], key: &str, len: usize) -> Option<&'a [u8]> {
    let at = datagram
        .windows(key.len())
        .position(|window| window == key.as_bytes())?;
    datagram.get(at + key.len()..at + key.len() + len)
}

fn compact(address: SocketAddr) -> Vec<u8> {
    let SocketAddr::V4(address) = address else {
        panic!("only IPv4 here")
    };
    [&address.ip().octets()[..], &address.port().to_be_bytes()].concat()
}

/// Returns an answer: `id`, nodes, a token, peers.
fn answer(transaction: &[u8], id: &Id, nodes: &[(Id, SocketAddr)], values: &[Vec<u8>]) -> Vec<u8> {
    let mut out = b"d1:rd2:id20:".to_vec();
    out.extend_from_slice(id);
    out.extend_from_slice(format!("5:nodes{}:", nodes.len() * 26).as_bytes());
    for (id, address) in nodes {
        out.extend_from_slice(id);
        out.extend_from_slice(&compact(*address));
    }
    out.extend_from_slice(b"5:token5:token");
    if !values.is_empty() {
        out.extend_from_slice(b"6:valuesl");
        for value in values {
            out.extend_from_slice(b"6:");
            out.extend_from_slice(value);
        }
        out.push(b'e');
    }
    out.extend_from_slice(b"e1:t4:");
    out.extend_from_slice(transaction);
    out.extend_from_slice(b"1:y1:re");
    out
}

/// Honest nodes, each of which knows its neighbours and some others.
struct Table {
    nodes: Vec<(Id, SocketAddr)>,
    asked: Arc<AtomicUsize>,
    announced: Arc<Mutex<HashMap<SocketAddr, Vec<u8>>>>,
    tasks: JoinSet<()>,
}

impl Table {
    async fn start(count: usize) -> Table {
        let mut random = StdRng::seed_from_u64(count as u64);
        let mut nodes = Vec::new();
        let mut sockets = Vec::new();
        for _ in 0..count {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let id: Id = random.random();
            nodes.push((id, socket.local_addr().unwrap()));
            sockets.push(socket);
        }
        let asked = Arc::new(AtomicUsize::new(0));
        let announced = Arc::new(Mutex::new(HashMap::new()));
        let mut tasks = JoinSet::new();
        for ((id, address), socket) in nodes.clone().into_iter().zip(sockets) {
            let mut knows = nodes.clone();
            knows.sort_by_key(|(other, _)| near(&id, other));
            let far = knows.split_off(16.min(count));
            knows.extend((0..8.min(far.len())).map(|_| far[random.random_range(0..far.len())]));
            let (asked, announced) = (Arc::clone(&asked), Arc::clone(&announced));
            tasks.spawn(async move {
                let mut datagram = [0; 2000];
                let mut peer = None;
                loop {
                    let (len, from) = socket.recv_from(&mut datagram).await.unwrap();
                    let said = &datagram[..len];
                    asked.fetch_add(1, Ordering::Relaxed);
                    assert!(after(said, "2:roi1e", 0).is_some(), "we only ask");
                    let transaction = after(said, "1:t4:", 4).unwrap();
                    let target: Id = after(said, "info_hash20:", 20).unwrap().try_into().unwrap();
                    if after(said, "13:announce_peer", 0).is_some() {
                        assert_eq!(after(said, "5:token5:", 5), Some(&b"token"[..]));
                        let port = after(said, "4:porti", 4).unwrap();
                        let port = std::str::from_utf8(port).unwrap().parse().unwrap();
                        peer = Some(SocketAddr::new(from.ip(), port));
                        announced.lock().insert(address, said.to_vec());
                    }
                    knows.sort_by_key(|(other, _)| near(&target, other));
                    let values: Vec<_> = peer.into_iter().map(compact).collect();
                    let said = answer(transaction, &id, &knows[..8.min(knows.len())], &values);
                    socket.send_to(&said, from).await.unwrap();
                }
            });
        }
        Table {
            nodes,
            asked,
            announced,
            tasks,
        }
    }

    fn asker(&self, begin: usize) -> Dht {
        let place = self.nodes[begin].1.to_string();
        Dht::new(Ipv4Addr::LOCALHOST.into(), vec![place])
    }
}

async fn find(dht: &Dht, filter: &AddressFilter) -> Result<Vec<SocketAddr>, DhtError> {
    let told = Mutex::new(Vec::new());
    let tell = |peers: Vec<SocketAddr>| told.lock().extend(peers);
    let found = tokio::time::timeout(HANG, dht.find(filter, TARGET, &tell)).await;
    let found = found.expect("no end, for ever")?;
    let told = told.into_inner();
    assert_eq!(told.len(), found);
    Ok(told)
}

#[tokio::test]
async fn what_one_announces_another_finds() {
    let table = Table::start(80).await;
    let (seed, reader) = (table.asker(0), table.asker(79));
    assert_eq!(find(&reader, &loopback()).await.unwrap(), []);
    let announced = seed.announce(&loopback(), TARGET, 4242).await.unwrap();
    assert_eq!(announced, 8);
    // Those that are nearest, of all of them.
    let mut nearest = table.nodes.clone();
    nearest.sort_by_key(|(id, _)| near(id, &TARGET));
    for (_, address) in &nearest[..8] {
        assert!(table.announced.lock().contains_key(address));
    }
    let before = table.asked.load(Ordering::Relaxed);
    let found = find(&reader, &loopback()).await.unwrap();
    assert_eq!(found, ["127.0.0.1:4242".parse().unwrap()]);
    let questions = table.asked.load(Ordering::Relaxed) - before;
    assert!(questions <= 40, "{questions}");
}

#[tokio::test]
async fn nodes_that_are_gone_are_forgotten_and_it_begins_again() {
    let mut gone = Table::start(20).await;
    // Of another number, and so with other ids.
    let here = Table::start(21).await;
    let places = [&gone, &here].map(|table| table.nodes[0].1.to_string());
    let dht = Dht::new(Ipv4Addr::LOCALHOST.into(), places.to_vec());
    find(&dht, &loopback()).await.unwrap();
    let known = |table: &Table| {
        let nodes = dht.nodes.lock();
        let all = table.nodes.iter();
        all.filter(|(_, address)| nodes.contains(address)).count()
    };
    assert!(known(&gone) > 0 && known(&here) > 0);
    here.asker(1)
        .announce(&loopback(), TARGET, 4242)
        .await
        .unwrap();
    let before = known(&gone);
    gone.tasks.abort_all();
    let found = find(&dht, &loopback()).await.unwrap();
    assert_eq!(found, ["127.0.0.1:4242".parse().unwrap()]);
    assert!(known(&gone) < before);
}

#[tokio::test]
async fn one_node_is_a_table_too() {
    let table = Table::start(1).await;
    let (seed, reader) = (table.asker(0), table.asker(0));
    assert_eq!(seed.announce(&loopback(), TARGET, 4242).await.unwrap(), 1);
    let found = find(&reader, &loopback()).await.unwrap();
    assert_eq!(found, ["127.0.0.1:4242".parse().unwrap()]);
}

#[tokio::test]
async fn nobody_answers() {
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let places = vec![
        silent.local_addr().unwrap().to_string(),
        "[::1]:9".to_owned(),
    ];
    let dht = Dht::new(Ipv4Addr::LOCALHOST.into(), places);
    let start = Instant::now();
    let found = find(&dht, &loopback()).await;
    assert!(matches!(found, Err(DhtError::Nobody)), "{found:?}");
    assert!(start.elapsed() < HANG / 2);
    let announced = dht.announce(&loopback(), TARGET, 1).await;
    assert!(matches!(announced, Err(DhtError::Nobody)), "{announced:?}");
    // An address of nobody's: TEST-NET-1.
    let elsewhere = Dht::new([192, 0, 2, 1].into(), Vec::new());
    let found = find(&elsewhere, &loopback()).await;
    assert!(matches!(found, Err(DhtError::Bind(..))), "{found:?}");
}

/// Answers each question with what `say` makes of its transaction, as often as there is something.
async fn node(say: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> (SocketAddr, JoinSet<()>) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut datagram = [0; 2000];
        loop {
            let (len, from) = socket.recv_from(&mut datagram).await.unwrap();
            let transaction = after(&datagram[..len], "1:t4:", 4).unwrap();
            for said in say(transaction) {
                socket.send_to(&said, from).await.unwrap();
            }
        }
    });
    (address, tasks)
}

#[tokio::test]
async fn a_node_opens_no_way_inwards() {
    let victim = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let target = victim.local_addr().unwrap();
    let mut inward: Vec<SocketAddr> = ["10.0.0.1:53", "169.254.169.254:80", "1.2.3.4:0"]
        .map(|address| address.parse().unwrap())
        .to_vec();
    inward.push(target);
    let (address, _node) = node(move |transaction| {
        let nodes: Vec<_> = (1..).zip(&inward).map(|(n, at)| ([n; 20], *at)).collect();
        let peers: Vec<_> = inward.iter().map(|at| compact(*at)).collect();
        vec![answer(transaction, &[9; 20], &nodes, &peers)]
    })
    .await;
    let dht = Dht::new(Ipv4Addr::LOCALHOST.into(), vec![address.to_string()]);
    // The user vouches for where to begin, and for nothing that is heard there.
    let found = find(&dht, &AddressFilter::default()).await.unwrap();
    assert_eq!(found, []);
    let mut datagram = [0; 100];
    assert!(victim.try_recv(&mut datagram).is_err(), "it was written to");
    // Where the configuration allows it, it is asked.
    let found = find(&dht, &loopback()).await.unwrap();
    assert_eq!(found, [target]);
    assert!(victim.try_recv(&mut datagram).is_ok());
}

#[tokio::test]
async fn whatever_a_node_says_is_bounded() {
    let flood = |transaction: &[u8]| {
        let random = rand::random::<u64>().to_be_bytes();
        let peers: Vec<_> = (0..150_u8)
            .map(|n| vec![8, random[0], random[1], n, 1, 1])
            .collect();
        let nodes: Vec<_> = (0..30_u8)
            .map(|n| {
                let mut id = TARGET;
                id[12..].copy_from_slice(&random);
                id[0] ^= n & 1;
                (id, SocketAddr::from(([127, 0, 0, 1], 1000 + u16::from(n))))
            })
            .collect();
        vec![answer(transaction, &TARGET, &nodes, &peers)]
    };
    let stray = |_: &[u8]| vec![answer(b"none", &TARGET, &[], &[]); 400];
    let garbage = |_: &[u8]| vec![rand::random::<[u8; 32]>().to_vec(), Vec::new()];
    let long = |transaction: &[u8]| {
        let mut said = answer(transaction, &TARGET, &[], &[]);
        said.resize(60_000, b'x');
        vec![said]
    };
    let same = |transaction: &[u8]| {
        let peer = compact("8.8.8.8:8".parse().unwrap());
        vec![answer(transaction, &TARGET, &[], &vec![peer; 100]); 3]
    };
    let start = Instant::now();
    let mut tasks = Vec::new();
    let mut places = Vec::new();
    for (place, task) in [
        node(flood).await,
        node(stray).await,
        node(garbage).await,
        node(long).await,
        node(same).await,
    ] {
        let dht = Dht::new(Ipv4Addr::LOCALHOST.into(), vec![place.to_string()]);
        let found = find(&dht, &loopback()).await.unwrap_or_default();
        assert!(found.len() <= 200, "{}", found.len());
        assert!(dht.nodes.lock().len() <= NODES_MAX.get());
        places.push(place.to_string());
        tasks.push(task);
    }
    // A place to begin that talks nonsense hides nothing that another one says.
    let table = Table::start(20).await;
    table
        .asker(0)
        .announce(&loopback(), TARGET, 4242)
        .await
        .unwrap();
    places.push(table.nodes[3].1.to_string());
    let honest: SocketAddr = "127.0.0.1:4242".parse().unwrap();
    let dht = Dht::new(
        Ipv4Addr::LOCALHOST.into(),
        vec![places[2].clone(), places[5].clone()],
    );
    assert!(find(&dht, &loopback()).await.unwrap().contains(&honest));
    assert!(start.elapsed() < HANG);
}
