use super::*;

const SETTLE: Duration = Duration::from_secs(60);

fn key(name: &str) -> Key {
    Key::from_path(name.as_bytes()).unwrap()
}

fn seen(name: &str, inode: u64) -> (Key, Seen) {
    let key = key(name);
    let package = Some(key.wanted().unwrap().name);
    let seen = Seen {
        inode,
        owner: 1000,
        mark: None,
        moved_in: false,
        package,
        remembered: None,
    };
    (key, seen)
}

fn marked(name: &str, inode: u64, mark: Option<Mark>) -> (Key, Seen) {
    let (key, mut seen) = seen(name, inode);
    seen.mark = mark;
    (key, seen)
}

fn mark(inode: u64) -> Option<Mark> {
    Some(Mark {
        inode,
        mtime: (1, 0),
        ctime: (1, 0),
    })
}

fn print(byte: u8) -> Option<Fingerprint> {
    // As the state file has it.
    let hex = hex::encode([byte; 32]);
    Some(serde_json::from_value(serde_json::Value::String(hex)).unwrap())
}

/// What an earlier process wrote down of a tree that looked like `print(1)`.
fn remembered(mark: Option<Mark>, becomes: Option<&str>) -> Option<Remembered> {
    Some(Remembered {
        fingerprint: print(1).unwrap(),
        mark,
        becomes: becomes.map(|version| version.parse().unwrap()),
    })
}

/// A publish that has left nothing to do.
const DONE: Ending = Ending::Done { fingerprint: None };

/// A board, and the moment at which everything happens unless somebody moves it.
struct Scene {
    board: Board,
    now: Instant,
}

impl Scene {
    fn new(settle: Duration) -> Scene {
        Scene {
            board: Board::new(settle),
            now: Instant::now(),
        }
    }

    /// The drop directory holds these and nothing else.
    fn holds(&mut self, listed: &[(&str, u64)]) -> (Vec<Key>, Vec<(Key, Phase)>) {
        self.lists(listed.iter().map(|(name, inode)| seen(name, *inode)))
    }

    fn lists(
        &mut self,
        listed: impl IntoIterator<Item = (Key, Seen)>,
    ) -> (Vec<Key>, Vec<(Key, Phase)>) {
        let listed = listed.into_iter().collect();
        self.board.found(listed, BTreeSet::new(), self.now)
    }

    /// The kernel says that something was renamed to this name.
    fn moves(&mut self, name: &str) {
        self.board.moved_in(key(name), self.now);
    }

    /// A directory comes by a rename.
    fn moves_in(&mut self, name: &str, inode: u64) {
        self.moves(name);
        self.holds(&[(name, inode)]);
    }

    /// Somebody says that a directory is complete, and it is found.
    fn commits(&mut self, name: &str, inode: u64) {
        self.board.commit(&key(name), inode);
        self.holds(&[(name, inode)]);
    }

    fn start(&mut self, room: usize) -> Vec<String> {
        let started = self.board.start(room, self.now);
        started.iter().map(ToString::to_string).collect()
    }

    fn ends(&mut self, name: &str, ending: Ending) {
        self.board.ended(&key(name), ending, self.now);
    }

    fn phase(&self, name: &str) -> Option<Phase> {
        self.board.phase(&key(name))
    }

    fn looks(&mut self, name: &str, fingerprint: Option<Fingerprint>) -> Option<Phase> {
        let key = key(name);
        self.board
            .looked(&key, fingerprint, false, Duration::ZERO, self.now)
    }

    /// Looks every second until `until` after now; returns when the phase changed, if it did.
    fn looks_until(
        &mut self,
        name: &str,
        until: u64,
        look: impl Fn(u64) -> (Option<Fingerprint>, bool),
    ) -> Option<(u64, Phase)> {
        let key = key(name);
        (0..=until).find_map(|second| {
            let now = self.now + Duration::from_secs(second);
            let (fingerprint, written) = look(second);
            let phase = self
                .board
                .looked(&key, fingerprint, written, Duration::ZERO, now)?;
            Some((second, phase))
        })
    }
}

#[test]
fn quiet_for_long_enough_is_committed() {
    let mut scene = Scene::new(SETTLE);
    scene.holds(&[("a@1.0.0", 1)]);
    assert_eq!(scene.board.to_look_at(scene.now), [key("a@1.0.0")]);
    // One file a second for two minutes, then nothing; a look that fails is a change.
    let changed = scene.looks_until("a@1.0.0", 400, |second| match second {
        0..120 => (print(u8::try_from(second).unwrap()), false),
        120 => (None, false),
        _ => (print(200), false),
    });
    assert_eq!(changed, Some((121 + 60, Phase::Committed)));
    assert_eq!(scene.start(4), ["a@1.0.0"]);
}

#[test]
fn an_open_file_holds_it_up_however_quiet_it_is() {
    let mut scene = Scene::new(SETTLE);
    scene.holds(&[("a@1.0.0", 1)]);
    let changed = scene.looks_until("a@1.0.0", 400, |second| (print(1), second < 300));
    assert_eq!(changed, Some((300, Phase::Committed)));
}

#[test]
fn without_settle_quiet_means_nothing() {
    let mut scene = Scene::new(Duration::ZERO);
    scene.holds(&[("a@1.0.0", 1)]);
    let late = scene.now + Duration::from_secs(9999);
    assert!(scene.board.to_look_at(late).is_empty());
    assert_eq!(scene.board.wake_at(), None);
    scene.commits("a@1.0.0", 1);
    assert_eq!(scene.start(1), ["a@1.0.0"]);
}

#[test]
fn renamed_into_place_and_marked_are_committed_at_once() {
    let mut scene = Scene::new(SETTLE);
    // The event may come before the directory is listed.
    scene.moves("moved@1.0.0");
    let (older, mut seen_older) = seen("acme/older@1.0.0", 3);
    seen_older.moved_in = true;
    scene.lists([
        seen("moved@1.0.0", 1),
        marked("marked@1.0.0", 2, mark(7)),
        (older, seen_older),
        seen("copied@1.0.0", 4),
    ]);
    assert_eq!(scene.start(9).len(), 3);
    assert_eq!(scene.phase("copied@1.0.0"), Some(Phase::Arriving));
    // Or after it.
    scene.moves_in("copied@1.0.0", 4);
    assert_eq!(scene.start(9), ["copied@1.0.0"]);
}

#[test]
fn what_is_refused_is_tried_again_when_it_is_committed_or_changed() {
    let mut scene = Scene::new(SETTLE);
    let refuse = |scene: &mut Scene| {
        assert_eq!(scene.start(1), ["a@1.0.0"]);
        let fingerprint = print(1);
        scene.ends("a@1.0.0", Ending::Done { fingerprint });
        assert!(scene.start(1).is_empty());
    };
    scene.lists([marked("a@1.0.0", 1, mark(1))]);
    refuse(&mut scene);
    // The mark has had its effect; another one is another.
    scene.lists([marked("a@1.0.0", 1, mark(1))]);
    assert!(scene.start(1).is_empty());
    scene.lists([marked("a@1.0.0", 1, mark(2))]);
    refuse(&mut scene);
    scene.commits("a@1.0.0", 1);
    refuse(&mut scene);
    scene.moves_in("a@1.0.0", 1);
    refuse(&mut scene);
    // The same as before is no change; another thing settles first.
    assert_eq!(
        scene.looks_until("a@1.0.0", 200, |_| (print(1), false)),
        None
    );
    let changed = scene.looks_until("a@1.0.0", 0, |_| (print(2), false));
    assert_eq!(changed, Some((0, Phase::Arriving)));
    let changed = scene.looks_until("a@1.0.0", 200, |_| (print(2), false));
    assert_eq!(changed, Some((60, Phase::Committed)));
}

#[test]
fn what_passes_by_itself_is_tried_again_ever_more_seldom() {
    let mut scene = Scene::new(SETTLE);
    scene.moves_in("a@1.0.0", 1);
    let mut waits = Vec::new();
    for _ in 0..12 {
        assert_eq!(scene.start(1), ["a@1.0.0"]);
        scene.ends("a@1.0.0", Ending::Wait);
        assert!(scene.start(1).is_empty());
        let next = scene.board.wake_at().unwrap();
        waits.push((next - scene.now).as_secs());
        scene.now = next;
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 120, 120, 120, 120, 120]);
}

#[test]
fn of_one_package_one_at_a_time() {
    let mut scene = Scene::new(SETTLE);
    let names = ["a@1.0.0", "a@2.0.0", "a@next", "b@1.0.0", "s/a@1.0.0"];
    for name in names {
        scene.moves(name);
    }
    scene.lists(names.iter().zip(1..).map(|(name, inode)| seen(name, inode)));
    assert_eq!(scene.start(9), ["a@1.0.0", "b@1.0.0", "s/a@1.0.0"]);
    scene.ends("a@1.0.0", DONE);
    assert_eq!(scene.start(9), ["a@2.0.0"]);
    assert!(scene.start(9).is_empty());
}

#[test]
fn who_comes_first_is_first_and_who_drops_much_holds_up_nobody_else() {
    let mut scene = Scene::new(SETTLE);
    let mut listed: Vec<(String, u64, u32)> = Vec::new();
    let mut drop_it = |scene: &mut Scene, name: &str, owner: u32| {
        listed.push((name.to_owned(), listed.len() as u64 + 1, owner));
        scene.moves(name);
        let entries = listed.iter().map(|(name, inode, owner)| {
            let (key, mut seen) = seen(name, *inode);
            seen.owner = *owner;
            (key, seen)
        });
        scene.lists(entries);
        scene.now += Duration::from_secs(1);
    };
    for name in ["d@1.0.0", "c@1.0.0", "b@1.0.0", "a@1.0.0"] {
        drop_it(&mut scene, name, 1);
    }
    assert_eq!(scene.start(1), ["d@1.0.0"]);
    drop_it(&mut scene, "other@1.0.0", 2);
    drop_it(&mut scene, "another@1.0.0", 2);
    // One of the first owner is under way, so that it is the other's turn.
    assert_eq!(scene.start(2), ["other@1.0.0", "c@1.0.0"]);
    scene.ends("other@1.0.0", DONE);
    assert_eq!(scene.start(1), ["another@1.0.0"]);
    assert_eq!(scene.start(0), [""; 0]);
    assert_eq!(scene.start(9), ["b@1.0.0", "a@1.0.0"]);
}

#[test]
fn another_directory_under_the_same_name_begins_anew() {
    let mut scene = Scene::new(SETTLE);
    scene.moves_in("a@1.0.0", 1);
    scene.start(1);
    scene.ends("a@1.0.0", DONE);
    let (new, gone) = scene.holds(&[("a@1.0.0", 2)]);
    assert_eq!((new, gone), (vec![key("a@1.0.0")], vec![]));
    assert_eq!(scene.phase("a@1.0.0"), Some(Phase::Arriving));
    let (new, gone) = scene.holds(&[]);
    let was = (key("a@1.0.0"), Phase::Arriving);
    assert_eq!((new, gone), (vec![], vec![was]));
}

#[test]
fn what_was_committed_while_it_was_published_is_published_again() {
    let mut scene = Scene::new(SETTLE);
    scene.moves_in("a@1.0.0", 1);
    scene.start(1);
    scene.commits("a@1.0.0", 1);
    scene.ends("a@1.0.0", DONE);
    assert_eq!(scene.start(1), ["a@1.0.0"]);
    // But what we gave back ourselves settles first, whatever the kernel says of the renaming.
    scene.ends("a@1.0.0", Ending::Again);
    scene.moves_in("a@1.0.0", 1);
    assert_eq!(scene.phase("a@1.0.0"), Some(Phase::Arriving));
    // What somebody says meanwhile holds, whatever the end.
    scene.commits("a@1.0.0", 1);
    scene.start(1);
    scene.commits("a@1.0.0", 1);
    scene.ends("a@1.0.0", Ending::Again);
    assert_eq!(scene.start(1), ["a@1.0.0"]);
}

#[test]
fn a_command_that_comes_before_the_start_is_satisfied_by_it() {
    let mut scene = Scene::new(SETTLE);
    scene.moves_in("a@1.0.0", 1);
    scene.board.commit(&key("a@1.0.0"), 1);
    assert_eq!(scene.start(1), ["a@1.0.0"]);
    assert!(!scene.board.is_pending(&key("a@1.0.0"), 1));
    scene.holds(&[("a@1.0.0", 1)]);
    scene.ends("a@1.0.0", DONE);
    assert!(scene.start(1).is_empty());
}

#[test]
fn it_is_known_whether_somebody_said_that_an_entry_is_complete() {
    let mut scene = Scene::new(SETTLE);
    let both = [("quiet@1.0.0", 1), ("moved@1.0.0", 2)];
    scene.moves("moved@1.0.0");
    scene.holds(&both);
    let changed = scene.looks_until("quiet@1.0.0", 60, |_| (print(1), false));
    assert_eq!(changed, Some((60, Phase::Committed)));
    scene.start(9);
    assert!(!scene.board.is_by_quiet(&key("moved@1.0.0")));
    assert!(scene.board.is_by_quiet(&key("quiet@1.0.0")));
    scene.board.commit(&key("quiet@1.0.0"), 1);
    scene.holds(&both);
    assert!(!scene.board.is_by_quiet(&key("quiet@1.0.0")));
}

#[test]
fn what_an_earlier_process_was_done_with_waits_for_a_change() {
    let mut scene = Scene::new(SETTLE);
    let (key, mut kept) = marked("a@1.0.0", 1, mark(1));
    kept.remembered = remembered(mark(1), None);
    scene.lists([(key, kept)]);
    assert!(scene.start(1).is_empty());
    assert_eq!(scene.looks("a@1.0.0", print(1)), None);
    scene.now += LOOK_DONE;
    assert_eq!(scene.looks("a@1.0.0", print(2)), Some(Phase::Arriving));
}

#[test]
fn what_does_not_fit_the_listing_is_not_gone() {
    let mut scene = Scene::new(SETTLE);
    scene.holds(&[("a@1.0.0", 1), ("b@1.0.0", 2)]);
    let unlisted = BTreeSet::from([key("b@1.0.0")]);
    let (_, gone) = scene
        .board
        .found(vec![seen("c@1.0.0", 3)], unlisted, scene.now);
    assert_eq!(gone, [(key("a@1.0.0"), Phase::Arriving)]);
    assert_eq!(scene.phase("b@1.0.0"), Some(Phase::Arriving));
}

#[test]
fn no_more_entries_are_known_than_can_be_and_the_rest_is_not_lost() {
    let mut scene = Scene::new(SETTLE);
    let many = (0..ENTRIES_MAX as u64).map(|number| seen(&format!("b@1.0.{number}"), number));
    scene.lists(many);
    let last = key("a@1.0.0");
    scene.board.commit(&last, u64::MAX);
    let all = (0..ENTRIES_MAX as u64).map(|number| seen(&format!("b@1.0.{number}"), number));
    let (new, gone) = scene.lists(all.chain([seen("a@1.0.0", u64::MAX)]));
    assert_eq!((new, gone), (vec![], vec![]));
    // Whoever committed it is not told that it was taken.
    assert!(scene.board.is_pending(&last, u64::MAX));
    scene.holds(&[("a@1.0.0", u64::MAX)]);
    assert!(scene.start(1).is_empty(), "the others went only now");
    scene.holds(&[("a@1.0.0", u64::MAX)]);
    assert_eq!(scene.start(1), ["a@1.0.0"]);
}

#[test]
fn a_mark_that_was_touched_between_two_processes_has_its_effect() {
    for (before, after, committed) in [
        (mark(1), mark(1), false),
        (mark(1), mark(2), true),
        (None, mark(1), true),
        (mark(1), None, false),
    ] {
        let mut scene = Scene::new(SETTLE);
        let (key, mut kept) = marked("a@1.0.0", 1, after);
        kept.remembered = remembered(before, None);
        scene.lists([(key, kept)]);
        let started = scene.start(1);
        assert_eq!(!started.is_empty(), committed, "{before:?} {after:?}");
    }
}

#[test]
fn what_an_earlier_process_had_begun_to_sign_is_gone_on_with_if_it_is_the_same() {
    for (look, phase) in [
        (print(1), Phase::Committed),
        (print(2), Phase::Arriving),
        (None, Phase::Arriving),
    ] {
        // Also where being quiet means nothing.
        let mut scene = Scene::new(Duration::ZERO);
        let (next, mut begun) = seen("a@next", 1);
        begun.remembered = remembered(None, Some("1.0.1"));
        scene.lists([(next, begun)]);
        assert!(scene.start(1).is_empty());
        assert_eq!(scene.board.to_look_at(scene.now), [key("a@next")]);
        assert_eq!(scene.looks("a@next", look), Some(phase));
    }
}

#[test]
fn regression_a_commit_is_of_the_directory_that_is_there_not_of_the_one_before() {
    let mut scene = Scene::new(SETTLE);
    let a = key("a@1.0.0");
    scene.moves_in("a@1.0.0", 1);
    assert_eq!(scene.start(1), ["a@1.0.0"]);
    // The next one comes, and is committed, while the board still knows the first.
    scene.commits("a@1.0.0", 2);
    assert!(scene.board.is_pending(&a, 2));
    scene.ends("a@1.0.0", DONE);
    scene.holds(&[]);
    assert!(scene.board.is_pending(&a, 2));
    scene.holds(&[("a@1.0.0", 2)]);
    assert!(!scene.board.is_pending(&a, 2));
    assert_eq!(scene.start(1), ["a@1.0.0"]);
}
