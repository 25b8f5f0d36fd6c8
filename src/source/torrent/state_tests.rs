//! What a swarm decides, message by message, without a socket and with a clock of its own.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Patience;
use super::book::{Blame, Book, Peer};
use super::job::{Delivered, Job, Terms, cut};
use super::link::Misdeed;
use super::state::State;
use super::wire::{Heard, Key};
use crate::source::{SourceError, Spill};

const MIB: u64 = 1 << 20;
const MS: Duration = Duration::from_millis(1);

type Outcome = oneshot::Receiver<Result<Delivered, SourceError>>;

/// A swarm of a torrent of eight pieces.
struct Scene {
    state: State,
    now: Instant,
}

impl Scene {
    fn new(peers: &[&str]) -> Scene {
        let now = Instant::now();
        let mut state = State::new(Patience::default(), Book::default(), now);
        let peers: Vec<Peer> = peers.iter().map(|peer| Peer::from(*peer)).collect();
        state.book.configure(&peers);
        state.pieces = Some(8);
        Scene { state, now }
    }

    /// Wants `len` bytes at `offset`.
    fn want(&mut self, offset: u64, len: u32, terms: Terms) -> Outcome {
        let (done, outcome) = oneshot::channel();
        let parts = cut(offset, len, MIB).unwrap();
        let job = Job::new(parts, len, terms, Spill::ignored(), done);
        self.state.add(job);
        outcome
    }

    /// Dials whoever is to be dialled, and has each shake hands and let itself be asked for everything.
    fn connect(&mut self) -> Vec<(u64, Peer)> {
        let dialled = self.state.tick(self.now).dial;
        for (id, ..) in &dialled {
            self.state.open(*id, self.now);
            self.hear(*id, Heard::Bitfield(&[0xff])).unwrap();
            self.hear(*id, Heard::Unchoke).unwrap();
        }
        dialled
            .into_iter()
            .map(|(id, peer, _)| (id, peer))
            .collect()
    }

    fn hear(&mut self, id: u64, heard: Heard<'_>) -> Result<(), Misdeed> {
        self.state.hear(id, heard, self.now)
    }

    /// Returns what a connection is asked for now, and what is taken back there.
    fn fill(&mut self, id: u64) -> (Vec<Key>, Vec<Key>) {
        let mut out = BytesMut::new();
        self.state.fill(id, &mut out, self.now).unwrap();
        let (mut asked, mut cancelled) = (Vec::new(), Vec::new());
        for message in out.chunks(17) {
            let number = |at: usize| u32::from_be_bytes(message[at..at + 4].try_into().unwrap());
            assert_eq!(number(0), 13, "requests and cancels are of one length");
            let key = Key {
                piece: number(5),
                begin: number(9),
                len: number(13),
            };
            match message[4] {
                6 => asked.push(key),
                8 => cancelled.push(key),
                other => panic!("a message of kind {other}"),
            }
        }
        (asked, cancelled)
    }

    fn answer(&mut self, id: u64, key: Key) -> Result<(), Misdeed> {
        let bytes = vec![7; key.len as usize];
        let heard = Heard::Piece {
            piece: key.piece,
            begin: key.begin,
            bytes: &bytes,
        };
        self.hear(id, heard)
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        let dialled = self.state.tick(self.now).dial;
        assert!(dialled.is_empty(), "nobody new is to be dialled");
    }
}

/// Two peers that have shown what they are.
fn proven(peers: [&str; 2]) -> (Scene, [(u64, Peer); 2]) {
    let mut scene = Scene::new(&peers);
    let _first = scene.want(0, 1, Terms::default());
    let linked: [(u64, Peer); 2] = scene.connect().try_into().unwrap();
    let (asked, _) = scene.fill(linked[0].0);
    scene.answer(linked[0].0, asked[0]).unwrap();
    for (_, peer) in &linked {
        scene.state.verdict(peer, true);
    }
    (scene, linked)
}

#[test]
fn an_unknown_peer_shows_what_it_is_with_one_block() {
    let mut scene = Scene::new(&["a:1"]);
    let mut one = scene.want(0, 100_000, Terms::default());
    let _two = scene.want(MIB, 100_000, Terms::default());
    let [(id, peer)] = <[_; 1]>::try_from(scene.connect()).unwrap();
    let (asked, _) = scene.fill(id);
    assert_eq!(asked.len(), 7);
    assert!(asked.iter().all(|key| key.piece == 0), "{asked:?}");
    assert!(one.try_recv().is_err());
    for key in asked {
        scene.answer(id, key).unwrap();
    }
    let delivered = one.try_recv().unwrap().unwrap();
    assert_eq!(delivered.bytes, vec![7; 100_000]);
    assert_eq!(delivered.from, vec![Arc::clone(&peer); 7]);
    // Until somebody has looked at it, it gets no more.
    assert_eq!(scene.fill(id).0, []);
    scene.state.verdict(&peer, true);
    let (asked, _) = scene.fill(id);
    assert!(asked.len() == 7 && asked.iter().all(|key| key.piece == 1));
}

#[test]
fn what_a_choke_drops_others_are_asked_for() {
    let (mut scene, [(one, _), (two, _)]) = proven(["a:1", "b:1"]);
    let _job = scene.want(MIB, 200_000, Terms::default());
    let (asked, _) = scene.fill(one);
    assert!(!asked.is_empty());
    scene.hear(one, Heard::Choke).unwrap();
    assert_eq!(scene.fill(one).0, [], "a choked peer is asked for nothing");
    let mut all = Vec::new();
    while let (more @ [_, ..], _) = (&scene.fill(two).0[..], ()) {
        all.extend_from_slice(more);
    }
    assert_eq!(all.len(), 13, "{all:?}");
    // What it sends all the same is no misdeed.
    scene.answer(one, asked[0]).unwrap();
}

#[test]
fn a_late_peer_is_helped_and_the_first_answer_counts() {
    let (mut scene, [(late, late_peer), (quick, quick_peer)]) = proven(["a:1", "b:1"]);
    // Small enough for one of them.
    let mut job = scene.want(MIB, 40_000, Terms::default());
    let (asked, _) = scene.fill(late);
    assert_eq!(asked.len(), 3);
    assert_eq!(scene.fill(quick).0, []);
    scene.pass(90 * MS);
    assert_eq!(scene.fill(quick).0, [], "it is not late yet");
    scene.pass(60 * MS);
    let (mut taken, _) = scene.fill(quick);
    taken.sort_unstable_by_key(|key| key.begin);
    assert_eq!(taken, asked);
    scene.answer(late, asked[0]).unwrap();
    for key in &asked[1..] {
        scene.answer(quick, *key).unwrap();
    }
    let delivered = job.try_recv().unwrap().unwrap();
    let from = [&late_peer, &quick_peer, &quick_peer].map(Arc::clone);
    assert_eq!(delivered.from, from);
    // Each is told what is not needed of it any more, and may have sent it already.
    assert_eq!(scene.fill(quick).1, asked[..1]);
    assert_eq!(scene.fill(late).1, asked[1..]);
    scene.answer(late, asked[1]).unwrap();
    scene.answer(quick, asked[0]).unwrap();
    assert_eq!(scene.answer(quick, asked[0]), Err(Misdeed::Unasked));
}

#[test]
fn who_passes_over_a_request_has_not_got_the_piece() {
    let mut scene = Scene::new(&["a:1"]);
    let _job = scene.want(0, 40_000, Terms::default());
    let [(id, _)] = <[_; 1]>::try_from(scene.connect()).unwrap();
    let (asked, _) = scene.fill(id);
    for key in &asked[1..] {
        scene.answer(id, *key).unwrap();
    }
    scene.pass(2900 * MS);
    assert_eq!(scene.fill(id), (Vec::new(), Vec::new()));
    scene.pass(200 * MS);
    assert_eq!(scene.fill(id), (Vec::new(), asked[..1].to_vec()));
    assert_eq!(scene.state.links[&id].passed_over, 1);
}

#[test]
fn what_has_to_come_from_one_comes_from_one_that_may_be_asked() {
    let (mut scene, [(one, peer), (two, other)]) = proven(["a:1", "b:1"]);
    let terms = Terms {
        alone: true,
        avoid: vec![peer],
    };
    let mut job = scene.want(MIB, 100_000, terms);
    assert_eq!(scene.fill(one).0, [], "this one is avoided");
    assert_eq!(scene.fill(two).0.len(), 7);
    assert_eq!(scene.fill(one).0, []);
    scene.state.close(two, Blame::Failure, "gone", scene.now);
    // It rests, and then there is nobody who could.
    scene.pass(MS);
    let failed = job.try_recv().unwrap().unwrap_err();
    assert_eq!(failed, SourceError::unavailable(format!("{other}: gone")));
}

#[test]
fn a_block_that_nobody_can_have_fails_at_once_unless_somebody_is_looked_for() {
    let mut scene = Scene::new(&[]);
    scene.state.searching = true;
    let mut job = scene.want(0, 1000, Terms::default());
    scene.pass(MS);
    assert!(job.try_recv().is_err(), "peers may be found yet");
    scene.state.searching = false;
    scene.pass(MS);
    let failed = job.try_recv().unwrap().unwrap_err();
    assert_eq!(failed, SourceError::not_found("no peer is known"));

    let mut scene = Scene::new(&["a:1"]);
    let peer = Peer::from("a:1");
    for _ in 0..2 {
        scene.state.lied(&peer, false);
    }
    let mut job = scene.want(0, 1000, Terms::default());
    scene.pass(MS);
    let failed = job.try_recv().unwrap().unwrap_err();
    assert_eq!(
        failed,
        SourceError::not_found("every peer sent wrong bytes")
    );
}

#[test]
fn a_second_lie_ends_the_connection_for_good() {
    let (mut scene, [(one, peer), _]) = proven(["a:1", "b:1"]);
    scene.state.lied(&peer, true);
    assert!(scene.state.links[&one].doom.is_none());
    scene.state.lied(&peer, true);
    let doom = scene.state.links[&one].doom.clone().unwrap();
    assert_eq!(doom.0, Blame::Misdeed);
    scene.state.close(one, doom.0, &doom.1, scene.now);
    let _job = scene.want(0, 1000, Terms::default());
    scene.pass(Duration::from_secs(100_000));
}

#[test]
fn what_breaks_the_protocol_is_a_misdeed() {
    let mut scene = Scene::new(&["a:1"]);
    let _job = scene.want(0, 1000, Terms::default());
    let [(id, _)] = <[_; 1]>::try_from(scene.connect()).unwrap();
    let key = Key {
        piece: 3,
        begin: 0,
        len: 5,
    };
    assert_eq!(scene.answer(id, key), Err(Misdeed::Unasked));
    assert_eq!(scene.hear(id, Heard::Have(7)), Ok(()));
    assert_eq!(scene.hear(id, Heard::Have(8)), Err(Misdeed::Piece));
    let odd = Heard::Bitfield(&[0xff, 0]);
    assert_eq!(scene.hear(id, odd), Err(Misdeed::Bitfield));
    let flaps = (0..100).find_map(|_| scene.hear(id, Heard::Unchoke).err());
    assert_eq!(flaps, Some(Misdeed::Flaps));
    let noise = (0..1_000_000).find_map(|_| scene.hear(id, Heard::Noise).err());
    assert_eq!(noise, Some(Misdeed::Flood));
    // Who is not there any more is not listened to.
    assert_eq!(scene.hear(id + 100, Heard::Have(8)), Ok(()));
}

#[test]
fn a_connection_ends_that_is_silent_choked_or_not_needed() {
    let patience = Patience::default();
    let why = |scene: &Scene, id: u64| scene.state.links[&id].doom.clone().map(|doom| doom.1);

    let mut scene = Scene::new(&["a:1"]);
    let _job = scene.want(0, 1000, Terms::default());
    let [(id, _)] = <[_; 1]>::try_from(scene.connect()).unwrap();
    assert_eq!(scene.fill(id).0.len(), 1);
    scene.pass(patience.stall);
    assert_eq!(why(&scene, id).as_deref(), Some("stalled"));

    let mut scene = Scene::new(&["a:1"]);
    let _job = scene.want(0, 1000, Terms::default());
    let [(id, _)] = <[_; 1]>::try_from(scene.connect()).unwrap();
    scene.hear(id, Heard::Choke).unwrap();
    scene.pass(patience.choked);
    assert_eq!(why(&scene, id).as_deref(), Some("never unchoked us"));

    let mut scene = Scene::new(&["a:1"]);
    let _job = scene.want(0, 1000, Terms::default());
    let [(id, _)] = <[_; 1]>::try_from(scene.connect()).unwrap();
    let (asked, _) = scene.fill(id);
    scene.answer(id, asked[0]).unwrap();
    scene.pass(patience.idle - MS);
    assert_eq!(why(&scene, id), None);
    scene.pass(MS);
    assert_eq!(why(&scene, id).as_deref(), Some("not needed any more"));
}
