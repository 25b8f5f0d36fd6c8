//! One iterative lookup: ask who is nearest, hear of nearer ones, until the nearest have all been asked.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use super::wire::{self, Answer, DATAGRAM_BYTES_MAX, Id, Transaction};
use crate::net::AddressFilter;

/// Nodes that have to have answered, and that are told of a seed: as many as BEP 5 keeps in a bucket.
pub(super) const NEAREST: usize = 8;

/// Questions without an answer at once.
const ASKED_MAX: usize = 8;

/// How long an answer is waited for; most come in a tenth of it.
const PATIENCE: Duration = Duration::from_secs(2);

/// The time of a whole lookup.
const LOOKUP: Duration = Duration::from_secs(12);

/// Questions of a lookup; a usual one takes thirty.
const QUESTIONS_MAX: usize = 128;

/// Nodes that are remembered in a lookup; the farthest are forgotten first.
const NODES_MAX: usize = 512;

/// Nodes taken from one answer; an honest one names eight.
const NODES_OF_ONE_MAX: usize = 16;

/// Peers that a lookup tells of.
const PEERS_MAX: usize = 200;

/// Datagrams that answer nothing, after which a lookup ends.
const STRAY_MAX: usize = 256;

/// A node of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) id: Id,
    pub(super) address: SocketAddr,
}

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    New,
    Asked,
    /// With what lets us announce there.
    Answered(Option<Vec<u8>>),
    Dead,
}

/// A question on its way.
struct Asked {
    address: SocketAddr,
    /// Whom it was asked, unless that is not known yet.
    node: Option<Id>,
    until: Instant,
}

/// A lookup.
pub(super) struct Lookup<'a> {
    id: Id,
    target: Id,
    socket: UdpSocket,
    bind: IpAddr,
    filter: &'a AddressFilter,
    told: &'a (dyn Fn(Vec<SocketAddr>) + Send + Sync),
    /// By their distance from what is looked for.
    nodes: BTreeMap<Id, (Node, Stage)>,
    /// Where to begin: nodes whose ids are not known.
    beginnings: VecDeque<SocketAddr>,
    asked: HashMap<Transaction, Asked>,
    peers: Vec<SocketAddr>,
    questions: usize,
    strays: usize,
    deadline: Instant,
}

/// The distance of two ids, BEP 5: greater where an earlier bit differs.
pub(super) fn distance(one: &Id, other: &Id) -> Id {
    std::array::from_fn(|at| one[at] ^ other[at])
}

impl<'a> Lookup<'a> {
    pub(super) fn new(
        id: Id,
        target: Id,
        socket: UdpSocket,
        bind: IpAddr,
        filter: &'a AddressFilter,
        told: &'a (dyn Fn(Vec<SocketAddr>) + Send + Sync),
    ) -> Self {
        Lookup {
            id,
            target,
            socket,
            bind,
            filter,
            told,
            nodes: BTreeMap::new(),
            beginnings: VecDeque::new(),
            asked: HashMap::new(),
            peers: Vec::new(),
            questions: 0,
            strays: 0,
            deadline: Instant::now() + LOOKUP,
        }
    }

    /// Takes a node that somebody named, if a datagram may go there.
    pub(super) fn add(&mut self, node: Node) {
        let far = distance(&node.id, &self.target);
        let usable = node.address.is_ipv4() == self.bind.is_ipv4()
            && node.address.port() != 0
            && self.filter.dial(node.address).is_ok();
        // Under however many ids, a place is asked once.
        let known = || {
            self.nodes
                .values()
                .any(|(other, _)| other.address == node.address)
        };
        if !usable || self.nodes.contains_key(&far) || known() {
            return;
        }
        self.nodes.insert(far, (node, Stage::New));
        if self.nodes.len() > NODES_MAX {
            self.nodes.pop_last();
        }
    }

    /// Begins at places that the user named.
    pub(super) fn begin_at(&mut self, places: Vec<SocketAddr>) {
        self.beginnings.extend(places);
    }

    /// Returns how many nodes answered.
    pub(super) fn answered(&self) -> usize {
        let answered = |(_, stage): &&(Node, Stage)| matches!(stage, Stage::Answered(_));
        self.nodes.values().filter(answered).count()
    }

    /// Returns how many peers were found.
    pub(super) fn found(&self) -> usize {
        self.peers.len()
    }

    /// Returns the nodes that were asked, and whether they answered.
    pub(super) fn asked(&self) -> impl Iterator<Item = (Node, bool)> {
        self.nodes.values().filter_map(|(node, stage)| match stage {
            Stage::Answered(_) => Some((*node, true)),
            Stage::Dead => Some((*node, false)),
            Stage::New | Stage::Asked => None,
        })
    }

    /// Asks until the nearest nodes have answered, or a limit is reached.
    pub(super) async fn run(&mut self) {
        while Instant::now() < self.deadline && self.strays < STRAY_MAX {
            while self.asked.len() < ASKED_MAX && self.questions < QUESTIONS_MAX {
                let Some((address, node)) = self.next() else {
                    break;
                };
                let v6 = self.bind.is_ipv6();
                let transaction = self.expect(address, node);
                let question = wire::get_peers(transaction, &self.id, &self.target, v6);
                self.send(transaction, &question).await;
            }
            if self.asked.is_empty() {
                return;
            }
            let heard = self.hear().await;
            if let Some((asked, Some(answer))) = heard {
                self.take(&asked, answer);
            }
        }
    }

    /// Tells the nearest nodes that answered where we are; returns how many took note.
    pub(super) async fn announce(&mut self, port: u16) -> usize {
        let nearest: Vec<(Node, Vec<u8>)> = self
            .nodes
            .values()
            .filter_map(|(node, stage)| match stage {
                Stage::Answered(Some(token)) => Some((*node, token.clone())),
                _ => None,
            })
            .take(NEAREST)
            .collect();
        self.asked.clear();
        self.deadline = Instant::now() + PATIENCE;
        for (node, token) in nearest {
            let transaction = self.expect(node.address, Some(node.id));
            let news = wire::announce_peer(transaction, &self.id, &self.target, port, &token);
            self.send(transaction, &news).await;
        }
        let mut noted = 0;
        while !self.asked.is_empty() && Instant::now() < self.deadline && self.strays < STRAY_MAX {
            noted += usize::from(matches!(self.hear().await, Some((_, Some(_)))));
        }
        noted
    }

    /// Chooses whom to ask next: a beginning, or a new one among the nearest that may be alive.
    fn next(&mut self) -> Option<(SocketAddr, Option<Id>)> {
        if let Some(address) = self.beginnings.pop_front() {
            return Some((address, None));
        }
        let alive = self.nodes.values_mut();
        let mut nearest = alive
            .filter(|(_, stage)| *stage != Stage::Dead)
            .take(NEAREST);
        let (node, stage) = nearest.find(|(_, stage)| *stage == Stage::New)?;
        *stage = Stage::Asked;
        Some((node.address, Some(node.id)))
    }

    /// Notes a question; nobody else can guess its number.
    fn expect(&mut self, address: SocketAddr, node: Option<Id>) -> Transaction {
        self.questions += 1;
        let transaction = rand::random();
        let until = Instant::now() + PATIENCE;
        let asked = Asked {
            address,
            node,
            until,
        };
        self.asked.insert(transaction, asked);
        transaction
    }

    async fn send(&mut self, transaction: Transaction, datagram: &[u8]) {
        let Some(address) = self.asked.get(&transaction).map(|asked| asked.address) else {
            return;
        };
        if self.socket.send_to(datagram, address).await.is_err()
            && let Some(asked) = self.asked.remove(&transaction)
        {
            self.give_up(&asked);
        }
    }

    fn give_up(&mut self, asked: &Asked) {
        let far = asked.node.map(|id| distance(&id, &self.target));
        if let Some((_, stage)) = far.and_then(|far| self.nodes.get_mut(&far)) {
            *stage = Stage::Dead;
        }
    }

    /// Waits for one datagram, or until the next question is late. Returns what was answered, if it was one of ours.
    async fn hear(&mut self) -> Option<(Asked, Option<Answer>)> {
        let mut datagram = [0; DATAGRAM_BYTES_MAX];
        let late = self.asked.values().map(|asked| asked.until).min();
        let until = late.map_or(self.deadline, |late| late.min(self.deadline));
        let Ok(received) = timeout_at(until, self.socket.recv_from(&mut datagram)).await else {
            let now = Instant::now();
            let late = self.asked.extract_if(|_, asked| asked.until <= now);
            for (_, asked) in late.collect::<Vec<_>>() {
                self.give_up(&asked);
            }
            return None;
        };
        let heard = received.ok().and_then(|(len, from)| {
            let (transaction, answer) = wire::answer(&datagram[..len], self.bind.is_ipv6())?;
            let asked = self.asked.get(&transaction)?;
            let asked = (asked.address == from).then_some(transaction)?;
            Some((self.asked.remove(&asked)?, answer))
        });
        if heard.is_none() {
            self.strays += 1;
        }
        if let Some((asked, None)) = &heard {
            self.give_up(asked);
        }
        heard
    }

    /// Takes what a node answered.
    fn take(&mut self, asked: &Asked, answer: Answer) {
        let id = asked.node.unwrap_or(answer.id);
        let node = Node {
            id,
            address: asked.address,
        };
        let far = distance(&id, &self.target);
        let stage = Stage::Answered(answer.token);
        self.nodes.insert(far, (node, stage));
        for node in answer.nodes.into_iter().take(NODES_OF_ONE_MAX) {
            self.add(node);
        }
        let before = self.peers.len();
        for peer in answer.peers {
            let wanted = self.peers.len() < PEERS_MAX
                && peer.port() != 0
                && self.filter.dial(peer).is_ok()
                && !self.peers.contains(&peer);
            if wanted {
                self.peers.push(peer);
            }
        }
        if self.peers.len() > before {
            (self.told)(self.peers[before..].to_vec());
        }
    }
}
