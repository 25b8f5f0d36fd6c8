//! Whom the gateway answers, what it refuses, and what strangers can cost.

use super::*;

#[tokio::test]
async fn what_is_not_shared_is_not_found() {
    let tree = mixed().await;
    let unknown = Cid::raw(manifs::block::Digest::of(b"not here"));
    let folder = Cid::dag_pb(manifs::block::Digest::of(b"not here"));
    for (cid, format) in [
        (unknown, "raw"),
        (unknown, "car"),
        (folder, "raw"),
        (folder, "car"),
    ] {
        let answer = get(tree.address, &format!("/ipfs/{cid}?format={format}")).await;
        assert_eq!(answer.status, 404, "{cid} {format}");
        assert_eq!(answer.header("cache-control"), Some("no-store"));
    }
    let answer = get(tree.address, &format!("/ipfs/{folder}/a/b?format=car")).await;
    assert_eq!(answer.status, 404);
    // A codec that is not served, over a digest that is.
    let digest = tree.root.digest();
    let mut cbor = vec![0x01, 0x71, 0x12, 0x20];
    cbor.extend_from_slice(digest.as_bytes());
    let cbor = AnyCid::from_bytes(&cbor).unwrap();
    let answer = get(tree.address, &format!("/ipfs/{cbor}?format=raw")).await;
    assert_eq!(answer.status, 404);
    for path in [
        "/",
        "/ipfs",
        "/ipns/x?format=ipns-record",
        "/api/v0/id",
        "/packages",
        "/packages/",
        "/metrics",
    ] {
        assert_eq!(get(tree.address, path).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn the_old_form_of_a_cid_is_the_same_block() {
    let tree = mixed().await;
    let mut bytes = vec![0x12, 0x20];
    bytes.extend_from_slice(tree.subdir.digest().as_bytes());
    let v0 = AnyCid::from_bytes(&bytes).unwrap();
    assert!(v0.to_string().starts_with("Qm"));
    let raw = get(tree.address, &format!("/ipfs/{v0}?format=raw")).await;
    assert_eq!(raw.body, tree.memory.bytes(&tree.subdir));
    let answer = get(
        tree.address,
        &format!("/ipfs/{v0}?format=car&dag-scope=block"),
    )
    .await;
    assert_eq!(blocks(&answer.body), [v0]);
}

#[tokio::test]
async fn caches_ask_whether_it_has_changed() {
    let tree = mixed().await;
    for query in ["format=raw", "format=car", "format=car&dag-scope=block"] {
        let target = format!("/ipfs/{}/subdir?{query}", tree.root);
        let etag = get(tree.address, &target)
            .await
            .header("etag")
            .unwrap()
            .to_owned();
        let weak = format!("W/{}", etag.trim_start_matches("W/"));
        for tags in [
            etag.clone(),
            weak,
            "*".to_owned(),
            format!("\"other\", {etag}"),
        ] {
            let headers = format!("If-None-Match: {tags}\r\n");
            for method in ["GET", "HEAD"] {
                let answer = ask(tree.address, method, &target, &headers).await;
                assert_eq!(
                    (answer.status, answer.body.len()),
                    (304, 0),
                    "{query} {tags}"
                );
                assert_eq!(answer.header("etag"), Some(etag.as_str()));
                assert!(answer.header("cache-control").is_some());
            }
        }
        let headers = "If-None-Match: \"other\"\r\n";
        assert_eq!(ask(tree.address, "GET", &target, headers).await.status, 200);
    }
    // Each set of blocks has a tag of its own.
    let mut tags = std::collections::HashSet::new();
    for query in [
        "",
        "&dag-scope=block",
        "&dag-scope=entity",
        "&entity-bytes=0:5",
        "&entity-bytes=0:6",
        "&car-dups=y",
    ] {
        let answer = get(
            tree.address,
            &format!("/ipfs/{}?format=car{query}", tree.multi),
        )
        .await;
        assert!(
            tags.insert(answer.header("etag").unwrap().to_owned()),
            "{query}"
        );
    }
    // A tag is no way to learn what is here.
    let unknown = Cid::raw(manifs::block::Digest::of(b"not here"));
    let answer = ask(
        tree.address,
        "GET",
        &format!("/ipfs/{unknown}?format=raw"),
        &format!("If-None-Match: \"{unknown}.raw\"\r\n"),
    )
    .await;
    assert_eq!(answer.status, 404);
}

#[tokio::test]
async fn refusals_have_their_own_status() {
    let tree = mixed().await;
    let cid = tree.root;
    for (status, target) in [
        (400, "/ipfs/not-a-cid?format=raw".to_owned()),
        (400, "/ipfs/?format=raw".to_owned()),
        (400, format!("/ipfs/{cid}?format=zip")),
        (400, format!("/ipfs/{cid}?format=car&dag-scope=tree")),
        (400, format!("/ipfs/{cid}?format=car&entity-bytes=x")),
        (400, format!("/ipfs/{cid}?format=car&car-version=2")),
        (400, format!("/ipfs/{cid}?format=car&car-order=bfs")),
        (400, format!("/ipfs/{cid}?format=car&car-dups=perhaps")),
        (400, format!("/ipfs/{cid}/%2e%2e/x?format=raw")),
        (400, format!("/ipfs/{cid}/../../etc/passwd?format=raw")),
        (400, format!("/ipfs/{cid}/a%00b?format=raw")),
        (400, format!("/ipfs/{cid}/a%2fb?format=raw")),
        (400, format!("/ipfs/{cid}/%zz?format=raw")),
        (400, format!("/ipfs/{cid}//subdir?format=raw")),
        (406, format!("/ipfs/{cid}")),
        (406, format!("/ipfs/{cid}?format=dag-json")),
        (406, format!("/ipfs/{cid}?format=tar")),
        (404, "/packages/..%2f..%2fkeys/x".to_owned()),
        (404, "/packages/../keys/x.pem".to_owned()),
        (404, "/keys/%2e%2e/%2e%2e/secret.pem".to_owned()),
    ] {
        let answer = get(tree.address, &target).await;
        assert_eq!(answer.status, status, "{target}");
        assert_eq!(
            answer.header("content-type"),
            Some("text/plain; charset=utf-8")
        );
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
    }
    for accept in ["text/html", "*/*", "application/vnd.ipld.dag-json"] {
        let headers = format!("Accept: {accept}\r\n");
        let answer = ask(tree.address, "GET", &format!("/ipfs/{cid}"), &headers).await;
        assert_eq!(answer.status, 406, "{accept}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"] {
        let answer = ask(
            tree.address,
            method,
            &format!("/ipfs/{cid}?format=raw"),
            "Content-Length: 0\r\n",
        )
        .await;
        assert_eq!(answer.status, 405, "{method}");
        assert_eq!(answer.header("allow"), Some("GET, HEAD"));
    }
}

#[tokio::test]
async fn only_our_own_names_are_answered() {
    let tree = mixed().await;
    let with_host = async |hosts: &str| {
        let request =
            format!("GET /ipfs/{PROBE}?format=raw HTTP/1.1\r\nConnection: close\r\n{hosts}\r\n");
        let bytes = exchange(tree.address, request.as_bytes()).await;
        Answer::parse(&bytes).unwrap().status
    };
    for host in [
        "127.0.0.1",
        "127.0.0.1:9",
        "[::1]:8420",
        "localhost:8420",
        "share.example",
        "Share.Example.:80",
    ] {
        assert_eq!(with_host(&format!("Host: {host}\r\n")).await, 200, "{host}");
    }
    for hosts in [
        "Host: evil.example\r\n",
        "Host: evil.example:8420\r\n",
        "Host: localhost.evil.example\r\n",
        "Host: \r\n",
        "",
        "Host: localhost\r\nHost: evil.example\r\n",
    ] {
        let status = with_host(hosts).await;
        assert!(status == 421 || status == 400, "{hosts:?}: {status}");
    }
    let absolute = "GET http://evil.example/ipfs/bafkqaaa?format=raw HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let answer = Answer::parse(&exchange(tree.address, absolute.as_bytes()).await).unwrap();
    assert_eq!(answer.status, 421);
}

#[tokio::test]
async fn hostile_requests_cost_little() {
    let tree = mixed().await;
    let long = "x".repeat(64 << 10);
    let many: String = (0..500).map(|nth| format!("X-{nth}: 1\r\n")).collect();
    for headers in [format!("X-Long: {long}\r\n"), many] {
        let request = format!(
            "GET /ipfs/{PROBE}?format=raw HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n"
        );
        let bytes = exchange(tree.address, request.as_bytes()).await;
        if let Some(answer) = Answer::parse(&bytes) {
            assert_eq!(answer.status, 431);
        }
    }
    let target = format!("/ipfs/{PROBE}?format=raw&x={}", "y".repeat(20 << 10));
    assert_eq!(get(tree.address, &target).await.status, 414);
    let deep = format!("/ipfs/{}{}?format=raw", tree.root, "/a".repeat(300));
    assert_eq!(get(tree.address, &deep).await.status, 400);
    let huge_cid = format!("/ipfs/b{}?format=raw", "a".repeat(8000));
    assert_eq!(get(tree.address, &huge_cid).await.status, 400);
    for garbage in [
        &b"\0\0\0\0\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(tree.address).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"));
    }
    // A body nobody asked for is not waited for.
    let request = format!(
        "GET /ipfs/{PROBE}?format=raw HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n"
    );
    let mut stream = TcpStream::connect(tree.address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = [0; 15];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    // Everything is as it was.
    assert_eq!(
        get(tree.address, &format!("/ipfs/{}?format=raw", tree.ascii))
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn connections_are_limited_and_slow_ones_end() {
    let memory = Memory::new();
    let limits = Limits {
        connections: 8,
        head: Duration::from_millis(300),
        stall: Duration::from_millis(300),
        ..Limits::default()
    };
    let address = start(&memory, limits).await;
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /ipfs/bafkqaaa?for").await.unwrap();
        held.push(stream);
    }
    let mut refused = TcpStream::connect(address).await.unwrap();
    let mut answer = Vec::new();
    refused.read_to_end(&mut answer).await.unwrap();
    let answer = Answer::parse(&answer).unwrap();
    assert_eq!(answer.status, 503);
    assert_eq!(answer.header("retry-after"), Some("1"));
    // Whoever does not come to the end of a request gives the place back.
    for mut stream in held {
        let mut rest = Vec::new();
        let read = stream.read_to_end(&mut rest);
        tokio::time::timeout(Duration::from_secs(5), read)
            .await
            .unwrap()
            .ok();
    }
    assert_eq!(
        get(address, &format!("/ipfs/{PROBE}?format=raw"))
            .await
            .status,
        200
    );

    // Nor does an idle connection keep its place.
    let mut idle = TcpStream::connect(address).await.unwrap();
    let request = format!("GET /ipfs/{PROBE}?format=raw HTTP/1.1\r\nHost: localhost\r\n\r\n");
    idle.write_all(request.as_bytes()).await.unwrap();
    let mut rest = Vec::new();
    let read = idle.read_to_end(&mut rest);
    let ended = tokio::time::timeout(Duration::from_secs(5), read).await;
    ended.expect("it was closed").unwrap();
    assert_eq!(Answer::parse(&rest).unwrap().status, 200);

    // Whoever takes nothing of a long answer is cut off.
    let entries = (0..64_u32).map(|nth| {
        let bytes = nth.to_le_bytes().repeat(1 << 18);
        (format!("{nth}"), Item::File(bytes))
    });
    let root = memory.add(&Item::Directory(entries.collect())).cid;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "GET /ipfs/{root}?format=car HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let asked = || memory.asked.lock().len();
    let mut before = asked();
    // It stops reading the store ...
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if asked() == before && before > 1 {
            break;
        }
        before = asked();
    }
    assert!(
        before < 40,
        "{before} blocks were read for somebody who takes none"
    );
    // ... and then ends.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    assert!(rest.len() < 64 << 20, "it was cut off");
}

#[tokio::test]
async fn the_rate_is_kept() {
    use manifs::serve::gateway::{Gateway, Options, serve};
    let memory = Memory::new();
    let cid = memory.add(&Item::File(vec![7; 1 << 20])).cid;
    let options = Options {
        up: Some(Arc::new(manifs::net::Rate::new(2 << 20))),
        ..Options::default()
    };
    let router = Gateway::new(Arc::clone(&memory) as _, &options).router();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(
        listener,
        router,
        Limits::default(),
        std::future::pending(),
    ));
    let started = std::time::Instant::now();
    let raw = get(address, &format!("/ipfs/{cid}?format=raw")).await;
    assert_eq!(raw.body, memory.bytes(&cid));
    assert!(started.elapsed() > Duration::from_millis(300));
    assert!(raw.header("content-length").is_some());
}

#[tokio::test]
async fn shutting_down_lets_answers_end() {
    use manifs::serve::gateway::{Gateway, Options, serve};
    let memory = Memory::new();
    let cid = memory.add(&Item::File(text(1 << 20))).cid;
    let router = Gateway::new(Arc::clone(&memory) as _, &Options::default()).router();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(serve(listener, router, Limits::default(), async {
        let _ = ended.await;
    }));
    let mut idle = TcpStream::connect(address).await.unwrap();
    let mut busy = TcpStream::connect(address).await.unwrap();
    let request = format!("GET /ipfs/{cid}?format=raw HTTP/1.1\r\nHost: localhost\r\n\r\n");
    busy.write_all(request.as_bytes()).await.unwrap();
    let mut first = [0; 100];
    busy.read_exact(&mut first).await.unwrap();
    end.send(()).unwrap();
    let mut rest = first.to_vec();
    busy.read_to_end(&mut rest).await.unwrap();
    assert!(Answer::parse(&rest).unwrap().whole);
    let mut nothing = Vec::new();
    let _ = idle.read_to_end(&mut nothing).await;
    tokio::time::timeout(Duration::from_secs(5), server)
        .await
        .unwrap()
        .unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn the_registry_is_served_and_our_own_client_reads_it() {
    let memory = Memory::new();
    let address = start(&memory, Limits::default()).await;
    let listing = "{\"format\": \"manifs-packages/1\", \"packages\": {\"acme/tool\": [\"1.0.0\"]}}";
    for (path, body) in [
        ("packages.json", listing),
        ("packages/acme/tool/index.json", "index"),
        ("packages/acme/tool/1.0.0/manifest.json", "manifest"),
        ("packages/acme/tool/1.0.0/SHA256SUMS", "sums"),
    ] {
        let place = Place::parse(path).unwrap();
        memory
            .files
            .lock()
            .insert(place, Bytes::copy_from_slice(body.as_bytes()));
        let answer = get(address, &format!("/{path}")).await;
        assert_eq!((answer.status, &answer.body[..]), (200, body.as_bytes()));
        assert_eq!(answer.header("cache-control"), Some("no-cache"));
        let etag = answer.header("etag").unwrap();
        let again = ask(
            address,
            "GET",
            &format!("/{path}"),
            &format!("If-None-Match: {etag}\r\n"),
        )
        .await;
        assert_eq!(again.status, 304);
        let head = ask(address, "HEAD", &format!("/{path}"), "").await;
        assert_eq!(
            head.header("content-length"),
            Some(body.len().to_string().as_str())
        );
    }
    let client = manifs::net::Client::new(manifs::net::Options {
        filter: manifs::net::AddressFilter::new(vec!["127.0.0.1".parse().unwrap()]),
        ..Default::default()
    });
    let http = Http::new(&format!("http://{address}"), client, HttpOptions::default());
    let first = http.changed(Moment::default()).await;
    assert!(http.is_daemon());
    assert_eq!(http.names().await.unwrap(), ["acme/tool".parse().unwrap()]);
    let package = "acme/tool@1.0.0".parse().unwrap();
    assert_eq!(http.manifest(&package).await.unwrap().unwrap(), "manifest");
    assert_eq!(http.index(&package.name).await.unwrap().unwrap(), "index");
    let waiting = http.changed(first);
    tokio::pin!(waiting);
    assert!(
        tokio::time::timeout(Duration::from_millis(200), &mut waiting)
            .await
            .is_err()
    );
    memory.count.send_modify(|count| *count += 1);
    let second = tokio::time::timeout(Duration::from_secs(2), waiting)
        .await
        .unwrap();
    assert!(second > first);
    // Without a cursor, or with a stranger's, it answers at once.
    for query in ["", "?since=", "?since=0-0", "?since=%00"] {
        let answer = get(address, &format!("/changes{query}")).await;
        assert_eq!(answer.status, 200);
        assert!(changes::parse(&answer.body).is_some());
    }
}

#[tokio::test]
async fn one_connection_answers_many_requests() {
    let tree = mixed().await;
    let mut stream = TcpStream::connect(tree.address).await.unwrap();
    let wanted = tree.memory.bytes(&tree.leaves[0]);
    for _ in 0..50 {
        let request = format!(
            "GET /ipfs/{}?format=raw HTTP/1.1\r\nHost: localhost\r\n\r\n",
            tree.leaves[0]
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        let answer = loop {
            let mut part = [0; 4096];
            let len = stream.read(&mut part).await.unwrap();
            assert!(len > 0);
            bytes.extend_from_slice(&part[..len]);
            if let Some(answer) = Answer::parse(&bytes).filter(|answer| answer.whole) {
                break answer;
            }
        };
        assert_eq!(answer.body, wanted);
    }
}

#[tokio::test]
async fn a_file_of_the_profile_is_whole() {
    // Three full blocks and a bit, in the layout that manifs publishes.
    let memory = Memory::new();
    let bytes = text((3 << 20) + 5);
    let item = Item::Blocks(bytes.clone(), 1 << 20, 1024);
    let root = memory.add(&item).cid;
    let leaves: Vec<_> = bytes
        .chunks(1 << 20)
        .map(manifs::block::Digest::of)
        .collect();
    assert_eq!(root, file::root(bytes.len() as u64, leaves.iter().copied()));
    let address = start(&memory, Limits::default()).await;
    let wanted = [vec![root], leaves.iter().copied().map(Cid::raw).collect()].concat();
    car_case(address, &format!("/ipfs/{root}"), "", &wanted).await;
}
