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
        mark: None,
        moved_in: false,
        package,
        remembered: None,
    };
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

/// Looks every second until `until` after `from`; returns when the phase changed.
fn look_until(
    board: &mut Board,
    key: &Key,
    from: Instant,
    until: u64,
    look: impl Fn(u64) -> (Option<Fingerprint>, bool),
) -> Option<(u64, Phase)> {
    (0..=until).find_map(|second| {
        let now = from + Duration::from_secs(second);
        let (fingerprint, written) = look(second);
        let phase = board.looked(key, fingerprint, written, Duration::ZERO, now)?;
        Some((second, phase))
    })
}

#[test]
fn quiet_for_long_enough_is_committed() {
    let now = Instant::now();
    let mut board = Board::new(SETTLE);
    board.found(vec![seen("a@1.0.0", 1)], now);
    let a = key("a@1.0.0");
    assert_eq!(board.to_look_at(now), std::slice::from_ref(&a));
    // One file a second for two minutes, then nothing; a look that fails is a change.
    let changed = look_until(&mut board, &a, now, 400, |second| match second {
        0..120 => (print(u8::try_from(second).unwrap()), false),
        120 => (None, false),
        _ => (print(200), false),
    });
    assert_eq!(changed, Some((121 + 60, Phase::Committed)));
    assert_eq!(board.start(4, now), [a]);
}

#[test]
fn an_open_file_holds_it_up_however_quiet_it_is() {
    let now = Instant::now();
    let mut board = Board::new(SETTLE);
    board.found(vec![seen("a@1.0.0", 1)], now);
    let changed = look_until(&mut board, &key("a@1.0.0"), now, 400, |second| {
        (print(1), second < 300)
    });
    assert_eq!(changed, Some((300, Phase::Committed)));
}

#[test]
fn without_settle_quiet_means_nothing() {
    let now = Instant::now();
    let mut board = Board::new(Duration::ZERO);
    board.found(vec![seen("a@1.0.0", 1)], now);
    assert!(board.to_look_at(now + Duration::from_secs(9999)).is_empty());
    assert_eq!(board.wake_at(), None);
    board.commit(&key("a@1.0.0"), 1);
    board.found(vec![seen("a@1.0.0", 1)], now);
    assert_eq!(board.start(1, now), [key("a@1.0.0")]);
}

#[test]
fn renamed_into_place_and_marked_are_committed_at_once() {
    let now = Instant::now();
    let mut board = Board::new(SETTLE);
    // The event may come before the directory is listed.
    board.moved_in(key("moved@1.0.0"), now);
    let (_, mut marked) = seen("marked@1.0.0", 2);
    marked.mark = mark(7);
    let (_, mut older) = seen("acme/older@1.0.0", 3);
    older.moved_in = true;
    let listed = vec![
        seen("moved@1.0.0", 1),
        (key("marked@1.0.0"), marked),
        (key("acme/older@1.0.0"), older),
        seen("copied@1.0.0", 4),
    ];
    board.found(listed, now);
    assert_eq!(board.start(9, now).len(), 3);
    assert_eq!(board.phase(&key("copied@1.0.0")), Some(Phase::Arriving));
    // Or after it.
    board.moved_in(key("copied@1.0.0"), now);
    board.found(vec![seen("copied@1.0.0", 4)], now);
    assert_eq!(board.start(9, now), [key("copied@1.0.0")]);
}

#[test]
fn what_is_refused_is_tried_again_when_it_is_committed_or_changed() {
    let now = Instant::now();
    let mut board = Board::new(SETTLE);
    let a = key("a@1.0.0");
    let with = |mark| {
        let (key, mut seen) = seen("a@1.0.0", 1);
        seen.mark = mark;
        vec![(key, seen)]
    };
    let refuse = |board: &mut Board| {
        assert_eq!(board.start(1, now), std::slice::from_ref(&a));
        let fingerprint = print(1);
        board.ended(&a, Ending::Done { fingerprint }, now);
        assert_eq!(board.start(1, now), []);
    };
    board.found(with(mark(1)), now);
    refuse(&mut board);
    // The mark has had its effect; another one is another.
    board.found(with(mark(1)), now);
    assert_eq!(board.start(1, now), []);
    board.found(with(mark(2)), now);
    refuse(&mut board);
    board.commit(&a, 1);
    board.found(with(mark(2)), now);
    refuse(&mut board);
    board.moved_in(a.clone(), now);
    board.found(with(mark(2)), now);
    refuse(&mut board);
    // The same as before is no change; another thing settles first.
    assert_eq!(
        look_until(&mut board, &a, now, 200, |_| (print(1), false)),
        None
    );
    let changed = look_until(&mut board, &a, now, 0, |_| (print(2), false));
    assert_eq!(changed, Some((0, Phase::Arriving)));
    let changed = look_until(&mut board, &a, now, 200, |_| (print(2), false));
    assert_eq!(changed, Some((60, Phase::Committed)));
}

#[test]
fn what_passes_by_itself_is_tried_again_ever_more_seldom() {
    let mut now = Instant::now();
    let mut board = Board::new(SETTLE);
    board.moved_in(key("a@1.0.0"), now);
    board.found(vec![seen("a@1.0.0", 1)], now);
    let mut waits = Vec::new();
    for _ in 0..12 {
        assert_eq!(board.start(1, now), [key("a@1.0.0")]);
        board.ended(&key("a@1.0.0"), Ending::Wait, now);
        assert_eq!(board.start(1, now), []);
        let next = board.wake_at().unwrap();
        waits.push((next - now).as_secs());
        now = next;
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 120, 120, 120, 120, 120]);
}

#[test]
fn of_one_package_one_at_a_time() {
    let now = Instant::now();
    let mut board = Board::new(SETTLE);
    let names = ["a@1.0.0", "a@2.0.0", "a@next", "b@1.0.0", "s/a@1.0.0"];
    let listed = names.iter().zip(1..).map(|(name, inode)| {
        board.moved_in(key(name), now);
        seen(name, inode)
    });
    let listed = listed.collect();
    board.found(listed, now);
    let started = board.start(9, now);
    assert_eq!(started, [key("a@1.0.0"), key("b@1.0.0"), key("s/a@1.0.0")]);
    board.ended(&key("a@1.0.0"), Ending::Done { fingerprint: None }, now);
    assert_eq!(board.start(9, now), [key("a@2.0.0")]);
    assert_eq!(board.start(9, now), []);
}

#[test]
fn another_directory_under_the_same_name_begins_anew() {
    let now = Instant::now();
    let mut board = Board::new(SETTLE);
    let a = key("a@1.0.0");
    board.moved_in(a.clone(), now);
    board.found(vec![seen("a@1.0.0", 1)], now);
    board.start(1, now);
    board.ended(&a, Ending::Done { fingerprint: None }, now);
    let (new, gone) = board.found(vec![seen("a@1.0.0", 2)], now);
    assert_eq!((new, gone), (vec![a.clone()], vec![]));
    assert_eq!(board.phase(&a), Some(Phase::Arriving));
    let (new, gone) = board.found(Vec::new(), now);
    assert_eq!((new, gone), (vec![], vec![(a, Phase::Arriving)]));
}

#[test]
fn what_was_committed_while_it_was_published_is_published_again() {
    let now = Instant::now();
    let mut board = Board::new(SETTLE);
    let a = key("a@1.0.0");
    board.moved_in(a.clone(), now);
    board.found(vec![seen("a@1.0.0", 1)], now);
    board.start(1, now);
    board.commit(&a, 1);
    board.found(vec![seen("a@1.0.0", 1)], now);
    board.ended(&a, Ending::Done { fingerprint: None }, now);
    assert_eq!(board.start(1, now), std::slice::from_ref(&a));
    // But what we gave back ourselves settles first, whatever the kernel says of the renaming.
    board.ended(&a, Ending::Again, now);
    board.moved_in(a.clone(), now);
    board.found(vec![seen("a@1.0.0", 1)], now);
    assert_eq!(board.phase(&a), Some(Phase::Arriving));
    // What somebody says meanwhile holds, whatever the end.
    board.commit(&a, 1);
    board.found(vec![seen("a@1.0.0", 1)], now);
    board.start(1, now);
    board.commit(&a, 1);
    board.found(vec![seen("a@1.0.0", 1)], now);
    board.ended(&a, Ending::Again, now);
    assert_eq!(board.start(1, now), [a]);
}

#[test]
fn a_command_that_comes_before_the_start_is_satisfied_by_it() {
    let now = Instant::now();
    let mut board = Board::new(SETTLE);
    let a = key("a@1.0.0");
    board.moved_in(a.clone(), now);
    board.found(vec![seen("a@1.0.0", 1)], now);
    board.commit(&a, 1);
    assert_eq!(board.start(1, now), std::slice::from_ref(&a));
    assert!(!board.is_pending(&a, 1));
    board.found(vec![seen("a@1.0.0", 1)], now);
    board.ended(&a, Ending::Done { fingerprint: None }, now);
    assert_eq!(board.start(1, now), []);
}

#[test]
fn it_is_known_whether_somebody_said_that_an_entry_is_complete() {
    let now = Instant::now();
    let mut board = Board::new(SETTLE);
    board.moved_in(key("moved@1.0.0"), now);
    board.found(vec![seen("quiet@1.0.0", 1), seen("moved@1.0.0", 2)], now);
    let changed = look_until(&mut board, &key("quiet@1.0.0"), now, 60, |_| {
        (print(1), false)
    });
    assert_eq!(changed, Some((60, Phase::Committed)));
    board.start(9, now);
    assert!(!board.is_by_quiet(&key("moved@1.0.0")));
    assert!(board.is_by_quiet(&key("quiet@1.0.0")));
    board.commit(&key("quiet@1.0.0"), 1);
    board.found(vec![seen("quiet@1.0.0", 1), seen("moved@1.0.0", 2)], now);
    assert!(!board.is_by_quiet(&key("quiet@1.0.0")));
}

#[test]
fn what_an_earlier_process_was_done_with_waits_for_a_change() {
    let now = Instant::now();
    let mut board = Board::new(SETTLE);
    let (a, mut kept) = seen("a@1.0.0", 1);
    kept.remembered = remembered(mark(1), None);
    kept.mark = mark(1);
    board.found(vec![(a.clone(), kept)], now);
    assert_eq!(board.start(1, now), []);
    assert_eq!(board.looked(&a, print(1), false, Duration::ZERO, now), None);
    let now = now + LOOK_DONE;
    let phase = board.looked(&a, print(2), false, Duration::ZERO, now);
    assert_eq!(phase, Some(Phase::Arriving));
}

#[test]
fn a_mark_that_was_touched_between_two_processes_has_its_effect() {
    let now = Instant::now();
    let a = key("a@1.0.0");
    for (before, after, committed) in [
        (mark(1), mark(1), false),
        (mark(1), mark(2), true),
        (None, mark(1), true),
        (mark(1), None, false),
    ] {
        let mut board = Board::new(SETTLE);
        let (_, mut kept) = seen("a@1.0.0", 1);
        kept.remembered = remembered(before, None);
        kept.mark = after;
        board.found(vec![(a.clone(), kept)], now);
        assert_eq!(
            !board.start(1, now).is_empty(),
            committed,
            "{before:?} {after:?}"
        );
    }
}

#[test]
fn what_an_earlier_process_had_begun_to_sign_is_gone_on_with_if_it_is_the_same() {
    let now = Instant::now();
    let a = key("a@next");
    for (look, phase) in [
        (print(1), Phase::Committed),
        (print(2), Phase::Arriving),
        (None, Phase::Arriving),
    ] {
        // Also where being quiet means nothing.
        let mut board = Board::new(Duration::ZERO);
        let (_, mut begun) = seen("a@next", 1);
        begun.remembered = remembered(None, Some("1.0.1"));
        board.found(vec![(a.clone(), begun)], now);
        assert_eq!(board.start(1, now), []);
        assert_eq!(board.to_look_at(now), std::slice::from_ref(&a));
        let changed = board.looked(&a, look, false, Duration::ZERO, now);
        assert_eq!(changed, Some(phase));
    }
}

#[test]
fn regression_a_commit_is_of_the_directory_that_is_there_not_of_the_one_before() {
    let now = Instant::now();
    let mut board = Board::new(SETTLE);
    let a = key("a@1.0.0");
    board.moved_in(a.clone(), now);
    board.found(vec![seen("a@1.0.0", 1)], now);
    assert_eq!(board.start(1, now), std::slice::from_ref(&a));
    // The next one comes, and is committed, while the board still knows the first.
    board.commit(&a, 2);
    board.found(vec![seen("a@1.0.0", 2)], now);
    assert!(board.is_pending(&a, 2));
    board.ended(&a, Ending::Done { fingerprint: None }, now);
    board.found(Vec::new(), now);
    assert!(board.is_pending(&a, 2));
    board.found(vec![seen("a@1.0.0", 2)], now);
    assert!(!board.is_pending(&a, 2));
    assert_eq!(board.start(1, now), [a]);
}
