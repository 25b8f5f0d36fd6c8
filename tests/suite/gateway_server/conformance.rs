//! The cases of `ipfs/gateway-conformance` for trustless gateways (groups raw, raw ranges, CAR pathing, scopes, entity
//! bytes, order and duplicates), over trees of our own.

use super::*;

#[tokio::test]
async fn raw_blocks() {
    let tree = mixed().await;
    for cid in [
        tree.root,
        tree.subdir,
        tree.ascii,
        tree.multi,
        tree.link,
        tree.leaves[4],
        tree.empty,
    ] {
        let wanted = tree.memory.bytes(&cid);
        let path = format!("/ipfs/{cid}");
        let by_url = get(tree.address, &format!("{path}?format=raw")).await;
        let by_header = ask(tree.address, "GET", &path, RAW).await;
        for answer in [&by_url, &by_header] {
            assert_eq!(answer.status, 200);
            assert_eq!(answer.body, wanted);
            assert_eq!(
                answer.header("content-type"),
                Some("application/vnd.ipld.raw")
            );
            assert_eq!(
                answer.header("content-length"),
                Some(wanted.len().to_string().as_str())
            );
            let disposition = format!("attachment; filename=\"{cid}.bin\"");
            assert_eq!(
                answer.header("content-disposition"),
                Some(disposition.as_str())
            );
            assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
            assert_eq!(
                answer.header("etag"),
                Some(format!("\"{cid}.raw\"").as_str())
            );
            assert_eq!(answer.header("x-ipfs-path"), Some(path.as_str()));
            assert_eq!(
                answer.header("x-ipfs-roots"),
                Some(cid.to_string().as_str())
            );
            assert_eq!(
                answer.header("cache-control"),
                Some("public, max-age=29030400, immutable")
            );
        }
        assert_eq!(
            by_header.header("content-location"),
            Some(format!("{path}?format=raw").as_str())
        );
        let head = ask(tree.address, "HEAD", &path, RAW).await;
        assert_eq!((head.status, head.body.len()), (200, 0));
        assert_eq!(
            head.header("content-length"),
            by_url.header("content-length")
        );
    }
    let named = format!("/ipfs/{}?format=raw&filename=foobar.bin", tree.ascii);
    assert_eq!(
        get(tree.address, &named)
            .await
            .header("content-disposition"),
        Some("attachment; filename=\"foobar.bin\"")
    );
    let odd = format!("/ipfs/{}?format=raw&filename=a%22%C3%A9%0d%0ax", tree.ascii);
    assert_eq!(
        get(tree.address, &odd).await.header("content-disposition"),
        Some("attachment; filename=\"a____x\"; filename*=UTF-8''a%22%C3%A9%0D%0Ax")
    );
    // Also where a path leads.
    let by_path = get(
        tree.address,
        &format!("/ipfs/{}/subdir/ascii.txt?format=raw", tree.root),
    )
    .await;
    assert_eq!(by_path.body, tree.memory.bytes(&tree.ascii));
    assert_eq!(
        by_path.header("x-ipfs-roots"),
        Some(format!("{},{},{}", tree.root, tree.subdir, tree.ascii).as_str())
    );
}

#[tokio::test]
async fn raw_ranges() {
    let tree = mixed().await;
    let bytes = tree.memory.bytes(&tree.ascii);
    let len = bytes.len();
    let path = format!("/ipfs/{}?format=raw", tree.ascii);
    let ask =
        async |range: &str| ask(tree.address, "GET", &path, &format!("Range: {range}\r\n")).await;
    for (range, from, until) in [
        ("bytes=0-0", 0, 1),
        ("bytes=6-16", 6, 17),
        ("bytes=6-", 6, len),
        ("bytes=-3", len - 3, len),
        ("bytes=-9999", 0, len),
        ("bytes=5-9999", 5, len),
    ] {
        let answer = ask(range).await;
        assert_eq!(answer.status, 206, "{range}");
        assert_eq!(answer.body, bytes[from..until], "{range}");
        let told = format!("bytes {from}-{}/{len}", until - 1);
        assert_eq!(answer.header("content-range"), Some(told.as_str()));
        assert_eq!(
            answer.header("content-type"),
            Some("application/vnd.ipld.raw")
        );
    }
    for range in ["bytes=0-1,3-4", "lines=1-2", "bytes=4-2", "bytes=x"] {
        let answer = ask(range).await;
        assert_eq!((answer.status, answer.body.len()), (200, len), "{range}");
        assert_eq!(answer.header("accept-ranges"), Some("bytes"));
    }
    for range in [
        format!("bytes={len}-"),
        "bytes=-0".to_owned(),
        "bytes=99999-100000".to_owned(),
    ] {
        let answer = ask(&range).await;
        assert_eq!(answer.status, 416, "{range}");
        assert_eq!(
            answer.header("content-range"),
            Some(format!("bytes */{len}").as_str())
        );
    }
}

#[tokio::test]
async fn car_pathing() {
    let tree = mixed().await;
    let root = format!("/ipfs/{}", tree.root);
    let way = [tree.root, tree.subdir, tree.ascii];
    car_case(tree.address, &format!("{root}/subdir/ascii.txt"), "", &way).await;
    car_case(tree.address, &format!("{root}/subdir/ascii.txt/"), "", &way).await;
    let to_link = [tree.root, tree.subdir, tree.link];
    car_case(tree.address, &format!("{root}/subdir/link"), "", &to_link).await;
    for missing in [
        "/subdir/i-do-not-exist",
        "/nothing/x",
        "/subdir/ascii.txt/below",
        "/subdir/link/below",
    ] {
        for format in ["car", "raw"] {
            let answer = get(tree.address, &format!("{root}{missing}?format={format}")).await;
            assert_eq!(answer.status, 404, "{missing}");
        }
    }

    let tree = sharded(1000).await;
    for name in ["685.txt", "1.txt", "0.txt", "999.txt"] {
        let (mut wanted, file) = tree.way(name);
        assert!(wanted.len() >= 2, "the root is not all");
        wanted.push(file);
        let path = format!("/ipfs/{}/{name}", tree.root);
        car_case(tree.address, &path, "&dag-scope=block", &wanted).await;
        wanted.extend(tree.leaves(file));
        car_case(tree.address, &path, "", &wanted).await;
        car_case(tree.address, &path, "&dag-scope=all", &wanted).await;
        car_case(tree.address, &path, "&dag-scope=entity", &wanted).await;
    }
    let missing = get(
        tree.address,
        &format!("/ipfs/{}/1000.txt?format=car", tree.root),
    )
    .await;
    assert_eq!(missing.status, 404);
}

#[tokio::test]
async fn car_scopes() {
    let tree = mixed().await;
    let root = format!("/ipfs/{}", tree.root);
    let (a, s) = (tree.address, "&dag-scope=");
    let subdir = format!("{root}/subdir");
    let multi = format!("{root}/subdir/multiblock.txt");
    car_case(a, &subdir, &format!("{s}block"), &[tree.root, tree.subdir]).await;
    car_case(
        a,
        &format!("{subdir}/ascii.txt"),
        &format!("{s}block"),
        &[tree.root, tree.subdir, tree.ascii],
    )
    .await;
    car_case(
        a,
        &multi,
        &format!("{s}block"),
        &[tree.root, tree.subdir, tree.multi],
    )
    .await;
    car_case(a, &root, &format!("{s}entity"), &[tree.root]).await;
    car_case(a, &subdir, &format!("{s}entity"), &[tree.root, tree.subdir]).await;
    car_case(
        a,
        &format!("{subdir}/link"),
        &format!("{s}entity"),
        &[tree.root, tree.subdir, tree.link],
    )
    .await;
    let mut whole = vec![tree.root, tree.subdir, tree.multi];
    whole.extend(&tree.leaves);
    car_case(a, &multi, &format!("{s}entity"), &whole).await;
    car_case(a, &multi, &format!("{s}all"), &whole).await;
    let mut all = vec![
        tree.root,
        tree.subdir,
        tree.ascii,
        tree.empty,
        tree.link,
        tree.multi,
    ];
    all.extend(&tree.leaves);
    car_case(a, &subdir, &format!("{s}all"), &all).await;
    car_case(a, &root, "", &all).await;
    // A single leaf, and the block of no bytes, are trees too.
    car_case(
        a,
        &format!("/ipfs/{}", tree.leaves[1]),
        "",
        &tree.leaves[1..2],
    )
    .await;
    car_case(a, &format!("/ipfs/{}", tree.empty), "", &[tree.empty]).await;

    let tree = sharded(500).await;
    let root = format!("/ipfs/{}", tree.root);
    let mut shards = Vec::new();
    tree.shards(tree.root, &mut shards);
    assert!(shards.len() > 10);
    car_case(tree.address, &root, "&dag-scope=entity", &shards).await;
    car_case(
        tree.address,
        &root,
        "&dag-scope=entity&entity-bytes=0:*",
        &shards,
    )
    .await;
    car_case(tree.address, &root, "&dag-scope=block", &shards[..1]).await;
    let everything = get(tree.address, &format!("{root}?format=car")).await;
    is_car(&everything, "n");
    assert_eq!(
        blocks(&everything.body).len(),
        tree.memory.nodes.lock().len()
    );
}

#[tokio::test]
async fn car_entity_bytes() {
    let tree = mixed().await;
    let path = format!("/ipfs/{}", tree.multi);
    // Which leaves of 256, 256, 256, 256 and 2 bytes; none means the root alone.
    for (bytes, leaves) in [
        ("0:*", 0..5),
        ("0:0", 0..1),
        ("0:255", 0..1),
        ("0:256", 0..2),
        ("255:256", 0..2),
        ("256:511", 1..2),
        ("512:*", 2..5),
        ("512:1023", 2..4),
        ("512:-256", 2..4),
        ("-5:*", 3..5),
        ("-2:*", 4..5),
        ("-1:-1", 4..5),
        ("1025:1025", 4..5),
        ("1024:99999", 4..5),
        ("-9999:*", 0..5),
        ("-9999:-3", 0..4),
        ("1026:*", 0..0),
        ("99999:100000", 0..0),
        ("-9999:-1027", 0..0),
        ("700:-800", 0..0),
    ] {
        let mut wanted = vec![tree.multi];
        wanted.extend(&tree.leaves[leaves]);
        car_case(
            tree.address,
            &path,
            &format!("&dag-scope=entity&entity-bytes={bytes}"),
            &wanted,
        )
        .await;
        car_case(
            tree.address,
            &path,
            &format!("&entity-bytes={bytes}"),
            &wanted,
        )
        .await;
    }
    // What is not a file has no bytes to choose from.
    let subdir = format!("/ipfs/{}", tree.subdir);
    car_case(tree.address, &subdir, "&entity-bytes=5:7", &[tree.subdir]).await;
    let ascii = format!("/ipfs/{}", tree.ascii);
    car_case(tree.address, &ascii, "&entity-bytes=5:7", &[tree.ascii]).await;

    // A block outside of the range need not be there; one inside cuts the connection.
    tree.memory.forget(&tree.leaves[1]);
    car_case(
        tree.address,
        &path,
        "&entity-bytes=0:200",
        &[tree.multi, tree.leaves[0]],
    )
    .await;
    car_case(
        tree.address,
        &path,
        "&entity-bytes=512:*",
        &[&[tree.multi], &tree.leaves[2..]].concat(),
    )
    .await;
    let target = format!("{path}?format=car&entity-bytes=0:300");
    let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let cut = Answer::parse(&exchange(tree.address, request.as_bytes()).await);
    assert!(
        cut.is_none_or(|answer| !answer.whole),
        "what is missing must not look like the end"
    );
}

#[tokio::test]
async fn deep_files_and_repeated_parts() {
    let memory = Memory::new();
    // Three levels, two links a node; the second half repeats the first, so that nodes occur twice.
    let bytes = [text(256), text(256)].concat();
    let root = memory.add(&Item::Blocks(bytes.clone(), 64, 2)).cid;
    let address = start(&memory, Limits::default()).await;
    let path = format!("/ipfs/{root}");
    for from in (0..512).step_by(61) {
        for until in (from + 1..=512).step_by(67) {
            let answer = get(
                address,
                &format!("{path}?format=car&entity-bytes={from}:{}", until - 1),
            )
            .await;
            is_car(&answer, "n");
            // Whoever walks the file with just these blocks finds every byte of the range.
            let mut reader = car::Reader::new(&answer.body[..]).unwrap();
            let only = Memory::new();
            let mut count = 0;
            while let Some(section) = reader.read().unwrap() {
                let digest = section.cid.known().unwrap().digest();
                assert!(
                    only.nodes.lock().insert(digest, section.bytes).is_none(),
                    "sent twice"
                );
                count += 1;
            }
            let mut got = Vec::new();
            read(&only, root, 0, from..until, &mut got);
            assert_eq!(
                got,
                bytes[usize::try_from(from).unwrap()..usize::try_from(until).unwrap()]
            );
            assert!(count <= only.nodes.lock().len());
        }
    }
    let twice = get(address, &format!("{path}?format=car&car-dups=y")).await;
    is_car(&twice, "y");
    assert_eq!(blocks(&twice.body).len(), 15);
    let once = get(address, &format!("{path}?format=car")).await;
    assert_eq!(blocks(&once.body).len(), 8);
}

/// Reads a range of a file as any reader of UnixFS would.
fn read(memory: &Memory, node: Cid, start: u64, range: std::ops::Range<u64>, out: &mut Vec<u8>) {
    let bytes = memory.bytes(&node);
    let Ok(Decoded::File(file)) = decode(&AnyCid::from(node), &bytes) else {
        panic!("not a file");
    };
    for (at, byte) in (start..).zip(file.data) {
        if range.contains(&at) {
            out.push(*byte);
        }
    }
    let mut at = start + file.data.len() as u64;
    for child in &file.children {
        if at < range.end && at + child.bytes > range.start {
            read(memory, child.cid.known().unwrap(), at, range.clone(), out);
        }
        at += child.bytes;
    }
}

#[tokio::test]
async fn car_order_and_duplicates() {
    let memory = Memory::new();
    let multi = || Item::Blocks(text(1026), 256, 1024);
    let root = memory
        .add(&directory(vec![
            ("ascii-copy.txt", Item::File(b"ascii".to_vec())),
            ("ascii.txt", Item::File(b"ascii".to_vec())),
            ("multi-copy.txt", multi()),
            ("multi.txt", multi()),
        ]))
        .cid;
    let address = start(&memory, Limits::default()).await;
    let path = format!("/ipfs/{root}");
    let accept = async |params: &str, query: &str| {
        let header = format!("Accept: application/vnd.ipld.car;{params}\r\n");
        ask(address, "GET", &format!("{path}{query}"), &header).await
    };
    let ascii = memory.add(&Item::File(b"ascii".to_vec())).cid;
    let multi = memory.add(&multi()).cid;
    let leaves: Vec<Cid> = text(1026)
        .chunks(256)
        .map(|leaf| Cid::raw(manifs::block::Digest::of(leaf)))
        .collect();
    let file = [&[multi], &leaves[..]].concat();
    let twice = [&[root, ascii, ascii], &file[..], &file[..]].concat();
    let once = [&[root, ascii], &file[..]].concat();

    let answer = accept("version=1; order=dfs; dups=y", "").await;
    is_car(&answer, "y");
    assert_eq!(blocks(&answer.body), any(&twice));
    let answer = accept("version=1;order=dfs;dups=n", "").await;
    is_car(&answer, "n");
    assert_eq!(blocks(&answer.body), any(&once));
    // Any order is also this one.
    is_car(&accept("order=unk", "").await, "n");
    // The header's parameters count beside format=, and those of the URL over them.
    let answer = accept("version=1; order=dfs; dups=y", "?format=car").await;
    assert_eq!(blocks(&answer.body), any(&twice));
    is_car(&accept("dups=y", "?format=car&car-dups=n").await, "n");
    // format= wins over Accept.
    let raw = accept("dups=y", "?format=raw").await;
    assert_eq!(raw.header("content-type"), Some("application/vnd.ipld.raw"));
    let answer = ask(address, "GET", &format!("{path}?format=car"), RAW).await;
    is_car(&answer, "n");
}

#[tokio::test]
async fn identity_cids() {
    let tree = mixed().await;
    let raw = get(tree.address, &format!("/ipfs/{PROBE}?format=raw")).await;
    assert_eq!((raw.status, raw.body.len()), (200, 0));
    assert_eq!(raw.header("content-length"), Some("0"));
    let head = ask(
        tree.address,
        "HEAD",
        &format!("/ipfs/{PROBE}?format=raw"),
        "",
    )
    .await;
    assert_eq!(head.status, 200);
    let inline = "bafkqaf3imvwgy3zaneqgc3janfxgy2lomvscay3jmqfa";
    let raw = ask(tree.address, "GET", &format!("/ipfs/{inline}"), RAW).await;
    assert_eq!(raw.body, b"hello i am inlined cid\n");
    for cid in [PROBE, inline] {
        for query in ["", "&car-dups=y", "&dag-scope=block", "&dag-scope=entity"] {
            let answer = get(tree.address, &format!("/ipfs/{cid}?format=car{query}")).await;
            assert_eq!(answer.status, 200);
            let reader = car::Reader::new(&answer.body[..]).unwrap();
            assert_eq!(reader.roots(), [cid.parse::<AnyCid>().unwrap()]);
            assert_eq!(blocks(&answer.body), []);
        }
    }
}
