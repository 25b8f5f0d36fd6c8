//! The drop directory under load: many at once, killed at any moment, attacked while it reads, and very large.
//!
//! Small by default; `MANIFS_TEST_FULL=1` takes the counts of a long run.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use manifs::manifest::{Envelope, Signed};

use crate::machine::{Home, count, noise};

/// A home with a key, whose daemon publishes what is dropped.
pub(crate) struct Drops {
    pub(crate) home: Home,
    pub(crate) place: PathBuf,
}

impl Drops {
    /// Nothing is published for being quiet: each test commits.
    pub(crate) fn new(more: &str) -> Drops {
        let home = Home::new();
        home.run(&["keygen"]);
        let settle = if more.contains("settle") {
            ""
        } else {
            "settle = \"0s\"\n"
        };
        let place = home.path().join("drops");
        // The daemon makes the scope `ok`, so that whatever is renamed into it is seen to be.
        fs::create_dir(&place).unwrap();
        fs::set_permissions(&place, fs::Permissions::from_mode(0o700)).unwrap();
        home.config(&format!(
            "[publish]\nnames = [\"ok/*\"]\ndirectory = {place:?}\n{settle}{more}"
        ));
        let mut drops = Drops { home, place };
        drops.home.start_daemon();
        drops
    }

    /// Makes a tree beside the entries, under a name that nobody looks at.
    pub(crate) fn stage(&self, name: &str) -> PathBuf {
        let path = self.place.join(format!(".{name}"));
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Renames a staged tree into place, which commits it.
    pub(crate) fn commit(&self, name: &str, entry: &str) {
        let entry = self.place.join(OsStr::from_bytes(entry.as_bytes()));
        fs::create_dir_all(entry.parent().unwrap()).unwrap();
        fs::rename(self.place.join(format!(".{name}")), entry).unwrap();
    }

    /// Returns the status of an entry, if it has one.
    pub(crate) fn status(&self, entry: &str) -> Option<String> {
        fs::read_to_string(self.place.join(format!("{entry}.status"))).ok()
    }

    /// Waits until an entry has come to an end, and returns its status.
    pub(crate) fn ended(&self, entry: &str) -> String {
        self.ended_within(entry, Duration::from_secs(120))
    }

    fn ended_within(&self, entry: &str, patience: Duration) -> String {
        let deadline = Instant::now() + patience;
        loop {
            let status = self.status(entry).unwrap_or_default();
            let word = status.split(' ').next().unwrap_or_default();
            if ["published", "unchanged", "refused"].contains(&word) {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "{entry} came to no end: {status:?}; the daemon says:\n{}",
                self.home.logs()
            );
            // No event tells a process from outside; the deadline above is what the test asserts.
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }

    /// Returns the versions in the registry, after looking whether each has the one manifest that the index names, and
    /// that this home publishes the same one.
    pub(crate) fn announced(&self) -> BTreeSet<String> {
        let mut versions = BTreeSet::new();
        let packages = self.home.path().join("registry/packages/ok");
        let Ok(packages) = fs::read_dir(packages) else {
            return versions;
        };
        for package in packages.map(|package| package.unwrap().path()) {
            let Ok(bytes) = fs::read(package.join("index.json")) else {
                continue;
            };
            let envelope = Envelope::parse(&bytes).unwrap();
            let Signed::Index(index) = envelope.unverified() else {
                panic!("no index");
            };
            for (version, id) in &index.versions {
                let path = format!("packages/{}/{version}/manifest.json", index.name);
                for place in ["registry", "state/published"] {
                    let path = self.home.path().join(place).join(&path);
                    let bytes = match fs::read(&path) {
                        Err(error) if place != "registry" => {
                            // Announced by a process that was killed before it showed it: the next start does.
                            assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
                            continue;
                        }
                        bytes => bytes.unwrap(),
                    };
                    let envelope = Envelope::parse(&bytes).unwrap();
                    let Signed::Manifest(manifest) = envelope.unverified() else {
                        panic!("no manifest");
                    };
                    assert_eq!(manifest.id(), *id, "{}", path.display());
                }
                versions.insert(format!("{}@{version}", index.name));
            }
        }
        versions
    }
}

/// One kind of what is refused: what makes the tree bad, and what the status says.
struct Bad {
    entry: &'static str,
    says: &'static str,
    make: fn(&Path),
}

/// Every reason that a drop is refused for, which a tree or its name can give.
const BAD: [Bad; 20] = [
    Bad {
        entry: "ok/fifo@1.0.0",
        says: "a FIFO",
        make: |tree| {
            let done = Command::new("mkfifo").arg(tree.join("f")).status().unwrap();
            assert!(done.success());
        },
    },
    Bad {
        entry: "ok/socket@1.0.0",
        says: "a socket",
        make: |tree| drop(std::os::unix::net::UnixListener::bind(tree.join("s")).unwrap()),
    },
    Bad {
        entry: "ok/bytes@1.0.0",
        says: "UTF-8",
        make: |tree| fs::write(tree.join(OsStr::from_bytes(b"\xff")), "x").unwrap(),
    },
    Bad {
        entry: "ok/reserved@1.0.0",
        says: "reserved",
        make: |tree| fs::create_dir(tree.join(".manifs")).unwrap(),
    },
    Bad {
        entry: "ok/absolute@1.0.0",
        says: "a symlink that leaves the package",
        make: |tree| symlink("/etc/passwd", tree.join("link")).unwrap(),
    },
    Bad {
        entry: "ok/above@1.0.0",
        says: "a symlink that leaves the package",
        make: |tree| symlink("../../other", tree.join("link")).unwrap(),
    },
    Bad {
        entry: "ok/case@1.0.0",
        says: "case",
        make: |tree| {
            fs::write(tree.join("readme"), "x").unwrap();
            fs::write(tree.join("README"), "x").unwrap();
        },
    },
    Bad {
        entry: "ok/environment@1.0.0",
        says: "likely a secret",
        make: |tree| fs::write(tree.join(".env"), "TOKEN=1").unwrap(),
    },
    Bad {
        entry: "ok/key@1.0.0",
        says: "likely a secret",
        make: |tree| {
            let begin = ["-----BEGIN ", "PRIVATE KEY-----\n"].concat();
            fs::write(tree.join("notes"), begin).unwrap();
        },
    },
    Bad {
        entry: "ok/deep@1.0.0",
        says: "255 directories",
        make: |tree| fs::create_dir_all(tree.join("d/".repeat(256))).unwrap(),
    },
    Bad {
        entry: "ok/time@1.0.0",
        says: "2262",
        make: |tree| {
            let path = tree.join("late");
            fs::write(&path, "x").unwrap();
            let late = std::time::UNIX_EPOCH + Duration::from_secs(9_500_000_000);
            File::options()
                .write(true)
                .open(path)
                .unwrap()
                .set_modified(late)
                .unwrap();
        },
    },
    Bad {
        entry: "ok/unknown@1.0.0",
        says: "no such key",
        make: |tree| fs::write(tree.join("manifs.toml"), "colour = \"red\"\n").unwrap(),
    },
    Bad {
        entry: "ok/forbidden@1.0.0",
        says: "only the configuration",
        make: |tree| fs::write(tree.join("manifs.toml"), "allow = [\"secrets\"]\n").unwrap(),
    },
    Bad {
        entry: "ok/syntax@1.0.0",
        says: "not TOML",
        make: |tree| fs::write(tree.join("manifs.toml"), "= 1").unwrap(),
    },
    Bad {
        entry: "ok/other@1.0.0",
        says: "it says 2.0.0",
        make: |tree| fs::write(tree.join("manifs.toml"), "version = \"2.0.0\"\n").unwrap(),
    },
    Bad {
        entry: "ok/taken@1.0.0",
        says: "exists already",
        make: |_| {},
    },
    Bad {
        entry: "ok/gone@1.0.0",
        says: "is withdrawn",
        make: |_| {},
    },
    Bad {
        entry: "foreign@1.0.0",
        says: "names",
        make: |_| {},
    },
    Bad {
        entry: "ok/noversion@one",
        says: "no version",
        make: |_| {},
    },
    Bad {
        entry: "Loud@1.0.0",
        says: "no package name",
        make: |_| {},
    },
];

#[test]
fn many_drops_at_once_end_each_for_itself() {
    let all = count("drops at once", 40, 200);
    let bad = (all * 3 / 20).max(BAD.len());
    let drops = Drops::new("");
    for (name, reason) in [("ok/taken", None), ("ok/gone", Some("withdrawn before"))] {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("first"), name).unwrap();
        drops.home.publish(tree.path(), name, "1.0.0");
        if let Some(reason) = reason {
            let package = format!("{name}@1.0.0");
            drops.home.run(&["withdraw", &package, "--reason", reason]);
        }
    }
    let before = drops.announced();
    // Each kind of bad in turn; the second time around under another name.
    let mut entries: Vec<(String, Option<&Bad>)> = Vec::new();
    for number in 0..bad {
        let kind = &BAD[number % BAD.len()];
        let entry = match number / BAD.len() {
            0 => kind.entry.to_owned(),
            // What is taken or withdrawn is one version each.
            _ if ["ok/taken@1.0.0", "ok/gone@1.0.0"].contains(&kind.entry) => continue,
            round => kind.entry.replace('@', &format!("{round}@")),
        };
        entries.push((entry, Some(kind)));
    }
    while entries.len() < all {
        // Many packages, and many versions of each.
        let number = entries.len();
        let entry = format!("ok/good{}@1.{number}.0", number % 7);
        entries.push((entry, None));
    }
    for (number, (_, kind)) in entries.iter().enumerate() {
        let tree = drops.stage(&format!("stage{number}"));
        fs::write(tree.join("file"), number.to_string()).unwrap();
        fs::write(tree.join("noise"), noise(number as u64, 50_000)).unwrap();
        if let Some(kind) = kind {
            (kind.make)(&tree);
        }
    }
    let started = Instant::now();
    // Bad and good among each other.
    let mut order: Vec<usize> = (0..entries.len()).collect();
    order.sort_by_key(|number| number * 7919 % 1009);
    for number in order {
        drops.commit(&format!("stage{number}"), &entries[number].0);
    }
    let mut expected = before;
    for (entry, kind) in &entries {
        let status = drops.ended(entry);
        let place = drops.place.join(entry);
        match kind {
            None => {
                assert!(status.starts_with("published "), "{entry}: {status}");
                expected.insert(entry.clone());
            }
            Some(kind) => {
                assert!(status.starts_with("refused "), "{entry}: {status}");
                assert!(status.contains(kind.says), "{entry}: {status}");
                assert!(place.join("file").exists(), "{entry} is not untouched");
            }
        }
    }
    println!("{} drops in {:?}", entries.len(), started.elapsed());
    assert_eq!(drops.announced(), expected);
    for (entry, kind) in &entries {
        if kind.is_none() {
            drops.home.wait_for("it to be cleared away", |_| {
                !drops.place.join(entry).exists()
            });
        }
    }
    // One of the refused is put right, and says so by `.publish`.
    let repaired = drops.place.join("ok/absolute@1.0.0");
    fs::remove_file(repaired.join("link")).unwrap();
    fs::write(repaired.join(".publish"), "").unwrap();
    drops.home.wait_for("the repaired one", |_| {
        drops.announced().contains("ok/absolute@1.0.0")
    });
}

/// Makes a tree of many small files.
fn tree_of(path: &Path, files: usize) {
    for number in 0..files {
        let directory = path.join(format!("d{:02}", number % 50));
        fs::create_dir_all(&directory).unwrap();
        fs::write(
            directory.join(format!("f{number}")),
            noise(number as u64, 200),
        )
        .unwrap();
    }
}

#[test]
fn a_killed_daemon_publishes_whole_or_not_at_all() {
    let rounds = count("kills of a daemon that publishes a drop", 10, 200);
    let files = 5000;
    // Killed before it took notice of a rename, the next one waits until nobody is at work in the directory.
    let mut drops = Drops::new("settle = \"2s\"\n");
    let source = tempfile::tempdir().unwrap();
    tree_of(source.path(), files);
    let drop_it = |drops: &Drops, round: usize| -> String {
        fs::write(source.path().join("round"), round.to_string()).unwrap();
        let entry = format!("ok/pkg@1.0.{round}");
        let staged = drops.place.join(format!(".stage{round}"));
        let done = Command::new("cp")
            .arg("-a")
            .arg(source.path())
            .arg(&staged)
            .status();
        assert!(done.unwrap().success());
        drops.commit(&format!("stage{round}"), &entry);
        entry
    };
    let started = Instant::now();
    let entry = drop_it(&drops, 0);
    drops.ended(&entry);
    let whole = started.elapsed();
    let mut at = BTreeMap::new();
    for round in 1..=rounds {
        let before = drops.announced();
        let entry = drop_it(&drops, round);
        let random = u32::from(noise(round as u64, 5)[3]);
        std::thread::park_timeout(whole * random / 256);
        let word = drops.status(&entry).unwrap_or_default();
        drops.home.kill_daemon();
        let word = word.split(' ').next().unwrap_or_default().to_owned();
        *at.entry(word).or_insert(0) += 1;
        // Whole or not at all; what was there before stays.
        let now = drops.announced();
        assert!(now.is_superset(&before), "a version was lost");
        let id = manifest_id(&drops.home, round);
        drops.home.start_daemon();
        drops
            .home
            .wait_for("the version", |_| drops.announced().contains(&entry));
        let after = manifest_id(&drops.home, round);
        assert!(id.is_none() || id == after, "another manifest of {entry}");
        drops
            .home
            .wait_for("the drop to go", |_| !drops.place.join(&entry).exists());
        drops
            .home
            .run(&["verify", &entry, source.path().to_str().unwrap()]);
        assert_eq!(manifest_id(&drops.home, round), after);
    }
    println!("killed in {at:?}, of {whole:?}");
    assert_eq!(drops.announced().len(), rounds + 1);
    let journal = drops.home.path().join("state/journal");
    assert_eq!(fs::read_dir(journal).map_or(0, Iterator::count), 0);
    let left: Vec<_> = fs::read_dir(&drops.place)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.as_bytes().starts_with(b"."))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

fn manifest_id(home: &Home, round: usize) -> Option<String> {
    let path = format!("registry/packages/ok/pkg/1.0.{round}/manifest.json");
    let bytes = fs::read(home.path().join(path)).ok()?;
    let envelope = Envelope::parse(&bytes).unwrap();
    match envelope.unverified() {
        Signed::Manifest(manifest) => Some(manifest.id().to_string()),
        Signed::Index(_) => panic!("no manifest"),
    }
}

/// What the attacker does, as another user, to entries of its own: whatever may mislead who walks and reads them.
const ATTACK: &str = r#"
import os, random, signal, sys, time, ctypes
place, secret, public, seconds, seed = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]), int(sys.argv[5])
random.seed(seed)
libc = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, RENAME_EXCHANGE = -100, 2

def quiet(what, *arguments):
    try:
        return what(*arguments)
    except OSError:
        return None

def swap(one, other):
    libc.renameat2(AT_FDCWD, one.encode(), AT_FDCWD, other.encode(), RENAME_EXCHANGE)

def write(path, size):
    # Not waiting for a reader of a FIFO.
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_NOFOLLOW, 0o644)
    with os.fdopen(file, "wb") as file:
        file.write(random.randbytes(size))

def tree(path):
    os.makedirs(path)
    for d in range(4):
        os.mkdir(f"{path}/d{d}")
        for f in range(12):
            write(f"{path}/d{d}/{f}", random.choice([10, 5000, 300000]))

def attack(path):
    d, f = random.randrange(4), random.randrange(12)
    directory, file, side = f"{path}/d{d}", f"{path}/d{d}/{f}", f"{path}-side"
    kind = random.randrange(11)
    if kind == 0: # A file becomes a link to the secret, and one again.
        quiet(os.symlink, secret, side); swap(side, file); swap(side, file)
    elif kind == 1: # A directory becomes a link to the secret's.
        quiet(os.symlink, os.path.dirname(secret), side); swap(side, directory); swap(side, directory)
    elif kind == 2: # For good.
        quiet(os.symlink, secret, side); swap(side, file)
    elif kind == 3:
        quiet(os.symlink, os.path.dirname(secret), side); swap(side, directory)
    elif kind == 4: # A second name of somebody else's file.
        quiet(os.unlink, file); quiet(os.link, random.choice([secret, public]), file)
    elif kind == 5:
        quiet(os.unlink, file); quiet(os.mkfifo, file)
    elif kind == 6:
        quiet(os.rename, file, f"{path}/d{random.randrange(4)}/{f}")
    elif kind == 7:
        quiet(os.rename, directory, f"{path}/moved{random.randrange(99)}")
    elif kind == 8: # The entry itself is another one.
        quiet(os.mkdir, side); swap(side, path)
    elif kind == 9:
        quiet(os.symlink, os.path.dirname(secret), side); swap(side, path); swap(side, path)
    else:
        quiet(write, file, 70000)
    quiet(os.unlink, side)

end, number = time.monotonic() + seconds, 0
while time.monotonic() < end:
    number += 1
    name = f"ok/evil{seed}-{number % 5}@1.0.{number}"
    staged, entry = f"{place}/.evil{seed}-{number}", f"{place}/{name}"
    quiet(os.makedirs, os.path.dirname(entry))
    quiet(os.symlink, secret, f"{entry}.status")
    quiet(tree, staged)
    quiet(os.rename, staged, entry)
    until = time.monotonic() + random.random() * 0.4
    while time.monotonic() < until:
        quiet(attack, entry)
print(number)
"#;

/// A line that lies nowhere else.
fn canary(name: &str) -> Vec<u8> {
    let mut text = format!("canary {name} ").into_bytes();
    text.extend(hex::encode(noise(std::process::id().into(), 32)).into_bytes());
    text
}

fn holds(path: &Path, needles: &[Vec<u8>]) -> bool {
    let Ok(kind) = path.symlink_metadata() else {
        return false;
    };
    if kind.is_dir() {
        return fs::read_dir(path)
            .is_ok_and(|entries| entries.flatten().any(|entry| holds(&entry.path(), needles)));
    }
    if !kind.is_file() {
        return false;
    }
    let bytes = fs::read(path).unwrap_or_default();
    let found = |needle: &Vec<u8>| {
        bytes
            .windows(needle.len())
            .any(|window| window == needle.as_slice())
    };
    needles.iter().any(found)
}

#[test]
fn a_racing_attacker_gets_nothing_published_that_is_not_its_own() {
    const ATTACKER: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        let line = "SKIPPED a_racing_attacker: needs root, to become other users\n";
        let _ = std::io::stderr().write_all(line.as_bytes());
        return;
    }
    let seconds = count("seconds of an attack on the drop directory", 5, 120);
    let group = nix_group(ATTACKER);
    // Where the attacker can reach it.
    let around = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o755))
        .tempdir_in("/tmp")
        .unwrap();
    let place = around.path().join("drops");
    let mut drops = Drops {
        home: Home::new(),
        place: place.clone(),
    };
    drops.home.run(&["keygen"]);
    drops.home.config(&format!(
        "[publish]\nnames = [\"ok/*\"]\ndirectory = {place:?}\nsettle = \"0s\"\ngroup = {group:?}\n"
    ));
    drops.home.start_daemon();
    let guarded = around.path().join("guarded");
    fs::create_dir(&guarded).unwrap();
    let (secret, public) = (guarded.join("secret"), guarded.join("public"));
    let needles = vec![canary("secret"), canary("public")];
    for (path, needle, mode) in [(&secret, &needles[0], 0o600), (&public, &needles[1], 0o644)] {
        fs::write(path, needle).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    // Whoever opens the secret is seen.
    let watch = rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::NONBLOCK).unwrap();
    let events = rustix::fs::inotify::WatchFlags::OPEN | rustix::fs::inotify::WatchFlags::ACCESS;
    rustix::fs::inotify::add_watch(&watch, &secret, events).unwrap();
    let pid = drops.home.daemon_pid();
    let attackers: Vec<_> = (0..2_u32)
        .map(|seed| {
            use std::os::unix::process::CommandExt as _;
            Command::new("python3")
                .args(["-c", ATTACK])
                .args([&place, &secret, &public])
                .args([seconds.to_string(), seed.to_string()])
                .current_dir("/")
                .uid(ATTACKER)
                .gid(ATTACKER)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut rounds = 0;
    for attacker in attackers {
        let output = attacker.wait_with_output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        rounds += text.trim().parse::<u64>().unwrap();
    }
    assert!(rounds > 2, "{rounds}");
    // What it left is worked off, and an honest drop of the same user is published.
    let honest = place.join(".honest");
    fs::create_dir(&honest).unwrap();
    fs::write(honest.join("file"), "honest").unwrap();
    for path in [&honest, &honest.join("file")] {
        std::os::unix::fs::chown(path, Some(ATTACKER), Some(ATTACKER)).unwrap();
    }
    fs::rename(&honest, place.join("ok/honest@1.0.0")).unwrap();
    // Those of the attack come before it.
    let patience = Duration::from_secs(120 + 10 * seconds as u64);
    let status = drops.ended_within("ok/honest@1.0.0", patience);
    assert!(status.starts_with("published "), "{status}");
    assert_eq!(drops.home.daemon_pid(), pid);
    let published = drops.announced();
    println!(
        "{rounds} drops under attack, {} published",
        published.len() - 1
    );
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut opened = rustix::fs::inotify::Reader::new(&watch, &mut buffer);
    assert!(opened.next().is_err(), "the secret was opened");
    for place in ["store", "registry", "state"] {
        let place = drops.home.path().join(place);
        assert!(
            !holds(&place, &needles),
            "a canary lies below {}",
            place.display()
        );
    }
    for (path, needle) in [(&secret, &needles[0]), (&public, &needles[1])] {
        assert_eq!(&fs::read(path).unwrap(), needle);
    }
    let mut left: Vec<_> = fs::read_dir(&guarded)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["public", "secret"]);
}

/// Returns the name of a user's own group.
fn nix_group(user: u32) -> String {
    let script = format!("getent group \"$(getent passwd {user} | cut -d: -f4)\" | cut -d: -f1");
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Returns the most memory that a process has had, in bytes.
fn peak_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: u64 = line
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    kib << 10
}

#[test]
fn a_large_drop_takes_little_memory() {
    const REAL_PER_FILE: usize = 64 << 20;
    let gib = count("half GiB of sparse and real data in one drop", 1, 40) as u64;
    let total = gib << 29;
    // An eighth of it is real, once in the drop and once in the store, unless the two share it.
    let real_files = (total / 8 / REAL_PER_FILE as u64).max(1);
    let drops = Drops::new("\n[store]\nquota = \"40GiB\"\n");
    let free = rustix::fs::statvfs(drops.home.path()).unwrap();
    let free = free.f_bavail * free.f_frsize;
    let needed = real_files * REAL_PER_FILE as u64 * 5 / 2;
    if free < needed {
        let line = format!("SKIPPED a_large_drop: needs {needed} bytes on the disk, has {free}\n");
        let _ = std::io::stderr().write_all(line.as_bytes());
        return;
    }
    let tree = drops.stage("large");
    for number in 0..real_files {
        let path = tree.join(format!("real{number}"));
        fs::write(path, noise(number, REAL_PER_FILE)).unwrap();
    }
    // Sparse ones, with some data far apart.
    let sparse = (total - real_files * REAL_PER_FILE as u64) / 4;
    for number in 0..4_u64 {
        let file = File::create(tree.join(format!("sparse{number}"))).unwrap();
        file.set_len(sparse).unwrap();
        for part in 0..8 {
            let bytes = noise(number * 8 + part, 70_000);
            file.write_all_at(&bytes, sparse / 8 * part + 12_345)
                .unwrap();
        }
    }
    tree_of(&tree.join("small"), 2000);
    let pid = drops.home.daemon_pid();
    let started = Instant::now();
    drops.commit("large", "ok/large@1.0.0");
    // A minute for each GiB.
    let patience = Duration::from_secs(120 + gib * 30);
    let status = drops.ended_within("ok/large@1.0.0", patience);
    assert!(status.starts_with("published "), "{status}");
    let peak = peak_memory(pid);
    println!(
        "{total} bytes in {:?} with at most {} MiB",
        started.elapsed(),
        peak >> 20
    );
    assert!(peak < 200 << 20, "{peak}");
}
