//! Registries in directories and on web servers.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use manifs::block::Digest;
use manifs::manifest::{ENVELOPE_BYTES_MAX, PackageName, PackageVersion, Version};
use manifs::net::{AddressFilter, Client, Options};
use manifs::registry::changes::{self, Cursor};
use manifs::registry::{
    Announcement, Directory, Http, HttpOptions, LISTING_BYTES_MAX, Listing, Moment, Registry,
    RegistryError,
};
use parking_lot::Mutex;
use tokio::sync::watch;

fn name(text: &str) -> PackageName {
    text.parse().unwrap()
}

fn package(text: &str) -> PackageVersion {
    text.parse().unwrap()
}

fn versions(texts: &[&str]) -> Vec<Version> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn put_file(root: &Path, path: &str, bytes: impl AsRef<[u8]>) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn announcement(text: &str) -> Announcement {
    Announcement {
        package: package(text),
        manifest: Some(Bytes::from(format!("manifest of {text}"))),
        sums: Some(Bytes::from_static(b"sums")),
        torrent: None,
        index: Some(Bytes::from(format!("index with {text}"))),
        replaces: None,
        keys: vec![("ab".repeat(32).parse().unwrap(), Bytes::from_static(b"pem"))],
    }
}

#[tokio::test]
async fn what_is_put_is_found() {
    let home = tempfile::tempdir().unwrap();
    let root = home.path().join("not/yet/there");
    let registry = Directory::new(&root);
    assert_eq!(registry.names().await.unwrap(), []);
    assert_eq!(registry.index(&name("tool")).await.unwrap(), None);
    assert_eq!(registry.versions(&name("tool")).await.unwrap(), []);

    registry.put(announcement("acme/tool@1.9.0")).await.unwrap();
    let mut second = announcement("acme/tool@1.10.0");
    second.replaces = Some(Digest::of(b"index with acme/tool@1.9.0"));
    registry.put(second).await.unwrap();
    registry.put(announcement("tool@2.0.0")).await.unwrap();

    assert_eq!(
        registry.names().await.unwrap(),
        [name("acme/tool"), name("tool")]
    );
    let acme = name("acme/tool");
    assert_eq!(
        registry.versions(&acme).await.unwrap(),
        versions(&["1.9.0", "1.10.0"])
    );
    assert_eq!(
        registry.index(&acme).await.unwrap().unwrap(),
        "index with acme/tool@1.10.0"
    );
    let old = package("acme/tool@1.9.0");
    assert_eq!(
        registry.manifest(&old).await.unwrap().unwrap(),
        "manifest of acme/tool@1.9.0"
    );
    assert_eq!(registry.sums(&old).await.unwrap().unwrap(), "sums");
    let key = "ab".repeat(32).parse().unwrap();
    assert_eq!(registry.key(key).await.unwrap().unwrap(), "pem");

    // The layout is what others rely on, and nothing else lies about.
    let mut files = Vec::new();
    collect(&root, &root, &mut files);
    files.sort();
    assert_eq!(
        files,
        [
            &format!("keys/{}.pem", "ab".repeat(32)),
            "packages.json",
            "packages/acme/tool/1.10.0/SHA256SUMS",
            "packages/acme/tool/1.10.0/manifest.json",
            "packages/acme/tool/1.9.0/SHA256SUMS",
            "packages/acme/tool/1.9.0/manifest.json",
            "packages/acme/tool/index.json",
            "packages/tool/2.0.0/SHA256SUMS",
            "packages/tool/2.0.0/manifest.json",
            "packages/tool/index.json",
        ]
    );
    let listing = Listing::parse(&fs::read(root.join("packages.json")).unwrap()).unwrap();
    assert_eq!(
        listing.versions(&acme),
        versions(&["1.9.0", "1.10.0"]).as_slice()
    );
    assert_eq!(listing.len(), 2);
}

fn collect(root: &Path, directory: &Path, files: &mut Vec<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(root, &path, files);
        } else {
            let path = path.strip_prefix(root).unwrap();
            files.push(path.to_str().unwrap().to_owned());
        }
    }
}

#[tokio::test]
async fn putting_twice_is_once_and_an_overtaken_index_is_a_conflict() {
    let home = tempfile::tempdir().unwrap();
    let registry = Directory::new(home.path());
    registry.put(announcement("tool@1.0.0")).await.unwrap();

    // Made from no index, but there is one by now: nothing of it is written.
    let mut late = announcement("tool@1.1.0");
    let conflict = registry.put(late.clone()).await;
    assert!(matches!(conflict, Err(RegistryError::Conflict { .. })));
    assert_eq!(
        registry.versions(&name("tool")).await.unwrap(),
        versions(&["1.0.0"])
    );
    late.replaces = Some(Digest::of(b"something else"));
    assert!(matches!(
        registry.put(late.clone()).await,
        Err(RegistryError::Conflict { .. })
    ));
    late.replaces = Some(Digest::of(b"index with tool@1.0.0"));
    registry.put(late.clone()).await.unwrap();

    // A journal that is played again puts what is there already.
    late.replaces = Some(Digest::of(&late.index.clone().unwrap()));
    let written = |path: &str| {
        fs::metadata(home.path().join(path))
            .unwrap()
            .modified()
            .unwrap()
    };
    let before = written("packages/tool/1.1.0/manifest.json");
    registry.put(late).await.unwrap();
    assert_eq!(written("packages/tool/1.1.0/manifest.json"), before);
}

#[tokio::test]
async fn writers_take_turns() {
    let home = tempfile::tempdir().unwrap();
    let puts = (0..8).map(|nth| {
        let registry = Directory::new(home.path());
        async move { registry.put(announcement(&format!("p{nth}@1.0.0"))).await }
    });
    for done in futures::future::join_all(puts).await {
        done.unwrap();
    }
    let listing = Listing::parse(&fs::read(home.path().join("packages.json")).unwrap()).unwrap();
    assert_eq!(listing.len(), 8, "no writer's line was lost");
}

#[tokio::test]
async fn a_version_without_its_manifest_is_none() {
    let home = tempfile::tempdir().unwrap();
    let root = home.path();
    put_file(root, "packages/tool/1.0.0/SHA256SUMS", "x");
    put_file(root, "packages/tool/2.0.0/manifest.json", "x");
    put_file(root, "packages/tool/3.0/manifest.json", "x");
    put_file(root, "packages/tool/v4.0.0/manifest.json", "x");
    put_file(root, "packages/tool/.5.0.0/manifest.json", "x");
    put_file(root, "packages/Tool/1.0.0/manifest.json", "x");
    put_file(root, "packages/latest/1.0.0/manifest.json", "x");
    put_file(root, "packages/README", "x");
    put_file(root, "packages/scope/README", "x");
    put_file(root, "packages/scope/part/index.json", "x");
    put_file(root, "packages/scope/part/deeper/index.json", "x");
    let registry = Directory::new(root);
    assert_eq!(
        registry.names().await.unwrap(),
        [name("scope/part"), name("tool")]
    );
    assert_eq!(
        registry.versions(&name("tool")).await.unwrap(),
        versions(&["2.0.0"])
    );
}

#[tokio::test]
async fn no_symlink_leads_out() {
    let home = tempfile::tempdir().unwrap();
    let outside = home.path().join("outside");
    let root = home.path().join("registry");
    put_file(&outside, "index.json", "secret");
    put_file(&outside, "1.0.0/manifest.json", "secret");
    put_file(&root, "packages/good/index.json", "index");
    symlink("good", root.join("packages/alias")).unwrap();
    symlink("../../outside", root.join("packages/out")).unwrap();
    symlink(&outside, root.join("packages/absolute")).unwrap();
    symlink("loop", root.join("packages/loop")).unwrap();
    fs::create_dir(root.join("packages/file")).unwrap();
    symlink(
        outside.join("index.json"),
        root.join("packages/file/index.json"),
    )
    .unwrap();
    let registry = Directory::new(&root);
    for bad in ["out", "absolute", "file", "loop"] {
        let read = registry.index(&name(bad)).await;
        assert!(
            matches!(read, Err(RegistryError::Foreign { .. })),
            "{bad}: {read:?}"
        );
        if bad != "file" {
            assert!(registry.versions(&name(bad)).await.is_err(), "{bad}");
        }
    }
    assert_eq!(
        registry.index(&name("alias")).await.unwrap().unwrap(),
        "index"
    );
    let names = registry.names().await.unwrap();
    assert!(names.contains(&name("good")) && names.contains(&name("alias")));
    assert!(!names.contains(&name("out")) && !names.contains(&name("absolute")));

    // Nor does writing: the directory on the way is a symlink.
    assert!(registry.put(announcement("out@1.0.0")).await.is_err());
    assert!(registry.put(announcement("alias@1.0.0")).await.is_err());
    assert_eq!(fs::read(outside.join("index.json")).unwrap(), b"secret");
    assert!(!root.join("packages/good/1.0.0").exists());
}

#[tokio::test]
async fn other_things_than_files_are_refused_and_nothing_hangs() {
    let home = tempfile::tempdir().unwrap();
    let root = home.path();
    fs::create_dir_all(root.join("packages/fifo")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("packages/fifo/index.json"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o644),
        0,
    )
    .unwrap();
    fs::create_dir_all(root.join("packages/directory/index.json")).unwrap();
    let registry = Directory::new(root);
    for bad in ["fifo", "directory"] {
        assert!(
            matches!(
                registry.index(&name(bad)).await,
                Err(RegistryError::Foreign { .. })
            ),
            "{bad}"
        );
    }
}

#[tokio::test]
async fn sizes_are_limited_at_the_byte() {
    let home = tempfile::tempdir().unwrap();
    let root = home.path();
    put_file(
        root,
        "packages/full/index.json",
        vec![b'x'; ENVELOPE_BYTES_MAX],
    );
    put_file(
        root,
        "packages/over/index.json",
        vec![b'x'; ENVELOPE_BYTES_MAX + 1],
    );
    let registry = Directory::new(root);
    let full = registry.index(&name("full")).await.unwrap().unwrap();
    assert_eq!(full.len(), ENVELOPE_BYTES_MAX);
    assert!(matches!(
        registry.index(&name("over")).await,
        Err(RegistryError::TooLarge { .. })
    ));
    let mut large = announcement("large@1.0.0");
    large.manifest = Some(vec![b'x'; ENVELOPE_BYTES_MAX + 1].into());
    assert!(matches!(
        registry.put(large).await,
        Err(RegistryError::TooLarge { .. })
    ));
}

#[tokio::test]
async fn a_put_wakes_who_waits() {
    let home = tempfile::tempdir().unwrap();
    let reader = Directory::new(home.path().join("registry"));
    let writer = Directory::new(home.path().join("registry"));
    let since = reader.changed(Moment::default()).await;
    let seen = async {
        let mut since = since;
        loop {
            since = reader.changed(since).await;
            if reader.names().await.unwrap() == [name("tool")] {
                break;
            }
        }
    };
    let (put, seen) = tokio::join!(
        writer.put(announcement("tool@1.0.0")),
        tokio::time::timeout(Duration::from_secs(10), seen)
    );
    put.unwrap();
    seen.expect("the reader saw it");
}

/// A web server with files, counting, and with a long poll if it has a cursor.
struct Server {
    files: Mutex<HashMap<String, Bytes>>,
    asked: AtomicUsize,
    unchanged: AtomicUsize,
    cursor: Option<watch::Sender<u64>>,
    down: Mutex<Option<StatusCode>>,
}

async fn serve(State(server): State<Arc<Server>>, uri: Uri, headers: HeaderMap) -> Response {
    if let Some(status) = *server.down.lock() {
        return (status, [(header::RETRY_AFTER, "7")], "down").into_response();
    }
    server.asked.fetch_add(1, Ordering::SeqCst);
    let Some(body) = server.files.lock().get(uri.path()).cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let etag = format!("\"{}\"", Digest::of(&body));
    if headers
        .get(header::IF_NONE_MATCH)
        .is_some_and(|sent| sent.to_str().unwrap() == etag)
    {
        server.unchanged.fetch_add(1, Ordering::SeqCst);
        return (StatusCode::NOT_MODIFIED, [(header::ETAG, etag)]).into_response();
    }
    ([(header::ETAG, etag)], body).into_response()
}

async fn hold(
    State(server): State<Arc<Server>>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let Some(sender) = &server.cursor else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let mut count = sender.subscribe();
    let mut now = Cursor::new(1, *count.borrow_and_update());
    if let Some(since) = query.get("since") {
        while now.to_string() == *since {
            count.changed().await.unwrap();
            now = Cursor::new(1, *count.borrow_and_update());
        }
    }
    changes::answer(&now).into_response()
}

async fn start(server: Server) -> (Arc<Server>, Http) {
    let server = Arc::new(server);
    let router = Router::new()
        .route("/r/changes", axum::routing::get(hold))
        .fallback(serve)
        .with_state(Arc::clone(&server));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    let client = Client::new(Options {
        filter: AddressFilter::new(vec!["127.0.0.1".parse().unwrap()]),
        ..Options::default()
    });
    let options = HttpOptions {
        interval: Duration::from_millis(50),
    };
    let http = Http::new(&format!("http://{address}/r/"), client, options);
    (server, http)
}

fn files(entries: &[(&str, &str)]) -> Server {
    let files = entries
        .iter()
        .map(|(path, body)| {
            (
                format!("/r/{path}"),
                Bytes::copy_from_slice(body.as_bytes()),
            )
        })
        .collect();
    Server {
        files: Mutex::new(files),
        asked: AtomicUsize::new(0),
        unchanged: AtomicUsize::new(0),
        cursor: None,
        down: Mutex::new(None),
    }
}

#[tokio::test]
async fn a_web_server_is_read_and_unchanged_files_are_not_sent_again() {
    let listing = r#"{"format":"manifs-packages/1","packages":{"acme/tool":["1.0.0"],"x":[]}}"#;
    let (server, http) = start(files(&[
        ("packages.json", listing),
        ("packages/acme/tool/index.json", "index"),
        ("packages/acme/tool/1.0.0/manifest.json", "manifest"),
    ]))
    .await;
    let tool = name("acme/tool");
    for round in 0..3 {
        assert_eq!(http.names().await.unwrap(), [tool.clone(), name("x")]);
        assert_eq!(http.versions(&tool).await.unwrap(), versions(&["1.0.0"]));
        assert_eq!(http.index(&tool).await.unwrap().unwrap(), "index");
        assert_eq!(
            http.manifest(&package("acme/tool@1.0.0"))
                .await
                .unwrap()
                .unwrap(),
            "manifest"
        );
        assert_eq!(http.index(&name("other")).await.unwrap(), None);
        assert_eq!(server.unchanged.load(Ordering::SeqCst), 1 + round * 4);
    }
    server.files.lock().insert(
        "/r/packages/acme/tool/index.json".to_owned(),
        Bytes::from_static(b"newer"),
    );
    assert_eq!(http.index(&tool).await.unwrap().unwrap(), "newer");
    assert!(matches!(
        http.put(announcement("a@1.0.0")).await,
        Err(RegistryError::ReadOnly { .. })
    ));
}

#[tokio::test]
async fn a_web_server_may_fail_in_every_way() {
    let (server, http) = start(files(&[("packages.json", "<html>404 but 200</html>")])).await;
    assert!(matches!(
        http.names().await,
        Err(RegistryError::Listing { .. })
    ));
    let large = vec![b' '; usize::try_from(LISTING_BYTES_MAX).unwrap() + 1];
    server
        .files
        .lock()
        .insert("/r/packages.json".to_owned(), large.into());
    assert!(matches!(
        http.names().await,
        Err(RegistryError::TooLarge { .. })
    ));
    *server.down.lock() = Some(StatusCode::SERVICE_UNAVAILABLE);
    match http.index(&name("tool")).await {
        Err(RegistryError::Unavailable { retry_after, .. }) => {
            assert_eq!(retry_after, Some(Duration::from_secs(7)));
        }
        other => panic!("{other:?}"),
    }
    // What is not there at all is an empty registry, not an error.
    *server.down.lock() = Some(StatusCode::NOT_FOUND);
    assert_eq!(http.names().await.unwrap(), []);
    *server.down.lock() = Some(StatusCode::FOUND);
    assert!(http.names().await.is_err(), "no redirect is followed");
}

#[tokio::test]
async fn a_web_server_without_long_poll_is_asked_again_and_again() {
    let (_server, http) = start(files(&[])).await;
    let first = http.changed(Moment::default()).await;
    assert!(!http.is_daemon());
    // "May have changed": it returns by itself, after the interval.
    tokio::time::timeout(Duration::from_secs(5), http.changed(first))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_daemon_tells_when_it_has_changed() {
    let mut server = files(&[]);
    server.cursor = Some(watch::Sender::new(1));
    let (server, http) = start(server).await;
    let first = http.changed(Moment::default()).await;
    assert!(http.is_daemon());
    let waiting = http.changed(first);
    tokio::pin!(waiting);
    let early = tokio::time::timeout(Duration::from_millis(200), &mut waiting).await;
    assert!(early.is_err(), "nothing has changed");
    server
        .cursor
        .as_ref()
        .unwrap()
        .send_modify(|count| *count += 1);
    let second = tokio::time::timeout(Duration::from_secs(5), waiting)
        .await
        .unwrap();
    assert!(second > first);

    // What changes while nobody waits is told at once.
    server
        .cursor
        .as_ref()
        .unwrap()
        .send_modify(|count| *count += 1);
    let third = tokio::time::timeout(Duration::from_secs(5), http.changed(second))
        .await
        .unwrap();
    assert!(third > second);
}

#[tokio::test]
async fn a_server_that_comes_later_is_found() {
    let mut server = files(&[]);
    server.cursor = Some(watch::Sender::new(1));
    let (server, http) = start(server).await;
    let sender = server.cursor.clone();
    assert!(sender.is_some());
    *server.down.lock() = Some(StatusCode::BAD_GATEWAY);
    // `hold` does not look at `down`; a port where nobody listens does.
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let client = Client::new(Options {
        filter: AddressFilter::new(vec!["127.0.0.1".parse().unwrap()]),
        ..Options::default()
    });
    let options = HttpOptions {
        interval: Duration::from_millis(50),
    };
    let later = Http::new(&format!("http://{free}/r"), client, options);
    let first = later.changed(Moment::default()).await;
    assert!(later.names().await.is_err());
    let waiting = later.changed(first);
    tokio::pin!(waiting);
    assert!(
        tokio::time::timeout(Duration::from_millis(200), &mut waiting)
            .await
            .is_err()
    );
    let router = Router::new()
        .route("/r/changes", axum::routing::get(hold))
        .with_state(server);
    let listener = tokio::net::TcpListener::bind(free).await.unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    let second = tokio::time::timeout(Duration::from_secs(10), waiting)
        .await
        .unwrap();
    assert!(second > first && later.is_daemon());
    assert!(http.detect().await);
}
