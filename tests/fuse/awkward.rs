//! Trees that break lesser tools survive publish, mount, `cp -a` and `diff -r`.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::machine::{Home, count, noise, sh};

fn set_mtime(path: &Path, time: SystemTime) {
    std::fs::File::open(path)
        .unwrap()
        .set_modified(time)
        .unwrap();
}

fn awkward(at: &Path, entries: usize) {
    let name = |bytes: &[u8]| at.join(std::ffi::OsStr::from_bytes(bytes));
    for (bytes, content) in [
        (&b" leading and trailing "[..], "spaces"),
        (b"new\nline", "newline"),
        (b"back\\slash", "backslash"),
        (b"quote'\"$(touch x)`", "quotes"),
        (b"-rf", "dash"),
        (b"*?[a]", "glob"),
        ("\u{e9}\u{4e16}\u{754c}\u{1f600}".as_bytes(), "utf-8"),
        (b"\x01\x02\x7f", "control"),
        (b"...", "dots"),
    ] {
        std::fs::write(name(bytes), content).unwrap();
    }
    std::fs::write(at.join("x".repeat(255)), "255 bytes").unwrap();
    std::fs::write(at.join("empty"), "").unwrap();
    std::fs::create_dir(at.join("empty directory")).unwrap();
    let mut deep = at.to_path_buf();
    for level in 0..120 {
        deep.push(format!("d{level}"));
    }
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join("bottom"), "deep").unwrap();
    for size in [1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5 << 20] {
        std::fs::write(at.join(format!("size-{size}")), noise(size as u64, size)).unwrap();
    }
    // 3 GiB, of which two pages are data.
    let sparse = std::fs::File::create(at.join("sparse")).unwrap();
    sparse.set_len(3 << 30).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"middle", 1 << 30).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", (3 << 30) - 3).unwrap();
    symlink("loop-b", at.join("loop-a")).unwrap();
    symlink("loop-a", at.join("loop-b")).unwrap();
    symlink("self", at.join("self")).unwrap();
    symlink("empty", at.join("chain-0")).unwrap();
    for link in 1..10 {
        symlink(
            format!("chain-{}", link - 1),
            at.join(format!("chain-{link}")),
        )
        .unwrap();
    }
    symlink("nowhere", at.join("dangling")).unwrap();
    symlink("new\nline", at.join("link to newline")).unwrap();
    std::fs::write(at.join("old"), "before 1970").unwrap();
    set_mtime(
        &at.join("old"),
        UNIX_EPOCH - Duration::from_secs(86_400 * 365),
    );
    std::fs::write(at.join("far"), "2200").unwrap();
    set_mtime(
        &at.join("far"),
        UNIX_EPOCH + Duration::new(7_258_118_400, 123_456_789),
    );
    let crowd = at.join("crowd");
    std::fs::create_dir(&crowd).unwrap();
    for entry in 0..entries {
        std::fs::write(crowd.join(format!("entry-{entry}")), []).unwrap();
    }
}

#[test]
fn awkward_trees_survive_the_whole_way() {
    let source = tempfile::tempdir().unwrap();
    awkward(
        source.path(),
        count("entries of one directory", 10_000, 100_000),
    );
    let mut publisher = Home::new();
    publisher.publish(source.path(), "awkward", "1.0.0");
    let url = publisher.serve();
    let mut reader = Home::new();
    reader.follow(&publisher, &url);
    let version = reader.mount().join("awkward/1.0.0");
    let copy = reader.path().join("copy");
    sh("cp -a --sparse=always \"$1\" \"$2\"", &[&version, &copy]);
    sh(
        "diff -r --no-dereference \"$1\" \"$2\"",
        &[source.path(), &copy],
    );
    for name in ["old", "far", "sparse", "empty"] {
        let (ours, theirs) = (
            std::fs::metadata(source.path().join(name)).unwrap(),
            std::fs::metadata(version.join(name)).unwrap(),
        );
        assert_eq!(
            (ours.mtime(), ours.mtime_nsec(), ours.len()),
            (theirs.mtime(), theirs.mtime_nsec(), theirs.len()),
            "{name}"
        );
        assert_eq!(theirs.blocks(), theirs.len().div_ceil(512), "{name}");
    }
    let looped = std::fs::read(version.join("loop-a")).unwrap_err();
    assert_eq!(
        looped.raw_os_error(),
        Some(rustix::io::Errno::LOOP.raw_os_error())
    );
    assert_eq!(std::fs::read(version.join("chain-9")).unwrap(), b"");
    // The store keeps holes as holes.
    let stored = sh(
        "du -s --block-size=1M \"$1\" | cut -f1",
        &[&publisher.path().join("store")],
    );
    assert!(
        stored.trim().parse::<u64>().unwrap() < 200,
        "the publisher's store takes {stored} MiB"
    );
}
