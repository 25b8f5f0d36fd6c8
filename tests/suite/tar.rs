//! Tar streams: those of real programs become the trees that they are of, hostile ones nothing at all.

use std::fs::{self, File};
use std::io::{Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use manifs::publish::{Options, Progress, PublishError, TarError};
use tar::{EntryType, Header};
use tempfile::TempDir;

use crate::common::publishing::{Home, directory, tempdir};
use crate::common::signed::package;

/// Keeps modes and times, so that the whole of a tree is compared.
fn options(text: &str) -> Options {
    let mut options = Options::new(package(text));
    options.preserve = true;
    options
}

/// Unpacks a stream, and returns the root's CID if it can be published.
async fn root_of(home: &Home, stream: OwnedFd, preserve: bool) -> Result<String, PublishError> {
    let progress = Arc::new(Progress::new());
    let publisher = &home.publisher;
    let unpacked = publisher.unpack(stream, Arc::clone(&progress)).await?;
    let mut wanted = options("a@1.0.0");
    wanted.preserve = preserve;
    let (registry, trust) = (Arc::clone(&home.registry), Arc::clone(&home.trust));
    let tree = unpacked.directory().unwrap();
    let done = publisher.dry_run(tree, wanted, registry, trust, progress);
    done.await.map(|rehearsal| rehearsal.summary.root)
}

/// The root's CID of a directory.
async fn root(home: &Home, tree: &Path, preserve: bool) -> String {
    let mut wanted = options("a@1.0.0");
    wanted.preserve = preserve;
    let (registry, trust) = (Arc::clone(&home.registry), Arc::clone(&home.trust));
    let progress = Arc::new(Progress::new());
    let publisher = &home.publisher;
    let done = publisher.dry_run(directory(tree), wanted, registry, trust, progress);
    done.await.unwrap().summary.root
}

fn stream(bytes: &[u8]) -> OwnedFd {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file.into()
}

/// Asserts that nothing is left of what was unpacked.
fn nothing_left(home: &Home) {
    let scratch = home.dir.path().join("store/scratch");
    // Removed on another thread.
    for _ in 0..1000 {
        if fs::read_dir(&scratch).map_or(0, Iterator::count) == 0 {
            return;
        }
        std::thread::yield_now();
        std::thread::park_timeout(std::time::Duration::from_millis(10));
    }
    panic!("something is left in {}", scratch.display());
}

fn tree() -> TempDir {
    let dir = tempdir();
    let root = dir.path();
    fs::create_dir_all(root.join("d/empty")).unwrap();
    let long = format!("d/{}", "n".repeat(200));
    fs::create_dir(root.join(&long)).unwrap();
    fs::write(root.join(&long).join("m".repeat(180)), b"long names").unwrap();
    fs::write(root.join("d/run"), b"#!/bin/sh\n").unwrap();
    fs::set_permissions(root.join("d/run"), fs::Permissions::from_mode(0o750)).unwrap();
    fs::write(root.join("d/f\u{fc}r"), b"unicode").unwrap();
    fs::write(root.join("none"), b"").unwrap();
    fs::write(root.join("large"), vec![7; (2 << 20) + 3]).unwrap();
    symlink("d/run", root.join("link")).unwrap();
    symlink("x/".repeat(70) + "y", root.join("d/long-link")).unwrap();
    fs::hard_link(root.join("d/run"), root.join("d/same")).unwrap();
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.set_len(5 << 20).unwrap();
    sparse.write_all_at(b"data", 3 << 20).unwrap();
    dir
}

fn run(command: &mut Command) -> Vec<u8> {
    let done = command.output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
    done.stdout
}

#[tokio::test]
async fn what_gnu_tar_writes_is_the_tree_that_it_read() {
    let (home, tree) = (Home::new(), tree());
    // Whole seconds, which is all that most formats have.
    for name in ["d/run", "d/f\u{fc}r", "none", "large", "sparse"] {
        let file = File::open(tree.path().join(name)).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_600_000_000);
        file.set_modified(time).unwrap();
    }
    let whole = root(&home, tree.path(), false).await;
    let exact = root(&home, tree.path(), true).await;
    for format in ["gnu", "pax", "posix", "oldgnu"] {
        for sparse in [false, true] {
            let mut command = Command::new("tar");
            command.arg("-c").arg(format!("--format={format}"));
            if sparse {
                command.arg("-S");
            }
            command.arg("-C").arg(tree.path()).arg(".");
            let bytes = run(&mut command);
            let pax = matches!(format, "pax" | "posix");
            if pax && sparse {
                let error = root_of(&home, stream(&bytes), false).await.unwrap_err();
                assert!(error.hint().unwrap().contains("--format=gnu"), "{error}");
                continue;
            }
            let found = root_of(&home, stream(&bytes), false).await;
            if pax {
                assert_eq!(found.unwrap(), whole, "{format}");
                let found = root_of(&home, stream(&bytes), true).await.unwrap();
                assert_eq!(found, exact, "{format} with all times");
            } else {
                // One file has nanoseconds that these formats do not have.
                found.unwrap();
            }
        }
    }
    nothing_left(&home);
}

#[tokio::test]
async fn git_archive_and_python_write_streams_too() {
    let home = Home::new();
    let (repository, other) = (tempdir(), tempdir());
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command.arg("-C").arg(repository.path());
        command.args(["-c", "user.name=a", "-c", "user.email=a@example.org"]);
        run(command.args(arguments))
    };
    git(&["init", "-q"]);
    fs::create_dir(repository.path().join("src")).unwrap();
    fs::write(repository.path().join("src/main"), b"main").unwrap();
    fs::write(repository.path().join("n".repeat(150)), b"long").unwrap();
    git(&["add", "."]);
    git(&["commit", "-q", "-m", "one"]);
    let bytes = git(&["archive", "HEAD"]);
    let found = root_of(&home, stream(&bytes), false).await.unwrap();
    let time = run(Command::new("git").arg("-C").arg(repository.path()).args([
        "log",
        "-1",
        "--format=%ct",
    ]));
    let time: u64 = String::from_utf8(time).unwrap().trim().parse().unwrap();
    fs::create_dir(other.path().join("src")).unwrap();
    for (name, content) in [("src/main", "main"), (&*"n".repeat(150), "long")] {
        fs::write(other.path().join(name), content).unwrap();
        let file = File::open(other.path().join(name)).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(time);
        file.set_modified(time).unwrap();
    }
    assert_eq!(found, root(&home, other.path(), false).await);

    let tree = tree();
    let script = "import sys, tarfile\n\
        tar = tarfile.open(fileobj=sys.stdout.buffer, mode='w|', format=tarfile.PAX_FORMAT)\n\
        tar.add(sys.argv[1], arcname='.')\ntar.close()\n";
    let bytes = run(Command::new("python3")
        .arg("-c")
        .arg(script)
        .arg(tree.path()));
    // Python writes times as floating point: they are not to the nanosecond.
    root_of(&home, stream(&bytes), false).await.unwrap();
    nothing_left(&home);
}

/// Writes archives that no program would.
#[derive(Default)]
struct Hostile(Vec<u8>);

impl Hostile {
    fn add(mut self, name: &str, kind: EntryType, link: &str, content: &[u8]) -> Hostile {
        let mut header = Header::new_gnu();
        // Not by `set_path`, which refuses what is wanted here.
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_mtime(1_600_000_000);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, content: &[u8]) -> Hostile {
        self.add(name, EntryType::Regular, "", content)
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

async fn refused(home: &Home, bytes: &[u8]) -> TarError {
    match root_of(home, stream(bytes), false).await {
        Err(PublishError::Tar(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn nothing_leads_out_of_the_tree() {
    let home = Home::new();
    let outside = home.dir.path().join("outside");
    fs::write(&outside, b"untouched").unwrap();
    let there = outside.to_str().unwrap();
    let above = home.dir.path().to_str().unwrap();
    let link = EntryType::Symlink;
    let hard = EntryType::Link;
    let cases = [
        Hostile::default().file("../outside", b"x"),
        Hostile::default().file("d/../../outside", b"x"),
        Hostile::default().file("d/..", b"x"),
        Hostile::default().file(there, b"x"),
        Hostile::default().add("../d", EntryType::Directory, "", b""),
        Hostile::default()
            .add("up", link, above, b"")
            .file("up/outside", b"x"),
        Hostile::default()
            .add("up", link, "../../..", b"")
            .file("up/outside", b"x"),
        Hostile::default()
            .add("up", link, "..", b"")
            .add("up/d", EntryType::Directory, "", b""),
        Hostile::default().add("same", hard, there, b""),
        Hostile::default().add("same", hard, "../../../outside", b""),
        Hostile::default()
            .add("l", link, there, b"")
            .add("same", hard, "l", b""),
        Hostile::default()
            .add("up", link, above, b"")
            .add("same", hard, "up/outside", b""),
        Hostile::default()
            .file("file", b"x")
            .file("file/below", b"x"),
    ];
    for (index, case) in cases.into_iter().enumerate() {
        let error = refused(&home, &case.end()).await;
        assert!(matches!(error, TarError::Member { .. }), "{index}: {error}");
        assert_eq!(fs::read(&outside).unwrap(), b"untouched", "{index}");
        assert_eq!(fs::metadata(&outside).unwrap().nlink(), 1, "{index}");
    }
    // A link that leaves is written as it is, and refused as in any tree.
    let leaving = Hostile::default().add("l", link, there, b"").end();
    let error = root_of(&home, stream(&leaving), false).await.unwrap_err();
    assert!(matches!(error, PublishError::Refused(_)), "{error}");
    nothing_left(&home);
}

#[tokio::test]
async fn what_is_no_file_has_no_place_in_a_tree() {
    let home = Home::new();
    for kind in [
        EntryType::Char,
        EntryType::Block,
        EntryType::Fifo,
        EntryType::new(b'Z'),
    ] {
        let error = refused(&home, &Hostile::default().add("x", kind, "", b"").end()).await;
        assert!(matches!(error, TarError::Member { .. }), "{error}");
    }
    for (kind, link) in [(EntryType::Symlink, ""), (EntryType::Link, "none")] {
        let error = refused(&home, &Hostile::default().add("x", kind, link, b"").end()).await;
        assert!(matches!(error, TarError::Member { .. }), "{error}");
    }
    nothing_left(&home);
}

#[tokio::test]
async fn the_last_of_a_name_counts() {
    let home = Home::new();
    let directory = EntryType::Directory;
    let twice = Hostile::default()
        .file("a", b"first and longer")
        .add("b", EntryType::Symlink, "a", b"")
        .add("c", directory, "", b"")
        .file("./a", b"second")
        .file("b", b"no link any more")
        .file("c", b"no directory any more")
        .add("d", directory, "", b"")
        .file("d/e", b"e")
        .add("d", directory, "", b"");
    let once = Hostile::default()
        .file("d/e", b"e")
        .file("c", b"no directory any more")
        .file("b", b"no link any more")
        .file("a", b"second");
    let twice = root_of(&home, stream(&twice.end()), false).await.unwrap();
    let once = root_of(&home, stream(&once.end()), false).await.unwrap();
    assert_eq!(twice, once);
    let full = Hostile::default()
        .file("d/e", b"e")
        .file("d", b"no directory");
    assert!(matches!(
        refused(&home, &full.end()).await,
        TarError::Member { .. }
    ));
}

#[tokio::test]
async fn a_stream_that_is_cut_anywhere_is_refused() {
    let home = Home::new();
    let zeros = vec![0; 2000];
    let whole = Hostile::default()
        .file("a", b"content")
        .file("zeros", &zeros)
        .end();
    root_of(&home, stream(&whole), false).await.unwrap();
    // One block of the end mark will do, as it does for GNU tar.
    let last = whole.len() - 512;
    root_of(&home, stream(&whole[..last]), false).await.unwrap();
    for len in [
        0,
        1,
        511,
        512,
        513,
        1024,
        1500,
        1536,
        2000,
        last - 600,
        last - 512,
        last - 1,
    ] {
        let error = refused(&home, &whole[..len]).await;
        assert!(matches!(error, TarError::Truncated), "{len}: {error}");
    }
    nothing_left(&home);
}

#[tokio::test]
async fn what_is_no_tar_says_what_it_is() {
    let home = Home::new();
    for (magic, program) in [
        (&b"\x1f\x8b\x08\0\0\0\0\0"[..], "gzip"),
        (b"\x28\xb5\x2f\xfd\0\0\0", "zstd"),
        (b"\xfd7zXZ\0\0", "xz"),
        (b"BZh91AY", "bzip2"),
    ] {
        let error = root_of(&home, stream(magic), false).await.unwrap_err();
        let hint = error.hint().unwrap();
        assert!(hint.contains(program), "{hint}");
    }
    let text = "This is a letter, and a long one. ".repeat(100);
    let error = refused(&home, text.as_bytes()).await;
    assert!(matches!(error, TarError::Damaged(_)), "{error}");
    // A name as long as a disk.
    let mut endless = Hostile::default();
    endless = endless.add(
        "././@LongLink",
        EntryType::GNULongName,
        "",
        &vec![b'n'; 8 << 20],
    );
    let error = refused(&home, &endless.file("x", b"").end()).await;
    assert!(matches!(error, TarError::Damaged(_)), "{error}");
    nothing_left(&home);
}

/// A stream without end is stopped by the quota, and gives everything back.
#[tokio::test]
async fn a_stream_without_end_meets_the_quota() {
    let home = Home::with_quota(8 << 20);
    let content = vec![b'x'; 64 << 20];
    let bytes = Hostile::default().file("large", &content).end();
    let before = home.store.usage().used;
    let error = root_of(&home, stream(&bytes), false).await.unwrap_err();
    assert!(matches!(error, PublishError::Store(_)), "{error}");
    nothing_left(&home);
    assert!(home.store.usage().used <= before + (1 << 20));
}

/// Who does not wait any more is not waited for.
#[tokio::test]
async fn a_stream_that_nobody_writes_to_is_given_up_when_asked() {
    let home = Home::new();
    let (reader, _writer) = std::io::pipe().unwrap();
    let progress = Arc::new(Progress::new());
    progress.cancel();
    let error = home.publisher.unpack(reader.into(), progress).await;
    assert!(matches!(error, Err(PublishError::Cancelled)));
    nothing_left(&home);
}
