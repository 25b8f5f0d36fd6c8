//! The state of a home: what survives, what is refused, and that nothing is forgotten.

use std::fs;
use std::path::Path;

use manifs::block::Digest;
use manifs::manifest::{ManifestId, ReleaseIndex, TrustError, TrustedIndex, TrustedManifest};
use manifs::state::{Pin, SeenError, State, StateError};

use crate::common::signed::{index, key, manifest, name, package, sign, trusting};

fn open(dir: &Path) -> State {
    State::open(dir).unwrap_or_else(|error| panic!("{error}"))
}

fn refused(dir: &Path) -> StateError {
    match State::open(dir) {
        Ok(_) => panic!("accepted"),
        Err(error) => error,
    }
}

fn trusted(text: &str, content: &str) -> TrustedManifest {
    trusting("*", &[&key(1)], 1)
        .verify_manifest(&sign(manifest(text, content), &[&key(1)]), &package(text))
        .unwrap()
}

fn trusted_index(index: ReleaseIndex) -> TrustedIndex {
    let name = index.name.clone();
    trusting("*", &[&key(1)], 1)
        .verify_index(&sign(index, &[&key(1)]), &name, None)
        .unwrap()
}

#[test]
fn one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    let state = open(&path);
    assert!(state.was_created());
    let me = std::process::id();
    let error = refused(&path);
    assert!(matches!(error, StateError::Locked { pid: Some(pid), .. } if pid == me));
    assert!(error.to_string().contains(&me.to_string()), "{error}");
    assert!(error.hint().is_some());
    drop(state);
    assert!(!open(&path).was_created());
}

#[test]
fn an_unknown_version_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    drop(open(path));
    fs::write(path.join("VERSION"), "manifs-state 2\n").unwrap();
    let before = names(path);
    assert!(matches!(
        refused(path),
        StateError::UnknownVersion { found, .. } if found == "manifs-state 2"
    ));
    assert_eq!(names(path), before);
    assert_eq!(
        fs::read_to_string(path.join("VERSION")).unwrap(),
        "manifs-state 2\n"
    );

    let other = tempfile::tempdir().unwrap();
    fs::write(other.path().join("thesis.tex"), "years of work").unwrap();
    assert!(matches!(refused(other.path()), StateError::NoVersion(_)));
    fs::remove_file(other.path().join("thesis.tex")).unwrap();
    // A crash before VERSION had its name leaves only this.
    fs::write(other.path().join(".VERSION.1-1.tmp"), "mani").unwrap();
    assert!(open(other.path()).was_created());
    let left = names(other.path());
    assert!(left.iter().all(|name| !name.starts_with('.')), "{left:?}");
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn what_was_seen_is_never_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let one = manifest("hello@1.0.0", "x");
    {
        let state = open(dir.path());
        assert_eq!(state.seen().index(&name("hello")).unwrap(), None);
        state
            .seen()
            .admit_index(&trusted_index(index("hello", 5, &[&one])))
            .unwrap();
        state
            .seen()
            .admit_manifest(&trusted("hello@2.0.0", "x"))
            .unwrap();
    }
    // In another run, after whatever crash.
    let state = open(dir.path());
    let seen = state.seen();
    assert_eq!(seen.index(&name("hello")).unwrap().unwrap().sequence, 5);
    assert_eq!(
        seen.manifest(&package("hello@1.0.0")).unwrap(),
        Some(one.id())
    );
    assert_eq!(
        seen.manifest(&package("hello@2.0.0")).unwrap(),
        Some(manifest("hello@2.0.0", "x").id())
    );
    assert_eq!(seen.manifest(&package("hello@3.0.0")).unwrap(), None);
    assert_eq!(seen.names(), [name("hello")]);

    let refusal = |index| match seen.admit_index(&trusted_index(index)).unwrap_err() {
        SeenError::Refused(error) => error,
        other => panic!("{other}"),
    };
    assert!(matches!(
        refusal(index("hello", 4, &[&one])),
        TrustError::Rollback { .. }
    ));
    assert!(matches!(
        refusal(index("hello", 5, &[])),
        TrustError::SameSequence { .. }
    ));
    let other = manifest("hello@1.0.0", "y");
    assert!(matches!(
        refusal(index("hello", 6, &[&other])),
        TrustError::OtherContent { .. }
    ));
    assert_eq!(
        seen.index(&name("hello")).unwrap().unwrap().sequence,
        5,
        "a refused index leaves no trace"
    );
    let error = seen
        .admit_manifest(&trusted("hello@2.0.0", "y"))
        .unwrap_err();
    assert!(matches!(
        error,
        SeenError::Refused(TrustError::OtherContent { .. })
    ));
    seen.admit_manifest(&trusted("hello@2.0.0", "x")).unwrap();
    // A version that an index no longer names stays known.
    seen.admit_index(&trusted_index(index("hello", 7, &[])))
        .unwrap();
    assert_eq!(
        seen.manifest(&package("hello@1.0.0")).unwrap(),
        Some(one.id())
    );
}

#[test]
fn a_first_part_is_a_package_or_a_scope() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    state
        .seen()
        .admit_manifest(&trusted("acme/tool@1.0.0", "x"))
        .unwrap();
    state
        .seen()
        .admit_manifest(&trusted("acme/other@1.0.0", "x"))
        .unwrap();
    state
        .seen()
        .admit_manifest(&trusted("single@1.0.0", "x"))
        .unwrap();
    let taken = |text: &str| {
        let error = state
            .seen()
            .admit_manifest(&trusted(text, "x"))
            .unwrap_err();
        assert!(matches!(error, SeenError::NameTaken { .. }), "{error}");
    };
    taken("acme@1.0.0");
    taken("single/x@1.0.0");
    drop(state);
    let state = open(dir.path());
    assert!(
        state
            .seen()
            .admit_manifest(&trusted("acme@1.0.0", "x"))
            .is_err()
    );
    assert!(
        state
            .seen()
            .admit_manifest(&trusted("acme/third@1.0.0", "x"))
            .is_ok()
    );
}

#[test]
fn damaged_memory_is_an_error_not_a_fresh_start() {
    let dir = tempfile::tempdir().unwrap();
    {
        let state = open(dir.path());
        state
            .seen()
            .admit_manifest(&trusted("acme/tool@1.0.0", "x"))
            .unwrap();
        state
            .slots()
            .assign(&package("acme/tool@1.0.0"), id("x"))
            .unwrap();
    }
    let seen = dir.path().join("seen/acme@tool.json");
    let good = fs::read(&seen).unwrap();
    for bad in [
        &good[..good.len() / 2],
        b"{}garbage",
        b"",
        b"{\"unknown\":1}",
    ] {
        fs::write(&seen, bad).unwrap();
        let state = open(dir.path());
        let error = state.seen().index(&name("acme/tool")).unwrap_err();
        assert!(matches!(error, StateError::Damaged { .. }), "{error}");
        assert!(
            state
                .seen()
                .admit_manifest(&trusted("acme/tool@1.0.0", "y"))
                .is_err()
        );
    }
    fs::write(&seen, good).unwrap();
    fs::write(dir.path().join("pins.json"), "[").unwrap();
    assert!(matches!(refused(dir.path()), StateError::Damaged { .. }));
}

fn id(text: &str) -> ManifestId {
    ManifestId(Digest::of(text.as_bytes()))
}

#[test]
fn slots_are_given_once() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b, c) = (package("a@1.0.0"), package("b@1.0.0"), package("c@1.0.0"));
    {
        let state = open(dir.path());
        let slots = state.slots();
        assert_eq!(slots.get(&a, id("x")), None);
        assert_eq!(slots.assign(&a, id("x")).unwrap(), 1, "slot 0 is reserved");
        assert_eq!(slots.assign(&a, id("x")).unwrap(), 1);
        assert_eq!(
            slots.assign(&a, id("y")).unwrap(),
            2,
            "other content, other inodes"
        );
        let both = [
            (b.clone(), id("x")),
            (a.clone(), id("x")),
            (b.clone(), id("x")),
        ];
        assert_eq!(slots.assign_all(&both).unwrap(), [3, 1, 3]);
    }
    let file = dir.path().join("slots");
    let whole = fs::read(&file).unwrap();
    // Whatever a crash left of the line of a slot that nobody was given goes.
    for torn in [&b"{"[..], b"{\"slot\":4,\"package\":\"c@1.0.0\""] {
        fs::write(&file, [&whole, torn].concat()).unwrap();
        let state = open(dir.path());
        assert_eq!(fs::read(&file).unwrap(), whole);
        assert_eq!(state.slots().get(&b, id("x")), Some(3));
        assert_eq!(state.slots().version(1), Some((a.clone(), id("x"))));
        assert_eq!(state.slots().version(0), None);
        assert_eq!(state.slots().version(4), None);
    }
    let state = open(dir.path());
    assert_eq!(state.slots().assign(&c, id("x")).unwrap(), 4);
    drop(state);
    let text = fs::read_to_string(&file).unwrap();
    for bad in [
        text.replacen("\"slot\":2", "\"slot\":3", 1),
        text.replacen("{", "[", 1),
        [text.as_str(), text.as_str()].concat(),
    ] {
        fs::write(&file, bad).unwrap();
        assert!(matches!(refused(dir.path()), StateError::Damaged { .. }));
    }
}

#[test]
fn pins_last() {
    let dir = tempfile::tempdir().unwrap();
    let pin = |version: Option<&str>, path: Option<&str>| Pin {
        name: name("acme/tool"),
        version: version.map(|version| version.parse().unwrap()),
        path: path.map(str::to_owned),
    };
    {
        let state = open(dir.path());
        assert!(state.pins().add(pin(Some("1.0.0"), Some("bin/x"))).unwrap());
        assert!(state.pins().add(pin(None, None)).unwrap());
        assert!(!state.pins().add(pin(None, None)).unwrap());
    }
    let state = open(dir.path());
    let shown: Vec<_> = state
        .pins()
        .list()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(shown, ["acme/tool", "acme/tool@1.0.0/bin/x"]);
    assert!(state.pins().remove(&pin(None, None)).unwrap());
    assert!(!state.pins().remove(&pin(None, None)).unwrap());
    assert_eq!(state.pins().list().len(), 1);
}

#[test]
fn own_publications_are_kept_in_the_layout_of_a_registry() {
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    let published = state.published();
    let one = sign(manifest("acme/tool@1.0.0", "x"), &[&key(1)]);
    let two = sign(manifest("single@2.0.0-rc.1", "x"), &[&key(1)]);
    let list = sign(index("acme/tool", 1, &[]), &[&key(1)]);
    for envelope in [&one, &two, &list] {
        published.put(envelope).unwrap();
    }
    assert_eq!(
        published.versions().unwrap(),
        [package("acme/tool@1.0.0"), package("single@2.0.0-rc.1")]
    );
    assert_eq!(
        published
            .manifest(&package("acme/tool@1.0.0"))
            .unwrap()
            .unwrap(),
        **one.bytes()
    );
    assert_eq!(
        published.index(&name("acme/tool")).unwrap().unwrap(),
        **list.bytes()
    );
    assert_eq!(published.index(&name("single")).unwrap(), None);
    let file = dir
        .path()
        .join("published/packages/acme/tool/1.0.0/manifest.json");
    assert_eq!(fs::read(file).unwrap(), **one.bytes());
    published.remove(&package("acme/tool@1.0.0")).unwrap();
    published.remove(&package("acme/tool@1.0.0")).unwrap();
    assert_eq!(
        published.versions().unwrap(),
        [package("single@2.0.0-rc.1")]
    );
}
