//! What differs between two catalogs, against two maps that say it at once.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt as _;

use manifs::block::Digest;
use manifs::catalog::diff::{What, diff};
use manifs::catalog::{Catalog, Kind, NewEntry, Times, Writer};
use proptest::prelude::*;

/// What lies at a path: its kind, mode, content or target, and time.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    kind: Kind,
    mode: u16,
    content: u8,
    time: i64,
}

/// Entries by path; every parent is there and is a directory.
type Tree = BTreeMap<String, Entry>;

fn any_entry() -> impl Strategy<Value = Entry> {
    let kinds = [Kind::Directory, Kind::Directory, Kind::File, Kind::Symlink];
    let kind = prop::sample::select(kinds.to_vec());
    (kind, any::<bool>(), 0..3_u8, 0..2_i64).prop_map(|(kind, executable, content, time)| Entry {
        kind,
        mode: match kind {
            Kind::Symlink => 0o777,
            _ if executable => 0o755,
            _ => 0o644,
        },
        content,
        time,
    })
}

fn any_tree() -> impl Strategy<Value = Tree> {
    // Few names, so that two trees have many paths in common; some sort otherwise with a slash behind them.
    let name = prop::sample::select(vec!["a", "a b", "a-", "b", "c"]);
    let path = prop::collection::vec(name, 1..4).prop_map(|names| names.join("/"));
    prop::collection::btree_map(path, any_entry(), 0..24).prop_map(|mut tree| {
        for path in tree.keys().cloned().collect::<Vec<_>>() {
            for (at, _) in path.match_indices('/') {
                let parent = tree.entry(path[..at].to_owned());
                let parent = parent.or_insert_with(|| Entry {
                    kind: Kind::Directory,
                    mode: 0o755,
                    content: 0,
                    time: 0,
                });
                parent.kind = Kind::Directory;
                parent.mode = 0o755;
            }
        }
        tree
    })
}

fn catalog(tree: &Tree) -> Catalog<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(dir.path(), 0o755, 0).unwrap();
    while let Some((row, path)) = writer.next_directory().unwrap() {
        let path = String::from_utf8(path).unwrap();
        let mut children: Vec<(&str, &Entry)> = tree
            .iter()
            .filter_map(|(at, entry)| {
                let (parent, name) = at.rsplit_once('/').unwrap_or(("", at));
                (parent == path).then_some((name, entry))
            })
            .collect();
        children.sort_unstable_by_key(|(name, _)| *name);
        let new = children.iter().map(|(name, entry)| NewEntry {
            name: name.as_bytes().to_vec(),
            kind: entry.kind,
            mode: entry.mode,
            mtime_ns: entry.time,
            size: u64::from(entry.kind == Kind::File),
            target: if entry.kind == Kind::Symlink {
                vec![b'x' + entry.content]
            } else {
                Vec::new()
            },
        });
        let first = writer.add_children(row, &new.collect::<Vec<_>>()).unwrap();
        for (row, (_, entry)) in (first..).zip(children) {
            if entry.kind == Kind::File {
                writer.set_id(row, Digest::of(&[entry.content])).unwrap();
            }
        }
    }
    let sealed = writer.finish(Times::Keep, &mut |_, _| Ok(())).unwrap();
    let mut bytes = vec![0; usize::try_from(sealed.len).unwrap()];
    sealed.file.read_exact_at(&mut bytes, 0).unwrap();
    Catalog::open(bytes, sealed.len).unwrap()
}

fn what(before: Option<&Entry>, after: Option<&Entry>) -> Option<What> {
    match (before, after) {
        (None, _) => Some(What::Added),
        (_, None) => Some(What::Removed),
        (Some(before), Some(after)) if before.kind != after.kind => Some(What::Type),
        (Some(before), Some(after)) => {
            let file = before.kind != Kind::Directory;
            if file && before.content != after.content {
                Some(What::Changed)
            } else {
                (before.mode != after.mode).then_some(What::Mode)
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn a_diff_is_what_two_maps_say(before in any_tree(), after in any_tree()) {
        let paths: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        // In the order of a walk: names are compared, not the texts of paths.
        let mut expected: Vec<(Vec<&str>, What)> = paths
            .iter()
            .filter_map(|path| {
                let what = what(before.get(*path), after.get(*path))?;
                Some((path.split('/').collect(), what))
            })
            .collect();
        expected.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        let times = paths.iter().filter(|path| {
            let (before, after) = (before.get(**path), after.get(**path));
            let both = before.zip(after);
            what(before, after).is_none()
                && both.is_some_and(|(before, after)| {
                    before.kind != Kind::Directory && before.time != after.time
                })
        });
        let times = times.count() as u64;
        let (before, after) = (catalog(&before), catalog(&after));
        let (top, other) = (before.row(0).unwrap(), after.row(0).unwrap());
        let mut found = diff((&before, top), (&after, other));
        let mut got = Vec::new();
        for difference in found.by_ref() {
            let difference = difference.unwrap();
            prop_assert_eq!(difference.before.is_none(), difference.what == What::Added);
            prop_assert_eq!(difference.after.is_none(), difference.what == What::Removed);
            got.push((String::from_utf8(difference.path).unwrap(), difference.what));
        }
        prop_assert_eq!(found.times(), times);
        let expected: Vec<(String, What)> = expected
            .into_iter()
            .map(|(path, what)| (path.join("/"), what))
            .collect();
        prop_assert_eq!(got, expected);
    }
}

#[test]
fn large_directories_are_compared_piece_by_piece() {
    let tree = |keep: &dyn Fn(u32) -> bool| -> Tree {
        let numbers = (0..3000).filter(|number| keep(*number));
        let entry = Entry {
            kind: Kind::File,
            mode: 0o644,
            content: 0,
            time: 0,
        };
        numbers
            .map(|number| (format!("{number:04}"), entry.clone()))
            .collect()
    };
    let before = catalog(&tree(&|number| number % 3 != 0));
    let after = catalog(&tree(&|number| number < 10 || number % 2 == 0));
    let found = diff(
        (&before, before.row(0).unwrap()),
        (&after, after.row(0).unwrap()),
    );
    let found: Vec<_> = found.map(Result::unwrap).collect();
    assert!(found.is_sorted_by_key(|difference| difference.path.clone()));
    let removed = found.iter().filter(|one| one.what == What::Removed).count();
    let expected = (10..3000).filter(|number| number % 3 != 0 && number % 2 != 0);
    assert_eq!(removed, expected.count());
}
