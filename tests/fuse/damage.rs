//! Damage to the store, dead sources, dead daemons: the bytes read are right, or the read fails.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::machine::{Home, count, noise, sh};
use crate::proxy::Proxy;

fn tree(at: &Path) {
    std::fs::create_dir_all(at.join("d")).unwrap();
    std::fs::write(at.join("small"), noise(1, 10_000)).unwrap();
    std::fs::write(at.join("d/large"), noise(2, (5 << 20) + 3)).unwrap();
    for file in 0..50 {
        std::fs::write(at.join(format!("d/f{file}")), noise(file + 10, 3000)).unwrap();
    }
}

fn pair(source: &Path) -> (Home, Proxy, Home) {
    tree(source);
    let mut publisher = Home::new();
    publisher.publish(source, "pkg", "1.0.0");
    let proxy = Proxy::new(&publisher.serve());
    let reader = Home::new();
    reader.follow(&publisher, &proxy.url());
    (publisher, proxy, reader)
}

/// Every data file of a store.
fn data_files(home: &Home) -> Vec<PathBuf> {
    let found = sh(
        "find \"$1\"/store/r \"$1\"/store/p -type f ! -name '*.map' -size +0 -print",
        &[home.path()],
    );
    found.lines().map(PathBuf::from).collect()
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = at % bytes.len();
    bytes[at] ^= 1;
    sh("chmod u+w \"$1\"", &[path]);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn damage_while_the_daemon_is_down_is_healed_or_refused() {
    let source = tempfile::tempdir().unwrap();
    let (_publisher, proxy, mut reader) = pair(source.path());
    let compare = |version: &Path| {
        sh(
            "diff -r --no-dereference \"$1\" \"$2\"",
            &[source.path(), version],
        )
    };
    let mountpoint = reader.mount();
    let version = mountpoint.join("pkg/1.0.0");
    compare(&version);
    type Damage<'a> = (&'a str, &'a dyn Fn(&Home));
    let damages: [Damage<'_>; 5] = [
        ("a flipped bit in every file", &|home| {
            data_files(home)
                .iter()
                .enumerate()
                .for_each(|(index, path)| flip(path, index * 977))
        }),
        ("every file truncated", &|home| {
            for path in data_files(home) {
                let len = path.metadata().unwrap().len();
                sh("chmod u+w \"$1\"", &[&path]);
                std::fs::File::options()
                    .write(true)
                    .open(&path)
                    .unwrap()
                    .set_len(len / 2)
                    .unwrap();
            }
        }),
        ("every file emptied", &|home| {
            data_files(home).iter().for_each(|path| {
                sh("chmod u+w \"$1\" && : >\"$1\"", &[path]);
            });
        }),
        ("the index deleted", &|home| {
            sh(
                "find \"$1\"/store -maxdepth 1 -name '*.redb' -delete",
                &[home.path()],
            );
        }),
        ("store/ deleted", &|home| {
            std::fs::remove_dir_all(home.path().join("store")).unwrap()
        }),
    ];
    for (what, damage) in damages {
        eprintln!("{what}");
        reader.run(&["unmount", mountpoint.to_str().unwrap()]);
        damage(&reader);
        reader.run(&["mount", mountpoint.to_str().unwrap()]);
        compare(&version);
    }
    // With no source left, damage is an error, never a wrong byte.
    reader.config("[fetch]\ndeadline = \"5s\"\n");
    reader.run(&["unmount", mountpoint.to_str().unwrap()]);
    let store = reader.path().join("store");
    let large = data_files(&reader)
        .into_iter()
        .max_by_key(|path| path.metadata().unwrap().len())
        .unwrap();
    assert!(large.starts_with(&store));
    flip(&large, (2 << 20) + 5);
    proxy.die();
    reader.run(&["mount", mountpoint.to_str().unwrap()]);
    let content = noise(2, (5 << 20) + 3);
    let mut file = std::fs::File::open(version.join("d/large")).unwrap();
    let mut read = Vec::new();
    let error = file.read_to_end(&mut read).unwrap_err();
    let errno = error
        .raw_os_error()
        .map(rustix::io::Errno::from_raw_os_error);
    assert!(
        matches!(
            errno,
            Some(rustix::io::Errno::IO | rustix::io::Errno::TIMEDOUT)
        ),
        "{error}"
    );
    assert_eq!(read, content[..read.len()]);
    assert!(read.len() <= 3 << 20);
}

#[test]
fn verify_always_sees_damage_while_the_daemon_runs() {
    let source = tempfile::tempdir().unwrap();
    let (_publisher, _proxy, mut reader) = pair(source.path());
    reader.config("[store]\nverify = \"always\"\n");
    let mountpoint = reader.mount();
    let version = mountpoint.join("pkg/1.0.0");
    sh("diff -r \"$1\" \"$2\"", &[source.path(), &version]);
    for path in data_files(&reader) {
        flip(&path, 99);
    }
    sh("sync; echo 1 >/proc/sys/vm/drop_caches", &[]);
    sh("diff -r \"$1\" \"$2\"", &[source.path(), &version]);
}

#[test]
fn a_deleted_state_is_said_plainly() {
    let source = tempfile::tempdir().unwrap();
    let (_publisher, proxy, mut reader) = pair(source.path());
    let mountpoint = reader.mount();
    sh(
        "cat \"$1\"/small >/dev/null",
        &[&mountpoint.join("pkg/1.0.0")],
    );
    reader.run(&["unmount", mountpoint.to_str().unwrap()]);
    std::fs::remove_dir_all(reader.path().join("state")).unwrap();
    let said = reader
        .command()
        .args(["mount", mountpoint.to_str().unwrap()])
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&said.stderr).into_owned() + &reader.logs();
    assert!(words.contains("state/ was lost"), "{words}");
    // Which registries there were is part of what was lost; whom to trust is not.
    reader.run(&["registry", "add", &proxy.url()]);
    reader.wait_for("the package", |_| mountpoint.join("pkg/1.0.0").exists());
    sh(
        "diff -r \"$1\" \"$2\"",
        &[source.path(), &mountpoint.join("pkg/1.0.0")],
    );
}

#[test]
fn a_killed_daemon_leaves_a_mount_that_the_next_one_clears() {
    let source = tempfile::tempdir().unwrap();
    let (_publisher, _proxy, mut reader) = pair(source.path());
    let mountpoint = reader.path().join("mnt");
    std::fs::create_dir(&mountpoint).unwrap();
    let mount = mountpoint.to_str().unwrap().to_owned();
    let mut inode = None;
    for round in 0..count("kills of a reading daemon", 5, 50) {
        reader.start_daemon();
        reader.run(&["mount", &mount]);
        let version = mountpoint.join("pkg/1.0.0");
        let now = std::fs::metadata(version.join("d/large")).unwrap().ino();
        assert_eq!(
            *inode.get_or_insert(now),
            now,
            "inodes are the same after a remount"
        );
        let mut reading = Command::new("bash")
            .args([
                "-c",
                "cat \"$0\"/d/* \"$0\"/small >/dev/null",
                version.to_str().unwrap(),
            ])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pause = Duration::from_micros(u64::from(noise(round as u64, 2)[0]) * 200);
        std::thread::park_timeout(pause);
        reader.kill_daemon();
        reading.wait().unwrap();
        // A name that the kernel has never asked for, since it may keep what it knows for a second.
        let dead = std::fs::metadata(mountpoint.join(format!("unknown-{round}"))).unwrap_err();
        assert_eq!(
            dead.raw_os_error(),
            Some(rustix::io::Errno::NOTCONN.raw_os_error())
        );
    }
    reader.start_daemon();
    reader.run(&["mount", &mount]);
    sh(
        "diff -r \"$1\" \"$2\"",
        &[source.path(), &mountpoint.join("pkg/1.0.0")],
    );
    reader.run(&["unmount", &mount]);
}

#[test]
fn reads_of_a_source_that_never_answers_end_and_disturb_nobody() {
    let waiting = count("reads that wait", 200, 1000);
    let source = tempfile::tempdir().unwrap();
    tree(source.path());
    std::fs::create_dir(source.path().join("lost")).unwrap();
    for file in 0..waiting {
        std::fs::write(
            source.path().join(format!("lost/{file}")),
            noise(1000 + file as u64, 5000),
        )
        .unwrap();
    }
    let mut publisher = Home::new();
    publisher.publish(source.path(), "pkg", "1.0.0");
    let proxy = Proxy::new(&publisher.serve());
    let mut reader = Home::new();
    reader.config("[fetch]\ndeadline = \"8s\"\n");
    reader.follow(&publisher, &proxy.url());
    let version = reader.mount().join("pkg/1.0.0");
    sh(
        "cat \"$1\"/d/large >/dev/null; ls \"$1\"/lost >/dev/null",
        &[&version],
    );
    proxy.hang();
    let started = Instant::now();
    let readers: Vec<_> = (0..waiting)
        .map(|file| {
            let path = version.join(format!("lost/{file}"));
            std::thread::Builder::new()
                .stack_size(64 << 10)
                .spawn(move || std::fs::read(path))
                .unwrap()
        })
        .collect();
    // Ctrl-C ends a waiting `cat` at once.
    // A shell that ran us in the background has had us ignore the signal, and children inherit that.
    let mut cat = Command::new("env")
        .args(["--default-signal=INT", "cat"])
        .arg(version.join("lost/0"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::park_timeout(Duration::from_millis(500));
    let pid = rustix::process::Pid::from_child(&cat);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let interrupted = Instant::now();
    cat.wait().unwrap();
    assert!(
        interrupted.elapsed() < Duration::from_secs(3),
        "{:?}",
        interrupted.elapsed()
    );
    // Meanwhile metadata and stored blocks are quick.
    let mut metadata = Vec::new();
    let mut blocks = Vec::new();
    sh("echo 1 >/proc/sys/vm/drop_caches", &[]);
    for round in 0..300_u64 {
        let at = Instant::now();
        let _ = std::fs::symlink_metadata(version.join(format!("d/no-such-{round}")));
        metadata.push(at.elapsed());
        let file = std::fs::File::open(version.join("d/large")).unwrap();
        let at = Instant::now();
        let mut part = [0; 4096];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut part, round * 4096 * 4 % (5 << 20))
            .unwrap();
        blocks.push(at.elapsed());
    }
    for (what, mut times, limit) in [("metadata", metadata, 5), ("stored blocks", blocks, 20)] {
        times.sort();
        let (median, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        println!(
            "{waiting} reads waiting: {what} median {median:?}, p99 {p99:?} (wanted: {limit} ms)"
        );
        // The figure is the benchmark's; a test on a shared machine asserts with a wide margin.
        assert!(
            p99 < Duration::from_millis(limit * 20),
            "{what}: p99 {p99:?}"
        );
    }
    for reader in readers {
        let error = reader.join().unwrap().unwrap_err();
        let errno = error
            .raw_os_error()
            .map(rustix::io::Errno::from_raw_os_error);
        assert!(
            matches!(
                errno,
                Some(rustix::io::Errno::TIMEDOUT | rustix::io::Errno::IO)
            ),
            "{error}"
        );
    }
    assert!(
        started.elapsed() < Duration::from_secs(60),
        "{:?}",
        started.elapsed()
    );
    proxy.revive();
}
