use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;
use crate::publish::disk::testing::{give_away, without_privileges};
use crate::publish::drop::{After, Cleared};

struct Around {
    directory: tempfile::TempDir,
    place: DropDirectory,
}

fn around() -> Around {
    let directory = tempfile::tempdir().unwrap();
    let temporary = directory.path().join("temporary");
    fs::create_dir(&temporary).unwrap();
    let place = DropDirectory::open(&directory.path().join("drop"), None, &temporary).unwrap();
    Around { directory, place }
}

impl Around {
    fn path(&self, below: &str) -> PathBuf {
        self.directory.path().join("drop").join(below)
    }

    fn tree(&self, name: &str) -> Key {
        for file in ["file", "sub/file"] {
            let path = self.path(name).join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        // What is hidden is no entry.
        Key::from_path(name.as_bytes()).unwrap_or_else(|| Key::new(None, name.as_bytes()))
    }

    fn names(&self) -> Vec<String> {
        let entries = self.place.list().unwrap().entries;
        entries.iter().map(|found| found.key.to_string()).collect()
    }

    fn raw_names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("")).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

#[test]
fn entries_scopes_and_what_is_neither() {
    let around = around();
    assert!(around.names().is_empty());
    around.tree("a@1.0.0");
    around.tree("acme/b@next");
    around.tree("acme/no-version");
    around.tree(".building@1.0.0");
    around.tree("plain");
    fs::create_dir(around.path("empty")).unwrap();
    fs::write(around.path("archive.tar"), "").unwrap();
    fs::write(around.path("a@1.0.0.status"), "").unwrap();
    fs::write(around.path("acme/note"), "").unwrap();
    symlink("a@1.0.0", around.path("link@1.0.0")).unwrap();
    assert_eq!(
        around.names(),
        [
            "a@1.0.0",
            "acme/b@next",
            "acme/no-version",
            "archive.tar",
            "link@1.0.0",
            "plain"
        ]
    );
    let listed = around.place.list().unwrap();
    let scopes: Vec<&str> = listed
        .scopes
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(scopes, ["acme", "empty"]);
    // A look is a look, also the second time.
    assert_eq!(around.names().len(), 6);
}

#[test]
fn a_mark_is_seen_and_told_from_another() {
    let around = around();
    around.tree("a@1.0.0");
    let mark = || around.place.list().unwrap().entries[0].mark;
    assert_eq!(mark(), None);
    fs::write(around.path("a@1.0.0/.publish"), "").unwrap();
    let first = mark();
    assert!(first.is_some());
    assert_eq!(mark(), first);
    let file = fs::File::open(around.path("a@1.0.0/.publish")).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    assert_ne!(mark(), first);
}

#[test]
fn an_entry_that_was_there_before_its_scope_was_moved_in() {
    let around = around();
    around.tree(".old");
    let born = |name| born_ns(&fs::File::open(around.path(name)).unwrap().into());
    // Births are told by the kernel's tick, which is some milliseconds.
    loop {
        fs::create_dir(around.path("acme")).unwrap();
        if born("acme").is_none() || born("acme") > born(".old") {
            break;
        }
        fs::remove_dir(around.path("acme")).unwrap();
    }
    fs::rename(around.path(".old"), around.path("acme/old@1.0.0")).unwrap();
    around.tree("acme/new@1.0.0");
    let entries = around.place.list().unwrap().entries;
    let moved: Vec<(String, bool)> = entries
        .iter()
        .map(|found| (found.key.to_string(), found.moved_in))
        .collect();
    let known = born("acme").is_some();
    assert_eq!(
        moved,
        [
            ("acme/new@1.0.0".to_owned(), false),
            ("acme/old@1.0.0".to_owned(), known)
        ]
    );
}

#[test]
fn only_a_directory_of_its_own_with_the_right_mode_will_do() {
    let directory = tempfile::tempdir().unwrap();
    let open =
        |name: &str| DropDirectory::open(&directory.path().join(name), None, directory.path());
    open("new/deep").unwrap();
    let mode = fs::metadata(directory.path().join("new/deep"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o700);
    symlink("new", directory.path().join("link")).unwrap();
    fs::write(directory.path().join("file"), "").unwrap();
    for name in ["link", "file"] {
        let refused = open(name).err().unwrap();
        assert!(
            matches!(refused, DropError::NotADirectory { .. }),
            "{refused}"
        );
    }
    let wide = directory.path().join("wide");
    fs::create_dir(&wide).unwrap();
    fs::set_permissions(&wide, fs::Permissions::from_mode(0o755)).unwrap();
    let refused = open("wide").err().unwrap();
    assert!(refused.to_string().contains("has mode 0755"), "{refused}");
    assert_eq!(refused.hint(), format!("chmod 700 {}", wide.display()));
}

#[test]
fn a_link_is_no_entry_and_its_target_is_never_opened() {
    let around = around();
    fs::create_dir(around.directory.path().join("outside")).unwrap();
    symlink("../outside", around.path("a@1.0.0")).unwrap();
    symlink("../..", around.path("acme")).unwrap();
    for key in ["a@1.0.0", "acme/outside"] {
        let key = Key::from_path(key.as_bytes()).unwrap();
        let refused = around.place.entry(&key).err().unwrap();
        assert!(matches!(refused, DropError::Foreign), "{refused}");
        let written = around.place.write_status(&key, "x", true);
        assert_eq!(written.is_ok(), key.scope().is_none());
    }
    // The status was written beside the link, and nothing into what it leads to.
    assert!(around.path("a@1.0.0.status").is_file());
    assert_eq!(
        fs::read_dir(around.directory.path().join("outside"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn a_status_replaces_whatever_has_its_name_and_follows_nothing() {
    let around = around();
    let key = around.tree("a@1.0.0");
    let secret = around.directory.path().join("secret");
    fs::write(&secret, "old").unwrap();
    symlink(&secret, around.path("a@1.0.0.status")).unwrap();
    around
        .place
        .write_status(&key, "published\n", true)
        .unwrap();
    assert_eq!(fs::read_to_string(&secret).unwrap(), "old");
    assert_eq!(
        fs::read_to_string(around.path("a@1.0.0.status")).unwrap(),
        "published\n"
    );
    assert!(!around.path("a@1.0.0.status").is_symlink());
    fs::remove_file(around.path("a@1.0.0.status")).unwrap();
    fs::create_dir(around.path("a@1.0.0.status")).unwrap();
    assert!(around.place.write_status(&key, "x", true).is_err());
    assert_eq!(around.raw_names(), ["a@1.0.0", "a@1.0.0.status"]);
}

#[test]
fn what_was_published_is_removed_or_moved() {
    let around = around();
    let key = around.tree("a@1.0.0");
    let clear = |after| {
        let entry = around.place.entry(&key).unwrap();
        let mut inventory = around.place.inventory(&entry).unwrap();
        around.place.clear(&entry, &mut inventory, after).unwrap()
    };
    assert_eq!(clear(After::Remove), Cleared::Removed);
    assert!(around.raw_names().is_empty());
    for place in [".published/a@1.0.0", ".published/a@1.0.0~1"] {
        around.tree("a@1.0.0");
        assert_eq!(clear(After::Move), Cleared::Moved(place.to_owned()));
        assert!(around.path(place).join("sub/file").is_file());
    }
    assert!(around.names().is_empty());
}

#[test]
fn what_changed_since_stays_as_it_is() {
    let around = around();
    let key = around.tree("a@1.0.0");
    let entry = around.place.entry(&key).unwrap();
    let mut inventory = around.place.inventory(&entry).unwrap();
    fs::write(around.path("a@1.0.0/sub/new"), "precious").unwrap();
    let cleared = around
        .place
        .clear(&entry, &mut inventory, After::Remove)
        .unwrap();
    assert_eq!(
        cleared,
        Cleared::Kept {
            path: "sub".to_owned(),
            why: "changed since"
        }
    );
    assert_eq!(
        fs::read_to_string(around.path("a@1.0.0/sub/new")).unwrap(),
        "precious"
    );
    assert!(around.path("a@1.0.0/file").is_file());
    // Another directory under the same name is not what was published either.
    let mut inventory = around.place.inventory(&entry).unwrap();
    fs::rename(around.path("a@1.0.0"), around.path(".aside")).unwrap();
    around.tree("a@1.0.0");
    for after in [After::Remove, After::Move] {
        let cleared = around.place.clear(&entry, &mut inventory, after).unwrap();
        assert_eq!(
            cleared,
            Cleared::Kept {
                path: String::new(),
                why: "replaced since"
            }
        );
        assert!(around.path("a@1.0.0/sub/file").is_file());
    }
    assert!(around.path(".aside/sub/new").is_file());
}

#[test]
fn what_a_dead_process_was_removing_is_given_back_at_the_next_start() {
    let around = around();
    around.tree(".manifs-removing-5-b@1.0.0");
    around.tree("acme/.manifs-removing-0123456789abcdef-c@1.0.0");
    around.tree("acme/d@1.0.0");
    fs::create_dir(around.path(".manifs-removing-5-empty@1.0.0")).unwrap();
    // Not as we name them.
    for name in [".manifs-removing-", ".manifs-removing-5-", ".manifs-other"] {
        around.tree(name);
    }
    fs::write(around.path(".manifs-status-0"), "x").unwrap();
    let path = around.path("");
    let again = DropDirectory::open(&path, None, around.directory.path()).unwrap();
    // Never under its own name: half of it may be gone. And nothing of it is removed: a directory that was moved in has
    // old times, whether it was published or not.
    let names = [
        ".manifs-other",
        ".manifs-removing-",
        ".manifs-removing-5-",
        "acme",
        "b@1.0.0~1",
    ];
    assert_eq!(around.raw_names(), names);
    assert!(around.path("b@1.0.0~1/sub/file").is_file());
    assert!(around.path("acme/c@1.0.0~1/sub/file").is_file());
    assert_eq!(again.list().unwrap().entries.len(), 3);
}

#[test]
fn what_cannot_be_given_back_keeps_no_daemon_from_starting() {
    let around = around();
    around.tree(".manifs-removing-5-a@1.0.0");
    around.tree(".manifs-removing-5-b@1.0.0");
    fs::create_dir(around.path("a@1.0.0~1")).unwrap();
    for nth in 1..1000 {
        fs::create_dir(around.path(&format!("a@1.0.0~1~{nth}"))).unwrap();
    }
    DropDirectory::open(&around.path(""), None, around.directory.path()).unwrap();
    assert!(around.path(".manifs-removing-5-a@1.0.0/file").is_file());
    assert!(around.path("b@1.0.0~1/file").is_file());
}

#[test]
fn what_its_owner_may_not_write_to_is_cleared_away_as_well() {
    let around = around();
    let mode = |name: &str, mode| {
        fs::set_permissions(around.path(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    let clear = |after| {
        let key = around.tree("a@1.0.0");
        for name in ["a@1.0.0/sub/file", "a@1.0.0/sub", "a@1.0.0"] {
            mode(name, 0o555);
        }
        give_away(around.directory.path());
        // It has to be the daemon's, and this test is an ordinary user only when it comes to files.
        let _ = std::os::unix::fs::chown(
            around.path(".published"),
            Some(rustix::process::geteuid().as_raw()),
            None,
        );
        without_privileges(|| {
            let entry = around.place.entry(&key).unwrap();
            let mut inventory = around.place.inventory(&entry).unwrap();
            around.place.clear(&entry, &mut inventory, after)
        })
    };
    assert_eq!(clear(After::Remove).unwrap(), Cleared::Removed);
    assert!(around.raw_names().is_empty());
    fs::create_dir(around.path(".published")).unwrap();
    mode(".published", 0o777);
    let moved = ".published/a@1.0.0";
    assert_eq!(
        clear(After::Move).unwrap(),
        Cleared::Moved(moved.to_owned())
    );
    let found = fs::metadata(around.path(moved)).unwrap().permissions();
    assert_eq!(found.mode() & 0o7777, 0o555);
    mode(moved, 0o755);
    mode(".published/a@1.0.0/sub", 0o755);
}

#[test]
#[expect(clippy::print_stderr, reason = "skipping is loud")]
fn what_cannot_be_removed_is_named() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED what_cannot_be_removed_is_named: needs root");
        return;
    }
    let around = around();
    let key = around.tree("a@1.0.0");
    give_away(around.directory.path());
    std::os::unix::fs::chown(around.path("a@1.0.0/sub"), Some(0), None).unwrap();
    let cleared = without_privileges(|| {
        let entry = around.place.entry(&key).unwrap();
        let mut inventory = around.place.inventory(&entry).unwrap();
        around.place.clear(&entry, &mut inventory, After::Remove)
    });
    let Cleared::Left { place, why } = cleared.unwrap() else {
        panic!("it is gone");
    };
    assert_eq!(place, "a@1.0.0~1");
    assert!(
        why.starts_with("what could not be removed: sub/file: Permission denied"),
        "{why}"
    );
    assert_eq!(around.raw_names(), ["a@1.0.0~1"]);
}

#[test]
fn instructions_are_read_from_a_regular_file_of_bounded_size() {
    let around = around();
    let key = around.tree("a@next");
    let wanted = key.wanted().unwrap();
    let path = around.path("a@next/manifs.toml");
    let read = || {
        let entry = around.place.entry(&key).unwrap();
        entry
            .instructions(&wanted)
            .map_err(|errors| errors[0].to_string())
    };
    assert_eq!(read().unwrap(), Instructions::default());
    fs::write(&path, "version = \"2.0.0\"").unwrap();
    assert_eq!(read().unwrap().version.unwrap().to_string(), "2.0.0");
    fs::write(&path, "# ".repeat(40 << 10)).unwrap();
    assert!(read().unwrap_err().contains("more than 65536 bytes"));
    fs::write(&path, b"\xff").unwrap();
    assert!(read().unwrap_err().contains("UTF-8"));
    fs::remove_file(&path).unwrap();
    symlink("/etc/passwd", &path).unwrap();
    assert_eq!(read().unwrap_err(), "it is a link");
    fs::remove_file(&path).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        Mode::RUSR,
        0,
    )
    .unwrap();
    assert!(read().unwrap_err().contains("not a regular file"));
}

#[test]
#[expect(clippy::print_stderr, reason = "skipping is loud")]
fn for_a_group_everything_belongs_to_a_member() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED for_a_group_everything_belongs_to_a_member: needs root");
        return;
    }
    const NOBODY: u32 = 65534;
    let directory = tempfile::tempdir().unwrap();
    let group = Group::find("nogroup").unwrap();
    let path = directory.path().join("drop");
    let place = DropDirectory::open(&path, Some(group.clone()), directory.path()).unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o3770);
    // A scope is as the drop directory, also one that was made before there was a group.
    fs::create_dir(path.join("old")).unwrap();
    fs::set_permissions(path.join("old"), fs::Permissions::from_mode(0o700)).unwrap();
    for scope in ["acme", "acme", "old"] {
        place.make_scope(scope).unwrap();
        let made = fs::metadata(path.join(scope)).unwrap();
        assert_eq!(made.permissions().mode() & 0o7777, 0o3770, "{scope}");
        assert_eq!(std::os::unix::fs::MetadataExt::gid(&made), group.gid());
    }
    // But not one that somebody lets others into, or that is no directory at all.
    fs::create_dir(path.join("open")).unwrap();
    fs::set_permissions(path.join("open"), fs::Permissions::from_mode(0o755)).unwrap();
    place.make_scope("open").unwrap();
    let mode = fs::metadata(path.join("open"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o755);
    symlink("acme", path.join("link")).unwrap();
    place.make_scope("link").unwrap();
    for scope in ["acme", "old", "open"] {
        fs::remove_dir(path.join(scope)).unwrap();
    }
    fs::remove_file(path.join("link")).unwrap();
    let chown =
        |below: &str, uid| std::os::unix::fs::chown(path.join(below), Some(uid), None).unwrap();
    let key = Key::from_path(b"a@1.0.0").unwrap();
    fs::create_dir(path.join("a@1.0.0")).unwrap();
    chown("a@1.0.0", NOBODY);
    let guard = || place.entry(&key).map(|entry| entry.guard());
    assert_eq!(guard().unwrap().owner, Some(NOBODY));
    // What root puts there is not the owner's word.
    fs::write(path.join("a@1.0.0/.publish"), "").unwrap();
    fs::write(path.join("a@1.0.0/manifs.toml"), "").unwrap();
    assert_eq!(place.list().unwrap().entries[0].mark, None);
    let wanted = key.wanted().unwrap();
    let errors = place
        .entry(&key)
        .unwrap()
        .instructions(&wanted)
        .unwrap_err();
    assert!(
        errors[0].to_string().contains("does not belong"),
        "{errors:?}"
    );
    chown("a@1.0.0/.publish", NOBODY);
    assert!(place.list().unwrap().entries[0].mark.is_some());
    // Its status is its owner's, to be removed.
    place.write_status(&key, "refused\n", true).unwrap();
    let owner =
        std::os::unix::fs::MetadataExt::uid(&fs::metadata(path.join("a@1.0.0.status")).unwrap());
    assert_eq!(owner, NOBODY);
    // What somebody else says of it counts for nothing.
    place
        .write_status(&key, "committed 2026-01-01T00:00:00Z\n", false)
        .unwrap();
    let believed = || place.status(&key).is_some();
    assert!(believed());
    chown("a@1.0.0.status", 1);
    assert!(!believed());
    chown("a@1.0.0.status", 0);
    assert!(believed());
    chown("a@1.0.0", 1);
    assert!(matches!(guard(), Err(DropError::NotAMember { uid: 1, .. })));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o1777)).unwrap();
    let refused = DropDirectory::check(&path, Some(&group)).unwrap_err();
    assert!(refused.hint().contains("chmod 3770"), "{}", refused.hint());
}

#[test]
fn what_an_earlier_process_died_over_stays_committed() {
    const UNDER_WAY: &str = "publishing 2026-01-01T00:00:00Z\n";
    let around = around();
    let key = around.tree("a@1.0.0");
    let was_committed = || {
        let written = around.place.status(&key);
        written.is_some_and(|written| written.is_under_way() && !written.changed)
    };
    assert!(!was_committed(), "there is no status");
    for (word, committed) in [
        ("committed", true),
        ("publishing", true),
        ("waiting", true),
        ("arriving", false),
        ("published", false),
        ("refused", false),
        ("", false),
    ] {
        let text = format!("{word} 2026-01-01T00:00:00Z\n");
        around.place.write_status(&key, &text, true).unwrap();
        assert_eq!(was_committed(), committed, "{word:?}");
    }
    // Somebody has put another one there since.
    around.place.write_status(&key, UNDER_WAY, true).unwrap();
    let status = fs::File::options()
        .write(true)
        .open(around.path("a@1.0.0.status"))
        .unwrap();
    status.set_modified(std::time::UNIX_EPOCH).unwrap();
    assert!(!was_committed());
    // Nobody's link is followed.
    fs::remove_file(around.path("a@1.0.0.status")).unwrap();
    fs::write(around.path(".elsewhere"), UNDER_WAY).unwrap();
    symlink(".elsewhere", around.path("a@1.0.0.status")).unwrap();
    assert!(!was_committed());
}
